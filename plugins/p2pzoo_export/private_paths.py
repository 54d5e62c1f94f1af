"""Paths of this machine in what is given away: a folder's name may be that of a client. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Of the header of a model file: keys that may hold values of a recipe. Others hold text that only looks like a path,
# such as the name of a class.
_FROM_RECIPES = ("generator", "discriminator", "process", "calibration")


def is_private(value: Any) -> bool:
    """Whether a value of a recipe is an absolute path, or a list or a table with one.

    >>> is_private("photos/train"), is_private(["/home/me/photos"]), is_private([{"file": "/home/me/photos"}])
    (False, True, True)
    """
    if isinstance(value, Mapping):
        return any(map(is_private, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(is_private, value))
    return isinstance(value, (str, Path)) and Path(value).is_absolute()


def without_private_paths(header: Mapping[str, Any]) -> dict[str, Any]:
    """The header of a model file without the absolute paths that `p2pzoo calibrate` of 0.2 wrote into it.

    >>> without_private_paths({"run": "0123456789", "calibration": {"data": {"root": "/home/me", "size": [8, 8]}}})
    {'run': '0123456789', 'calibration': {'data': {'size': [8, 8]}}}
    """
    return {key: _without_paths(value) if key in _FROM_RECIPES else value for key, value in header.items()}


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items() if not _is_path(item)}
    if isinstance(value, list):
        return [_without_paths(item) for item in value if not _is_path(item)]
    return value


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and is_private(value)
