"""Large images in pieces: tiles that overlap, each translated by itself, faded into each other. Imports torch only.

What two neighbours share is cut in four: in the outer quarters, where one of them misses most of its surroundings, only
the other counts; over the two quarters between, one fades into the other. So a network that sees no further than a
quarter of the overlap gives what it gives for the whole image, if tiles begin where its strides do (see `Tiling`);
others give what is continuous at the seams. Memory is that of a few tiles and of one row of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """How an image is cut. Raises ValueError, in one line, for what does not fit.

    side     of a tile, in pixels: a multiple of `divisor`
    overlap  what neighbours share at least, up to half of a tile. None: a quarter of a tile, or what is next to it and
             lets tiles begin at multiples of `divisor`; a tile of just the divisor leaves no such choice
    divisor  what sides must be multiples of, for the generator
    """

    side: int
    overlap: int
    divisor: int

    @classmethod
    def of(cls, side: int, overlap: int | None, divisor: int) -> Tiling:
        if side < 1 or side % divisor:
            below = max(divisor, side // divisor * divisor)
            nearest = f"{below} or {below + divisor}" if side > divisor else f"{divisor}"
            raise ValueError(f"a tile of {side} does not fit this generator: multiples of {divisor} do, {nearest}")
        if overlap is None:
            quarter = side // 4
            overlap = max(quarter // divisor, 1) * divisor if side >= 2 * divisor else quarter
        if not 0 <= overlap <= side // 2:
            raise ValueError(f"an overlap of {overlap} does not fit tiles of {side}: 0 to {side // 2} does")
        return cls(side, overlap, divisor)

    def starts(self, length: int) -> list[int]:
        """Where tiles begin along a side of `length`, a multiple of the divisor: as few as will do, evenly spread."""
        if length <= self.side:
            return [0]
        step = self.side - self.overlap
        gaps = -(-(length - self.side) // step)
        unit = self.divisor if step % self.divisor == 0 else 1
        return [i * (length - self.side) // gaps // unit * unit for i in range(gaps + 1)]

    def weights(self, length: int) -> Tensor:
        """(tiles, side) of what each counts where, along a side of `length`; those at one pixel add up to 1."""
        starts, side = self.starts(length), min(self.side, length)
        left_out, fading = self.overlap // 4, self.overlap - 2 * (self.overlap // 4)
        distance = torch.arange(side) + 0.5 - left_out
        rising = (distance / max(fading, 1)).clamp(0, 1)
        total = torch.zeros(length)
        weights = []
        for i, start in enumerate(starts):
            weight = torch.ones(side)
            weight *= rising if i > 0 else 1
            weight *= rising.flip(0) if i < len(starts) - 1 else 1
            total[start : start + side] += weight
            weights.append(weight)
        return torch.stack([w / total[s : s + side] for s, w in zip(starts, weights, strict=True)])


def blend_tiles(
    translated: Callable[[list[tuple[slice, slice]]], Tensor], height: int, width: int, tiling: Tiling, at_once: int
) -> Iterator[tuple[int, Tensor]]:
    """(top, (C, rows, width)) of the blended image, from the top on, each strip when it is done; float32 on the CPU.

    translated: gives (B, C, h, w), the translations of these rows and columns by themselves, for B up to `max_batch_size`.
    """
    rows, columns = tiling.starts(height), tiling.starts(width)
    down, across = tiling.weights(height), tiling.weights(width)
    tall, wide = down.shape[1], across.shape[1]
    begun: Tensor | None = None  # the lower part of the last strip, to which the next row of tiles still adds
    for i, top in enumerate(rows):
        strip: Tensor | None = None
        for first in range(0, len(columns), at_once):
            lefts = columns[first : first + at_once]
            tiles = translated([(slice(top, top + tall), slice(left, left + wide)) for left in lefts])
            if strip is None:
                strip = torch.zeros(tiles.shape[1], tall, width)
                if begun is not None:
                    strip[:, : begun.shape[1]] = begun
            for j, (left, tile) in enumerate(zip(lefts, tiles.to("cpu", torch.float32), strict=True), start=first):
                strip[:, :, left : left + wide] += tile * down[i][:, None] * across[j]
        assert strip is not None
        done = rows[i + 1] - top if i + 1 < len(rows) else tall
        yield top, strip[:, :done]
        begun = strip[:, done:].clone()
