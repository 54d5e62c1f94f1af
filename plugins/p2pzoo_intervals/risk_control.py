"""Conformal risk control (Angelopoulos et al. 2022, arXiv:2208.02814, theorem 1) of the uncovered share of a block.

The loss of block b is L_b(λ), the share of its values outside intervals that λ widens; it never rises with λ, and is at
most 1. With R̂ the mean of n blocks, λ is the least with n / (n + 1) R̂(λ) + 1 / (n + 1) <= α. Then over calibration and
a new exchangeable block, the expected uncovered share is at most α. Imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

import torch
from torch import Tensor

_DROPPED_BITS = 13  # of a float32, which leaves 10 bits of its fraction: 262,144 bins, 2 MB
_BINS = 1 << (31 - _DROPPED_BITS)
_ROUNDING = 1e-9  # of a sum of shares


def least_blocks(level: float) -> int:
    """How many blocks a level needs: with fewer, 1 / (n + 1) alone is more than α = 1 - level.

    >>> [least_blocks(level) for level in (0.5, 0.8, 0.9, 0.95)]
    [1, 4, 9, 19]
    """
    return max(1, math.ceil(1 / _alpha(level)) - 1)


def _alpha(level: float) -> Fraction:
    return 1 - Fraction(repr(level))  # 0.8 and not the float beside it: 4 blocks are enough exactly then


class UncoveredShares:
    """The uncovered share of each block as a function of λ, summed over blocks, in memory that does not grow.

    A value's score is the λ from which on it is covered. Scores are counted in bins of relative width 2 ** -10 at most.

    blocks  added so far
    """

    def __init__(self) -> None:
        self.blocks = 0
        self._shares = torch.zeros(_BINS, dtype=torch.float64)  # of each bin: Σ_b (values of b in it) / (values of b)

    def add(self, scores: Iterable[Tensor]) -> None:
        """Add a block, given as the scores of its images, any shape, 0 or more. Raises ValueError for nan and inf."""
        counts = torch.zeros(_BINS, dtype=torch.int64)
        for image in scores:
            values = image.detach().float().cpu().flatten()
            if not values.isfinite().all():
                raise ValueError("its values or its bounds are not finite")
            counts += torch.bincount(values.view(torch.int32) >> _DROPPED_BITS, minlength=_BINS)
        self._shares += counts.double() / counts.sum()
        self.blocks += 1

    def find_factor(self, level: float) -> tuple[float, float]:
        """The least λ for a level, and the mean uncovered share R̂(λ) of these blocks.

        λ is the upper edge of a bin: conservative, and at most 2 ** -10 (0.1%) above the exact one. Raises ValueError
        if there are fewer than `least_blocks`.

        >>> shares = UncoveredShares()
        >>> for block in range(4):
        ...     shares.add([torch.tensor([0.5, 1.0, 2.0])])
        >>> shares.find_factor(0.8)  # 4 blocks: everything must be covered
        (2.001953125, 0.0)
        >>> shares.find_factor(0.5)[0]  # 4 / 5 R̂ + 1 / 5 <= 1 / 2 for R̂ = 1 / 3
        1.0009765625
        """
        if self.blocks < least_blocks(level):
            raise ValueError(
                f"level {level:g} needs at least {least_blocks(level)} blocks, and there are {self.blocks}"
            )
        allowed = float((self.blocks + 1) * _alpha(level) - 1)  # Σ_b L_b
        uncovered = self._shares.flip(0).cumsum(0).flip(0) - self._shares  # Σ_b L_b at the upper edge of each bin
        first = int((uncovered <= allowed + _ROUNDING).nonzero()[0])
        edge = torch.tensor((first + 1) << _DROPPED_BITS, dtype=torch.int32).view(torch.float32)
        return edge.item(), max(0.0, uncovered[first].item()) / self.blocks
