"""Average of G, augmented pairs and Adam's eps are in the graph; batches reach the device as bytes in pinned memory."""

import pytest
from null_gpu.training import MAX_LAUNCHES

SCRIPT = "input_scenarios.py"
MAX_COPIES = 9  # x, y and random numbers to the device and into the graph's inputs, losses, state of the generator


@pytest.mark.parametrize("name", ["average", "eps_before_correction", "affine", "photometric", "flip_rotate"])
def test_a_step_launches_no_more_than_without(name, scenarios):
    result = scenarios(SCRIPT, name)
    assert result["is_recorded"]
    assert result["warnings"] == []
    assert result["replayed"]["graph_launches"] == 1
    assert result["replayed"]["launches"] <= MAX_LAUNCHES
    assert result["replayed"]["memcpy"] <= MAX_COPIES
    assert result["replayed"]["sync"] == result["replayed"]["h2d_pageable"] == 0
    assert result["dtype"] == "torch.uint8"
    assert result["is_pinned"]


def test_both_generators_are_seeded_as_by_manual_seed(scenarios):
    assert scenarios(SCRIPT, "seeds") == {"are_equal": True}
