"""SPADE: widths, resizing of x, modulation, spectral norm, and compute settings."""

import copy
import importlib
import re

import p2pzoo_spade
import pytest
import torch
from p2pzoo_spade.generators import Modulation, Spade, SpadeResBlock, _conv
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from p2pzoo.compute.activation_checkpointing import with_activation_checkpointing
from p2pzoo.compute.conv_as_gemm import convs_as_gemm
from p2pzoo.compute.norm_gradients import fix_instance_norms
from p2pzoo.config.settings import Init
from p2pzoo.models.build import on_meta
from p2pzoo.models.initialization import initialize_weights
from p2pzoo.models.test_modes import optimize_for_eval, translate


def labels(height, width, batch=2, classes=4, seed=0):
    """One-hot label maps in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(classes, (batch, height, width), generator=generator)
    return F.one_hot(maps, classes).permute(0, 3, 1, 2).float() * 2 - 1


@pytest.fixture
def G():
    torch.manual_seed(0)
    return Spade(4, 3, (32, 32), width=4)


def test_the_registered_generator_can_be_imported():
    found = {}
    p2pzoo_spade.register_generators(lambda name, factory, **about: found.update({name: (factory, about)}))
    [(name, (factory, about))] = found.items()
    module, attribute = factory.split(":")
    assert issubclass(getattr(importlib.import_module(module), attribute), nn.Module)
    assert (name, about["paper"]) == ("spade", "arXiv:1903.07291")
    assert about["summary"]


@pytest.mark.parametrize(
    ("size", "upsamplings", "start", "widths"),
    [
        ((256, 256), None, (4, 4), [1024, 1024, 1024, 512, 256, 128, 64]),  # the paper's
        ((256, 512), None, (4, 8), [1024, 1024, 1024, 512, 256, 128, 64]),
        ((512, 512), None, (8, 8), [1024, 1024, 1024, 512, 256, 128, 64]),
        ((128, 128), None, (4, 4), [1024, 1024, 512, 256, 128, 64]),
        ((24, 40), None, (6, 10), [256, 128, 64]),
        ((128, 128), 2, (32, 32), [256, 128, 64]),
    ],
)
def test_each_block_doubles_the_size_and_halves_the_width(size, upsamplings, start, widths):
    seen = []
    with on_meta(), torch.no_grad():
        G = Spade(3, 3, size, upsamplings=upsamplings)
        for block in G.blocks:
            block.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[1:])))
        assert G(torch.empty(2, 3, *size)).shape == (2, 3, *size)
    assert seen == [(width, start[0] * 2**i, start[1] * 2**i) for i, width in enumerate(widths)]
    assert G.size_divisor == size[0] // start[0]


def test_parameter_count_is_that_of_modulations_with_128_channels():
    def conv(entering, leaving, taps=9):
        return entering * leaving * taps + leaving

    def modulation(channels):
        return conv(3, 128) + 2 * conv(128, channels)

    def block(entering, leaving):
        straight = modulation(entering) + conv(entering, leaving) + modulation(leaving) + conv(leaving, leaving)
        return straight + (entering != leaving) * (modulation(entering) + conv(entering, leaving, taps=1))

    with on_meta():
        count = sum(p.numel() for p in Spade(3, 3, (256, 256)).parameters())
    halving = sum(block(2 * width, width) for width in (512, 256, 128, 64))
    assert count == conv(3, 1024) + 3 * block(1024, 1024) + halving + conv(64, 3)


@pytest.mark.parametrize(("size", "upsamplings"), [((30, 33), None), ((64, 64), 6), ((48, 32), 5), ((2, 2), None)])
def test_a_wrong_size_is_an_error_with_a_size_that_fits(size, upsamplings):
    with pytest.raises(ValueError, match=r"needs sides that are multiples of \d+, at least \d+") as refusal:
        Spade(3, 3, size, width=1, upsamplings=upsamplings)
    fitting = tuple(map(int, re.search(r"(\d+)×(\d+) would fit$", str(refusal.value)).groups()))
    G = Spade(3, 3, fitting, width=1, upsamplings=upsamplings)
    assert G(torch.zeros(1, 3, *fitting)).shape == (1, 3, *fitting)


def test_a_network_accepts_any_multiple_of_its_divisor(G):
    assert G.eval()(labels(16, 40)).shape == (2, 3, 16, 40)
    with pytest.raises(ValueError, match=r"multiples of 8, at least 16, not 20×16: 24×16 would fit$"):
        G(labels(20, 16))


def test_an_unknown_norm_is_an_error():
    with pytest.raises(ValueError, match="norm must be 'batch', 'instance' or 'group', not 'layer'"):
        Spade(3, 3, (32, 32), width=1, norm="layer")


@pytest.mark.parametrize(("norm", "over"), [("batch", (0, 2, 3)), ("instance", (2, 3))])
def test_a_modulation_is_equation_1(norm, over):
    torch.manual_seed(0)
    m = Modulation(5, 4, 6, norm).double()
    h, x = torch.randn(2, 5, 8, 8).double(), labels(8, 8).double()
    for part in (m.read, m.gamma, m.beta):
        part.eval()  # their spectral norms move no further; the norm sees these images
    out = m(h, x)

    def conv(layer, image):
        return F.conv2d(image, layer.weight, layer.bias, padding=1)

    read = conv(m.read[0], x).relu()
    mean, variance = h.mean(over, keepdim=True), h.var(over, keepdim=True, unbiased=False)
    expected = (1 + conv(m.gamma, read)) * (h - mean) / (variance + 1e-5).sqrt() + conv(m.beta, read)
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=0)


def test_a_block_with_unchanged_channels_adds_its_input():
    block = SpadeResBlock(4, 4, 3, 2, "batch")
    assert block.skip_convolution is None
    added = []
    block.convolutions[-1].register_forward_hook(lambda module, args, output: added.append(output))
    h = torch.randn(2, 4, 8, 8)
    out = block(h, labels(8, 8, classes=3))
    assert torch.equal(out, h + added[0])
    assert added[0].abs().mean() > 1e-3


def test_a_constant_label_map_changes_the_output(G):
    """§3.1: instance norm gives the same output for all constant maps; modulation does not."""
    G = Spade(4, 3, (32, 32), width=4, norm="instance").eval()
    first, second = labels(1, 1, batch=1, seed=0), labels(1, 1, batch=1, seed=1)
    assert not torch.equal(first, second)
    y_hats = [G(x.expand(1, 4, 32, 32)) for x in (first, second)]
    assert (y_hats[0] - y_hats[1]).abs().mean() > 1e-3


def test_resizing_x_gives_no_new_values():
    G = Spade(1, 1, (32, 32), width=2)
    seen = []
    for modulation in (m for m in G.modules() if isinstance(m, Modulation)):
        modulation.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    G(torch.linspace(-1, 1, 5)[torch.randint(5, (1, 1, 32, 32))])
    assert {x.shape[-1] for x in seen} == {4, 8, 16, 32}
    assert len(torch.cat([x.flatten() for x in seen]).unique()) == 5


def test_every_convolution_is_divided_by_its_spectral_norm(G):
    for _ in range(30):
        G(labels(32, 32))
    convolutions = [m for m in G.eval().modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) > 20
    for conv in convolutions:
        norm = torch.linalg.matrix_norm(conv.weight.flatten(1), ord=2)
        assert norm.item() == pytest.approx(1, abs=0.05)


def test_spectral_norm_converges_to_that_of_torch():
    torch.manual_seed(0)
    ours, theirs = _conv(3, 8), spectral_norm(nn.Conv2d(3, 8, 3, padding=1))
    ours.weight = theirs.parametrizations.weight.original.detach().clone()
    with torch.no_grad():
        for _ in range(100):
            _ = ours.weight, theirs.weight
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours.weight, theirs.weight)
    gradients = []
    for conv in (ours, theirs):
        conv.weight.square().mul(torch.arange(conv.weight.numel()).view_as(conv.weight)).sum().backward()
        gradients.append(conv.parametrizations.weight.original.grad)
    torch.testing.assert_close(*gradients, atol=1e-2, rtol=1e-3)


def test_autocast_does_not_change_the_precision_of_the_norm():
    """σ in bf16 is off by 0.3%: each convolution would have another scale in training than in fp32."""
    torch.manual_seed(0)
    layer = _conv(64, 64)
    alone = copy.deepcopy(layer)
    for _ in range(3):
        expected = alone.weight
        with torch.autocast("cpu", torch.bfloat16):
            weight = layer.weight
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=0)


def test_spectral_norm_iterates_once_per_training_pass_and_never_in_eval_mode(G):
    def vectors():
        return [buffer.clone() for name, buffer in G.named_buffers() if name.endswith(".u")]

    before = vectors()
    G.eval()(labels(32, 32))
    assert all(map(torch.equal, before, vectors()))
    first = G.enter.train().parametrizations.weight
    matrix, u = first.original.flatten(1), first[0].u.clone()
    moved = F.normalize(matrix @ F.normalize(matrix.t() @ u, dim=0), dim=0)
    G.enter(labels(4, 4))
    torch.testing.assert_close(first[0].u, moved)


def test_every_parameter_gets_a_finite_gradient(G):
    G(labels(32, 32)).square().mean().backward()
    for name, parameter in G.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if "weight" in name:
            assert parameter.grad.abs().sum() > 0, name


def test_two_forward_passes_before_the_backward_passes(G):
    first = G(labels(32, 32))
    G(labels(32, 32, seed=1))
    first.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in G.parameters())


def test_init_initialises_the_unnormalised_weights(G):
    initialize_weights(G, Init(weights="normal", gain=0.5), seed=0)
    originals = [p for name, p in G.named_parameters() if name.endswith("weight.original")]
    assert torch.cat([p.detach().flatten() for p in originals]).std().item() == pytest.approx(0.5, rel=0.02)
    assert not any(p.any() for name, p in G.named_parameters() if name.endswith("bias"))


def test_a_translation_does_not_depend_on_earlier_ones(G):
    x, other = labels(32, 32, batch=1), labels(32, 32, batch=1, seed=1)
    y_hat = translate(G, x, "paper")
    translate(G, other, "paper")
    assert torch.equal(translate(G, x, "paper"), y_hat)


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_a_prepared_network_gives_the_same_outputs_gradients_and_buffers(norm):
    torch.manual_seed(0)
    G = Spade(4, 3, (32, 32), width=4, norm=norm).double()
    x = labels(32, 32).double()
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
        parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
        answers.append((y_hat.detach(), {name: p.grad for name, p in parameters.items()}, buffers))
    torch.testing.assert_close(answers[1], answers[0], atol=1e-9, rtol=1e-9)


def test_a_network_optimised_for_eval_gives_the_same_image(G, recwarn):
    for seed in range(3):
        G(labels(32, 32, seed=seed))
    G, x = G.double(), labels(32, 32, batch=1).double()
    fast = optimize_for_eval(G, x)
    assert not recwarn, "lowered, not given up"
    torch.testing.assert_close(translate(fast, x, "eval"), translate(G, x, "eval"), atol=1e-6, rtol=0)
