"""Folders: the recipes and benchmarks that ship with p2pzoo, and the user's cache. Imports nothing heavy."""

import os
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def shipped_dir(name: str) -> Path:
    """The folder "recipes" or "benchmarks" that ships with p2pzoo.

    A wheel has it inside the package, a checkout next to the package.
    """
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def cache_dir() -> Path:
    """The folder of the user's cache: $P2PZOO_CACHE, else p2pzoo/ in $XDG_CACHE_HOME or in ~/.cache.

    It may not exist yet: whoever writes to it creates it.
    """
    if folder := os.environ.get("P2PZOO_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "p2pzoo"
