"""From a TOML file to a checked Experiment; every fault is reported at once, with file:line."""

from __future__ import annotations

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
    """Read a recipe and check it against the installed components.

    recipe          a file, or "zoo:NAME.toml"
    profile         None: the one that `pick` returns [default: by hardware], where the recipe has profiles
    overrides       as -s takes them: "losses.l1.weight=50"
    registry        of components [default: those of the installed plugins]
    continued_from  the id of the run whose end is this one's start

    Raises UserError with every fault of the recipe, each with its file and line.
    """
    from p2pzoo.config.check import check
    from p2pzoo.config.recipe import read_recipe
    from p2pzoo.plugin import loader

    resolved = read_recipe(recipe, profile, overrides, pick=pick or (lambda: profile_by_hardware(overrides)))
    return check(resolved, registry or loader.registry(), continued_from=continued_from)


def profile_by_hardware(overrides: Sequence[str] = (), place: str | None = None) -> str:
    """The profile for this machine: "gpu" with CUDA, else "laptop", also where an override asks for the CPU.

    place: the profile of the place where runs are made, where that is another machine
    """
    if "compute.device=cpu" in overrides:
        return "laptop"
    import torch

    return place or ("gpu" if torch.cuda.is_available() else "laptop")
