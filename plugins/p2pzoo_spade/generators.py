"""SPADE: label maps modulate normalised activations at every layer, where a plain network would wash them away.

Park et al. 2019 (arXiv:1903.07291), §3 and its appendix, without the image encoder (§3's VAE). Imports torch and
pydantic's Field.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization

Norm = Literal["batch", "instance"]

MOST_UPSAMPLINGS_BY_DEFAULT = 6  # 4×4 -> 256×256
SMALLEST_START_BY_DEFAULT = 4
WIDEST = 16


class Spade(nn.Module):
    """x at the smallest size, a 3×3 convolution, and SPADE residual blocks with nearest-neighbour upsampling between.

    At 256×256: blocks to 1024, 1024, 1024, 512, 256, 128, 64 channels at 4, 8, 16, 32, 64, 128, 256 px, then ReLU, a
    3×3 convolution and Tanh. All convolutions have spectral norm. In place of the paper's random vector the first layer
    sees x itself, resized, a variant that the paper compares and finds as good; so this generator has no z.

    x  (B, in_channels, H, W) in [-1, 1], a label map: one-hot channels or palette colours. It is resized by taking
       pixels, never by mixing them. H and W any multiples of `size_divisor` = 2**upsamplings, from twice that up
    ŷ  (B, out_channels, H, W) in [-1, 1]

    Args:
        in_channels, out_channels: of x and y.
        size: (H, W) of the training images.
        width: channels of the last block; the i-th from the end has min(2**i, 16) · width, and what each modulation
            computes from x has 2 · width (the paper's 128 at 64).
        upsamplings: one less than there are blocks. None: as often as 2 divides both sides down to 4 px, at most 6.
        norm: what is modulated, without parameters of its own. "batch", the paper's, is instance norm at batch 1 in
            training.

    Raises:
        ValueError: an unknown norm; a size, here or in forward, that does not fit.
    """

    known_failures = {"modes": "its spectral norm takes a power iteration in each forward pass in training"}  # noqa: RUF012

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
        widths = [width * min(2**i, WIDEST) for i in reversed(range(upsamplings + 1))]
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
    """h + twice (SPADE, ReLU, 3×3 convolution) of h; where channels change, h passes through SPADE, ReLU and a 1×1
    convolution before it is added.

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
        skipped = h
        if self.skip_modulation is not None and self.skip_convolution is not None:
            skipped = self.skip_convolution(self.activation(self.skip_modulation(h, x)))
        for modulation, convolution in zip(self.modulations, self.convolutions, strict=True):
            h = convolution(self.activation(modulation(h, x)))
        return skipped + h


class Modulation(nn.Module):
    """SPADE, Eq. 1: (1 + γ(x)) · (h - μ) / σ + β(x), with γ and β of two 3×3 convolutions of x at every pixel.

    μ and σ are those of each channel. The 1 lets γ begin near 0, as in FiLM (arXiv:1709.07871); Eq. 1 has γ alone.

    h  (B, channels, H, W);  x  (B, labels, H, W)
    """

    def __init__(self, channels: int, labels: int, hidden: int, norm: Norm) -> None:
        super().__init__()
        kinds = {"batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d}
        if norm not in kinds:
            raise ValueError(f"norm must be 'batch' or 'instance', not {norm!r}")
        self.normalise = kinds[norm](channels, affine=False)
        self.read = nn.Sequential(_conv(labels, hidden), nn.ReLU())
        self.gamma = _conv(hidden, channels)
        self.beta = _conv(hidden, channels)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        read = self.read(x)
        return (1 + self.gamma(read)) * self.normalise(h) + self.beta(read)


class SpectralNorm(nn.Module):
    """weight / σ, its largest singular value, by one power iteration per training step (Miyato et al. 2018,
    arXiv:1802.05957, Algorithm 1). torch's own takes 15 for each weight that is made, most of the time that loading a
    model would take.

    weight  (leaving, ...) -> the same shape
    """

    def __init__(self, leaving: int) -> None:
        super().__init__()
        self.register_buffer("u", F.normalize(torch.randn(leaving), dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(matrix.t() @ self.u, dim=0)
            if self.training:
                self.u.copy_(F.normalize(matrix @ v, dim=0))
            u = self.u.clone()  # as it is now: the next pass moves it before this one's gradients are taken
        return weight / (u @ (matrix @ v))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is assigned to the weight is what it is computed from."""
        return weight


def _conv(entering: int, leaving: int, kernel: int = 3) -> nn.Conv2d:
    """A convolution that keeps H and W, under spectral norm."""
    convolution = nn.Conv2d(entering, leaving, kernel, padding=kernel // 2)
    register_parametrization(convolution, "weight", SpectralNorm(leaving))
    return convolution


def _upsamplings_for(size: tuple[int, int]) -> int:
    def fits(count: int) -> bool:
        divisor = 2**count
        return not any(side % divisor for side in size) and min(size) // divisor >= SMALLEST_START_BY_DEFAULT

    return max(filter(fits, range(1, MOST_UPSAMPLINGS_BY_DEFAULT + 1)), default=1)


def _check(size: Sequence[int], divisor: int) -> None:
    """From twice the divisor up: norms need more than one value."""
    if min(size) < 2 * divisor or any(side % divisor for side in size):
        height, width = (max(2 * divisor, -(-side // divisor) * divisor) for side in size)
        raise ValueError(
            f"this generator takes sides that are multiples of {divisor}, from {2 * divisor} up, "
            f"not {size[0]}×{size[1]}: {height}×{width} would fit"
        )
