"""Spectral norm as an option of any network: which layers it normalises, which tensors are saved, what still works."""

import copy

import pytest
import torch
from p2pzoo_pix2pix.discriminators import PatchDiscriminator
from p2pzoo_pix2pix.generators import UNet
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from p2pzoo import config
from p2pzoo.compute.activation_checkpointing import with_activation_checkpointing
from p2pzoo.compute.conv_as_gemm import AlgorithmChooser, convs_as_gemm
from p2pzoo.compute.engine import Engine, frozen
from p2pzoo.models.initialization import make_discriminator, make_generator
from p2pzoo.models.model_file import build_header, load_network
from p2pzoo.models.safetensors_io import load_into, load_tensors, module_tensors, save_model
from p2pzoo.models.spectral_norm import FullPrecisionSpectralNorm, apply_spectral_norm, plain_state_dict
from p2pzoo.models.test_modes import translate
from p2pzoo.plugin.loader import registry
from p2pzoo.training.setup import build_objective
from p2pzoo.utils.errors import UserError

SIZE = (32, 32)


def make_discriminator_with_norm(seed=0):
    torch.manual_seed(seed)
    D = PatchDiscriminator(3, 3, SIZE, width=4, norm="none")
    apply_spectral_norm(D)
    return D


def random_pair(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(2, 3, *SIZE, generator=generator) * 2 - 1 for _ in range(2)]


def load_experiment(*overrides):
    small = ("generator.width=4", "discriminator.width=4", "compute.device=cpu")
    return config.load("zoo:base.toml", "smoke", (*small, *overrides))


def find_norms(network):
    return [module for module in network.modules() if isinstance(module, FullPrecisionSpectralNorm)]


def largest_singular_value(weight, dim=0):
    return torch.linalg.svdvals(weight.detach().movedim(dim, 0).flatten(1).double())[0].item()


def test_weights_of_convolutions_and_linear_layers_get_spectral_norm_1():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 3), nn.Conv1d(4, 4, 2), nn.Linear(5, 6))
    network = nn.Sequential(*layers, nn.BatchNorm2d(4))
    weights = [layer.weight.detach().clone() for layer in layers]
    apply_spectral_norm(network)
    x = torch.rand(1, 3, 8, 8)
    for _ in range(50):
        network[0](x)
    for layer, weight, dim in zip(layers, weights, (0, 1, 0, 0), strict=True):
        layer.train()
        for _ in range(100):
            normed = layer.weight
        assert largest_singular_value(normed, dim) == pytest.approx(1, abs=1e-4)
        torch.testing.assert_close(normed * largest_singular_value(weight, dim), weight, rtol=1e-4, atol=1e-6)
    assert not isinstance(network[4].weight, FullPrecisionSpectralNorm)
    assert len(find_norms(network)) == 4


def test_a_layer_that_has_a_spectral_norm_keeps_its_own():
    network = nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3)), torch.nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)))
    before = set(network.state_dict())
    apply_spectral_norm(network)
    assert set(network.state_dict()) == before


def test_a_layer_whose_weights_are_all_0_is_refused_by_name():
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    nn.init.zeros_(network[0].weight)
    with pytest.raises(ValueError, match="the weights of its layer 0 are all 0"):
        apply_spectral_norm(network)


@pytest.mark.parametrize(
    ("value", "G_normed", "D_normed"),
    [("none", False, False), ("generator", True, False), ("discriminator", False, True), ("both", True, True)],
)
def test_a_recipe_chooses_the_networks_and_their_initial_weights_stay_the_same(value, G_normed, D_normed):
    plain, normed = load_experiment(), load_experiment(f"train.spectral_norm={value}")
    for make, expected in ((make_generator, G_normed), (make_discriminator, D_normed)):
        network, without = make(normed, (3, 3), (64, 64)), make(plain, (3, 3), (64, 64))
        assert bool(find_norms(network)) is expected
        initial = {
            name.replace("parametrizations.weight.original", "weight"): p for name, p in network.named_parameters()
        }
        assert initial.keys() == dict(without.named_parameters()).keys()
        assert all(torch.equal(initial[name], weight) for name, weight in without.named_parameters())
        again = make(normed, (3, 3), (64, 64))
        assert all(map(torch.equal, network.state_dict().values(), again.state_dict().values())), "u and v too"


class MayUseGemm(AlgorithmChooser):
    def _uses_only_library(self, *_):
        return False


@pytest.mark.parametrize(
    "rewrite", [lambda D: convs_as_gemm(D, MayUseGemm()), with_activation_checkpointing], ids=["gemm", "checkpointing"]
)
def test_a_network_rewritten_for_speed_or_memory_trains_to_the_same_weights(rewrite):
    plain = make_discriminator_with_norm().double()
    rewritten = rewrite(copy.deepcopy(plain))
    images = [image.double() for image in random_pair()]
    for D in (plain, rewritten):
        D.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(D.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (D(*images)[0].square() + D(images[1], images[0])[0]).mean().backward()  # two passes, as for real and fake
            optimizer.step()
    for (name, a), b in zip(plain.state_dict().items(), rewritten.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)


def test_a_frozen_network_passes_gradients_on_and_gets_none():
    D = make_discriminator_with_norm()
    x, y = random_pair()
    with frozen(D):
        D(x, y.requires_grad_())[0].mean().backward()
    assert all(parameter.grad is None for parameter in D.parameters())
    assert y.grad.abs().sum() > 0
    D(x, y)[0].mean().backward()
    assert all(parameter.grad is not None for parameter in D.parameters())


def test_each_pass_of_d_is_a_power_iteration_so_real_and_fake_are_not_batched():
    D, (x, y) = make_discriminator_with_norm(), random_pair()
    before = D.state_dict()[next(name for name in D.state_dict() if name.endswith("_u"))].clone()
    D(x, y)
    assert not torch.equal(before, D.state_dict()[next(n for n in D.state_dict() if n.endswith("_u"))])
    for value, expected in (("none", True), ("discriminator", False)):
        experiment = load_experiment(f"train.spectral_norm={value}")
        engine = Engine(experiment.compute)
        objective = build_objective(experiment, engine, (3, 3), (64, 64))
        assert (objective.judge_both is not None) is expected
        assert ("one_pass" in engine.describe()["on"]) is expected


def test_autocast_does_not_change_the_precision_of_the_norm():
    layer = nn.Sequential(nn.Conv2d(3, 4, 3))
    apply_spectral_norm(layer)
    autocast = []
    layer[0].parametrizations.weight[0].of.register_forward_hook(
        lambda *_: autocast.append(torch.is_autocast_enabled("cpu"))
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.rand(1, 3, 8, 8)).dtype == torch.bfloat16
        assert layer[0].weight.dtype == torch.float32
    assert autocast == [False, False]


def test_a_checkpoint_holds_u_and_v():
    D, loaded = make_discriminator_with_norm(0), make_discriminator_with_norm(1)
    for _ in range(3):
        D(*random_pair())
    tensors = {name.removeprefix("D."): tensor.clone() for name, tensor in module_tensors("D", D).items()}
    assert sum(name.endswith(("_u", "_v")) for name in tensors) == 2 * len(find_norms(D))
    load_into(loaded, tensors, "checkpoint")
    assert torch.equal(D(*random_pair())[0], loaded(*random_pair())[0]), "the next power iteration is the same"


@pytest.mark.parametrize("mode", ["paper", "eval"])
def test_translate_changes_no_tensor_and_gives_the_same_again(mode):
    torch.manual_seed(0)
    G = UNet(3, 3, SIZE, width=4)
    apply_spectral_norm(G)
    x, before = random_pair()[0], copy.deepcopy(G.state_dict())
    assert torch.equal(translate(G, x, mode), translate(G, x, mode))
    assert all(torch.equal(before[name], tensor) for name, tensor in G.state_dict().items())
    assert all(module.training for module in G.modules())


def test_a_model_file_holds_plain_weights_that_translate_like_the_network(tmp_path):
    experiment = load_experiment("train.spectral_norm=both")
    G = make_generator(experiment, (3, 3), (64, 64))
    for _ in range(2):
        G(torch.rand(1, 3, 64, 64))
    file = tmp_path / "model.safetensors"
    before = copy.deepcopy(G.state_dict())
    save_model(file, G, build_header(experiment, G, experiment.dataset.build(split="val"), (3, 3), (64, 64)))
    assert all(torch.equal(before[name], tensor) for name, tensor in G.state_dict().items()), "saving changes no tensor"
    loaded, _ = load_network(file, registry())
    assert not find_norms(loaded)
    assert loaded.state_dict().keys() == load_tensors(file)[0].keys()
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    for mode in ("paper", "eval"):
        torch.testing.assert_close(translate(loaded, x, mode), translate(G, x, mode), rtol=0, atol=1e-6)

    tuned = load_experiment("train.spectral_norm=generator", f'init.generator="{file}"')
    again = make_generator(tuned, (3, 3), (64, 64))
    assert len(find_norms(again)) == len(find_norms(G)), "a run can start from the file"


def test_a_spectral_norm_of_the_networks_own_is_saved_unchanged():
    network = nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3))
    expected = set(network.state_dict())
    apply_spectral_norm(network)
    assert set(plain_state_dict(network)) == expected


def test_a_run_with_spectral_norm_in_both_networks_and_an_average_of_g_saves_a_model_that_loads(run, tmp_path):
    result = run(tmp_path, "train.spectral_norm=both", "train.ema=0.5", "train.images=6", "train.checkpoint_every=4")
    assert result.exit_code == 0, result.output
    [file] = tmp_path.glob("*/*/model.safetensors")
    G, _ = load_network(file, registry())
    for name, layer in G.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert largest_singular_value(layer.weight, int(isinstance(layer, nn.ConvTranspose2d))) == pytest.approx(
                1, abs=0.1
            ), name


def test_the_order_of_the_lua_code_is_refused_in_one_line():
    with pytest.raises(UserError, match=r'\[train\] spectral_norm = "both": order = "lua" needs a discriminator'):
        load_experiment("train.spectral_norm=both", "train.order=lua")
