"""Padding of images to sides that a network accepts. Imports torch only."""

import torch
from torch import Tensor


def reflected_indices(length: int, divisor: int) -> Tensor:
    """The pixel indices of a side that is padded by reflection to the next multiple of `divisor`.

    >>> reflected_indices(3, 4)
    tensor([0, 1, 2, 1])
    """
    index = torch.arange(-(-length // divisor) * divisor)
    period = max(1, 2 * (length - 1))  # a side shorter than its padding is reflected several times
    distance_to_end = (index % period - (length - 1)).abs()
    return (length - 1) - distance_to_end


def pad_by_reflection(images: Tensor, divisor: int) -> Tensor:
    """Pad (B, C, H, W) at the right and lower edges to the next multiples of `divisor`."""
    for dim in (-2, -1):
        images = images.index_select(dim, reflected_indices(images.shape[dim], divisor).to(images.device))
    return images
