"""The discriminators of pix2pix: convolutional classifiers of each pixel, of each patch or of the whole image.

arXiv:1611.07004 v3, §6.1.2 and Table 3, with the strides of phillipi/pix2pix `models.lua`. The appendix says that all
convolutions have stride 2, but only the first n do. With the last two at stride 1, the receptive fields are the 16, 70
and 286 px that the paper names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from p2pzoo_pix2pix import state_dict_formats as formats
from p2pzoo_pix2pix.layers import Bias, Norm, has_bias, make_norm

Width = Annotated[int, Field(ge=1)]

STRIDED_LAYERS = {16: 1, 34: 2, 70: 3, 142: 4, 286: 5}  # receptive field -> `n_layers_D` in the public code


@dataclass(frozen=True)
class Convolutions:
    """The hidden convolutions of a discriminator. One more, of stride 1, leads from the last of them to the logit.

    widths, strides  output channels and stride of each hidden convolution, from the input on
    kernel, padding  of all convolutions
    """

    widths: list[int]
    strides: list[int]
    kernel: int
    padding: int

    @property
    def receptive_field(self) -> int:
        """Side in pixels of the patch that one logit depends on.

        >>> Convolutions([64, 128, 256, 512], [2, 2, 2, 1], kernel=4, padding=1).receptive_field
        70
        """
        field = self.kernel
        for stride in reversed(self.strides):
            field = (field - 1) * stride + self.kernel
        return field

    @property
    def smallest_side(self) -> int:
        """The smallest H and W that leave 2×2 values before the logit.

        Fewer leave none for a 4×4 kernel with padding 1, or only one value per channel for a norm.
        """
        side = 2
        for stride in reversed(self.strides):
            side = (side - 1) * stride + self.kernel - 2 * self.padding
        return side


def _pixel_convolutions(width: int) -> Convolutions:
    return Convolutions(widths=[width, 2 * width], strides=[1, 1], kernel=1, padding=0)


def _patch_convolutions(receptive_field: int, width: int) -> Convolutions:
    n = STRIDED_LAYERS[receptive_field]
    widths = [width * min(2**i, 8) for i in range(n + 1)]
    return Convolutions(widths, strides=[2] * n + [1], kernel=4, padding=1)


class ConvDiscriminator(nn.Module):
    """Hidden blocks of convolution, norm (not on the first) and LeakyReLU(0.2), then a convolution to one logit.

    The base class of the components below, which choose the convolutions. Their common parameters:

    in_channels, out_channels, size  channels of x, channels of y, and (H, W) of both
    conditional  D sees x and y, concatenated on channels; false: y alone
    width        channels of the first block; block i has min(2**i, 8) · width
    norm         "batch", "instance", "group" or "none", after all convolutions but the first and the last. Instance
                 norm has no affine parameters. "group": groups of at least 4 channels, at most 32
    bias         which convolutions have a bias. "lua": all. "pytorch": the same as in that code; with instance norm
                 all, otherwise the first and (except in PixelGAN) the last

    `forward` and `features` take

        x  (B, in_channels, H, W) in [-1, 1]; ignored unless conditional
        y  (B, out_channels, H, W) in [-1, 1]

    Raises ValueError for images with sides below `smallest_side` px, here and in `forward` and `features`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        convolutions: Convolutions,
        *,
        conditional: bool,
        norm: Norm,
        hidden_bias: bool,
        last_bias: bool,
    ) -> None:
        super().__init__()
        self.conditional = conditional
        self.receptive_field = convolutions.receptive_field
        self.smallest_side = convolutions.smallest_side
        self._check(size)

        kernel, padding = convolutions.kernel, convolutions.padding
        channels = in_channels + out_channels if conditional else out_channels
        self.blocks = nn.ModuleList()
        for i, (width, stride) in enumerate(zip(convolutions.widths, convolutions.strides, strict=True)):
            first = i == 0
            conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=first or hidden_bias)
            self.blocks.append(nn.Sequential(conv, *([] if first else make_norm(norm, width)), nn.LeakyReLU(0.2)))
            channels = width
        self.to_logit = nn.Conv2d(channels, 1, kernel, 1, padding, bias=last_bias)

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """[logits (B, 1, h, w)]: one map, since this D has one scale. The paper's sigmoid is part of the loss here."""
        return [self.to_logit(self._hidden(x, y)[-1])]

    def features(self, x: Tensor, y: Tensor) -> list[list[Tensor]]:
        """[[activations after each hidden block, from the input on]]."""
        return [self._hidden(x, y)]

    def _hidden(self, x: Tensor, y: Tensor) -> list[Tensor]:
        self._check(y.shape[2:])
        h = torch.cat([x, y], dim=1) if self.conditional else y
        activations = []
        for block in self.blocks:
            h = block(h)
            activations.append(h)
        return activations

    def _check(self, size: Sequence[int]) -> None:
        if min(size) < self.smallest_side:
            raise ValueError(
                f"a discriminator with a receptive field of {self.receptive_field} px needs sides "
                f"of at least {self.smallest_side} px, not {size[0]}×{size[1]}"
            )


class PixelDiscriminator(ConvDiscriminator):
    """PixelGAN, C64-C128 with 1×1 convolutions: (h, w) = (H, W), and each logit depends on one pixel.

    >>> D = PixelDiscriminator(3, 3, (32, 32), width=4)
    >>> [logits.shape for logits in D(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))]
    [torch.Size([1, 1, 32, 32])]
    """

    state_dict_formats = (formats.REFERENCE_PIXEL,)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        conditional: bool = True,
        width: Width = 64,
        norm: Norm = "batch",
        bias: Bias = "pytorch",
    ) -> None:
        with_bias = has_bias(bias, norm)
        convolutions = _pixel_convolutions(width)
        super().__init__(
            in_channels,
            out_channels,
            size,
            convolutions,
            conditional=conditional,
            norm=norm,
            hidden_bias=with_bias,
            last_bias=with_bias,
        )


class PatchDiscriminator(ConvDiscriminator):
    """PatchGAN, C64-C128-C256-C512 for 70 px: each logit depends on one of many overlapping patches.

    All convolutions are 4×4 with padding 1: n of stride 2, one of stride 1, and one of stride 1 to the logit, with
    n = 1, 2, 3, 4 for 16, 34, 70, 142 px. So h = H // 2**n - 2, and sides are at least 3 · 2**n px.

    receptive_field  side of the patches in pixels: 16, 34, 70 or 142; the paper has 16 and 70

    >>> D = PatchDiscriminator(3, 3, (32, 32), receptive_field=16, width=4)
    >>> [logits.shape for logits in D(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))]
    [torch.Size([1, 1, 14, 14])]
    """

    state_dict_formats = (formats.REFERENCE_PATCH, formats.MMAGIC_PATCH)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        receptive_field: Literal[16, 34, 70, 142] = 70,
        conditional: bool = True,
        width: Width = 64,
        norm: Norm = "batch",
        bias: Bias = "pytorch",
    ) -> None:
        if receptive_field not in (16, 34, 70, 142):
            raise ValueError(f"receptive_field must be 16, 34, 70 or 142, not {receptive_field!r}")
        super().__init__(
            in_channels,
            out_channels,
            size,
            _patch_convolutions(receptive_field, width),
            conditional=conditional,
            norm=norm,
            hidden_bias=has_bias(bias, norm),
            last_bias=True,
        )


class ImageDiscriminator(ConvDiscriminator):
    """ImageGAN, C64-C128-C256-C512-C512-C512: a PatchGAN of 286 px, more than a whole 256×256 image.

    At 256×256 each of its 6×6 logits depends on the whole image and on the zero padding around it. Sides are at least
    96 px.

    >>> D = ImageDiscriminator(3, 3, (96, 96), width=4)
    >>> [logits.shape for logits in D(torch.zeros(1, 3, 96, 96), torch.zeros(1, 3, 96, 96))]
    [torch.Size([1, 1, 1, 1])]
    """

    state_dict_formats = (formats.REFERENCE_IMAGE, formats.MMAGIC_IMAGE)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        conditional: bool = True,
        width: Width = 64,
        norm: Norm = "batch",
        bias: Bias = "pytorch",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            size,
            _patch_convolutions(286, width),
            conditional=conditional,
            norm=norm,
            hidden_bias=has_bias(bias, norm),
            last_bias=True,
        )
