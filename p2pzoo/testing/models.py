"""What a model that travels with a plugin promises: it translates, and says where it comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from p2pzoo.config.recipe import read_recipe
from p2pzoo.models.model import load
from p2pzoo.testing.kit import Case


def check_translates(case: Case) -> None:
    """It loads, and translates an image of the size that it was trained at: into [-1, 1], twice alike."""
    model = load(case.make(), device="cpu")
    x = torch.rand(1, model.in_channels, *model.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y_hat = model.translate(x)
    assert y_hat.shape == (1, model.out_channels, *model.size), f"gives {tuple(y_hat.shape)}"
    assert y_hat.isfinite().all(), "gives values that are no numbers"
    assert y_hat.abs().max() <= 1, "gives values beyond [-1, 1]"
    assert np.array_equal(model.translate(x), y_hat), "gives something else the second time"


def check_card(case: Case) -> None:
    """Beside it lie the recipe that it was trained by, and its card, which names a licence."""
    folder = Path(case.make())
    read_recipe(str(folder / "recipe.toml"))
    card = folder / "README.md"
    assert card.is_file(), "has no README.md: p2pzoo card RUN -o DIR writes one"
    assert "\nlicense: " in card.read_text("utf-8"), "its README.md names no licence"
