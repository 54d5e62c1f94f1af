"""lab_histogram against colours calculated by hand and an independent sRGB -> Lab conversion in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from p2pzoo_metrics.colours import CHANNELS, LabHistogram

from p2pzoo.plugin.batch import Batch
from p2pzoo.utils.errors import UserError

WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 0, 0)
PICTURES = arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.just(3)))


def images(levels):
    """(B, H, W, 3) of 0-255 -> (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.asarray(levels, np.float32) / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def flat(*colours):
    """One image of one row, with a pixel of each colour."""
    return images([[colours]])


def measure(y_hat, y, **parameters):
    metric = LabHistogram(None, **parameters)
    return metric, metric.measure(Batch(x=y, y=y, ids=tuple(map(str, range(len(y))))), y_hat)


def score(y_hat, y, **parameters):
    metric, statistics = measure(y_hat, y, **parameters)
    return metric.reduce(statistics)


def non_empty(counts):
    """{index: count} of one image's bins that are not empty."""
    return {int(i): int(counts[0, i]) for i in counts[0].nonzero().flatten()}


def lab_by_definition(rgb):
    """IEC 61966-2-1 and CIE 15: levels 0-255 (..., 3) -> Lab, with the white point of the matrix itself."""
    v = np.asarray(rgb) / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    t = linear @ matrix.T / matrix.sum(1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


@pytest.mark.parametrize(
    ("colour", "lab"),
    [
        (WHITE, (100, 0, 0)),
        (BLACK, (0, 0, 0)),
        ((119, 119, 119), (50, 0, 0)),
        (RED, (53, 80, 67)),  # 53.24, 80.09, 67.20
        ((0, 255, 0), (88, -86, 83)),  # 87.73, -86.18, 83.18
        ((0, 0, 255), (32, 79, -108)),  # 32.30, 79.19, -107.86
    ],
)
def test_a_colour_is_counted_in_the_bins_around_its_lab_values(colour, lab):
    _, statistics = measure(flat(colour), flat(BLACK))
    assert [non_empty(statistics[f"y_hat_{channel}"]) for channel in CHANNELS] == [
        {lab[0]: 1},
        {lab[1] + 110: 1},
        {lab[2] + 110: 1},
    ]


def test_counts_agree_with_an_independent_conversion():
    colours = np.random.default_rng(0).integers(0, 256, (4000, 3))
    lab = lab_by_definition(colours)
    clear = (np.abs(lab - np.floor(lab) - 0.5) > 0.05).all(
        1
    )  # colours whose bin does not depend on the rounding of constants
    assert clear.sum() > 2000
    _, statistics = measure(images(colours[clear][None, None]), flat(BLACK))
    for channel, values, lowest, bins in zip(CHANNELS, lab[clear].T, (0, -110, -110), (101, 221, 221), strict=True):
        expected = np.bincount(np.round(values).astype(int) - lowest, minlength=bins)
        np.testing.assert_array_equal(statistics[f"y_hat_{channel}"][0], expected)


def test_all_greys_share_one_bin_of_a_and_b():
    ramp = images(np.arange(256).repeat(3).reshape(1, 16, 16, 3))
    _, statistics = measure(ramp, ramp)
    assert non_empty(statistics["y_a"]) == non_empty(statistics["y_b"]) == {110: 256}


def test_the_intersection_is_the_fraction_of_pixels_in_common():
    half = score(flat(RED, WHITE), flat(WHITE, WHITE))
    assert half == {"value": 0.5, "L": 0.5, "a": 0.5, "b": 0.5}
    grey = score(flat((119, 119, 119)), flat(WHITE))
    assert grey == {"value": pytest.approx(2 / 3), "L": 0, "a": 1, "b": 1}


def test_all_images_are_pooled_before_they_are_compared():
    swapped = torch.cat([flat(RED), flat(WHITE)]), torch.cat([flat(WHITE), flat(RED)])
    assert score(*swapped)["value"] == 1
    assert score(swapped[0][:1], swapped[1][:1])["value"] == 0


def test_values_beyond_the_outermost_bins_are_counted_there():
    metric, statistics = measure(flat(RED, (0, 0, 255)), flat(BLACK), ab_limit=40)
    assert non_empty(statistics["y_hat_a"]) == {80: 2}
    assert non_empty(statistics["y_hat_b"]) == {80: 1, 0: 1}
    assert metric.log_probabilities(statistics)["b"].centres.tolist() == list(range(-40, 41))


def test_wider_bins_are_centred_on_multiples_of_their_width():
    metric, statistics = measure(flat(RED), flat(WHITE), bin_width=5)
    curves = metric.log_probabilities(statistics)
    centres = {channel: curve.centres[curve.y_hat == 0].item() for channel, curve in curves.items()}
    assert centres == {"L": 55, "a": 80, "b": 65}
    assert curves["L"].centres[curves["L"].y == 0].item() == 100


def test_log_probabilities_are_natural_logarithms_of_fractions():
    metric, statistics = measure(flat(RED, WHITE, WHITE, WHITE), flat(BLACK))
    curve = metric.log_probabilities(statistics)["L"]
    assert curve.y_hat[53].item() == pytest.approx(np.log(1 / 4))
    assert curve.y_hat[100].item() == pytest.approx(np.log(3 / 4))
    assert curve.y[0] == 0
    assert curve.y_hat.exp().sum().item() == pytest.approx(1)
    assert curve.y_hat[1] == -float("inf")


def test_translations_are_rounded_to_8_bit_like_saved_images():
    y = flat((100, 150, 50), (10, 20, 30))
    nearly = y + 0.4 / 127.5
    assert score(nearly, y)["value"] == 1
    assert score(flat(RED) * 3, flat(RED))["value"] == 1


def test_nan_in_an_image_gives_nan():
    broken = flat(RED, WHITE)
    broken[0, 1, 0, 0] = float("nan")
    assert all(np.isnan(value) for value in score(torch.cat([flat(RED, RED), broken]), flat(RED, RED)).values())


def test_only_rgb_is_accepted():
    with pytest.raises(UserError, match=r"lab_histogram takes RGB \(3 channels\) images, and these have 1 channel:"):
        score(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))


@settings(max_examples=30, deadline=None)
@given(PICTURES, st.data())
def test_it_is_an_intersection_for_any_images(levels, data):
    y, y_hat = images(levels), images(data.draw(arrays(np.uint8, levels.shape)))
    _, statistics = measure(y_hat, y)
    for name, counts in statistics.items():
        assert counts.sum(1).tolist() == [levels.shape[1] * levels.shape[2]] * len(levels), name
    numbers = score(y_hat, y)
    assert all(0 <= value <= 1 + 1e-12 for value in numbers.values())
    assert score(y, y_hat) == pytest.approx(numbers)
    assert score(y, y) == pytest.approx(dict.fromkeys(numbers, 1))
    per_image = [measure(a[None], b[None])[1] for a, b in zip(y_hat, y, strict=True)]
    for name, counts in statistics.items():
        assert torch.equal(torch.cat([part[name] for part in per_image]), counts)


def test_it_draws_a_curve_for_each_row_and_the_photos_in_each_channel():
    metric, blurred = measure(flat(RED, RED), flat(RED, WHITE))
    _, exact = measure(flat(RED, WHITE), flat(RED, WHITE))
    figure = metric.draw({"L1": blurred, "L1 + cGAN": exact})
    assert [axes.get_xlabel() for axes in figure.axes] == list(CHANNELS)
    for axes in figure.axes:
        assert [line.get_label() for line in axes.lines] == ["L1", "L1 + cGAN", "ground truth"]
        first, second, photos = (line.get_ydata() for line in axes.lines)
        np.testing.assert_array_equal(second, photos)
        assert not np.array_equal(first, photos)
