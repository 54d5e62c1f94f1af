"""The dataset `manifest`: your own pairs, wherever they lie, as a JSONL or CSV file lists them."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pzoo.data.pairing import SPLITS, Files, Tell
from p2pzoo.data.splits import Fractions, Splits, assign_splits, enough
from p2pzoo.images.label_maps import Encoding
from p2pzoo.images.resize import Resize
from p2pzoo.plugin import Split
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.suggest import nearest
from p2pzoo_datasets.class_files import ClassFiles
from p2pzoo_datasets.pairs import Count, FilePairs, Range

KEYS = ("x", "y", "id", "split", "labels", "block")
PATHS = ("x", "y", "labels")
MOST_TOLD = 50  # faults of one manifest


class Manifest(FilePairs):
    """Pairs from a list of files: {"x": "photos/1.jpg", "y": "drawings/1.png"} on each line.

    file  .jsonl, an object on each line, or .csv, a heading and then a row for each pair. `x` and `y` are paths,
          relative to the folder of this file. Besides there may be `id` (default: the path of x without suffix, with
          "-" between folders), `split` ("train", "val" or "test"; where no line has one, pairs are dealt out by
          `fractions`), `labels` (a label map to score by; `classes` is its class file) and `block` (pairs of one
          block are resampled as one when intervals are computed). Empty lines are left out

    All other parameters, sizes, channels, ranges and label maps are as in `folders`, and so are their errors.

    Raises UserError with all faults of the list, by line: what is no object or row, keys that there are not, paths
    that lead to no file, ids that are there twice, splits or labels that some lines have and others have not.
    """

    def __init__(
        self,
        split: Split,
        *,
        file: Path,
        size: tuple[Count, Count] | None = None,
        resize: Resize = "none",
        max_pairs: Count | None = None,
        input_channels: Count | None = None,
        target_channels: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        input_range: Range | None = None,
        target_range: Range | None = None,
        input_labels: Path | None = None,
        input_encoding: Encoding = "one-hot",
        target_labels: Path | None = None,
        target_encoding: Encoding = "one-hot",
        classes: Path | None = None,
    ) -> None:
        file = Path(file)
        lines = read_manifest(file, self._tell)
        have_labels = any(line.labels for line in lines)
        class_files = ClassFiles.read(
            input_labels, input_encoding, target_labels, target_encoding, classes, have_labels=have_labels
        )
        super().__init__(
            split, _dealt(lines, str(file), fractions, split_seed), str(file), size=size, resize=resize,
            max_pairs=max_pairs, channels=(input_channels, target_channels), ranges=(input_range, target_range),
            class_files=class_files, blocks={line.id: line.block for line in lines if line.block},
        )  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One pair. number: of its line in the file, from 1 on."""

    number: int
    x: Path
    y: Path
    id: str
    split: str | None
    labels: Path | None
    block: str | None

    @property
    def files(self) -> Files:
        return (self.x, self.y) if self.labels is None else (self.x, self.y, self.labels)


def read_manifest(file: Path, tell: Tell) -> list[Line]:
    """The lines that can be used. The faults of the others are told to `tell`, all at once.

    Raises UserError for a file that cannot be read, or has no lines.
    """
    if file.suffix.lower() not in (".jsonl", ".csv"):
        raise UserError(f"{file}: a manifest is a .jsonl or a .csv file")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{file}: {why}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not in UTF-8 (byte {error.start})") from None
    found: list[tuple[int, str]] = []
    lines: list[Line] = []
    rows = _rows_of_csv(text) if file.suffix.lower() == ".csv" else _rows_of_jsonl(text)
    for number, row in rows:
        told = [row] if isinstance(row, str) else _faults(row, file.parent)
        found += [(number, fault) for fault in told]
        if not told and isinstance(row, Mapping):
            lines.append(_line(number, row, file.parent))
    lines = _without_twins(lines, found)
    for what in ("split", "labels"):
        lacking = [line for line in lines if getattr(line, what) is None]
        if 0 < len(lacking) < len(lines):
            told_of = f"{len(lacking)} of {len(lines)} lines have no `{what}`: give it to all or to none"
            found.append((lacking[0].number, told_of))
            lines = [line for line in lines if getattr(line, what) is not None]
    faults = [f"{file}:{number}  {fault}" for number, fault in sorted(found, key=lambda each: each[0])]
    more = len(faults) - MOST_TOLD
    tell([*faults[:MOST_TOLD], *([f"{file}: ... and {more} more"] if more > 0 else [])])
    if not lines:
        raise UserError(*(faults[:MOST_TOLD] or [f"{file}: lists no pairs"]))
    return lines


def _rows_of_jsonl(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line, object, or what is wrong with it)."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except RecursionError:
            yield number, "is nested too deeply"
        except ValueError as error:
            yield number, f"cannot be read as JSON ({error})"
        else:
            yield number, row if isinstance(row, dict) else 'expected an object, as in {"x": "a.png", "y": "b.png"}'


def _rows_of_csv(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    heading: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if heading is None:
                heading = [cell.strip() for cell in cells]
                if wrong := _wrong_heading(heading):
                    yield reader.line_num, wrong
                    return
            elif len(cells) != len(heading):
                yield reader.line_num, f"has {len(cells)} cells, the heading has {len(heading)}"
            else:
                yield reader.line_num, {key: cell for key, cell in zip(heading, cells, strict=True) if cell.strip()}
    except csv.Error as error:
        yield reader.line_num, f"cannot be read as CSV ({error})"


def _wrong_heading(heading: list[str]) -> str | None:
    if lacking := [name for name in ("x", "y") if name not in heading]:
        unknown = next((name for name in heading if name not in KEYS), None)
        found = "" if unknown is None else f"; {_key(unknown)}"
        return f"the heading has no column {' and '.join(lacking)}{found}"
    if twice := [name for name in KEYS if heading.count(name) > 1]:
        return f"the heading has {twice[0]} twice"
    unknown = next((name for name in heading if name not in KEYS), None)
    return None if unknown is None else _key(unknown)


def _faults(row: Mapping[str, Any], folder: Path) -> list[str]:
    """All that is wrong with a line by itself."""
    faults = [_key(key) for key in row if key not in KEYS]
    for key in KEYS:
        value = row.get(key)
        if value is None:
            if key in ("x", "y"):
                faults.append(f"{key} is missing")
        elif not isinstance(value, str) or not value.strip() or not value.isprintable():
            faults.append(f"{key}: expected text, not {_short(value)}")
        elif key in PATHS and not _is_file(folder / value):
            faults.append(f"{key}: no such file {value}")
        elif key == "split" and value not in SPLITS:
            faults.append(f"split: {_short(value)} is none{nearest(value, SPLITS)}")
        elif key == "id" and ("/" in value or "\\" in value):
            faults.append(f"id: {_short(value)} has a slash, and names files")
    return faults


def _key(key: str) -> str:
    return f"{_short(key)}: no such key{nearest(key, KEYS)}"


def _line(number: int, row: Mapping[str, Any], folder: Path) -> Line:
    labels = row.get("labels")
    plain = Path(row["x"]).with_suffix("")
    own = "-".join(part.strip("/\\") for part in plain.parts if part.strip("/\\") not in ("", ".", ".."))
    return Line(
        number=number,
        x=folder / row["x"],
        y=folder / row["y"],
        id=unicodedata.normalize("NFC", row.get("id") or own.replace("\\", "-")),
        split=row.get("split"),
        labels=None if labels is None else folder / labels,
        block=row.get("block"),
    )


def _without_twins(lines: list[Line], found: list[tuple[int, str]]) -> list[Line]:
    """Lines whose ids are their own; those of others that came before are faults."""
    first: dict[str, Line] = {}
    for line in lines:
        if (twin := first.setdefault(line.id, line)) is not line:
            found.append((line.number, f"the id '{line.id}' is that of line {twin.number}, too: give it another `id`"))
    return list(first.values())


def _dealt(lines: list[Line], where: str, fractions: Fractions, seed: int) -> Splits:
    if lines[0].split is None:
        return assign_splits({"": {line.id: line.files for line in lines}}, where, fractions, seed)
    dealt: Splits = {split: {line.id: line.files for line in lines if line.split == split} for split in SPLITS}
    if not enough(dealt):
        found = " and ".join(split for split, pairs in dealt.items() if pairs)
        raise UserError(f"{where}: has pairs of {found} only; expected train, and val or test")
    return dealt


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _short(value: Any) -> str:
    """In characters that every terminal has, and not much of it."""
    try:
        text = value if isinstance(value, str) and value.isprintable() and value.strip() else ascii(value)
    except (RecursionError, ValueError):
        return "that"
    return text if len(text) <= 60 else f"{text[:57]}..."
