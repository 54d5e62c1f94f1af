"""The values that datasets and training exchange: one pair, and a batch of pairs. Imports no torch at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Pair:
    """One aligned pair as a dataset stores it.

    id      unique within its dataset, stable between versions; names files and table rows
    x, y    (H, W, C) arrays in their stored dtype (uint8, uint16, float32), values within the dataset's
            `x_range` and `y_range`
    labels  (H', W') integer class map, or None. It covers what x and y show, and may have more pixels than they: where
            images are scored at a size that they were reduced from. Evaluation sees it as it is; for training it is
            brought to the size of x and y, to the nearest pixel
    block   what is resampled as one when intervals are computed (a region, a scene, a patient), or None
    """

    id: str
    x: np.ndarray
    y: np.ndarray
    labels: np.ndarray | None = None
    block: str | None = None


@dataclass(frozen=True)
class Batch:
    """Pairs as the networks see them.

    x, y    (B, C, H, W) float32 in [-1, 1]
    ids     one per image
    labels  (B, H, W) int64, in evaluation (B, H', W') as the dataset has them; None where it has none
    blocks  one per image; None where the dataset has none
    drawn   (B, N) random numbers for the augmentations of what D sees; None without any
    """

    x: Tensor
    y: Tensor
    ids: tuple[str, ...]
    labels: Tensor | None = None
    blocks: tuple[str | None, ...] = ()
    random: Tensor | None = None

    def split(self, parts: int) -> list[Batch]:
        """So many batches of as many images, which are this one's in their order."""
        if parts == 1:
            return [self]
        each, ids, blocks = len(self.x) // parts, len(self.ids) // parts, len(self.blocks) // parts
        labels, drawn = ([None] * parts if t is None else t.split(each) for t in (self.labels, self.random))
        images = zip(self.x.split(each), self.y.split(each), labels, drawn, strict=True)
        return [
            Batch(x, y, self.ids[i * ids : (i + 1) * ids], own, self.blocks[i * blocks : (i + 1) * blocks], numbers)
            for i, (x, y, own, numbers) in enumerate(images)
        ]
