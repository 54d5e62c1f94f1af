"""Prepared pairs on disk: one file that is written once. Every process that trains maps it, one pair at a time.

The files are in the folder `stores` of the user's cache (`p2pzoo.utils.paths.cache_dir`). A file's name is a hash of
what it was made from: other sources, another size or another version of the decoders give another file. Old files are
not deleted. Delete the folder, or any file in it, while no run uses it; the next run that needs it writes it again.

Format: the pairs as records of one NumPy dtype, then their ids, blocks and checksums as JSON. The JSON is written last,
and is at its place only in a file of the right length. A file gets its final name when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import threading
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from p2pzoo.plugin.batch import Pair
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write, parse_json, remove_leftovers
from p2pzoo.utils.plurals import format_count

CACHE_FORMAT = 3  # raise it when the same sources give other bytes
_REMEDIES = 'make room, set P2PZOO_CACHE to a folder elsewhere, or [compute] store = "stream"'


class DamagedPair(Exception):
    """A pair's bytes are not those that were written."""


class StoreFile:
    """The pairs of a finished file. `[i]` maps only that pair, so pairs that were read take no memory of the process.

    At its first read a pair's checksum is compared; raises DamagedPair. Writing into the arrays of `[i]` changes
    neither the file nor what others read. Threads may share an instance.
    """

    def __init__(self, path: Path, record: np.dtype, ids: list[str], blocks: list[str | None], sums: list[int]) -> None:
        self._path, self._file = path, path.open("rb")  # stays readable when the file is deleted or replaced
        self._record, self._ids, self._blocks = record, ids, blocks
        self._lock, self._is_discarded = threading.Lock(), False
        self._sums: list[int | None] = [*sums]  # CRC-32 of each pair's bytes; None once it has been checked

    def __getitem__(self, index: int) -> Pair:
        mapped = np.memmap(self._file, self._record, "c", offset=index * self._record.itemsize, shape=1)
        if self._sums[index] not in (None, zlib.crc32(mapped.tobytes())):
            self._discard(index)
            raise DamagedPair
        self._sums[index] = None
        fields = {name: np.asarray(mapped[name][0]) for name in self._record.names or ()}
        return Pair(self._ids[index], **fields, block=self._blocks[index])

    def _discard(self, index: int) -> None:
        """Delete the damaged file, so that the next run writes it again, and print that once."""
        with self._lock:
            if not self._is_discarded:
                with contextlib.suppress(OSError):  # a read-only folder
                    self._path.unlink(missing_ok=True)
                advice = "damaged pairs are decoded again, and the next run writes the file again"
                print(f"{self._path}: damaged (pair {index}): {advice}", file=sys.stderr, flush=True)
            self._is_discarded = True


def open_if_complete(path: Path, record: np.dtype, count: int) -> StoreFile | None:
    """The file, if it holds `count` pairs; None where it is missing, truncated or damaged."""
    try:
        with path.open("rb") as file:
            file.seek(count * record.itemsize)
            written = file.read()
        index = parse_json(written)
        is_intact = written == _to_bytes(index) and index.pop("check") == _checksum(index)
        if is_intact and len(index["ids"]) == len(index["blocks"]) == len(index["sums"]) == count:
            return StoreFile(path, record, **index)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not this object, or no object
        pass
    return None


def open_or_create(path: Path, record: np.dtype, count: int, pairs: Iterable[Pair]) -> StoreFile:
    """The file; where it is not complete it is written from `pairs`. Of several processes that need it one writes it.

    Raises UserError where it cannot be written, or pairs do not have the dtypes of `record`.
    """
    if file := open_if_complete(path, record, count):
        return file  # without the lock: the folder may be read-only
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not open_if_complete(path, record, count):
                _write(path, record, _with_progress(pairs, count, path))
    except OSError as error:
        size = f"{count * record.itemsize / 1e9:.1f} GB of prepared pairs"
        raise UserError(f"{path}: {size} cannot be stored here ({error.strerror or error}): {_REMEDIES}") from error
    if file := open_if_complete(path, record, count):
        return file
    raise UserError(f"{path}: the file does not contain what was written to it: {_REMEDIES}")


def check_room(path: Path, size: int) -> None:
    """Raises UserError where `size` bytes, and 2 % more for others, do not fit on the disk of `path`."""
    folder = next(parent for parent in path.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < size + size // 50:
        raise UserError(
            f"{folder}: {free / 1e9:.1f} GB are free, and the prepared pairs need {size / 1e9:.1f} GB: {_REMEDIES}"
        )


def _write(path: Path, record: np.dtype, pairs: Iterable[Pair]) -> None:
    index: dict[str, list[Any]] = {"ids": [], "blocks": [], "sums": []}
    row = np.zeros(1, record)
    remove_leftovers(path)  # the lock admits one writer
    with atomic_write(path) as unfinished, unfinished.open("wb") as file:
        for pair in pairs:
            for name in record.names or ():
                row[name][0] = _require_dtype(getattr(pair, name), row[name].dtype, name, pair.id)
            file.write(data := row.tobytes())
            index["sums"].append(zlib.crc32(data))
            index["ids"].append(pair.id)
            index["blocks"].append(pair.block)
        file.write(_to_bytes({**index, "check": _checksum(index)}))


def _to_bytes(index: Mapping[str, Any]) -> bytes:
    return json.dumps(index).encode()


def _checksum(index: dict[str, list[Any]]) -> int:
    return zlib.crc32(json.dumps([index[name] for name in ("ids", "blocks", "sums")]).encode())


def _require_dtype(image: np.ndarray | None, dtype: np.dtype, name: str, pair: str) -> np.ndarray:
    if image is None or image.dtype != dtype:
        actual = "None" if image is None else image.dtype
        raise UserError(
            f"pair '{pair}': {name} is {actual}, the first pair's is {dtype}, and a store on disk has one dtype: "
            'set [compute] store = "stream"'
        )
    return image


def _with_progress(pairs: Iterable[Pair], count: int, path: Path) -> Iterable[Pair]:
    """The pairs, with a progress bar on standard error, or one plain line where that is no terminal."""
    if not sys.stderr.isatty():
        print(f"preparing {format_count(count, 'pair')} in {path}, once", file=sys.stderr, flush=True)
        return pairs
    from rich.console import Console
    from rich.progress import track

    return track(pairs, "Preparing pairs, once", count, console=Console(stderr=True))
