"""Read files that torch.save wrote, of unknown origin: no code of theirs runs, and memory follows from their bytes.

Imports torch only.
"""

from __future__ import annotations

import io
import mmap
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# torch's unpickler with weights_only=True calls bytearray(N), which writes N zeros. torch.save writes no bytearray.
_BYTEARRAY = b"bytearray"
# Bytes that a file may become: multiples of its own, and so many more. Tensors may share memory (tied weights),
# and weights in a wheel hardly compress.
_MAX_EXPANSION, _MORE_BYTES = 20, 64 << 20


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
            if member.filename.endswith("data.pkl") and _BYTEARRAY in archive.read(member):
                raise UnpackedTooLarge("it holds a bytearray, which torch.save does not write")


def _has_bytearray(file: Path | io.BytesIO) -> bool:
    if isinstance(file, io.BytesIO):
        return _BYTEARRAY in file.getvalue()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return mapped.find(_BYTEARRAY) >= 0


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
