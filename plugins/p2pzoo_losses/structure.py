"""Structural similarity as a loss, computed in fp32 whatever the networks are computed in.

Images are scaled to [0, 1]; Gaussian window of 11 px, σ = 1.5, K1 = 0.01, K2 = 0.03, over windows that lie wholly
inside the image, all channels alike. Imports torch and the contracts.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from p2pzoo.plugin import StepOutputs

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents by Wang et al. 2003, the finest scale first
LEAST = 1e-4  # what a mean similarity counts as at least: powers of less have no gradient to speak of, or no value


class SSIM:
    """1 − SSIM (Wang et al. 2004, doi:10.1109/TIP.2003.819861): 0 (equal) to 2. ValueError for sides below 11 px."""

    side = "generator"
    minimum = 0.0

    def __init__(self, size: tuple[int, int]) -> None:
        _refuse_below(WINDOW, size, "ssim")

    def __call__(self, out: StepOutputs) -> Tensor:
        with torch.autocast(out.y.device.type, enabled=False):
            whole, _ = similarities(unit(out.y), unit(out.y_hat))
            return 1 - whole.mean()


class MultiScaleSSIM:
    """1 − MS-SSIM (Wang et al. 2003, doi:10.1109/ACSSC.2003.1292216): 0 (equal) to 1.

    Contrast and structure at each scale, luminance at the coarsest, each scale half the one before by means of 2×2. The
    product of their means over an image's windows, to the power of the scale's exponent, is taken image by image and
    channel by channel. Means below 1e-4 count as that, and leave G without a gradient from that scale.

    Args:
        scales: the first of the paper's five, their exponents scaled to the sum 1. k scales take sides from
            11 · 2ᵏ⁻¹ px up, which is 176 px for five and 88 px for four; ValueError below.
    """

    side = "generator"
    minimum = 0.0

    def __init__(self, size: tuple[int, int], *, scales: Annotated[int, Field(ge=1, le=5)] = 5) -> None:
        if min(size) < _smallest(scales):
            fitting = [k for k in range(1, scales) if min(size) >= _smallest(k)]
            hint = f"set scales = {fitting[-1]}" if fitting else f"scales = 1 takes {WINDOW} px"
            _refuse_below(_smallest(scales), size, f"ms-ssim of {scales} scales", f": {hint}")
        self.exponents = [exponent / sum(SCALES[:scales]) for exponent in SCALES[:scales]]

    def __call__(self, out: StepOutputs) -> Tensor:
        with torch.autocast(out.y.device.type, enabled=False):
            y, y_hat = unit(out.y), unit(out.y_hat)
            *finer, coarsest = self.exponents
            product = y.new_ones(y.shape[:2])
            for exponent in finer:
                _, structure = similarities(y, y_hat)
                product = product * _power(structure, exponent)
                y, y_hat = F.avg_pool2d(y, 2), F.avg_pool2d(y_hat, 2)
            whole, _ = similarities(y, y_hat)
            return 1 - (product * _power(whole, coarsest)).mean()


def similarities(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM of each window, and its factor that compares contrast and structure: (B, C, H − 10, W − 10) each.

    a, b  (B, C, H, W) in [0, 1]
    """
    mean_a, mean_b = blurred(a), blurred(b)
    variances = blurred(a * a) - mean_a**2 + blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    structure = (2 * covariance + C2) / (variances + C2)
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return luminance * structure, structure


def blurred(images: Tensor) -> Tensor:
    """Gaussian means of all windows inside the image, (B, C, H, W) -> (B, C, H − 10, W − 10)."""
    distance = torch.arange(WINDOW, device=images.device, dtype=images.dtype) - WINDOW // 2
    window = torch.exp(-(distance**2) / (2 * SIGMA**2))
    window = window / window.sum()
    batch, channels, height, width = images.shape
    planes = images.reshape(batch * channels, 1, height, width)
    planes = F.conv2d(F.conv2d(planes, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
    return planes.view(batch, channels, *planes.shape[2:])


def unit(images: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1], fp32."""
    return (images.float() + 1) / 2


def _power(similarity: Tensor, exponent: float) -> Tensor:
    """Of the mean over an image's windows: (B, C)."""
    return similarity.mean((2, 3)).clamp(min=LEAST) ** exponent


def _smallest(scales: int) -> int:
    return int(WINDOW * 2 ** (scales - 1))


def _refuse_below(smallest: int, size: tuple[int, int], name: str, hint: str = "") -> None:
    if min(size) < smallest:
        raise ValueError(f"{name} takes sides from {smallest} px up, not {size[0]}×{size[1]}{hint}")
