"""The least λ: exact against brute force, and the promise in simulation."""

import numpy as np
import pytest
import torch
from p2pzoo_intervals.risk_control import UncoveredShares, least_blocks

ROUNDED_UP = 1 + 2**-10  # of a factor, at most


def shares_of(blocks):
    shares = UncoveredShares()
    for scores in blocks:
        shares.add([torch.as_tensor(scores, dtype=torch.float32)])
    return shares


def uncovered(scores, factor):
    return float((np.asarray(scores, np.float32) > factor).mean())


def least_factor(blocks, level):
    """Brute force: the first score with which n / (n + 1) R̂ + 1 / (n + 1) <= α."""
    n = len(blocks)
    for factor in np.unique(np.concatenate([[0.0], *blocks]).astype(np.float32)):
        risk = np.mean([uncovered(scores, factor) for scores in blocks])
        if n / (n + 1) * risk + 1 / (n + 1) <= 1 - level + 1e-9:
            return float(factor)
    raise AssertionError("the largest score covers everything")


@pytest.mark.parametrize(("level", "blocks"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99), (0.1, 1)])
def test_a_level_needs_so_many_blocks_exactly(level, blocks):
    assert least_blocks(level) == blocks
    enough = shares_of([[1.0, 2.0]] * blocks)
    assert enough.find_factor(level)[0] > 0
    if blocks > 1:
        with pytest.raises(
            ValueError, match=f"level {level:g} needs at least {blocks} blocks, and there are {blocks - 1}"
        ):
            shares_of([[1.0, 2.0]] * (blocks - 1)).find_factor(level)


@pytest.mark.parametrize("seed", range(8))
def test_the_factor_is_the_least_one_up_to_a_tenth_of_a_percent(seed):
    rng = np.random.default_rng(seed)
    blocks = [rng.lognormal(rng.normal(), size=rng.integers(1, 40)).astype(np.float32) for _ in range(4 + seed)]
    for level in (0.3, 0.5, 0.7, 0.8):
        exact = least_factor(blocks, level)
        factor, risk = shares_of(blocks).find_factor(level)
        assert exact < factor <= exact * ROUNDED_UP
        assert risk == pytest.approx(np.mean([uncovered(scores, factor) for scores in blocks]), abs=1e-9)


def test_every_block_counts_the_same_however_large_it_is():
    small, large = [[5.0]] * 3, [[1.0] * 1000] * 6
    factor, risk = shares_of([*small, *large]).find_factor(0.6)  # 10 × 0.4 - 1 = 3 blocks may be uncovered
    assert 1 < factor < 1.01
    assert risk == pytest.approx(3 / 9)


def test_values_that_are_covered_at_once_need_no_width():
    factor, risk = shares_of([[0.0, 0.0]] * 4).find_factor(0.8)
    assert factor < 1e-30
    assert risk == 0


def test_the_images_of_a_block_are_one_block():
    apart, together = UncoveredShares(), UncoveredShares()
    for _ in range(4):
        apart.add([torch.tensor([[0.5, 1.0]]), torch.tensor([3.0])])
        together.add([torch.tensor([0.5, 1.0, 3.0])])
    assert apart.blocks == 4
    assert apart.find_factor(0.5) == together.find_factor(0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_an_error(value):
    with pytest.raises(ValueError, match="not finite"):
        shares_of([[1.0, value]])


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("level", "blocks"), [(0.8, 4), pytest.param(0.8, 9, marks=SLOW), pytest.param(0.5, 6, marks=SLOW)]
)
def test_the_promise_holds_for_blocks_of_unequal_difficulty(level, blocks):
    """Over many calibrations the mean uncovered share of a new block is at most α, and not far below: at most
    2 / (n + 1) (arXiv:2208.02814, theorem 2), up to the error of the simulation."""
    rng = np.random.default_rng(0)

    def block():
        return np.abs(rng.normal(size=30)) * rng.lognormal(sigma=0.7)

    new = [np.sort(block()) for _ in range(2000)]
    means = []
    for _ in range(300):
        factor, _ = shares_of([block() for _ in range(blocks)]).find_factor(level)
        means.append(np.mean([1 - np.searchsorted(scores, factor, "right") / len(scores) for scores in new]))
    alpha, error = 1 - level, np.std(means) / len(means) ** 0.5
    assert alpha - 2 / (blocks + 1) - 3 * error < np.mean(means) < alpha + 2 * error
    if blocks > least_blocks(level):
        assert max(means) > alpha, "single calibrations may miss it: the promise is of their mean"
