"""Uncompressed copies of volumes in the user's cache, so that single slices can be read. Holds no name of a patient."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write, read_object, remove_leftovers, write_json
from p2pzoo.utils.paths import cache_dir

_VERSION = 1  # raise it when copies, masks, slices or windows are made in another way
_REMEDIES = "make room, or set P2PZOO_CACHE to a folder elsewhere"

FileState = tuple[str, int, int]  # path, bytes, time of the last change


def file_state(path: Path) -> FileState:
    """What changes when the file does."""
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns


def cached_copy(key: Any, size: int, what: str, write: Callable[[BinaryIO], None]) -> Path:
    """A file of `size` bytes in the cache, which `write` writes if it is not there. Old files are not deleted.

    key   JSON that the bytes depend on
    what  for messages: what the copy is of

    Raises UserError where the disk has no room.
    """
    path = _cache_file(key, "raw")
    if _is_whole(path, size):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not _is_whole(path, size):
                remove_leftovers(path)
                free = shutil.disk_usage(path.parent).free
                if free < size + size // 50:
                    raise UserError(
                        f"{path.parent}: {free / 1e9:.1f} GB are free, and an uncompressed copy of {what} needs "
                        f"{size / 1e9:.1f} GB: {_REMEDIES}"
                    )
                with atomic_write(path) as unfinished, unfinished.open("wb") as file:
                    write(file)
    except OSError as error:
        raise UserError(
            f"{path.parent}: an uncompressed copy of {what}, {size / 1e6:.0f} MB, cannot be stored here "
            f"({error.strerror or error}): {_REMEDIES}"
        ) from error
    return path


def _is_whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def recall(key: Any) -> dict[str, Any] | None:
    """What `remember` stored under this key; None if there is nothing."""
    return read_object(_cache_file(key, "json"))


def remember(key: Any, value: dict[str, Any]) -> None:
    file = _cache_file(key, "json")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, value)


def digest(key: Any) -> str:
    """24 hexadecimal digits.

    >>> digest(["a", 1]) == digest(("a", 1))
    True
    """
    text = json.dumps([_VERSION, key], sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:24]


def _cache_file(key: Any, suffix: str) -> Path:
    return cache_dir() / "volumes" / f"{digest(key)}.{suffix}"


def combine_states(states: Iterable[FileState]) -> tuple[str, str]:
    """Two digests of the states of a volume's files. The second does not change when the folder is moved."""
    states = [*states]
    return digest(states), digest([(Path(path).name, size, changed) for path, size, changed in states])
