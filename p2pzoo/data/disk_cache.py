"""Prepared pairs on disk: one file, made once, mapped a pair at a time by every process that trains on them.

They lie in the folder `stores` of the user's cache (`p2pzoo.utils.paths.cache_dir`). A file's name says what it was made of:
other sources, another size or another version of what decodes them make another file. Old ones are not cleared away:
delete the folder, or any file in it, whenever no run is using it. It is made again when it is wanted.

The file: the pairs as records of one NumPy dtype, then their names and checksums as JSON, written last and with the
file's right length alone in the right place. A file under its final name was whole when it got that name.
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from p2pzoo.plugin.batch import Pair
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write, parse_json

VERSION = 2  # raise it when the same sources give other bytes
INSTEAD = 'make room, set P2PZOO_CACHE to a folder elsewhere, or [compute] store = "stream"'


class StoreFile:
    """The pairs of a finished file. `[i]` maps that pair alone, so that what was seen takes no memory of the process.

    Writing into what `[i]` gives changes neither the file nor what others see. Threads may share it.
    """

    def __init__(self, path: Path, record: np.dtype, ids: list[str], blocks: list[str | None], sums: list[int]) -> None:
        self._path, self._file = path, path.open("rb")  # readable where the file is deleted or replaced meanwhile
        self._record, self._ids, self._blocks = record, ids, blocks
        self._sums: list[int | None] = [*sums]  # of the pairs' bytes; None: was right once, and is trusted

    def __getitem__(self, index: int) -> Pair:
        mapped = np.memmap(self._file, self._record, "c", offset=index * self._record.itemsize, shape=1)
        if self._sums[index] not in (None, zlib.crc32(mapped.tobytes())):
            raise UserError(f"{self._path}: pair {index} was altered since it was prepared: delete this file")
        self._sums[index] = None
        fields = {name: np.asarray(mapped[name][0]) for name in self._record.names or ()}
        return Pair(self._ids[index], **fields, block=self._blocks[index])


def opened(path: Path, record: np.dtype, count: int) -> StoreFile | None:
    """The file, if it is there and holds so many pairs; None where it is absent, cut short or otherwise not whole."""
    try:
        with path.open("rb") as file:
            file.seek(count * record.itemsize)
            names = parse_json(file.read())
        if len(names["ids"]) == len(names["blocks"]) == len(names["sums"]) == count:
            return StoreFile(path, record, **names)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def open_or_create(path: Path, record: np.dtype, count: int, pairs: Iterable[Pair]) -> StoreFile:
    """The file, made of `pairs` where it is not whole; of several processes that want it one makes it.

    Raises UserError where it cannot be written, or pairs do not have the types of `record`.
    """
    if found := opened(path, record, count):
        return found  # without the lock: it may lie on a disk that cannot be written
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not opened(path, record, count):
                _make(path, record, _announced(pairs, count, path))
    except OSError as error:
        size = f"{count * record.itemsize / 1e9:.1f} GB of prepared pairs"
        raise UserError(f"{path}: {size} cannot be stored here ({error.strerror or error}): {INSTEAD}") from error
    if found := opened(path, record, count):
        return found
    raise UserError(f"{path}: the file does not hold what was written to it: {INSTEAD}")


def check_room(path: Path, size: int) -> None:
    """Raises UserError where so many bytes do not fit beside what is there; a little is left to others."""
    there = next(parent for parent in path.parents if parent.exists())
    free = shutil.disk_usage(there).free
    if free < size + size // 50:
        raise UserError(
            f"{there}: {free / 1e9:.1f} GB are free, and the prepared pairs need {size / 1e9:.1f} GB: {INSTEAD}"
        )


def _make(path: Path, record: np.dtype, pairs: Iterable[Pair]) -> None:
    names: dict[str, list[Any]] = {"ids": [], "blocks": [], "sums": []}
    one = np.zeros(1, record)
    # The temporary name is always the same: the lock admits one writer, and the next overwrites what a killed one left.
    with atomic_write(path) as unfinished, unfinished.open("wb") as file:
        for pair in pairs:
            for name in record.names or ():
                one[name][0] = _of_type(getattr(pair, name), one[name].dtype, name, pair.id)
            file.write(data := one.tobytes())
            names["sums"].append(zlib.crc32(data))
            names["ids"].append(pair.id)
            names["blocks"].append(pair.block)
        file.write(json.dumps(names).encode())


def _of_type(image: np.ndarray | None, dtype: np.dtype, name: str, pair: str) -> np.ndarray:
    if image is None or image.dtype != dtype:
        told = "None" if image is None else image.dtype
        raise UserError(
            f"pair '{pair}': {name} is {told}, the first pair's is {dtype}, and a store on disk holds one type: "
            'set [compute] store = "stream"'
        )
    return image


def _announced(pairs: Iterable[Pair], count: int, path: Path) -> Iterable[Pair]:
    """The pairs, with a progress bar on standard error, or one plain line where that is no terminal."""
    if not sys.stderr.isatty():
        print(f"preparing {count} pairs in {path}, once", file=sys.stderr, flush=True)
        return pairs
    from rich.console import Console
    from rich.progress import track

    return track(pairs, "Preparing pairs, once", count, console=Console(stderr=True))
