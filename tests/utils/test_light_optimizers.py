"""Optimizers without torch._dynamo compute what torch's do, and a run on a CPU does not import what it does not use."""

import subprocess
import sys

import pytest
import torch

from p2pzoo.config.optimizers import light_class, optimizer_class
from p2pzoo.utils.light_optimizers import without_dynamo

CLASSES = ("Adam", "AdamW", "SGD", "RMSprop", "NAdam", "RAdam", "Adagrad", "Adadelta", "Adamax", "ASGD", "Rprop")
SLOW_IMPORTS = ("torch._dynamo", "torch.distributed.tensor", "sympy", "triton")
RUN = f"""
import sys
from p2pzoo.cli import main
try:
    main()
finally:
    print("imported", *(name for name in {SLOW_IMPORTS} if name in sys.modules))
"""


@pytest.mark.parametrize("name", CLASSES)
def test_the_steps_are_those_of_torch(name):
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4)) for _ in range(2)]
    theirs, ours = optimizer_class(name)([weights[0]], lr=0.01), light_class(name)([weights[1]], lr=0.01)
    for step in range(4):
        for weight, optimizer in zip(weights, (theirs, ours), strict=True):
            optimizer.zero_grad()
            (weight.sin() * (step + 1)).sum().backward()
            optimizer.step()
    assert torch.equal(*weights)
    expected, found = theirs.state_dict(), ours.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    again = light_class(name)([weights[1]], lr=0.5)
    again.load_state_dict(found)
    assert again.param_groups[0]["lr"] == 0.01


def test_it_is_a_subclass_of_the_same_name_and_made_once():
    light = light_class("AdamW")
    assert issubclass(light, torch.optim.AdamW)
    assert light is without_dynamo(torch.optim.AdamW)
    assert (light.__name__, light.__module__) == ("AdamW", torch.optim.AdamW.__module__)
    assert torch.optim.AdamW.step is not light.step, "torch's class is unchanged"


def test_hooks_of_the_step_are_called():
    weight, calls = torch.nn.Parameter(torch.ones(1)), []
    optimizer = light_class("SGD")([weight], lr=0.1)
    optimizer.register_step_post_hook(lambda *_: calls.append(weight.item()))
    weight.grad = torch.ones(1)
    optimizer.step()
    assert calls == pytest.approx([0.9])


@pytest.mark.slow
def test_a_run_on_a_cpu_imports_neither_compilers_nor_symbolic_algebra(tiny, tmp_path):
    command = [sys.executable, "-c", RUN, "run", tiny, "--profile", "smoke", "--runs", tmp_path, "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported"
