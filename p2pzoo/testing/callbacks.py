"""The check of callbacks: they watch a run and change nothing."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch

from p2pzoo.testing.component_case import IMAGE_SIDE, ComponentCase, random_states
from p2pzoo.testing.tiny_components import build_experiment, build_tiny_component, write_sample_grid


def check_callback_changes_nothing(case: ComponentCase) -> None:
    """Samples no random number in a whole run, and changes no tensor, no file and none of its arguments."""
    tensor = torch.linspace(0, 1, 8, requires_grad=True)
    recipe = build_experiment(build_tiny_component("generator"), IMAGE_SIDE).resolved()
    arguments: dict[str, Any] = {"recipe": recipe, "losses": {"G.under_test": 0.5}, "metrics": {"under_test": 0.25}}
    state_before, arguments_before, tensor_before = _process_state(), copy.deepcopy(arguments), tensor.detach().clone()
    with tempfile.TemporaryDirectory() as folder:
        grid = write_sample_grid(Path(folder) / "images-00000010.png")
        bytes_before = grid.read_bytes()
        callback = case.build()
        callback.start(folder, arguments["recipe"])
        callback.log(10, arguments["losses"])
        callback.samples(10, str(grid))
        callback.finish(arguments["metrics"])
        assert grid.is_file(), "removes the sample grid"
        assert grid.read_bytes() == bytes_before, "changes the sample grid"
    for name, value in arguments.items():
        assert value == arguments_before[name], f"changes its argument: the {name}"
    assert torch.equal(tensor, tensor_before), "changes a tensor"
    for name, state in _process_state().items():
        assert state == state_before[name], f"changes {name}"


def _process_state() -> dict[str, Any]:
    return {
        **random_states(),
        "torch's default dtype": torch.get_default_dtype(),
        "whether torch records gradients": torch.is_grad_enabled(),
        "the number of threads": torch.get_num_threads(),
    }
