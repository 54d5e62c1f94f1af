"""Every shipped recipe: its training step is recorded, or the reason why not."""

import pytest
from null_gpu.recipe_scenarios import SCRIPT, shipped_recipes
from null_gpu.training import MAX_LAUNCHES

LAZY = "RuntimeError: a loss reads StepOutputs.step, so this step cannot be recorded as a CUDA graph"
NOT_RECORDED = {  # recipe: the reason in the warning
    "modern/r1.toml": LAZY,
    "modern/non_saturating.toml": LAZY,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_recipes())
def test_the_step_of_a_recipe_is_replayed(name, scenarios):
    result = scenarios(SCRIPT, name)
    if reason := NOT_RECORDED.get(name):
        assert result["warnings"] == [f"training without a CUDA graph: {reason}"]
        assert result["later"]["launches"] == result["eager"]["launches"]
    else:
        assert result["warnings"] == []
        assert result["later"]["graph_launches"] == 1
        assert result["later"]["launches"] <= MAX_LAUNCHES
    assert result["later"]["sync"] == result["later"]["h2d_pageable"] == 0
