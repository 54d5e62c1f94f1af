"""The residual generators: structure and weights of the public code, sizes, upsampling, compute settings."""

import copy
import importlib
import re

import p2pzoo_resnet
import pytest
import torch
from p2pzoo_resnet.generators import ResidualBlock, ResNet6, ResNet9
from torch import nn

from p2pzoo.compute.activation_checkpointing import with_activation_checkpointing
from p2pzoo.compute.conv_as_gemm import convs_as_gemm
from p2pzoo.compute.norm_gradients import fix_instance_norms
from p2pzoo.models.test_modes import optimize_for_eval, translate


def images(channels, height, width, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, height, width, generator=generator) * 2 - 1


def randomise(module, seed=0):
    """Set weights so large that each layer changes the output, and running statistics other than the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data.add_(1)
            m.running_mean.normal_(0, 0.2, generator=generator)
            m.running_var.uniform_(0.5, 1.5, generator=generator)
    return module


class Block(nn.Module):
    """The block of junyanz/pytorch-CycleGAN-and-pix2pix `networks.py`, with reflection padding."""

    def __init__(self, channels, norm, bias, dropout):
        super().__init__()
        first = [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=bias), norm(channels), nn.ReLU(True)]
        second = [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=bias), norm(channels)]
        self.conv_block = nn.Sequential(*first, *([nn.Dropout(0.5)] if dropout else []), *second)

    def forward(self, x):
        return x + self.conv_block(x)


def public(norm, blocks, width, dropout=False, channels=(3, 3)):
    """`ResnetGenerator` of the same file."""
    bias = norm is nn.InstanceNorm2d
    layers = [nn.ReflectionPad2d(3), nn.Conv2d(channels[0], width, 7, bias=bias), norm(width), nn.ReLU(True)]
    for k in (width, 2 * width):
        layers += [nn.Conv2d(k, 2 * k, 3, stride=2, padding=1, bias=bias), norm(2 * k), nn.ReLU(True)]
    layers += [Block(4 * width, norm, bias, dropout) for _ in range(blocks)]
    for k in (4 * width, 2 * width):
        up = nn.ConvTranspose2d(k, k // 2, 3, stride=2, padding=1, output_padding=1, bias=bias)
        layers += [up, norm(k // 2), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, channels[1], 7), nn.Tanh())


def with_weights_of(reference, ours):
    """Copy weights by their order, as `p2pzoo import` does."""
    theirs = list(reference.state_dict().values())
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs, strict=True)))
    return ours


def test_every_registered_generator_can_be_imported():
    found = {}
    p2pzoo_resnet.register_generators(lambda name, factory, **about: found.update({name: (factory, about)}))
    assert set(found) == {"resnet6", "resnet9"}
    for factory, about in found.values():
        module, attribute = factory.split(":")
        assert issubclass(getattr(importlib.import_module(module), attribute), nn.Module)
        assert about["summary"]
        assert "arXiv:1603.08155" in about["paper"]


@pytest.mark.parametrize(("network", "blocks"), [(ResNet6, 6), (ResNet9, 9)])
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_it_equals_the_public_code_with_the_same_weights(network, blocks, norm, training):
    kind = {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d}[norm]
    reference = randomise(public(kind, blocks, width=2, dropout=True, channels=(3, 2))).double()
    ours = with_weights_of(reference, network(3, 2, (32, 32), width=2, norm=norm, dropout=True).double())
    assert sum(isinstance(m, ResidualBlock) for m in ours.modules()) == blocks
    answers = []
    for G in (reference.train(training), ours.train(training)):
        torch.manual_seed(3)  # dropout draws in the order of the layers
        y_hat = G(images(3, 32, 24).double())
        y_hat.square().mean().backward()
        answers.append((y_hat.detach(), [p.grad for p in G.parameters()]))
    torch.testing.assert_close(answers[1], answers[0], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("network", "blocks"), [(ResNet6, 6), (ResNet9, 9)])
def test_parameter_counts_match_the_public_code(network, blocks):
    """At width 64 each block has two 3×3 convolutions of 256 channels with biases; the other layers are the same."""
    with torch.device("meta"):
        count = sum(p.numel() for p in network(3, 3, (256, 256)).parameters())
    sides = 2 * (64 * 128 * 9 + 128 * 256 * 9) + 2 * 128 + 256 + 64
    ends = 2 * 3 * 64 * 49 + 64 + 3
    assert count == sides + ends + blocks * 2 * (256 * 256 * 9 + 256)
    assert round(count / 1e6, 3) == {6: 7.838, 9: 11.378}[blocks]  # what that code prints of resnet_9blocks


@pytest.mark.parametrize(("norm", "biases"), [("instance", 24), ("batch", 1), ("group", 1), ("none", 1)])
def test_biases_match_the_public_code(norm, biases):
    G = ResNet9(3, 3, (32, 32), width=1, norm=norm)
    convolutions = [m for m in G.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert sum(m.bias is not None for m in convolutions) == biases
    assert convolutions[-1].bias is not None


@pytest.mark.parametrize(
    "options", [{}, {"upsample": "resize-conv"}, {"padding": "zeros"}, {"norm": "none"}, {"norm": "group"}]
)
@pytest.mark.parametrize(("channels", "size"), [((1, 3), (8, 8)), ((4, 2), (12, 20))])
def test_output_has_the_size_of_the_input_and_values_within_minus_1_and_1(options, channels, size):
    G = randomise(ResNet6(*channels, size, width=2, **options))
    y_hat = G(images(channels[0], *size))
    assert y_hat.shape == (2, channels[1], *size)
    assert y_hat.abs().max() <= 1
    assert G.size_divisor == 4


@pytest.mark.parametrize(("size", "fitting"), [((30, 32), "32×32"), ((4, 9), "8×12"), ((33, 8), "36×8")])
def test_a_wrong_size_is_an_error_with_a_size_that_fits(size, fitting):
    with pytest.raises(ValueError, match=f"multiples of 4, at least 8, not {size[0]}×{size[1]}: {fitting} would fit$"):
        ResNet6(3, 3, size, width=1)
    G = ResNet6(3, 3, tuple(map(int, fitting.split("×"))), width=1)
    with pytest.raises(ValueError, match=f"{fitting} would fit$"):
        G(images(3, *size))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layer"}, "norm must be 'instance', 'batch', 'group' or 'none', not 'layer'"),
        ({"upsample": "bilinear"}, "upsample must be 'transpose' or 'resize-conv', not 'bilinear'"),
        ({"padding": "circular"}, "padding must be 'reflect' or 'zeros', not 'circular'"),
    ],
)
def test_invalid_parameters_are_errors(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ResNet6(3, 3, (32, 32), width=1, **options)


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_padding_determines_the_values_at_the_border(padding):
    """The output of a constant image is constant with reflection padding, but not with zeros."""
    torch.manual_seed(0)
    G = ResNet6(1, 1, (32, 32), width=2, norm="none", padding=padding)
    flat = G.enter(torch.ones(1, 1, 16, 16))
    varies = (flat.amax(dim=(2, 3)) - flat.amin(dim=(2, 3))).max()
    assert (varies < 1e-6) == (padding == "reflect")


def test_resize_conv_gives_no_checkerboard_pattern():
    def differences(upsample):
        torch.manual_seed(0)
        flat = ResNet6(1, 1, (32, 32), width=2, norm="none", upsample=upsample).up[0](torch.ones(1, 8, 8, 8))
        return (flat[..., 4:-4, 5:-4] - flat[..., 4:-4, 4:-5]).abs().max()

    assert differences("resize-conv") < 1e-6
    assert differences("transpose") > 1e-2


def test_resize_conv_has_as_many_parameters():
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in ResNet9(3, 3, (64, 64), upsample=up).parameters())
            for up in ("transpose", "resize-conv")
        ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("dropout", [True, False])
def test_dropout_acts_only_in_training_mode_and_if_enabled(dropout):
    G = randomise(ResNet6(3, 3, (16, 16), width=4, dropout=dropout))
    x = images(3, 16, 16)
    assert torch.allclose(G(x), G(x), atol=1e-3) != dropout
    assert torch.equal(G.eval()(x), G(x))


@pytest.mark.parametrize("options", [{}, {"norm": "batch"}, {"upsample": "resize-conv"}])
def test_a_prepared_network_gives_the_same_outputs_and_gradients(options):
    G = randomise(ResNet6(3, 3, (32, 32), width=8, **options)).double()
    x = images(3, 32, 32).double()
    plain = copy.deepcopy(G)
    rewritten = G.to(memory_format=torch.channels_last)
    fix_instance_norms(rewritten)
    answers = []
    for network, image in [
        (plain, x),
        (convs_as_gemm(with_activation_checkpointing(rewritten)), x.to(memory_format=torch.channels_last)),
    ]:
        y_hat = network(image)
        y_hat.square().mean().backward()
        answers.append((y_hat.detach(), [p.grad for p in network.parameters()]))
    torch.testing.assert_close(answers[1], answers[0], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_network_optimised_for_eval_gives_the_same_image(norm, recwarn):
    G = randomise(ResNet6(3, 3, (32, 32), width=4, norm=norm)).double()
    x = images(3, 32, 32, batch=1).double()
    fast = optimize_for_eval(G, x)
    assert not recwarn, "folded and lowered, not given up"
    torch.testing.assert_close(translate(fast, x, "eval"), translate(G, x, "eval"), atol=1e-6, rtol=0)
