"""Pairs -> a batch of tensors: stacked, flipped, and scaled to [-1, 1] here or later on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from p2pzoo.plugin.batch import Batch, Pair

Range = tuple[float, float]


class _Ranges(Protocol):
    """The stored values that become -1 and 1, of a `Dataset` or of other pairs."""

    x_range: Range
    y_range: Range


@dataclass(frozen=True, kw_only=True)
class StoredBatch(Batch):
    """A batch for a device: images and labels that are stored as uint8 are still uint8, a quarter of the bytes.

    x_range, y_range  the stored values that become -1 and 1

    >>> x = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    >>> StoredBatch(x, x, ("a",), x_range=(0, 255), y_range=(0, 255)).scaled().x.flatten()
    tensor([-1.0000, -0.6000,  1.0000])
    """

    x_range: Range
    y_range: Range

    def scaled(self) -> Batch:
        """The batch as the networks get it, bit-identical to that of `collate`."""
        return Batch(
            x=_scale(self.x, self.x_range),
            y=_scale(self.y, self.y_range),
            ids=self.ids,
            labels=None if self.labels is None else self.labels.long(),
            blocks=self.blocks,
            random=self.random,
            u=self.u,
            z=self.z,
        )


def collate(pairs: Sequence[Pair], dataset: _Ranges, flips: Sequence[bool] | None = None) -> Batch:
    """Stack pairs and scale them to [-1, 1], on the CPU. Images are channels-last in memory.

    dataset  the one that the pairs are from
    flips    which pairs to flip left to right; default: none
    """
    flips = flips or [False] * len(pairs)
    return Batch(
        x=_stack_scaled([pair.x for pair in pairs], flips, dataset.x_range),
        y=_stack_scaled([pair.y for pair in pairs], flips, dataset.y_range),
        ids=tuple(pair.id for pair in pairs),
        labels=_stack_labels(pairs, flips, torch.int64),
        blocks=tuple(pair.block for pair in pairs),
    )


def collate_stored(pairs: Sequence[Pair], dataset: _Ranges, flips: Sequence[bool]) -> StoredBatch:
    """The same, but what is stored as uint8 is scaled later: `StoredBatch.scaled` does it on the device."""
    xs, ys = [pair.x for pair in pairs], [pair.y for pair in pairs]
    labels_are_bytes = all(pair.labels is not None and pair.labels.dtype == np.uint8 for pair in pairs)
    return StoredBatch(
        x=_stack_bytes(xs, flips) if _are_bytes(xs) else _stack_scaled(xs, flips, dataset.x_range),
        y=_stack_bytes(ys, flips) if _are_bytes(ys) else _stack_scaled(ys, flips, dataset.y_range),
        ids=tuple(pair.id for pair in pairs),
        labels=_stack_labels(pairs, flips, torch.uint8 if labels_are_bytes else torch.int64),
        blocks=tuple(pair.block for pair in pairs),
        x_range=dataset.x_range,
        y_range=dataset.y_range,
    )


def _are_bytes(images: Sequence[np.ndarray]) -> bool:
    return all(image.dtype == np.uint8 for image in images)


def _stack_bytes(images: Sequence[np.ndarray], flips: Sequence[bool]) -> Tensor:
    return _stack(images, flips, torch.uint8).permute(0, 3, 1, 2)


def _stack_scaled(images: Sequence[np.ndarray], flips: Sequence[bool], limits: Range) -> Tensor:
    low, high = limits
    stacked = _stack(images, flips, torch.float32)
    values = stacked.numpy()  # one NumPy thread is faster here than starting torch's threads
    if low:
        values -= low
    values *= 2 / (high - low)
    values -= 1
    return stacked.permute(0, 3, 1, 2)


def _scale(images: Tensor, limits: Range) -> Tensor:
    """uint8 images scaled to [-1, 1], by the operations of `_stack_scaled`; others are scaled already."""
    if images.dtype != torch.uint8:
        return images
    low, high = limits
    values = images.float()
    if low:
        values -= low
    values *= 2 / (high - low)
    values -= 1
    return values


def _stack_labels(pairs: Sequence[Pair], flips: Sequence[bool], dtype: torch.dtype) -> Tensor | None:
    """(B, H, W) of this dtype; None where a pair has no labels."""
    labels = [pair.labels for pair in pairs if pair.labels is not None]
    return _stack(labels, flips, dtype) if len(labels) == len(pairs) else None


def _stack(images: Sequence[np.ndarray], flips: Sequence[bool], dtype: torch.dtype) -> Tensor:
    """(B, H, W, ...) of this dtype. Pixels are converted while they are copied, once; flips come before."""
    stacked = torch.empty((len(images), *images[0].shape), dtype=dtype)
    for target, image, flip in zip(stacked, images, flips, strict=True):
        if not (image.flags.writeable and image.dtype.isnative and min(image.strides) >= 0):  # others torch refuses
            image = image.astype(image.dtype.newbyteorder("="), order="C")
        pixels = torch.from_numpy(image)
        target.copy_(pixels.flip(1) if flip else pixels)
    return stacked
