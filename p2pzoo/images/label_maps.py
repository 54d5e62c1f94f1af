"""Label maps: which value of a file is which class, and how classes are encoded for networks.

A class file (TOML, or JSON of the same form) defines the classes:

    ignore = [255]                # values without a class
    ignore_colours = [[0, 0, 0]]  # colours without a class

    [[classes]]
    name = "sky"
    colour = [70, 130, 180]       # RGB: in files of colours, in pictures, and for networks with the encoding "palette"
    value = 23                    # in files of values; default: the position of the class in this list, from 0

A label map has one channel of integers, the values; or it has the colours of the classes as 8-bit RGB, which are looked
up exactly. PNG, TIFF, BMP, .npy or .npz. In an indexed PNG the indices are the values; its colours count where they are
those of the classes, and the indices are not. Imports only NumPy and Pillow.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from PIL import Image, ImageOps

from p2pzoo.images.class_files import (
    MAX_VALUE,
    Colour,
    check_entry,
    is_colour,
    is_whole,
    parse_class_file,
    report_unknown,
    shorten,
)
from p2pzoo.images.class_lookup import (
    NO_CLASS,
    LookupTable,
    decode_colour,
    encode_colour,
    encode_colours,
    list_some,
)
from p2pzoo.images.io import (
    ARRAY_SUFFIXES,
    PILLOW_ERRORS,
    ImageHeader,
    decode_pixels,
    describe_size,
    has_transparent_color,
    inspect_array,
    inspect_image,
    open_picture,
    read_array,
    read_image,
)
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.memory import check_available

Encoding = Literal["one-hot", "palette"]

_MAX_CLASSES = 255  # class indices are uint8 without NO_CLASS
_LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Classes:
    """The classes of label maps: the name, colour and value in files of each.

    ignore          values without a class
    ignore_colours  colours without a class
    source          the class file, for messages; "" for the classes of a model

    >>> classes = Classes(("sky", "sea"), ((70, 130, 180), (0, 0, 90)), values=(23, 7), ignore=(255,))
    >>> classes.from_array(np.array([[7, 23, 255]])).tolist()
    [[1, 0, 255]]
    >>> classes.from_array(np.array([[[0, 0, 90], [70, 130, 180]]], np.uint8)).tolist()
    [[1, 0]]
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    values: tuple[int, ...]
    ignore: tuple[int, ...] = ()
    ignore_colours: tuple[Colour, ...] = ()
    source: str = field(default="", compare=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The classes of a class file. Raises UserError with all its faults."""
        table = parse_class_file(path)
        faults: list[str] = []
        classes = cls.from_dict(table, faults.append)
        if faults:
            raise UserError(*(f"{path}  {fault}" for fault in faults))
        return replace(classes, source=str(path))

    @classmethod
    def from_dict(cls, table: Any, report: Callable[[str], None]) -> Self:
        """From a parsed class file. Each fault is passed to `report`, and the faulty entry is left out."""
        if not isinstance(table, Mapping):
            report("is no table: expected `classes`, and `ignore` for values without a class")
            return cls((), (), ())
        report_unknown(table, ("classes", "ignore", "ignore_colours"), "", report)
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
            if (entry := check_entry(raw, number, f"classes[{number}]", report)) is not None
        ]
        ignore = table.get("ignore", [])
        if not isinstance(ignore, list) or not all(is_whole(value, MAX_VALUE) for value in ignore):
            report(f"ignore: expected a list of whole numbers from 0 to {MAX_VALUE}, not {shorten(ignore)}")
            ignore = []
        ignore_colours = table.get("ignore_colours", [])
        if not isinstance(ignore_colours, list) or not all(map(is_colour, ignore_colours)):
            report(f"ignore_colours: expected a list of colours, as [[0, 0, 0]], not {shorten(ignore_colours)}")
            ignore_colours = []
        ignored = tuple(dict.fromkeys((red, green, blue) for red, green, blue in ignore_colours))
        for kind, values, counted in (
            ("name", [name for name, _, _ in valid], ""),
            ("colour", [*(colour for _, colour, _ in valid), *ignored], " (with ignore_colours)" * bool(ignored)),
            ("value", [*(value for _, _, value in valid), *dict.fromkeys(ignore)], " (with ignore)"),
        ):
            for value, count in Counter(map(json.dumps, values)).items():
                if count > 1:
                    report(f"classes: the {kind} {value} occurs {count} times{counted}: each must be unique")
        names, colours, file_values = zip(*valid, strict=True) if valid else ((), (), ())
        return cls(names, colours, file_values, tuple(dict.fromkeys(ignore)), ignored)

    def to_dict(self) -> dict[str, Any]:
        """The content of a class file, as `from_dict` takes it."""
        entries = zip(self.names, self.colours, self.values, strict=True)
        colours = {"ignore_colours": [list(colour) for colour in self.ignore_colours]} if self.ignore_colours else {}
        return {
            "classes": [{"name": n, "colour": list(c), "value": v} for n, c, v in entries],
            "ignore": list(self.ignore),
            **colours,
        }

    def read_map(self, path: Path) -> np.ndarray:
        """A label map's file -> (H, W) uint8 class indices: an index into `names`, or NO_CLASS.

        Raises UserError, naming the file, if it cannot be read, is no label map, or has a value or colour without a
        class.
        """
        values = read_map(path, self)
        try:
            return self.from_array(values)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None

    def from_array(self, array: np.ndarray) -> np.ndarray:
        """(H, W) or (H, W, 1) integer values, or (H, W, 3) uint8 colours -> (H, W) uint8 class indices, or NO_CLASS.

        Raises ValueError for other arrays, and for values and colours without a class.
        """
        if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8 and array.size:
            codes = encode_colours(array)
            found = self._by_colour.find(codes)
            if (found < 0).any():
                raise ValueError(self._describe_unknown_colours(codes, found < 0))
            return found.astype(np.uint8)
        if array.dtype.kind not in "iu" or array.shape[2:] not in ((), (1,)) or array.size == 0 or array.ndim < 2:
            raise ValueError(
                "expected a label map, (H, W) or (H, W, 1) of integers, or (H, W, 3) of uint8 with the colours of "
                f"classes, not {array.shape} of {array.dtype}"
            )
        values = array.reshape(array.shape[:2])
        found = self._by_value.find(values)
        if (found < 0).any():
            raise ValueError(self._describe_unknown_values(values[found < 0]))
        return found.astype(np.uint8)

    def resolve_palette(self, indices: np.ndarray, palette: np.ndarray) -> np.ndarray:
        """What an indexed picture means: its (H, W) indices as values, or its (H, W, 3) colours.

        palette  (N, 3) uint8, the colour of each index

        The indices, unless more of its colours than of its indices have a class. Raises ValueError where all have one,
        but not the same, and where the values were saved as grey levels of the palette.
        """
        used = np.unique(indices)
        if not used.size or used[-1] >= len(palette):
            return indices
        colours = palette[used]
        of_indices, of_colours = self._by_value.find(used), self._by_colour.find(encode_colours(colours))
        num_indices, num_colours = int((of_indices >= 0).sum()), int((of_colours >= 0).sum())
        if num_colours > num_indices:
            return palette[indices]  # type: ignore[no-any-return]
        if num_colours == len(used) and (of_indices != of_colours).any():
            at = int(np.flatnonzero(of_indices != of_colours)[0])
            raise ValueError(
                f"its index {used[at]} is the value of one class, and the colour {colours[at].tolist()} of this index "
                f"is that of another: save it as greyscale or as RGB, or correct {self.source or 'the classes'}"
            )
        is_grey = (colours == colours[:, :1]).all()
        if num_indices < len(used) and is_grey and (self._by_value.find(colours[:, 0]) >= 0).all():
            raise ValueError(
                "it is an indexed picture, and the grey levels of its palette, not its indices, are the values of "
                "classes: save it as greyscale"
            )
        return indices

    def _describe_unknown_values(self, unknown: np.ndarray) -> str:
        names = [str(value) for value in np.unique(unknown).tolist()]
        advice = f"add a class to {self.source}, or list it under `ignore`"
        known = f"those of the model are {list_some(map(str, self._by_value.known.tolist()))}"
        noun = "value" if len(names) == 1 else "values"
        return f"it has the {noun} {list_some(names)} without a class: {advice if self.source else known}"

    def _describe_unknown_colours(self, codes: np.ndarray, is_unknown: np.ndarray) -> str:
        row, column = np.argwhere(is_unknown)[0].tolist()
        names = [str(decode_colour(code)) for code in dict.fromkeys(codes[is_unknown].tolist())]
        advice = f"add a class of this colour to {self.source}, or list it under `ignore_colours`"
        known = f"those of the model are {list_some(str(list(colour)) for colour in self.colours)}"
        noun = "colour" if len(names) == 1 else "colours"
        first = f"(first in row {row}, column {column}, from 0)"
        return f"it has the {noun} {list_some(names)} {first} without a class: {advice if self.source else known}"

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
    def _by_value(self) -> LookupTable:
        return LookupTable.of(self.values, self.ignore)

    @cached_property
    def _by_colour(self) -> LookupTable:
        """By the integers of `encode_colour`."""
        return LookupTable.of(map(encode_colour, self.colours), map(encode_colour, self.ignore_colours))


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
        table = {name: header[name] for name in ("classes", "ignore", "ignore_colours") if name in header}
        classes = Classes.from_dict(table, faults.append)
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


# --- files -------------------------------------------------------------------------------------------------------


def read_map(path: Path, classes: Classes | None = None) -> np.ndarray:
    """A label map's file -> (H, W) integer values, or (H, W, 3) uint8 colours: `Classes.from_array` takes both.

    classes  decide what an indexed picture means (`Classes.resolve_palette`); without them its indices are the values

    Raises UserError, naming the file.
    """
    if path.suffix.lower() in ARRAY_SUFFIXES:
        array = read_array(path)
        _map_header(path, array.shape, array.dtype)
        return array if array.shape[2:] == (3,) else array.reshape(array.shape[:2])
    _refuse_lossy(path)
    bits, has_color = 8, False  # a colour that is shown as transparent has its class all the same
    try:
        with open_picture(path) as image:
            if image.mode == "P":
                return _read_indexed(image, str(path), classes)
            bits = _png_bits(path) if image.format == "PNG" else 8
            has_color = has_transparent_color(image)
    except PILLOW_ERRORS:
        pass  # read_image below raises the cause, or reads it by another library
    array = read_image(path)
    _map_header(path, array.shape, array.dtype)
    values = _drop_opaque_alpha(array[..., :-1] if has_color else array, str(path))
    return values // (255 // (2**bits - 1)) if bits < 8 else values  # Pillow scales values of 1, 2 and 4 bits


def picture_map(image: Image.Image, classes: Classes) -> np.ndarray:
    """An open picture -> an array as `read_map` returns it. Raises UserError as it does."""
    if image.mode == "P":
        return _read_indexed(image, "the image", classes)
    array = decode_pixels(image, "the image")
    return _drop_opaque_alpha(array[..., :-1] if has_transparent_color(image) else array, "the image")


def _read_indexed(image: Image.Image, name: str, classes: Classes | None) -> np.ndarray:
    check_available(2 * image.height * image.width, describe_size(name, image.height, image.width))
    indices = np.asarray(ImageOps.exif_transpose(image))
    if classes is None:
        return indices
    palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    try:
        return classes.resolve_palette(indices, palette)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None


def _drop_opaque_alpha(array: np.ndarray, name: str) -> np.ndarray:
    """(H, W, 1 to 4) -> (H, W) values or (H, W, 3) colours."""
    if array.shape[2] in (2, 4):
        if (array[..., -1] != 255).any():
            raise UserError(f"{name}: has transparent pixels; a label map must be opaque: save it without transparency")
        array = array[..., :-1]
    return array if array.shape[2] == 3 else array[..., 0]


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
    channels = shape[2] if len(shape) == 3 else 1
    colour_channels = (3,) if path.suffix.lower() in ARRAY_SUFFIXES else (2, 3, 4)  # with or without alpha
    is_map = dtype.kind in "iu" if channels == 1 else channels in colour_channels and dtype == np.uint8
    if len(shape) not in (2, 3) or 0 in shape or not is_map:
        actual = f"{'×'.join(map(str, shape))} of {dtype}"
        raise UserError(f"{path}: is {actual}; a label map has one channel of integers, or 8-bit RGB of class colours")
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
