"""The coarse-to-fine generators of pix2pixHD: G1, and G2 around a G1 at half the resolution.

arXiv:1711.11585, §3.2 and its appendix, whose names are kept:

    c7s1-k  7×7 convolution to k channels, stride 1, reflection padding
    dk      3×3 convolution, stride 2
    Rk      two 3×3 convolutions with reflection padding; what entered is added to what leaves
    uk      3×3 transposed convolution, stride 2

each but the last followed by instance norm and ReLU (in a block the second by the norm alone), the last by Tanh.
Imports torch, pydantic's Field, and this plugin's boundary maps.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo_pix2pixhd import layouts
from p2pzoo_pix2pixhd.boundaries import with_boundaries

Count = Annotated[int, Field(ge=1)]


class GlobalGenerator(nn.Module):
    """G1: c7s1-64, d128, d256, d512, d1024, nine R1024, u512, u256, u128, u64, c7s1-Cout.

    x  (B, in_channels, H, W) in [-1, 1]; H and W any multiples of `size_divisor` = 2**downsamplings, from twice that up
    ŷ  (B, out_channels, H, W) in [-1, 1]

    Args:
        in_channels, out_channels, size: of x and y, and (H, W) of both.
        width: channels of the first layer.
        downsamplings: each halves H and W and doubles the channels.
        blocks: residual blocks between down and up.
        edges: the boundary map of x joins it as a channel (see boundaries.py).

    Raises:
        ValueError: a size, here or in forward, that does not fit.
    """

    state_dict_formats = (layouts.GLOBAL_GENERATOR,)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        width: Count = 64,
        downsamplings: Count = 4,
        blocks: Count = 9,
        edges: bool = False,
    ) -> None:
        super().__init__()
        self.edges = edges
        self.size_divisor = 2**downsamplings
        _check(size, self.size_divisor)
        self.trunk = _coarse(in_channels + edges, width, downsamplings, blocks)
        self.to_image = _to_image(width, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        _check(x.shape[2:], self.size_divisor)
        return self.to_image(self.trunk(with_boundaries(x) if self.edges else x))


class LocalEnhancer(nn.Module):
    """G2: c7s1-32, d64, to which the last features of G1 on x at half its size are added, three R64, u32, c7s1-Cout.

    Coarse to fine (§3.2): first a recipe trains `pix2pixhd-global` on images of half the size; its model.safetensors as
    `[init] generator` of a recipe with this generator, of the same width, downsamplings, blocks and edges, is where the
    part `coarse` begins. G1's own last layer, to an image, has no place here and is left out; the rest of G2 begins as
    always. Then both train together.

    x  (B, in_channels, H, W) in [-1, 1]; H and W any multiples of `size_divisor` = 2**(downsamplings + 1), from twice
       that up
    ŷ  (B, out_channels, H, W) in [-1, 1]

    Args:
        in_channels, out_channels, size: of x and y, and (H, W) of both.
        width: of G1, and even: the layers around it begin with half as many channels.
        downsamplings, blocks: of G1.
        local_blocks: residual blocks after the sum.
        edges: the boundary map of x joins it as a channel, for G1 at half the size too (see boundaries.py).

    Raises:
        ValueError: an odd width; a size, here or in forward, that does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        width: Annotated[int, Field(ge=2, multiple_of=2)] = 64,
        downsamplings: Count = 4,
        blocks: Count = 9,
        local_blocks: Count = 3,
        edges: bool = False,
    ) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"width must be even, as the enhancer has half of it, not {width}")
        self.edges = edges
        self.size_divisor = 2 ** (downsamplings + 1)
        _check(size, self.size_divisor)
        entering, local = in_channels + edges, width // 2
        self.coarse = _coarse(entering, width, downsamplings, blocks)
        self.down = nn.Sequential(_c7s1(entering, local), _d(local))
        self.up = nn.Sequential(*(ResidualBlock(width) for _ in range(local_blocks)), _u(local))
        self.to_image = _to_image(local, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        _check(x.shape[2:], self.size_divisor)
        x = with_boundaries(x) if self.edges else x
        half = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return self.to_image(self.up(self.down(x) + self.coarse(half)))

    def load_smaller(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a whole GlobalGenerator as this network's `coarse`, with its own for the rest."""
        own = self.state_dict()
        whole = {name.replace("coarse.", "trunk.", 1) for name in own if name.startswith(("coarse.", "to_image."))}
        if tensors.keys() != whole:
            raise ValueError(
                "holds neither such a generator nor a pix2pixhd-global of as many downsamplings and blocks"
            )
        coarse = {name.replace("trunk.", "coarse.", 1): t for name, t in tensors.items() if name.startswith("trunk.")}
        return {**own, **coarse}


class ResidualBlock(nn.Module):
    """Rk. The sum is not passed through a ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_normed(nn.Conv2d(channels, channels, 3)),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


def _coarse(entering: int, width: int, downsamplings: int, blocks: int) -> nn.Sequential:
    """G1 without its last layer: (B, entering, H, W) -> (B, width, H, W)."""
    widths = [width * 2**i for i in range(downsamplings)]
    return nn.Sequential(
        _c7s1(entering, width),
        *(_d(entering) for entering in widths),
        *(ResidualBlock(2 * widths[-1]) for _ in range(blocks)),
        *(_u(leaving) for leaving in reversed(widths)),
    )


def _c7s1(entering: int, leaving: int) -> nn.Sequential:
    return nn.Sequential(nn.ReflectionPad2d(3), *_normed(nn.Conv2d(entering, leaving, 7)))


def _d(entering: int) -> nn.Sequential:
    return nn.Sequential(*_normed(nn.Conv2d(entering, 2 * entering, 3, stride=2, padding=1)))


def _u(leaving: int) -> nn.Sequential:
    return nn.Sequential(*_normed(nn.ConvTranspose2d(2 * leaving, leaving, 3, stride=2, padding=1, output_padding=1)))


def _to_image(entering: int, leaving: int) -> nn.Sequential:
    return nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(entering, leaving, 7), nn.Tanh())


def _normed(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    return [convolution, nn.InstanceNorm2d(convolution.out_channels), nn.ReLU()]


def _check(size: Sequence[int], divisor: int) -> None:
    """From twice the divisor up: reflection in the innermost blocks needs two pixels."""
    if min(size) < 2 * divisor or any(side % divisor for side in size):
        height, width = (max(2 * divisor, -(-side // divisor) * divisor) for side in size)
        raise ValueError(
            f"this generator takes sides that are multiples of {divisor}, from {2 * divisor} up, "
            f"not {size[0]}×{size[1]}: {height}×{width} would fit"
        )
