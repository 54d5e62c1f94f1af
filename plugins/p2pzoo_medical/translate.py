"""Translates a volume slice by slice: slices are read, translated and written to a map of the output. Imports torch.

Memory holds a batch of slices, beside the network; the volume and its translation are maps of files.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from p2pzoo.models.model import Model
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import page_folder
from p2pzoo.utils.version import __version__
from p2pzoo_medical.body import Body
from p2pzoo_medical.derived_series import write_series
from p2pzoo_medical.dicom import Series
from p2pzoo_medical.files import open_volume
from p2pzoo_medical.nifti import make_header, nifti_stem, scratch_map, writing_nifti
from p2pzoo_medical.units import AxisName, Trained, Units
from p2pzoo_medical.volume import AXES, Volume, geometry_fault, slice_spacing, slice_view
from p2pzoo_medical.volumes import read_channels

Progress = Callable[[int, int], None]  # slices done, slices in all
DEFAULT_TILE = 512  # px: larger slices are translated in tiles
MAX_SPACING_RATIO = 1.05  # of voxels to those of the training, without a warning
MAX_ANISOTROPY = 1.5  # of the sides of a voxel for three axes: the network has seen pixels of one shape
MAX_PADDING = 2.0  # of a padded side to the slice: beyond it the network sees more reflections than slice
MAX_BEYOND_WINDOW = 0.1  # share of values above the window of the training, without a warning; see MIN_OF_WINDOW
MIN_OF_WINDOW = 0.1  # of the window: values below are background, and some values must be above
# Share of values outside of the window, without a warning. A series of the modality of the training may have more: air,
# where the window of a CT is that of soft tissue.
MAX_OUTSIDE = 0.5
_UNITS = {"CT": " HU"}  # of a modality, where there is one
_LOOKS = 9  # slices of a volume whose values are compared with the window


@dataclass(frozen=True)
class Options:
    """How a volume is translated.

    axes         1: slices of the training's axis; 3: the mean of the translations along three axes
    tile         side of tiles in px; None: whole slices up to 512 px, else tiles of about 512. overlap: as `Model`
    test_mode    "paper" or "eval"; None: the model's own
    seed         of dropout in paper mode, and of the noise of a process
    outside      value outside of the body; None: what the network says
    mask         file of a body mask of this volume
    body_above   the body is the largest part of the volume above this value; None: as the training's mask on x
    modality     of a DICOM series that is written, "CT" or "MR"; None: that of the training targets, else of the volume
    """

    axes: int = 1
    tile: int | None = None
    overlap: int | None = None
    test_mode: str | None = None
    seed: int = 0
    outside: float | None = None
    mask: Path | None = None
    body_above: float | None = None
    modality: str | None = None


def read_trained(model: Model) -> Trained:
    """What the model was trained on. Raises UserError for a model of another dataset, and a damaged description."""
    layout = (model.header.as_json.get("file_layout") or {}).get("volume")
    if layout is None:
        raise UserError(
            "the model was not trained on the dataset 'volumes': use the command that its run printed at the end, "
            "p2pzoo translate for images, translate-scene or translate-stack for others"
        )
    try:
        trained = Trained.from_json(layout)
    except ValueError as error:
        raise UserError(f"the model file's description of its volumes is damaged ({error})") from None
    if (model.in_channels, model.out_channels) != (trained.slices, 1):
        raise UserError("the model file's description of its volumes is damaged (number of slices)")
    return trained


def translate_volume(
    model: Model, path: Path, target: Path, options: Options, progress: Progress = lambda done, total: None
) -> tuple[int, int, int]:
    """Translate a NIfTI file or a DICOM series; returns the shape (i, j, k) of the translation.

    target  a .nii or .nii.gz file, with the affine, the codes and the units of the volume's header, and the values and
            the dtype of the training targets; or a new folder, for a DICOM series: a derived series

    The file, or the folder, appears when it is whole. Raises UserError for a volume or options that do not fit the
    model, and OSError where there is no room.
    """
    trained = read_trained(model)
    source = open_volume(path)
    is_file = nifti_stem(target) is not None
    if not is_file and not isinstance(source.raw, Series):
        raise UserError(f"{target}: a NIfTI volume is translated to NIfTI: give a name that ends with .nii.gz")
    body = _find_body(source, trained, options)
    settings = _check_options(model, source, trained, options)
    _warn_of_differences(source, trained)
    header = make_header(source, trained.y, f"p2pzoo {__version__}, run {model.run}: for research only")

    def fill(values: np.ndarray) -> None:
        _fill(model, source, trained, values, options, settings, target, body, progress)

    if is_file:
        with writing_nifti(target, header) as values:
            fill(values)
    else:
        if target.is_dir():
            target.rmdir()  # an empty folder: the new one appears as a whole
        with page_folder(target) as folder, scratch_map(folder / "values", header) as (_, values):
            fill(values)
            write_series(folder, source, values, trained.y, model.run, options.modality)
    return source.shape


# --- checks ------------------------------------------------------------------------------------------------------


def _check_options(model: Model, source: Volume, trained: Trained, options: Options) -> dict[str, Any]:
    """The arguments of `Model.translate`. Raises UserError for options that do not fit the model or the volume."""
    mode = options.test_mode or model.test_mode
    tile = options.tile
    sides = [side for axis in _axes(trained, options) for side in source.slice_size(axis)]
    if tile is None and mode == "eval" and max(sides) > DEFAULT_TILE and not model.draws_own_noise:
        tile = max(model.size_divisor, DEFAULT_TILE // model.size_divisor * model.size_divisor)
    try:
        model.resolve_options(mode, tile, options.overlap)
    except ValueError as error:
        raise UserError(str(error)) from None
    if options.axes == 3:
        _check_three_axes(model, source)
    return {"test_mode": mode, "tile": tile, "overlap": options.overlap, "seed": options.seed}


def _axes(trained: Trained, options: Options) -> list[AxisName]:
    return [*AXES] if options.axes == 3 else [trained.axis]


def _check_three_axes(model: Model, source: Volume) -> None:
    """Raises UserError where slices along other axes would be unlike those of the training."""
    sides = source.spacing
    if max(sides) > MAX_ANISOTROPY * min(sides):
        listing = " × ".join(f"{side:.3g}" for side in sides)
        raise UserError(
            f"{source.path}: --axes 3 needs voxels whose sides are alike, and they are {listing} mm: resample the "
            "volume, or leave --axes out"
        )
    for axis in AXES:
        size = source.slice_size(axis)
        padded = model.padded_size(*size)
        if any(wide > MAX_PADDING * side for wide, side in zip(padded, size, strict=True)):
            raise UserError(
                f"{source.path}: --axes 3 needs {axis} slices, of {size[1]}×{size[0]} px, and the network takes "
                f"multiples of {model.size_divisor}: leave --axes out"
            )


def _find_body(source: Volume, trained: Trained, options: Options) -> Body | None:
    """The body mask where an outside value is wanted. Raises UserError if nothing says which voxels are the body."""
    if options.outside is None:
        return None
    if options.mask is not None:
        mask = open_volume(options.mask)
        if fault := geometry_fault(source, mask):
            raise UserError(fault)
        return Body(mask, None)
    above = options.body_above
    if above is None and trained.mask and trained.mask.get("of") == "x":
        above = trained.mask["above"]
    if above is None:
        raise UserError("--body-only needs to know where the body is: give --mask FILE, or --body-above VALUE")
    return Body(source, above)


def _warn_of_differences(source: Volume, trained: Trained) -> None:
    """Warn of voxels and values that are unlike those of the training."""
    down, across, through = slice_spacing(source, trained.axis)
    count = 3 if trained.slices > 1 else 2
    pairs = [*zip((down, across, through), trained.spacing, strict=True)][:count]
    if any(max(ours / theirs, theirs / ours) > MAX_SPACING_RATIO for ours, theirs in pairs):
        ours, theirs = (" × ".join(f"{side:.3g}" for side in each) for each in zip(*pairs, strict=True))
        warnings.warn(
            f"{source.path}: its voxels are {ours} mm in {trained.axis} slices, those of the training {theirs}: "
            "resample the volume",
            stacklevel=3,
        )
    if source.modality and trained.x.modality and source.modality != trained.x.modality:
        warnings.warn(
            f"{source.path}: is a series of {source.modality}, and the model was trained on {trained.x.modality}: give "
            f"a series of {trained.x.modality}",
            stacklevel=3,
        )
    elif fault := _compare_values(source, trained):
        warnings.warn(f"{source.path}: {fault}: bring it to the same units", stacklevel=3)


def _compare_values(source: Volume, trained: Trained) -> str | None:
    """What is unlike the training about the values of some slices; None where they are alike."""
    count = source.slice_count(trained.axis)
    looks = sorted({(2 * number + 1) * count // (2 * _LOOKS) for number in range(_LOOKS)})
    values = np.concatenate([source.read_slice(trained.axis, index).ravel() for index in looks])
    values = values[np.isfinite(values)]
    low, high = trained.x.window
    share = ((values < low) | (values > high)).mean() if values.size else 0.0
    if share > MAX_OUTSIDE and (source.modality is None or trained.x.modality is None):
        unit = _UNITS.get(trained.x.modality or "", "")
        return (
            f"{share:.0%} of the voxels lie outside of the range that the model was trained on, "
            f"[{low:g}, {high:g}]{unit}"
        )
    shown = values[values > low + MIN_OF_WINDOW * (high - low)]
    if values.size and (shown.size == 0 or (shown > high).mean() > MAX_BEYOND_WINDOW):
        return f"its values, up to {values.max():.4g}, are unlike those of the training, {low:.4g} to {high:.4g}"
    return None


# --- translation -------------------------------------------------------------------------------------------------


def _fill(
    model: Model,
    source: Volume,
    trained: Trained,
    values: np.ndarray,
    options: Options,
    settings: dict[str, Any],
    target: Path,
    body: Body | None,
    progress: Progress,
) -> None:
    """Write the translation to `values` (i, j, k), a map of the output."""
    axes = _axes(trained, options)
    total = sum(source.slice_count(axis) for axis in axes)
    done = 0
    canonical = source.orientation.canonical(values)
    with _sums(source, trained, target, needed=len(axes) > 1) as sums:
        for axis in axes:
            for index, y_hat in _translate_slices(model, source, trained, axis, settings):
                if sums is None:
                    slice_view(canonical, axis, index)[...] = trained.y.from_network(y_hat)
                else:
                    slice_view(source.orientation.canonical(sums), axis, index)[...] += y_hat / len(axes)
                done += 1
                progress(done, total)
        if sums is not None:
            for index in range(source.shape[2]):
                values[..., index] = trained.y.from_network(sums[..., index])
    if body is not None and options.outside is not None:
        outside = trained.y.to_dtype(np.asarray(options.outside, np.float64))
        for index in range(source.slice_count(trained.axis)):
            slice_view(canonical, trained.axis, index)[~body.read_slice(trained.axis, index)] = outside


@contextmanager
def _sums(source: Volume, trained: Trained, target: Path, *, needed: bool) -> Iterator[np.ndarray | None]:
    """A map (i, j, k) of float32, 0 everywhere, in a file beside the target that is removed at the end."""
    if not needed:
        yield None
        return
    header = make_header(source, Units(trained.y.window, "float32"), "")
    with scratch_map(target, header) as (_, sums):
        yield sums


def _translate_slices(
    model: Model, source: Volume, trained: Trained, axis: AxisName, settings: dict[str, Any]
) -> Iterator[tuple[int, np.ndarray]]:
    """(index, ŷ (H, W) in [-1, 1]) of each slice."""
    count = source.slice_count(axis)
    side = settings["tile"]
    size = source.slice_size(axis) if side is None else (side, side)
    together = model.max_batch_size(*model.padded_size(*size), settings["test_mode"])
    for first in range(0, count, together):
        indices = range(first, min(first + together, count))
        x = np.stack([_see(source, trained, axis, index) for index in indices])
        y_hats = model.translate(torch.from_numpy(x), **settings)
        yield from zip(indices, y_hats[:, 0].cpu().float().numpy(), strict=True)


def _see(source: Volume, trained: Trained, axis: AxisName, index: int) -> np.ndarray:
    """x (slices, H, W) in [-1, 1]."""
    channels: Sequence[np.ndarray] = read_channels(source, axis, index, trained.slices)
    return np.stack([trained.x.to_network(channel) for channel in channels])
