"""Rasters on disk, built once and memory-mapped by every process that reads them.

A file under its final name is complete: it is written under another name first. It ends with a digest of all before,
which each process checks when it first opens the file: damaged pixels would change numbers without a word. A process
that finds a file missing or damaged takes the folder's lock. So if several processes start together, one builds and the
others wait.
"""

from __future__ import annotations

import hashlib
import mmap
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write, remove_leftovers

DIGEST_BYTES = 16
_verified: set[tuple[str, int, int]] = set()  # (path, bytes, time of the last change) of files that were intact


@dataclass(frozen=True)
class Layer:
    """How to build a raster.

    build    returns its pixels; its arguments are the layers `of`, in that order
    of       names of the layers that it is built from
    sources  names of the files that it is built from
    version  raise it when `build` returns other pixels for the same input
    """

    build: Callable[..., np.ndarray]
    of: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    version: int = 1


def open_layers(
    folder: Path, layers: Mapping[str, Layer], names: Sequence[str], stem: Callable[[str], str] = str
) -> dict[str, np.ndarray]:
    """The layers `names`, read-only and memory-mapped from `folder`; missing ones are built.

    stem  returns the name of a layer's file, without .npy

    Raises UserError if `folder` cannot be written.
    """

    def path(name: str) -> Path:
        return folder / f"{stem(name)}.npy"

    loaded = {name: _load_layer(path(name)) for name in names}
    if all(layer is not None for layer in loaded.values()):
        return loaded  # without the lock: a complete cache may be on a read-only disk
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            return _build_layers(path, layers, names)
    except OSError as error:
        raise UserError(
            f"{folder}: the layers of the embedded data cannot be stored here ({error.strerror or error}): "
            "free disk space, or set P2PZOO_CACHE to a writable folder"
        ) from error


def _build_layers(
    path: Callable[[str], Path], layers: Mapping[str, Layer], names: Sequence[str]
) -> dict[str, np.ndarray]:
    def layer(name: str) -> np.ndarray:
        if (stored := _load_layer(path(name))) is None:
            _store_layer(path(name), layers[name].build(*map(layer, layers[name].of)))
            stored = np.load(path(name), mmap_mode="r")
        return stored

    missing = [name for name in names if _load_layer(path(name)) is None]
    if missing:  # else another process built them meanwhile
        damaged = [name for name in missing if path(name).exists()]
        for name in _with_progress(missing, damaged, path(missing[0]).parent):
            layer(name)
    return {name: layer(name) for name in names}


def _load_layer(path: Path) -> np.ndarray | None:
    """None if the file is missing or damaged, or was written by a version that stored no digest."""
    try:
        facts = path.stat()
        key = (str(path), facts.st_size, facts.st_mtime_ns)
        if key not in _verified and not _is_intact(path):
            return None
        _verified.add(key)
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):  # missing, truncated, not an array
        return None


def _is_intact(path: Path) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        with memoryview(content) as view, view[:-DIGEST_BYTES] as array:
            digest = hashlib.blake2b(array, digest_size=DIGEST_BYTES).digest()
        return content[-DIGEST_BYTES:] == digest


def _store_layer(path: Path, array: np.ndarray) -> None:
    remove_leftovers(path)  # the lock admits one writer
    with atomic_write(path) as unfinished:
        with unfinished.open("wb") as file:
            np.save(file, array)
        with unfinished.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).digest()
        with unfinished.open("ab") as file:
            file.write(digest)


def _with_progress(names: Sequence[str], damaged: Sequence[str], folder: Path) -> Iterable[str]:
    """`names`, with a progress bar on standard error, or one plain line if that is no terminal."""
    if damaged or not sys.stderr.isatty():
        reason = f" ({', '.join(damaged)}: damaged, or of an older version)" if damaged else ""
        print(f"Earth: building {', '.join(names)} in {folder}, once{reason}", file=sys.stderr, flush=True)
    if not sys.stderr.isatty():
        return names
    from rich.console import Console
    from rich.progress import track

    return track(names, description="Earth: building layers, once", console=Console(stderr=True))
