"""Residual generators: Johnson et al. 2016 (arXiv:1603.08155) with the layers of CycleGAN (arXiv:1703.10593, §7.2).

Parameters and buffers have the order and shapes of `resnet_6blocks` and `resnet_9blocks` in the public PyTorch code,
under other names.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from p2pzoo.utils.group_norm import count_groups
from p2pzoo_resnet import state_dict_formats as formats

Norm = Literal["instance", "batch", "none", "group"]
Upsample = Literal["transpose", "resize-conv"]
Padding = Literal["reflect", "zeros"]

DROPOUT = 0.5  # probability in the public code


class ResNet(nn.Module):
    """c7s1-64, d128, d256, `blocks` residual blocks R256, u128, u64, c7s1-Cout, with the names of CycleGAN's appendix:

        c7s1-k  7×7 convolution to k channels, stride 1
        dk      3×3 convolution to k channels, stride 2
        Rk      two 3×3 convolutions; the block's input is added to their output
        uk      3×3 transposed convolution to k channels, stride 2; or, with `upsample`, nearest-neighbour resizing and
                a 3×3 convolution

    Norm and ReLU follow each layer but the last; in a block only a norm follows the second convolution. Tanh follows
    the last layer. This is the base class of the components ResNet6 and ResNet9, which set the number of blocks.

    x  (B, in_channels, H, W) in [-1, 1]; H and W are multiples of `size_divisor` = 4, at least 8
    ŷ  (B, out_channels, H, W) in [-1, 1]

    in_channels, out_channels, size  channels of x, channels of y, and (H, W) of both
    width     channels of the first layer; the blocks have 4 · width
    norm      "instance", "batch", "group" or "none", after the convolutions. "instance", without affine parameters, is
              the default of the public code; "batch" is that of Johnson et al. and of the public code's pix2pix. As
              there, all convolutions have a bias with instance norm, otherwise only the last. "group" (Wu & He 2018,
              arXiv:1803.08494): groups of at least 4 channels, at most 32
    dropout   dropout of 0.5 between the two convolutions of each block, as z of G(x, z); the public code's pix2pix has
              it
    upsample  "transpose" or "resize-conv"; the latter avoids the checkerboard patterns of transposed convolutions
              (Odena et al. 2016, doi:10.23915/distill.00003), with the same number of layers and parameters
    padding   "reflect" or "zeros", for all convolutions of stride 1 in the network. "zeros" if CUDA must be
              deterministic: the gradient of torch's reflection padding is not

    Raises ValueError for an unknown value of a parameter, and for a size that does not fit, here or in `forward`.
    """

    blocks: int
    size_divisor = 4

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        width: Annotated[int, Field(ge=1)] = 64,
        norm: Norm = "instance",
        dropout: bool = False,
        upsample: Upsample = "transpose",
        padding: Padding = "reflect",
    ) -> None:
        super().__init__()
        _check(size)
        bias = norm == "instance"

        def with_norm(convolution: Sequence[nn.Module], channels: int) -> nn.Sequential:
            return nn.Sequential(*convolution, *_norm(norm, channels), nn.ReLU())

        def down(entering: int) -> nn.Sequential:
            return with_norm([nn.Conv2d(entering, 2 * entering, 3, stride=2, padding=1, bias=bias)], 2 * entering)

        def up(leaving: int) -> nn.Sequential:
            return with_norm(_up(upsample, padding, 2 * leaving, leaving, bias), leaving)

        self.enter = with_norm(_padded(padding, in_channels, width, 7, bias), width)
        self.down = nn.Sequential(down(width), down(2 * width))
        self.residual = nn.Sequential(
            *(ResidualBlock(4 * width, norm, padding, bias, dropout) for _ in range(self.blocks))
        )
        self.up = nn.Sequential(up(2 * width), up(width))
        self.to_image = nn.Sequential(*_padded(padding, width, out_channels, 7, bias=True), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        _check(x.shape[2:])
        return self.to_image(self.up(self.residual(self.down(self.enter(x)))))

    def features(self, x: Tensor) -> list[Tensor]:
        """The outputs of the layers before `up`: the first, the two of stride 2, and each residual block."""
        _check(x.shape[2:])
        encoded = [self.enter(x)]
        for layer in (*self.down, *self.residual):
            encoded.append(layer(encoded[-1]))
        return encoded


class ResNet6(ResNet):
    """6 residual blocks, as in CycleGAN for 128×128 images.

    >>> import torch
    >>> G = ResNet6(3, 1, (32, 32), width=4)
    >>> G(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 1, 32, 32])
    """

    blocks = 6
    state_dict_formats = (formats.reference_format(6),)


class ResNet9(ResNet):
    """9 residual blocks, as in CycleGAN from 256×256 on."""

    blocks = 9
    state_dict_formats = (formats.reference_format(9),)


class ResidualBlock(nn.Module):
    """h + two 3×3 convolutions of h, without a ReLU after the sum (Gross & Wilber 2016, as in Johnson et al.)."""

    def __init__(self, channels: int, norm: Norm, padding: Padding, bias: bool, dropout: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_padded(padding, channels, channels, 3, bias),
            *_norm(norm, channels),
            nn.ReLU(),
            *([nn.Dropout(DROPOUT)] if dropout else []),
            *_padded(padding, channels, channels, 3, bias),
            *_norm(norm, channels),
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


def _padded(padding: Padding, entering: int, leaving: int, kernel: int, bias: bool) -> list[nn.Module]:
    """A convolution that keeps H and W."""
    kinds = {"reflect": nn.ReflectionPad2d, "zeros": nn.ZeroPad2d}
    if padding not in kinds:
        raise ValueError(f"padding must be 'reflect' or 'zeros', not {padding!r}")
    return [kinds[padding](kernel // 2), nn.Conv2d(entering, leaving, kernel, bias=bias)]


def _up(upsample: Upsample, padding: Padding, entering: int, leaving: int, bias: bool) -> list[nn.Module]:
    """The layers that double H and W."""
    match upsample:
        case "transpose":
            return [nn.ConvTranspose2d(entering, leaving, 3, stride=2, padding=1, output_padding=1, bias=bias)]
        case "resize-conv":
            return [nn.Upsample(scale_factor=2, mode="nearest"), *_padded(padding, entering, leaving, 3, bias)]
    raise ValueError(f"upsample must be 'transpose' or 'resize-conv', not {upsample!r}")


def _norm(norm: Norm, channels: int) -> list[nn.Module]:
    match norm:
        case "instance":
            return [nn.InstanceNorm2d(channels)]
        case "batch":
            return [nn.BatchNorm2d(channels)]
        case "none":
            return []
        case "group":
            return [nn.GroupNorm(count_groups(channels), channels)]
    raise ValueError(f"norm must be 'instance', 'batch', 'group' or 'none', not {norm!r}")


def _check(size: Sequence[int]) -> None:
    """Raise ValueError for a size that does not fit: reflection padding at a quarter of the size needs two pixels."""
    divisor = ResNet.size_divisor
    if min(size) < 2 * divisor or any(side % divisor for side in size):
        height, width = (max(2 * divisor, -(-side // divisor) * divisor) for side in size)
        raise ValueError(
            f"a residual generator needs sides that are multiples of {divisor}, at least {2 * divisor}, "
            f"not {size[0]}×{size[1]}: {height}×{width} would fit"
        )
