"""Full-reference image metrics: L1, PSNR, SSIM.

The protocol of all three: float images as the generator made them, neither rounded to 8 bit nor clipped; all
channels alike, no conversion to luminance. Each image is measured by itself, so that a number does not depend on
how the images were batched. Imports torch, kornia, and the contracts.
"""

import math
from collections.abc import Callable, Mapping

import torch
from kornia.metrics import ssim
from torch import Tensor

from p2pzoo.plugin import Batch, Dataset

SSIM_WINDOW = 11
LEAST_SQUARED_ERROR = 1e-10


class ImageMetric:
    """What the three share: a version for the protocol, and no use for the dataset that the zoo hands a metric."""

    version = "1"
    better = "higher"

    def __init__(self, dataset: Dataset) -> None:
        pass


class L1(ImageMetric):
    """Mean |y − ŷ| of images in [-1, 1]: 0 (equal) to 2. The number that the loss `l1` minimises.

    The mean over images is also the mean over all their values, as they have one size.
    """

    better = "lower"

    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"l1": (B,)} for ŷ (B, C, H, W)."""
        return {"l1": _each(batch.y, y_hat, lambda y, y_hat: (y - y_hat).abs().mean())}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        return {"value": _mean(statistics["l1"])}


class PSNR(ImageMetric):
    """Peak signal-to-noise ratio in dB, 10 log10(1 / mse), of images scaled to [0, 1].

    A mean squared error below 1e-10 counts as 1e-10, so equal images score 100 dB rather than infinity.
    """

    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"mse": (B,)}, in units of the [0, 1] scale, for ŷ (B, C, H, W)."""
        return {"mse": _each(_unit(batch.y), _unit(y_hat), lambda y, y_hat: (y - y_hat).square().mean())}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`value`: the mean of the images' PSNR; `pooled`: the PSNR of the mean squared error over all images."""
        mse = statistics["mse"].double()
        decibels = -10 * mse.clamp(min=LEAST_SQUARED_ERROR).log10()
        return {
            "value": _mean(decibels),
            "pooled": -10 * math.log10(max(_mean(mse), LEAST_SQUARED_ERROR)),
        }


class SSIM(ImageMetric):
    """Structural similarity (Wang et al. 2004) of images scaled to [0, 1]: at most 1 (equal).

    Gaussian window of 11 px, σ = 1.5, K1 = 0.01, K2 = 0.03; the mean over all windows that lie wholly inside the
    image, and over channels. Images have 11 px a side at least (ValueError).
    """

    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"ssim": (B,)} for ŷ (B, C, H, W)."""
        height, width = y_hat.shape[2:]
        if min(height, width) < SSIM_WINDOW:
            raise ValueError(f"ssim takes images from {SSIM_WINDOW} px a side up, not {height}×{width}")
        return {"ssim": _each(_unit(batch.y), _unit(y_hat), _mean_ssim)}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        return {"value": _mean(statistics["ssim"])}


def _mean_ssim(y: Tensor, y_hat: Tensor) -> Tensor:
    return ssim(y[None], y_hat[None], SSIM_WINDOW, max_val=1.0, eps=0.0, padding="valid").mean()


def _each(y: Tensor, y_hat: Tensor, compare: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`compare` on one pair of images (C, H, W) after another, in float32: (B,)."""
    pairs = zip(y.float().contiguous(), y_hat.float().contiguous(), strict=True)
    return torch.stack([compare(target, translation) for target, translation in pairs])


def _unit(images: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1]."""
    return (images.float() + 1) / 2


def _mean(values: Tensor) -> float:
    return values.double().mean().item()
