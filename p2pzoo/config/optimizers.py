"""The `[optimizer]` table: which class of torch.optim, and which of its parameters a recipe sets."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch

from p2pzoo.plugin import schema
from p2pzoo.utils.suggest import nearest

HOW_NOT_WHAT = ("foreach", "fused", "capturable", "differentiable")  # parameters: [compute] decides


NOT_OURS = ("params", "lr", "maximize", *HOW_NOT_WHAT)  # `maximize`: which way a player moves is the game's


def named(use: str) -> Any:
    """The class of torch.optim. Raises ValueError with the nearest names for any other."""
    base = torch.optim.Optimizer
    classes = {n: c for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, base) and c != base}
    if use not in classes:
        raise ValueError(f"no optimizer of torch.optim{nearest(use, sorted(classes))}")
    return classes[use]


def check_options(use: str, table: Mapping[str, Any], beside: Collection[str]) -> dict[str, Any]:
    """The class's own parameters that a table sets, as the class takes them. Raises params.Faults.

    beside: the other keys that [optimizer] has, to be suggested.
    """
    parameters = inspect.signature(named(use)).parameters
    known = {name: each.default for name, each in parameters.items() if name not in NOT_OURS}
    faults, options = [], {}
    for name, value in table.items():
        if name not in known:
            faults.append((name, f"has no parameter '{name}'{nearest(name, sorted({*beside, *known}))}"))
            continue
        try:
            options[name] = _checked(value, known[name])
        except ValueError as error:
            faults.append((name, f"{name} = {schema.show(value)}: {error}"))
    if faults:
        raise schema.Faults(faults)
    return options


def has_betas(use: str) -> bool:
    return "betas" in inspect.signature(named(use)).parameters


def try_out(use: str, lr: float, arguments: Mapping[str, Any]) -> None:
    """Takes a step of the class on the weight of a convolution. Raises ValueError where it does not take one."""
    weight = torch.nn.Parameter(torch.ones(1, 1, 1, 1))
    weight.grad = torch.ones_like(weight)
    try:
        named(use)([weight], lr=lr, **arguments).step()
    except Exception as error:  # what a class refuses, it refuses in its own way
        raise ValueError(" ".join(str(error).split())) from error


def _checked(value: Any, default: Any) -> Any:
    """By the kind of torch's default."""
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        raise ValueError("give true or false")
    if isinstance(default, tuple):
        if isinstance(value, list | tuple) and len(value) == len(default) and all(map(_number, value)):
            return tuple(value)
        raise ValueError(f"give an array of {len(default)} numbers")
    if isinstance(default, int | float):
        if _number(value):
            return value
        raise ValueError("give a number")
    raise ValueError("a recipe cannot set it")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
