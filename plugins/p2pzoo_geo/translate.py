"""Translate a georeferenced scene of any size: tiles are read, translated and blended, and finished rows written.

Memory holds a few tiles, strips of ŷ (C, tile, width) in float32, and the rows of a piece (see pieces.py), beside the
network and GDAL's cache. Imports torch.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from p2pzoo.models.model import Model
from p2pzoo.models.noise_field import NoiseField
from p2pzoo.models.padding import reflected_indices
from p2pzoo.models.test_modes import derive_image_seed, in_training_mode
from p2pzoo.models.tiling import Tiling, blend_tiles
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count
from p2pzoo.utils.version import __version__
from p2pzoo_geo.bands import UNSCALED, Bands, find_by_name, find_other_name
from p2pzoo_geo.pieces import Format, open_pieces
from p2pzoo_geo.rasters import (
    Box,
    crs_name,
    describe_bands,
    file_states,
    format_scaling,
    has_mask,
    open_raster,
    pixel_size,
    read_scaling,
    read_valid,
    read_window,
    select_bands,
)
from p2pzoo_geo.windows import spread_windows

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

Stage = Literal["translating", "writing"]
Progress = Callable[[Stage, int, int], None]  # stage, rows done, rows in all
DEFAULT_TILE = 512
MAX_PIXEL_RATIO = 1.05  # of a scene's pixels to those of the training, without a warning
_ROWS = 64  # of ŷ that are brought to the bands' units at once: wide scenes need several copies of them
_LOOKS, _LOOK = 3, 64  # a scene's values are compared with the training's in 3 × 3 squares of 64 px
_CORNER = 64  # px: the corner of a scene whose hash seeds the noise, as for the tiles of an image


@dataclass(frozen=True)
class Outcome:
    """What was written. resumed: how many rows were there before."""

    target: Path
    size: tuple[int, int]
    resumed: int


def scene_bands(model: Model, source: DatasetReader) -> tuple[Bands, Bands]:
    """The bands of x and y: those of the dataset `scenes` that the model was trained on, else all bands of the scene.

    Raises UserError for a scene without these bands or with another dtype, and for a model whose images are no bands.
    """
    layout = (model.header.as_json.get("file_layout") or {}).get("scene")
    if layout is None:
        return _plain_bands(model, source)
    try:
        x, y = (Bands.from_json(layout[side]) for side in "xy")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the model file's description of its bands is damaged ({error})") from None
    if (len(x), len(y)) != (model.in_channels, model.out_channels):
        raise UserError("the model file's description of its bands is damaged (their number)")
    numbers = _find_bands(source, x)
    _check_dtype(source, numbers, x.dtype)
    _check_scaling(source, numbers, x)
    return replace(x, numbers=numbers), y


def _find_bands(source: DatasetReader, x: Bands) -> tuple[int, ...]:
    """The numbers of the bands with the names of the training; where names are not unique, the same numbers."""
    if numbers := find_by_name(x.names, source.descriptions):  # a scene may have the bands in another order
        return numbers
    if max(x.numbers) > source.count:
        raise UserError(
            f"{source.name}: has {describe_bands(source)}; the model takes the bands {', '.join(x.labels())}"
        )
    if other := find_other_name(x.names, source.descriptions, x.numbers):
        warnings.warn(
            f"{source.name}: band {other[0]}, '{other[1]}', is described as '{other[2]}' in the training: check that "
            "its bands have the order of the training",
            stacklevel=4,
        )
    return x.numbers


def _plain_bands(model: Model, source: DatasetReader) -> tuple[Bands, Bands]:
    if any(isinstance(value, dict) for value in (model.header.as_json.get("file_layout") or {}).values()):
        raise UserError(
            "the model was not trained on the dataset 'scenes', nor on images: use the command that its run printed at "
            "the end, such as translate-stack or translate-volume"
        )
    if model.x_labels or model.y_labels or model.encodings.lab:
        raise UserError("the model was trained on label maps or on Lab colours: use p2pzoo translate")
    numbers = select_bands(source, None, "bands")
    if len(numbers) != model.in_channels:
        wanted = format_count(model.in_channels, "band")
        raise UserError(f"{source.name}: has {describe_bands(source)}; the model takes {wanted}")
    _check_dtype(source, numbers, model.x_dtype)
    x = Bands(numbers, (None,) * len(numbers), (model.x_range,) * len(numbers), model.x_dtype)
    count = model.out_channels
    return x, Bands((*range(1, count + 1),), (None,) * count, (model.y_range,) * count, model.y_dtype)


def _check_dtype(source: DatasetReader, numbers: Sequence[int], dtype: str) -> None:
    """Raises UserError for other values than those of the training, such as reflectances of 0 to 1 for 0 to 10000."""
    other = next((source.dtypes[number - 1] for number in numbers if source.dtypes[number - 1] != dtype), None)
    if other:
        raise UserError(
            f"{source.name}: has values of {other}, and the model was trained on {dtype}: convert the scene to the "
            f"units and the dtype of the training (gdal_translate -ot)"
        )


def _check_scaling(source: DatasetReader, numbers: Sequence[int], x: Bands) -> None:
    """Raises UserError for a scene whose values stand for other quantities than those of the training.

    Tags get lost on the way, so where only one side has some, this is a warning.
    """
    trained = x.scaling or (UNSCALED,) * len(x)
    for label, theirs, own in zip(x.labels(), trained, read_scaling(source, numbers), strict=True):
        if theirs == own:
            continue
        fault = (
            f"{source.name}: band {label}: its tags of scale and offset say {format_scaling(own)}, and those of the "
            f"training {format_scaling(theirs)}"
        )
        if UNSCALED not in (theirs, own):
            raise UserError(f"{fault}: bring the scene to the scale of the training (gdal_calc), or mend its tags")
        warnings.warn(f"{fault}: check that equal values mean the same", stacklevel=3)
        return


def translate_scene(
    model: Model,
    scene: Path,
    target: Path,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    seed: int = 0,
    nodata: float | None = None,
    cog: bool = False,
    fresh: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Outcome:
    """Translate a scene in tiles of eval mode to a tiled, deflated GeoTIFF with the scene's georeference.

    tile, overlap: as `Model.translate`; tile: None: about 512 px. seed: of the noise of a process.
    nodata: the value of pixels where x has no data; None: that of the training targets, else one outside of ŷ's scale,
        if x can be without data.
    cog: write a Cloud Optimized GeoTIFF, with overviews. fresh: see `open_pieces`.
    settings: further values that the pixels depend on, as JSON.

    Values are in the units and the dtype of the training targets. After an interruption the same call goes on where it
    stopped: finished rows are in TARGET.parts. Raises UserError as `scene_bands`, for options that do not fit the
    model, and for a file that cannot be read or written.
    """
    divisor = model.size_divisor
    with open_raster(scene) as source:
        x_bands, y_bands = scene_bands(model, source)
        _warn_of_pixels(model, source)
        try:
            _, tiling = model.resolve_options("eval", tile or max(divisor, DEFAULT_TILE // divisor * divisor), overlap)
        except ValueError as error:
            raise UserError(str(error)) from None
        assert tiling is not None
        _warn_of_values(source, x_bands)
        is_masked = has_mask(source, x_bands.numbers)
        value = _choose_nodata(y_bands, nodata, is_masked=is_masked)
        identity = {
            "model": f"{model.run} {_digest(model)}", "scene": str(scene.resolve()),
            "files": [[*state] for state in file_states(source)], "tile": tiling.side, "overlap": tiling.overlap,
            "seed": seed, "nodata": None if value is None else str(value), "precision": model.precision,
            **(settings or {}),
        }  # fmt: skip
        form = _describe_format(source, y_bands, value, _describe(model, identity))
        with open_pieces(target, form, identity, fresh=fresh) as pieces:
            resumed, joined = pieces.rows, 0
            for top, strip in _translate_strips(model, source, x_bands, tiling, seed, resumed):
                rows = strip[:, max(0, resumed - top) :].numpy()
                first = max(top, resumed)
                pieces.append(_to_values(rows, first, source, x_bands, y_bands, value if is_masked else None, value))
                progress("translating", first + rows.shape[1], source.height)

            def count_joined(rows: int) -> None:
                nonlocal joined
                joined += rows
                progress("writing", joined, source.height)

            pieces.finish(target, cog=cog, progress=count_joined)
        return Outcome(target, (source.height, source.width), resumed)


def _translate_strips(
    model: Model, source: DatasetReader, bands: Bands, tiling: Tiling, seed: int, finished: int
) -> Iterator[tuple[int, Tensor]]:
    """(top, (C, rows, W)) of ŷ in [-1, 1], from the strip that holds the first row that is not finished.

    Tiles that end above that row count for nothing and are not translated, so the others have the same values as
    without an interruption.
    """
    height, width = source.height, source.width
    rows, columns = (reflected_indices(length, tiling.divisor).numpy() for length in (height, width))
    field = _noise_field(model, source, bands, seed)

    def read(place: tuple[slice, slice]) -> tuple[np.ndarray, bool]:
        down, across = rows[place[0]], columns[place[1]]
        box = Box(int(down.min()), int(down.max()) + 1, int(across.min()), int(across.max()) + 1)
        values, valid = read_window(source, bands.numbers, box)
        return bands.to_network(values, valid)[:, down - box.top][:, :, across - box.left], bool(valid.any())

    def translate_tiles(places: list[tuple[slice, slice]]) -> Tensor:
        shape = (model.out_channels, *(min(tiling.side, len(side)) for side in (rows, columns)))
        y_hats = torch.zeros(len(places), *shape)
        if places[0][0].stop <= finished:
            return y_hats
        tiles = [read(place) for place in places]
        numbers = [number for number, (_, has_data) in enumerate(tiles) if has_data]
        if numbers:
            x = torch.from_numpy(np.stack([tiles[number][0] for number in numbers]))
            noise = torch.stack([field.crop(*places[number]) for number in numbers]) if field else None
            y_hats[numbers] = _run(model, x, noise, seed)
        return y_hats

    batch = model.max_batch_size(tiling.side, tiling.side, "eval")
    for top, strip in blend_tiles(translate_tiles, len(rows), len(columns), tiling, batch):
        bottom = min(top + strip.shape[1], height)
        if bottom > max(top, finished):
            yield top, strip[:, : bottom - top, :width]


def _run(model: Model, x: Tensor, noise: Tensor | None, seed: int) -> Tensor:
    """(B, C, H, W) in [-1, 1] -> ŷ, float32 on the CPU. noise: for a sampler that takes it."""
    if noise is None:
        return model.translate(x, test_mode="eval", seed=seed).cpu().float()
    with torch.no_grad(), in_training_mode(model.G, training=False):
        return model.G(x.to(model.device), noise.to(model.device)).cpu().float()  # type: ignore[no-any-return]


def _noise_field(model: Model, source: DatasetReader, bands: Bands, seed: int) -> NoiseField | None:
    """The noise of the whole scene, from which each tile gets its part; None for a model that takes none."""
    if not model.takes_noise:
        return None
    if model.precision != "fp32":
        raise UserError("a scene is translated with --precision fp32 by a model that draws noise: leave it out")
    corner = Box(0, min(_CORNER, source.height), 0, min(_CORNER, source.width))
    x = torch.from_numpy(bands.to_network(*read_window(source, bands.numbers, corner)))
    return NoiseField(derive_image_seed(x[None], seed), model.noise_shape)


def _to_values(
    y_hat: np.ndarray,
    top: int,
    source: DatasetReader,
    x_bands: Bands,
    y_bands: Bands,
    masked: float | None,
    nodata: float | None,
) -> np.ndarray:
    """(C, rows, W) in [-1, 1] -> values in the bands' units. masked: the value where x has no data; None: nowhere."""
    values = np.empty(y_hat.shape, y_bands.dtype)
    for first in range(0, y_hat.shape[1], _ROWS):
        part = slice(first, min(first + _ROWS, y_hat.shape[1]))
        for band in range(len(y_bands)):
            values[band, part] = y_bands.from_network(y_hat[band, part], band)
        if nodata is not None:
            same = values[:, part] == np.asarray(nodata).astype(values.dtype)
            values[:, part][same] = _beside(nodata, y_bands)
        if masked is not None:
            box = Box(top + part.start, top + part.stop, 0, source.width)
            values[:, part][:, ~read_valid(source, x_bands.numbers, box)] = masked
    return values


def _beside(nodata: float, bands: Bands) -> float:
    """The value that ŷ has instead where it equals nodata by chance: the next one inside of the scale."""
    step = 1 if nodata < max(high for _, high in bands.scales) else -1
    if np.dtype(bands.dtype).kind == "f":
        return float(np.nextafter(np.asarray(nodata, bands.dtype), np.asarray(np.inf * step, bands.dtype)))
    return nodata + step


def _choose_nodata(bands: Bands, wanted: float | None, *, is_masked: bool) -> float | None:
    """Raises UserError for a value that the dtype cannot hold."""
    dtype = np.dtype(bands.dtype)
    info = None if dtype.kind == "f" else np.iinfo(dtype)
    if wanted is not None:
        if info is not None and (wanted != np.rint(wanted) or not info.min <= wanted <= info.max):
            raise UserError(f"--nodata {wanted:g}: the translation has values of {dtype}, {info.min} to {info.max}")
        if info is None and not np.isnan(wanted) and not abs(wanted) <= float(np.finfo(dtype).max):
            raise UserError(f"--nodata {wanted:g}: the translation has values of {dtype}, which cannot hold it")
        return wanted
    if bands.nodata is not None or not is_masked:
        return bands.nodata
    if info is None:
        return float("nan")
    low, high = min(low for low, _ in bands.scales), max(high for _, high in bands.scales)
    return float(info.max if info.max > high and not (info.min <= 0 < low) else 0 if info.min == 0 else info.min)


def _describe_format(source: DatasetReader, bands: Bands, nodata: float | None, description: str) -> Format:
    profile = {
        "height": source.height, "width": source.width, "count": len(bands), "dtype": bands.dtype, "nodata": nodata,
        "crs": source.crs, "transform": source.transform,
    }  # fmt: skip
    points, crs = source.gcps
    if points:
        del profile["transform"], profile["crs"]
    tags = {"p2pzoo": description}
    if "AREA_OR_POINT" in source.tags():
        tags["AREA_OR_POINT"] = source.tags()["AREA_OR_POINT"]
    _warn_of_geolocation(source)
    return Format(
        profile, bands.names, bands.units, bands.scaling, tags, (points, crs) if points else None, source.rpcs
    )


def _describe(model: Model, identity: Mapping[str, Any]) -> str:
    """JSON that is stored in the file: how it was made, without paths."""
    made = {key: value for key, value in identity.items() if key not in ("model", "scene", "files")}
    made |= {"address": model.address} if model.address else {}
    return json.dumps({"model": model.run, "test_mode": "eval", "p2pzoo": __version__, **made}, sort_keys=True)


def _digest(model: Model) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.G.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _warn_of_pixels(model: Model, source: DatasetReader) -> None:
    """Warn if the scene's pixels have another size than those of the training, in the same kind of units."""
    layout = (model.header.as_json.get("file_layout") or {}).get("scene") or {}
    pixel = layout.get("pixel")
    if not source.crs or not isinstance(pixel, list) or len(pixel) != 2 or layout.get("crs") in (None, "none"):
        return
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:  # the header of a model file may hold anything
        theirs = CRS.from_string(layout["crs"])
        sizes = [float(side) for side in pixel]
    except (CRSError, TypeError, ValueError):
        return
    if theirs.is_geographic != source.crs.is_geographic or not all(0 < side < float("inf") for side in sizes):
        return
    own = pixel_size(source)
    units = 1.0 if theirs.is_geographic else source.crs.linear_units_factor[1] / theirs.linear_units_factor[1]
    ratios = [units * ours / side for ours, side in zip(own, sizes, strict=True)]
    if max(*ratios, *(1 / ratio for ratio in ratios)) > MAX_PIXEL_RATIO:
        warnings.warn(
            f"{source.name}: its pixels are {own[0]:g} × {own[1]:g} ({crs_name(source)}), those of the training "
            f"{pixel[0]:g} × {pixel[1]:g} ({layout['crs']}): resample the scene",
            stacklevel=3,
        )


def _warn_of_geolocation(source: DatasetReader) -> None:
    """Warn of the one georeference that is not written: it names other files by their paths."""
    if source.tags(ns="GEOLOCATION"):
        warnings.warn(
            f"{source.name}: is placed by a geolocation array, which the translation does not have: warp the scene "
            "first (gdalwarp -geoloc), or place the translation by the array of the scene",
            stacklevel=4,
        )


def _warn_of_values(source: DatasetReader, bands: Bands) -> None:
    """Warn if most values of a band lie outside of its scale: they may have another unit."""
    rows, columns = (spread_windows(length, _LOOK, _LOOKS) for length in (source.height, source.width))
    looks = [read_window(source, bands.numbers, Box(*down, *across)) for down in rows for across in columns]
    values = np.concatenate([values[:, valid] for values, valid in looks], axis=1)
    if fault := bands.describe_outside(values, "band"):
        warnings.warn(f"{source.name}: {fault}: check that the scene has the units of the training", stacklevel=3)
