"""Read files that torch.save wrote, of unknown origin: no code of theirs runs, and memory follows from their bytes.

Imports torch only.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

# torch's unpickler with weights_only=True calls bytearray(N), which writes N zeros. torch.save writes no bytearray.
_BYTEARRAY = b"bytearray"
# Bytes that a file may become: multiples of its own, and so many more. Tensors may share memory (tied weights),
# and weights in a wheel hardly compress.
_MAX_EXPANSION, _MORE_BYTES = 20, 64 << 20
# Values in a tuple and the tuples inside it, each as often as it occurs. As a key of a table a tuple is walked through
# whole: one that holds another twice, 60 times over, takes years. torch.save's own have a dozen values.
_MAX_TUPLE = 10_000
_LEGACY_PICKLES = 5  # of a file before torch 1.6: magic number, version, machine, values, names of the storages


class UnpackedTooLarge(ValueError):
    """A file would take more memory than its bytes explain."""


def load_pickle(file: Path | io.BytesIO) -> Any:
    """What torch.save wrote: tensors on the CPU and plain values.

    Raises UnpackedTooLarge if the file unpacks to more bytes than it has, or if its tensors have more than 20 times the
    bytes of the file (one value can be repeated without end); and what torch.load raises for files that are not
    complete, or would run code.

    >>> file = io.BytesIO()
    >>> torch.save({"weight": torch.ones(2)}, file)
    >>> load_pickle(file)
    {'weight': tensor([1., 1.])}
    """
    size = file.stat().st_size if isinstance(file, Path) else len(file.getbuffer())
    if isinstance(file, io.BytesIO):
        file.seek(0)
    if zipfile.is_zipfile(file):
        _check_zip(file, size)
    elif size and _has_bytearray(file):
        raise UnpackedTooLarge("it holds a bytearray, which torch.save does not write")
    else:
        with file.open("rb") if isinstance(file, Path) else contextlib.nullcontext(file) as opened:
            opened.seek(0)
            for _ in range(_LEGACY_PICKLES):
                _check_tuples(opened)
    if isinstance(file, io.BytesIO):
        file.seek(0)
    with warnings.catch_warnings(action="ignore"):
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    tensors = sum(tensor.numel() * tensor.element_size() for tensor in _iter_tensors(loaded))
    if tensors > _MAX_EXPANSION * size + _MORE_BYTES:
        raise UnpackedTooLarge(
            f"its tensors have {tensors:,} bytes, and the file has {size:,}: they repeat their values"
        )
    return loaded


def load_zipped(path: Path, suffixes: tuple[str, ...] = (".pth",)) -> tuple[str, bytes]:
    """(name, content) of the only file in a zip or wheel that ends in one of these suffixes.

    Raises ValueError if there is not exactly one, UnpackedTooLarge if it unpacks to more than 20 times the bytes of the
    zip, zipfile.BadZipFile.
    """
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(suffixes)]
        if len(members) != 1:
            raise ValueError(f"it contains {len(members)} weight files, not one")
        [member] = members
        limit = _MAX_EXPANSION * path.stat().st_size + _MORE_BYTES
        if member.file_size > limit:  # zipfile reads no more than this size
            raise UnpackedTooLarge(f"{member.filename} unpacks to {member.file_size:,} bytes, the limit is {limit:,}")
        return member.filename, archive.read(member)


def describe_error(error: Exception) -> str:
    """The cause of an error of these functions, for a message: torch's own texts have many lines."""
    is_ours = isinstance(error, ValueError) and type(error) in (ValueError, UnpackedTooLarge)
    return str(error).partition("\n")[0] if is_ours else type(error).__name__


def _check_zip(file: Path | io.BytesIO, size: int) -> None:
    """torch.save writes its parts without compression."""
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > size:
            raise UnpackedTooLarge(f"its parts unpack to {unpacked:,} bytes, and the file has {size:,}")
        for member in archive.infolist():
            if member.filename.endswith("data.pkl"):
                pickled = archive.read(member)
                if _BYTEARRAY in pickled:
                    raise UnpackedTooLarge("it holds a bytearray, which torch.save does not write")
                _check_tuples(io.BytesIO(pickled))


def _has_bytearray(file: Path | io.BytesIO) -> bool:
    if isinstance(file, io.BytesIO):
        return _BYTEARRAY in file.getvalue()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return mapped.find(_BYTEARRAY) >= 0


def _check_tuples(pickled: IO[bytes]) -> None:
    """Raises UnpackedTooLarge if the next pickle of this file makes a tuple of more than _MAX_TUPLE values.

    A pickle that cannot be followed to its end is left to torch, which refuses it at the same step.
    """
    largest = 0
    with contextlib.suppress(ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError):
        for size in _tuple_sizes(pickled):
            largest = max(largest, size)
            if largest > _MAX_TUPLE:
                break
    if largest > _MAX_TUPLE:
        raise UnpackedTooLarge(f"it holds a tuple of more than {_MAX_TUPLE:,} values, which torch.save does not write")


def _tuple_sizes(pickled: IO[bytes]) -> Iterator[int]:
    """The size of each tuple that a pickle makes. Its steps are followed with sizes in place of the values."""
    stack: list[int | None] = []  # None: a mark
    memo: dict[Any, int | None] = {}
    for step, argument, _ in pickletools.genops(pickled):
        if step.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif step.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            taken = _take(stack, step.stack_before)
            size = max(taken, default=1)
            if step.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
                size = 1 + sum(taken)
                yield size
            stack += [None if value is pickletools.markobject else size for value in step.stack_after]


def _take(stack: list[int | None], kinds: Sequence[object]) -> list[int]:
    """Take what a step of a pickle takes from the stack: values, also all down to the last mark."""
    taken: list[int] = []
    for kind in reversed(kinds):
        if kind is pickletools.stackslice:
            while (size := stack.pop()) is not None:
                taken.append(size)
        elif kind is not pickletools.markobject:  # the mark went with the values above it
            taken.append(stack.pop() or 1)
    return taken


def _iter_tensors(loaded: Any) -> Iterator[Tensor]:
    """All tensors in nested tables and lists; each container once, because a pickle can repeat them."""
    found: set[int] = set()
    waiting = [loaded]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (Mapping, list, tuple, set)) and id(value) not in found:
            found.add(id(value))
            waiting += value.values() if isinstance(value, Mapping) else value
