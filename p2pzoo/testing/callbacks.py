"""What callbacks promise: they watch."""

from __future__ import annotations

import copy
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from p2pzoo.testing.kit import SIDE, Case
from p2pzoo.testing.partners import experiment, partner, picture


def check_changes_nothing(case: Case) -> None:
    """Through a whole run: no random number is drawn, no tensor, no file and none of what it is told is changed."""
    tensor = torch.linspace(0, 1, 8, requires_grad=True)
    recipe = experiment(partner("generator"), SIDE).resolved()
    losses, metrics = {"G.under_test": 0.5}, {"under_test": 0.25}
    told: list[Any] = [recipe, losses, metrics]
    before = _state(), copy.deepcopy(told), tensor.detach().clone()
    with tempfile.TemporaryDirectory() as folder:
        shown = picture(Path(folder) / "images-00000010.png")
        bytes_before = shown.read_bytes()
        callback = case.make()
        callback.start(folder, recipe)
        callback.log(10, losses)
        callback.samples(10, str(shown))
        callback.finish(metrics)
        assert shown.is_file(), "removes the sample grid"
        assert shown.read_bytes() == bytes_before, "changes the sample grid"
    for name, one, other in zip(("recipe", "losses", "metrics"), told, before[1], strict=True):
        assert one == other, f"changes the {name} that it is told"
    assert torch.equal(tensor, before[2]), "changes a tensor"
    for name, value in _state().items():
        assert value == before[0][name], f"changes {name}"


def _state() -> dict[str, Any]:
    numpy: Any = np.random.get_state(legacy=False)
    return {
        "Python's random numbers": random.getstate(),
        "NumPy's random numbers": (numpy["state"]["key"].tobytes(), numpy["state"]["pos"]),
        "torch's random numbers": torch.get_rng_state().numpy().tobytes(),
        "torch's default type": torch.get_default_dtype(),
        "whether gradients are made": torch.is_grad_enabled(),
        "the number of threads": torch.get_num_threads(),
    }
