"""Optimizers of torch that do not import torch._dynamo, which takes a second or more of each training's start.

Their methods are wrapped for torch.compile, which p2pzoo never applies to an optimizer: the wrappers import
torch._dynamo at the first call (torch 2.14). Here each class has a subclass with the methods inside the wrappers.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

_WRAPPED = ("add_param_group", "load_state_dict", "state_dict", "step", "zero_grad")


@functools.cache
def without_dynamo(kind: Any) -> Any:
    """A subclass of a class of torch.optim that computes the same; the class itself where torch wraps nothing.

    >>> light = without_dynamo(torch.optim.SGD)
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> weight.grad = torch.ones(1)
    >>> light([weight], lr=0.5).step()
    >>> weight.item(), light.__name__
    (0.5, 'SGD')
    """
    methods: dict[str, Any] = {}
    for name in _WRAPPED:
        method = getattr(kind, name)
        if (inner := _unwrap(method)) is not method:
            methods[name] = torch.no_grad()(inner) if name == "step" else inner
    return type(kind.__name__, (kind,), methods | {"__module__": kind.__module__}) if methods else kind


def _unwrap(method: Any) -> Any:
    while hasattr(method, "__wrapped__"):
        method = method.__wrapped__
    return method
