"""The difference of two rows over folds: one interval that holds seeds, regions and scorers (protocol 2).

Each fold is one run of each row, tested on regions that no other fold tests. Seed, fold and scorer vary together, so
their variances are not separated, and none is added to another. The target is the expected difference on regions like
these, over fresh seeds.

    d_f  difference over all tiles of fold f        d̄ = Σ ω_f d_f,  ω_f = tiles of fold f / tiles of all folds
    s² = Σ (d_f - mean d)² / (K - 1)                V = s² Σ ω_f²,  interval d̄ ± t(K-1) √V

The training sets of the folds share most regions. What that does to the variance cannot be estimated from the folds
(Bengio & Grandvalet 2004). As a sensitivity, the document of a claim has a wider interval too: Nadeau & Bengio (2003)
multiply V by 1 + K · test tiles / training tiles of a fold. `benchmarks/interval_coverage.py` simulates how often the
interval contains the true value.

Three folds have K - 1 = 2 degrees of freedom: adjusted for 35 rows, a difference needs 26 standard errors. A table with
`pooled_spread` learns from all its rows how much runs vary (`pool_rows`). Rows need not vary alike, and the baseline is
in every difference: so each of the two rows of a difference has the table's variance only if its own is not larger, and
degrees of freedom are those of Welch and Satterthwaite (1946). `interval_coverage.py` simulates that too.

Imports only numpy and scipy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from p2pzoo_bench.intervals import CONFIDENCE, Interval

MIN_FOLDS = 3  # with two, Student's t has one degree of freedom: the interval is 13 standard errors wide


@dataclass(frozen=True)
class FoldDifference:
    """The mean difference over folds.

    value    d̄
    error    √V; None with fewer than MIN_FOLDS folds, or if all folds have the same difference
    of       the difference of each of the K folds
    degrees  degrees of freedom of the error
    """

    value: float
    error: float | None
    of: tuple[float, ...]
    degrees: float

    @property
    def folds(self) -> int:
        return len(self.of)

    def interval(self, confidence: float = CONFIDENCE, *, test_per_train: float = 0.0) -> Interval:
        """The two-sided interval; without ends if there is no error.

        test_per_train  test tiles / training tiles of a fold, for the interval of Nadeau & Bengio; 0: the plain one

        >>> difference = over_folds([0.1, 0.2, 0.3], tiles=[10, 10, 10])
        >>> round(difference.interval().low, 3), round(difference.interval().high, 3)
        (-0.048, 0.448)
        """
        if self.error is None:
            return Interval(self.value)
        half = float(student.ppf((1 + confidence) / 2, self.degrees)) * self.error
        half *= (1 + self.folds * test_per_train) ** 0.5
        return Interval(self.value, self.value - half, self.value + half)

    @property
    def p(self) -> float | None:
        """Two-sided, of no difference."""
        if self.error is None:
            return None
        return float(2 * student.sf(abs(self.value) / self.error, self.degrees))


@dataclass(frozen=True)
class Spread:
    """How much the runs of a table vary.

    variance  of one run, without what its row and its fold have in common with others
    degrees   of freedom
    folds     what each fold adds to the numbers of all rows
    """

    variance: float
    degrees: int
    folds: tuple[float, ...]

    def of_row(self, numbers: Sequence[float]) -> tuple[float, float]:
        """The variance of one run of a row, and its degrees of freedom: the table's, or its own where that is larger.

        numbers  of the same folds
        """
        degrees = len(self.folds) - 1
        own = float((np.asarray(numbers, float) - self.folds).var(ddof=1)) * (1 + degrees / self.degrees)
        return (own, degrees) if own > self.variance else (self.variance, self.degrees)

    def of_difference(self, a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
        """The variance of the difference of two rows in one fold, and its degrees of freedom."""
        (variance_a, degrees_a), (variance_b, degrees_b) = self.of_row(a), self.of_row(b)
        variance = variance_a + variance_b
        return variance, variance**2 / (variance_a**2 / degrees_a + variance_b**2 / degrees_b)


def pool_rows(numbers: Sequence[Sequence[float]]) -> Spread | None:
    """The spread of R rows, each with its numbers of the same K folds: the residual of the table of rows × folds.

    None with fewer than three rows or MIN_FOLDS folds, for numbers that are not finite, and if nothing varies.

    >>> pool_rows([[1, 2, 3], [2, 3, 4], [1, 3, 3]]).degrees
    4
    """
    y = np.asarray(numbers, float)
    if y.ndim != 2 or y.shape[0] < 3 or y.shape[1] < MIN_FOLDS or not np.isfinite(y).all():
        return None
    folds = y.mean(0) - y.mean()
    residual = y - y.mean(1, keepdims=True) - folds
    if np.abs(residual).max() <= 1e-12 * np.abs(y).max():
        return None
    degrees = (y.shape[0] - 1) * (y.shape[1] - 1)
    return Spread(float((residual**2).sum() / degrees), degrees, tuple(folds.tolist()))


def over_folds(
    differences: Sequence[float], tiles: Sequence[int], variance: tuple[float, float] | None = None
) -> FoldDifference:
    """The mean of one difference for each fold.

    tiles     number of test tiles of each fold: its weight
    variance  of one of the differences, and its degrees of freedom (`Spread.of_difference`); None: s²

    Raises ValueError if the lengths differ, or a fold has no tiles.
    """
    if len(differences) != len(tiles) or not tiles or min(tiles) < 1:
        raise ValueError(
            f"{len(differences)} differences need as many numbers of tiles of at least 1, not {list(tiles)}"
        )
    d, weights = np.asarray(differences, float), np.asarray(tiles, float) / sum(tiles)
    value = float(weights @ d)
    if len(d) < MIN_FOLDS or np.ptp(d) <= 1e-12 * np.abs(d).max():
        return FoldDifference(value, None, tuple(differences), len(d) - 1)
    of_one, degrees = variance or (float(d.var(ddof=1)), len(d) - 1)
    return FoldDifference(value, (of_one * float((weights**2).sum())) ** 0.5, tuple(differences), degrees)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family of claims, adjusted (Holm 1979): below 0.05, none of them is wrong with 95% probability.

    A p-value that is not known (NaN) counts as 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    known = [1.0 if math.isnan(p) else p for p in p_values]
    adjusted, largest = [0.0] * len(known), 0.0
    for rank, index in enumerate(sorted(range(len(known)), key=lambda i: known[i])):
        largest = max(largest, min(1.0, (len(known) - rank) * known[index]))
        adjusted[index] = largest
    return adjusted
