"""The optimizers as torch has them, by their names; Adam sees channels-last weights as the dense memory that they are.

torch's fused kernels on a CPU take contiguous tensors, and copy every other one before and after each step: for the
54 million weights of a U-Net in channels-last memory, seven times the time of the step itself. A permuted view of the
same memory is contiguous, and Adam does not care about the order of the weights.

They also take weights, gradients and moments that lie in different orders, and mix them up without a word (torch 2.14);
here all of them are in the order of the weights.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from p2pzoo import params
from p2pzoo.registry import nearest

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class _Dense:
    """State and parameters keep their shapes and memory formats; only the kernel sees them permuted."""

    def _init_group(self: Any, group: Any, params: Any, grads: Any, *lists: Any) -> Any:
        has_complex = super()._init_group(group, params, grads, *lists)  # type: ignore[misc]
        moments = dict(zip(MOMENTS if group["amsgrad"] else MOMENTS[:2], lists, strict=False))
        for i, parameter in enumerate(params):
            grads[i] = _laid_as(parameter, grads[i])
            for name, each in moments.items():
                each[i] = self.state[parameter][name] = _laid_as(parameter, each[i])
            if _channels_last(parameter):
                for tensors in (params, grads, *moments.values()):
                    tensors[i] = tensors[i].permute(0, 2, 3, 1)
        return has_complex


class DenseAdam(_Dense, torch.optim.Adam): ...


class DenseAdamW(_Dense, torch.optim.AdamW): ...


DENSE = {"Adam": DenseAdam, "AdamW": DenseAdamW}  # whose kernels are fused
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
            faults.append((name, f"{name} = {params.show(value)}: {error}"))
    if faults:
        raise params.Faults(faults)
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


def _laid_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The tensor itself where its values lie in the parameter's order, else a copy where they do."""
    if tensor.stride() == parameter.stride():
        return tensor
    strides = zip(parameter.shape, parameter.stride(), tensor.stride(), strict=True)
    if all(its == own for side, its, own in strides if side > 1):
        return tensor
    return torch.empty_like(parameter, requires_grad=False).copy_(tensor)


def _channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
