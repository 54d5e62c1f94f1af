"""Folders: the recipes and benchmarks that ship with p2pzoo, and the user's cache. Imports nothing heavy."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent


def shipped_dir(name: str) -> Path:
    """The folder "recipes" or "benchmarks" that ships with p2pzoo.

    A wheel has it inside the package, a checkout next to the package.
    """
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def without_paths(value: Any) -> Any:
    """A value of a recipe without the paths in it, also those of tables and lists.

    >>> without_paths({"width": 8, "of": {"use": "unet", "weights": Path("w.pth")}})
    {'width': 8, 'of': {'use': 'unet'}}
    """
    if isinstance(value, Mapping):
        return {name: without_paths(item) for name, item in value.items() if not isinstance(item, Path)}
    if isinstance(value, (list, tuple)):
        return [without_paths(item) for item in value if not isinstance(item, Path)]
    return value


def cache_dir() -> Path:
    """The folder of the user's cache: $P2PZOO_CACHE, else p2pzoo/ in $XDG_CACHE_HOME or in ~/.cache.

    It may not exist yet: whoever writes to it creates it.
    """
    if folder := os.environ.get("P2PZOO_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "p2pzoo"
