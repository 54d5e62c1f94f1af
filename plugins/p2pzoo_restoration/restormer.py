"""Restormer: Zamir et al. 2022, "Restormer: Efficient Transformer for High-Resolution Image Restoration"
(arXiv:2111.09881), §3. The public code is swz30/Restormer.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo.utils.plurals import format_count
from p2pzoo_restoration import state_dict_formats as formats
from p2pzoo_restoration.common import (
    LayerNorm2d,
    add_input,
    check_residual,
    check_size,
    in_float32,
    to_unit_range,
)

Positive = Annotated[int, Field(ge=1)]
Levels = Annotated[tuple[Positive, ...], Field(min_length=2, max_length=8)]
LayerNormKind = Literal["with-bias", "bias-free"]

EPS = 1e-5  # of layer norms in the public code


class Restormer(nn.Module):
    """A U-Net of transformer blocks. Attention is among channels, so that its time grows linearly with the pixels.

        enter   3×3 convolution to `width` channels
        down    for each level its blocks. Between two levels a 3×3 convolution to half the channels and a pixel
                unshuffle: twice the channels, half the sides
        up      a 3×3 convolution to twice the channels and a pixel shuffle, the concatenation with the features of the
                way down, a 1×1 convolution to the level's channels, its blocks. The first level has no 1×1 convolution,
                and so 2 · width channels
        refine  blocks of the first level
        leave   3×3 convolution

    The network sees images in [0, 1], as in the public code.

    x  (B, in_channels, H, W) in [-1, 1]; H and W are multiples of `size_divisor` = 2 ** (number of levels - 1)
    ŷ  (B, out_channels, H, W) in [-1, 1]: the tanh of the last layer; with `residual`, x plus the last layer, limited
       to [-1, 1]

    By default there are 26,126,644 parameters for RGB images.

    in_channels, out_channels, size  channels of x, channels of y, and (H, W) of both
    width              channels of the first level; each further level has twice as many
    blocks             transformer blocks of each level, down and up; the last number is that of the smallest size
    refinement_blocks  blocks at the end, at the full size
    heads              attention heads of each level; they divide its channels
    expansion          hidden channels of a feed-forward network, in units of its channels
    bias               a bias in the convolutions of blocks, in the 1×1 convolutions and in the last one
    norm               layer norm: "with-bias", or "bias-free", without means and biases, as the paper has it for
                       denoising
    residual           add x to ŷ, as in the paper: for restoration, where y is nearly x, with the same channels

    Raises ValueError for other numbers of `heads` than of `blocks`, for heads that do not divide the channels, for an
    odd width, for `residual` with other channels in x than in y, and for a size that does not fit, here or in
    `forward`.

    >>> G = Restormer(3, 1, (16, 8), width=4, blocks=(1, 1), heads=(1, 2), refinement_blocks=1)
    >>> G(torch.zeros(2, 3, 16, 8)).shape
    torch.Size([2, 1, 16, 8])
    """

    state_dict_formats = (formats.RESTORMER,)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        width: Positive = 48,
        blocks: Levels = (4, 6, 6, 8),
        refinement_blocks: Positive = 4,
        heads: Levels = (1, 2, 4, 8),
        expansion: Annotated[float, Field(ge=1)] = 2.66,
        bias: bool = False,
        norm: LayerNormKind = "with-bias",
        residual: bool = False,
    ) -> None:
        super().__init__()
        check_residual(residual, in_channels, out_channels)
        widths = [width * 2**level for level in range(len(blocks))]
        _check_heads(widths, heads)
        self.size_divisor = 2 ** (len(blocks) - 1)
        self.check(size)
        self.residual = residual

        def level(count: int, channels: int, head_count: int) -> nn.Sequential:
            block = (TransformerBlock(channels, head_count, expansion, bias, norm) for _ in range(count))
            return nn.Sequential(*block)

        self.enter = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.encoder = nn.ModuleList(map(level, blocks, widths, heads))
        self.down = nn.ModuleList(_resize(channels, channels // 2, nn.PixelUnshuffle(2)) for channels in widths[:-1])

        self.up, self.reduce, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(len(blocks) - 1)):
            self.up.append(_resize(widths[i + 1], 2 * widths[i + 1], nn.PixelShuffle(2)))
            if i:
                self.reduce.append(nn.Conv2d(2 * widths[i], widths[i], 1, bias=bias))
            self.decoder.append(level(blocks[i], widths[i] if i else 2 * width, heads[i]))
        self.refine = level(refinement_blocks, 2 * width, heads[0])
        self.leave = nn.Conv2d(2 * width, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x.shape[2:])
        h = self.encoder[0](self.enter(to_unit_range(x)))
        skipped = []
        for down, encode in zip(self.down, self.encoder[1:], strict=True):
            skipped.append(h)
            h = encode(down(h))
        for i, (up, decode) in enumerate(zip(self.up, self.decoder, strict=True)):
            h = torch.cat([up(h), skipped.pop()], dim=1)
            h = decode(self.reduce[i](h) if skipped else h)
        image = self.leave(self.refine(h))
        return add_input(x, image) if self.residual else image.tanh()

    def check(self, size: Sequence[int]) -> None:
        """Raises ValueError for an (H, W) that the network does not take."""
        check_size("restormer", size, self.size_divisor, self.size_divisor)


class TransformerBlock(nn.Module):
    """h + attention of its norm, then h + feed-forward network of its norm (Figure 2). (B, channels, H, W)."""

    def __init__(self, channels: int, heads: int, expansion: float, bias: bool, norm: LayerNormKind) -> None:
        super().__init__()
        self.norm1 = _layer_norm(norm, channels)
        self.attention = ChannelAttention(channels, heads, bias)
        self.norm2 = _layer_norm(norm, channels)
        self.feed_forward = GatedFeedForward(channels, expansion, bias)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attention(self.norm1(h))
        added: Tensor = h + self.feed_forward(self.norm2(h))
        return added


class ChannelAttention(nn.Module):
    """Multi-Dconv head transposed attention (MDTA, §3.1): softmax(temperature · Q Kᵀ) V, of channels × pixels.

    Q, K and V are 1×1 and depthwise 3×3 convolutions; each row of Q and K has the norm 1. The temperature is learned,
    for each head.

    h  (B, channels, H, W) -> the same shape
    """

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.depthwise = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=bias)
        self.project = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, h: Tensor) -> Tensor:
        qkv = self.depthwise(self.to_qkv(h)).flatten(2).unflatten(1, (3, self.heads, -1))
        q, k, v = qkv.unbind(1)  # (B, heads, channels / heads, pixels)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        weights = (q @ k.mT * self.temperature).softmax(-1)
        attended: Tensor = self.project((weights @ v).reshape(h.shape))
        return attended


class GatedFeedForward(nn.Module):
    """Gated-Dconv feed-forward network (GDFN, §3.2): project(GELU(a) · b), with a, b = depthwise(expand(h)).

    h  (B, channels, H, W) -> the same shape
    """

    def __init__(self, channels: int, expansion: float, bias: bool) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.expand = nn.Conv2d(channels, 2 * hidden, 1, bias=bias)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, h: Tensor) -> Tensor:
        a, b = self.depthwise(self.expand(h)).chunk(2, dim=1)
        projected: Tensor = self.project(F.gelu(a) * b)
        return projected


class BiasFreeLayerNorm(nn.Module):
    """h divided by the standard deviation of its channels, at each pixel; the mean stays.

    >>> BiasFreeLayerNorm(2)(torch.tensor([1.0, 3.0])[None, :, None, None]).flatten().round().tolist()
    [1.0, 3.0]
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, h: Tensor) -> Tensor:
        variance = in_float32(h).var(1, keepdim=True, unbiased=False)
        return h * (variance + EPS).rsqrt().to(h.dtype) * self.weight[:, None, None]


def _layer_norm(norm: LayerNormKind, channels: int) -> nn.Module:
    match norm:
        case "with-bias":
            return LayerNorm2d(channels, eps=EPS)
        case "bias-free":
            return BiasFreeLayerNorm(channels)
    raise ValueError(f"norm must be 'with-bias' or 'bias-free', not {norm!r}")


def _resize(channels: int, leaving: int, shuffle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, leaving, 3, padding=1, bias=False), shuffle)


def _check_heads(widths: Sequence[int], heads: Sequence[int]) -> None:
    if len(heads) != len(widths):
        raise ValueError(
            f"blocks has {format_count(len(widths), 'level')} and heads {len(heads)}: give one number for each level "
            "in both"
        )
    if widths[0] % 2:
        raise ValueError(f"width must be even, not {widths[0]}: half of its channels are unshuffled")
    for level, (channels, count) in enumerate(zip(widths, heads, strict=True)):
        if channels % count:
            raise ValueError(f"heads: {count} do not divide the {channels} channels of level {level + 1}")
