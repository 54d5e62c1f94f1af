"""The generators of pix2pix: the U-Net, and the encoder-decoder that is left when its skips are severed.

arXiv:1611.07004 v3, §6.1.1, in the order of operations of phillipi/pix2pix `models.lua`: the activation stands
before each convolution, so a skip carries what the convolution (and norm) made, not yet activated.
Imports torch, pydantic's Field, the contracts, and this plugin's layers.
"""

from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from p2pzoo.plugin import AddedLater
from p2pzoo_pix2pix import layouts
from p2pzoo_pix2pix.layers import Bias, Norm, has_bias, make_bottleneck_norm, make_norm

Noise = Literal["dropout", "gaussian", "none"]
DropoutPlaces = Literal["paper", "pytorch"]
Upsample = Literal["transpose", "resize-conv"]

SMALLEST_SIDE = 32
SHALLOWEST = 2
DEEPEST_BY_DEFAULT = 8  # 256 px -> 1 px
DROPOUT = 0.5


class EncoderDecoder(nn.Module):
    """`depth` convolutions halve the image, `depth` transposed ones double it again; all 4×4, stride 2.

    At depth 8, with Ck a convolution to k channels and CDk one with dropout:

        encoder  C64-C128-C256-C512-C512-C512-C512-C512       LeakyReLU(0.2) before each but the first
        decoder  CD512-CD512-CD512-C512-C256-C128-C64-Cout    ReLU before each, Tanh at the end

    with a norm after every layer except the first, the last and (unless `bottleneck_norm`) the innermost.

    x  (B, in_channels, H, W) in [-1, 1]; H and W any multiples of `size_divisor` = 2**depth
    ŷ  (B, out_channels, H, W) in [-1, 1]

    Args:
        in_channels, out_channels: of x and y.
        size: (H, W) of the training images, each from 32 up and a multiple of 2**depth (of 4 at least).
        width: channels k of the first layer; layer i has min(2**i, 8) · width.
        depth: layers on each side. None: as often as 2 divides both sides, at most 8.
        norm: after the convolutions; instance norm has no affine parameters.
        bottleneck_norm: the paper's own runs had a norm on the innermost layer too, which at batch 1 and 1×1
            replaces it by a constant (§6.3); the released codes dropped it. See layers.py.
        bias: "pytorch": no convolution has a bias but the last (under instance norm all have one, as in that
            code); "lua": all have one.
        noise: the z of G(x, z). "dropout": the paper's choice. "gaussian": one map of N(0, 1) joins x as a
            channel, drawn from torch's default generator in training mode and zero in eval mode; the paper
            found that G learns to ignore it (§3.2). "none": G is deterministic.
        dropout: where dropout stands, for noise = "dropout" only. "paper" (also the meaning of None): on the first
            three decoder layers, as the appendix and models.lua have it. "pytorch": one layer later, on
            d2 .. d(depth - 4), which are also three at depth 8; depth 6 at least.
        upsample: "transpose": the transposed convolutions of the paper. "resize-conv": nearest-neighbour resizing and a
            3×3 convolution in place of each, against their checkerboards (Odena et al. 2016,
            doi:10.23915/distill.00003).

    Raises:
        ValueError: a size or a combination of parameters that makes no network; in forward, a size that is not
            a multiple of `size_divisor`.
    """

    join_factor = 1  # channels after a join over channels of the decoder layer before it

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        width: Annotated[int, Field(ge=1)] = 64,
        depth: Annotated[int, Field(ge=2)] | None = None,
        norm: Norm = "batch",
        bottleneck_norm: bool = False,
        bias: Bias = "pytorch",
        noise: Noise = "dropout",
        dropout: DropoutPlaces | None = None,
        upsample: Annotated[Upsample, AddedLater] = "transpose",
    ) -> None:
        super().__init__()
        depth = _checked_depth(size, depth)
        dropped = _dropped_layers(depth, noise, dropout)
        biased = has_bias(bias, norm)
        self.size_divisor = 2**depth
        self.noise = noise

        entering_e1 = in_channels + 1 if noise == "gaussian" else in_channels
        e = [width * min(2**i, 8) for i in range(depth)]  # channels leaving e1 .. e_depth
        d = [*reversed(e[:-1]), out_channels]  # channels leaving d1 .. d_depth
        joined = [e[-1], *(self.join_factor * channels for channels in d[:-1])]  # channels entering d1 .. d_depth

        encoder = [nn.Sequential(_down(entering_e1, e[0], biased))]
        for entering, leaving in pairwise(e[:-1]):
            encoder.append(
                nn.Sequential(nn.LeakyReLU(0.2), _down(entering, leaving, biased), *make_norm(norm, leaving))
            )
        innermost_norm = make_bottleneck_norm(norm, e[-1]) if bottleneck_norm else []
        encoder.append(nn.Sequential(nn.LeakyReLU(0.2), _down(e[-2], e[-1], biased), *innermost_norm))

        decoder = []
        for i, (entering, leaving) in enumerate(zip(joined[:-1], d[:-1], strict=True), start=1):
            noisy = [nn.Dropout(DROPOUT)] if i in dropped else []
            up = _up(upsample, entering, leaving, biased)
            decoder.append(nn.Sequential(nn.ReLU(), up, *make_norm(norm, leaving), *noisy))
        decoder.append(nn.Sequential(nn.ReLU(), _up(upsample, joined[-1], out_channels, bias=True), nn.Tanh()))

        self.encoder = nn.ModuleList(encoder)
        self.decoder = nn.ModuleList(decoder)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if height % self.size_divisor or width % self.size_divisor:
            raise ValueError(
                f"this generator takes sides that are multiples of {self.size_divisor}, not {height}×{width}"
            )

        e = self._with_noise(x) if self.noise == "gaussian" else x
        encoded = []
        for layer in self.encoder:
            e = layer(e)
            encoded.append(e)

        d = encoded.pop()
        for layer in self.decoder:
            d = layer(d)
            if encoded:  # the last layer has no partner
                d = self.join(d, encoded.pop())
        return d

    def join(self, d: Tensor, e: Tensor) -> Tensor:
        """What the next decoder layer sees of the last one, d, and of its mirror in the encoder, e."""
        return d

    def _with_noise(self, x: Tensor) -> Tensor:
        z = torch.randn_like(x[:, :1]) if self.training else torch.zeros_like(x[:, :1])
        return torch.cat([x, z], dim=1)


class UNet(EncoderDecoder):
    """The encoder-decoder with skips: the output of each encoder layer is concatenated to that of its mirror.

    The paper's list for the U-Net decoder, CD512-CD1024-CD1024-C1024-C1024-C512-C256-C128, counts these joined inputs:
    the layers give out as many channels as the encoder-decoder's. Parameters, shapes and errors are those of
    EncoderDecoder, and:

    Args:
        skip_first: which half of a join comes first: the decoder's, as in models.lua, or the encoder's, as in the
            PyTorch code. The same function, once the halves of each transposed convolution's input channels are
            swapped, but its sums are taken in another order: imported weights give the same bits only with theirs.
    """

    join_factor = 2
    state_dict_formats = (layouts.REFERENCE_UNET, layouts.MMAGIC_UNET)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        width: Annotated[int, Field(ge=1)] = 64,
        depth: Annotated[int, Field(ge=2)] | None = None,
        norm: Norm = "batch",
        bottleneck_norm: bool = False,
        bias: Bias = "pytorch",
        noise: Noise = "dropout",
        dropout: DropoutPlaces | None = None,
        upsample: Annotated[Upsample, AddedLater] = "transpose",
        skip_first: Annotated[bool, AddedLater] = False,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            size,
            width=width,
            depth=depth,
            norm=norm,
            bottleneck_norm=bottleneck_norm,
            bias=bias,
            noise=noise,
            dropout=dropout,
            upsample=upsample,
        )
        self.skip_first = skip_first

    def join(self, d: Tensor, e: Tensor) -> Tensor:
        return torch.cat([e, d] if self.skip_first else [d, e], dim=1)


def _down(entering: int, leaving: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(entering, leaving, kernel_size=4, stride=2, padding=1, bias=bias)


def _up(upsample: Upsample, entering: int, leaving: int, bias: bool) -> nn.Module:
    match upsample:
        case "transpose":
            return nn.ConvTranspose2d(entering, leaving, kernel_size=4, stride=2, padding=1, bias=bias)
        case "resize-conv":
            convolution = nn.Conv2d(entering, leaving, kernel_size=3, padding=1, bias=bias)
            return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), convolution)
    raise ValueError(f"upsample must be 'transpose' or 'resize-conv', not {upsample!r}")


def _checked_depth(size: tuple[int, int], depth: int | None) -> int:
    """The depth asked for, or the deepest that the size allows; ValueError naming the nearest sizes that do."""
    if depth is not None and depth < SHALLOWEST:
        raise ValueError(f"depth must be at least {SHALLOWEST}, not {depth}")
    divisor = 2 ** (depth or SHALLOWEST)
    if min(size) < SMALLEST_SIDE or any(side % divisor for side in size):
        smaller, larger = zip(*(_nearest(side, divisor) for side in size), strict=True)
        nearest = " or ".join(f"{height}×{width}" for height, width in sorted({smaller, larger}))
        raise ValueError(
            f"size {size[0]}×{size[1]} does not fit: sides must be multiples of {divisor}, "
            f"from {SMALLEST_SIDE} up; the nearest that fit: {nearest}"
        )
    return depth or min(DEEPEST_BY_DEFAULT, *(_twos(side) for side in size))


def _twos(side: int) -> int:
    """How often 2 divides `side`."""
    return (side & -side).bit_length() - 1


def _nearest(side: int, divisor: int) -> tuple[int, int]:
    """The multiples of `divisor` just below and above `side` (both `side` itself if it is one), from 32 up."""
    least = -(-SMALLEST_SIDE // divisor) * divisor
    return max(least, side // divisor * divisor), max(least, -(-side // divisor) * divisor)


def _dropped_layers(depth: int, noise: Noise, dropout: DropoutPlaces | None) -> range:
    """The decoder layers d_i, counted from 1 at the bottleneck, whose output passes through dropout."""
    if noise not in ("dropout", "gaussian", "none"):
        raise ValueError(f"noise must be 'dropout', 'gaussian' or 'none', not {noise!r}")
    if dropout not in (None, "paper", "pytorch"):
        raise ValueError(f"dropout must be 'paper' or 'pytorch', not {dropout!r}")
    if noise != "dropout":
        if dropout is not None:
            raise ValueError(f"dropout = {dropout!r} needs noise = 'dropout', not {noise!r}")
        return range(0)
    if dropout == "pytorch":
        if depth < 6:
            raise ValueError(
                f"dropout = 'pytorch' stands on d2 .. d(depth - 4), which is no layer at depth {depth}: "
                "use dropout = 'paper', or noise = 'none'"
            )
        return range(2, depth - 3)
    return range(1, min(4, depth))
