"""Writing so that a reader never sees half a file: to a temporary name, then os.replace. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

UMASK = os.umask(0o022)
os.umask(UMASK)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what was written there takes its place at the end, or is removed on an error."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~UMASK)  # safetensors makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write that fails names no file
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def fingerprint(files: Iterable[Path]) -> str:
    """A hash of the files' names and lengths in bytes: cheap; other when files come, go or change in length."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.parent.name}/{file.name} {file.stat().st_size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:12]


def read_json(path: Path) -> Any:
    """The file's value, or None if it is not there or not whole."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
