"""Which test images the report of a run shows as best and worst."""

import pytest

from p2pzoo.training.result_images import BEST_AND_WORST, pick_best_and_worst


@pytest.mark.parametrize(
    ("count", "best", "worst"),
    [
        (1, [0], []),
        (2, [0], [1]),
        (3, [0, 1], [2]),
        (5, [0, 1, 2], [4, 3]),
        (9, [0, 1, 2], [8, 7, 6]),
    ],
)
def test_no_image_is_among_the_best_and_the_worst(count, best, worst):
    assert BEST_AND_WORST == 3
    assert pick_best_and_worst(range(count), lambda index: index) == {"best": best, "worst": worst}


def test_images_of_one_region_are_shown_once_in_a_list():
    region = {0: "a", 1: "a", 2: "b", 3: "b", 4: "a", 5: "a"}
    assert pick_best_and_worst([0, 1, 2, 3, 4, 5], region.get) == {"best": [0, 2], "worst": [5, 3]}


def test_only_the_images_that_may_be_shown_are_read():
    read = []
    pick_best_and_worst(range(1000), lambda index: read.append(index) or index)
    assert len(read) == 2 * BEST_AND_WORST
