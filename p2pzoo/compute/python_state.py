"""What objects keep in Python, to compare it before and after a training step. Imports torch only.

A CUDA graph repeats the kernels of one step. It repeats neither a count that a loss keeps, nor the replacement of a
buffer by a new tensor, nor the samples of a generator of its own.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_MAX_DEPTH = 5  # of lists in lists


def python_state(parts: Sequence[object]) -> dict[tuple[int, str], object]:
    """Return {(number of an object, "Class.name"): its value} for the attributes of these objects and their submodules.

    Values are numbers, strings and bools, also in lists, dicts and the like; states of random generators; and which
    tensors there are, not what they hold: a graph changes that too. Everything else is left out.

    >>> loss = nn.BCEWithLogitsLoss()
    >>> before = python_state([loss])
    >>> loss.calls = 1
    >>> [name for (_, name), value in python_state([loss]).items() if before.get((0, name)) != value]
    ['BCEWithLogitsLoss.calls']
    """
    owners = [o for part in parts for o in (part.modules() if isinstance(part, nn.Module) else (part,))]
    return {
        (i, f"{type(owner).__name__}.{name}"): _freeze(value)
        for i, owner in enumerate(owners)
        for name, value in _attributes(owner).items()
    }


def _attributes(owner: object) -> dict[str, Any]:
    attributes = {**getattr(owner, "__dict__", {})}
    return {**attributes.pop("_parameters", {}), **attributes.pop("_buffers", {}), **attributes}


class _SameTensor:
    """Equal if it is the same tensor. It keeps the tensor, whose id another one would else get."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SameTensor) and self.tensor is other.tensor

    __hash__ = None  # type: ignore[assignment]


def _freeze(value: Any, depth: int = 0) -> object:
    """Return a value that later changes do not reach; None for what is left out."""
    match value:
        case bool() | int() | str() | bytes():
            return value
        case float() | complex() | set() | frozenset():
            return repr(value)  # nan is not equal to itself
        case Tensor():
            return _SameTensor(value)
        case np.ndarray():
            return value.shape, value.tobytes()
        case list() | tuple() | deque() if depth < _MAX_DEPTH:
            return [_freeze(element, depth + 1) for element in value]
        case dict() if depth < _MAX_DEPTH:
            return [(_freeze(key, depth + 1), _freeze(element, depth + 1)) for key, element in value.items()]
        case random.Random():
            return value.getstate()
        case np.random.Generator():
            return str(value.bit_generator.state)
        case np.random.RandomState():
            return str(value.get_state(legacy=False))
        case torch.Generator():
            return value.get_state().tolist()
    return None
