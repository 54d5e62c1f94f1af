"""The `[optimizer]` table: find the class of torch.optim and check its parameters."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch

from p2pzoo.plugin import schema
from p2pzoo.utils.light_optimizers import without_dynamo
from p2pzoo.utils.suggest import did_you_mean

# losses are always minimised, and [compute] decides the last four
NOT_IN_RECIPES = ("params", "lr", "maximize", "foreach", "fused", "capturable", "differentiable")


def optimizer_class(use: str) -> Any:
    """The class of torch.optim with this name. Raises ValueError that suggests a name.

    >>> optimizer_class("AdamW")
    <class 'torch.optim.adamw.AdamW'>
    """
    base = torch.optim.Optimizer
    classes = {n: c for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, base) and c != base}
    if use not in classes:
        raise ValueError(f"no optimizer of torch.optim{did_you_mean(use, sorted(classes))}")
    return classes[use]


def light_class(use: str) -> Any:
    """As `optimizer_class`, for use: a class that does not import torch._dynamo."""
    return without_dynamo(optimizer_class(use))


def check_options(use: str, table: Mapping[str, Any], zoo_keys: Collection[str]) -> dict[str, Any]:
    """The parameters of the class that a table sets, in the types that the class takes.

    use       name of a class of torch.optim
    zoo_keys  the other keys of [optimizer], for suggestions

    Raises schema.InvalidParameters.
    """
    parameters = inspect.signature(optimizer_class(use)).parameters
    known = {name: param.default for name, param in parameters.items() if name not in NOT_IN_RECIPES}
    faults, options = [], {}
    for name, value in table.items():
        if name not in known:
            faults.append((name, f"has no parameter '{name}'{did_you_mean(name, sorted({*zoo_keys, *known}))}"))
            continue
        try:
            options[name] = _check_value(value, known[name])
        except ValueError as error:
            faults.append((name, f"{name} = {schema.format_value(value)}: {error}"))
    if faults:
        raise schema.InvalidParameters(faults)
    return options


def has_betas(use: str) -> bool:
    """Whether the class of this name has a parameter `betas`. Raises ValueError as `optimizer_class` does."""
    return "betas" in inspect.signature(optimizer_class(use)).parameters


def try_step(use: str, lr: float, arguments: Mapping[str, Any]) -> None:
    """Take one step of the class on the weight of a convolution. Raises ValueError with the error of the class."""
    weight = torch.nn.Parameter(torch.ones(1, 1, 1, 1))
    weight.grad = torch.ones_like(weight)
    try:
        light_class(use)([weight], lr=lr, **arguments).step()
    except Exception as error:  # each class has its own exceptions for bad values
        raise ValueError(" ".join(str(error).split())) from error


def _check_value(value: Any, default: Any) -> Any:
    """The value, if it has the type of torch's default. Raises ValueError otherwise."""
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        raise ValueError("give true or false")
    if isinstance(default, tuple):
        if isinstance(value, list | tuple) and len(value) == len(default) and all(map(_is_number, value)):
            return tuple(value)
        raise ValueError(f"give an array of {len(default)} numbers")
    if isinstance(default, int | float):
        if _is_number(value):
            return value
        raise ValueError("give a number")
    raise ValueError("a recipe cannot set this parameter")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
