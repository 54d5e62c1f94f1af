"""The generators of pix2pix: the U-Net, and the encoder-decoder, which is the U-Net without its skip connections.

arXiv:1611.07004 v3, §6.1.1, in the order of operations of phillipi/pix2pix `models.lua`: the activation comes before
each convolution, so a skip connection carries the output of a convolution (and norm) before the activation.
"""

from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from p2pzoo.plugin import AddedLater
from p2pzoo_pix2pix import state_dict_formats as formats
from p2pzoo_pix2pix.layers import Bias, Norm, has_bias, make_bottleneck_norm, make_norm

Noise = Literal["dropout", "gaussian", "none"]
DropoutPlaces = Literal["paper", "pytorch"]
Upsample = Literal["transpose", "resize-conv"]

MIN_SIDE = 32  # px; a lower limit, so that a wrong size is an error
MIN_DEPTH = 2  # an outermost and an innermost layer
MAX_DEFAULT_DEPTH = 8  # the paper's: 256 px -> 1 px
DROPOUT = 0.5  # probability (§6.1.1)


class EncoderDecoder(nn.Module):
    """`depth` convolutions halve the image, `depth` transposed convolutions double it again; all 4×4, stride 2.

    At depth 8, with Ck a convolution to k channels and CDk one with dropout:

        encoder  C64-C128-C256-C512-C512-C512-C512-C512       LeakyReLU(0.2) before each but the first
        decoder  CD512-CD512-CD512-C512-C256-C128-C64-Cout    ReLU before each, Tanh at the end

    with a norm after each layer except the first, the last and (unless `bottleneck_norm`) the innermost.

    x  (B, in_channels, H, W) in [-1, 1]; H and W are multiples of `size_divisor` = 2**depth
    ŷ  (B, out_channels, H, W) in [-1, 1]

    in_channels, out_channels  of x and y
    size             (H, W) of the training images, each at least 32 and a multiple of 2**depth (at least of 4)
    width            channels of the first layer; layer i has min(2**i, 8) · width
    depth            layers of the encoder and of the decoder; unset: as often as 2 divides both sides, at most 8
    norm             "batch", "instance", "group" or "none", after the convolutions. Instance norm has no affine
                     parameters. "group" (Wu & He 2018, arXiv:1803.08494): groups of at least 4 channels, at most 32
    bottleneck_norm  a norm on the innermost layer too, as in the paper's own runs. At batch 1 and 1×1 px it replaces
                     the layer by a constant (§6.3), so the released codes removed it. See layers.py
    bias             which convolutions have a bias. "pytorch": only the last (with instance norm all, as in that code).
                     "lua": all
    noise            the z of G(x, z): "dropout", "gaussian" or "none". "dropout" is the paper's choice. "gaussian": one
                     map of N(0, 1) becomes a channel of x; torch's default generator draws it in training mode, and
                     it is zero in eval mode. The paper found that G learns to ignore it (§3.2). With it, G(x, z=z)
                     takes such a map, (B, 1, H, W), from losses. "none": G is deterministic
    dropout          which layers have dropout: "paper" (the default) or "pytorch"; for noise = "dropout" only. "paper":
                     the first three layers of the decoder, as in the appendix and in models.lua. "pytorch": one layer
                     later, d2 .. d(depth - 4), which are also three at depth 8; this needs a depth of at least 6
    upsample         "transpose" or "resize-conv". "transpose": the transposed convolutions of the paper. "resize-conv":
                     nearest-neighbour resizing and a 3×3 convolution instead, which avoids checkerboard patterns
                     (Odena et al. 2016, doi:10.23915/distill.00003)

    Raises ValueError for a size or a combination of parameters that gives no network, and in `forward` for a size that
    is not a multiple of `size_divisor`.

    >>> G = EncoderDecoder(3, 3, (32, 32), width=4)
    >>> G(torch.zeros(1, 3, 32, 64)).shape
    torch.Size([1, 3, 32, 64])
    """

    join_factor = 1  # input channels of a decoder layer / output channels of the layer before it

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
        depth = _resolve_depth(size, depth)
        dropout_layers = _dropout_layers(depth, noise, dropout)
        with_bias = has_bias(bias, norm)
        self.size_divisor = 2**depth
        self.noise, self.takes_z = noise, noise == "gaussian"

        channels_in = in_channels + 1 if noise == "gaussian" else in_channels
        e = [width * min(2**i, 8) for i in range(depth)]  # output channels of e1 .. e_depth
        d = [*reversed(e[:-1]), out_channels]  # output channels of d1 .. d_depth
        joined = [e[-1], *(self.join_factor * channels for channels in d[:-1])]  # input channels of d1 .. d_depth

        encoder = [nn.Sequential(_down(channels_in, e[0], with_bias))]
        for entering, leaving in pairwise(e[:-1]):
            encoder.append(
                nn.Sequential(nn.LeakyReLU(0.2), _down(entering, leaving, with_bias), *make_norm(norm, leaving))
            )
        innermost_norm = make_bottleneck_norm(norm, e[-1]) if bottleneck_norm else []
        encoder.append(nn.Sequential(nn.LeakyReLU(0.2), _down(e[-2], e[-1], with_bias), *innermost_norm))

        decoder = []
        for i, (entering, leaving) in enumerate(zip(joined[:-1], d[:-1], strict=True), start=1):
            noise_layer = [nn.Dropout(DROPOUT)] if i in dropout_layers else []
            up = _up(upsample, entering, leaving, with_bias)
            decoder.append(nn.Sequential(nn.ReLU(), up, *make_norm(norm, leaving), *noise_layer))
        decoder.append(nn.Sequential(nn.ReLU(), _up(upsample, joined[-1], out_channels, bias=True), nn.Tanh()))

        self.encoder = nn.ModuleList(encoder)
        self.decoder = nn.ModuleList(decoder)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        encoded = self._encode(x, z)
        d = encoded.pop()
        for layer in self.decoder:
            d = layer(d)
            if encoded:  # the last layer has no skip connection
                d = self.join(d, encoded.pop())
        return d

    def features(self, x: Tensor) -> list[Tensor]:
        """The outputs of the encoder's layers, from the first to the innermost: layer i has sides of H / 2**i."""
        return self._encode(x)

    def draw_z(self, x: Tensor) -> Tensor:
        """The z of noise = "gaussian", (B, 1, H, W) of N(0, 1)."""
        return torch.randn_like(x[:, :1])

    def _encode(self, x: Tensor, z: Tensor | None = None) -> list[Tensor]:
        height, width = x.shape[2:]
        if height % self.size_divisor or width % self.size_divisor:
            raise ValueError(
                f"this generator needs sides that are multiples of {self.size_divisor}, not {height}×{width}"
            )
        if z is not None and not self.takes_z:
            raise ValueError(f'this generator takes no z: it has noise = "{self.noise}", not "gaussian"')
        e = self._with_noise(x, z) if self.takes_z else x
        encoded = []
        for layer in self.encoder:
            e = layer(e)
            encoded.append(e)
        return encoded

    def join(self, d: Tensor, e: Tensor) -> Tensor:
        """The input of the next decoder layer, from the output d of this layer and the output e of its mirror layer."""
        return d

    def _with_noise(self, x: Tensor, z: Tensor | None) -> Tensor:
        if z is None:
            z = self.draw_z(x) if self.training else torch.zeros_like(x[:, :1])
        return torch.cat([x, z], dim=1)


class UNet(EncoderDecoder):
    """The encoder-decoder with skip connections, which concatenate the output of each encoder layer to its mirror's.

    The paper's list for the U-Net decoder, CD512-CD1024-CD1024-C1024-C1024-C512-C256-C128, counts the concatenated
    channels. The layers themselves have as many output channels as in the encoder-decoder.

    skip_first  the encoder's half of a concatenation comes first, as in the PyTorch code; false: the decoder's half, as
                in models.lua. Both are the same function if the halves of each transposed convolution's input channels
                are swapped, but sums have another order: imported weights give bit-identical results only with the
                order that they were trained with

    Sides must be multiples of 2**depth; for others it raises a ValueError.

    >>> G = UNet(3, 3, (32, 32), width=4)
    >>> G(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 3, 32, 32])
    """

    join_factor = 2
    state_dict_formats = (formats.REFERENCE_UNET, formats.MMAGIC_UNET)

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


def _resolve_depth(size: tuple[int, int], depth: int | None) -> int:
    """The given depth, or the largest that the size allows. Raises ValueError with the nearest valid sizes."""
    if depth is not None and depth < MIN_DEPTH:
        raise ValueError(f"depth must be at least {MIN_DEPTH}, not {depth}")
    divisor = 2 ** (depth or MIN_DEPTH)
    if min(size) < MIN_SIDE or any(side % divisor for side in size):
        smaller, larger = zip(*(_nearest(side, divisor) for side in size), strict=True)
        nearest = " or ".join(f"{height}×{width}" for height, width in sorted({smaller, larger}))
        raise ValueError(
            f"size {size[0]}×{size[1]} does not fit: sides must be multiples of {divisor}, "
            f"at least {MIN_SIDE}; the nearest that fit: {nearest}"
        )
    return depth or min(MAX_DEFAULT_DEPTH, *(_count_halvings(side) for side in size))


def _count_halvings(side: int) -> int:
    """The exponent of 2 in `side`."""
    return (side & -side).bit_length() - 1


def _nearest(side: int, divisor: int) -> tuple[int, int]:
    """The multiples of `divisor` just below and above `side` (`side` itself if it is one), at least 32."""
    smallest = -(-MIN_SIDE // divisor) * divisor
    return max(smallest, side // divisor * divisor), max(smallest, -(-side // divisor) * divisor)


def _dropout_layers(depth: int, noise: Noise, dropout: DropoutPlaces | None) -> range:
    """The decoder layers d_i with dropout after them, counted from 1 at the bottleneck."""
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
                f"dropout = 'pytorch' is on d2 .. d(depth - 4), which is no layer at depth {depth}: "
                "use dropout = 'paper', or noise = 'none'"
            )
        return range(2, depth - 3)
    return range(1, min(4, depth))
