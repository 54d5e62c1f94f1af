"""A change of what an object keeps in Python is seen, whatever it is kept in; an unchanged object stays equal."""

import collections
import random

import numpy as np
import pytest
import torch
from torch import nn

from p2pzoo.compute.python_state import python_state


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.layer = nn.BatchNorm1d(2)
        self.count, self.scale, self.name, self.nan = 0, 0.5, "loss", float("nan")
        self.history = [1.0]
        self.counts = {"real": {"n": 1}}
        self.window = collections.deque([1], maxlen=3)
        self.seen = {1}
        self.table = np.zeros(2)
        self.python, self.old = random.Random(0), np.random.RandomState(0)
        self.numpy, self.torch = np.random.default_rng(0), torch.Generator()


def changed(change):
    loss = Loss()
    before = python_state([loss])
    change(loss)
    return [name for key, value in python_state([loss]).items() for name in [key[1]] if before.get(key) != value]


CHANGES = {
    "Loss.count": lambda loss: setattr(loss, "count", 1),
    "Loss.scale": lambda loss: setattr(loss, "scale", 0.4),
    "Loss.name": lambda loss: setattr(loss, "name", "other"),
    "Loss.mean": lambda loss: setattr(loss, "mean", loss.mean * 0.9),
    "Loss.history": lambda loss: loss.history.append(2.0),
    "Loss.counts": lambda loss: loss.counts["real"].update(n=2),
    "Loss.window": lambda loss: loss.window.append(2),
    "Loss.seen": lambda loss: loss.seen.add(2),
    "Loss.table": lambda loss: loss.table.fill(1),
    "Loss.python": lambda loss: loss.python.random(),
    "Loss.old": lambda loss: loss.old.rand(),
    "Loss.numpy": lambda loss: loss.numpy.random(),
    "Loss.torch": lambda loss: torch.rand(1, generator=loss.torch),
    "Loss.new": lambda loss: setattr(loss, "new", 1),
    "BatchNorm1d.momentum": lambda loss: setattr(loss.layer, "momentum", 0.2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_and_named(name):
    assert changed(CHANGES[name]) == [name]


def test_what_a_graph_repeats_is_no_change():
    def step(loss):
        loss.mean.add_(1)
        loss.layer(torch.rand(3, 2))

    assert changed(step) == []


def test_a_tensor_that_is_replaced_twice_is_another_tensor():
    """The second one may get the id of the first, if nothing keeps the first."""

    def step(loss):
        for _ in range(2):
            loss.mean = loss.mean * 0.9

    assert changed(step) == ["Loss.mean"]
