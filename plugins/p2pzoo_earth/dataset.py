"""The dataset `earth`: tiles of the layers, paired by a task.

To add a task: add a line in TASKS, its name in Task, a row in README.md, and a View for a new rendering of a layer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from p2pzoo.plugin import AddedLater, Pair, Split
from p2pzoo_earth.classes import CLASSES, PALETTE, UNSCORED
from p2pzoo_earth.edges import to_luminance
from p2pzoo_earth.geometry import FOLDS, block_name, tiles
from p2pzoo_earth.layers import LAND, load_layers
from p2pzoo_earth.warp import displacement, warp_image

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
MAX_WARP = 16.0  # px
Stride = Literal[8, 16, 32, 64, 128, 256]  # divisors of a block's side, so that tiles end at the borders of their split


@dataclass(frozen=True)
class View:
    """A rendering of one layer: `draw` converts a tile of it, (H, W) or (H, W, 3), to (H, W, C) uint8."""

    layer: str
    draw: Callable[[np.ndarray], np.ndarray] = np.array  # a copy: the layer itself is a read-only file


def _hide_centre(photo: np.ndarray) -> np.ndarray:
    """The photo with its centre, half as high and half as wide, in white, as in the authors' Torch code."""
    hidden = np.array(photo)
    height, width = photo.shape[:2]
    hidden[height // 4 : height // 4 + height // 2, width // 4 : width // 4 + width // 2] = 255
    return hidden


PHOTO = View("photo")
LABELS = View("classes", np.array(PALETTE, np.uint8).__getitem__)
TERRAIN = View("terrain")
MAP = View("map")
EDGES = View("edges")
GREY = View("photo", to_luminance)
HIDDEN_CENTRE = View("photo", _hide_centre)

# The scorer for photos of this dataset, and those of the folds; README.md describes their training.
SCORER = Path(__file__).with_name("scorer.safetensors")
SCORERS_OF_FOLDS = Path(__file__).with_name("scorers")

TASKS: dict[str, tuple[View, View]] = {  # name -> x, y
    "labels-to-photo": (LABELS, PHOTO),  # like the paper's Cityscapes task: labels in their colours
    "photo-to-labels": (PHOTO, LABELS),  # the reverse: Table 6
    "terrain-to-photo": (TERRAIN, PHOTO),
    "map-to-photo": (MAP, PHOTO),  # like maps→aerial
    "photo-to-map": (PHOTO, MAP),
    "grey-to-color": (GREY, PHOTO),  # y is RGB; the paper has L→ab
    "edges-to-photo": (EDGES, PHOTO),  # like edges→shoes, with Canny instead of HED
    "inpainting": (HIDDEN_CENTRE, PHOTO),
}


def find_scorers(fold: int | None) -> tuple[Path, dict[str, Path]]:
    """The file of the scorer for a fold's photos, and {name: file} of others.

    SCORER has seen regions that folds test. A scorer of the folds serves two: the regions that either tests are in no
    split of the other.
    """
    if fold is None:
        return SCORER, {}
    pair = fold % (FOLDS // 2)
    plain, robust = (SCORERS_OF_FOLDS / f"fold{pair}{kind}.safetensors" for kind in ("", "-robust"))
    return plain, {"robust": robust}


class Earth:
    """Real satellite images that come with `pip install`: a sequence of aligned pairs.

    split   "train", "val" or "test": regions of the globe in blocks of 256 × 256 px; no pixel is in two splits
    task    the content of x and y, for example "labels-to-photo" (table in README.md)
    size    side of a tile in px (7.4 km per px at the equator)
    stride  px between neighbouring tiles. Default: size/4 for train, size/2 for val and test
    fold    0 to 9: one of ten splits, in which each region is tested once, with scorers of their own (README.md).
            Default: the split of 0.1.0's results
    warp    px: y of each training pair is warped by a smooth field of this root mean square length, for experiments
            with misaligned pairs. Pairs of val and test stay aligned

    A Pair's x and y are (size, size, 3) uint8 RGB; x has one channel in the tasks grey-to-color and edges-to-photo.
    `labels` is (size, size) uint8 indices into `classes`, `block` the region of the tile's centre ("2,13"), `id` the
    tile's first pixel on the grid ("r0512c3328"): all three are the same in every task.
    Tiles of a split overlap if stride < size: compute intervals by block, not by tile.
    In inpainting the hole is in the centre of the tile. [train] jitter would move and enlarge it in training; with
    jitter = 1 it is at the same position as in the test.

    `displacement(index)` is the field that y was warped by.

    Raises UserError if the data cannot be read or the cache cannot be written.
    Tasks, sources and split: README.md in this folder.
    """

    x_range = (0.0, 255.0)
    y_range = (0.0, 255.0)
    classes = CLASSES
    palette = PALETTE
    unscored = UNSCORED
    training_parameters = ("warp",)
    licence = (
        "NASA Blue Marble, NOAA ETOPO1 and NASA MODIS land cover, free to use with credit to their publishers; Natural "
        "Earth, public domain; GSHHG, LGPL-3.0-or-later; as these state it"
    )

    def __init__(
        self,
        split: Split,
        *,
        task: Task = "labels-to-photo",
        size: Size = 128,
        stride: Stride | None = None,
        fold: Annotated[Annotated[int, Field(ge=0, lt=FOLDS)] | None, AddedLater] = None,
        warp: Annotated[Annotated[float, Field(ge=0, le=MAX_WARP)], AddedLater] = 0.0,
    ) -> None:
        self._recreate = partial(type(self), split, task=task, size=size, stride=stride, fold=fold, warp=warp)
        self._x, self._y = TASKS[task]
        self.scorer, self.scorers = find_scorers(fold) if self._y is PHOTO else (None, {})
        self._size = size
        self._layers = load_layers(sorted({"mask", "classes", self._x.layer, self._y.layer}))
        stride = stride or size // (4 if split == "train" else 2)
        self._tiles = tiles(self._layers["mask"] == LAND, split, size, stride, fold)
        self._warp = warp if split == "train" else 0.0

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> Pair:
        row, column = self._tiles[operator.index(index)].tolist()
        window = slice(row, row + self._size), slice(column, column + self._size)
        y = self._y.draw(self._layers[self._y.layer][window])
        return Pair(
            id=_tile_id(row, column),
            x=self._x.draw(self._layers[self._x.layer][window]),
            y=warp_image(y, self.displacement(index), smooth=self._y is not LABELS) if self._warp else y,
            labels=np.array(self._layers["classes"][window]),
            block=block_name(row, column, self._size),
        )

    def displacement(self, index: int) -> np.ndarray:
        """(2, size, size) float32, px down and px right: y shows at p what was at p + displacement before the warp."""
        return displacement(_tile_id(*self._tiles[operator.index(index)].tolist()), self._size, self._warp)

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        # A worker process opens the files again: a pickled memory map would contain all of its bytes.
        return self._recreate, ()


def _tile_id(row: int, column: int) -> str:
    return f"r{row:04d}c{column:04d}"
