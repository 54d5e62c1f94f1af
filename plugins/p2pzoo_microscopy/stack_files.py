"""TIFF stacks of microscopes: their axes, channel names and pixel sizes, and windows of their planes. Imports no torch.

Formats: OME-TIFF, hyperstacks of ImageJ, and plain TIFFs of several pages. Of a pyramid the full resolution is read.
Memory holds a window and the tiles or strips that it touches.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from p2pzoo_geo.bands import RASTER_DTYPES
from p2pzoo_geo.rasters import Box

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count
from p2pzoo.utils.suggest import find_similar
from p2pzoo_microscopy.metadata import Metadata, first_line, read_metadata

AXES = "TZCYX"  # frames, planes, channels, rows, columns
MAX_OPEN_FILES = 32  # that stay open between two windows: parsing the metadata takes longer than reading a window
_PARSING = threading.Lock()
_SIGNS_OF_A_CUT = ("invalid value offset", "invalid page offset")  # in the log of tifffile
_NAMES = {"T": "frames", "Z": "planes", "C": "channels"}


class Stack:
    """One series of a TIFF file. `open_stack` makes it. Several threads may read at once.

    path      of the file
    sizes     {"T", "Z", "C", "Y" or "X": its length}; 1 for an axis that the file does not have
    dtype     of its values
    metadata  of this series
    """

    def __init__(self, path: Path, tiff: Any, series: Any, axes: str, metadata: Metadata) -> None:
        self.path, self.metadata = path, metadata
        self.sizes = dict.fromkeys(AXES, 1) | dict(zip(axes, map(int, series.shape), strict=True))
        self.dtype = np.dtype(series.dtype).name
        self._order = axes[:-2]
        self._tiff, self._pages = tiff, series.pages
        self._offset: int | None = series.dataoffset  # of uncompressed values that follow each other
        self._stored = np.dtype(series.dtype).newbyteorder(tiff.byteorder)
        planes = math.prod(self.sizes[axis] for axis in self._order)
        if self._offset is None and len(self._pages) != planes:
            raise UserError(
                f"{path}: has {format_count(planes, 'plane')} in {format_count(len(self._pages), 'page')}, so it "
                "cannot be read plane by plane: save it as OME-TIFF"
            )

    def __len__(self) -> int:
        return self.sizes["C"]

    def read(self, channel: int, t: int, z: int, box: Box) -> np.ndarray:
        """(h, w) of one plane. channel, t, z: from 0. Raises UserError for a damaged file."""
        number = 0
        for axis in self._order:
            number = number * self.sizes[axis] + {"T": t, "Z": z, "C": channel}[axis]
        try:
            return self._read_rows(number, box) if self._offset is not None else self._read_tiles(number, box)
        except Exception as error:  # damaged files raise errors of any type
            place = f"channel {channel + 1}, frame {t + 1}, plane {z + 1}"
            raise UserError(
                f"{self.path}: cannot be read at {place} ({first_line(error)}): the file is damaged"
            ) from None

    def _read_rows(self, number: int, box: Box) -> np.ndarray:
        assert self._offset is not None
        start = (number * self.sizes["Y"] + box.top) * self.sizes["X"] * self._stored.itemsize
        shape = (box.bottom - box.top, self.sizes["X"])
        rows = np.memmap(self.path, self._stored, "r", offset=self._offset + start, shape=shape)
        return np.array(rows[:, box.left : box.right], self.dtype)

    def _read_tiles(self, number: int, box: Box) -> np.ndarray:
        with quiet_tifffile():
            page = self._pages[number]
        if page is None:
            raise ValueError("this plane is missing")
        key, width = page.keyframe, self.sizes["X"]
        down, across = (key.tilelength, key.tilewidth) if key.is_tiled else (key.rowsperstrip, width)
        down, columns = min(down, self.sizes["Y"]) if not key.is_tiled else down, math.ceil(width / across)
        window = np.full((box.bottom - box.top, box.right - box.left), key.nodata, self.dtype)
        with Path(page.parent.filehandle.path).open("rb") as file:  # of its own: threads and processes seek apart
            for row in range(box.top // down, (box.bottom - 1) // down + 1):
                for column in range(box.left // across, (box.right - 1) // across + 1):
                    index = row * columns + column
                    offset, count = page.dataoffsets[index], page.databytecounts[index]
                    if not count:  # a tile that was never written
                        continue
                    file.seek(offset)
                    stored = file.read(count)
                    if len(stored) < count:
                        raise ValueError("the file ends before its values")
                    values, _, _ = key.decode(stored, index, jpegtables=key.jpegtables)
                    _paste(window, values[0, :, :, 0], row * down - box.top, column * across - box.left)
        return window


def _paste(window: np.ndarray, tile: np.ndarray, top: int, left: int) -> None:
    """Copy the part of a tile that lies inside of the window. top, left: the tile's corner in the window."""
    rows = slice(max(top, 0), min(top + tile.shape[0], window.shape[0]))
    columns = slice(max(left, 0), min(left + tile.shape[1], window.shape[1]))
    window[rows, columns] = tile[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def require_tifffile(what: str) -> Any:
    """The module tifffile. what: what needs it, for the message. Raises UserError without it, or without ome-types."""
    try:
        import ome_types  # noqa: F401
        import tifffile
    except ImportError:
        raise UserError(f"{what} needs tifffile and ome-types: pip install 'p2pzoo[microscopy]'") from None
    return tifffile


@contextlib.contextmanager
def quiet_tifffile() -> Iterator[list[str]]:
    """Collect what tifffile would log about damaged files: our messages say it. One thread at a time parses files."""
    logger, found = logging.getLogger("tifffile"), _Collector()
    with _PARSING:
        propagates = logger.propagate
        logger.addHandler(found)
        logger.propagate = False
        try:
            yield found.lines
        finally:
            logger.removeHandler(found)
            logger.propagate = propagates


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _refuse_cut(path: Path, logged: Sequence[str]) -> None:
    """Raises UserError for a file whose parts lie beyond its end. tifffile would read the rest, as another image."""
    if any(sign in line for line in logged for sign in _SIGNS_OF_A_CUT):
        raise UserError(f"{path}: cannot be read as a TIFF (it ends too early): the file is damaged; copy it again")


def open_stack(path: Path, series: int | None = None, axes: str | None = None) -> Stack:
    """A series of a TIFF file; it stays open for the next windows.

    series  its number from 1; None: the only one
    axes    such as "ZYX", for a file that does not name its axes

    Raises UserError for a file that is no TIFF, has several series or axes without a meaning, or is RGB.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    stat = path.stat()
    return _open(path.resolve(), path, series, axes, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=MAX_OPEN_FILES)
def _open(resolved: Path, path: Path, number: int | None, axes: str | None, size: int, changed: int) -> Stack:
    """size, changed: of the file, so that a file that was replaced is opened again."""
    tifffile = require_tifffile("reading stacks")
    with quiet_tifffile() as logged:
        try:
            tiff = tifffile.TiffFile(resolved)
            listed = [*tiff.series]
        except Exception as error:  # damaged files raise errors of any type
            raise UserError(f"{path}: cannot be read as a TIFF ({first_line(error)})") from None
        _refuse_cut(path, logged)
        index = _choose_series(path, listed, number)
        try:
            found = _find_axes(path, listed[index], axes)
            return Stack(path, tiff, listed[index], found, read_metadata(tiff, index))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{path}: cannot be read as a TIFF ({first_line(error)})") from None


def _choose_series(path: Path, listed: Sequence[Any], number: int | None) -> int:
    if not listed:
        raise UserError(f"{path}: holds no image")
    if len(listed) == 1:
        return 0
    if number is None:
        names = ", ".join(f"{i} ({_format_axes(s.axes, s.shape)})" for i, s in enumerate(listed[:6], 1))
        more = ", ..." * (len(listed) > 6)
        raise UserError(f"{path}: has {len(listed)} series, {names}{more}: choose one with `series`")
    if number > len(listed):
        raise UserError(f"{path}: series = {number}: it has series 1 to {len(listed)}")
    return number - 1


def _find_axes(path: Path, series: Any, wanted: str | None) -> str:
    """The letters of the axes. Raises UserError for others than those of AXES."""
    own, shape = str(series.axes), tuple(series.shape)
    if "S" in own:
        raise UserError(
            f"{path}: is a colour picture ({_format_axes(own, shape)}): save its channels apart, as a stack with an "
            "axis C, or use the dataset 'folders'"
        )
    if wanted is not None and wanted[-2:] != "YX":
        raise UserError(f'axes = "{wanted}": must end with YX, such as "ZYX"')
    if series.dtype is None or np.dtype(series.dtype).name not in RASTER_DTYPES:
        raise UserError(f"{path}: values of {series.dtype} cannot be used: convert it to uint16 or float32")
    if {*own} <= {*AXES} and own.endswith("YX"):
        return own
    advice = "set `axes`, such as " + '"' + {3: "ZYX", 4: "ZCYX"}.get(len(own), "TZCYX") + '"'
    if wanted is None:
        unknown = ", ".join(sorted({*own} - {*AXES})) or "the order"
        raise UserError(f"{path}: {_format_axes(own, shape)}: it does not say what {unknown} is: {advice}")
    if len(wanted) != len(own) or {*wanted} - {*AXES} or len({*wanted}) != len(wanted):
        letters = " ".join(AXES)
        raise UserError(
            f'{path}: {_format_axes(own, shape)}: axes = "{wanted}" does not fit: give {len(own)} of {letters}'
        )
    return wanted


def _format_axes(axes: str, shape: Sequence[int]) -> str:
    return f"{axes} {' × '.join(map(str, shape))}"


def select_channels(stack: Stack, wanted: Sequence[int | str] | None, name: str) -> tuple[int, ...]:
    """The numbers (from 1) of channels by numbers or names; None: all. name: of the parameter, for messages.

    Raises UserError for a channel that the file does not have.
    """
    numbers = range(1, len(stack) + 1) if wanted is None else [_find_channel(stack, each, name) for each in wanted]
    if not numbers:
        raise UserError(f"{name} names no channel: leave it out for all of them")
    if len({*numbers}) < len(numbers):
        raise UserError(f"{stack.path}: {name} names one channel twice")
    return tuple(numbers)


def _find_channel(stack: Stack, channel: int | str, name: str) -> int:
    names = channel_names(stack)
    if isinstance(channel, int):
        if not 1 <= channel <= len(stack):
            raise UserError(f"{stack.path}: {name}: there is no channel {channel}; it has {describe_channels(stack)}")
        return channel
    numbers = [number for number, each in enumerate(names, 1) if each == channel]
    if len(numbers) == 1:
        return numbers[0]
    if numbers:
        listing = " and ".join(map(str, numbers))
        raise UserError(f"{stack.path}: {name}: channels {listing} are named '{channel}': give a number")
    if not any(names):
        raise UserError(
            f"{stack.path}: {name}: no channel is named '{channel}', because {stack.metadata.unnamed}: give numbers, 1 "
            f"to {len(stack)}"
        )
    similar = find_similar(channel, [each for each in names if each])
    hint = f": did you mean '{similar}'?" if similar else ""
    raise UserError(f"{stack.path}: {name}: no channel is named '{channel}'; it has {describe_channels(stack)}{hint}")


def channel_names(stack: Stack) -> tuple[str | None, ...]:
    """The name of each channel; None for one without a name."""
    names = stack.metadata.names
    return names if len(names) == len(stack) else (None,) * len(stack)


def describe_channels(stack: Stack) -> str:
    """Such as "channels 1 to 3" or "the channels BF, DAPI", for messages."""
    names = channel_names(stack)
    if all(names):
        return f"the channel{'s' * (len(names) > 1)} {', '.join(map(str, names))}"
    return f"channels 1 to {len(stack)}" if len(stack) > 1 else "channel 1"


def count(stack: Stack, axis: str) -> str:
    """Such as "3 planes", for messages."""
    number = stack.sizes[axis]
    return f"{number} {_NAMES[axis][: None if number != 1 else -1]}"
