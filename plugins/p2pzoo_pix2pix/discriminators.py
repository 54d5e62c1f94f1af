"""The discriminators of pix2pix: convolutional classifiers of every pixel, of every patch, of the whole image.

arXiv:1611.07004 v3, §6.1.2 and Table 3, with the strides of phillipi/pix2pix `models.lua`: the appendix says that
all convolutions have stride 2, but only the first n do; with the last two at stride 1 the receptive fields are
the 16, 70 and 286 px that the paper names. Imports torch, pydantic's Field, and this plugin's layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from p2pzoo_pix2pix import layouts
from p2pzoo_pix2pix.layers import Bias, Norm, has_bias, make_norm

Width = Annotated[int, Field(ge=1)]

STRIDED_LAYERS = {16: 1, 34: 2, 70: 3, 142: 4, 286: 5}  # receptive field -> `n_layers_D` of the public codes


@dataclass(frozen=True)
class Convolutions:
    """The hidden convolutions of a discriminator, and one of stride 1 to the logit after them.

    widths, strides  of the hidden ones, from the input side on
    kernel, padding  of all
    """

    widths: list[int]
    strides: list[int]
    kernel: int
    padding: int

    @property
    def receptive_field(self) -> int:
        """Side in pixels of what one logit sees."""
        field = self.kernel
        for stride in reversed(self.strides):
            field = (field - 1) * stride + self.kernel
        return field

    @property
    def smallest_side(self) -> int:
        """The least H and W that leave 2×2 before the logit: a 4×4 kernel reaches it, no norm sees a single value."""
        side = 2
        for stride in reversed(self.strides):
            side = (side - 1) * stride + self.kernel - 2 * self.padding
        return side


def _pixelwise(width: int) -> Convolutions:
    return Convolutions(widths=[width, 2 * width], strides=[1, 1], kernel=1, padding=0)


def _patchwise(receptive_field: int, width: int) -> Convolutions:
    n = STRIDED_LAYERS[receptive_field]
    widths = [width * min(2**i, 8) for i in range(n + 1)]
    return Convolutions(widths, strides=[2] * n + [1], kernel=4, padding=1)


class ConvDiscriminator(nn.Module):
    """Hidden blocks of convolution, norm (not on the first) and LeakyReLU(0.2), then a convolution to one logit.

    Not a component itself: the classes below say which convolutions. Their common arguments:

    Args:
        in_channels, out_channels, size: of x, of y, and (H, W) of both.
        conditional: D sees (x, y) concatenated on channels, or y alone.
        width: channels of the first block; block i has min(2**i, 8) · width.
        norm: on all blocks but the first; instance norm has no affine parameters.
        bias: "lua": all convolutions have one. "pytorch": those that have one in that code; under instance norm
            these are all, otherwise the first and (except in PixelGAN) the last.

    forward and features take

        x       (B, in_channels, H, W) in [-1, 1]; ignored unless conditional
        y       (B, out_channels, H, W) in [-1, 1]

    and raise ValueError, as the constructor does, for images of less than `smallest_side` px.
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
        """[logits (B, 1, h, w)]: one map, as this D has one scale; the paper's sigmoid is part of the loss here."""
        return [self.to_logit(self._hidden(x, y)[-1])]

    def features(self, x: Tensor, y: Tensor) -> list[list[Tensor]]:
        """[[activations after each hidden block, from the input side on]]."""
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
                f"a discriminator with a receptive field of {self.receptive_field} px takes sides "
                f"from {self.smallest_side} px up, not {size[0]}×{size[1]}"
            )


class PixelDiscriminator(ConvDiscriminator):
    """PixelGAN, C64-C128 with 1×1 convolutions: (h, w) = (H, W), and each logit sees one pixel.

    Arguments and errors are those of ConvDiscriminator.
    """

    state_dict_formats = (layouts.REFERENCE_PIXEL,)

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
        biased = has_bias(bias, norm)
        convolutions = _pixelwise(width)
        super().__init__(
            in_channels,
            out_channels,
            size,
            convolutions,
            conditional=conditional,
            norm=norm,
            hidden_bias=biased,
            last_bias=biased,
        )


class PatchDiscriminator(ConvDiscriminator):
    """PatchGAN, C64-C128-C256-C512 for 70 px: each logit sees one of many overlapping patches.

    All convolutions are 4×4 with padding 1: n of stride 2, one of stride 1, and one of stride 1 to the logit, where
    n = 1, 2, 3, 4 for 16, 34, 70, 142 px; so h = H // 2**n - 2. Images have 3 · 2**n px at least.

    Args:
        receptive_field: side in pixels of the patches; the paper has 16 and 70.

    Further arguments and errors are those of ConvDiscriminator.
    """

    state_dict_formats = (layouts.REFERENCE_PATCH, layouts.MMAGIC_PATCH)

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
            _patchwise(receptive_field, width),
            conditional=conditional,
            norm=norm,
            hidden_bias=has_bias(bias, norm),
            last_bias=True,
        )


class ImageDiscriminator(ConvDiscriminator):
    """ImageGAN, C64-C128-C256-C512-C512-C512: a PatchGAN of 286 px, more than a whole 256×256 image.

    At 256×256 its 6×6 logits see the image with the zeros around it. Arguments and errors are those of
    ConvDiscriminator; images have 96 px at least.
    """

    state_dict_formats = (layouts.REFERENCE_IMAGE, layouts.MMAGIC_IMAGE)

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
            _patchwise(286, width),
            conditional=conditional,
            norm=norm,
            hidden_bias=has_bias(bias, norm),
            last_bias=True,
        )
