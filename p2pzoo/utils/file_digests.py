"""Sizes and SHA-256 of the files in a folder: written once into one JSON file, and compared later.

Names are relative to the folder, with "/" between their parts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import read_object, write_json

_READ_SIZE = 1 << 20  # bytes at a time
_ENTRY = re.compile(r"(\d{1,18}) ([0-9a-f]{64})")


class FileDigest(NamedTuple):
    size: int
    sha256: str


Digests = Mapping[str, FileDigest]


def hash_files(value: Any) -> Any:
    """A value of a recipe with the SHA-256 of a file's content in place of its path, in tables too.

    >>> hash_files({"width": 8, "of": {"weights": Path("no such file")}})
    {'width': 8, 'of': {'weights': PosixPath('no such file')}}
    """
    if isinstance(value, Mapping):
        return {name: hash_files(item) for name, item in value.items()}
    return hashlib.sha256(value.read_bytes()).hexdigest() if isinstance(value, Path) and value.is_file() else value


def compute_digests(folder: Path, on_read: Callable[[bytes], object] = len) -> dict[str, FileDigest]:
    """{name: digest} of all files in the folder and below it.

    on_read  called with each piece of bytes that is read

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.txt").write_text("abc")
    >>> compute_digests(folder)["a.txt"].size
    3
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        file.relative_to(folder).as_posix(): FileDigest(file.stat().st_size, _hash(file, on_read)) for file in files
    }


def write_digests(file: Path, digests: Digests) -> None:
    write_json(file, {name: f"{digest.size} {digest.sha256}" for name, digest in digests.items()})


def read_digests(file: Path) -> dict[str, FileDigest] | None:
    """What `write_digests` wrote; None if there is no such file. Raises UserError if it is damaged."""
    if not file.exists():
        return None
    content = read_object(file)
    digests = {}
    for name, value in (content or {"": ""}).items():
        entry = _ENTRY.fullmatch(value) if isinstance(value, str) else None
        path = PurePosixPath(name)
        if entry is None or not path.parts or path.is_absolute() or ".." in path.parts:
            raise UserError(f"{file}: is damaged: remove it; the files that it lists are then not checked")
        digests[name] = FileDigest(int(entry[1]), entry[2])
    return digests


def find_resized(folder: Path, digests: Digests) -> list[str]:
    """The names of files that are missing, or have another size. No file is read."""
    return [name for name, digest in digests.items() if _size(folder / name) != digest.size]


def find_altered(folder: Path, digests: Digests, on_read: Callable[[bytes], object] = len) -> list[str]:
    """The names of files that are missing, or have another size or content. on_read: as for `compute_digests`."""
    return [
        name
        for name, digest in digests.items()
        if _size(folder / name) != digest.size or _hash(folder / name, on_read) != digest.sha256
    ]


def _size(file: Path) -> int | None:
    """None for what is no regular file."""
    return file.stat().st_size if file.is_file() else None


def _hash(file: Path, on_read: Callable[[bytes], object]) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while data := opened.read(_READ_SIZE):
            digest.update(data)
            on_read(data)
    return digest.hexdigest()
