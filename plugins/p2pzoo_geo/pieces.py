"""The finished rows of a translation, each block of rows in a file of its own, until all are one GeoTIFF.

A piece is renamed to its name when it is whole, so whatever stops the process, the pieces that are there are right, and
the same command goes on after them. The target appears at the end, as a whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import read_object, write_json
from p2pzoo_geo.bands import UNSCALED
from p2pzoo_geo.rasters import bounded_cache, first_line

SIDECARS = (".ovr", ".msk", ".aux.xml")
BLOCK = 512  # px: side of a TIFF's tiles, and rows of a piece


@dataclass(frozen=True)
class Format:
    """What the written file is besides its pixels.

    profile      keywords of rasterio.open for writing: dtype, count, height, width, crs, transform, nodata
    names        descriptions of the bands
    units        of the bands; (): none
    scaling      tags (scale, offset) of the bands; (): none
    tags         metadata
    gcps         (ground control points, their CRS) in place of a transform; None without
    rpcs         rational polynomial coefficients, the georeference of raw scenes; None without
    """

    profile: Mapping[str, Any]
    names: tuple[str | None, ...]
    units: tuple[str | None, ...]
    scaling: tuple[tuple[float, float], ...]
    tags: Mapping[str, str]
    gcps: tuple[Any, Any] | None = None
    rpcs: Any = None

    @property
    def height(self) -> int:
        return int(self.profile["height"])

    def options(self) -> dict[str, Any]:
        """Creation options of a tiled, compressed GeoTIFF, a BigTIFF if it may exceed 4 GB."""
        predictor = 3 if np.dtype(self.profile["dtype"]).kind == "f" else 2
        # GDAL would take the last of four bands of 8 bits for opacity
        is_rgb = (self.profile["dtype"], self.profile["count"]) == ("uint8", 3)
        return {
            "driver": "GTiff", "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate",
            "predictor": predictor, "bigtiff": "IF_SAFER", "interleave": "band",
            "photometric": "RGB" if is_rgb else "MINISBLACK",
        }  # fmt: skip


class Pieces:
    """The folder of an unfinished translation: TARGET.parts, next to the target. `open_pieces` makes one.

    rows         how many rows of the translation are finished
    is_complete  whether the target was written
    """

    def __init__(self, folder: Path, form: Format) -> None:
        self.folder, self.form = folder, form
        self.is_complete = False
        self._buffer: np.ndarray | None = None  # rows that do not fill a piece yet
        self._number = next(number for number in range(form.height + 1) if not self._file(number).exists())
        self.rows = min(self._number * BLOCK, form.height)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.tif"

    def append(self, rows: np.ndarray) -> None:
        """Add the next (C, rows, W). Whole pieces are written."""
        self._buffer = rows if self._buffer is None else np.concatenate([self._buffer, rows], axis=1)
        while self._buffer.shape[1] >= BLOCK or self._is_last():
            if self._buffer.shape[1] == 0:
                break
            self._write(self._buffer[:, :BLOCK])
            self._buffer = self._buffer[:, BLOCK:].copy()

    def _is_last(self) -> bool:
        assert self._buffer is not None
        return self.rows + self._buffer.shape[1] >= self.form.height

    def _write(self, rows: np.ndarray) -> None:
        import rasterio

        temporary = self.folder / "next.tif"
        profile = {**self.form.profile, "height": rows.shape[1], **self.form.options()}
        for key in ("crs", "transform"):
            profile.pop(key, None)
        with _naming(temporary), _without_warnings(), rasterio.open(temporary, "w", **profile) as piece:
            piece.write(rows)
        with _naming(temporary), _without_warnings(), rasterio.open(temporary) as written:
            written.read(masked=False, window=((rows.shape[1] - 1, rows.shape[1]), (0, rows.shape[2])))
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, self._file(self._number))
        self._number += 1
        self.rows = min(self._number * BLOCK, self.form.height)

    def finish(self, target: Path, *, cog: bool, progress: Callable[[int], None]) -> None:
        """Join the pieces to the target, and remove them. progress: is called with the rows that were joined."""
        whole = self.folder / "whole.tif"
        with _naming(whole):
            self._join(whole, progress)
            if cog:
                whole = _convert_to_cog(whole)
        with whole.open("rb+") as file:
            os.fsync(file.fileno())
        for ending in SIDECARS:  # of an earlier file of this name: GDAL would apply them to the new pixels
            target.with_name(target.name + ending).unlink(missing_ok=True)
        os.replace(whole, target)
        self.is_complete = True

    def _join(self, whole: Path, progress: Callable[[int], None]) -> None:
        import rasterio

        form = self.form
        with _without_warnings(), rasterio.open(whole, "w", **form.profile, **form.options()) as joined:
            for number, name in enumerate(form.names, 1):
                if name:
                    joined.set_band_description(number, name)
            if any(form.units):
                joined.units = [unit or "" for unit in form.units]
            if {*form.scaling} - {UNSCALED}:
                joined.scales, joined.offsets = zip(*form.scaling, strict=True)
            if form.gcps:
                joined.gcps = form.gcps
            if form.rpcs:
                joined.rpcs = form.rpcs
            joined.update_tags(**form.tags)
            for number in range(self._number):
                top = number * BLOCK
                with _reading(self._file(number)), rasterio.open(self._file(number)) as piece:
                    window = ((top, top + piece.height), (0, piece.width))
                    for band in range(1, piece.count + 1):
                        joined.write(piece.read(band), band, window=window)
                    progress(piece.height)


@contextmanager
def open_pieces(target: Path, form: Format, settings: Mapping[str, Any], *, fresh: bool) -> Iterator[Pieces]:
    """The pieces of this target, locked. They are removed afterwards if the target was finished.

    settings  what the pixels depend on, as JSON: pieces that were made with others are refused
    fresh     begin from the start

    Raises UserError where another process writes the target, and where the settings differ.
    """
    folder = target.with_name(f"{target.name}.parts")
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / "lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.acquire(timeout=0))
        except Timeout:
            raise UserError(f"{target}: another process is writing it: wait for it, or give another name") from None
        if fresh:
            _clear(folder)
        known = read_object(folder / "settings.json")
        if known is not None and known != settings:
            raise UserError(_describe_change(folder, known, settings))
        if known is None:
            _clear(folder)
            write_json(folder / "settings.json", settings)
        with bounded_cache():
            pieces = Pieces(folder, form)
            yield pieces
        if pieces.is_complete:
            _clear(folder)
    if pieces.is_complete:
        shutil.rmtree(folder, ignore_errors=True)


def _convert_to_cog(whole: Path) -> Path:
    from rasterio.shutil import copy

    cog = whole.with_name("cog.tif")
    copy(
        whole, cog, driver="COG", compress="deflate", predictor="YES", blocksize=BLOCK, bigtiff="IF_SAFER",
        overview_resampling="average",
    )  # fmt: skip
    return cog


def _clear(folder: Path) -> None:
    for file in folder.iterdir():
        if file.name != "lock":
            file.unlink()


def _describe_change(folder: Path, known: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    key = next(key for key in {**known, **settings} if known.get(key) != settings.get(key))
    if key in ("scene", "files"):
        what = "of another scene, or the scene has changed since"
    elif key == "model":
        what = "by another model"
    else:
        what = f"with another {key} ({known.get(key)}, now {settings.get(key)})"
    advice = "give the same to go on, or --fresh to begin from the start"
    return f"{folder}: holds an unfinished translation {what}: {advice}"


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """GDAL's errors of writing name no file, and no reason."""
    from rasterio.errors import RasterioIOError

    try:
        yield
    except RasterioIOError as error:
        raise UserError(
            f"{path}: cannot be written ({first_line(error)}): make room on the disk; the same command then goes on"
        ) from None


@contextmanager
def _reading(piece: Path) -> Iterator[None]:
    """Removes a piece that cannot be read, and says how to go on. What writing the target raises, passes."""
    from rasterio.errors import RasterioIOError

    try:
        yield
    except RasterioIOError as error:
        if piece.name not in str(error) and "Read" not in str(error):
            raise
        piece.unlink()
        raise UserError(
            f"{piece}: damaged, and removed ({first_line(error)}): the same command makes it again"
        ) from None


@contextmanager
def _without_warnings() -> Iterator[None]:
    """A piece, and a scene without a CRS, have no georeference, and need none."""
    import warnings

    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
