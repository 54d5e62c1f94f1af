"""The multi-scale discriminator of pix2pixHD (arXiv:1711.11585, §3.2 and appendix): D1, D2, D3 are alike and each sees
the image at half the size of the one before. Imports torch, pydantic's Field, and this plugin's boundary maps."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo_pix2pixhd.boundaries import with_boundaries

Count = Annotated[int, Field(ge=1)]
KERNEL = 4


class MultiscaleDiscriminator(nn.Module):
    """`num_scales` PatchGANs C64-C128-C256-C512 on (x, y), average-pooled to half the size for each after the first.

    All convolutions are 4×4 with padding 2, as in the public code: `strided_layers` of stride 2, one of stride 1, and
    one of stride 1 to the logit. LeakyReLU(0.2) after each but the last; before it, on all but the first, instance norm
    without affine parameters.

    forward and features take

        x       (B, in_channels, H, W) in [-1, 1]; ignored unless conditional
        y       (B, out_channels, H, W) in [-1, 1]

    with sides from 2**num_scales px up. `receptive_field` is that of the coarsest scale: 70, 141, 283 px for one, two,
    three scales of three strided layers.

    Args:
        in_channels, out_channels, size: of x and y, and (H, W) of both.
        num_scales: how many discriminators.
        width: channels of the first layer; layer i has min(2**i, 8) · width.
        strided_layers: of each discriminator.
        conditional: D sees (x, y) concatenated on channels, or y alone.
        edges: the boundary map of x joins it as a channel (see boundaries.py).

    Raises:
        ValueError: edges without x to take them from; a size, here or in forward and features, that is too small.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        num_scales: Count = 3,
        width: Count = 64,
        strided_layers: Count = 3,
        conditional: bool = True,
        edges: bool = False,
    ) -> None:
        super().__init__()
        if edges and not conditional:
            raise ValueError("edges = true needs conditional = true: the edges are those of x")
        self.conditional, self.edges, self.num_scales = conditional, edges, num_scales
        self._check(size)
        channels = in_channels + edges + out_channels if conditional else out_channels
        self.scales = nn.ModuleList(PatchDiscriminator(channels, width, strided_layers) for _ in range(num_scales))
        self.receptive_field = (self.scales[0].receptive_field - 1) * 2 ** (num_scales - 1) + 2**num_scales - 1

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Logits, one map (B, 1, h, w) per scale, from the finest to the coarsest."""
        return [layers[-1] for layers in self._layers(x, y)]

    def features(self, x: Tensor, y: Tensor) -> list[list[Tensor]]:
        """Activations after each hidden layer, from the input side on, per scale from the finest to the coarsest."""
        return [layers[:-1] for layers in self._layers(x, y)]

    def _layers(self, x: Tensor, y: Tensor) -> list[list[Tensor]]:
        self._check(y.shape[2:])
        image = y
        if self.conditional:
            image = torch.cat([with_boundaries(x) if self.edges else x, y], dim=1)
        images = [image]
        for _ in range(self.num_scales - 1):
            images.append(F.avg_pool2d(images[-1], 3, stride=2, padding=1, count_include_pad=False))
        return [scale(image) for scale, image in zip(self.scales, images, strict=True)]

    def _check(self, size: Sequence[int]) -> None:
        if min(size) < 2**self.num_scales:
            raise ValueError(
                f"a discriminator of {self.num_scales} scales takes sides from {2**self.num_scales} px up, "
                f"not {size[0]}×{size[1]}"
            )


class PatchDiscriminator(nn.Module):
    """One scale: (B, channels, H, W) -> what each layer gives, from the input side on; the last is the logits."""

    def __init__(self, channels: int, width: int, strided_layers: int) -> None:
        super().__init__()
        widths = [channels, *(width * min(2**i, 8) for i in range(strided_layers + 1))]
        strides = [2] * strided_layers + [1]
        self.layers = nn.ModuleList()
        for i, ((entering, leaving), stride) in enumerate(zip(pairwise(widths), strides, strict=True)):
            norm = [nn.InstanceNorm2d(leaving)] if i else []
            conv = nn.Conv2d(entering, leaving, KERNEL, stride, padding=2)
            self.layers.append(nn.Sequential(conv, *norm, nn.LeakyReLU(0.2)))
        self.layers.append(nn.Conv2d(widths[-1], 1, KERNEL, padding=2))
        self.receptive_field = KERNEL
        for stride in reversed(strides):
            self.receptive_field = (self.receptive_field - 1) * stride + KERNEL

    def forward(self, h: Tensor) -> list[Tensor]:
        given = []
        for layer in self.layers:
            h = layer(h)
            given.append(h)
        return given
