"""Image columns of a dataset of the hub, or of a local folder, as files in p2pzoo's cache.

The library `datasets` reads the tables row by row. Images stay the bytes that they are: nothing here decodes them, so
that p2pzoo's own reader, with its limits, does it later. No code of a repository runs.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import read_object, write_json
from p2pzoo.utils.paths import cache_dir
from p2pzoo.utils.suggest import did_you_mean
from p2pzoo.utils.version import __version__
from p2pzoo_hub.names import RepoName, hub_errors, is_unreachable

INDEX = "index.json"  # is written last: a folder with it is complete
BATCH = 32  # rows that are in memory at once
_SIGNATURES = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II": ".tif",
    b"MM": ".tif",
}
_MAX_REASON = 200  # characters of another program's message
_FORMAT = 1  # of the folders in the cache; raise it when they change


@dataclass(frozen=True)
class Row:
    """A pair: files of x and y, and its block. The id is "SPLIT-ROW"."""

    id: str
    x: Path
    y: Path
    block: str | None


@dataclass(frozen=True)
class Extracted:
    """The rows of each split of the dataset; faults: a line for each row that has no pair."""

    splits: Mapping[str, tuple[Row, ...]]
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """What to read. Either a repository at a commit, or a folder.

    where   name in messages
    subset  of several configurations of one dataset, its name; None for the only one
    x, y    names of the image columns; block: of the column with blocks
    rows    number of rows of each split, the first; None for all
    """

    where: str
    repo: str | None
    commit: str | None
    folder: Path | None
    subset: str | None
    x: str
    y: str
    block: str | None
    rows: int | None

    @property
    def cache(self) -> Path:
        """Where its images are kept. Another commit, other files or other columns have another folder."""
        values: list[Any] = [_FORMAT, self.subset, self.x, self.y, self.block, self.rows]
        values.append(self.commit if self.folder is None else _state(self.folder, self.where))
        digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
        name = (self.repo or "").replace("/", "--") or "local"
        return cache_dir() / "hub-pairs" / name / digest

    def extract(self) -> Extracted:
        """Write the images of the columns into the cache, unless they are there. Raises UserError.

        Several processes may ask at once: one writes.
        """
        folder = self.cache
        if (folder / INDEX).is_file() and (known := _read_index(folder)):
            return known
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if known := _read_index(folder):
                return known
            temporary = folder.with_suffix(".tmp")
            for leftover in (temporary, folder):
                shutil.rmtree(leftover, ignore_errors=True)
            temporary.mkdir()
            try:
                self._write(temporary)
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return _read_index(folder) or Extracted({}, ())

    def _write(self, folder: Path) -> None:
        from huggingface_hub.utils import tqdm

        index: dict[str, Any] = {"splits": {}, "faults": []}
        with _reading(self.where), tqdm(desc=f"{self.where}: pairs", unit="", disable=None) as bar:
            for split, stream in self._open().items():
                if not split.replace("-", "").replace("_", "").replace(".", "").isalnum():
                    raise UserError(f"{self.where}: its split '{split}' cannot be the name of a folder")
                (folder / split).mkdir()
                rows = index["splits"][split] = []
                for number, values in self._iter_rows(stream, split):
                    row, fault = self._write_row(folder / split, f"{number:06d}", values)
                    if fault:
                        index["faults"].append(f"{self.where}: row {number} of {split}: {fault}")
                    else:
                        rows.append({"id": f"{split}-{number:06d}", **row})
                    bar.update()
        write_json(folder / INDEX, index)

    def _open(self) -> Mapping[str, Any]:
        """{split: a stream of its rows}."""
        datasets = require_datasets()
        source = str(self.folder.resolve()) if self.folder else self.repo
        streams = datasets.load_dataset(source, self.subset, revision=self.commit, streaming=True)
        return streams if isinstance(streams, Mapping) else {"train": streams}

    def _iter_rows(self, stream: Any, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number of a row, its values by column). Raises UserError for a column that the split does not have."""
        number = 0
        for table in stream.with_format("arrow").iter(batch_size=BATCH):
            if number == 0:
                for parameter, column in (("x", self.x), ("y", self.y), ("block", self.block)):
                    if column is not None and column not in table.column_names:
                        hint = did_you_mean(column, table.column_names, names_to_list=table.column_names)
                        raise UserError(f'{self.where}: {parameter} = "{column}": {split} has no such column{hint}')
            for values in table.select(sorted({self.x, self.y, *([self.block] if self.block else [])})).to_pylist():
                if self.rows is not None and number >= self.rows:
                    return
                yield number, values
                number += 1

    def _write_row(self, folder: Path, stem: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
        """(the files and the block of a row, None), or ({}, what is wrong with it)."""
        row: dict[str, Any] = {}
        for side, column in (("x", self.x), ("y", self.y)):
            content, fault = self._image_bytes(values[column])
            if fault:
                return {}, f"{column} {fault}"
            suffix = next((suffix for start, suffix in _SIGNATURES.items() if content.startswith(start)), ".png")
            row[side] = f"{folder.name}/{stem}-{side}{suffix}"
            (folder / f"{stem}-{side}{suffix}").write_bytes(content)
        block = values[self.block] if self.block else None
        if isinstance(block, (bytes, dict, list)):
            return {}, f"{self.block} is no text and no number, and blocks need one"
        return {**row, "block": None if block is None else str(block)}, None

    def _image_bytes(self, value: Any) -> tuple[bytes, str | None]:
        """(the bytes of an image, None), or (b"", what is wrong with the value)."""
        if isinstance(value, dict) and {"bytes", "path"} & value.keys():
            content, path = value.get("bytes"), value.get("path")
            value = content if content is not None else self._read_inside(path)
            if value is None:
                where = "that is not in the folder" if self.folder else "of the repository: download it, and set folder"
                return b"", "is empty" if path is None else f"names a file {where}, and holds no image"
        if value is None:
            return b"", "is empty"
        if not isinstance(value, bytes):
            return b"", f"holds no image but {type(value).__name__}: name a column of images"
        return value, None

    def _read_inside(self, path: Any) -> bytes | None:
        """A file that a table names, if it is in the folder of the table: a table may name any file of the machine."""
        if self.folder is None or not isinstance(path, str):
            return None
        file = (self.folder / path).resolve()
        return file.read_bytes() if file.is_relative_to(self.folder.resolve()) and file.is_file() else None


def require_datasets() -> Any:
    """The module datasets. Raises UserError if it is not installed."""
    try:
        import datasets
    except ImportError:
        raise UserError("hub-pairs needs the library datasets: pip install 'p2pzoo[datasets]'") from None
    return datasets


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """Errors of `datasets` inside, which may be of any type, become UserErrors. A full disk stays an OSError."""
    try:
        with hub_errors(where, kind="dataset"):
            yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = " ".join(str(error).split())[:_MAX_REASON]
        raise UserError(f"{where}: cannot be read as tables of images ({type(error).__name__}: {reason})") from error


def _read_index(folder: Path) -> Extracted | None:
    index = read_object(folder / INDEX)
    if index is None:
        return None
    splits = {
        split: tuple(Row(row["id"], folder / row["x"], folder / row["y"], row["block"]) for row in rows)
        for split, rows in index["splits"].items()
    }
    return Extracted(splits, tuple(index["faults"]))


def _state(folder: Path, where: str) -> list[Any]:
    """Names, sizes and times of all files of a folder. Raises UserError if it has none."""
    files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else []
    if not files:
        raise UserError(
            f"{where}: {'has no files' if folder.is_dir() else 'no such folder'}: give one with Parquet files"
        )
    stats = [(file.relative_to(folder).as_posix(), file.stat()) for file in files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def find_commit(name: RepoName, where: str) -> str:
    """The commit of a dataset's revision on the hub; without a network the one that was used last, with a warning.

    Raises UserError if there is no such dataset or revision.
    """
    from huggingface_hub import constants

    return name.revision if name.is_exact and name.revision else _ask_commit(name, where, constants.ENDPOINT)


@functools.lru_cache(maxsize=32)
def _ask_commit(name: RepoName, where: str, _endpoint: str) -> str:
    """Asked once in a process, so that all splits of a run are of one commit."""
    from huggingface_hub import HfApi

    known = cache_dir() / "hub-pairs" / name.repo.replace("/", "--") / "revisions.json"
    revision = name.revision or "main"
    with hub_errors(where, kind="dataset"):
        try:
            api = HfApi(library_name="p2pzoo", library_version=__version__)
            commit = str(api.dataset_info(name.repo, revision=name.revision).sha)
        except Exception as error:
            last = (read_object(known) or {}).get(revision)
            if not (is_unreachable(error) and isinstance(last, str)):
                raise
            warnings.warn(f"{where}: the hub is not reachable; commit {last[:12]} is used", stacklevel=4)
            return last
    known.parent.mkdir(parents=True, exist_ok=True)
    write_json(known, {**(read_object(known) or {}), revision: commit})
    return commit
