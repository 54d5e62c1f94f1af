"""sharpness against gradients calculated by hand and a loop over pixels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from p2pzoo_metrics.sharpness import Sharpness

from p2pzoo.plugin.batch import Batch
from p2pzoo.utils.errors import UserError

GREY = arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.just(1), st.integers(2, 6), st.integers(2, 6)),
    elements=st.floats(-1, 1, width=32),
)


def measure(y_hat, y):
    return Sharpness(None).measure(Batch(x=y, y=y, ids=tuple(map(str, range(len(y))))), y_hat)


def score(y_hat, y):
    return Sharpness(None).reduce(measure(y_hat, y))["value"]


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, shape)).float()


def energy_by_loops(image):
    """(3, H, W) in [-1, 1]: mean squared difference to the right neighbour plus that to the lower one, of luma."""
    r, g, b = (image.double().numpy() + 1) / 2
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    height, width = luma.shape
    right = [(luma[i, j + 1] - luma[i, j]) ** 2 for i in range(height) for j in range(width - 1)]
    below = [(luma[i + 1, j] - luma[i, j]) ** 2 for i in range(height - 1) for j in range(width)]
    return sum(right) / len(right) + sum(below) / len(below)


def test_the_energy_of_a_step_from_black_to_white():
    y = torch.ones(1, 3, 4, 5)
    y[..., :2] = -1  # one of each row's four differences is 1, in units of the [0, 1] scale
    assert measure(y, y)["y_hat"].item() == pytest.approx(1 / 4)
    assert measure(y.mT, y)["y_hat"].item() == pytest.approx(1 / 4)


def test_energies_agree_with_a_loop_over_pixels():
    y, y_hat = noise(3, 3, 5, 7), noise(3, 3, 5, 7, seed=1) / 2
    statistics = measure(y_hat, y)
    np.testing.assert_allclose(statistics["y"], [energy_by_loops(image) for image in y], rtol=1e-5)
    np.testing.assert_allclose(statistics["y_hat"], [energy_by_loops(image) for image in y_hat], rtol=1e-5)
    assert score(y_hat, y) == pytest.approx(sum(map(energy_by_loops, y_hat)) / sum(map(energy_by_loops, y)), rel=1e-5)


def test_blur_lowers_it_noise_raises_it_and_it_is_1_for_the_photos():
    y = noise(2, 3, 16, 16).cumsum(-1).tanh()
    blurred = torch.nn.functional.avg_pool2d(y, 3, 1, 1)
    assert score(blurred, y) < 0.7
    assert score(y + 0.5 * noise(2, 3, 16, 16, seed=2), y) > 1.2
    assert score(y, y) == 1


def test_a_checkerboard_has_the_maximum_energy():
    board = torch.ones(8, 8)
    board[::2, ::2] = board[1::2, 1::2] = -1
    assert measure(board[None, None], board[None, None])["y"].item() == pytest.approx(2)


def test_the_ratio_is_of_sums_so_one_flat_photo_is_harmless():
    flat, y = torch.zeros(1, 3, 4, 4), noise(1, 3, 4, 4)
    assert score(torch.cat([flat, y]), torch.cat([flat, y])) == 1
    assert score(y, flat) == math.inf
    assert math.isnan(score(flat, flat))


def test_wrong_channel_counts_and_sizes_are_refused():
    with pytest.raises(UserError, match=r"grey \(1 channel\) or RGB \(3 channels\) images, and these have 4"):
        score(noise(1, 4, 4, 4), noise(1, 4, 4, 4))
    with pytest.raises(UserError, match="from 2 px a side up, not 1×4"):
        score(noise(1, 3, 1, 4), noise(1, 3, 1, 4))


@settings(max_examples=50, deadline=None)
@given(GREY, st.floats(0.125, 2))
def test_energy_grows_with_the_square_of_contrast_and_ignores_brightness_and_mirroring(levels, contrast):
    y = torch.from_numpy(levels)
    energies = measure(y, y)["y"]
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(measure(y * contrast, y)["y_hat"], energies * contrast**2, **tolerance)
    np.testing.assert_allclose(measure(y + 0.25, y)["y_hat"], energies, **tolerance)
    np.testing.assert_allclose(measure(y.flip(-1).mT, y)["y_hat"], energies, **tolerance)
    np.testing.assert_allclose(measure(y.expand(-1, 3, -1, -1), y)["y_hat"], energies, **tolerance)
    for index in range(len(y)):
        assert torch.equal(measure(y[index : index + 1], y[index : index + 1])["y"], energies[index : index + 1])
