"""pix2pixHD: the layers of G1 and G2, G2 initialised from a trained G1, D at several scales, boundary maps."""

import copy
import importlib
import re

import p2pzoo_pix2pixhd
import pytest
import torch
from p2pzoo_pix2pixhd.boundaries import with_boundaries
from p2pzoo_pix2pixhd.discriminators import MultiscaleDiscriminator
from p2pzoo_pix2pixhd.generators import GlobalGenerator, LocalEnhancer
from torch import nn
from torch.nn import functional as F

from p2pzoo import config
from p2pzoo.compute.activation_checkpointing import with_activation_checkpointing
from p2pzoo.compute.batched_discriminator import is_batch_independent
from p2pzoo.compute.conv_as_gemm import convs_as_gemm
from p2pzoo.compute.norm_gradients import fix_instance_norms
from p2pzoo.models.initialization import make_generator
from p2pzoo.models.model_file import build_header
from p2pzoo.models.safetensors_io import load_tensors, save_model, save_tensors
from p2pzoo.models.test_modes import optimize_for_eval, translate
from p2pzoo.utils.errors import UserError

BOTH = pytest.mark.parametrize("network", [GlobalGenerator, LocalEnhancer])
SMALL = {"width": 4, "downsamplings": 2, "blocks": 2}


def images(channels, height, width, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, height, width, generator=generator) * 2 - 1


def build(network, *args, **options):
    torch.manual_seed(0)
    return network(*args, **options)


def convolutions(module):
    """(kind, input channels, output channels, kernel, stride) of each convolution, in the order of execution."""
    short = {nn.Conv2d: "c", nn.ConvTranspose2d: "u"}
    return [
        (short[type(m)], m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0])
        for m in module.modules()
        if type(m) in short
    ]


def test_every_registered_network_can_be_imported():
    registered = {}

    def register(name, factory, **about):
        registered[name] = (factory, about)

    p2pzoo_pix2pixhd.register_generators(register)
    p2pzoo_pix2pixhd.register_discriminators(register)
    assert set(registered) == {"pix2pixhd-global", "pix2pixhd-local", "multiscale"}
    for factory, about in registered.values():
        module, attribute = factory.split(":")
        assert issubclass(getattr(importlib.import_module(module), attribute), nn.Module)
        assert about["summary"]
        assert about["paper"].startswith("arXiv:1711.11585")


G1 = [("c", 3, 64, 7, 1), *(("c", 64 * 2**i, 128 * 2**i, 3, 2) for i in range(4))]
G1 += [("c", 1024, 1024, 3, 1)] * 18 + [("u", 128 * 2**i, 64 * 2**i, 3, 2) for i in (3, 2, 1, 0)]


def test_the_layers_of_g1_match_the_appendix():
    with torch.device("meta"):
        G = GlobalGenerator(3, 3, (256, 256))
        assert G(torch.empty(1, 3, 256, 256)).shape == (1, 3, 256, 256)
    assert convolutions(G) == [*G1, ("c", 64, 3, 7, 1)]


def test_the_layers_of_g2_match_the_appendix():
    with torch.device("meta"):
        G = LocalEnhancer(3, 3, (256, 256))
        assert G(torch.empty(1, 3, 256, 256)).shape == (1, 3, 256, 256)
    assert convolutions(G.coarse) == G1
    local = [
        ("c", 3, 32, 7, 1),
        ("c", 32, 64, 3, 2),
        *[("c", 64, 64, 3, 1)] * 6,
        ("u", 64, 32, 3, 2),
        ("c", 32, 3, 7, 1),
    ]
    assert convolutions(G) == [*G1, *local]


def test_g2_adds_features_of_g1_at_half_the_size_to_its_own():
    G = build(LocalEnhancer, 3, 2, (32, 48), **SMALL)
    x = images(3, 32, 48)
    ones = torch.ones(1, 1, 32, 48)
    box = torch.ones(1, 1, 3, 3)  # the mean of the 3×3 pixels that there are
    pooled = F.conv2d(x.view(6, 1, 32, 48), box, stride=2, padding=1) / F.conv2d(ones, box, stride=2, padding=1)
    expected = G.to_image(G.up(G.down(x) + G.coarse(pooled.view(2, 3, 16, 24))))
    torch.testing.assert_close(G(x), expected)


@BOTH
@pytest.mark.parametrize("channels", [(1, 3), (4, 2)])
def test_output_has_the_size_of_the_input_and_values_within_minus_1_and_1(network, channels):
    G = build(network, *channels, (32, 16), **SMALL)
    y_hat = G(images(channels[0], 32, 16))
    assert y_hat.shape == (2, channels[1], 32, 16)
    assert y_hat.abs().max() <= 1


@pytest.mark.parametrize(("network", "divisor"), [(GlobalGenerator, 16), (LocalEnhancer, 32)])
def test_a_wrong_size_is_an_error_with_a_size_that_fits(network, divisor):
    assert build(network, 3, 3, (2 * divisor, 3 * divisor), width=2, blocks=1).size_divisor == divisor
    for size in ((divisor, 64), (65, 64)):
        with pytest.raises(ValueError, match=f"multiples of {divisor}, at least {2 * divisor}, not") as refusal:
            network(3, 3, size, width=2, blocks=1)
        fitting = tuple(map(int, re.search(r"(\d+)×(\d+) would fit$", str(refusal.value)).groups()))
        G = build(network, 3, 3, fitting, width=2, blocks=1)
        assert G(torch.zeros(1, 3, *fitting)).shape == (1, 3, *fitting)
        with pytest.raises(ValueError, match=r"would fit$"):
            G(torch.zeros(1, 3, *size))


def test_an_odd_width_is_an_error():
    with pytest.raises(ValueError, match="width must be even, because the enhancer has half of it, not 3"):
        LocalEnhancer(3, 3, (64, 64), width=3)


@BOTH
def test_group_norm_keeps_a_constant_that_is_added_to_x_and_instance_norm_removes_it(network):
    x = images(1, 32, 32)
    for norm, keeps in (("instance", False), ("group", True)):
        G = build(network, 1, 3, (32, 32), **SMALL, norm=norm)
        low, high = (G(x / 2 + level) for level in (-0.5, 0.5))
        assert ((low - high).abs().max() > 1e-2) == keeps


@BOTH
def test_each_norm_of_the_paper_has_group_norm_in_its_place(network):
    instance, group = (build(network, 3, 3, (32, 32), **SMALL, norm=norm) for norm in ("instance", "group"))

    def kinds(G, norm):
        return ["norm" if type(module) is norm else type(module) for module in G.modules()]

    assert kinds(instance, nn.InstanceNorm2d) == kinds(group, nn.GroupNorm)


@BOTH
def test_an_unknown_norm_is_an_error(network):
    with pytest.raises(ValueError, match="norm must be 'instance' or 'group', not 'batch'"):
        network(3, 3, (64, 64), norm="batch")


@BOTH
@pytest.mark.parametrize("norm", ["instance", "group"])
def test_every_parameter_gets_a_finite_gradient(network, norm):
    G = build(network, 3, 3, (32, 32), **SMALL, edges=True, norm=norm)
    G(images(3, 32, 32)).square().mean().backward()
    for name, parameter in G.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name.endswith("weight"):  # a bias before a norm rightly has none
            assert parameter.grad.abs().sum() > 0, name


# boundary maps


def test_a_boundary_is_a_pixel_with_a_different_neighbour():
    x = torch.full((1, 2, 5, 6), -1.0)
    x[0, 0, 1:3, 2:4] = 1  # an object in the one channel, and
    x[0, 1, 4, 0] = 3 / 255 - 1  # a pixel two levels apart in the other; less than half a level is none
    x[0, 1, 0, 5] += 0.5 / 255
    expected = [
        [0, 0, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 0],
    ]
    out = with_boundaries(x)
    assert torch.equal(out[:, :2], x)
    assert out[0, 2].tolist() == expected


def test_boundaries_do_not_depend_on_other_images_of_the_batch():
    x = torch.full((2, 1, 4, 4), -1.0)
    x[1] = 1
    assert not with_boundaries(x)[:, 1].any()


@BOTH
def test_edges_are_an_input_of_the_generator(network):
    G = build(network, 3, 3, (16, 16), **{**SMALL, "downsamplings": 1}, edges=True)
    inputs = []
    first = G.trunk if network is GlobalGenerator else G.down
    first.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    x = images(3, 16, 16)
    G(x)
    assert torch.equal(inputs[0], with_boundaries(x))


def test_edges_of_x_are_an_input_of_the_discriminator():
    D = build(MultiscaleDiscriminator, 3, 2, (16, 16), width=2, num_scales=1, edges=True)
    inputs = []
    D.scales[0].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    x, y = images(3, 16, 16), images(2, 16, 16, seed=1)
    D(x, y)
    assert torch.equal(inputs[0], torch.cat([with_boundaries(x), y], dim=1))
    with pytest.raises(ValueError, match="edges = true needs conditional = true"):
        MultiscaleDiscriminator(3, 3, (16, 16), conditional=False, edges=True)


# coarse to fine


def experiment(use, *overrides):
    small = [f"generator.{name}={value}" for name, value in SMALL.items()]
    chosen = [f"generator.use={use}", *small, *overrides]
    return config.load("zoo:base.toml", "smoke", chosen)


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    """A global generator and its model file."""
    path = tmp_path_factory.mktemp("coarse") / "model.safetensors"
    recipe = experiment("pix2pixhd-global", "seed=7")
    G = make_generator(recipe, (3, 3), (32, 32))
    save_model(path, G, build_header(recipe, G, recipe.dataset.build(split="val"), (3, 3), (32, 32)))
    return G, path


def test_init_generator_loads_a_global_generator_into_a_local_enhancer(coarse):
    G, path = coarse
    grown = make_generator(experiment("pix2pixhd-local", f"init.generator={path}"), (3, 3), (64, 64))
    fresh = make_generator(experiment("pix2pixhd-local"), (3, 3), (64, 64))
    theirs = G.state_dict()
    for name, tensor in grown.state_dict().items():
        part, _, rest = name.partition(".")
        expected = theirs[f"trunk.{rest}"] if part == "coarse" else fresh.state_dict()[name]
        assert torch.equal(tensor, expected), name
    x = images(3, 32, 32)
    assert torch.equal(grown.coarse(x), G.trunk(x))


def test_init_generator_loads_a_file_of_a_local_enhancer(coarse, tmp_path):
    recipe = experiment("pix2pixhd-local", "seed=3")
    G = make_generator(recipe, (3, 3), (64, 64))
    path = tmp_path / "model.safetensors"
    save_model(path, G, build_header(recipe, G, recipe.dataset.build(split="val"), (3, 3), (64, 64)))
    tuned = make_generator(experiment("pix2pixhd-local", f"init.generator={path}"), (3, 3), (64, 64))
    assert all(torch.equal(a, b) for a, b in zip(G.parameters(), tuned.parameters(), strict=True))


def test_a_file_of_another_network_is_an_error(coarse, tmp_path):
    _, path = coarse
    tensors, header = load_tensors(path)

    def start(tensors, *overrides):
        save_tensors(tmp_path / "changed.safetensors", tensors, header)
        recipe = experiment("pix2pixhd-local", f"init.generator={tmp_path / 'changed.safetensors'}", *overrides)
        return make_generator(recipe, (3, 3), (64, 64))

    start(tensors)
    changed = [
        {name: t for name, t in tensors.items() if name != gone} for gone in ("trunk.0.1.weight", "to_image.1.bias")
    ]
    changed += [{**tensors, "extra": torch.zeros(1)}, {}]
    for each in changed:
        with pytest.raises(UserError, match="neither such a generator nor a pix2pixhd-global") as refusal:
            start(each)
        assert len(refusal.value.args) == 1
    with pytest.raises(UserError, match="the same downsamplings and blocks"):
        start(tensors, "generator.blocks=3")
    with pytest.raises(UserError, match="the network's is"):
        start(tensors, "generator.width=6")
    with pytest.raises(UserError, match="the network's is"):
        start(tensors, "generator.edges=true")


# the discriminator


@pytest.mark.parametrize(("scales", "field"), [(1, 70), (2, 141), (3, 283)])
def test_a_logit_of_the_coarsest_scale_depends_on_its_receptive_field(scales, field):
    side = field + 64
    D = build(MultiscaleDiscriminator, 1, 1, (side, side), width=1, num_scales=scales).eval()
    for parameter in D.parameters():
        parameter.data.abs_()  # nothing cancels
    for norm in [m for m in D.modules() if isinstance(m, nn.InstanceNorm2d)]:
        norm.forward = lambda h: h  # a norm depends on the whole image
    y = torch.zeros(1, 1, side, side, requires_grad=True)
    logits = D(torch.zeros(1, 1, side, side), y)[-1]
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    dependent = y.grad[0, 0].nonzero()
    assert (dependent.amax(0) - dependent.amin(0) + 1).tolist() == [field, field]
    assert D.receptive_field == field


def test_each_scale_is_a_patchgan_on_an_image_of_half_the_size():
    D = build(MultiscaleDiscriminator, 3, 2, (64, 96), width=4)
    x, y = images(3, 64, 96), images(2, 64, 96, seed=1)
    assert [convolutions(scale) for scale in D.scales] == [
        [("c", 5, 4, 4, 2), ("c", 4, 8, 4, 2), ("c", 8, 16, 4, 2), ("c", 16, 32, 4, 1), ("c", 32, 1, 4, 1)]
    ] * 3
    logits = D(x, y)
    assert [tuple(each.shape) for each in logits] == [(2, 1, 11, 15), (2, 1, 7, 9), (2, 1, 5, 6)]
    image = torch.cat([x, y], dim=1)
    for scale, expected in zip(D.scales, logits, strict=True):
        h = image
        for i, layer in enumerate(scale.layers):
            conv = layer if i == 4 else layer[0]
            h = F.conv2d(h, conv.weight, conv.bias, conv.stride, padding=2)
            if 0 < i < 4:
                mean, variance = h.mean((2, 3), keepdim=True), h.var((2, 3), keepdim=True, unbiased=False)
                h = (h - mean) / (variance + 1e-5).sqrt()
            h = h if i == 4 else F.leaky_relu(h, 0.2)
        torch.testing.assert_close(expected, h, atol=1e-4, rtol=1e-4)
        image = F.avg_pool2d(image, 3, 2, 1, count_include_pad=False)


def test_the_last_features_of_each_scale_give_its_logits():
    D = build(MultiscaleDiscriminator, 3, 3, (32, 32), width=2, num_scales=2)
    x, y = images(3, 32, 32), images(3, 32, 32, seed=1)
    features, logits = D.features(x, y), D(x, y)
    assert [[h.shape[1] for h in scale] for scale in features] == [[2, 4, 8, 16]] * 2
    for scale, layers, expected in zip(D.scales, features, logits, strict=True):
        torch.testing.assert_close(scale.layers[-1](layers[-1]), expected)


def test_an_unconditional_discriminator_ignores_x():
    D = build(MultiscaleDiscriminator, 3, 2, (32, 32), width=2, conditional=False)
    y = images(2, 32, 32)
    for a, b in zip(D(images(3, 32, 32, seed=1), y), D(images(3, 32, 32, seed=2), y), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_smaller_images_than_the_smallest_side_are_errors(scales):
    smallest = 2**scales
    D = build(MultiscaleDiscriminator, 3, 3, (smallest, smallest), width=1, num_scales=scales)
    D(images(3, smallest, smallest), images(3, smallest, smallest))
    of_scales = "of 1 scale" if scales == 1 else f"of {scales} scales"
    with pytest.raises(ValueError, match=f"{of_scales} needs sides of at least {smallest} px, not {smallest - 1}×8$"):
        MultiscaleDiscriminator(3, 3, (smallest - 1, 8), num_scales=scales)
    with pytest.raises(ValueError, match=f"of at least {smallest} px"):
        D(images(3, smallest - 1, smallest), images(3, smallest - 1, smallest))


def test_logits_do_not_depend_on_the_rest_of_the_batch():
    assert is_batch_independent(build(MultiscaleDiscriminator, 3, 3, (32, 32), width=2), (3, 3), (32, 32), batch=1)


# what the core makes of them


def gradients(network, *inputs):
    out = network(*inputs)
    out = out if isinstance(out, list) else [out]
    sum(each.square().mean() for each in out).backward()
    return [each.detach() for each in out], [p.grad for p in network.parameters()]


@pytest.mark.parametrize("network", [GlobalGenerator, LocalEnhancer, MultiscaleDiscriminator])
def test_a_prepared_network_gives_the_same_outputs_and_gradients(network):
    discriminator = network is MultiscaleDiscriminator
    options = {"width": 8} if discriminator else {**SMALL, "width": 8}
    plain = build(network, 3, 3, (32, 32), **options).double()
    given = [images(3, 32, 32, seed=seed).double() for seed in range(2 if discriminator else 1)]
    rewritten = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    fix_instance_norms(rewritten)
    laid = [each.to(memory_format=torch.channels_last) for each in given]
    expected = gradients(plain, *given)
    found = gradients(convs_as_gemm(with_activation_checkpointing(rewritten)), *laid)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@BOTH
def test_a_network_optimised_for_eval_gives_the_same_image(network, recwarn):
    G = build(network, 3, 3, (32, 32), **SMALL).double()
    x = images(3, 32, 32, batch=1).double()
    fast = optimize_for_eval(G, x)
    assert not recwarn, "lowered, not given up"
    torch.testing.assert_close(translate(fast, x, "eval"), translate(G, x, "eval"), atol=1e-6, rtol=0)
