"""The interval over folds, its p and Holm's adjustment, against formulas written out."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from p2pzoo_bench.folds import MIN_FOLDS, Spread, holm, over_folds, pool_rows
from p2pzoo_bench.intervals import Interval, over_seeds
from scipy.stats import ttest_1samp

finite = st.floats(-10, 10).map(lambda value: round(value, 6))


def test_folds_of_equal_size_give_students_interval_and_p():
    differences = [0.03, -0.01, 0.05, 0.02, 0.04]
    found = over_folds(differences, [9] * 5)
    expected, test = over_seeds(differences), ttest_1samp(differences, 0)
    interval = found.interval()
    assert (interval.value, interval.low, interval.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert found.p == pytest.approx(test.pvalue)


def test_folds_are_weighted_by_their_tiles():
    found = over_folds([0.1, 0.2, 0.4], [10, 20, 70])
    weights = (0.1, 0.2, 0.7)
    value = 0.1 * 0.1 + 0.2 * 0.2 + 0.7 * 0.4
    mean = (0.1 + 0.2 + 0.4) / 3
    variance = sum((d - mean) ** 2 for d in (0.1, 0.2, 0.4)) / 2 * sum(w**2 for w in weights)
    assert found.value == pytest.approx(value)
    assert found.error == pytest.approx(math.sqrt(variance))
    t_two_degrees = 4.302652729749464  # the 97.5% quantile of Student's t (any table)
    assert found.interval().high == pytest.approx(value + t_two_degrees * math.sqrt(variance))


def test_the_sensitivity_of_nadeau_and_bengio_is_wider():
    found = over_folds([0.1, 0.2, 0.4, 0.1], [10, 10, 10, 10])
    plain, wider = found.interval(), found.interval(test_per_train=1 / 7)
    ratio = (wider.high - wider.value) / (plain.high - plain.value)
    assert ratio == pytest.approx(math.sqrt(1 + 4 / 7))


@pytest.mark.parametrize("differences", [[0.1], [0.1, 0.3], [0.2, 0.2, 0.2]])
def test_too_few_folds_or_equal_differences_give_no_interval(differences):
    found = over_folds(differences, [5] * len(differences))
    assert found.interval() == Interval(pytest.approx(np.mean(differences)))
    assert found.p is None


@pytest.mark.parametrize("tiles", [[], [1, 2], [1, 2, 0], [1, 2, 3, 4]])
def test_every_fold_needs_its_number_of_tiles(tiles):
    with pytest.raises(ValueError, match="3 differences need as many numbers of tiles"):
        over_folds([0.1, 0.2, 0.3], tiles)


@pytest.mark.parametrize("folds", [3, 5, 10])
@pytest.mark.parametrize("skewed", [False, True])
def test_the_interval_contains_the_truth_in_95_percent_of_simulated_tables(folds, skewed):
    """Regions and seeds contribute equally to the variance of a run; folds have 30 to 60 tiles in 7 to 15 regions."""
    rng, held, trials = np.random.default_rng(0), 0, 3000
    tiles = rng.integers(30, 61, folds)

    def effects(*shape):
        return rng.exponential(size=shape) - 1 if skewed else rng.normal(size=shape)

    for _ in range(trials):
        differences = [effects(n // 4).mean() + effects(1)[0] / (n // 4) ** 0.5 for n in tiles]
        interval = over_folds(differences, tiles.tolist()).interval()
        held += interval.low <= 0 <= interval.high
    assert 0.93 <= held / trials <= 0.97


def test_the_pooled_spread_is_the_residual_variance_of_an_analysis_of_variance():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(6, 4)) + rng.normal(size=(6, 1)) * 5 + rng.normal(size=4) * 3
    design = np.hstack([np.kron(np.eye(6), np.ones((4, 1))), np.tile(np.eye(4), (6, 1))])  # effects of rows and folds
    effects, _, rank, _ = np.linalg.lstsq(design, y.ravel())
    left = y.ravel() - design @ effects
    found = pool_rows(y)
    assert found.degrees == 24 - rank == 15
    assert found.folds == pytest.approx(y.mean(0) - y.mean())
    assert found.variance == pytest.approx((left**2).sum() / 15)


@pytest.mark.parametrize(
    "numbers",
    [[[1, 2, 3], [2, 4, 1]], [[1, 2], [2, 4], [3, 3]], [[1, 2, 3]] * 3, [[1, 2, math.nan], [2, 4, 1], [3, 1, 1]], []],
)
def test_too_few_rows_or_folds_have_no_pooled_spread(numbers):
    assert pool_rows(numbers) is None


class TestSpread:
    spread = Spread(0.02, 70, (0.3, -0.1, -0.2))

    def test_a_row_has_the_variance_of_the_table_unless_its_own_is_larger(self):
        quiet, loud = np.add([0.5, 0.51, 0.52], self.spread.folds), np.add([0.1, 0.9, 0.5], self.spread.folds)
        assert self.spread.of_row(quiet) == (0.02, 70)
        own, degrees = self.spread.of_row(loud)
        assert degrees == 2
        assert own == pytest.approx(0.16 * 36 / 35)  # 36 rows: the residuals of a row have 35/36 of its variance

    def test_a_difference_has_the_sum_with_the_degrees_of_welch_and_satterthwaite(self):
        numbers = [0.3, -0.1, -0.2], np.add([0.1, 0.9, 0.5], self.spread.folds)
        loud = 0.16 * 36 / 35
        variance, degrees = self.spread.of_difference(*numbers)
        assert variance == pytest.approx(0.02 + loud)
        assert degrees == pytest.approx((0.02 + loud) ** 2 / (0.02**2 / 70 + loud**2 / 2))
        assert self.spread.of_difference(numbers[0], numbers[0]) == pytest.approx((0.04, 140))

    def test_an_interval_uses_it(self):
        found, weights = over_folds([0.1, 0.11, 0.12], [10, 20, 70], (0.04, 70)), (0.1, 0.2, 0.7)
        assert found.error == pytest.approx(math.sqrt(0.04 * sum(w**2 for w in weights)))
        t_70_degrees = 1.9944371117711865  # the 97.5% quantile of Student's t (any table)
        assert found.interval().high == pytest.approx(found.value + t_70_degrees * found.error)

    @pytest.mark.parametrize("baseline", [1, 3])
    def test_few_tables_name_a_row_although_none_differs_also_where_the_baseline_varies_more(self, baseline):
        rng, wrong, trials = np.random.default_rng(0), 0, 1500
        for _ in range(trials):
            numbers = rng.normal(size=3) + rng.normal(size=(12, 3)) * np.where(np.arange(12) == 0, baseline, 1)[:, None]
            spread = pool_rows(numbers)
            variances = [spread.of_difference(row, numbers[0]) for row in numbers[1:]]
            differences = zip(numbers[1:] - numbers[0], variances, strict=True)
            wrong += min(holm([over_folds(d, [1] * 3, variance).p for d, variance in differences])) <= 0.05
        assert wrong / trials <= 0.06


@given(st.lists(st.tuples(finite, st.integers(1, 99)), min_size=MIN_FOLDS, max_size=10), finite)
def test_a_shift_moves_the_interval_and_the_order_of_folds_does_not_matter(folds, shift):
    differences, tiles = zip(*folds, strict=True)
    found = over_folds(differences, tiles)
    again = over_folds(differences[::-1], tiles[::-1])
    assert (again.value, again.error) == pytest.approx((found.value, found.error))
    moved = over_folds([d + shift for d in differences], tiles)
    if found.error and found.error > 1e-5:
        assert (moved.value - shift, moved.error) == pytest.approx((found.value, found.error), rel=1e-6, abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_rejects_what_the_closed_test_of_bonferroni_rejects(ps):
    """Holm 1979: a hypothesis is rejected if every family that contains it is, each by Bonferroni."""
    members = range(len(ps))
    families = [f for size in range(1, len(ps) + 1) for f in itertools.combinations(members, size)]
    closed = [max(min(1, len(f) * min(ps[i] for i in f)) for f in families if member in f) for member in members]
    assert holm(ps) == pytest.approx(closed)
