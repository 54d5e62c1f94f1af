"""Label maps: which value of a file is which class, and how classes are encoded for networks.

A class file (TOML, or JSON of the same form) defines the classes:

    ignore = [255]            # values without a class

    [[classes]]
    name = "sky"
    colour = [70, 130, 180]   # RGB, for pictures, and for the networks where the encoding is "palette"
    value = 23                # in the files; default: the position of the class in this list, from 0

A label map is an indexed PNG (its indices count, not its colours) or one channel of integers: PNG, TIFF, .npy or .npz.
Imports only NumPy and Pillow.
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from PIL import ImageOps

from p2pzoo.images.io import (
    ARRAY_SUFFIXES,
    PILLOW_ERRORS,
    ImageHeader,
    inspect_array,
    inspect_image,
    open_picture,
    read_array,
    read_image,
)
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import refuse_pipe
from p2pzoo.utils.suggest import did_you_mean

Encoding = Literal["one-hot", "palette"]
Colour = tuple[int, int, int]

NO_CLASS = 255  # marks ignored pixels in maps of class indices
_MAX_CLASSES, _MAX_VALUE = 255, 65535  # class indices are uint8 without NO_CLASS; values in files are uint16
_LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
_MAX_NAMED_VALUES = 5  # values without a class in a message, so that it stays short


@dataclass(frozen=True)
class Classes:
    """The classes of label maps: the name, colour and value in files of each.

    ignore  values without a class

    >>> classes = Classes(("sky", "sea"), ((70, 130, 180), (0, 0, 90)), values=(23, 7), ignore=(255,))
    >>> classes.from_values(np.array([[7, 23, 255]])).tolist()
    [[1, 0, 255]]
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    values: tuple[int, ...]
    ignore: tuple[int, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """The classes of a class file. Raises UserError with all its faults."""
        table = _parse_file(path)
        faults: list[str] = []
        classes = cls.from_dict(table, faults.append)
        if faults:
            raise UserError(*(f"{path}  {fault}" for fault in faults))
        return classes

    @classmethod
    def from_dict(cls, table: Any, report: Callable[[str], None]) -> Self:
        """From a parsed class file. Each fault is passed to `report`, and the faulty entry is left out."""
        if not isinstance(table, Mapping):
            report("is no table: expected `classes`, and `ignore` for values without a class")
            return cls((), (), ())
        _report_unknown(table, ("classes", "ignore"), "", report)
        entries = table.get("classes")
        if not isinstance(entries, list) or not entries:
            report("classes: expected a list of one or more, each with name and colour")
            entries = []
        if len(entries) > _MAX_CLASSES:
            report(f"classes: {len(entries)} of them; at most {_MAX_CLASSES} are supported")
            entries = []
        valid = [
            entry
            for number, raw in enumerate(entries)
            if (entry := _check_entry(raw, number, f"classes[{number}]", report)) is not None
        ]
        ignore = table.get("ignore", [])
        if not isinstance(ignore, list) or not all(_is_whole(value, _MAX_VALUE) for value in ignore):
            report(f"ignore: expected a list of whole numbers from 0 to {_MAX_VALUE}, not {_shorten(ignore)}")
            ignore = []
        for kind, values in (
            ("name", [name for name, _, _ in valid]),
            ("colour", [list(colour) for _, colour, _ in valid]),
            ("value", [*(value for _, _, value in valid), *dict.fromkeys(ignore)]),
        ):
            for value, count in Counter(map(json.dumps, values)).items():
                if count > 1:
                    counted = " (with ignore)" * (kind == "value")
                    report(f"classes: the {kind} {value} occurs {count} times{counted}: each must be unique")
        names, colours, file_values = zip(*valid, strict=True) if valid else ((), (), ())
        return cls(names, colours, file_values, tuple(dict.fromkeys(ignore)))

    def to_dict(self) -> dict[str, Any]:
        """The content of a class file, as `from_dict` takes it."""
        entries = zip(self.names, self.colours, self.values, strict=True)
        return {
            "classes": [{"name": n, "colour": list(c), "value": v} for n, c, v in entries],
            "ignore": list(self.ignore),
        }

    def read_map(self, path: Path) -> np.ndarray:
        """A label map's file -> (H, W) uint8 class indices: an index into `names`, or NO_CLASS.

        Raises UserError, naming the file, if it cannot be read, is no label map, or has a value without a class.
        """
        try:
            return self.from_values(read_map(path))
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None

    def from_values(self, values: np.ndarray) -> np.ndarray:
        """(H, W) integer values of a file -> (H, W) uint8 class indices. Raises ValueError for unknown values."""
        known, classes = self._by_value
        positions = np.searchsorted(known, values).clip(max=len(known) - 1)
        unknown = np.unique(values[known[positions] != values])
        if len(unknown):
            more = ", ..." * (len(unknown) > _MAX_NAMED_VALUES)
            listing = ", ".join(map(str, unknown[:_MAX_NAMED_VALUES].tolist())) + more
            noun = "value" if len(unknown) == 1 else "values"
            raise ValueError(
                f"it has the {noun} {listing} without a class: add a class to the class file, or list it under `ignore`"
            )
        return classes[positions]  # type: ignore[no-any-return]

    def to_values(self, classes: np.ndarray) -> np.ndarray:
        """(H, W) class indices -> (H, W, 1) values of a file: uint8, or uint16 where a class needs it."""
        values = np.array(self.values, self.dtype)
        return values[classes][..., None]  # type: ignore[no-any-return]

    @property
    def palette(self) -> bytes | None:
        """The palette of an indexed PNG: 256 RGB triples, by value. None where values need more than 8 bits."""
        if self.dtype != "uint8":
            return None
        table = np.zeros((256, 3), np.uint8)
        table[list(self.values)] = self.colours
        return table.tobytes()

    @property
    def dtype(self) -> str:
        """The dtype of values in files."""
        return "uint8" if max(self.values) <= 255 else "uint16"

    @cached_property
    def _by_value(self) -> tuple[np.ndarray, np.ndarray]:
        """The sorted known values, and the class index of each."""
        known = {value: index for index, value in enumerate(self.values)} | dict.fromkeys(self.ignore, NO_CLASS)
        ordered = sorted(known)
        return np.array(ordered, np.int64), np.array([known[value] for value in ordered], np.uint8)


@dataclass(frozen=True)
class Labels:
    """Label maps as x or y of pairs: their classes, and how they are encoded for the networks.

    encoding  "one-hot": a channel per class, 1 where the class is and 0 elsewhere. "palette": the class colours as RGB.
              Ignored pixels are 0 in all channels
    """

    classes: Classes
    encoding: Encoding

    @classmethod
    def from_header(cls, header: Mapping[str, Any] | None) -> Self | None:
        """From a model's header. Raises ValueError if that is damaged."""
        if header is None:
            return None
        faults: list[str] = []
        classes = Classes.from_dict({name: header.get(name) for name in ("classes", "ignore")}, faults.append)
        if faults or header.get("encoding") not in ("one-hot", "palette"):
            raise ValueError(f"its classes are damaged: {', '.join(faults) or 'no encoding'}")
        return cls(classes, header["encoding"])

    def header(self) -> dict[str, Any]:
        return {**self.classes.to_dict(), "encoding": self.encoding}

    @property
    def channels(self) -> int:
        return len(self.classes.names) if self.encoding == "one-hot" else 3

    @property
    def range(self) -> tuple[float, float]:
        """The encoded values that become -1 and 1."""
        return (0.0, 1.0) if self.encoding == "one-hot" else (0.0, 255.0)

    def encode(self, classes: np.ndarray) -> np.ndarray:
        """(H, W) class indices, or NO_CLASS -> (H, W, `channels`) uint8."""
        return self._codes[classes]  # type: ignore[no-any-return]

    @cached_property
    def _codes(self) -> np.ndarray:
        """(256, channels): the encoded pixel of each class index."""
        count = len(self.classes.names)
        codes = np.zeros((NO_CLASS + 1, self.channels), np.uint8)
        codes[:count] = np.eye(count) if self.encoding == "one-hot" else np.array(self.classes.colours)
        return codes


def read_map(path: Path) -> np.ndarray:
    """The (H, W) integer values of a label map's file. Raises UserError, naming the file."""
    if path.suffix.lower() in ARRAY_SUFFIXES:
        array = read_array(path)
        _map_header(path, array.shape, array.dtype)
        return array.reshape(array.shape[:2])
    _refuse_lossy(path)
    try:
        with open_picture(path) as image:
            if image.mode == "P":
                return np.asarray(ImageOps.exif_transpose(image))
            bits = _png_bits(path) if image.format == "PNG" else 8
    except PILLOW_ERRORS:
        pass  # read_image below raises the cause, or reads it by another library
    else:
        if bits < 8:  # Pillow scales values of 1, 2 and 4 bits to 0 to 255
            grey = read_image(path)
            _map_header(path, grey.shape, grey.dtype)
            return grey[..., 0] // (255 // (2**bits - 1))  # type: ignore[no-any-return]
    values = read_image(path)
    _map_header(path, values.shape, values.dtype)
    return values[..., 0]


def inspect_map(path: Path) -> ImageHeader:
    """The header of a label map, with one channel. Raises UserError as `read_map` does, but does not check values."""
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return _map_header(path, *inspect_array(path))
    _refuse_lossy(path)
    header = inspect_image(path)
    try:
        with open_picture(path) as image:
            if image.mode == "P":
                return ImageHeader((*header.shape[:2], 1), "uint8", False, header.orientation)
    except PILLOW_ERRORS:
        pass  # a TIFF that Pillow cannot read
    return _map_header(path, header.shape, np.dtype(header.dtype))._replace(orientation=header.orientation)


def _map_header(path: Path, shape: Iterable[int], dtype: np.dtype[Any]) -> ImageHeader:
    shape = tuple(shape)
    if len(shape) not in (2, 3) or shape[2:] not in ((), (1,)) or 0 in shape or dtype.kind not in "iu":
        actual = f"{'×'.join(map(str, shape))} of {dtype}"
        raise UserError(f"{path}: is {actual}; a label map is an indexed PNG, or has one channel of integers")
    return ImageHeader((shape[0], shape[1], 1), "uint8", False)


def _refuse_lossy(path: Path) -> None:
    if path.suffix.lower() in _LOSSY_SUFFIXES:
        raise UserError(
            f"{path}: {path.suffix.lower()[1:].upper()} is lossy and changes labels: "
            "save label maps as PNG, TIFF or .npy"
        )


def _png_bits(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(25)[24]


# --- class files -----------------------------------------------------------------------------------------------


def _parse_file(path: Path) -> Any:
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


def _check_entry(entry: Any, number: int, where: str, report: Callable[[str], None]) -> tuple[str, Colour, int] | None:
    """(name, colour, value) of one class; None if it has faults, which are reported."""
    if not isinstance(entry, Mapping):
        report(f"{where}: expected name, colour and value, not {_shorten(entry)}")
        return None
    _report_unknown(entry, ("name", "colour", "value"), f"{where}.", report)
    name, colour, value = entry.get("name"), entry.get("colour"), entry.get("value", number)
    is_valid = True
    if not (isinstance(name, str) and name.strip() and name.isprintable()):
        report(f"{where}.name: expected a word, not {_shorten(name)}")
        is_valid = False
    if not (isinstance(colour, list) and len(colour) == 3 and all(_is_whole(part, 255) for part in colour)):
        report(f"{where}.colour: expected three whole numbers from 0 to 255, not {_shorten(colour)}")
        is_valid = False
    if not _is_whole(value, _MAX_VALUE):
        report(f"{where}.value: expected a whole number from 0 to {_MAX_VALUE}, not {_shorten(value)}")
        is_valid = False
    return (name, (colour[0], colour[1], colour[2]), value) if is_valid else None  # type: ignore[return-value, index]


def _report_unknown(
    table: Mapping[str, Any], known: tuple[str, ...], where: str, report: Callable[[str], None]
) -> None:
    for key in table.keys() - set(known):
        report(f"{where}{_shorten(key)[1:-1]}: no such key{did_you_mean(key, known)}")


def _is_whole(value: Any, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest


def _shorten(value: Any) -> str:
    """The value as Python writes it, in ASCII and at most 60 characters."""
    if value is None:
        return "nothing"
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # deeply nested, or an integer with thousands of digits
        return "that"
    return text if len(text) <= 60 else f"{text[:57]}..."
