"""The dataset `earth`: tiles of the layers, paired as a task says.

Adding a task: one line in TASKS, its name in Task, a row in README.md; what it shows of a layer is a View.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from p2pzoo.plugin import Pair, Split
from p2pzoo_earth.classes import CLASSES, PALETTE, UNSCORED
from p2pzoo_earth.edges import luminance
from p2pzoo_earth.geometry import block_name, tiles
from p2pzoo_earth.layers import LAND, layers

Task = Literal[
    "labels-to-photo",
    "photo-to-labels",
    "terrain-to-photo",
    "map-to-photo",
    "photo-to-map",
    "grey-to-color",
    "edges-to-photo",
    "inpainting",
]
Size = Literal[64, 128, 256]
Stride = Literal[8, 16, 32, 64, 128, 256]  # divisors of a block's side, so that tiles meet the borders of their split


@dataclass(frozen=True)
class View:
    """What a task shows of one layer: `draw` turns a tile of it, (H, W) or (H, W, 3), into (H, W, C) uint8."""

    layer: str
    draw: Callable[[np.ndarray], np.ndarray] = np.array  # a copy: the layer itself is a read-only file


def _without_centre(photo: np.ndarray) -> np.ndarray:
    """The centre, half as high and half as wide, is white, as in the authors' Torch code."""
    holed = np.array(photo)
    height, width = photo.shape[:2]
    holed[height // 4 : height // 4 + height // 2, width // 4 : width // 4 + width // 2] = 255
    return holed


PHOTO = View("photo")
LABELS = View("classes", np.array(PALETTE, np.uint8).__getitem__)
TERRAIN = View("terrain")
MAP = View("map")
EDGES = View("edges")
GREY = View("photo", luminance)
HOLED = View("photo", _without_centre)

# What judges photos of this data: README.md says how it was made.
SCORER = Path(__file__).with_name("scorer.safetensors")

TASKS: dict[str, tuple[View, View]] = {  # name -> x, y
    "labels-to-photo": (LABELS, PHOTO),  # as the paper's Cityscapes task: labels drawn in their colours
    "photo-to-labels": (PHOTO, LABELS),  # the same, reversed: Table 6
    "terrain-to-photo": (TERRAIN, PHOTO),
    "map-to-photo": (MAP, PHOTO),  # as maps→aerial
    "photo-to-map": (PHOTO, MAP),
    "grey-to-color": (GREY, PHOTO),  # y is RGB, where the paper has L→ab
    "edges-to-photo": (EDGES, PHOTO),  # as edges→shoes, by Canny instead of HED
    "inpainting": (HOLED, PHOTO),
}


class Earth:
    """Real satellite imagery that arrives with `pip install`: a sequence of aligned pairs.

    split   "train", "val" or "test": regions of the globe, dealt out in blocks of 256 × 256 px; no pixel is in two
    task    what x and y show
    size    side of a tile in px (7.4 km each at the equator)
    stride  px between neighbouring tiles. Default: size/4 for train, size/2 for val and test

    A Pair's x and y are (size, size, 3) uint8 RGB; x has one channel in the tasks grey-to-color and edges-to-photo.
    `labels` is (size, size) uint8 indices into `classes`, `block` the region that the tile's centre lies in ("2,13"),
    `id` the tile's first pixel on the grid ("r0512c3328"): all three are the same in every task.
    Tiles of a split overlap where stride < size: compute intervals by block, not by tile.
    In inpainting the hole is in the middle of the tile; [train] jitter moves and enlarges what it is given, so
    training with the hole where the test has it takes jitter = 1.

    Raises UserError where the data cannot be read or the cache cannot be written.
    Tasks, sources and split: README.md beside this file.
    """

    x_range = (0.0, 255.0)
    y_range = (0.0, 255.0)
    classes = CLASSES
    palette = PALETTE
    unscored = UNSCORED
    licence = (
        "NASA Blue Marble, NOAA ETOPO1 and NASA MODIS land cover, free to use with credit to their publishers; Natural "
        "Earth, public domain; GSHHG, LGPL-3.0-or-later; as these state it"
    )

    def __init__(
        self, split: Split, *, task: Task = "labels-to-photo", size: Size = 128, stride: Stride | None = None
    ) -> None:
        self._again = partial(type(self), split, task=task, size=size, stride=stride)
        self._x, self._y = TASKS[task]
        self.scorer = SCORER if self._y is PHOTO else None
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
