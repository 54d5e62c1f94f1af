"""Parse and check class files, entry by entry; `p2pzoo.images.label_maps` has the format."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import refuse_pipe
from p2pzoo.utils.suggest import did_you_mean

Colour = tuple[int, int, int]

MAX_VALUE = 65535  # values in files are uint16


def parse_class_file(path: Path) -> Any:
    """The table of a TOML or JSON file. Raises UserError, naming the file."""
    parse: Callable[[str], Any] = json.loads if path.suffix.lower() == ".json" else tomllib.loads
    refuse_pipe(path)
    try:
        return parse(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"{path}: {'no such file' if isinstance(error, FileNotFoundError) else error.strerror}"
        ) from None
    except RecursionError:
        raise UserError(f"{path}: is too deeply nested for a class file") from None
    except ValueError as error:  # invalid TOML or JSON, or not UTF-8
        kind = "JSON" if parse is json.loads else "TOML"
        raise UserError(f"{path}: cannot be read as {kind} ({error})") from None


def check_entry(entry: Any, number: int, where: str, report: Callable[[str], None]) -> tuple[str, Colour, int] | None:
    """(name, colour, value) of one class; None if it has faults, which are reported."""
    if not isinstance(entry, Mapping):
        report(f"{where}: expected name, colour and value, not {shorten(entry)}")
        return None
    report_unknown(entry, ("name", "colour", "value"), f"{where}.", report)
    name, colour, value = entry.get("name"), entry.get("colour"), entry.get("value", number)
    is_valid = True
    if not (isinstance(name, str) and name.strip() and name.isprintable()):
        report(f"{where}.name: expected a word, not {shorten(name)}")
        is_valid = False
    if not is_colour(colour):
        report(f"{where}.colour: expected three whole numbers from 0 to 255, not {shorten(colour)}")
        is_valid = False
    if not is_whole(value, MAX_VALUE):
        report(f"{where}.value: expected a whole number from 0 to {MAX_VALUE}, not {shorten(value)}")
        is_valid = False
    return (name, (colour[0], colour[1], colour[2]), value) if is_valid else None  # type: ignore[return-value, index]


def report_unknown(table: Mapping[str, Any], known: tuple[str, ...], where: str, report: Callable[[str], None]) -> None:
    for key in table.keys() - set(known):
        report(f"{where}{shorten(key)[1:-1]}: no such key{did_you_mean(key, known)}")


def is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(is_whole(part, 255) for part in value)


def is_whole(value: Any, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest


def shorten(value: Any) -> str:
    """The value as Python writes it, in ASCII and at most 60 characters."""
    if value is None:
        return "nothing"
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # deeply nested, or an integer with thousands of digits
        return "that"
    return text if len(text) <= 60 else f"{text[:57]}..."
