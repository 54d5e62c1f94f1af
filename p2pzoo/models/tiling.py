"""Large images in overlapping tiles that are translated one by one and blended. Imports torch only.

The overlap of two neighbouring tiles is cut in four. In each outer quarter one tile misses most of its surroundings, so
only the other tile counts; over the two inner quarters one fades into the other. A network whose receptive field
reaches no further than a quarter of the overlap gives the same values as for the whole image, if the tiles start at
multiples of its stride (see `Tiling`). Other networks give values that are continuous at the seams. Memory holds a few
tiles and one row of tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """How to cut images into tiles. `Tiling.of` checks the values.

    side     side of a tile in pixels, a multiple of `divisor`
    overlap  least overlap of neighbouring tiles in pixels, at most half a tile
    divisor  the generator's size_divisor: it takes sides that are multiples of it
    """

    side: int
    overlap: int
    divisor: int

    @classmethod
    def of(cls, side: int, overlap: int | None, divisor: int) -> Tiling:
        """A tiling for a generator with this size_divisor. Raises ValueError for a side or overlap that does not fit.

        overlap: None is about a quarter of the side, such that tiles start at multiples of `divisor`; for a side of
        one divisor, where no such overlap exists, exactly a quarter.

        >>> Tiling.of(512, None, 64)
        Tiling(side=512, overlap=128, divisor=64)
        """
        if side < divisor:
            raise ValueError(f"a tile of {side} is too small for this generator: the smallest is {divisor}")
        if side % divisor:
            below = side // divisor * divisor
            nearest = f"{below} or {below + divisor}"
            raise ValueError(f"a tile of {side} does not fit this generator: multiples of {divisor} do, {nearest}")
        if overlap is None:
            quarter = side // 4
            overlap = max(quarter // divisor, 1) * divisor if side >= 2 * divisor else quarter
        if not 0 <= overlap <= side // 2:
            raise ValueError(f"an overlap of {overlap} does not fit tiles of {side}: 0 to {side // 2} does")
        return cls(side, overlap, divisor)

    def starts(self, length: int) -> list[int]:
        """Where tiles start along an image side, a multiple of the divisor: as few tiles as possible, evenly spread.

        >>> Tiling.of(64, 16, 1).starts(160)
        [0, 48, 96]
        """
        if length <= self.side:
            return [0]
        step = self.side - self.overlap
        gaps = -(-(length - self.side) // step)
        unit = self.divisor if step % self.divisor == 0 else 1
        return [i * (length - self.side) // gaps // unit * unit for i in range(gaps + 1)]

    def weights(self, length: int) -> Tensor:
        """(tiles, side): the blend weight of each tile's pixels along an image side. At each pixel they sum to 1."""
        starts, side = self.starts(length), min(self.side, length)
        outer, inner = self.overlap // 4, self.overlap - 2 * (self.overlap // 4)
        distance = torch.arange(side) + 0.5 - outer
        ramp = (distance / max(inner, 1)).clamp(0, 1)
        total = torch.zeros(length)
        weights = []
        for i, start in enumerate(starts):
            weight = torch.ones(side)
            weight *= ramp if i > 0 else 1
            weight *= ramp.flip(0) if i < len(starts) - 1 else 1
            total[start : start + side] += weight
            weights.append(weight)
        return torch.stack([w / total[s : s + side] for s, w in zip(starts, weights, strict=True)])


def blend_tiles(
    translate_tiles: Callable[[list[tuple[slice, slice]]], Tensor],
    height: int,
    width: int,
    tiling: Tiling,
    max_batch_size: int,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (top, (C, rows, width)) of the blended image from top to bottom, float32 on the CPU.

    translate_tiles: given up to `max_batch_size` pairs of (rows, columns), returns (B, C, h, w), their translations.
    height, width: of the padded image. Each strip is yielded before the next row of tiles is translated.
    """
    rows, columns = tiling.starts(height), tiling.starts(width)
    row_weights, column_weights = tiling.weights(height), tiling.weights(width)
    tile_height, tile_width = row_weights.shape[1], column_weights.shape[1]
    carried: Tensor | None = None  # the lower part of the last strip, which the next row of tiles overlaps
    for i, top in enumerate(rows):
        strip: Tensor | None = None
        for first in range(0, len(columns), max_batch_size):
            lefts = columns[first : first + max_batch_size]
            tiles = translate_tiles([(slice(top, top + tile_height), slice(left, left + tile_width)) for left in lefts])
            if strip is None:
                strip = torch.zeros(tiles.shape[1], tile_height, width)
                if carried is not None:
                    strip[:, : carried.shape[1]] = carried
            for j, (left, tile) in enumerate(zip(lefts, tiles.to("cpu", torch.float32), strict=True), start=first):
                strip[:, :, left : left + tile_width] += tile * row_weights[i][:, None] * column_weights[j]
        assert strip is not None
        finished_rows = rows[i + 1] - top if i + 1 < len(rows) else tile_height
        yield top, strip[:, :finished_rows]
        carried = strip[:, finished_rows:].clone()
