"""Write files atomically, and read JSON and TOML that may be damaged. Imports nothing heavy.

A file is written under a temporary name in the same folder, then renamed with os.replace. The name is another for each
writer, so that several can write one file at once; it ends with .tmp.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import secrets
import shutil
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from p2pzoo.utils.errors import UserError

_MAX_PREFIX = 100  # bytes of a file's name in its temporary name
MAX_NESTING = 64  # levels of tables and arrays; people and p2pzoo write fewer than ten
MAX_INTEGER_BITS = 64  # as in TOML
_UMASK = os.umask(0o022)  # the only way to read the umask is to set it
os.umask(_UMASK)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, to write to; rename that file to `path` at the end.

    On an error the temporary file is removed and `path` stays as it was. An OSError without a file name gets `path`.
    Where `path` is a link, the file that it leads to is written. Raises UserError where that is no regular file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(Path(folder) / "notes.txt") as temporary:
    ...         _ = temporary.write_text("complete")
    ...     print([file.name for file in Path(folder).iterdir()])
    ['notes.txt']
    """
    target = _resolve_target(path)
    temporary = target.with_name(f"{_temporary_prefix(target)}{os.getpid():x}{secrets.token_hex(4)}.tmp")
    try:
        with naming(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_UMASK)  # safetensors creates files that only their owner can read
            os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of `path` left. Only for a process that holds a lock, so that no other writes it."""
    for file in path.parent.glob(f"{glob.escape(_temporary_prefix(path))}*.tmp"):
        file.unlink(missing_ok=True)


def _temporary_prefix(path: Path) -> str:
    """The start of the temporary names of a file, short: a file system takes names of up to 255 bytes."""
    return f".{os.fsencode(path.name)[:_MAX_PREFIX].decode(errors='ignore')}."


def _resolve_target(path: Path) -> Path:
    """The file that `path` leads to. Raises UserError where it is a device, a pipe, a folder or a link to itself."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.is_symlink():
        what = "a link to itself"
    elif target.is_file() or not target.exists():
        return target
    else:
        what = "a folder" if target.is_dir() else "a pipe" if target.is_fifo() else "a device"
    raise UserError(f"{path}: is {what}, which is not replaced: give the name of a file")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError inside, such as that of write() on a full disk, the file name `path` if it has none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:  # errors of requests have no number, and their own text
            error.filename = str(path)
        raise


@contextlib.contextmanager
def page_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write a page to; at the end its files replace those of the same names in `folder`.

    A new folder appears as a whole. In an older one other files stay, scripts come first and index.html last. After an
    error, and after a kill, it can be written again. An OSError without a file name gets `folder`.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "page"
    >>> with page_folder(folder) as unfinished:
    ...     write_text(unfinished / "index.html", "a page")
    >>> [file.name for file in folder.iterdir()], [file.name for file in folder.parent.iterdir()]
    (['index.html'], ['page'])
    """
    is_new = not folder.exists()
    temporary = folder.with_name(f".{folder.name}.tmp") if is_new else folder / ".page.tmp"  # on the same disk
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        with naming(folder):
            temporary.mkdir(parents=True)
            yield temporary
            if is_new:
                os.replace(temporary, folder)
                return
            files = [file.relative_to(temporary) for file in temporary.rglob("*") if file.is_file()]
            for file in sorted(files, key=lambda file: (file.name == "index.html", len(file.parts), file)):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary / file, folder / file)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_page_folder(folder: Path, script: str) -> None:
    """Raise UserError unless `folder` is new, empty, or holds an older page, which has this script. Hidden files may be
    those of a page that was not finished."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder")
    has_files = folder.is_dir() and any(not file.name.startswith(".") for file in folder.iterdir())
    if has_files and not (folder / script).exists():
        raise UserError(f"{folder}: contains other files; give a new folder, or one with an older page of this kind")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically. An OSError of a full disk names the target; that of shutil.copyfile names the source."""
    with atomic_write(target) as temporary, source.open("rb") as old, temporary.open("wb") as new:
        shutil.copyfileobj(old, new)


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, atomically.

    Names of files that are not UTF-8 have surrogates in Python, which UTF-8 cannot hold: they are written as `\\udce9`,
    which JSON reads as the same name.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, "utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def fingerprint(files: Iterable[Path]) -> str:
    """A 12-digit hash of the files' names and sizes. It changes when files are added, removed or change in size.

    Contents are not read, so this is fast for many files.
    """
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.parent.name}/{file.name} {file.stat().st_size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:12]


def refuse_pipe(path: Path | str) -> None:
    """Raise UserError for a pipe, a socket or a device: opening or reading it may never end."""
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: is a pipe or a device, which may never end: give a regular file")


def read_json(path: Path) -> Any:
    """The value in a JSON file, or None if the file does not exist or is damaged."""
    refuse_pipe(path)
    try:
        return parse_json(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def read_object(path: Path) -> dict[str, Any] | None:
    """The object {name: value} in a JSON file; None if the file does not exist, is damaged or has another value."""
    value = read_json(path)
    return value if isinstance(value, dict) else None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. A byte order mark before it is skipped: Windows' editors write one.

    Raises ValueError if the text is no JSON, is nested more than 64 levels deep, or has an integer of more than 64 bits
    or a string with a NUL character.
    """
    return _parse_shallow(json.loads, text)


def parse_toml(text: str) -> dict[str, Any]:
    """The document of a TOML text. Raises ValueError as `parse_json` does; tomllib's message names line and column."""
    return _parse_shallow(tomllib.loads, text)  # type: ignore[no-any-return]


def _parse_shallow(parse: Callable[[Any], Any], text: str | bytes) -> Any:
    """`parse(text)`, checked level by level: deep values would exhaust the stack of whoever walks them."""
    if isinstance(text, str):
        text = text.removeprefix("\ufeff")
    try:
        value = parse(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(MAX_NESTING):
        if any(isinstance(item, str) and "\0" in item for item in level):
            raise ValueError("a string contains a NUL character, which no file name can have")
        if any(isinstance(item, int) and item.bit_length() > MAX_INTEGER_BITS for item in level):
            raise ValueError("an integer of more than 64 bits")  # Python refuses to print very long ones
        tables = [[*item, *item.values()] for item in level if isinstance(item, dict)]
        arrays = [item for item in level if isinstance(item, list)]
        level = [item for container in (*tables, *arrays) for item in container]
        if not level:
            return value
    raise ValueError("nested too deeply")
