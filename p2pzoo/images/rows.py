"""Images that are read a band of rows at a time, and written so: memory holds bands, not images.

A TIFF is read tile by tile or strip by strip (tifffile, the extra `p2pzoo[tiff]`). Other pictures are decoded as a
whole by Pillow, and only the bands become arrays. Imports only NumPy and Pillow.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from p2pzoo.images.io import (
    ARRAY_SUFFIXES,
    PILLOW_ERRORS,
    TiffTag,
    choose_library,
    describe_read_error,
    describe_size,
    inspect_image,
    open_picture,
    open_tiff,
    picture_bands,
    read_image,
    tiff_writer,
    write_image,
)
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write
from p2pzoo.utils.memory import check_available

TILE_SIDE = 256  # of TIFFs that are written by tiles, as GDAL's
BIG_TIFF = 2**30  # bytes of an image from which on its TIFF is a BigTIFF: others end at 4 GiB, for some readers at 2
_MIN_IS_BLACK, _RGB, _YCBCR = 1, 2, 6  # photometric interpretations that Pillow and tifffile decode to equal values


@dataclass(frozen=True)
class Rows:
    """An image as `read_image` returns it, but a band at a time.

    shape      (H, W, C)
    read       read(top, bottom) -> (bottom - top, W, C). Cheapest from top to bottom; bands may overlap
    has_alpha  whether the last of 2 or 4 channels is opacity, not a band
    """

    shape: tuple[int, int, int]
    read: Callable[[int, int], np.ndarray]
    has_alpha: bool = True

    @classmethod
    def of(cls, image: np.ndarray) -> Rows:
        """The rows of an array (H, W, C).

        >>> Rows.of(np.zeros((9, 4, 3), np.uint8)).read(2, 5).shape
        (3, 4, 3)
        """
        return cls((image.shape[0], image.shape[1], image.shape[2]), lambda top, bottom: image[top:bottom])

    def columns(self, left: int, right: int) -> Rows:
        """The columns from `left` to `right` of this image."""
        shape = (self.shape[0], right - left, self.shape[2])
        return Rows(shape, lambda top, bottom: self.read(top, bottom)[:, left:right], self.has_alpha)


@contextlib.contextmanager
def open_rows(path: Path) -> Iterator[Rows]:
    """The rows of an image file, open until the block ends. Raises UserError as `read_image` does.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "grey.npy"
    >>> np.save(file, np.zeros((20, 30), np.uint8))
    >>> with open_rows(file) as rows:
    ...     rows.shape, rows.read(0, 8).shape
    ((20, 30, 1), (8, 30, 1))
    """
    with contextlib.ExitStack() as stack:
        yield replace(_open_rows(path, stack), has_alpha=inspect_image(path).has_alpha)


def _open_rows(path: Path, stack: contextlib.ExitStack) -> Rows:
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return Rows.of(read_image(path))
    try:
        picture = stack.enter_context(open_picture(path))
        library = choose_library(picture, path)
        is_tiff = picture.format == "TIFF"
    except UnidentifiedImageError:  # a TIFF that Pillow does not know, or no image: `_tiff_rows` says what
        library, is_tiff = "tifffile", True
    except PILLOW_ERRORS as error:
        raise UserError(f"{path}: {describe_read_error(error)}") from None
    if is_tiff and (rows := _tiff_rows(path, stack, needs_equal_values=library == "pillow")):
        return rows
    return _picture_rows(path, picture) if library == "pillow" else Rows.of(read_image(path))


def _picture_rows(path: Path, picture: Image.Image) -> Rows:
    try:
        return Rows(*picture_bands(picture, str(path)))
    except PILLOW_ERRORS as error:
        raise UserError(f"{path}: {describe_read_error(error)}") from None


def _tiff_rows(path: Path, stack: contextlib.ExitStack, *, needs_equal_values: bool) -> Rows | None:
    """The rows of a TIFF; None if it is to be read as a whole.

    needs_equal_values: whether `read_image` reads it by Pillow, which converts more colour spaces than tifffile.
    """
    try:
        tiff, header = stack.enter_context(open_tiff(path))
    except UserError:
        if needs_equal_values:
            return None  # without tifffile, or with an orientation that Pillow applies
        raise
    page = tiff.pages[0]
    jpeg = page.photometric == _YCBCR and page.compression == 7
    if needs_equal_values and page.photometric not in (_MIN_IS_BLACK, _RGB) and not jpeg:
        return None
    height, width, channels = header.shape
    if page.is_contiguous and page.is_final:
        return Rows(header.shape, _contiguous_reader(path, page, header.shape))
    segments = _Segments(path, tiff, page, header.shape)
    decoded = segments.height * width * channels * np.dtype(header.dtype).itemsize
    check_available(2 * decoded, describe_size(path, height, width), "save it in tiles")
    return Rows(header.shape, segments.read)


def _contiguous_reader(path: Path, page: Any, shape: tuple[int, int, int]) -> Callable[[int, int], np.ndarray]:
    """Reads bands of an uncompressed image."""
    height, width, channels = shape
    stored = np.dtype(page.parent.byteorder + page.dtype.char)
    planes, samples = (channels, 1) if page.planarconfig == 2 and channels > 1 else (1, channels)
    start, row = page.dataoffsets[0], width * samples

    def read(top: int, bottom: int) -> np.ndarray:
        count = (bottom - top) * row
        bands = []
        for plane in range(planes):
            band = np.fromfile(path, stored, count, offset=start + (plane * height + top) * row * stored.itemsize)
            if band.size < count:
                raise UserError(f"{path}: cannot be read as a TIFF (the file ends before its image)")
            bands.append(band.reshape(bottom - top, width, samples))
        return np.concatenate(bands, axis=2).astype(stored.newbyteorder("="), copy=False)

    return read


class _Segments:
    """Reads the bands of a TIFF from its tiles or strips. Keeps the decoded rows of tiles that the last band needed."""

    def __init__(self, path: Path, tiff: Any, page: Any, shape: tuple[int, int, int]) -> None:
        self.path, self.file, self.page, self.shape = path, tiff.filehandle, page, shape
        total, width, channels = shape
        self.height = min(page.tilelength if page.is_tiled else page.rowsperstrip, total)
        self.across = math.ceil(width / page.tilewidth) if page.is_tiled else 1
        self.down = math.ceil(total / self.height)
        self.planes = channels if page.planarconfig == 2 else 1
        self.decoded: dict[int, np.ndarray] = {}

    def read(self, top: int, bottom: int) -> np.ndarray:
        first, last = top // self.height, (bottom - 1) // self.height
        self.decoded = {number: rows for number, rows in self.decoded.items() if first <= number <= last}
        bands = []
        for number in range(first, last + 1):
            if number not in self.decoded:
                try:
                    self.decoded[number] = self.decode(number)
                except Exception as error:  # damaged files raise errors of any type
                    raise UserError(f"{self.path}: cannot be read as a TIFF ({error})") from None
            start = number * self.height
            bands.append(self.decoded[number][max(top - start, 0) : bottom - start])
        return np.concatenate(bands)

    def decode(self, number: int) -> np.ndarray:
        """One row of tiles, or one strip."""
        page, (total, width, channels) = self.page, self.shape
        rows = np.full((min(self.height, total - number * self.height), width, channels), page.nodata, page.dtype)
        for plane in range(self.planes):
            for column in range(self.across):
                index = (plane * self.down + number) * self.across + column
                offset, count = page.dataoffsets[index], page.databytecounts[index]
                if not count:  # a tile that was never written
                    continue
                self.file.seek(offset)
                stored = self.file.read(count)
                data, place, _ = page.decode(stored, index, jpegtables=page.jpegtables)
                part = rows[:, place[3] :, plane : plane + data.shape[3]]
                part[:, : data.shape[2]] = data[0, : part.shape[0], : part.shape[1]]
        return rows


# --- write ---


def write_rows(
    path: Path,
    bands: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    dtype: str,
    text: Mapping[str, str] | None = None,
    palette: bytes | None = None,
    tags: Sequence[TiffTag] = (),
) -> None:
    """Write an image of `shape` (H, W, C) from its bands, top to bottom, as `write_image` does.

    A .tif is written in tiles, from 1 GiB on as a BigTIFF, and a .npy row by row. Other formats need the whole image in
    memory. Raises UserError where the format cannot hold the image, or memory is too small.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for band in bands:
                np.ascontiguousarray(band).tofile(file)
    elif suffix in (".tif", ".tiff"):
        _write_tiled(path, bands, shape, dtype, text, tags)
    else:
        needed = math.prod(shape) * np.dtype(dtype).itemsize + 4 * shape[0] * shape[1]  # Pillow has 4 bytes per pixel
        check_available(needed, describe_size(path, *shape[:2]), "a .tif is written by tiles")
        write_image(path, gather_rows(bands, shape, dtype), text, palette)


def gather_rows(bands: Iterable[np.ndarray], shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    """The image of these bands, as one array."""
    image, top = np.empty(shape, dtype), 0
    for band in bands:
        image[top : top + len(band)] = band
        top += len(band)
    return image


def _write_tiled(
    path: Path,
    bands: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    dtype: str,
    text: Mapping[str, str] | None,
    tags: Sequence[TiffTag],
) -> None:
    write = tiff_writer(path, shape, dtype, text, tags)
    flat = shape[:2] if shape[2] == 1 else shape
    is_big = math.prod(shape) * np.dtype(dtype).itemsize >= BIG_TIFF
    with atomic_write(path) as temporary:
        tiles = _tiles(bands, shape, dtype)
        write(temporary, tiles, shape=flat, dtype=dtype, tile=(TILE_SIDE, TILE_SIDE), bigtiff=is_big)


def _tiles(bands: Iterable[np.ndarray], shape: tuple[int, int, int], dtype: str) -> Iterator[np.ndarray]:
    """The tiles of a TIFF in their order, padded with zeros."""
    height, width, channels = shape
    padded = np.zeros((TILE_SIDE, -(-width // TILE_SIDE) * TILE_SIDE, channels), dtype)
    filled = top = 0
    # a band may end inside a tile; the last row of tiles is shorter than the others
    for band in bands:
        taken = 0
        while taken < len(band):
            rows = band[taken : taken + min(TILE_SIDE, height - top) - filled]
            padded[filled : filled + len(rows), :width] = rows
            taken, filled = taken + len(rows), filled + len(rows)
            if filled == min(TILE_SIDE, height - top):
                padded[filled:] = 0
                for left in range(0, padded.shape[1], TILE_SIDE):
                    tile = padded[:, left : left + TILE_SIDE].copy()
                    yield tile[..., 0] if channels == 1 else tile
                filled, top = 0, top + filled
