"""Where things lie: the grid that all layers share, its region blocks, their splits, and the tiles in them.

The grid is a window of the equirectangular photo (5400 × 2700, 15 px per degree, 7.4 km per px at the equator,
first pixel at 180° W, 90° N): 1792 × 5376 px, 60.1° N to 59.3° S. It holds 7 × 21 blocks of 256 × 256 px.
"""

from __future__ import annotations

from typing import get_args

import numpy as np

from p2pzoo.plugin import Split

GLOBE = (2700, 5400)  # rows and columns of the photo, pole to pole
FIRST_ROW = 448  # of the globe; north of it and south of the last one the layers' coasts part by more than 0.14 px
GRID = (1792, 5376)
BLOCK = 256
SPLITS: tuple[Split, ...] = get_args(Split)
MIN_LAND = 0.25  # share of land below which a tile shows little but sea


def to_grid(globe: np.ndarray) -> np.ndarray:
    """A global equirectangular raster (h, w, ...), north first, brought to the grid by nearest neighbour at pixel
    centres: (1792, 5376, ...) of the same dtype."""
    rows, columns = (
        # Integers throughout: a pixel centre that falls on a source pixel's edge must not depend on rounding.
        (2 * np.arange(first, first + length) + 1) * have // (2 * whole)
        for first, length, have, whole in zip((FIRST_ROW, 0), GRID, globe.shape, GLOBE, strict=False)
    )
    return globe[rows[:, None], columns]


def split_of(block_row: np.ndarray | int, block_column: np.ndarray | int) -> np.ndarray:
    """Index into SPLITS of blocks: two of ten are test, one is val, spread evenly over the globe."""
    r = (np.asarray(block_column) + 2 * np.asarray(block_row)) % 10
    return np.select([(r == 0) | (r == 4), r == 7], [SPLITS.index("test"), SPLITS.index("val")], SPLITS.index("train"))


def tiles(land: np.ndarray, split: Split, size: int, stride: int) -> np.ndarray:
    """(N, 2) row and column of the first pixel of each tile of `split`, in reading order.

    land    (1792, 5376) bool
    size    side of a tile in px, at most BLOCK
    stride  px between neighbouring tiles

    A tile lies wholly inside blocks of its split, so no pixel is in two splits, and at least a quarter of it is land.
    """
    rows, columns = (
        axis.ravel()
        for axis in np.meshgrid(*(np.arange(0, length - size + 1, stride) for length in GRID), indexing="ij")
    )
    keep = _share(land, rows, columns, size) >= MIN_LAND
    # A tile is no larger than a block, so its four corners see every block that it touches.
    for dy in (0, size - 1):
        for dx in (0, size - 1):
            keep &= split_of((rows + dy) // BLOCK, (columns + dx) // BLOCK) == SPLITS.index(split)
    return np.stack([rows, columns], axis=1)[keep]


def block_name(row: int, column: int, size: int) -> str:
    """The block that a tile's centre lies in, as "row,column": "2,13"."""
    return f"{(row + size // 2) // BLOCK},{(column + size // 2) // BLOCK}"


def box_sums(values: np.ndarray) -> np.ndarray:
    """Summed-area table (h + 1, w + 1) of (h, w): the sum over any box is four look-ups."""
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1), np.int64)
    np.cumsum(np.cumsum(values, axis=0, dtype=np.int64), axis=1, out=table[1:, 1:])
    return table


def _share(where: np.ndarray, rows: np.ndarray, columns: np.ndarray, size: int) -> np.ndarray:
    table = box_sums(where)
    inside = (
        table[rows + size, columns + size] - table[rows, columns + size] - table[rows + size, columns]
        + table[rows, columns]
    )  # fmt: skip
    return inside / size**2
