"""Writing so that a reader never sees half a file: to a temporary name, then os.replace; reading what may be no such
file at all. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

MOST_DEEP = 64  # tables and arrays inside one another: more is nothing that we or people write
UMASK = os.umask(0o022)
os.umask(UMASK)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
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
    with atomic_write(path) as temporary:
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
        return parse_json(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def read_object(path: Path) -> dict[str, Any] | None:
    """The same of a file that holds an object, {name: value}."""
    value = read_json(path)
    return value if isinstance(value, dict) else None


def parse_json(text: str | bytes) -> Any:
    """The value. Raises ValueError for what is no JSON, too deep or too long for Python to take, or has a NUL in it."""
    return _shallow(json.loads, text)


def parse_toml(text: str) -> dict[str, Any]:
    """The document. Raises ValueError (tomllib's, where it names the place) as `parse_json` does."""
    return _shallow(tomllib.loads, text)  # type: ignore[no-any-return]


def _shallow(parse: Callable[[Any], Any], text: str | bytes) -> Any:
    try:
        value = parse(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    parts = [value]
    for _ in range(MOST_DEEP):
        if any(isinstance(part, str) and "\0" in part for part in parts):
            raise ValueError("has a NUL character in it, which no name can have")
        inner = [[*part, *part.values()] for part in parts if isinstance(part, dict)]
        parts = [part for level in (*inner, *(p for p in parts if isinstance(p, list))) for part in level]
        if not parts:
            return value
    raise ValueError("nested too deeply")
