"""From a TOML file to a checked Experiment, with file:line for every fault."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2pzoo.config.experiment import Experiment
    from p2pzoo.plugin.registry import Registry


def load(
    recipe: str,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    *,
    pick: Callable[[], str] | None = None,
    registry: Registry | None = None,
    continued_from: str | None = None,
) -> Experiment:
    """Read a recipe and check it against the installed components. Counts the training pairs for `train.epochs`.

    recipe          a file, or "zoo:NAME.toml"
    profile         name of a profile; None takes the one that `pick` returns, if the recipe has it
    overrides       what -s takes on the command line: "losses.l1.weight=50"
    pick            chooses the profile [default: `pick_profile`, by hardware]
    registry        components that `use` can name [default: those of the installed plugins]
    continued_from  id of the run whose final weights this run starts from

    Raises UserError with every fault of the recipe, each with its file and line; with `train.epochs`, also if the data
    is missing.

    >>> experiment = load("zoo:base.toml", "smoke", ["losses.l1.weight=50"])
    >>> experiment.generator.entry.full_name, experiment.losses["l1"].weight
    ('pix2pix:unet', 50.0)
    """
    experiment = load_without_data(
        recipe, profile, overrides, pick=pick, registry=registry, continued_from=continued_from
    )
    return experiment.resolve_epochs()


def load_without_data(
    recipe: str,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    *,
    pick: Callable[[], str] | None = None,
    registry: Registry | None = None,
    continued_from: str | None = None,
) -> Experiment:
    """As `load`, but the data is not opened: with `train.epochs` the experiment has no number of images and no id."""
    from p2pzoo.config.check import check_recipe
    from p2pzoo.config.recipe import read_recipe
    from p2pzoo.plugin import loader

    resolved = read_recipe(recipe, profile, overrides, pick=pick or (lambda: pick_profile(overrides)))
    return check_recipe(resolved, registry or loader.registry(), continued_from=continued_from)


def pick_profile(overrides: Sequence[str] = (), executor_profile: str | None = None) -> str:
    """The profile for this machine: "gpu" with CUDA, else "laptop". An override to the CPU always gives "laptop".

    overrides         what -s takes on the command line
    executor_profile  profile of the machine that runs, if that is not this one

    >>> pick_profile(["compute.device=cpu"])
    'laptop'
    """
    from p2pzoo.config.recipe import parse_override
    from p2pzoo.utils.errors import UserError

    device = None
    for text in overrides:
        with contextlib.suppress(UserError):  # `read_recipe` reports it
            compute = parse_override(text).get("compute")
            device = compute.get("device", device) if isinstance(compute, dict) else device
    if device == "cpu":
        return "laptop"
    import torch

    return executor_profile or ("gpu" if torch.cuda.is_available() else "laptop")
