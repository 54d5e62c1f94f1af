"""Residual generators: Johnson et al. 2016 (arXiv:1603.08155) with the layers of CycleGAN (arXiv:1703.10593, §7.2).

Parameters and buffers come in the order and shapes of the public PyTorch code's `resnet_6blocks` and `resnet_9blocks`,
under names of their own. Imports torch and pydantic's Field.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from p2pzoo_resnet import layouts

Norm = Literal["instance", "batch", "none"]
Upsample = Literal["transpose", "resize-conv"]
Padding = Literal["reflect", "zeros"]

DROPOUT = 0.5


class ResNet(nn.Module):
    """c7s1-64, d128, d256, `blocks` residual blocks R256, u128, u64, c7s1-Cout, with the names of CycleGAN's appendix:

        c7s1-k  7×7 convolution to k channels, stride 1
        dk      3×3 convolution, stride 2
        Rk      two 3×3 convolutions; what entered is added to what leaves
        uk      3×3 transposed convolution, stride 2, or (`upsample`) nearest-neighbour resizing and a 3×3 convolution

    each but the last followed by norm and ReLU (in a block the second by norm alone), the last by Tanh. Not a component
    itself: ResNet6 and ResNet9 say how many blocks.

    x  (B, in_channels, H, W) in [-1, 1]; H and W any multiples of `size_divisor` = 4, from 8 up
    ŷ  (B, out_channels, H, W) in [-1, 1]

    Args:
        in_channels, out_channels, size: of x and y, and (H, W) of both.
        width: channels k of the first layer; the blocks have 4 · width.
        norm: after the convolutions. "instance" without affine parameters, the default of the public code; "batch",
            as in Johnson et al. and, by that code, in its pix2pix. As there, under instance norm all convolutions have
            a bias, otherwise the last alone.
        dropout: 0.5 between the two convolutions of each block, as z of G(x, z); the public code's pix2pix has it.
        upsample: "resize-conv" against the checkerboards of transposed convolutions (Odena et al. 2016,
            doi:10.23915/distill.00003); as many layers, the same parameters.
        padding: of the 7×7 convolutions, of those in blocks and after resizing. "zeros" where CUDA has to be
            deterministic: torch's reflection has no such gradient.

    Raises:
        ValueError: a parameter that it does not know, or a size, here or in forward, that does not fit.
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

        def finished(convolution: Sequence[nn.Module], channels: int) -> nn.Sequential:
            return nn.Sequential(*convolution, *_norm(norm, channels), nn.ReLU())

        def down(entering: int) -> nn.Sequential:
            return finished([nn.Conv2d(entering, 2 * entering, 3, stride=2, padding=1, bias=bias)], 2 * entering)

        def up(leaving: int) -> nn.Sequential:
            return finished(_up(upsample, padding, 2 * leaving, leaving, bias), leaving)

        self.enter = finished(_padded(padding, in_channels, width, 7, bias), width)
        self.down = nn.Sequential(down(width), down(2 * width))
        self.residual = nn.Sequential(
            *(ResidualBlock(4 * width, norm, padding, bias, dropout) for _ in range(self.blocks))
        )
        self.up = nn.Sequential(up(2 * width), up(width))
        self.to_image = nn.Sequential(*_padded(padding, width, out_channels, 7, bias=True), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        _check(x.shape[2:])
        return self.to_image(self.up(self.residual(self.down(self.enter(x)))))


class ResNet6(ResNet):
    """6 residual blocks, CycleGAN's for 128×128 images. Shapes, arguments and errors are those of ResNet."""

    blocks = 6
    state_dict_formats = (layouts.reference(6),)


class ResNet9(ResNet):
    """9 residual blocks, CycleGAN's from 256×256 up. Shapes, arguments and errors are those of ResNet."""

    blocks = 9
    state_dict_formats = (layouts.reference(9),)


class ResidualBlock(nn.Module):
    """h + two 3×3 convolutions of h, without a ReLU after the sum (Gross & Wilber 2016, as Johnson et al. have it)."""

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
    """What doubles H and W."""
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
    raise ValueError(f"norm must be 'instance', 'batch' or 'none', not {norm!r}")


def _check(size: Sequence[int]) -> None:
    """From 8 px up: reflection in the blocks, at a quarter of it, needs two."""
    divisor = ResNet.size_divisor
    if min(size) < 2 * divisor or any(side % divisor for side in size):
        height, width = (max(2 * divisor, -(-side // divisor) * divisor) for side in size)
        raise ValueError(
            f"a residual generator takes sides that are multiples of {divisor}, from {2 * divisor} up, "
            f"not {size[0]}×{size[1]}: {height}×{width} would fit"
        )
