"""Confidence intervals of a mean over seeds, and of a difference over test images.

Two sources of chance are kept apart. Seeds: training again gives another number (`over_seeds`). Test images: other
images of the same kind give another number (`paired_over_blocks`). Images of one block (a region or a scene) resemble
each other, so whole blocks are resampled.

Imports only numpy and scipy.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

CONFIDENCE = 0.95
RESAMPLES = 999  # (999 + 1) × 2.5% is a whole number: the usual choice for a 95% interval
MIN_BLOCKS = 4  # with fewer, most resamples repeat one block, and intervals miss the true value too often
MAX_BLOCKS = 100  # the jackknife computes a difference once per block


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval; None if there are too few values for one."""

    value: float
    low: float | None = None
    high: float | None = None


def over_seeds(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of independent runs with its Student-t interval. A single run has no interval.

    >>> over_seeds([0.5])
    Interval(value=0.5, low=None, high=None)
    """
    mean = float(np.mean(values))
    n = len(values)
    if n < 2:
        return Interval(mean)
    half = student.ppf((1 + confidence) / 2, n - 1) * float(np.std(values, ddof=1)) / n**0.5
    return Interval(mean, mean - half, mean + half)


def paired_over_blocks(
    difference: Callable[[np.ndarray], float],
    blocks: Sequence[Hashable],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """A studentised bootstrap interval of a difference measured on test images (Davison & Hinkley 1997, §2.4, §3.2).

    difference  takes indices of images, returns one row's metric on them minus the other's
    blocks      the block of each image

    The jackknife's pseudo-values, one per block, are resampled with replacement. For a mean they are the blocks' own
    values. A metric of all images together (a pooled matrix, a distance between sets) never gets an image twice, which
    would bias it. `benchmarks/interval_coverage.py` measures how often the interval contains the true value.

    There is no interval with fewer than MIN_BLOCKS blocks, or if no block changes the difference. More than MAX_BLOCKS
    blocks (if each image is its own block) are merged into MAX_BLOCKS, neighbours with neighbours.

    >>> values = np.array([0.1, 0.2, 0.1, 0.3, 0.2])
    >>> round(paired_over_blocks(lambda images: float(values[images].mean()), list("abcde")).value, 3)
    0.18
    """
    groups = _group_by_block(blocks)
    n = len(groups)
    all_images = np.concatenate(groups) if n else np.array([], int)
    estimate = float(difference(all_images))
    if n < MIN_BLOCKS:
        return Interval(estimate)

    without = [difference(np.concatenate(groups[:i] + groups[i + 1 :])) for i in range(n)]
    # one value per block; the standard error of their mean is that of the estimate
    pseudo = n * estimate - (n - 1) * np.array(without)
    rounding = 1e-12 * float(np.abs(pseudo).max())
    error = _standard_error(pseudo, rounding)
    if error == 0:
        return Interval(estimate)

    samples = pseudo[np.random.default_rng(seed).integers(n, size=(resamples, n))]
    errors = _standard_error(samples, rounding)
    usable = errors > 0  # a sample of one block repeated has none
    studentised = (samples.mean(1) - pseudo.mean())[usable] / errors[usable]
    lower, upper = np.quantile(studentised, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(estimate - upper * error), float(estimate - lower * error))


def _group_by_block(blocks: Sequence[Hashable]) -> list[np.ndarray]:
    """The indices of the images of each block, merged into at most MAX_BLOCKS groups."""
    by_block: dict[Hashable, list[int]] = {}
    for index, block in enumerate(blocks):
        by_block.setdefault(block, []).append(index)
    groups = [np.array(images) for images in by_block.values()]
    if len(groups) > MAX_BLOCKS:
        merged = np.array_split(np.arange(len(groups)), MAX_BLOCKS)
        groups = [np.concatenate([groups[i] for i in neighbours]) for neighbours in merged]
    return groups


def between_groups(
    a: Sequence[float], b: Sequence[float], *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Interval, float | None]:
    """The mean of a minus the mean of b with its interval, and the two-sided p of no difference.

    a, b  one value per member of two groups without common members, such as participants who each saw one algorithm

    A studentised bootstrap of the two means; each group is resampled separately (Davison & Hinkley 1997, §3.2, §4.4).
    There is neither interval nor p with fewer than MIN_BLOCKS members in a group, or if no values differ within groups.

    >>> between_groups([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    (Interval(value=-3.0, low=None, high=None), None)
    """
    groups = [np.asarray(values, float) for values in (a, b)]
    estimate = float(groups[0].mean() - groups[1].mean())
    rounding = 1e-12 * max(1.0, *(float(np.abs(group).max()) for group in groups))
    error = (
        float(np.hypot(*(_standard_error(group, rounding) for group in groups))) if min(map(len, groups)) > 1 else 0.0
    )
    if min(map(len, groups)) < MIN_BLOCKS or error == 0:
        return Interval(estimate), None
    rng = np.random.default_rng(seed)
    samples = [group[rng.integers(len(group), size=(resamples, len(group)))] for group in groups]
    errors = np.hypot(*(_standard_error(sample, rounding) for sample in samples))
    usable = errors > 0
    deviations = samples[0].mean(1) - samples[1].mean(1) - estimate
    studentised = deviations[usable] / errors[usable]
    lower, upper = np.quantile(studentised, [(1 - confidence) / 2, (1 + confidence) / 2])
    p = (1 + int((np.abs(studentised) >= abs(estimate) / error).sum())) / (1 + len(studentised))
    return Interval(estimate, float(estimate - upper * error), float(estimate - lower * error)), p


def _standard_error(values: np.ndarray, rounding: float) -> np.ndarray:
    """(..., n) -> (...): the standard error of the mean; 0 if it is only rounding."""
    error = np.std(values, axis=-1, ddof=1) / values.shape[-1] ** 0.5
    return np.where(error > rounding, error, 0.0)
