"""The dataset `earth`: tiles of the layers, paired as a task says.

Adding a task: one line in TASKS and its name in Task; what it shows of a layer is a View.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from p2pzoo.contracts import Pair, Split
from p2pzoo_earth.classes import CLASSES, PALETTE
from p2pzoo_earth.geometry import block_name, tiles
from p2pzoo_earth.layers import LAND, layers

Task = Literal["labels-to-photo"]
Size = Literal[64, 128, 256]
Stride = Literal[8, 16, 32, 64, 128, 256]  # divisors of a block's side, so that tiles meet the borders of their split


@dataclass(frozen=True)
class View:
    """What a task shows of one layer: `draw` turns a tile of it, (H, W) or (H, W, 3), into (H, W, C) uint8."""

    layer: str
    draw: Callable[[np.ndarray], np.ndarray] = np.array  # a copy: the layer itself is a read-only file


PHOTO = View("photo")
LABELS = View("classes", np.array(PALETTE, np.uint8).__getitem__)

TASKS: dict[str, tuple[View, View]] = {  # name -> x, y
    "labels-to-photo": (LABELS, PHOTO),  # as the paper's Cityscapes task: labels drawn in their colours
}


class Earth:
    """Real satellite imagery that arrives with `pip install`: a sequence of aligned pairs.

    split   "train", "val" or "test": regions of the globe, dealt out in blocks of 256 × 256 px; no pixel is in two
    task    what x and y show
    size    side of a tile in px (7.4 km each at the equator)
    stride  px between neighbouring tiles. Default: size/4 for train, size/2 for val and test

    A Pair's x and y are (size, size, 3) uint8 RGB, `labels` (size, size) uint8 indices into `classes`, `block` the
    region that the tile's centre lies in ("2,13"), `id` the tile's first pixel on the grid ("r0512c3328").
    Tiles of a split overlap where stride < size: compute intervals by block, not by tile.

    Raises UserError where the data cannot be read or the cache cannot be written.
    Sources and split: README.md beside this file.
    """

    x_range = (0.0, 255.0)
    y_range = (0.0, 255.0)
    classes = CLASSES
    palette = PALETTE

    def __init__(
        self, split: Split, *, task: Task = "labels-to-photo", size: Size = 128, stride: Stride | None = None
    ) -> None:
        self._again = partial(type(self), split, task=task, size=size, stride=stride)
        self._x, self._y = TASKS[task]
        self._size = size
        self._layers = layers(sorted({"mask", "classes", self._x.layer, self._y.layer}))
        stride = stride or size // (4 if split == "train" else 2)
        self._tiles = tiles(self._layers["mask"] == LAND, split, size, stride)

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> Pair:
        row, column = self._tiles[operator.index(index)].tolist()
        window = slice(row, row + self._size), slice(column, column + self._size)
        return Pair(
            id=f"r{row:04d}c{column:04d}",
            x=self._x.draw(self._layers[self._x.layer][window]),
            y=self._y.draw(self._layers[self._y.layer][window]),
            labels=np.array(self._layers["classes"][window]),
            block=block_name(row, column, self._size),
        )

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        # A worker process opens the files again; pickling a memory map would send all of its bytes.
        return self._again, ()
