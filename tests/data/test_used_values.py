"""Images that use little of their range are found, and the range that fits them is named."""

import numpy as np
import pytest

from p2pzoo.data.used_values import UsedValues


def fault_of(*images, name="x", limits=(0, 65535), parameters=("input_range", "target_range")):
    used = UsedValues(name, limits)
    for image in images:
        used.add(image)
    return used.fault(parameters)


def values(*numbers, dtype=np.uint16):
    return np.array(numbers, dtype)[:, None, None]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((0, 1000), "[0, 1023]"),
        ((0, 4095), "[0, 4095]"),
        ((200, 4200), "[0, 4095]"),  # bicubic resizing overshoots
        ((0, 16383), "[0, 16383]"),
        ((0, 255), "[0, 255]"),
        ((30_000, 32_000), "[30000, 32767]"),
    ],
)
def test_the_bit_depth_of_16_bit_files_is_named(numbers, expected):
    assert fault_of(values(*numbers)).endswith(f"% of its range: set input_range = {expected}")


def test_masks_of_0_and_1_are_found_over_many_images():
    images = [values(value, dtype=np.uint8) for value in (0, 1, 0)]
    assert fault_of(*images, name="y", limits=(0, 255)) == (
        "y uses 2 of 256 stored values, 0.4% of its range: set target_range = [0, 1]"
    )


def test_floats_and_datasets_without_a_range_parameter():
    image = values(0.1, 0.2, dtype=np.float32)
    assert fault_of(image, limits=(-1, 1)) == ("x uses 0.1 to 0.2, 5.0% of its range: set input_range = [0, 0.2]")
    assert fault_of(image, limits=(-1, 1), parameters=()).endswith(": its declared range is -1 to 1")


@pytest.mark.parametrize(
    "images",
    [
        [values(0, 255, dtype=np.uint8)],
        [values(7, dtype=np.uint8)],  # found as an image of a single value
        [values(0, dtype=np.uint8), values(255, dtype=np.uint8)],
        [values(0, 1, dtype=np.uint8), values(0, 200, dtype=np.uint8)],
        [],
    ],
)
def test_images_that_use_their_range_have_no_fault(images):
    assert fault_of(*images, limits=(0, 255)) is None
