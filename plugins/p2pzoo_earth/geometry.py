"""Geometry: the grid that all layers share, its blocks, their splits, and the tiles in them.

The grid is a window of the equirectangular photo (5400 × 2700, 15 px per degree, 7.4 km per px at the equator,
first pixel at 180° W, 90° N): 1792 × 5376 px, 60.1° N to 59.3° S. It holds 7 × 21 blocks of 256 × 256 px.
"""

from __future__ import annotations

import math
from typing import get_args

import numpy as np

from p2pzoo.plugin import Split

GLOBE = (2700, 5400)  # rows and columns of the photo, pole to pole
FIRST_ROW = 448  # of the globe; north of it, and south of the last row, the layers' coasts differ by more than 0.14 px
GRID = (1792, 5376)
BLOCK = 256
SPLITS: tuple[Split, ...] = get_args(Split)
FOLDS = 10
MIN_LAND = 0.25  # fraction of land; tiles with less show almost only sea


def to_grid(globe: np.ndarray) -> np.ndarray:
    """A global equirectangular raster (h, w, ...), north first -> (1792, 5376, ...) of the same dtype.

    Resampled to the grid by nearest neighbour at pixel centres.
    """
    rows, columns = (
        # In integers: rounding must not decide where a pixel centre is exactly on the edge of a source pixel.
        (2 * np.arange(first, first + length) + 1) * source // (2 * target)
        for first, length, source, target in zip((FIRST_ROW, 0), GRID, globe.shape, GLOBE, strict=False)
    )
    return globe[rows[:, None], columns]


def split_of(block_row: np.ndarray | int, block_column: np.ndarray | int, fold: int | None = None) -> np.ndarray:
    """The splits of blocks, as indices into SPLITS; -1 for blocks that are in none. Each is evenly distributed.

    Without a fold, two of ten blocks are test and one is val. In fold 0 to 9, one of ten is test, one is val and one in
    none: it is test in the fold that shares this fold's scorer.
    """
    r = (np.asarray(block_column) + 2 * np.asarray(block_row)) % FOLDS
    if fold is not None:
        used = {"test": r == fold, "val": r == (fold + 7) % FOLDS, "train": r != (fold + 5) % FOLDS}
        return np.select([*used.values()], [SPLITS.index(split) for split in used], -1)
    return np.select([(r == 0) | (r == 4), r == 7], [SPLITS.index("test"), SPLITS.index("val")], SPLITS.index("train"))


def tiles(land: np.ndarray, split: Split, size: int, stride: int, fold: int | None = None) -> np.ndarray:
    """(N, 2) row and column of the first pixel of each tile of `split`, in reading order.

    land    (1792, 5376) bool
    size    side of a tile in px, at most BLOCK
    stride  px between neighbouring tiles
    fold    as in `split_of`

    A tile is entirely inside blocks of its split, so no pixel is in two splits. At least a quarter of it is land.
    """
    rows, columns = (
        axis.ravel()
        for axis in np.meshgrid(*(np.arange(0, length - size + 1, stride) for length in GRID), indexing="ij")
    )
    land_pixels = _count(land, rows, columns, size, unit=math.gcd(size, stride))
    keep = land_pixels >= MIN_LAND * size**2
    # A tile is at most as large as a block, so its four corners are in all blocks that it touches.
    for dy in (0, size - 1):
        for dx in (0, size - 1):
            keep &= split_of((rows + dy) // BLOCK, (columns + dx) // BLOCK, fold) == SPLITS.index(split)
    return np.stack([rows, columns], axis=1)[keep]


def block_name(row: int, column: int, size: int) -> str:
    """The block of a tile's centre, as "row,column".

    >>> block_name(row=512, column=3328, size=128)
    '2,13'
    """
    return f"{(row + size // 2) // BLOCK},{(column + size // 2) // BLOCK}"


def box_sums(values: np.ndarray) -> np.ndarray:
    """Summed-area table (h + 1, w + 1) of (h, w): with it, the sum over any box needs four values."""
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1), np.int64)
    np.cumsum(values, axis=1, dtype=np.int64, out=table[1:, 1:])
    for row in range(1, len(table)):  # four times as fast as cumsum over columns, which are far apart in memory
        table[row] += table[row - 1]
    return table


def _count(where: np.ndarray, rows: np.ndarray, columns: np.ndarray, size: int, unit: int) -> np.ndarray:
    """The true values in each square of `size` px. unit: divides their places and size; a large one is fast."""
    height, width = (length // unit for length in where.shape)
    whole = where[: height * unit, : width * unit].view(np.uint8)
    strips = whole.reshape(height, unit, -1).sum(1, dtype=np.uint16)
    table = box_sums(strips.reshape(height, width, unit).sum(2, dtype=np.int64))
    top, left, bottom, right = (edge // unit for edge in (rows, columns, rows + size, columns + size))
    return table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
