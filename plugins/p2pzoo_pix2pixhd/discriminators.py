"""The multi-scale discriminator of pix2pixHD (arXiv:1711.11585, §3.2 and appendix).

D1, D2 and D3 have the same architecture. Each gets the image at half the size of the one before.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo.utils.plurals import format_count
from p2pzoo_pix2pixhd.boundaries import with_boundaries

Count = Annotated[int, Field(ge=1)]
KERNEL = 4  # of all convolutions (appendix)


class MultiscaleDiscriminator(nn.Module):
    """`num_scales` PatchGANs C64-C128-C256-C512 on (x, y). For each after the first, average pooling halves the images.

    All convolutions are 4×4 with padding 2, as in the public code: `strided_layers` of stride 2, one of stride 1, and
    one of stride 1 to the logit. Instance norm without affine parameters follows all but the first and the last, then
    LeakyReLU(0.2) all but the last.

    `forward` and `features` take

        x  (B, in_channels, H, W) in [-1, 1]; ignored unless conditional
        y  (B, out_channels, H, W) in [-1, 1]

    with sides of at least 2**num_scales px. `receptive_field` is that of the coarsest scale: 70, 141, 283 px for one,
    two, three scales of three strided layers.

    in_channels, out_channels, size  channels of x, channels of y, and (H, W) of both
    num_scales      number of discriminators
    width           channels of the first layer; layer i has min(2**i, 8) · width
    strided_layers  layers of stride 2 in each discriminator
    conditional     D sees x and y, concatenated on channels; false: y alone
    edges           add the boundary map of x as a channel (see boundaries.py); needs `conditional`

    Raises ValueError for `edges` without `conditional`, and for a size that is too small, here and in `forward` and
    `features`.

    >>> D = MultiscaleDiscriminator(3, 3, (32, 32), num_scales=2, width=4)
    >>> [logits.shape for logits in D(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))]
    [torch.Size([1, 1, 7, 7]), torch.Size([1, 1, 5, 5])]
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
            raise ValueError("edges = true needs conditional = true, because the boundary map is that of x")
        self.conditional, self.edges, self.num_scales = conditional, edges, num_scales
        self._check(size)
        channels = in_channels + edges + out_channels if conditional else out_channels
        self.scales = nn.ModuleList(PatchDiscriminator(channels, width, strided_layers) for _ in range(num_scales))
        self.receptive_field = (self.scales[0].receptive_field - 1) * 2 ** (num_scales - 1) + 2**num_scales - 1

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Logits, one map (B, 1, h, w) per scale, from the finest to the coarsest."""
        return [layers[-1] for layers in self._layers(x, y)]

    def features(self, x: Tensor, y: Tensor) -> list[list[Tensor]]:
        """Activations after each hidden layer, from the input on, per scale from the finest to the coarsest."""
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
                f"a discriminator of {format_count(self.num_scales, 'scale')} needs sides of at least "
                f"{2**self.num_scales} px, not {size[0]}×{size[1]}"
            )


class PatchDiscriminator(nn.Module):
    """One scale: (B, channels, H, W) -> the outputs of all layers, from the input on; the last one is the logits."""

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
        outputs = []
        for layer in self.layers:
            h = layer(h)
            outputs.append(h)
        return outputs
