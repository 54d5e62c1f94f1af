"""Spectral norm as an option of any network: what is normalised, what is kept, and that everything else still works."""

import copy

import pytest
import torch
from p2pzoo_pix2pix.discriminators import PatchDiscriminator
from p2pzoo_pix2pix.generators import UNet
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from p2pzoo import config
from p2pzoo.compute.activation_checkpointing import with_activation_checkpointing
from p2pzoo.compute.conv_as_gemm import Chooser, convs_as_gemm
from p2pzoo.compute.engine import Engine, frozen
from p2pzoo.models.initialization import make_discriminator, make_generator
from p2pzoo.models.model_file import load_model, model_header
from p2pzoo.models.safetensors_io import load_into, load_tensors, module_tensors, save_model
from p2pzoo.models.spectral_norm import FullPrecision, normalise, plain_state
from p2pzoo.models.test_modes import translate
from p2pzoo.plugin.loader import registry
from p2pzoo.training.setup import build_objective
from p2pzoo.utils.errors import UserError

SIZE = (32, 32)


def judge(seed=0):
    torch.manual_seed(seed)
    D = PatchDiscriminator(3, 3, SIZE, width=4, norm="none")
    normalise(D)
    return D


def pair(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(2, 3, *SIZE, generator=draw) * 2 - 1 for _ in range(2)]


def made(*overrides):
    given = ("generator.width=4", "discriminator.width=4", "compute.device=cpu", *overrides)
    return config.load("zoo:base.toml", "smoke", given)


def norms(network):
    return [part for part in network.modules() if isinstance(part, FullPrecision)]


def largest(weight, dim=0):
    """The largest singular value, by torch's decomposition."""
    return torch.linalg.svdvals(weight.detach().movedim(dim, 0).flatten(1).double())[0].item()


def test_every_convolution_and_linear_layer_comes_to_spectral_norm_1():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 3), nn.Conv1d(4, 4, 2), nn.Linear(5, 6))
    network = nn.Sequential(*layers, nn.BatchNorm2d(4))
    weights = [layer.weight.detach().clone() for layer in layers]
    normalise(network)
    x = torch.rand(1, 3, 8, 8)
    for _ in range(50):
        network[0](x)
    for layer, weight, dim in zip(layers, weights, (0, 1, 0, 0), strict=True):
        layer.train()
        for _ in range(100):
            normed = layer.weight
        assert largest(normed, dim) == pytest.approx(1, abs=1e-4)
        torch.testing.assert_close(normed * largest(weight, dim), weight, rtol=1e-4, atol=1e-6)
    assert not isinstance(network[4].weight, FullPrecision)
    assert len(norms(network)) == 4


def test_a_layer_whose_weight_is_computed_already_keeps_its_own():
    network = nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3)), torch.nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)))
    before = set(network.state_dict())
    normalise(network)
    assert set(network.state_dict()) == before


def test_weights_of_0_are_refused_by_their_layers_name():
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    nn.init.zeros_(network[0].weight)
    with pytest.raises(ValueError, match="its layer 0 begins with weights of 0"):
        normalise(network)


@pytest.mark.parametrize(
    ("asked", "G_normed", "D_normed"),
    [("none", False, False), ("generator", True, False), ("discriminator", False, True), ("both", True, True)],
)
def test_a_recipe_says_whose_weights_and_they_begin_as_they_would_without(asked, G_normed, D_normed):
    plain, normed = made(), made(f"train.spectral_norm={asked}")
    for make, expected in ((make_generator, G_normed), (make_discriminator, D_normed)):
        network, without = make(normed, (3, 3), (64, 64)), make(plain, (3, 3), (64, 64))
        assert bool(norms(network)) is expected
        begun = {
            name.replace("parametrizations.weight.original", "weight"): p for name, p in network.named_parameters()
        }
        assert begun.keys() == dict(without.named_parameters()).keys()
        assert all(torch.equal(begun[name], weight) for name, weight in without.named_parameters())
        again = make(normed, (3, 3), (64, 64))
        assert all(map(torch.equal, network.state_dict().values(), again.state_dict().values())), "u and v too"


class Library(Chooser):
    def _library_only(self, *_):
        return False


@pytest.mark.parametrize(
    "rewritten", [lambda D: convs_as_gemm(D, Library()), with_activation_checkpointing], ids=["lowered", "recomputed"]
)
def test_rewritten_for_speed_or_memory_it_trains_as_it_did(rewritten):
    plain = judge().double()
    twin = rewritten(copy.deepcopy(plain))
    images = [image.double() for image in pair()]
    for D in (plain, twin):
        D.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(D.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (D(*images)[0].square() + D(images[1], images[0])[0]).mean().backward()  # asked twice, as of real and fake
            optimizer.step()
    for (name, a), b in zip(plain.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)


def test_frozen_it_passes_gradients_on_and_gets_none():
    D = judge()
    x, y = pair()
    with frozen(D):
        D(x, y.requires_grad_())[0].mean().backward()
    assert all(parameter.grad is None for parameter in D.parameters())
    assert y.grad.abs().sum() > 0
    D(x, y)[0].mean().backward()
    assert all(parameter.grad is not None for parameter in D.parameters())


def test_each_time_d_is_asked_is_a_power_iteration_and_so_it_judges_real_and_fake_apart():
    D, (x, y) = judge(), pair()
    before = D.state_dict()[next(name for name in D.state_dict() if name.endswith("_u"))].clone()
    D(x, y)
    assert not torch.equal(before, D.state_dict()[next(n for n in D.state_dict() if n.endswith("_u"))])
    for asked, expected in (("none", True), ("discriminator", False)):
        experiment = made(f"train.spectral_norm={asked}")
        engine = Engine(experiment.compute)
        objective = build_objective(experiment, engine, (3, 3), (64, 64))
        assert (objective.both is not None) is expected
        assert ("one_pass" in engine.describe()["on"]) is expected


def test_under_autocast_the_weight_is_normalised_in_its_own_precision():
    layer = nn.Sequential(nn.Conv2d(3, 4, 3))
    normalise(layer)
    seen = []
    layer[0].parametrizations.weight[0].of.register_forward_hook(
        lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.rand(1, 3, 8, 8)).dtype == torch.bfloat16
        assert layer[0].weight.dtype == torch.float32
    assert seen == [False, False]


def test_a_checkpoint_holds_u_and_v():
    D, other = judge(0), judge(1)
    for _ in range(3):
        D(*pair())
    tensors = {name.removeprefix("D."): tensor.clone() for name, tensor in module_tensors("D", D).items()}
    assert sum(name.endswith(("_u", "_v")) for name in tensors) == 2 * len(norms(D))
    load_into(other, tensors, "checkpoint")
    assert torch.equal(D(*pair())[0], other(*pair())[0]), "the next power iteration is the same"


@pytest.mark.parametrize("mode", ["paper", "eval"])
def test_to_translate_moves_nothing_and_gives_the_same_again(mode):
    torch.manual_seed(0)
    G = UNet(3, 3, SIZE, width=4)
    normalise(G)
    x, before = pair()[0], copy.deepcopy(G.state_dict())
    assert torch.equal(translate(G, x, mode), translate(G, x, mode))
    assert all(torch.equal(before[name], tensor) for name, tensor in G.state_dict().items())
    assert all(part.training for part in G.modules())


def test_a_model_file_holds_plain_weights_and_translates_as_the_network_does(tmp_path):
    experiment = made("train.spectral_norm=both")
    G = make_generator(experiment, (3, 3), (64, 64))
    for _ in range(2):
        G(torch.rand(1, 3, 64, 64))
    file = tmp_path / "model.safetensors"
    before = copy.deepcopy(G.state_dict())
    save_model(file, G, model_header(experiment, G, experiment.dataset.build(split="val"), (3, 3), (64, 64)))
    assert all(torch.equal(before[name], tensor) for name, tensor in G.state_dict().items()), "saving moves nothing"
    alone, _ = load_model(file, registry())
    assert not norms(alone)
    assert alone.state_dict().keys() == load_tensors(file)[0].keys()
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    for mode in ("paper", "eval"):
        torch.testing.assert_close(translate(alone, x, mode), translate(G, x, mode), rtol=0, atol=1e-6)

    tuned = made("train.spectral_norm=generator", f'init.generator="{file}"')
    again = make_generator(tuned, (3, 3), (64, 64))
    assert len(norms(again)) == len(norms(G)), "and from it a run may begin"


def test_a_spectral_norm_of_the_networks_own_is_saved_as_it_is():
    network = nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3))
    expected = set(network.state_dict())
    normalise(network)
    assert set(plain_state(network)) == expected


def test_a_run_with_it_in_both_networks_and_an_average_of_g_ends_with_a_model_that_loads_alone(run, tmp_path):
    told = run(tmp_path, "train.spectral_norm=both", "train.ema=0.5", "train.images=6", "train.checkpoint_every=4")
    assert told.exit_code == 0, told.output
    [file] = tmp_path.glob("*/*/model.safetensors")
    G, _ = load_model(file, registry())
    for name, part in G.named_modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            assert largest(part.weight, int(isinstance(part, nn.ConvTranspose2d))) == pytest.approx(1, abs=0.1), name


def test_the_lua_codes_order_is_refused_in_one_line():
    with pytest.raises(UserError, match=r'\[train\] spectral_norm = "both": order = "lua" takes'):
        made("train.spectral_norm=both", "train.order=lua")
