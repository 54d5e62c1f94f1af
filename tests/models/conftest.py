"""A generator, part of which initialises its own weights and computes a buffer that no file holds."""

import pytest

from p2pzoo import config

OWN_WEIGHTS = """
from pathlib import Path
import torch
from torch import nn
import p2pzoo

class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.register_buffer("computed", torch.arange(3.0), persistent=False)

    def init_own_weights(self):
        nn.init.uniform_(self.conv.weight, 5, 6)

    def forward(self, x):
        return self.conv(x) + self.computed[:, None, None]

class OwnWeights(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, *, gains: Path | None = None):
        super().__init__()
        self.fixed, self.conv = Fixed(), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return torch.tanh(self.conv(self.fixed(x)))

@p2pzoo.hookimpl
def register_generators(register):
    register("own-weights", OwnWeights)
"""


@pytest.fixture
def own_weights(install):
    """own_weights("seed=1", …): an experiment with this generator."""
    install("own_weights_plugin", OWN_WEIGHTS)
    return lambda *overrides: config.load("zoo:base.toml", "smoke", ('generator.use="own-weights"', *overrides))
