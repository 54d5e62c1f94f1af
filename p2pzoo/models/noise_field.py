"""Noise for a picture of any size. Each part can be computed alone: the tiles of a picture share it. Imports torch."""

from __future__ import annotations

import torch
from torch import Tensor

from p2pzoo.utils import rng

_CELL = 256  # px: a side of the squares that have a seed of their own


class NoiseField:
    """Random numbers of N(0, 1) for each pixel, which follow from the seed and the pixel's place.

    seed   as `rng.derive_seed` returns it
    shape  (K, C): K draws of C channels

    >>> field = NoiseField(0, (1, 3))
    >>> whole = field.crop(slice(0, 300), slice(0, 40))
    >>> torch.equal(field.crop(slice(200, 300), slice(10, 40)), whole[:, :, 200:, 10:])
    True
    """

    def __init__(self, seed: int, shape: tuple[int, int]) -> None:
        self.seed, self.shape = seed, shape

    def crop(self, rows: slice, columns: slice) -> Tensor:
        """(K, C, rows, columns), float32 on the CPU."""
        top, left = (side.start // _CELL * _CELL for side in (rows, columns))
        cells = torch.cat(
            [
                torch.cat([self._cell(y, x) for x in range(left, columns.stop, _CELL)], dim=-1)
                for y in range(top, rows.stop, _CELL)
            ],
            dim=-2,
        )
        return cells[..., rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]

    def _cell(self, top: int, left: int) -> Tensor:
        generator = torch.Generator().manual_seed(rng.derive_seed(self.seed, "noise", top, left))
        return torch.randn(*self.shape, _CELL, _CELL, generator=generator)
