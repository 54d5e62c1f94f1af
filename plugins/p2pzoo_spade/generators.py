"""SPADE: label maps modulate the normalised activations of each layer. Plain norm layers would remove them.

Park et al. 2019 (arXiv:1903.07291), §3 and its appendix, without the image encoder (the VAE of §3).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization

from p2pzoo.utils.group_norm import count_groups

Norm = Literal["batch", "instance", "group"]

MAX_DEFAULT_UPSAMPLINGS = 6  # the paper's: 4×4 -> 256×256
MIN_DEFAULT_START = 4  # px per side of the first block (the paper's)
MAX_WIDTH_FACTOR = 16  # 1024 channels at width 64 (the paper's)


class Spade(nn.Module):
    """A 3×3 convolution of x at the smallest size, then SPADE residual blocks with nearest-neighbour upsampling.

    At 256×256: blocks to 1024, 1024, 1024, 512, 256, 128, 64 channels at 4, 8, 16, 32, 64, 128, 256 px, then ReLU, a
    3×3 convolution and Tanh. All convolutions have spectral norm. The input of the first layer is x itself, resized, in
    place of the paper's random vector: the paper finds this variant as good. So this generator has no z.

    x  (B, in_channels, H, W) in [-1, 1], a label map: one-hot channels or palette colours. It is resized to the nearest
       pixels, which mixes no values. H and W are multiples of `size_divisor` = 2**upsamplings, at least twice that
    ŷ  (B, out_channels, H, W) in [-1, 1]

    in_channels, out_channels  of x and y
    size         (H, W) of the training images
    width        channels of the last block. The i-th from the end has min(2**i, 16) · width; the hidden layer of each
                 modulation has 2 · width (128 in the paper, at width 64)
    upsamplings  one less than the number of blocks; unset: as often as 2 divides both sides with at least 4 px left,
                 at most 6
    norm         the norm that is modulated, without affine parameters: "batch" (the paper's), "instance" or "group".
                 In training at batch 1 the first two are the same. "group" (Wu & He 2018, arXiv:1803.08494): groups of
                 at least 4 channels, at most 32

    Raises ValueError for an unknown norm, and for a size that does not fit, here or in `forward`.

    >>> G = Spade(3, 3, (32, 32), width=4)
    >>> G(torch.zeros(1, 3, 32, 64)).shape
    torch.Size([1, 3, 32, 64])
    """

    known_failures = {"modes": "its spectral norm does one power iteration per forward pass in training"}  # noqa: RUF012

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        width: Annotated[int, Field(ge=1)] = 64,
        upsamplings: Annotated[int, Field(ge=1)] | None = None,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        upsamplings = upsamplings or _upsamplings_for(size)
        self.size_divisor = 2**upsamplings
        _check(size, self.size_divisor)
        widths = [width * min(2**i, MAX_WIDTH_FACTOR) for i in reversed(range(upsamplings + 1))]
        self.enter = _conv(in_channels, widths[0])
        self.blocks = nn.ModuleList(
            SpadeResBlock(entering, leaving, in_channels, 2 * width, norm)
            for entering, leaving in pairwise([widths[0], *widths])
        )
        self.to_image = nn.Sequential(nn.ReLU(), _conv(width, out_channels), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        _check(x.shape[2:], self.size_divisor)
        height, width = (side // self.size_divisor for side in x.shape[2:])
        h = self.enter(F.interpolate(x, (height, width), mode="nearest"))
        for i, block in enumerate(self.blocks):
            if i:
                h = F.interpolate(h, scale_factor=2, mode="nearest")
            h = block(h, F.interpolate(x, h.shape[2:], mode="nearest"))
        return self.to_image(h)


class SpadeResBlock(nn.Module):
    """h + twice (SPADE, ReLU, 3×3 convolution) of h.

    If the number of channels changes, SPADE, ReLU and a 1×1 convolution of h replace the first h of this sum.

    h  (B, entering, H, W) -> (B, leaving, H, W);  x  (B, labels, H, W)
    """

    def __init__(self, entering: int, leaving: int, labels: int, hidden: int, norm: Norm) -> None:
        super().__init__()
        between = min(entering, leaving)
        self.modulations = nn.ModuleList([Modulation(c, labels, hidden, norm) for c in (entering, between)])
        self.convolutions = nn.ModuleList([_conv(entering, between), _conv(between, leaving)])
        self.activation = nn.ReLU()
        self.skip_modulation = self.skip_convolution = None
        if entering != leaving:
            self.skip_modulation = Modulation(entering, labels, hidden, norm)
            self.skip_convolution = _conv(entering, leaving, kernel=1)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        skip = h
        if self.skip_modulation is not None and self.skip_convolution is not None:
            skip = self.skip_convolution(self.activation(self.skip_modulation(h, x)))
        for modulation, convolution in zip(self.modulations, self.convolutions, strict=True):
            h = convolution(self.activation(modulation(h, x)))
        return skip + h


class Modulation(nn.Module):
    """SPADE, Eq. 1: (1 + γ(x)) · (h - μ) / σ + β(x). γ and β are two 3×3 convolutions of x, with a value at each pixel.

    μ and σ are per channel; with group norm, per group of channels. Eq. 1 has γ instead of 1 + γ; with the 1, γ starts
    near 0, as in FiLM (arXiv:1709.07871).

    h  (B, channels, H, W);  x  (B, labels, H, W)
    """

    def __init__(self, channels: int, labels: int, hidden: int, norm: Norm) -> None:
        super().__init__()
        self.normalise = _norm(norm, channels)
        self.read = nn.Sequential(_conv(labels, hidden), nn.ReLU())
        self.gamma = _conv(hidden, channels)
        self.beta = _conv(hidden, channels)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        hidden = self.read(x)
        return (1 + self.gamma(hidden)) * self.normalise(h) + self.beta(hidden)


def _norm(norm: Norm, channels: int) -> nn.Module:
    match norm:
        case "batch":
            return nn.BatchNorm2d(channels, affine=False)
        case "instance":
            return nn.InstanceNorm2d(channels, affine=False)
        case "group":
            return nn.GroupNorm(count_groups(channels), channels, affine=False)
    raise ValueError(f"norm must be 'batch', 'instance' or 'group', not {norm!r}")


class SpectralNorm(nn.Module):
    """weight / σ, with σ its largest singular value, by one power iteration per training step.

    Miyato et al. 2018 (arXiv:1802.05957), Algorithm 1. torch's own spectral_norm does 15 iterations when a layer is
    built, which would be most of the time that loading a model takes.

    weight  (leaving, ...) -> the same shape
    """

    def __init__(self, leaving: int) -> None:
        super().__init__()
        self.register_buffer("u", F.normalize(torch.randn(leaving), dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        with _without_autocast(weight):  # σ of bf16 products is off by 0.3%
            matrix = weight.flatten(1)
            with torch.no_grad():
                v = F.normalize(matrix.t() @ self.u, dim=0)
                if self.training:
                    self.u.copy_(F.normalize(matrix @ v, dim=0))
                u = self.u.clone()  # the next forward pass changes self.u, maybe before this one's backward pass
            return weight / (u @ (matrix @ v))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """An assignment to the layer's weight sets the unnormalised weight."""
        return weight


def _without_autocast(weight: Tensor) -> torch.autocast:
    """The device "meta" has no autocast."""
    return torch.autocast("cpu" if weight.is_meta else weight.device.type, enabled=False)


def _conv(entering: int, leaving: int, kernel: int = 3) -> nn.Conv2d:
    """A convolution that keeps H and W, under spectral norm."""
    convolution = nn.Conv2d(entering, leaving, kernel, padding=kernel // 2)
    register_parametrization(convolution, "weight", SpectralNorm(leaving))
    return convolution


def _upsamplings_for(size: tuple[int, int]) -> int:
    def is_valid(count: int) -> bool:
        divisor = 2**count
        return not any(side % divisor for side in size) and min(size) // divisor >= MIN_DEFAULT_START

    return max(filter(is_valid, range(1, MAX_DEFAULT_UPSAMPLINGS + 1)), default=1)


def _check(size: Sequence[int], divisor: int) -> None:
    """Raise ValueError for a size that does not fit: norms need more than one value per channel."""
    if min(size) < 2 * divisor or any(side % divisor for side in size):
        height, width = (max(2 * divisor, -(-side // divisor) * divisor) for side in size)
        raise ValueError(
            f"this generator needs sides that are multiples of {divisor}, at least {2 * divisor}, "
            f"not {size[0]}×{size[1]}: {height}×{width} would fit"
        )
