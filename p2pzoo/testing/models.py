"""Checks of models that a plugin ships: they translate, and their folder documents where they come from."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from p2pzoo.config.recipe import read_recipe
from p2pzoo.models.load import load_model
from p2pzoo.testing.component_case import ComponentCase


def check_model_translates(case: ComponentCase) -> None:
    """Loads and translates an image of its training size into [-1, 1], with the same result twice."""
    model = load_model(case.build(), device="cpu")
    x = torch.rand(1, model.in_channels, *model.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y_hat = model.translate(x)
    expected = (1, model.out_channels, *model.size)
    assert y_hat.shape == expected, f"ŷ has the shape {tuple(y_hat.shape)}, not {expected}"
    assert y_hat.isfinite().all(), "ŷ has values that are nan or inf"
    assert y_hat.abs().max() <= 1, "ŷ has values outside of [-1, 1]"
    assert np.array_equal(model.translate(x), y_hat), "gives another ŷ for the same x the second time"


def check_model_card(case: ComponentCase) -> None:
    """Its folder has the recipe that it was trained with, and a model card that names a licence.

    `license: other`, which `p2pzoo card` writes without --licence, names one only with a `license_name`.
    """
    folder = Path(case.build())
    read_recipe(str(folder / "recipe.toml"))
    card = folder / "README.md"
    assert card.is_file(), "has no README.md: `p2pzoo card RUN -o DIR` writes one"
    text = card.read_text("utf-8")
    licence = re.search(r"^license: *[\"']?([^\"'\s]+)", text, re.MULTILINE)
    is_named = licence and (licence[1] != "other" or re.search(r"^license_name: *\S", text, re.MULTILINE))
    assert is_named, "its README.md names no licence: give `p2pzoo card` a --licence ID, or write a line `license: ID`"
