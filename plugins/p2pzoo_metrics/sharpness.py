"""`sharpness`: do the translations have as much fine detail as the photos? It shows blur. Imports torch.

Not from the paper, which shows the blur of L1 only in its figures.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from p2pzoo.plugin import Batch, Dataset
from p2pzoo.utils.errors import UserError
from p2pzoo_metrics.levels import check_channels

LUMA = (0.299, 0.587, 0.114)  # weights of R, G, B in ITU-R BT.601


class Sharpness:
    """Gradient energy of ŷ over that of the real photos: 0 (flat), below 1 (blurred), 1 (equal), above 1 (noisy).

    An image's gradient energy is the mean of (difference to the right neighbour)² plus the mean of (difference to the
    lower neighbour)² of its luma, in units of the [0, 1] scale. Luma is 0.299 R + 0.587 G + 0.114 B of the stored,
    gamma-coded values; a grey image is its own luma. Differences of neighbours, not Sobel or central differences: those
    do not see the checkerboard pattern that transposed convolutions leave.

    It is a ratio and not a score, so no direction is better: blur lowers it, and noise raises it above 1. Images are
    measured as the generator made them, neither clipped nor rounded. Raises UserError for images that are neither grey
    nor RGB, or below 2 px a side.
    """

    version = "1"
    better = None

    def __init__(self, dataset: Dataset) -> None:
        pass

    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"y_hat": (B,), "y": (B,)}: gradient energies, float32."""
        check_channels((1, 3), y_hat, "sharpness")
        if min(y_hat.shape[2:]) < 2:
            raise UserError(f"sharpness takes images from 2 px a side up, not {y_hat.shape[2]}×{y_hat.shape[3]}")
        return {"y_hat": _gradient_energies(y_hat), "y": _gradient_energies(batch.y)}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`value`: the ratio of the sums over all images. inf if all photos are flat, NaN if ŷ is flat too."""
        return {"value": (statistics["y_hat"].double().sum() / statistics["y"].double().sum()).item()}


def _gradient_energies(images: Tensor) -> Tensor:
    """(B,), each image separately, so that its value does not depend on its batch."""
    return torch.stack([_gradient_energy(_to_luma(image)) for image in images.float().contiguous()])


def _to_luma(image: Tensor) -> Tensor:
    """(C, H, W) in [-1, 1] -> (H, W) in [0, 1]."""
    if len(image) == 3:
        image = (image * image.new_tensor(LUMA)[:, None, None]).sum(0, keepdim=True)
    return (image[0] + 1) / 2


def _gradient_energy(luma: Tensor) -> Tensor:
    return luma.diff(dim=0).square().mean() + luma.diff(dim=1).square().mean()
