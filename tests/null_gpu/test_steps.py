"""A step is recorded, and its replay launches next to nothing; a step that cannot be recorded leaves no trace."""

import pytest
from null_gpu.training import MAX_LAUNCHES

SCRIPT = "step_scenarios.py"


@pytest.fixture
def outcome(scenarios):
    """outcome(name): what this scenario printed."""
    return lambda name: scenarios(SCRIPT, name)


@pytest.mark.parametrize("name", ["counts", "counts_deterministic"])
def test_a_replayed_step_launches_the_graph_and_waits_for_nothing(name, outcome):
    result = outcome(name)
    assert result["is_recorded"]
    assert result["warnings"] == []
    eager, replayed = result["eager"], result["replayed"]
    assert replayed["graph_launches"] == 1
    assert replayed["launches"] <= MAX_LAUNCHES < eager["launches"]
    for counted in (eager, replayed):
        assert counted["sync"] == counted["h2d_pageable"] == counted["malloc"] == 0


def test_deterministic_kernels_take_as_many_launches(outcome):
    for step in ("eager", "replayed"):
        assert outcome("counts_deterministic")[step]["launches"] == outcome("counts")[step]["launches"]


def test_random_numbers_of_the_prefetch_thread_are_not_those_of_the_step(outcome):
    result = outcome("samples_in_the_prefetch_thread")
    assert result["is_recorded"], result["warnings"]


def test_another_thread_may_pin_memory_while_a_step_is_recorded(outcome):
    result = outcome("pins_memory_in_another_thread_while_recorded")
    assert result["num_pinned"] == 10
    assert result["is_recorded"], result["warnings"]


FAILURES = {  # scenario: the reason in the warning
    "samples_in_a_loss": "the step draws random numbers outside the device",
    "waits_in_a_loss": "the step waits for the device (step_scenarios.py:",
    "waits_while_recorded": "AcceleratorError: CUDA error: operation not permitted when stream is capturing",
    "raises_while_recorded": "ValueError: not now",
    "raises_in_an_optimizer_while_recorded_in_fp16": "ValueError: not now",
    "needs_too_much_memory_while_recorded": "OutOfMemoryError: CUDA out of memory",
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_step_that_cannot_be_recorded_runs_without_a_graph_and_the_first_error_is_named(name, outcome):
    result = outcome(name)
    [warning] = result["warnings"]
    assert warning.startswith(f"training without a CUDA graph: {FAILURES[name]}")
    assert not result["is_recorded"]
    later = result["later"]
    assert later["graph_launches"] == later["captured"] == 0
    assert later["launches"] > 100, "the steps after it run"


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_recording_leaves_no_stream_no_gradients_and_no_memory(name, outcome):
    result = outcome(name)
    assert result["is_default_stream"]
    assert result["num_gradients"] == 0
    assert not result["is_scaled"]
    never_recorded = outcome("samples_in_a_loss")  # it takes more only for the workspace of another stream
    assert result["more_memory"] <= never_recorded["more_memory"]


def test_without_bf16_a_step_is_in_fp16_and_recorded_too(scenarios):
    """A fused optimizer reads on the device whether the loss scaler skips a step."""
    result = scenarios(SCRIPT, "counts", NULL_CC="75")
    assert result["precision"] == "fp16"
    assert result["warnings"] == []
    assert result["is_recorded"]
    assert result["replayed"]["launches"] <= MAX_LAUNCHES
    assert result["eager"]["sync"] == result["replayed"]["sync"] == 0
