"""`warp` of earth: y of training pairs is moved by a known smooth field."""

import numpy as np
import pytest
from p2pzoo_earth.dataset import Earth
from p2pzoo_earth.warp import displacement, warp_image

from p2pzoo import config
from p2pzoo.data import Store
from p2pzoo.runs.evaluate import build_protocol

SMALL = {"size": 64, "stride": 256}


@pytest.mark.parametrize("amount", [1.0, 4.0])
def test_the_field_has_the_given_length_is_smooth_and_depends_on_the_tile_alone(amount):
    field = displacement("r0000c0000", 128, amount)
    assert np.sqrt((field**2).sum(0).mean()) == pytest.approx(amount, rel=1e-5)
    assert max(np.abs(np.diff(field, axis=axis)).max() for axis in (1, 2)) < 0.2 * amount
    assert np.array_equal(field, displacement("r0000c0000", 128, amount))
    assert not np.array_equal(field, displacement("r0000c0064", 128, amount))
    assert np.allclose(displacement("r0000c0000", 128, 2 * amount), 2 * field)


def test_a_warp_shows_what_was_at_the_displaced_pixel():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    field = np.zeros((2, 16, 16), np.float32)
    field[0] += 2  # down
    field[1] -= 1
    for smooth in (False, True):
        assert np.array_equal(warp_image(image, field, smooth=smooth)[:-2, 1:], image[2:, :-1])


def test_only_y_of_training_pairs_is_warped():
    plain, warped = Earth("train", **SMALL), Earth("train", warp=2, **SMALL)
    for index in range(3):
        before, after = plain[index], warped[index]
        assert (after.id, after.block) == (before.id, before.block)
        assert np.array_equal(after.x, before.x)
        assert np.array_equal(after.labels, before.labels)
        assert not np.array_equal(after.y, before.y)
        expected = warp_image(before.y, warped.displacement(index), smooth=True)
        assert np.array_equal(after.y, expected)
        assert not plain.displacement(index).any()
    test = Earth("test", warp=2, **SMALL)
    assert np.array_equal(test[0].y, Earth("test", **SMALL)[0].y)
    assert not test.displacement(0).any()


def test_classes_keep_their_colours():
    pair = Earth("train", task="photo-to-labels", warp=4, **SMALL)[5]
    assert {tuple(colour) for colour in pair.y.reshape(-1, 3)} <= set(Earth.palette)


def test_runs_with_other_warps_differ_and_their_numbers_are_compared():
    plain, warped = (
        config.load("zoo:base.toml", "smoke", [f"dataset.warp={amount}", "dataset.stride=256"]) for amount in (0, 2)
    )
    assert plain.id == config.load("zoo:base.toml", "smoke", ["dataset.stride=256"]).id != warped.id
    store = Store(plain.dataset.build(split="test"))
    assert build_protocol(warped, "l1", store) == build_protocol(plain, "l1", store)
