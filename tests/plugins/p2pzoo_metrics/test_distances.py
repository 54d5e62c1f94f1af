"""The kernel and the Fréchet distance against double loops, scipy, and cases calculated by hand."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from p2pzoo_metrics.distances import (
    block_kernel_distance,
    frechet_distance,
    kernel_distance,
    paired_kernel_distance,
    precision_recall_density_coverage,
    rbf_distance,
)

FEATURES = arrays(
    np.float32,
    st.tuples(st.integers(2, 6), st.integers(1, 4)),
    elements=st.floats(-2, 2, width=32, allow_subnormal=False),
)


def features(seed, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def k(u, v):
    return (sum(float(i) * float(j) for i, j in zip(u, v, strict=True)) / len(u) + 1) ** 3


def unequal_index_pairs(values):
    return list(itertools.permutations(range(len(values)), 2))


def kernel_by_loops(a, b):
    within_a = np.mean([k(a[i], a[j]) for i, j in unequal_index_pairs(a)])
    within_b = np.mean([k(b[i], b[j]) for i, j in unequal_index_pairs(b)])
    return within_a + within_b - 2 * np.mean([k(u, v) for u in a for v in b])


def paired_by_loops(a, b):
    return np.mean([k(a[i], a[j]) + k(b[i], b[j]) - k(a[i], b[j]) - k(a[j], b[i]) for i, j in unequal_index_pairs(a)])


def frechet_by_roots(a, b):
    covariances = [np.cov(rows, rowvar=False) for rows in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root.real)


def rows(*shape, seed=0, shift=0.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, shape))


def test_the_kernel_distance_of_two_and_two_numbers():
    zeros, ones = torch.zeros(2, 1), torch.ones(2, 1)
    # within zeros (0 + 1)³ = 1, within ones (1 + 1)³ = 8, between them 1
    assert kernel_distance(zeros, ones) == 1 + 8 - 2 * 1
    assert paired_kernel_distance(zeros, ones) == 7


@settings(max_examples=50, deadline=None)
@given(FEATURES, st.data())
def test_kernel_distances_equal_a_double_loop(first, data):
    second = data.draw(arrays(np.float32, first.shape, elements=st.floats(-2, 2, width=32, allow_subnormal=False)))
    a, b = torch.from_numpy(first), torch.from_numpy(second)
    assert kernel_distance(a, b) == pytest.approx(kernel_by_loops(first, second), rel=1e-9, abs=1e-9)
    assert paired_kernel_distance(a, b) == pytest.approx(paired_by_loops(first, second), rel=1e-9, abs=1e-9)
    assert kernel_distance(b, a) == pytest.approx(kernel_distance(a, b), abs=1e-9)
    assert kernel_distance(a, b.flip(0)) == pytest.approx(kernel_distance(a, b), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(FEATURES, st.data())
def test_the_distance_between_blocks_equals_a_double_loop_over_images_of_different_blocks(first, data):
    second = data.draw(arrays(np.float32, first.shape, elements=st.floats(-2, 2, width=32, allow_subnormal=False)))
    blocks = data.draw(st.lists(st.integers(0, 2), min_size=len(first), max_size=len(first)))
    a, b = torch.from_numpy(first), torch.from_numpy(second)
    terms = [
        k(first[i], first[j]) + k(second[i], second[j]) - 2 * k(first[i], second[j])
        for i, j in unequal_index_pairs(first)
        if blocks[i] != blocks[j]
    ]
    found = block_kernel_distance(a, b, torch.tensor(blocks))
    if terms:
        assert found == pytest.approx(np.mean(terms), rel=1e-9, abs=1e-9)
    else:
        assert math.isnan(found), "all images are of one block"
    alone = torch.arange(len(a))
    assert block_kernel_distance(a, b, alone) == pytest.approx(paired_kernel_distance(a, b), rel=1e-9, abs=1e-9)
    assert block_kernel_distance(a, a, alone) == pytest.approx(0, abs=1e-9)


def test_a_set_against_itself_is_below_0_by_the_amount_in_the_docstring_and_0_in_pairs():
    a = rows(7, 5)
    itself = np.mean([k(u, u) for u in a])
    others = np.mean([k(a[i], a[j]) for i, j in unequal_index_pairs(a)])
    assert kernel_distance(a, a) == pytest.approx(-2 / 7 * (itself - others))
    assert kernel_distance(a, a) < -0.1
    assert paired_kernel_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_kernel_distances_are_unbiased():
    """Both samples come from one distribution: the mean estimate is 0 within 4 standard errors."""
    independent = [kernel_distance(rows(8, 3, seed=2 * i), rows(8, 3, seed=2 * i + 1)) for i in range(600)]
    samples = [rows(8, 3, seed=i) for i in range(600)]
    paired = [
        paired_kernel_distance(
            a, 0.8 * a + 0.6 * rows(8, 3, seed=10_000 + i)
        )  # same distribution; row i of b depends on row i of a
        for i, a in enumerate(samples)
    ]
    across = [kernel_distance(a, 0.8 * a + 0.6 * rows(8, 3, seed=10_000 + i)) for i, a in enumerate(samples)]
    for estimates in (independent, paired):
        assert abs(np.mean(estimates)) < 4 * np.std(estimates) / math.sqrt(len(estimates))
    assert np.mean(across) < -4 * np.std(across) / math.sqrt(len(across)), "pairs have something in common"


def test_the_distance_of_one_row_is_nan():
    for distance in (kernel_distance, paired_kernel_distance, frechet_distance):
        assert math.isnan(distance(rows(1, 3), rows(1, 3, seed=1)))


def test_nan_in_gives_nan_out():
    broken = rows(4, 3)
    broken[1, 1] = float("nan")
    for distance in (kernel_distance, paired_kernel_distance, frechet_distance):
        assert math.isnan(distance(broken, rows(4, 3, seed=1)))


def test_pairs_need_equal_numbers_of_rows():
    with pytest.raises(ValueError, match="a has 3 rows and b has 4: pairs need equal numbers"):
        paired_kernel_distance(rows(3, 2), rows(4, 2))
    with pytest.raises(ValueError, match="a has 1 row and b has 4: "):
        paired_kernel_distance(rows(1, 2), rows(4, 2))


@pytest.mark.parametrize("shape", [(40, 6), (6, 6), (5, 12)], ids=["many rows", "square", "few rows"])
def test_the_frechet_distance_equals_the_one_by_matrix_root(shape):
    a, b = rows(*shape), rows(*shape, seed=1, shift=0.5) * torch.linspace(0.5, 2, shape[1])
    # for a matrix of low rank, the error of scipy's root is about the square root of the rounding error
    assert frechet_distance(a, b) == pytest.approx(frechet_by_roots(a.numpy(), b.numpy()), rel=1e-5)


def test_the_frechet_distance_of_two_normal_distributions_in_one_dimension():
    a, b = torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [5.0]])  # means 0, 3; deviations √2, √8
    assert frechet_distance(a, b) == pytest.approx(3**2 + (math.sqrt(8) - math.sqrt(2)) ** 2)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_the_frechet_distance_takes_sets_of_different_size():
    a, b = rows(30, 4), rows(9, 4, seed=1)
    assert frechet_distance(a, b) == pytest.approx(frechet_by_roots(a.numpy(), b.numpy()), rel=1e-8)


class TestRbfDistance:
    def test_it_is_the_mean_over_all_pairs(self):
        a, b = features(0, (7, 4)).double(), features(1, (5, 4)).double()
        unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (a, b)]
        kernel = [
            np.mean([[np.exp(-float((u - v).square().sum()) / 200) for v in right] for u in left])
            for left, right in ((unit[0], unit[0]), (unit[1], unit[1]), (unit[0], unit[1]))
        ]
        assert rbf_distance(a, b, 10.0) == pytest.approx(kernel[0] + kernel[1] - 2 * kernel[2], abs=1e-12)
        assert rbf_distance(3 * a, b, 10.0) == pytest.approx(rbf_distance(a, b, 10.0), abs=1e-12)
        assert rbf_distance(a, a, 10.0) == pytest.approx(0, abs=1e-12)


class TestPrecisionRecallDensityCoverage:
    @pytest.mark.parametrize("nearest", [1, 3])
    def test_it_is_that_of_the_definition(self, nearest):
        fake, real = features(0, (12, 3)), features(1, (15, 3)) + 0.5
        numbers = precision_recall_density_coverage(fake, real, nearest)

        def radius(rows, i):
            return sorted(float((rows[i] - row).norm()) for row in rows)[nearest]

        def holds(rows, i, point):
            return float((rows[i] - point).norm()) < radius(rows, i)

        in_real = np.array([[holds(real, i, point) for point in fake] for i in range(len(real))])
        in_fake = np.array([[holds(fake, i, point) for point in real] for i in range(len(fake))])
        assert numbers == pytest.approx({
            "precision": in_real.any(0).mean(), "recall": in_fake.any(0).mean(),
            "density": in_real.sum(0).mean() / nearest, "coverage": in_real.any(1).mean(),
        })  # fmt: skip

    def test_far_sets_have_nothing_in_common(self):
        numbers = precision_recall_density_coverage(features(0, (9, 3)), features(1, (9, 3)) + 100, 2)
        assert set(numbers.values()) == {0.0}

    def test_of_few_rows_the_balls_reach_to_the_farthest(self):
        fake, real = features(0, (3, 3)), features(1, (9, 3))
        few, farthest = (precision_recall_density_coverage(fake, real, nearest) for nearest in (5, 2))
        assert few["recall"] == farthest["recall"]

    def test_too_few_rows_and_nan_have_no_number(self):
        broken = features(0, (9, 3))
        broken[0, 0] = float("nan")
        for fake in (features(0, (1, 3)), broken):
            assert all(map(np.isnan, precision_recall_density_coverage(fake, features(1, (9, 3)), 3).values()))
