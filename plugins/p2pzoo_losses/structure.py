"""Structural similarity as a loss, computed in fp32 even if the networks are not.

Images are scaled to [0, 1]. Gaussian window of 11 px, σ = 1.5, K1 = 0.01, K2 = 0.03, for all windows inside the image
and all channels.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from p2pzoo.plugin import StepOutputs
from p2pzoo.utils.plurals import format_count

WINDOW, SIGMA = 11, 1.5  # px (Wang et al. 2004)
C1, C2 = 0.01**2, 0.03**2
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, from the finest scale on
MIN_SIMILARITY = 1e-4  # powers of smaller means have huge gradients, and negative means have no powers


class SSIM:
    """1 − SSIM (Wang et al. 2004, doi:10.1109/TIP.2003.819861): 0 (equal) to 2. ValueError for sides below 11 px."""

    side = "generator"
    minimum = 0.0

    def __init__(self, size: tuple[int, int]) -> None:
        _check_size(WINDOW, size, "ssim")

    def __call__(self, out: StepOutputs) -> Tensor:
        with torch.autocast(out.y.device.type, enabled=False):
            ssim, _ = similarities(to_unit_range(out.y), to_unit_range(out.y_hat))
            return 1 - ssim.mean()


class MultiScaleSSIM:
    """1 − MS-SSIM (Wang et al. 2003, doi:10.1109/ACSSC.2003.1292216): 0 (equal) to 1.

    Contrast and structure at each scale, luminance at the coarsest. 2×2 means give the next coarser scale. The product
    of the mean over windows, to the power of the scale's exponent, is computed per image and channel. Means are clamped
    to at least 1e-4; a clamped scale gives no gradient.

    scales  number of scales, 1 to 5: the finest of the paper's five, with exponents scaled to the sum 1. k scales need
            sides of at least 11 · 2ᵏ⁻¹ px: 176 px for five, 88 px for four

    Raises ValueError for smaller images.
    """

    side = "generator"
    minimum = 0.0

    def __init__(self, size: tuple[int, int], *, scales: Annotated[int, Field(ge=1, le=5)] = 5) -> None:
        if min(size) < _smallest_side(scales):
            fitting = [k for k in range(1, scales) if min(size) >= _smallest_side(k)]
            hint = f"set scales = {fitting[-1]}" if fitting else f"scales = 1 needs {WINDOW} px"
            _check_size(_smallest_side(scales), size, f"ms-ssim of {format_count(scales, 'scale')}", f": {hint}")
        self.exponents = [exponent / sum(EXPONENTS[:scales]) for exponent in EXPONENTS[:scales]]

    def __call__(self, out: StepOutputs) -> Tensor:
        with torch.autocast(out.y.device.type, enabled=False):
            y, y_hat = to_unit_range(out.y), to_unit_range(out.y_hat)
            *finer, coarsest = self.exponents
            product = y.new_ones(y.shape[:2])
            for exponent in finer:
                _, structure = similarities(y, y_hat)
                product = product * _power(structure, exponent)
                y, y_hat = F.avg_pool2d(y, 2), F.avg_pool2d(y_hat, 2)
            ssim, _ = similarities(y, y_hat)
            return 1 - (product * _power(ssim, coarsest)).mean()


def similarities(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM of each window, and its factor for contrast and structure: (B, C, H − 10, W − 10) each.

    a, b  (B, C, H, W) in [0, 1]
    """
    mean_a, mean_b = gaussian_mean(a), gaussian_mean(b)
    variances = gaussian_mean(a * a) - mean_a**2 + gaussian_mean(b * b) - mean_b**2
    covariance = gaussian_mean(a * b) - mean_a * mean_b
    structure = (2 * covariance + C2) / (variances + C2)
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return luminance * structure, structure


def gaussian_mean(images: Tensor) -> Tensor:
    """The Gaussian means of all windows inside the image, (B, C, H, W) -> (B, C, H − 10, W − 10)."""
    distance = torch.arange(WINDOW, device=images.device, dtype=images.dtype) - WINDOW // 2
    window = torch.exp(-(distance**2) / (2 * SIGMA**2))
    window = window / window.sum()
    batch, channels, height, width = images.shape
    planes = images.reshape(batch * channels, 1, height, width)
    planes = F.conv2d(F.conv2d(planes, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
    return planes.view(batch, channels, *planes.shape[2:])


def to_unit_range(images: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1], fp32."""
    return (images.float() + 1) / 2


def _power(similarity: Tensor, exponent: float) -> Tensor:
    """The power of the mean over the windows of an image: (B, C)."""
    return similarity.mean((2, 3)).clamp(min=MIN_SIMILARITY) ** exponent


def _smallest_side(scales: int) -> int:
    return int(WINDOW * 2 ** (scales - 1))


def _check_size(smallest: int, size: tuple[int, int], name: str, hint: str = "") -> None:
    if min(size) < smallest:
        raise ValueError(f"{name} needs sides of at least {smallest} px, not {size[0]}×{size[1]}{hint}")
