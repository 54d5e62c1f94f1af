"""Rasters on disk, built once and memory-mapped by every process that reads them.

A file under its final name is complete: it was written whole under another name first. Whoever finds one missing or
damaged takes the folder's lock, so that processes which start together build once and the others wait.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from p2pzoo.errors import UserError
from p2pzoo.files import replacing

Builder = Callable[[Callable[[str], np.ndarray]], np.ndarray]  # is handed a function that gives a layer by its name


def open_layers(folder: Path, builders: Mapping[str, Builder], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The layers `names`, read-only and memory-mapped from `folder`/NAME.npy; what is not there yet is built.

    Raises UserError where `folder` cannot be written.
    """
    found = {name: _load(folder / f"{name}.npy") for name in names}
    if all(layer is not None for layer in found.values()):
        return found  # no lock on this path: a finished cache may lie on a read-only disk
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            return _build(folder, builders, names)
    except OSError as error:
        raise UserError(
            f"{folder}: the layers of the embedded data cannot be stored here ({error.strerror or error}): "
            "make room or set P2PZOO_CACHE to a folder that can be written"
        ) from error


def _build(folder: Path, builders: Mapping[str, Builder], names: Sequence[str]) -> dict[str, np.ndarray]:
    def layer(name: str) -> np.ndarray:
        path = folder / f"{name}.npy"
        if (stored := _load(path)) is None:
            _store(path, builders[name](layer))
            stored = np.load(path, mmap_mode="r")
        return stored

    missing = [name for name in names if _load(folder / f"{name}.npy") is None]
    if missing:  # else another process built them while this one waited
        for name in _announced(missing, folder):
            layer(name)
    return {name: layer(name) for name in names}


def _load(path: Path) -> np.ndarray | None:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):  # absent, cut short, not an array
        return None


def _store(path: Path, array: np.ndarray) -> None:
    # The temporary name is always the same: the lock admits one writer, and the next overwrites what a killed one left.
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, array)


def _announced(names: Sequence[str], folder: Path) -> Iterable[str]:
    """`names`, with a progress bar on standard error, or one plain line where that is no terminal."""
    if not sys.stderr.isatty():
        print(f"Earth: building layers in {folder}, once", file=sys.stderr, flush=True)
        return names
    from rich.console import Console
    from rich.progress import track

    return track(names, description="Earth: building layers, once", console=Console(stderr=True))
