"""Rasters on disk, built once and memory-mapped by every process that reads them.

A file under its final name is complete: it was written whole under another name first. Whoever finds one missing or
damaged takes the folder's lock, so that processes which start together build once and the others wait.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write


@dataclass(frozen=True)
class Layer:
    """How a raster is made.

    build    gives its pixels; is handed the layers `of`, in that order
    of       names of the layers that it is made from
    sources  names of the files that it is made from
    version  raise it when `build` makes other pixels from the same
    """

    build: Callable[..., np.ndarray]
    of: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    version: int = 1


def open_layers(
    folder: Path, layers: Mapping[str, Layer], names: Sequence[str], stem: Callable[[str], str] = str
) -> dict[str, np.ndarray]:
    """The layers `names`, read-only and memory-mapped from `folder`; what is not there yet is built.

    stem  gives the name, without .npy, of a layer's file

    Raises UserError where `folder` cannot be written.
    """

    def path(name: str) -> Path:
        return folder / f"{stem(name)}.npy"

    found = {name: _load(path(name)) for name in names}
    if all(layer is not None for layer in found.values()):
        return found  # no lock on this path: a finished cache may lie on a read-only disk
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            return _build(path, layers, names)
    except OSError as error:
        raise UserError(
            f"{folder}: the layers of the embedded data cannot be stored here ({error.strerror or error}): "
            "make room or set P2PZOO_CACHE to a folder that can be written"
        ) from error


def _build(path: Callable[[str], Path], layers: Mapping[str, Layer], names: Sequence[str]) -> dict[str, np.ndarray]:
    def layer(name: str) -> np.ndarray:
        if (stored := _load(path(name))) is None:
            _store(path(name), layers[name].build(*map(layer, layers[name].of)))
            stored = np.load(path(name), mmap_mode="r")
        return stored

    missing = [name for name in names if _load(path(name)) is None]
    if missing:  # else another process built them while this one waited
        for name in _announced(missing, path(missing[0]).parent):
            layer(name)
    return {name: layer(name) for name in names}


def _load(path: Path) -> np.ndarray | None:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):  # absent, cut short, not an array
        return None


def _store(path: Path, array: np.ndarray) -> None:
    # The temporary name is always the same: the lock admits one writer, and the next overwrites what a killed one left.
    with atomic_write(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, array)


def _announced(names: Sequence[str], folder: Path) -> Iterable[str]:
    """`names`, with a progress bar on standard error, or one plain line where that is no terminal."""
    if not sys.stderr.isatty():
        print(f"Earth: building {', '.join(names)} in {folder}, once", file=sys.stderr, flush=True)
        return names
    from rich.console import Console
    from rich.progress import track

    return track(names, description="Earth: building layers, once", console=Console(stderr=True))
