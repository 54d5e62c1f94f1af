"""Full-reference image metrics: L1, PSNR, SSIM. Imports torch and kornia.

The protocol of all three: images are floats as the generator made them, neither rounded to 8 bit nor clipped. All
channels have equal weight; there is no conversion to luminance. Each image is measured separately, so a number does
not depend on the batch size.
"""

import math
from collections.abc import Callable, Mapping

import torch
from kornia.metrics import ssim
from torch import Tensor

from p2pzoo.plugin import Batch, Dataset

SSIM_WINDOW = 11  # px, the side of Wang et al.'s Gaussian window
MIN_SQUARED_ERROR = 1e-10  # equal images then score 100 dB instead of infinity


class ImageMetric:
    """What the three share: the version in the protocol, and a constructor that ignores the dataset."""

    version = "1"
    better = "higher"

    def __init__(self, dataset: Dataset) -> None:
        pass


class L1(ImageMetric):
    """Mean |y − ŷ| of images in [-1, 1]: 0 (equal) to 2. The loss `l1` minimises this number.

    The mean over images is also the mean over all their values, because all images have one size.
    """

    better = "lower"

    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"l1": (B,)} for ŷ (B, C, H, W)."""
        return {"l1": _compare_each(batch.y, y_hat, lambda y, y_hat: (y - y_hat).abs().mean())}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        return {"value": _mean(statistics["l1"])}


class PSNR(ImageMetric):
    """Peak signal-to-noise ratio in dB, 10 log10(1 / mse), of images scaled to [0, 1].

    A mean squared error below 1e-10 counts as 1e-10, so equal images score 100 dB instead of infinity.
    """

    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"mse": (B,)}, in units of the [0, 1] scale, for ŷ (B, C, H, W)."""
        squared_errors = _compare_each(_to_unit(batch.y), _to_unit(y_hat), lambda y, y_hat: (y - y_hat).square().mean())
        return {"mse": squared_errors}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`value`: the mean of the images' PSNR; `pooled`: the PSNR of the mean squared error over all images."""
        mse = statistics["mse"].double()
        decibels = -10 * mse.clamp(min=MIN_SQUARED_ERROR).log10()
        return {
            "value": _mean(decibels),
            "pooled": -10 * math.log10(max(_mean(mse), MIN_SQUARED_ERROR)),
        }


class SSIM(ImageMetric):
    """Structural similarity (Wang et al. 2004) of images scaled to [0, 1]: at most 1 (equal).

    Gaussian window of 11 px, σ = 1.5, K1 = 0.01, K2 = 0.03; the mean over channels and over all windows that are
    entirely inside the image. Raises ValueError for images below 11 px a side.
    """

    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"ssim": (B,)} for ŷ (B, C, H, W)."""
        height, width = y_hat.shape[2:]
        if min(height, width) < SSIM_WINDOW:
            raise ValueError(f"ssim takes images from {SSIM_WINDOW} px a side up, not {height}×{width}")
        return {"ssim": _compare_each(_to_unit(batch.y), _to_unit(y_hat), _mean_ssim)}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        return {"value": _mean(statistics["ssim"])}


def _mean_ssim(y: Tensor, y_hat: Tensor) -> Tensor:
    return ssim(y[None], y_hat[None], SSIM_WINDOW, max_val=1.0, eps=0.0, padding="valid").mean()


def _compare_each(y: Tensor, y_hat: Tensor, compare: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`compare` for each pair of images (C, H, W) separately, in float32: (B,)."""
    pairs = zip(y.float().contiguous(), y_hat.float().contiguous(), strict=True)
    return torch.stack([compare(target, translation) for target, translation in pairs])


def _to_unit(images: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1]."""
    return (images.float() + 1) / 2


def _mean(values: Tensor) -> float:
    return values.double().mean().item()
