"""restormer: the public code's outputs and weights, attention among channels, and what it refuses."""

import re

import pytest
import torch
from p2pzoo_export.weights import export_weights, import_weights
from p2pzoo_restoration.restormer import ChannelAttention, Restormer
from torch import nn
from torch.nn import functional as F

from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError

SMALL = {"width": 4, "blocks": (1, 2), "refinement_blocks": 1, "heads": (1, 2)}


class NormBody(nn.Module):
    def __init__(self, channels, with_bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if with_bias else None

    def forward(self, x):
        """x (B, pixels, C)."""
        deviation = (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        if self.bias is None:
            return x / deviation * self.weight
        return (x - x.mean(-1, keepdim=True)) / deviation * self.weight + self.bias


class Normalise(nn.Module):
    """`LayerNorm` of restormer_arch.py."""

    def __init__(self, channels, with_bias):
        super().__init__()
        self.body = NormBody(channels, with_bias)

    def forward(self, x):
        return self.body(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


class Attend(nn.Module):
    """`Attention`: one head after another here."""

    def __init__(self, c, heads, bias):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(c, 3 * c, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * c, 3 * c, 3, padding=1, groups=3 * c, bias=bias)
        self.project_out = nn.Conv2d(c, c, 1, bias=bias)

    def forward(self, x):
        q, k, v = (part.flatten(2).chunk(len(self.temperature), 1) for part in self.qkv_dwconv(self.qkv(x)).chunk(3, 1))
        heads = []
        for i, temperature in enumerate(self.temperature):
            unit_q, unit_k = (each / each.norm(dim=-1, keepdim=True).clamp(min=1e-12) for each in (q[i], k[i]))
            heads.append((unit_q @ unit_k.transpose(1, 2) * temperature).softmax(-1) @ v[i])
        return self.project_out(torch.cat(heads, 1).view_as(x))


class FeedForward(nn.Module):
    def __init__(self, c, factor, bias):
        super().__init__()
        hidden = int(c * factor)
        self.project_in = nn.Conv2d(c, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project_out = nn.Conv2d(hidden, c, 1, bias=bias)

    def forward(self, x):
        gate, value = self.dwconv(self.project_in(x)).chunk(2, 1)
        return self.project_out(F.gelu(gate) * value)


class PublicBlock(nn.Module):
    """`TransformerBlock`."""

    def __init__(self, c, heads, factor, bias, with_bias):
        super().__init__()
        self.norm1, self.attn = Normalise(c, with_bias), Attend(c, heads, bias)
        self.norm2, self.ffn = Normalise(c, with_bias), FeedForward(c, factor, bias)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Wrapped(nn.Module):
    """A layer under one more name: `body` in the resizing modules, `proj` in the first."""

    def __init__(self, name, layer):
        super().__init__()
        self.add_module(name, layer)
        self.name = name

    def forward(self, x):
        return getattr(self, self.name)(x)


class Public(nn.Module):
    """`Restormer` of swz30/Restormer, for images in [0, 1]."""

    def __init__(self, channels, dim, blocks, refinement, heads, factor=2.66, bias=False, with_bias=True):
        super().__init__()

        def stage(count, c, head_count):
            return nn.Sequential(*(PublicBlock(c, head_count, factor, bias, with_bias) for _ in range(count)))

        def resize(c, to, shuffle):
            return Wrapped("body", nn.Sequential(nn.Conv2d(c, to, 3, padding=1, bias=False), shuffle))

        self.patch_embed = Wrapped("proj", nn.Conv2d(channels, dim, 3, padding=1, bias=False))
        for i, name in enumerate(("encoder_level1", "encoder_level2", "encoder_level3", "latent")):
            self.add_module(name, stage(blocks[i], dim * 2**i, heads[i]))
        for i in (1, 2, 3):
            c = dim * 2 ** (i - 1)
            self.add_module(f"down{i}_{i + 1}", resize(c, c // 2, nn.PixelUnshuffle(2)))
            self.add_module(f"up{i + 1}_{i}", resize(2 * c, 4 * c, nn.PixelShuffle(2)))
            if i > 1:
                self.add_module(f"reduce_chan_level{i}", nn.Conv2d(2 * c, c, 1, bias=bias))
            self.add_module(f"decoder_level{i}", stage(blocks[i - 1], max(c, 2 * dim), heads[i - 1]))
        self.refinement = stage(refinement, 2 * dim, heads[0])
        self.output = nn.Conv2d(2 * dim, channels, 3, padding=1, bias=bias)

    def forward(self, image):
        first = self.encoder_level1(self.patch_embed(image))
        second = self.encoder_level2(self.down1_2(first))
        third = self.encoder_level3(self.down2_3(second))
        h = self.latent(self.down3_4(third))
        h = self.decoder_level3(self.reduce_chan_level3(torch.cat([self.up4_3(h), third], 1)))
        h = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(h), second], 1)))
        h = self.decoder_level1(torch.cat([self.up2_1(h), first], 1))
        return self.output(self.refinement(h)) + image


def randomise(network, seed=0):
    """Set weights so large that each layer changes the image."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        random = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(random / parameter[0].numel() ** 0.5 if parameter.ndim == 4 else 0.5 + 0.3 * random)
    return network


def images(channels=3, height=16, width=24, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def build(channels=(3, 3), size=(16, 16), **options):
    return Restormer(*channels, size, **{**SMALL, **options})


def public(**options):
    """With most of its image within the limits."""
    network = randomise(Public(3, 8, (1, 2, 1, 2), 2, (1, 2, 2, 4), **options))
    for parameter in network.output.parameters():
        parameter.data.mul_(0.05)
    return network


VARIANTS = {  # name: (options of the public code, inferred parameters)
    "default": ({}, {"norm": "with-bias", "bias": False, "expansion": 2.66}),
    "denoising": ({"with_bias": False}, {"norm": "bias-free"}),
    "bias": ({"bias": True}, {"bias": True}),
    "another expansion": ({"factor": 2.3}, {}),
}


@pytest.fixture
def imported(tmp_path):
    """imported(network): the generator that `p2pzoo import` makes of its file, and the file's path."""

    def imported(network):
        torch.save({"params": network.state_dict()}, tmp_path / "their.pth")
        result = import_weights(tmp_path / "their.pth", registry(), {})
        result.save(tmp_path / "model.safetensors")
        return result, tmp_path / "model.safetensors"

    return imported


class TestPublicCode:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_imported_weights_give_the_same_images(self, variant, imported):
        options, expected_parameters = VARIANTS[variant]
        theirs = public(**options)
        result, _ = imported(theirs)
        assert result.use == "restoration:restormer"
        params = result.header["generator"]["params"]
        assert (params["blocks"], params["heads"], params["refinement_blocks"]) == ([1, 2, 1, 2], [1, 2, 2, 4], 2)
        assert params.items() >= {"width": 8, "residual": True, **expected_parameters}.items()
        x = images()
        with torch.no_grad():
            expected = 2 * theirs.double()((x.double() + 1) / 2).clamp(0, 1) - 1
            assert (expected.abs() < 1).float().mean() > 0.3
            y_hat = result.network.eval().double()(x.double())
        torch.testing.assert_close(y_hat, expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("variant", ["default", "denoising"])
    def test_export_gives_the_imported_weights_back(self, variant, imported, tmp_path):
        theirs = public(**VARIANTS[variant][0])
        _, file = imported(theirs)
        export_weights(file, "restormer", tmp_path / "back.pth", registry())
        back = torch.load(tmp_path / "back.pth", weights_only=True)
        assert back.keys() == theirs.state_dict().keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())

    def test_weights_for_dual_pixels_are_refused_by_the_name_of_their_layer(self, tmp_path):
        tensors = public().state_dict() | {"skip_conv.weight": torch.zeros(16, 8, 1, 1)}
        torch.save(tensors, tmp_path / "their.pth")
        with pytest.raises(UserError) as raised:
            import_weights(tmp_path / "their.pth", registry(), {})
        assert "'skip_conv.weight' has no counterpart" in str(raised.value)

    def test_parameters_of_the_default_are_the_papers(self):
        with torch.device("meta"):
            counts = [sum(p.numel() for p in G.parameters()) for G in (Restormer(3, 3, (128, 128)),
                      Public(3, 48, (4, 6, 6, 8), 4, (1, 2, 4, 8)))]  # fmt: skip
        assert counts[0] == counts[1] == 26_126_644
        assert f"{counts[0]:,}" in Restormer.__doc__


def test_attention_is_among_channels_and_sees_all_pixels():
    attention = randomise(ChannelAttention(4, 2, bias=False))
    h = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    attention(h)[0, :, 0, 0].sum().backward()
    assert h.grad[0, :, 5, 5].any()


def test_with_residual_x_is_added_and_other_channels_are_an_error():
    G = build(residual=True)
    nn.init.zeros_(G.leave.weight)
    assert torch.equal(G(images()), images())
    with pytest.raises(ValueError, match="residual = true adds x to ŷ, but G sees 1 channel and ŷ has 3"):
        build(channels=(1, 3), residual=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": (1,), "heads": (1, 2)}, "blocks has 1 level and heads 2: give one number for each level in both"),
        ({"heads": (1, 2, 4)}, "blocks has 2 levels and heads 3: give one number for each level in both"),
        ({"heads": (1, 3)}, "heads: 3 do not divide the 8 channels of level 2"),
        ({"width": 5}, "width must be even, not 5"),
        ({"norm": "batch"}, "norm must be 'with-bias' or 'bias-free', not 'batch'"),
    ],
)
def test_invalid_parameters_are_errors(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(**options)


@pytest.mark.parametrize(("size", "nearest"), [((17, 40), "16×40 or 18×40"), ((1, 9), "2×8 or 2×10")])
def test_a_wrong_size_is_an_error_with_the_nearest_sizes(size, nearest):
    message = f"restormer needs sides that are multiples of 2, not {size[0]}×{size[1]}; the nearest that fit: {nearest}"
    with pytest.raises(ValueError, match=re.escape(message)):
        build(size=size)
    with pytest.raises(ValueError, match=re.escape(message)):
        build()(images(3, *size))
