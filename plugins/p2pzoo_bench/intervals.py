"""Intervals: what a number over seeds, and a difference over test images, could as well have been.

Two kinds of chance are told apart. Seeds: train again and the number is another one (`over_seeds`). Test images: other
regions of the same kind and the number is another one (`paired_over_blocks`); images of one block, a region or a
scene, resemble one another, so blocks are what is drawn.

Imports numpy and scipy only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

CONFIDENCE = 0.95
RESAMPLES = 999
FEWEST_BLOCKS = 4  # of fewer, most resamples are one block over and over: intervals that hold the truth too rarely
MOST_BLOCKS = 50  # the jackknife computes a difference once without each of them


@dataclass(frozen=True)
class Interval:
    """An estimate, and the ends of its interval; None where there is nothing to tell it from."""

    value: float
    low: float | None = None
    high: float | None = None


def over_seeds(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of independent runs with its Student-t interval. One run alone has none."""
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

    difference  given indices of images, what one row's metric exceeds the other's by on those
    blocks      the block of each image

    What is resampled, with replacement, are the jackknife's pseudo-values, one per block: for a mean they are the
    blocks' own values, and a metric of all images together (a pooled matrix, a distance between sets) never sees an
    image twice, which would bias it. How often the interval holds the truth, `benchmarks/interval_coverage.py`
    measures. Fewer than four blocks give none, nor does a difference that is the same without any of them. More than
    fifty, as where each image is its own, are put together into fifty, neighbours with neighbours.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, block in enumerate(blocks):
        groups.setdefault(block, []).append(index)
    drawn_from = [np.array(images) for images in groups.values()]
    if len(drawn_from) > MOST_BLOCKS:
        together = np.array_split(np.arange(len(drawn_from)), MOST_BLOCKS)
        drawn_from = [np.concatenate([drawn_from[i] for i in some]) for some in together]
    n = len(drawn_from)
    everything = np.concatenate(drawn_from) if n else np.array([], int)
    estimate = float(difference(everything))
    if n < FEWEST_BLOCKS:
        return Interval(estimate)

    without = [difference(np.concatenate(drawn_from[:i] + drawn_from[i + 1 :])) for i in range(n)]
    pseudo = n * estimate - (n - 1) * np.array(without)  # one value per block, whose mean's error is the estimate's
    rounding = 1e-12 * float(np.abs(pseudo).max())
    error = _error(pseudo, rounding)
    if error == 0:
        return Interval(estimate)

    drawn = pseudo[np.random.default_rng(seed).integers(n, size=(resamples, n))]
    errors = _error(drawn, rounding)
    usable = errors > 0  # else one block alone was drawn
    studentised = (drawn.mean(1) - pseudo.mean())[usable] / errors[usable]
    lower, upper = np.quantile(studentised, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(estimate - upper * error), float(estimate - lower * error))


def between_groups(
    a: Sequence[float], b: Sequence[float], *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Interval, float | None]:
    """What a's mean exceeds b's by, with its interval, and p of there being no difference, two-sided.

    a, b  one value per member of two groups that share none, as participants who each saw one algorithm

    A studentised bootstrap of the two means, each group resampled by itself (Davison & Hinkley 1997, §3.2, §4.4). Fewer
    than four in a group, or groups of one value throughout, give neither interval nor p.
    """
    groups = [np.asarray(values, float) for values in (a, b)]
    estimate = float(groups[0].mean() - groups[1].mean())
    rounding = 1e-12 * max(1.0, *(float(np.abs(group).max()) for group in groups))
    error = float(np.hypot(*(_error(group, rounding) for group in groups))) if min(map(len, groups)) > 1 else 0.0
    if min(map(len, groups)) < FEWEST_BLOCKS or error == 0:
        return Interval(estimate), None
    draw = np.random.default_rng(seed)
    drawn = [group[draw.integers(len(group), size=(resamples, len(group)))] for group in groups]
    errors = np.hypot(*(_error(each, rounding) for each in drawn))
    usable = errors > 0
    moved = drawn[0].mean(1) - drawn[1].mean(1) - estimate
    studentised = moved[usable] / errors[usable]
    lower, upper = np.quantile(studentised, [(1 - confidence) / 2, (1 + confidence) / 2])
    p = (1 + int((np.abs(studentised) >= abs(estimate) / error).sum())) / (1 + len(studentised))
    return Interval(estimate, float(estimate - upper * error), float(estimate - lower * error)), p


def _error(pseudo: np.ndarray, rounding: float) -> np.ndarray:
    """(..., n) -> (...): the standard error of the mean; 0 where it is nothing but rounding."""
    error = np.std(pseudo, axis=-1, ddof=1) / pseudo.shape[-1] ** 0.5
    return np.where(error > rounding, error, 0.0)
