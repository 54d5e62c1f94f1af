"""The values that datasets and training exchange: one pair, and a batch of pairs. Imports no torch at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


Split = Literal["train", "val", "test"]
BatchField = Literal["labels", "blocks"]  # fields of the batch that a dataset may lack: `needs` of a registration


@dataclass(frozen=True)
class Pair:
    """One aligned pair as a dataset stores it.

    id      unique within its dataset and stable between versions; names files and table rows
    x, y    (H, W, C) arrays in their stored dtype (uint8, uint16, float32), values within the dataset's
            `x_range` and `y_range`
    labels  (H', W') integer class map of the area that x and y show, or None. Values are 0 to the number of classes
            minus 1; 255 and -1 mark pixels that are not counted. It may have more pixels than x and y, not fewer,
            if images are scored at a larger size than they were reduced to. Evaluation uses it as it is; training
            resizes it to x and y with the nearest pixel
    block   name of the group (a region, a scene, a patient) that is resampled as a unit for intervals, or None

    >>> import numpy as np
    >>> image = np.zeros((64, 64, 3), np.uint8)
    >>> Pair("street-1", image, image).y.shape
    (64, 64, 3)
    """

    id: str
    x: np.ndarray
    y: np.ndarray
    labels: np.ndarray | None = None
    block: str | None = None


@dataclass(frozen=True)
class Batch:
    """Pairs as the networks get them.

    x, y    (B, C, H, W) float32 in [-1, 1]
    ids     one per image
    labels  (B, H, W) int64, in evaluation (B, H', W') as the dataset has them; None if the dataset has none
    blocks  one per image; empty if the dataset has none
    random  (B, N) random numbers in [0, 1) for the augmentations; None without augmentations
    u, z    (B,) random numbers in [0, 1), and normal ones in the shape of y, for the process; None without a process

    >>> import torch
    >>> batch = Batch(torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 8, 8), ("a", "b", "c", "d"))
    >>> [part.ids for part in batch.split(2)]
    [('a', 'b'), ('c', 'd')]
    """

    x: Tensor
    y: Tensor
    ids: tuple[str, ...]
    labels: Tensor | None = None
    blocks: tuple[str | None, ...] = ()
    random: Tensor | None = None
    u: Tensor | None = None
    z: Tensor | None = None

    def tensors(self) -> dict[str, Any]:
        """The tensors by the names of their fields, without those that are None."""
        tensors = {name: getattr(self, name) for name in ("x", "y", "labels", "random", "u", "z")}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def split(self, parts: int) -> list[Batch]:
        """Split into `parts` batches of equal size, in order. `parts` must divide the number of images."""
        if parts == 1:
            return [self]
        images, ids, blocks = len(self.x) // parts, len(self.ids) // parts, len(self.blocks) // parts
        optional = (self.labels, self.random, self.u, self.z)
        parts_of = ([None] * parts if t is None else t.split(images) for t in optional)
        tensors = zip(self.x.split(images), self.y.split(images), *parts_of, strict=True)
        return [
            Batch(
                x=x,
                y=y,
                ids=self.ids[i * ids : (i + 1) * ids],
                labels=labels,
                blocks=self.blocks[i * blocks : (i + 1) * blocks],
                random=random,
                u=u,
                z=z,
            )
            for i, (x, y, labels, random, u, z) in enumerate(tensors)
        ]
