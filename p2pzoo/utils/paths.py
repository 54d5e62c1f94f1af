"""Where things are: the recipes and benchmarks that travel with p2pzoo, and the user's cache. Imports nothing heavy."""

import os
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def shipped(folder: str) -> Path:
    """The folder `recipes` or `benchmarks`: inside the installed package, else beside it in a checkout."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


def cache_dir() -> Path:
    """Where derived data is kept: $P2PZOO_CACHE, else p2pzoo/ in $XDG_CACHE_HOME or ~/.cache. Not created here."""
    if own := os.environ.get("P2PZOO_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "p2pzoo"
