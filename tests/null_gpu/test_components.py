"""Every component of the first-party plugins, and settings: a training step is recorded, or the reason why not."""

import pytest
from null_gpu.component_scenarios import OPTIMIZERS, SCRIPT, SETTINGS, first_party_components
from null_gpu.training import MAX_LAUNCHES

NOT_RECORDED = {  # component or setting: the reason in the warning
    "pool_size 4": "the image pool draws random numbers on the CPU in each step",
    "fused_adam off": "fused_adam is off, or the optimizer is not Adam or AdamW",
    "checkpointing": "activation checkpointing resets the random state when it recomputes a block",
    "optimizer SGD": "fused_adam is off, or the optimizer is not Adam or AdamW",
    "optimizer RMSprop": "fused_adam is off, or the optimizer is not Adam or AdamW",
}


SLOW = ("generator adm-unet",)
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name in (*first_party_components(), *OPTIMIZERS, *SETTINGS)
]


@pytest.mark.parametrize("name", NAMES)
def test_a_step_with_this_component_or_setting_is_replayed(name, scenarios):
    result = scenarios(SCRIPT, name)
    if "skipped" in result:
        pytest.skip(result["skipped"])
    eager, later = result["eager"], result["later"]
    if reason := NOT_RECORDED.get(name):
        assert result["warnings"][-1] == f"training without a CUDA graph: {reason}"
        assert later["launches"] == eager["launches"]
        return
    assert result["warnings"] == []
    assert result["is_recorded"]
    assert later["graph_launches"] == 1
    assert later["launches"] <= MAX_LAUNCHES
    for counted in (eager, later):
        assert counted["sync"] == counted["h2d_pageable"] == 0
