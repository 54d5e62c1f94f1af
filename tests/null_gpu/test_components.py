"""Every component of the first-party plugins that takes part in a training step: recorded, or the reason why not."""

import pytest
from null_gpu.component_scenarios import OPTIMIZERS, SCRIPT, first_party_components
from null_gpu.training import MAX_LAUNCHES

NOT_RECORDED = {  # component: the reason in the warning
    "optimizer SGD": "fused_adam is off, or the optimizer is not Adam or AdamW",
    "optimizer RMSprop": "fused_adam is off, or the optimizer is not Adam or AdamW",
}
OUTSIDE_THE_GRAPH = {  # component: why its own kernels are launched in each step
    "augmentation affine": "pairs are augmented before the step",
    "augmentation flip-rotate": "pairs are augmented before the step",
    "augmentation photometric": "pairs are augmented before the step",
}


@pytest.mark.parametrize("name", [*first_party_components(), *OPTIMIZERS])
def test_a_step_with_this_component_is_replayed(name, scenarios):
    result = scenarios(SCRIPT, name)
    if "skipped" in result:
        pytest.skip(result["skipped"])
    eager, later = result["eager"], result["later"]
    if reason := NOT_RECORDED.get(name):
        assert result["warnings"] == [f"training without a CUDA graph: {reason}"]
        assert later["launches"] == eager["launches"]
        return
    assert result["warnings"] == []
    assert result["is_recorded"]
    assert later["graph_launches"] == 1
    if name not in OUTSIDE_THE_GRAPH:
        assert later["launches"] <= MAX_LAUNCHES
        assert eager["sync"] == later["sync"] == 0
