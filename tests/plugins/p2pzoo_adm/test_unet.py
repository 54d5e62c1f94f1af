"""adm-unet: its size, its start, how it sees the time, and what it refuses."""

import re

import pytest
import torch
from p2pzoo_adm.blocks import SelfAttention, TimedResidual, TimeEmbedding
from p2pzoo_adm.unet import AttentionUNet
from torch import nn

from p2pzoo import config
from p2pzoo.models.initialization import make_generator
from p2pzoo.models.process_faults import change_weights
from p2pzoo.models.test_modes import optimize_for_eval
from p2pzoo.utils.errors import UserError

SMALL = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "head_channels": 4}
TIMES = torch.tensor([0.1, 0.9])


def build(channels=(3, 3), size=(16, 16), **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AttentionUNet(*channels, size, **{**SMALL, **options})


def trained(**options):
    """A network whose weights have moved away from 0."""
    G = build(**options)
    change_weights(G, 0.1)
    return G


def images(channels=3, height=16, width=16, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_default_has_about_ten_million_parameters():
    with torch.device("meta"):
        G = AttentionUNet(3, 3, (256, 256))
    count = sum(p.numel() for p in G.parameters())
    assert count == 9_710_499
    assert f"{count:,}" in AttentionUNet.__doc__


@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
@pytest.mark.parametrize("options", [{}, {"attention": ()}, {"blocks": 2, "multipliers": (1, 2, 3)}, {"width": 1}])
def test_the_translation_has_the_size_of_x_and_the_range_of_images(options, size):
    G = trained(channels=(5, 2), size=size, **options)
    y_hat = G(images(5, *size), TIMES)
    assert y_hat.shape == (2, 2, *size)
    assert y_hat.abs().max() <= 1


class TestTime:
    def test_without_it_the_network_is_at_the_end(self):
        G = trained()
        assert torch.equal(G(images()), G(images(), torch.ones(2)))

    def test_each_image_has_its_own(self):
        G, x = trained().eval(), images()
        both = G(x, TIMES)
        alone = torch.cat([G(x[i : i + 1], TIMES[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(both, alone, atol=1e-5, rtol=0)
        assert (both - G(x, TIMES.flip(0))).abs().max() > 0.01

    def test_neighbouring_times_differ_in_bfloat16_too(self):
        """bfloat16 has 128 numbers between 0.5 and 1; a sampler of 1000 steps has more times."""
        embed = TimeEmbedding(8).bfloat16()
        first, second = embed(torch.tensor([0.9990, 0.9985]))
        assert not torch.equal(first, second)

    def test_it_scales_and_shifts_the_second_norm(self):
        block = TimedResidual(8, 8, of_time=4)
        nn.init.normal_(block.second[-1].weight)
        linear = block.scale_and_shift[-1]
        with torch.no_grad():
            linear.weight.zero_()
            linear.bias.copy_(torch.cat([torch.full((8,), -1.0), torch.zeros(8)]))  # 1 + scale = 0 removes everything
        h = torch.randn(1, 8, 4, 4)
        torch.testing.assert_close(block(h, torch.randn(1, 4)), h + block.second[-1].bias[:, None, None])


class TestStart:
    def test_blocks_begin_as_their_skips(self):
        h, e = torch.randn(2, 8, 6, 6), torch.randn(2, 4)
        assert torch.equal(TimedResidual(8, 8, of_time=4)(h, e), h)
        assert torch.equal(SelfAttention(8, 4)(h), h)
        halved = TimedResidual(8, 8, of_time=4, resize="down")(h, e)
        assert torch.equal(halved, torch.nn.functional.avg_pool2d(h, 2))
        doubled = TimedResidual(8, 8, of_time=4, resize="up")(h, e)
        assert torch.equal(doubled[..., ::2, ::2], h)

    @pytest.mark.parametrize("weights", ["normal", "orthogonal", "own"])
    def test_init_keeps_the_zeros_and_the_layers_of_the_time(self, weights):
        options = [f"init.weights={weights}", "generator.attention=[8]", "generator.multipliers=[1, 1, 1, 1]"]
        G = make_generator(config.load("zoo:modern/flow_adm.toml", "smoke", options), (3, 3), (64, 64))
        lasts = [m.second[-1] for m in G.modules() if isinstance(m, TimedResidual)]
        lasts += [m.leave for m in G.modules() if isinstance(m, SelfAttention)]
        assert len(lasts) == 28 + 6
        assert not any(parameter.any() for layer in lasts for parameter in layer.parameters())
        first = G.time.layers[0].weight
        assert first.abs().max() <= 1 / 8  # torch's: uniform within 1 / √64
        assert first.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.05)

    def test_spectral_norm_is_refused_in_one_line(self):
        experiment = config.load("zoo:modern/flow_adm.toml", "smoke", ["train.spectral_norm=generator"])
        with pytest.raises(UserError, match=r"flow_adm.toml:\d+  spectral_norm: .*'adm-unet'.* are all 0") as raised:
            make_generator(experiment, (3, 3), (64, 64))
        assert len(raised.value.faults) == 1


class TestAttention:
    def test_a_pixel_depends_on_all_others(self):
        attention = SelfAttention(8, 4)
        nn.init.normal_(attention.leave.weight)
        h = torch.randn(1, 8, 6, 6, requires_grad=True)
        (attention(h) - h)[0, :, 0, 0].sum().backward()
        assert h.grad[0, :, 5, 5].any()

    def test_it_is_softmax_attention(self):
        attention = SelfAttention(8, 4)
        nn.init.normal_(attention.leave.weight)
        h = torch.randn(2, 8, 3, 5)
        q, k, v = attention.to_qkv(attention.norm(h)).flatten(2).unflatten(1, (3, 2, 4)).unbind(1)
        weights = (q.mT @ k / 2).softmax(-1)  # √4
        expected = h + attention.leave((v @ weights.mT).flatten(1, 2).unflatten(2, (3, 5)))
        torch.testing.assert_close(attention(h), expected)

    @pytest.mark.parametrize(("channels", "heads"), [(8, 1), (32, 1), (64, 2), (160, 5), (48, 1)])
    def test_heads_have_at_least_so_many_channels(self, channels, heads):
        assert SelfAttention(channels, 32).heads == heads

    def test_only_the_chosen_levels_and_the_middle_have_it(self):
        G = build(multipliers=(1, 1, 2), attention=(4,))
        assert [step.attention is not None for step in G.down] == [False, False, False, False, True]
        assert [step.attention is not None for step in G.middle] == [True, False]
        assert [step.attention is not None for step in G.up] == [True, True, *[False] * 6]
        assert not any(isinstance(m, SelfAttention) for m in build(attention=()).modules())


def test_dropout_is_the_noise_of_a_plain_generator():
    G = trained(dropout=0.5)
    assert not torch.equal(G(images()), G(images()))
    G.eval()
    assert torch.equal(G(images()), G(images()))
    assert not any(isinstance(m, nn.Dropout) for m in build().modules())


def test_the_copy_for_eval_mode_is_the_same_network():
    G = trained().eval()
    x = images(batch=1)
    fast = optimize_for_eval(G, x)
    assert fast is not G
    torch.testing.assert_close(fast(x, TIMES[:1]), G(x, TIMES[:1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("size", "fitting"), [((17, 16), "18×16"), ((0, 1), "2×2")])
def test_a_wrong_size_is_an_error_with_a_size_that_fits(size, fitting):
    message = re.escape(f"multiples of 2, not {size[0]}×{size[1]}: {fitting} would fit")
    with pytest.raises(ValueError, match=message):
        build(size=size)
    with pytest.raises(ValueError, match=message):
        build()(torch.zeros(1, 3, *size))


def test_a_factor_without_a_level_is_an_error():
    with pytest.raises(ValueError, match=re.escape("no level is smaller by 3; the factors of the levels are 1, 2")):
        build(attention=(2, 3))
