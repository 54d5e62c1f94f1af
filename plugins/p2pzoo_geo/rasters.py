"""Opening georeferenced rasters, reading windows with their masks, and checking that two of them fit."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.suggest import find_similar
from p2pzoo_geo.bands import RASTER_DTYPES

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

Resampled = Literal["x", "y"]
Resampling = Literal["nearest", "bilinear", "cubic", "average", "mode"]
MAX_SHIFT = 0.01  # px between the corners of two rasters that count as equal: transforms are written rounded
MAX_BLOCK_MEGABYTES = 512  # of a file's own blocks: GDAL decodes a block as a whole, however small the window is
CACHE_MEGABYTES = 256  # of GDAL's decoded blocks: the rows of a tile in a wide scene that is stored in strips


class Box(NamedTuple):
    """A window: rows top to bottom and columns left to right, in px, without the last ones."""

    top: int
    bottom: int
    left: int
    right: int

    def slices(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """As rasterio takes a window."""
        return (self.top, self.bottom), (self.left, self.right)


def require_rasterio(what: str) -> Any:
    """The module rasterio. what: what needs it, for the message. Raises UserError if it is not installed."""
    try:
        import rasterio
    except ImportError:
        raise UserError(f"{what} needs rasterio: pip install 'p2pzoo[geo]'") from None
    return rasterio


@contextlib.contextmanager
def open_raster(path: Path) -> Iterator[DatasetReader]:
    """A raster of any format that GDAL reads. Raises UserError for a file that is none, or has too large blocks."""
    from rasterio.errors import RasterioIOError

    rasterio = require_rasterio("reading rasters")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    _silence_missing_georeference()
    with bounded_cache():
        try:
            source = rasterio.open(path)
        except RasterioIOError as error:
            raise UserError(f"{path}: cannot be read as a raster ({first_line(error)})") from None
        with source:
            _check_blocks(source)
            yield source


def _silence_missing_georeference() -> None:
    """No warnings of rasterio: pixels without a georeference are paired by their place in the image.

    Without `catch_warnings`: several threads open rasters at once.
    """
    from rasterio.errors import NotGeoreferencedWarning

    if not any(entry[0] == "ignore" and entry[2] is NotGeoreferencedWarning for entry in warnings.filters):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)


def _check_blocks(source: DatasetReader) -> None:
    """Raises UserError where reading one pixel takes too much memory."""
    together = source.count if source.interleaving and source.interleaving.name == "pixel" else 1
    for (height, width), dtype in zip(source.block_shapes, source.dtypes, strict=True):
        itemsize = np.dtype(dtype).itemsize if dtype in RASTER_DTYPES else 16
        megabytes = height * width * itemsize * together / 1e6
        if megabytes > MAX_BLOCK_MEGABYTES:
            raise UserError(
                f"{source.name}: is stored in blocks of {width}×{height} px, and reading one takes {megabytes:,.0f} "
                "MB: store it in tiles (gdal_translate -co TILED=YES)"
            )


@contextlib.contextmanager
def bounded_cache() -> Iterator[None]:
    """GDAL keeps a bounded number of decoded blocks."""
    import rasterio

    with rasterio.Env(GDAL_CACHEMAX=CACHE_MEGABYTES):
        yield


@contextlib.contextmanager
def open_pair(
    x_path: Path, y_path: Path, resample: Resampled | None, resampling: str
) -> Iterator[tuple[DatasetReader, DatasetReader]]:
    """x and y; the one that `resample` names is brought to the grid of the other while it is read."""
    with open_raster(x_path) as x, open_raster(y_path) as y:
        if resample == "x":
            with _on_grid_of(x, y, resampling) as warped:
                yield warped, y
        elif resample == "y":
            with _on_grid_of(y, x, resampling) as warped:
                yield x, warped
        else:
            yield x, y


def _on_grid_of(source: DatasetReader, grid: DatasetReader, resampling: str) -> Any:
    from rasterio.enums import ColorInterp
    from rasterio.enums import Resampling as Methods
    from rasterio.vrt import WarpedVRT

    options: dict[str, Any] = {}
    if source.nodata is None and ColorInterp.alpha not in source.colorinterp:
        # pixels outside of the source must not look like data
        options = {"nodata": float("nan")} if "float" in source.dtypes[0] else {"add_alpha": True}
    return WarpedVRT(
        source, crs=grid.crs, transform=grid.transform, width=grid.width, height=grid.height,
        resampling=Methods[resampling], **options,
    )  # fmt: skip


def read_window(source: DatasetReader, bands: Sequence[int], box: Box) -> tuple[np.ndarray, np.ndarray]:
    """(C, h, w) of these bands, and (h, w) bool: where all of them have data.

    A pixel has none by the file's nodata value or mask, or if a value is NaN or infinite.
    Raises UserError for a damaged file.
    """
    with _naming(source):
        values = source.read([*bands], window=box.slices())
        valid = _read_valid(source, bands, box)
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=0)
    return values, valid


@contextlib.contextmanager
def _naming(source: DatasetReader) -> Iterator[None]:
    """GDAL's errors of reading name no file."""
    from rasterio.errors import RasterioError

    try:
        yield
    except RasterioError as error:
        raise UserError(f"{_name(source)}: cannot be read ({first_line(error)}): the file is damaged") from None


def read_valid(source: DatasetReader, bands: Sequence[int], box: Box) -> np.ndarray:
    """(h, w) bool: as the second value of `read_window`, one band at a time."""
    valid = np.ones((box.bottom - box.top, box.right - box.left), bool)
    for band in bands:
        if source.dtypes[band - 1].startswith("float"):
            valid &= read_window(source, [band], box)[1]
        elif has_mask(source, [band]):
            with _naming(source):
                valid &= _read_valid(source, [band], box)
    return valid


def has_mask(source: DatasetReader, bands: Sequence[int]) -> bool:
    """Whether pixels of these bands can be without data."""
    from rasterio.enums import MaskFlags

    return any(
        source.dtypes[band - 1].startswith("float") or MaskFlags.all_valid not in source.mask_flag_enums[band - 1]
        for band in bands
    )


def _read_valid(source: DatasetReader, bands: Sequence[int], box: Box) -> np.ndarray:
    return (source.read_masks([*bands], window=box.slices()) != 0).all(axis=0)


def select_bands(source: DatasetReader, wanted: Sequence[int | str] | None, name: str) -> tuple[int, ...]:
    """The numbers of bands by numbers or descriptions; None: all that hold data. name: of the parameter.

    Raises UserError for a band that the file does not have, and for dtypes that differ or cannot be used.
    """
    from rasterio.enums import ColorInterp

    if wanted is None:
        numbers = [n for n, colour in enumerate(source.colorinterp, 1) if colour != ColorInterp.alpha]
    else:
        numbers = [_find_band(source, band, name) for band in wanted]
    if not numbers:
        raise UserError(f"{_name(source)}: {name} names no band: leave it out for all of them")
    dtypes = {source.dtypes[number - 1] for number in numbers}
    if len(dtypes) > 1:
        raise UserError(
            f"{_name(source)}: its bands are {' and '.join(sorted(dtypes))}: choose those of one dtype with {name}"
        )
    if not dtypes <= {*RASTER_DTYPES}:
        raise UserError(f"{_name(source)}: values of {dtypes.pop()} cannot be used: convert it to float32")
    return tuple(numbers)


def _find_band(source: DatasetReader, band: int | str, name: str) -> int:
    if isinstance(band, int):
        if not 1 <= band <= source.count:
            raise UserError(f"{_name(source)}: {name}: there is no band {band}; it has {describe_bands(source)}")
        return band
    known = [description for description in source.descriptions if description]
    if band not in known:
        similar = find_similar(band, known)
        hint = f": did you mean '{similar}'?" if similar else "" if known else ", without descriptions: give numbers"
        raise UserError(
            f"{_name(source)}: {name}: no band is described as '{band}'; it has {describe_bands(source)}{hint}"
        )
    numbers = [number for number, description in enumerate(source.descriptions, 1) if description == band]
    if len(numbers) > 1:
        listing = " and ".join(map(str, numbers))
        raise UserError(f"{_name(source)}: {name}: bands {listing} are described as '{band}': give a number")
    return numbers[0]


def describe_bands(source: DatasetReader) -> str:
    """Such as "bands 1 to 3" or "the bands red, green, 3", for messages: their descriptions, else numbers."""
    if not any(source.descriptions):
        return "band 1" if source.count == 1 else f"bands 1 to {source.count}"
    names = [description or str(number) for number, description in enumerate(source.descriptions, 1)]
    return f"the band{'s' * (len(names) > 1)} {', '.join(names)}"


def grid_faults(x: DatasetReader, y: DatasetReader) -> list[str]:
    """A line if the rasters of a pair do not lie on one grid."""
    names = f"{_name(x)} and {_name(y)}"
    advice = 'bring them to one grid, or set resample = "x" or "y", the one to resample'
    if x.crs != y.crs:
        return [f"{names}: CRS differ, {crs_name(x)} and {crs_name(y)}: {advice}"]
    if (x.width, x.height) != (y.width, y.height):
        return [f"{names}: sizes differ, {x.width}×{x.height} and {y.width}×{y.height} px: {advice}"]
    if x.gcps[0] or y.gcps[0] or x.rpcs or y.rpcs:
        return [
            f"{names}: they are placed by control points, not by a transform: warp both to one grid first (gdalwarp)"
        ]
    for source in (x, y):
        if not abs(source.transform.determinant) > 0:  # NaN too
            return [f"{_name(source)}: its transform gives pixels no area: set another"]
    corners = np.array([(column, row, 1) for column in (0, x.width) for row in (0, x.height)]).T
    to_x, to_y = (np.reshape(source.transform, (3, 3)) for source in (x, y))
    shift = np.abs(np.linalg.solve(to_x, to_y @ corners) - corners).max()
    if not shift <= MAX_SHIFT:
        return [f"{names}: transforms differ, by up to {shift:.3g} px: {advice}"]
    return []


def resample_faults(x: DatasetReader, y: DatasetReader) -> list[str]:
    """A line for each raster without a CRS, which cannot be resampled."""
    return [f"{_name(each)}: has no CRS, so `resample` cannot place it: set one" for each in (x, y) if each.crs is None]


def read_scaling(source: DatasetReader, bands: Sequence[int]) -> tuple[tuple[float, float], ...]:
    """(scale, offset) of these bands, by the file's tags."""
    return tuple((float(source.scales[band - 1]), float(source.offsets[band - 1])) for band in bands)


def format_scaling(scaling: tuple[float, float]) -> str:
    """A scale and an offset for messages.

    >>> format_scaling((0.0001, -0.1))
    '0.0001·v - 0.1'
    """
    scale, offset = scaling
    return f"{scale:g}·v {'-' if offset < 0 else '+'} {abs(offset):g}"


def read_units(source: DatasetReader, bands: Sequence[int]) -> tuple[str | None, ...]:
    """The units of these bands, by the file's tags."""
    return tuple(source.units[band - 1] or None for band in bands)


def file_states(source: DatasetReader) -> list[tuple[str, int, int]]:
    """(path, bytes, time of the last change) of the raster's files, also of those that a VRT names and of sidecars."""
    files = sorted({Path(name).resolve() for name in source.files if Path(name).is_file()})
    return [(str(file), (state := file.stat()).st_size, state.st_mtime_ns) for file in files]


def crs_name(source: DatasetReader) -> str:
    """Such as "EPSG:32633"; "none" without one."""
    return source.crs.to_string() if source.crs else "none"


def pixel_size(source: DatasetReader) -> tuple[float, float]:
    """Width and height of a pixel in units of the CRS."""
    across, down = source.transform.column_vectors[:2]
    return float(np.hypot(*across)), float(np.hypot(*down))


def pixel_in_units(source: DatasetReader) -> tuple[str, tuple[float, float]] | None:
    """("m" or "°", (width, height) of a pixel in it), so that scenes of several CRS compare; None without a CRS."""
    from rasterio.errors import CRSError

    width, height = pixel_size(source)
    if source.crs and source.crs.is_geographic:
        return "°", (width, height)
    try:
        metres = source.crs.linear_units_factor[1] if source.crs else None
    except CRSError:  # such as a local CRS
        return None
    return ("m", (width * metres, height * metres)) if metres else None


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _name(source: DatasetReader) -> str:
    return str(getattr(source, "src_dataset", source).name)
