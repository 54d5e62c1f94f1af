"""Label maps: which value of a file is which class, and how networks see classes. Imports numpy and Pillow only.

A class file (TOML, or JSON of the same form) names them:

    ignore = [255]            # values that are no class

    [[classes]]
    name = "sky"
    colour = [70, 130, 180]   # RGB, as people see it, and as networks do where maps are palette input
    value = 23                # in the files; left out: the place of the class, from 0 on

A label map is an indexed PNG (of which the indices count, not the colours) or one channel of integers: PNG, TIFF, .npy
or .npz.
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
from PIL import Image, ImageOps

from p2pzoo.images.io import ARRAYS, UNREADABLE, Header, inspect, inspect_array, read_array, read_image
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.suggest import nearest

Encoding = Literal["one-hot", "palette"]
Colour = tuple[int, int, int]

NO_CLASS = 255  # in maps of classes: pixels that are to be ignored
MOST_CLASSES, MOST_VALUE = 255, 65535
LOSSY = (".jpg", ".jpeg", ".webp")
SHOWN = 5  # values without a class that a message names


@dataclass(frozen=True)
class Classes:
    """The classes of label maps: for each its name, its colour, and the value that it has in files.

    ignore  values that are no class
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    values: tuple[int, ...]
    ignore: tuple[int, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """What a class file says. Raises UserError with all that is wrong with it."""
        told = _parsed(path)
        faults: list[str] = []
        classes = cls.of_plain(told, faults.append)
        if faults:
            raise UserError(*(f"{path}  {fault}" for fault in faults))
        return classes

    @classmethod
    def of_plain(cls, told: Any, tell: Callable[[str], None]) -> Self:
        """From what JSON and TOML hold; what is wrong is told to `tell`, and left out."""
        if not isinstance(told, Mapping):
            tell("holds no table: expected `classes`, and `ignore` where values are no class")
            return cls((), (), ())
        _tell_unknown(told, ("classes", "ignore"), "", tell)
        entries = told.get("classes")
        if not isinstance(entries, list) or not entries:
            tell("classes: expected a list of one or more, each with name and colour")
            entries = []
        if len(entries) > MOST_CLASSES:
            tell(f"classes: {len(entries)} of them; at most {MOST_CLASSES} are taken")
            entries = []
        found = [
            entry
            for number, given in enumerate(entries)
            if (entry := _entry(given, number, f"classes[{number}]", tell)) is not None
        ]
        ignore = told.get("ignore", [])
        if not isinstance(ignore, list) or not all(_whole(value, MOST_VALUE) for value in ignore):
            tell(f"ignore: expected a list of whole numbers from 0 to {MOST_VALUE}, not {_short(ignore)}")
            ignore = []
        for what, things in (
            ("name", [name for name, _, _ in found]),
            ("colour", [list(colour) for _, colour, _ in found]),
            ("value", [*(value for _, _, value in found), *dict.fromkeys(ignore)]),
        ):
            for thing, times in Counter(map(json.dumps, things)).items():
                if times > 1:
                    tell(f"classes: the {what} {thing} is there {times} times" + ", with ignore" * (what == "value"))
        names, colours, values = zip(*found, strict=True) if found else ((), (), ())
        return cls(names, colours, values, tuple(dict.fromkeys(ignore)))

    def plain(self) -> dict[str, Any]:
        """As a class file has it."""
        entries = zip(self.names, self.colours, self.values, strict=True)
        return {
            "classes": [{"name": n, "colour": list(c), "value": v} for n, c, v in entries],
            "ignore": list(self.ignore),
        }

    def of_file(self, path: Path) -> np.ndarray:
        """(H, W) uint8, the class of each pixel of a label map: an index of `names`, or NO_CLASS.

        Raises UserError, naming the file, if it cannot be read, is no label map, or has a value without a class.
        """
        try:
            return self.of_values(read_map(path))
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None

    def of_values(self, values: np.ndarray) -> np.ndarray:
        """(H, W) integers as files have them -> (H, W) uint8 classes. Raises ValueError for one without a class."""
        known, classes = self._by_value
        place = np.searchsorted(known, values).clip(max=len(known) - 1)
        strange = np.unique(values[known[place] != values])
        if len(strange):
            shown = ", ".join(map(str, strange[:SHOWN].tolist())) + ", ..." * (len(strange) > SHOWN)
            several = "value" if len(strange) == 1 else "values"
            raise ValueError(
                f"it has the {several} {shown}, of which no class is: name it in the class file, or ignore it"
            )
        return classes[place]  # type: ignore[no-any-return]

    def as_values(self, classes: np.ndarray) -> np.ndarray:
        """(H, W) indices of `names` -> (H, W, 1) what files have; uint8, or uint16 where a class needs it."""
        values = np.array(self.values, self.dtype)
        return values[classes][..., None]  # type: ignore[no-any-return]

    @property
    def palette(self) -> bytes | None:
        """Of an indexed PNG: the colour of each value, 256 times RGB. None where values need more than 8 bits."""
        if self.dtype != "uint8":
            return None
        table = np.zeros((256, 3), np.uint8)
        table[list(self.values)] = self.colours
        return table.tobytes()

    @property
    def dtype(self) -> str:
        """Of values in files."""
        return "uint8" if max(self.values) <= 255 else "uint16"

    @cached_property
    def _by_value(self) -> tuple[np.ndarray, np.ndarray]:
        """The values that are known, in order, and the class of each."""
        known = {value: index for index, value in enumerate(self.values)} | dict.fromkeys(self.ignore, NO_CLASS)
        ordered = sorted(known)
        return np.array(ordered, np.int64), np.array([known[value] for value in ordered], np.uint8)


@dataclass(frozen=True)
class Labels:
    """Label maps as one side of pairs: classes, and how networks see them.

    encoding  "one-hot": a channel for each class, 1 where it is and 0 elsewhere. "palette": the colours. What is
              ignored is 0 in all channels
    """

    classes: Classes
    encoding: Encoding

    @classmethod
    def of_header(cls, told: Mapping[str, Any] | None) -> Self | None:
        """From a model's header. Raises ValueError if that is damaged."""
        if told is None:
            return None
        faults: list[str] = []
        classes = Classes.of_plain({name: told.get(name) for name in ("classes", "ignore")}, faults.append)
        if faults or told.get("encoding") not in ("one-hot", "palette"):
            raise ValueError(f"its classes are damaged: {', '.join(faults) or 'no encoding'}")
        return cls(classes, told["encoding"])

    def header(self) -> dict[str, Any]:
        return {**self.classes.plain(), "encoding": self.encoding}

    @property
    def channels(self) -> int:
        return len(self.classes.names) if self.encoding == "one-hot" else 3

    @property
    def range(self) -> tuple[float, float]:
        """The stored values that become -1 and 1."""
        return (0.0, 1.0) if self.encoding == "one-hot" else (0.0, 255.0)

    def encoded(self, classes: np.ndarray) -> np.ndarray:
        """(H, W) classes, or NO_CLASS -> (H, W, `channels`) uint8."""
        return self._codes[classes]  # type: ignore[no-any-return]

    @cached_property
    def _codes(self) -> np.ndarray:
        """(256, channels): what a pixel of each class is."""
        count = len(self.classes.names)
        codes = np.zeros((NO_CLASS + 1, self.channels), np.uint8)
        codes[:count] = np.eye(count) if self.encoding == "one-hot" else np.array(self.classes.colours)
        return codes


def read_map(path: Path) -> np.ndarray:
    """(H, W) integers as a label map's file has them. Raises UserError, naming the file."""
    if path.suffix.lower() in ARRAYS:
        array = read_array(path)
        _map_header(path, array.shape, array.dtype)
        return array.reshape(array.shape[:2])
    _refuse_lossy(path)
    try:
        with Image.open(path) as image:
            if image.mode == "P":
                return np.asarray(ImageOps.exif_transpose(image))
            short = _bits(path) if image.format == "PNG" else 8
    except UNREADABLE:
        pass  # `read_image` says why, or has another way
    else:
        if short < 8:  # Pillow spreads the values of 1, 2 and 4 bits over 0 to 255
            grey = read_image(path)
            _map_header(path, grey.shape, grey.dtype)
            return grey[..., 0] // (255 // (2**short - 1))  # type: ignore[no-any-return]
    values = read_image(path)
    _map_header(path, values.shape, values.dtype)
    return values[..., 0]


def inspect_map(path: Path) -> Header:
    """The header of a label map, of one channel. Raises UserError as `read_map` does; of values it knows nothing."""
    if path.suffix.lower() in ARRAYS:
        return _map_header(path, *inspect_array(path))
    _refuse_lossy(path)
    header = inspect(path)
    try:
        with Image.open(path) as image:
            if image.mode == "P":
                return Header((*header.shape[:2], 1), "uint8", False)
    except UNREADABLE:
        pass  # a TIFF that Pillow does not know
    return _map_header(path, header.shape, np.dtype(header.dtype))


def _map_header(path: Path, shape: Iterable[int], dtype: np.dtype[Any]) -> Header:
    shape = tuple(shape)
    if len(shape) not in (2, 3) or shape[2:] not in ((), (1,)) or 0 in shape or dtype.kind not in "iu":
        told = f"{'×'.join(map(str, shape))} of {dtype}"
        raise UserError(f"{path}: is {told}; a label map is an indexed PNG, or has one channel of integers")
    return Header((shape[0], shape[1], 1), "uint8", False)


def _refuse_lossy(path: Path) -> None:
    if path.suffix.lower() in LOSSY:
        raise UserError(
            f"{path}: {path.suffix.lower()[1:].upper()} changes values: save label maps as PNG, TIFF or .npy"
        )


def _bits(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(25)[24]


# --- class files -----------------------------------------------------------------------------------------------


def _parsed(path: Path) -> Any:
    parse: Callable[[str], Any] = json.loads if path.suffix.lower() == ".json" else tomllib.loads
    try:
        return parse(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"{path}: {'no such file' if isinstance(error, FileNotFoundError) else error.strerror}"
        ) from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply for a class file") from None
    except ValueError as error:  # of TOML, of JSON, or no UTF-8
        kind = "JSON" if parse is json.loads else "TOML"
        raise UserError(f"{path}: cannot be read as {kind} ({error})") from None


def _entry(given: Any, number: int, where: str, tell: Callable[[str], None]) -> tuple[str, Colour, int] | None:
    """(name, colour, value) of one class; None where something is wrong with it, which is told."""
    if not isinstance(given, Mapping):
        tell(f"{where}: expected name, colour and value, not {_short(given)}")
        return None
    _tell_unknown(given, ("name", "colour", "value"), f"{where}.", tell)
    name, colour, value = given.get("name"), given.get("colour"), given.get("value", number)
    right = True
    if not (isinstance(name, str) and name.strip() and name.isprintable()):
        tell(f"{where}.name: expected a word, not {_short(name)}")
        right = False
    if not (isinstance(colour, list) and len(colour) == 3 and all(_whole(part, 255) for part in colour)):
        tell(f"{where}.colour: expected three whole numbers from 0 to 255, not {_short(colour)}")
        right = False
    if not _whole(value, MOST_VALUE):
        tell(f"{where}.value: expected a whole number from 0 to {MOST_VALUE}, not {_short(value)}")
        right = False
    return (name, (colour[0], colour[1], colour[2]), value) if right else None  # type: ignore[return-value, index]


def _tell_unknown(given: Mapping[str, Any], known: tuple[str, ...], where: str, tell: Callable[[str], None]) -> None:
    for key in given.keys() - set(known):
        tell(f"{where}{_short(key)[1:-1]}: no such key{nearest(key, known)}")


def _whole(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _short(value: Any) -> str:
    """As Python writes it, in characters that every terminal has, and not much of it."""
    if value is None:
        return "nothing"
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # deeply nested; a whole number of thousands of digits
        return "that"
    return text if len(text) <= 60 else f"{text[:57]}..."
