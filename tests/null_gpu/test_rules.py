"""The null GPU forbids in a capture what CUDA forbids: else no other test here could fail. It reads finite numbers."""

import pytest

FORBIDDEN = "CUDA error: operation not permitted when stream is capturing"
INVALID = "CUDA error: operation failed due to a previous error during capture"
RULES = {  # scenario: (error of the call, error at the end of the capture)
    "launch": (None, None),
    "synchronize": (FORBIDDEN, INVALID),
    "synchronize_the_device": (FORBIDDEN, INVALID),
    "read_a_value": (FORBIDDEN, INVALID),
    "use_joined_stream": (None, None),
    "use_unjoined_stream": (None, "CUDA error: capturing stream has unjoined work"),
    "wait_for_work_outside": ("CUDA error: dependency created on uncaptured work in another stream", INVALID),
    "allocate_for_a_stream_outside": (FORBIDDEN, INVALID),
    "query_an_event_in_another_thread": (None, INVALID),
    "in_thread_local_mode": (None, None),
}


@pytest.mark.parametrize("name", RULES)
def test_a_capture_fails_where_cuda_says_so(name, scenarios):
    result = scenarios("rule_scenarios.py", name)
    assert (result["inside"], result["end"]) == RULES[name]
    if result["end"] is None:
        assert result["captured"] > 0


def test_numbers_of_the_device_are_read_as_finite_ones(scenarios):
    result = scenarios("rule_scenarios.py", "read_numbers_that_are_not_finite")
    assert result == {"on_the_device": [0, 0, 1.5], "on_the_cpu": "nan"}
