"""Intervals contain the true value as often as they should; there is none if the values are too few."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from p2pzoo_bench.intervals import Interval, over_seeds, paired_over_blocks

T_TWO_DEGREES = 4.302652729749464  # the 97.5% quantile of Student's t (any table)


def test_three_seeds_give_the_textbook_interval():
    interval = over_seeds([1.0, 2.0, 4.0])
    half = T_TWO_DEGREES * math.sqrt(((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2) / math.sqrt(3)
    assert interval.value == pytest.approx(7 / 3)
    assert (interval.low, interval.high) == (pytest.approx(7 / 3 - half), pytest.approx(7 / 3 + half))


def test_one_seed_has_no_interval():
    assert over_seeds([0.5]) == Interval(0.5)


@pytest.mark.slow
def test_the_interval_over_seeds_contains_the_truth_in_95_percent_of_cases():
    rng = np.random.default_rng(0)
    covered = [i.low <= 0 <= i.high for i in (over_seeds(rng.normal(size=3)) for _ in range(4000))]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)


def mean_of(values):
    return lambda images: float(values[images].mean())


def slow_interval(values, blocks, resamples, seed):
    """An independent implementation with plain loops: the standard error of a mean over blocks of equal size."""
    names = list(dict.fromkeys(blocks))
    means = [np.mean([v for v, b in zip(values, blocks, strict=True) if b == name]) for name in names]
    n = len(names)

    def error(sample):
        centre = sum(sample) / n
        return math.sqrt(sum((m - centre) ** 2 for m in sample) / (n - 1) / n)

    ts = []
    for indices in np.random.default_rng(seed).integers(n, size=(resamples, n)):
        sample = [means[i] for i in indices]
        if error(sample) > 0:
            ts.append((sum(sample) / n - sum(means) / n) / error(sample))
    low, high = np.quantile(ts, [0.025, 0.975])
    return sum(means) / n - high * error(means), sum(means) / n - low * error(means)


def test_the_bootstrap_over_blocks_agrees_with_plain_loops():
    rng = np.random.default_rng(1)
    blocks = [name for name in "abcdef" for _ in range(4)]
    values = rng.normal(size=24) + np.repeat(rng.normal(size=6), 4)
    interval = paired_over_blocks(mean_of(values), blocks, resamples=200, seed=3)
    assert interval.value == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(slow_interval(values, blocks, 200, 3))


def test_images_of_one_block_do_not_count_as_independent():
    rng = np.random.default_rng(2)
    values = np.repeat(rng.normal(size=8), 10)  # eight regions with ten equal images each
    blocked = paired_over_blocks(mean_of(values), np.repeat(range(8), 10).tolist())
    alone = paired_over_blocks(mean_of(values), list(range(80)))
    assert blocked.high - blocked.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize("blocks", [[], ["a"] * 6, list("aaabbb"), list("aabbcc")])
def test_fewer_than_four_blocks_give_no_interval(blocks):
    values = np.arange(6.0)
    interval = paired_over_blocks(lambda images: float(values[images].sum()), blocks)
    assert (interval.low, interval.high) == (None, None)


def test_equal_rows_have_no_interval():
    assert paired_over_blocks(lambda images: 0.0, list("aabbccdd")) == Interval(0.0)


def test_many_blocks_are_merged_so_that_the_difference_is_computed_rarely():
    values = np.random.default_rng(5).normal(size=1000)
    sizes = []

    def difference(images):
        sizes.append(len(images))
        return float(values[images].mean())

    interval = paired_over_blocks(difference, list(range(1000)))
    assert sizes == [1000] + [990] * 100
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 1000**0.5, rel=0.2)


def test_resamples_are_reproducible():
    values = np.random.default_rng(4).normal(size=12)
    first, second = (paired_over_blocks(mean_of(values), list("aabbccddeeff")) for _ in range(2))
    assert first == second


@given(st.lists(st.integers(-100, 100), min_size=4, max_size=12), st.floats(-1e3, 1e3), st.floats(0.1, 100))
def test_the_interval_shifts_and_scales_with_the_values(values, shift, scale):
    values = np.array(values, float)
    plain = paired_over_blocks(mean_of(values), range(len(values)), resamples=49)
    transformed = paired_over_blocks(mean_of(values * scale + shift), range(len(values)), resamples=49)
    if plain.low is None or transformed.low is None:
        return
    tolerance = 1e-6 * (abs(shift) + scale * np.abs(values).max() + 1)
    for before, after in itertools.zip_longest((plain.low, plain.high), (transformed.low, transformed.high)):
        assert after == pytest.approx(before * scale + shift, rel=1e-6, abs=tolerance)
