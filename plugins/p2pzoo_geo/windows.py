"""Cuts scenes into blocks and windows, and finds the windows with enough data and the scales of the bands."""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import read_object, write_json
from p2pzoo.utils.paths import cache_dir
from p2pzoo_geo.bands import Limits
from p2pzoo_geo.ground import Ground
from p2pzoo_geo.rasters import Box, Resampled, has_mask, open_pair, read_valid, read_window

PERCENTILES = (0.1, 99.9)  # of "percentiles": a few outliers do not set the scale, and 0.2% of the values are clipped
MAX_UNREACHED = 0.01  # share of the pixels that no window reaches, without a warning
MAX_WINDOWS_OF_SCALES = 64  # evenly spread over the training windows: 4 million pixels of 256 px windows
_INDEX_VERSION = 1  # raise it when windows or scales are found in another way


@dataclass(frozen=True)
class Scene:
    """One pair of rasters.

    x_bands, y_bands: numbers from 1. size: (H, W) of their common grid. states: what changes when one of its files
    does, as `rasters.file_states`. ground: where its grid lies; None without a georeference.
    """

    id: str
    x: Path
    y: Path
    x_bands: tuple[int, ...]
    y_bands: tuple[int, ...]
    size: tuple[int, int]
    states: tuple[tuple[str, int, int], ...]
    ground: Ground | None = None


@dataclass(frozen=True)
class Grid:
    """How scenes are cut. All in px.

    size    side of a window
    stride  between the starts of windows
    block   side of a block; windows lie inside of one
    """

    size: int
    stride: int
    block: int

    def blocks(self, height: int, width: int) -> list[Box]:
        """Blocks that cover a scene. The last of a row or column takes the rest, and has up to twice the side.

        >>> Grid(4, 4, 8).blocks(8, 20)
        [Box(top=0, bottom=8, left=0, right=8), Box(top=0, bottom=8, left=8, right=20)]
        """
        rows, columns = (_edges(length, self.block) for length in (height, width))
        return [Box(*down, *across) for down in rows for across in columns]

    def windows(self, block: Box) -> list[Box]:
        """The windows of a block, from its upper left corner.

        >>> [box[:1] + box[2:3] for box in Grid(4, 2, 8).windows(Box(0, 6, 8, 12))]
        [(0, 8), (2, 8)]
        """
        return [
            Box(top, top + self.size, left, left + self.size)
            for top in range(block.top, block.bottom - self.size + 1, self.stride)
            for left in range(block.left, block.right - self.size + 1, self.stride)
        ]

    def unreached(self, block: Box) -> int:
        """How many pixels of a block lie beyond its last windows, at its right and lower edge.

        With a stride above the size, gaps as wide as those between windows do not count.

        >>> Grid(4, 4, 8).unreached(Box(0, 8, 0, 10))
        16
        """
        height, width = block.bottom - block.top, block.right - block.left
        gap = max(0, self.stride - self.size)
        rows, columns = (side - max(0, (side - self.size) % self.stride - gap) for side in (height, width))
        return height * width - rows * columns


def warn_of_edges(where: str, what: str, unreached: int, total: int, advice: str) -> None:
    """Warn of the share of pixels that no window reaches, from 1% on. what: has these edges, for the message."""
    if unreached > MAX_UNREACHED * total:
        warnings.warn(
            f"{where}: {unreached / total:.0%} of the pixels, at the right and lower edges of {what}, are in no "
            f"window: choose a `size` that divides {advice}, or a smaller `stride`",
            stacklevel=3,
        )


def _edges(length: int, side: int) -> list[tuple[int, int]]:
    edges = [*range(0, max(1, length // side) * side, side), length]
    return [*itertools.pairwise(edges)]


def spread_windows(length: int, side: int, count: int) -> list[tuple[int, int]]:
    """`count` windows of a row or column, from its start to its end; one where it is no longer than a window.

    >>> spread_windows(100, 10, 3), spread_windows(8, 10, 3)
    ([(0, 10), (45, 55), (90, 100)], [(0, 8)])
    """
    room = max(0, length - side)
    starts = dict.fromkeys(room * number // max(1, count - 1) for number in range(count))
    return [(start, min(start + side, length)) for start in starts]


@dataclass(frozen=True)
class Reader:
    """How windows of scenes are read. resample, resampling: see `Scenes`."""

    resample: Resampled | None
    resampling: str

    def read(self, scene: Scene, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x (C, h, w), y (C, h, w) as their files have them, and (h, w) bool: where both have data."""
        with open_pair(scene.x, scene.y, self.resample, self.resampling) as (x_source, y_source):
            x, x_valid = read_window(x_source, scene.x_bands, box)
            y, y_valid = read_window(y_source, scene.y_bands, box)
        return x, y, x_valid & y_valid

    def valid_blocks(self, scene: Scene, blocks: Sequence[Box]) -> Iterator[np.ndarray | None]:
        """For each block (h, w) bool: where x and y have data; None if neither has a mask."""
        with open_pair(scene.x, scene.y, self.resample, self.resampling) as sources:
            sides = [*zip(sources, (scene.x_bands, scene.y_bands), strict=True)]
            masked = [(source, bands) for source, bands in sides if has_mask(source, bands)]
            for box in blocks:
                valid = [read_valid(source, bands, box) for source, bands in masked]
                yield np.logical_and.reduce(valid) if valid else None


def find_windows(scene: Scene, grid: Grid, reader: Reader, max_nodata: float) -> dict[str, list[Box]]:
    """{block: its windows} of which at most the share `max_nodata` has no data. Memory holds one block's mask.

    Block names are the scene's with the block's corner. They are remembered in the cache until the files change.
    """
    blocks = grid.blocks(*scene.size)
    key = [vars(grid), vars(reader), max_nodata, scene.x_bands, scene.y_bands, scene.size, *scene.states]
    known = recall(key)
    if known is None or len(known["windows"]) != len(blocks):
        kept = [
            [
                i
                for i, box in enumerate(grid.windows(block))
                if valid is None or _nodata(valid, block, box) <= max_nodata
            ]
            for block, valid in zip(blocks, reader.valid_blocks(scene, blocks), strict=True)
        ]
        known = {"windows": kept}
        remember(key, known)
    found = {}
    for block, numbers in zip(blocks, known["windows"], strict=True):
        windows = grid.windows(block)
        found[f"{scene.id}-b{block.top}-{block.left}"] = [windows[number] for number in numbers]
    return {name: windows for name, windows in found.items() if windows}


def _nodata(valid: np.ndarray, block: Box, box: Box) -> float:
    """The share of a window's pixels without data; valid: of its block."""
    part = valid[box.top - block.top : box.bottom - block.top, box.left - block.left : box.right - block.left]
    return 1 - float(part.mean())


def find_scales(
    windows: Sequence[tuple[Scene, Box]], reader: Reader, sides: Sequence[str]
) -> Mapping[str, tuple[Limits, ...]]:
    """{"x" or "y": (low, high) of each band}, the percentiles of the valid values in these windows.

    Remembered in the cache until the files change. Raises UserError if they have no valid pixel.
    """
    if len(windows) > MAX_WINDOWS_OF_SCALES:
        windows = [windows[i * len(windows) // MAX_WINDOWS_OF_SCALES] for i in range(MAX_WINDOWS_OF_SCALES)]
    scenes = {scene.id: scene for scene, _ in windows}
    states = [[s.x_bands, s.y_bands, *s.states] for s in scenes.values()]
    key = ["scales", vars(reader), [*sides], [*PERCENTILES], states, [[scene.id, *box] for scene, box in windows]]
    known = recall(key)
    if known is None:
        values: dict[str, list[np.ndarray]] = {side: [] for side in sides}
        for scene, box in windows:
            x, y, valid = reader.read(scene, box)
            for side in sides:
                values[side].append({"x": x, "y": y}[side][:, valid])
        known = {side: percentile_limits(np.concatenate(parts, axis=1), side) for side, parts in values.items()}
        remember(key, known)
    return {side: tuple((low, high) for low, high in known[side]) for side in sides}


def percentile_limits(values: np.ndarray, side: str, what: str = "band") -> list[Limits]:
    """For each band the percentiles of its values (C, N), whole numbers for integers. what: its name in messages."""
    if values.shape[1] == 0:
        raise UserError(f"{side}_scale: the training windows have no valid pixel: give [low, high]")
    limits = []
    for number, band in enumerate(values, 1):
        low, high = (float(limit) for limit in np.percentile(band.astype(np.float64), PERCENTILES))
        if values.dtype.kind in "iu":
            low, high = float(np.floor(low)), float(np.ceil(high))
        if low >= high:
            warnings.warn(f"{side}: selected {what} {number} has one value, {low:g}, in training windows", stacklevel=4)
            high = low + 1
        limits.append((low, high))
    return limits


def _cache_file(key: Any) -> Path:
    text = json.dumps([_INDEX_VERSION, key], sort_keys=True)
    return cache_dir() / "scenes" / f"{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:24]}.json"


def recall(key: Any) -> dict[str, Any] | None:
    """The value that `remember` stored in the cache under this key; None without one."""
    return read_object(_cache_file(key))


def remember(key: Any, value: dict[str, Any]) -> None:
    """Store a value in the cache. key: JSON of all that it depends on, states of files too."""
    file = _cache_file(key)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, value)
