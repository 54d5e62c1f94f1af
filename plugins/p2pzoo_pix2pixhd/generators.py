"""The coarse-to-fine generators of pix2pixHD: G1, and G2 around a G1 at half the resolution.

arXiv:1711.11585, §3.2 and its appendix, whose names are kept:

    c7s1-k  7×7 convolution to k channels, stride 1, reflection padding
    dk      3×3 convolution, stride 2
    Rk      two 3×3 convolutions with reflection padding; the block's input is added to their output
    uk      3×3 transposed convolution, stride 2

A norm and ReLU follow each layer but the last; in a block only the norm follows the second convolution. Tanh follows
the last layer.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo.plugin import AddedLater
from p2pzoo.utils.group_norm import count_groups
from p2pzoo_pix2pixhd import state_dict_formats as formats
from p2pzoo_pix2pixhd.boundaries import with_boundaries

Count = Annotated[int, Field(ge=1)]
Norm = Literal["instance", "group"]


class GlobalGenerator(nn.Module):
    """G1: c7s1-64, d128, d256, d512, d1024, nine R1024, u512, u256, u128, u64, c7s1-Cout.

    x  (B, in_channels, H, W) in [-1, 1]; H and W are multiples of `size_divisor` = 2**downsamplings, at least
       twice that
    ŷ  (B, out_channels, H, W) in [-1, 1]

    in_channels, out_channels, size  channels of x, channels of y, and (H, W) of both
    width          channels of the first layer
    downsamplings  layers of stride 2; each halves H and W and doubles the channels
    blocks         residual blocks between the downsamplings and the upsamplings
    edges          add the boundary map of x as a channel (see boundaries.py)
    norm           "instance", without affine parameters, is the paper's; "group" (Wu & He 2018, arXiv:1803.08494) is
                   for processes: it keeps the level of a constant plane, such as the time

    Raises ValueError for another norm, and for a size that does not fit, here or in `forward`.

    >>> import torch
    >>> G = GlobalGenerator(3, 3, (32, 32), width=4, blocks=1)
    >>> G(torch.zeros(1, 3, 32, 64)).shape
    torch.Size([1, 3, 32, 64])
    """

    state_dict_formats = (formats.GLOBAL_GENERATOR,)

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
        norm: Annotated[Norm, AddedLater] = "instance",
    ) -> None:
        super().__init__()
        self.edges = edges
        self.size_divisor = 2**downsamplings
        _check(size, self.size_divisor)
        self.trunk = _coarse(in_channels + edges, width, downsamplings, blocks, norm)
        self.to_image = _to_image(width, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        _check(x.shape[2:], self.size_divisor)
        return self.to_image(self.trunk(with_boundaries(x) if self.edges else x))


class LocalEnhancer(nn.Module):
    """G2: c7s1-32, d64, plus the last features of G1 on x at half its size, then three R64, u32, c7s1-Cout.

    Coarse to fine (§3.2): a first recipe trains `pix2pixhd-global` on images of half the size. A second recipe has this
    generator with the same width, downsamplings, blocks and edges, and the first one's model.safetensors as
    `[init] generator`: these weights initialise the part `coarse`. The last layer of G1, to an image, is left out; all
    other weights of G2 are initialised as usual. Then both parts train together.

    x  (B, in_channels, H, W) in [-1, 1]; H and W are multiples of `size_divisor` = 2**(downsamplings + 1), at least
       twice that
    ŷ  (B, out_channels, H, W) in [-1, 1]

    in_channels, out_channels, size  channels of x, channels of y, and (H, W) of both
    width          channels of G1's first layer, an even number; the first layer of G2 has half as many
    downsamplings  layers of stride 2 in G1
    blocks         residual blocks in G1
    local_blocks   residual blocks of G2, after the sum
    edges          add the boundary map of x as a channel, also for G1 at half the size (see boundaries.py)
    norm           "instance", without affine parameters, is the paper's; "group" (Wu & He 2018, arXiv:1803.08494) is
                   for processes: it keeps the level of a constant plane, such as the time

    Raises ValueError for an odd width, another norm, and for a size that does not fit, here or in `forward`.

    >>> import torch
    >>> G = LocalEnhancer(3, 3, (64, 64), width=4, blocks=1, local_blocks=1)
    >>> G(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 3, 64, 64])
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
        norm: Annotated[Norm, AddedLater] = "instance",
    ) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"width must be even, because the enhancer has half of it, not {width}")
        self.edges = edges
        self.size_divisor = 2 ** (downsamplings + 1)
        _check(size, self.size_divisor)
        channels, local = in_channels + edges, width // 2
        self.coarse = _coarse(channels, width, downsamplings, blocks, norm)
        self.down = nn.Sequential(_c7s1(channels, local, norm), _d(local, norm))
        self.up = nn.Sequential(*(ResidualBlock(width, norm) for _ in range(local_blocks)), _u(local, norm))
        self.to_image = _to_image(local, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        _check(x.shape[2:], self.size_divisor)
        x = with_boundaries(x) if self.edges else x
        half = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return self.to_image(self.up(self.down(x) + self.coarse(half)))

    def load_smaller(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A complete state dict: the tensors of a GlobalGenerator as `coarse`, and this network's own for the rest.

        Raises ValueError if `tensors` is not the state dict of a GlobalGenerator of this depth.
        """
        own = self.state_dict()
        expected = {name.replace("coarse.", "trunk.", 1) for name in own if name.startswith(("coarse.", "to_image."))}
        if tensors.keys() != expected:
            raise ValueError(
                "holds neither such a generator nor a pix2pixhd-global with the same downsamplings and blocks"
            )
        coarse = {name.replace("trunk.", "coarse.", 1): t for name, t in tensors.items() if name.startswith("trunk.")}
        return {**own, **coarse}


class ResidualBlock(nn.Module):
    """Rk. No ReLU follows the sum."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_normed(nn.Conv2d(channels, channels, 3), norm),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            _norm(norm, channels),
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


def _coarse(entering: int, width: int, downsamplings: int, blocks: int, norm: Norm) -> nn.Sequential:
    """G1 without its last layer: (B, entering, H, W) -> (B, width, H, W)."""
    widths = [width * 2**i for i in range(downsamplings)]
    return nn.Sequential(
        _c7s1(entering, width, norm),
        *(_d(entering, norm) for entering in widths),
        *(ResidualBlock(2 * widths[-1], norm) for _ in range(blocks)),
        *(_u(leaving, norm) for leaving in reversed(widths)),
    )


def _c7s1(entering: int, leaving: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(nn.ReflectionPad2d(3), *_normed(nn.Conv2d(entering, leaving, 7), norm))


def _d(entering: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(*_normed(nn.Conv2d(entering, 2 * entering, 3, stride=2, padding=1), norm))


def _u(leaving: int, norm: Norm) -> nn.Sequential:
    up = nn.ConvTranspose2d(2 * leaving, leaving, 3, stride=2, padding=1, output_padding=1)
    return nn.Sequential(*_normed(up, norm))


def _to_image(entering: int, leaving: int) -> nn.Sequential:
    return nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(entering, leaving, 7), nn.Tanh())


def _normed(convolution: nn.Conv2d | nn.ConvTranspose2d, norm: Norm) -> list[nn.Module]:
    return [convolution, _norm(norm, convolution.out_channels), nn.ReLU()]


def _norm(norm: Norm, channels: int) -> nn.Module:
    match norm:
        case "instance":
            return nn.InstanceNorm2d(channels)
        case "group":
            return nn.GroupNorm(count_groups(channels), channels)
    raise ValueError(f"norm must be 'instance' or 'group', not {norm!r}")


def _check(size: Sequence[int], divisor: int) -> None:
    """Raise ValueError for a size that does not fit: reflection padding in the innermost blocks needs two pixels."""
    if min(size) < 2 * divisor or any(side % divisor for side in size):
        height, width = (max(2 * divisor, -(-side // divisor) * divisor) for side in size)
        raise ValueError(
            f"this generator needs sides that are multiples of {divisor}, at least {2 * divisor}, "
            f"not {size[0]}×{size[1]}: {height}×{width} would fit"
        )
