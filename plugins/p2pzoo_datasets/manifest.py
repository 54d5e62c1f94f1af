"""The dataset `manifest`: your own pairs in any folders, listed in a JSONL or CSV file."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from p2pzoo.data.pairing import SPLITS, FaultReporter, Files
from p2pzoo.data.splits import Fractions, Splits, assign_splits, has_enough_pairs
from p2pzoo.images.label_maps import Encoding
from p2pzoo.images.resize import ResizeMode
from p2pzoo.images.transparency import Background
from p2pzoo.plugin import AddedLater, Split
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import refuse_pipe
from p2pzoo.utils.plurals import format_count
from p2pzoo.utils.suggest import did_you_mean
from p2pzoo_datasets.class_files import ClassFiles
from p2pzoo_datasets.pairs import Count, FilePairs, Range

KEYS = ("x", "y", "id", "split", "labels", "block")
PATHS = ("x", "y", "labels")
MAX_FAULTS = 50  # of one manifest in a message: more do not fit on a screen


class Manifest(FilePairs):
    """Pairs from a list of files: {"x": "photos/1.jpg", "y": "drawings/1.png"} on each line.

    file     .jsonl with an object on each line, or .csv with a heading and a row for each pair
    classes  class file of `labels`; default: that of y, else of x

    Keys of a line; empty lines are ignored:

    - `x` and `y`: paths, relative to the folder of this file
    - `id`; default: the path of x without suffix, with "-" between folders
    - `split`: "train", "val" or "test"; if no line has one, pairs are assigned by `fractions`
    - `labels`: path of a label map that metrics compare ŷ with
    - `block`: name of a group of pairs that are alike, such as those of a patient. Without `split` they are in one
      split; confidence intervals resample them as one. A pair without a block is a block of its own

    All other parameters: see `FilePairs`; sizes, channels, ranges, label maps and their errors: see `Folders`.

    Raises UserError with all faults of the list, by line: lines that are no object or row, unknown keys, missing files,
    ids that occur twice, `split` or `labels` on some lines only; also for too few blocks. Warns where lines put one
    block into several splits.
    """

    def __init__(
        self,
        split: Split,
        *,
        file: Path,
        size: tuple[Count, Count] | None = None,
        resize: ResizeMode = "none",
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
        background: Annotated[Background | None, AddedLater] = None,
    ) -> None:
        file = Path(file)
        lines = read_manifest(file, self._report_faults)
        have_labels = any(line.labels for line in lines)
        class_files = ClassFiles.read(
            input_labels, input_encoding, target_labels, target_encoding, classes, have_labels=have_labels
        )
        super().__init__(
            split, _assign_splits(lines, str(file), fractions, split_seed), str(file), size=size, resize=resize,
            max_pairs=max_pairs, channels=(input_channels, target_channels), ranges=(input_range, target_range),
            class_files=class_files, background=background,
            blocks={line.id: line.block for line in lines if line.block},
        )  # fmt: skip


@dataclass(frozen=True)
class ManifestLine:
    """One pair. number: its line in the file, from 1."""

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


def read_manifest(file: Path, report: FaultReporter) -> list[ManifestLine]:
    """The lines without faults. The faults of the others go to `report`, all at once.

    Raises UserError if the file cannot be read, or has no lines.
    """
    if file.suffix.lower() not in (".jsonl", ".csv"):
        raise UserError(f"{file}: a manifest is a .jsonl or a .csv file")
    refuse_pipe(file)
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{file}: {reason}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    faults: list[tuple[int, str]] = []
    lines: list[ManifestLine] = []
    rows = _read_csv(text) if file.suffix.lower() == ".csv" else _read_jsonl(text)
    for number, row in rows:
        row_faults = [row] if isinstance(row, str) else _find_faults(row, file.parent)
        faults += [(number, fault) for fault in row_faults]
        if not row_faults and isinstance(row, Mapping):
            lines.append(_parse_line(number, row, file.parent))
    lines = _drop_duplicates(lines, faults)
    for key in ("split", "labels"):
        without = [line for line in lines if getattr(line, key) is None]
        if 0 < len(without) < len(lines):
            fault = f"{len(without)} of {len(lines)} lines have no `{key}`: set it on all lines or on none"
            faults.append((without[0].number, fault))
            lines = [line for line in lines if getattr(line, key) is not None]
    messages = [f"{file}:{number}  {fault}" for number, fault in sorted(faults, key=lambda fault: fault[0])]
    more = len(messages) - MAX_FAULTS
    report([*messages[:MAX_FAULTS], *([f"{file}: ... and {more} more"] if more > 0 else [])])
    if not lines:
        raise UserError(*(messages[:MAX_FAULTS] or [f"{file}: lists no pairs"]))
    return lines


def _read_jsonl(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, object or a fault)."""
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


def _read_csv(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, row or a fault)."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    heading: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if heading is None:
                heading = [cell.strip() for cell in cells]
                if fault := _find_heading_fault(heading):
                    yield reader.line_num, fault
                    return
            elif len(cells) != len(heading):
                yield reader.line_num, f"has {format_count(len(cells), 'cell')}, the heading has {len(heading)}"
            else:
                yield reader.line_num, {key: cell for key, cell in zip(heading, cells, strict=True) if cell.strip()}
    except csv.Error as error:
        yield reader.line_num, f"cannot be read as CSV ({error})"


def _find_heading_fault(heading: list[str]) -> str | None:
    unknown = next((name for name in heading if name not in KEYS), None)
    if missing := [name for name in ("x", "y") if name not in heading]:
        suffix = "" if unknown is None else f"; {_unknown_key(unknown)}"
        return f"the heading has no column {' and '.join(missing)}{suffix}"
    if twice := [name for name in KEYS if heading.count(name) > 1]:
        return f"the heading has {twice[0]} twice"
    return None if unknown is None else _unknown_key(unknown)


def _find_faults(row: Mapping[str, Any], folder: Path) -> list[str]:
    """The faults that a line has by itself."""
    faults = [_unknown_key(key) for key in row if key not in KEYS]
    for key in KEYS:
        value = row.get(key)
        if value is None:
            if key in ("x", "y"):
                faults.append(f"{key} is missing")
        elif not isinstance(value, str) or not value.strip() or not value.isprintable():
            faults.append(f"{key}: expected text, not {_shorten(value)}")
        elif key in PATHS and not _is_file(folder / value):
            faults.append(f"{key}: no such file {value}")
        elif key == "split" and value not in SPLITS:
            faults.append(f"split: {_shorten(value)} is no split{did_you_mean(value, SPLITS)}")
        elif key == "id" and ("/" in value or "\\" in value):
            faults.append(f"id: {_shorten(value)} has a slash, and ids become file names: remove it")
    if not faults and (folder / row["x"]).samefile(folder / row["y"]):
        faults.append(f"x and y are one file, {row['x']}: name the other image")
    return faults


def _unknown_key(key: str) -> str:
    return f"{_shorten(key)}: no such key{did_you_mean(key, KEYS)}"


def _parse_line(number: int, row: Mapping[str, Any], folder: Path) -> ManifestLine:
    labels = row.get("labels")
    stem = Path(row["x"]).with_suffix("")
    default_id = "-".join(part.strip("/\\") for part in stem.parts if part.strip("/\\") not in ("", ".", ".."))
    return ManifestLine(
        number=number,
        x=folder / row["x"],
        y=folder / row["y"],
        id=unicodedata.normalize("NFC", row.get("id") or default_id.replace("\\", "-")),
        split=row.get("split"),
        labels=None if labels is None else folder / labels,
        block=row.get("block"),
    )


def _drop_duplicates(lines: list[ManifestLine], faults: list[tuple[int, str]]) -> list[ManifestLine]:
    """The first line of each id; the others are added to `faults`."""
    first: dict[str, ManifestLine] = {}
    for line in lines:
        if (earlier := first.setdefault(line.id, line)) is not line:
            faults.append((line.number, f"line {earlier.number} has the id '{line.id}', too: set another `id`"))
    return list(first.values())


def _assign_splits(lines: list[ManifestLine], where: str, fractions: Fractions, seed: int) -> Splits:
    """The splits that lines name, else those of `_split_by_block`."""
    if lines[0].split is None:
        return _split_by_block(lines, where, fractions, seed)
    splits: Splits = {split: {line.id: line.files for line in lines if line.split == split} for split in SPLITS}
    if not has_enough_pairs(splits):
        names = " and ".join(split for split, pairs in splits.items() if pairs)
        raise UserError(f"{where}: has pairs of {names} only; expected train, and val or test")
    _warn_of_shared_blocks(lines, where)
    return splits


def _split_by_block(lines: list[ManifestLine], where: str, fractions: Fractions, seed: int) -> Splits:
    """All pairs of a block into one split; a pair without a block by its id. Raises UserError, ValueError."""
    blocks: dict[str, Files] = {line.block or line.id: line.files for line in lines}
    try:
        assigned = assign_splits({"": blocks}, where, fractions, seed)
    except UserError:
        if not any(line.block for line in lines):
            raise
        remedy = "add blocks, set `split` on all lines, or change `fractions`"
        assigned = assign_splits({"": blocks}, where, fractions, seed, unit="block", remedy=remedy)
    return {
        split: {line.id: line.files for line in lines if (line.block or line.id) in of_split}
        for split, of_split in assigned.items()
    }


def _warn_of_shared_blocks(lines: list[ManifestLine], where: str) -> None:
    splits_of: dict[str, set[str]] = {}
    for line in lines:
        if line.block and line.split:
            splits_of.setdefault(line.block, set()).add(line.split)
    shared = {block: splits for block, splits in splits_of.items() if len(splits) > 1}
    if not shared:
        return
    block, splits = next(iter(shared.items()))
    *first, last = (split for split in SPLITS if split in splits)
    more = f" ({len(shared) - 1} more are in several splits, too)" if len(shared) > 1 else ""
    warnings.warn(
        f"{where}: block '{block}' is in {', '.join(first)} and {last}{more}: pairs of one block are alike, so results "
        "look too good: give a block one `split`, leave out `split`, or set `folds`, which keep blocks together",
        stacklevel=4,
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no file can have this name
        return False


def _shorten(value: Any) -> str:
    """The value in at most 60 printable characters, for messages."""
    try:
        text = value if isinstance(value, str) and value.isprintable() and value.strip() else ascii(value)
    except (RecursionError, ValueError):
        return "this value"
    return text if len(text) <= 60 else f"{text[:57]}..."
