"""Translate a stack of any size: each plane in blended tiles, written plane by plane as OME-TIFF. Imports torch.

Memory holds the network and a few rows of tiles, as wide as a plane. Each plane of ŷ lies in a temporary file before it
is written: a network gives all channels at once, and a TIFF has one after the other.
"""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from p2pzoo_geo.bands import Bands, find_by_name, find_other_name
from p2pzoo_geo.rasters import Box
from p2pzoo_geo.windows import spread_windows

from p2pzoo.images.rows import BIG_TIFF, Rows
from p2pzoo.models.model import Model
from p2pzoo.models.tiling import Tiling
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write
from p2pzoo.utils.plurals import format_count
from p2pzoo.utils.version import __version__
from p2pzoo_microscopy.planes import Planes, parse_stack
from p2pzoo_microscopy.stack_files import (
    Stack,
    channel_names,
    describe_channels,
    open_stack,
    require_tifffile,
    select_channels,
)
from p2pzoo_microscopy.stacks import encode

Progress = Callable[[int, int], None]  # planes done, planes in all
DEFAULT_TILE = 512
MAX_PIXEL_RATIO = 1.05  # of a stack's pixels to those of the training, without a warning
_LOOKS, _LOOK = (
    3,
    64,
)  # a stack's values are compared with the training's in 3 × 3 squares of 64 px, each of another plane
BLOCK = 256  # px: side of a tile of the written TIFF


@dataclass(frozen=True)
class Outcome:
    """What was written. sizes: {"T", "Z", "C", "Y" or "X": its length}."""

    target: Path
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class _Job:
    """One translation. x, y: one band for each channel of the files."""

    model: Model
    stack: Stack
    x: Bands
    y: Bands
    planes: Planes
    tiling: Tiling
    seed: int

    @property
    def sizes(self) -> dict[str, int]:
        depth = len(self.planes.places(self.stack.sizes["Z"]))
        return {**self.stack.sizes, "Z": depth, "C": len(self.y)}


def translate_stack(
    model: Model,
    source: Path,
    target: Path,
    *,
    channels: Sequence[int | str] | None = None,
    series: int | None = None,
    axes: str | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = lambda done, total: None,
) -> Outcome:
    """Translate all frames and planes of a stack, in tiles of eval mode, to a tiled, deflated OME-TIFF.

    channels: names or numbers of the channels of x in this file; None: those with the names of the training, or, in a
        file without names, with its numbers.
    series, axes: see `open_stack`. tile, overlap: as `Model.translate`; tile: None: about 512 px. seed: of the noise of
        a process. settings: further values that the pixels depend on, as JSON, for the description in the file.

    The file has the stack's pixel sizes, and the names, units and dtype of the training targets; one plane where the
    training projected. It appears as a whole. Raises UserError for a stack that does not fit the model, for options
    that do not, and for a file that cannot be read or written.
    """
    tifffile = require_tifffile("translating stacks")
    divisor = model.size_divisor
    stack = open_stack(source, series, axes)
    x, y, planes = _match_channels(model, stack, channels)
    if stack.sizes["Z"] > 1 or planes.keeps_depth:  # z = 3 of a stack in training, and a file with this plane alone
        planes.check_depth(stack)
    _warn_of_pixels(model, stack, planes)
    try:
        _, tiling = model.resolve_options("eval", tile or max(divisor, DEFAULT_TILE // divisor * divisor), overlap)
    except ValueError as error:
        raise UserError(str(error)) from None
    assert tiling is not None
    _warn_of_values(stack, x, planes)
    job = _Job(model, stack, x, y, planes, tiling, seed)
    sizes = job.sizes
    made = {"tile": tiling.side, "overlap": tiling.overlap, "seed": seed, "precision": model.precision}
    metadata = _describe(job, source.name, {**made, **(settings or {})})
    shape = tuple(sizes[axis] for axis in metadata["axes"])
    is_big = math.prod(shape) * np.dtype(y.dtype).itemsize >= BIG_TIFF
    with (
        atomic_write(target) as temporary,
        tempfile.TemporaryFile(dir=target.parent) as plane,
        tifffile.TiffWriter(temporary, bigtiff=is_big, ome=True) as writer,
    ):
        writer.write(
            _tiles(job, plane, progress), shape=shape, dtype=y.dtype, tile=(BLOCK, BLOCK), compression="zlib",
            predictor=True, photometric="minisblack", software=f"p2pzoo {__version__}", metadata=metadata,
            maxworkers=1,
        )  # fmt: skip
    return Outcome(target, sizes)


def _match_channels(model: Model, stack: Stack, wanted: Sequence[int | str] | None) -> tuple[Bands, Bands, Planes]:
    """The channels of x in this stack, those of y, and the planes, as in training. Raises UserError."""
    table = (model.header.as_json.get("file_layout") or {}).get("stack")
    if table is None:
        raise UserError(
            "the model was not trained on the dataset 'stacks': use the command that its run printed at the end, "
            "p2pzoo translate for images, translate-scene or translate-volume for others"
        )
    try:
        x, y, planes = parse_stack(table)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the model file's description of its channels is damaged ({error})") from None
    if (len(x) * planes.window, len(y)) != (model.in_channels, model.out_channels):
        raise UserError("the model file's description of its channels is damaged (their number)")
    numbers = select_channels(stack, wanted, "--channel") if wanted else _find_channels(stack, x)
    if len(numbers) != len(x):
        wanted = f"the {format_count(len(x), 'channel')} of the model, {', '.join(x.labels())}"
        raise UserError(f"--channel: {len(numbers)} for {wanted}; {stack.path} has {describe_channels(stack)}")
    if stack.dtype != x.dtype:
        raise UserError(
            f"{stack.path}: has values of {stack.dtype}, and the model was trained on {x.dtype}: convert the stack to "
            "the units and the dtype of the training"
        )
    return Bands(numbers, x.names, x.scales, x.dtype), y, planes


def _find_channels(stack: Stack, x: Bands) -> tuple[int, ...]:
    """The numbers of the channels with the names of the training; where names are missing or not unique, the same.

    Raises UserError for a file that names its channels, and not these, or gives these numbers other names.
    """
    names = channel_names(stack)
    if numbers := find_by_name(x.names, names):  # a stack may have the channels in another order
        return numbers
    is_missing = any(names) and all(x.names) and not {*x.names} <= {*names}
    in_order = [(*range(1, len(x) + 1),)] if len(x) == len(stack) else []
    for numbers in (*in_order, x.numbers) if not is_missing else ():
        if max(numbers) <= len(stack) and not find_other_name(x.names, names, numbers):
            return numbers
    raise UserError(
        f"{stack.path}: has {describe_channels(stack)}; the model takes {', '.join(x.labels())}: choose with --channel"
    )


def _tiles(job: _Job, plane: BinaryIO, progress: Progress) -> Iterator[np.ndarray]:
    """The tiles of the TIFF in their order: frames, planes, channels, rows of tiles. plane: a temporary file."""
    sizes = job.sizes
    places, done = job.planes.places(job.stack.sizes["Z"]), 0
    total = sizes["T"] * len(places)
    height, width, dtype = sizes["Y"], sizes["X"], np.dtype(job.y.dtype)
    for frame in range(sizes["T"]):
        for place in places:
            _translate_plane(job, frame, place, plane)
            for channel in range(sizes["C"]):
                for top in range(0, height, BLOCK):
                    rows = min(BLOCK, height - top)
                    plane.seek((channel * height + top) * width * dtype.itemsize)
                    band = np.frombuffer(plane.read(rows * width * dtype.itemsize), dtype).reshape(rows, width)
                    for left in range(0, width, BLOCK):
                        part = band[:, left : left + BLOCK]
                        yield np.pad(part, ((0, BLOCK - part.shape[0]), (0, BLOCK - part.shape[1])))
            done += 1
            progress(done, total)


def _translate_plane(job: _Job, frame: int, place: int, plane: BinaryIO) -> None:
    """Write ŷ of one plane to the file, (C, H, W) in the dtype of the targets."""
    stack, height, width = job.stack, job.sizes["Y"], job.sizes["X"]

    def read(top: int, bottom: int) -> np.ndarray:
        values = job.planes.read_x(stack, job.x.numbers, frame, place, Box(top, bottom, 0, width))
        return encode(job.x, values, job.planes.window)

    top = 0
    rows = Rows((height, width, job.model.in_channels), read)
    for band in job.model.translate_rows(rows, job.tiling, job.seed):
        for channel in range(len(job.y)):
            values = _to_values(band[..., channel], job.y, channel)
            plane.seek((channel * height + top) * width * values.itemsize)
            plane.write(values.tobytes())
        top += len(band)


def _to_values(stored: np.ndarray, y: Bands, channel: int) -> np.ndarray:
    """(rows, W) as the dataset stores y -> values of the targets' files, in their dtype."""
    if stored.dtype == y.dtype and y.stored_range == y.scales[channel]:
        return np.ascontiguousarray(stored)
    low, high = y.stored_range
    return y.from_network((stored.astype(np.float64) - low) * (2 / (high - low)) - 1, channel)


def _describe(job: _Job, name: str, made: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of the written file, as tifffile takes them. It holds no path."""
    metadata = job.stack.metadata
    result: dict[str, Any] = {
        "axes": "TZCYX", "Name": name, "Channel": {"Name": job.y.labels()},
        "Description": json.dumps({"p2pzoo": __version__, "model": job.model.run, "test_mode": "eval", **made}),
    }  # fmt: skip
    for axis, (size, unit) in metadata.pixel.items():
        if axis != "Z" or job.planes.keeps_depth:
            result |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": unit}
    if metadata.frame:
        result |= {"TimeIncrement": metadata.frame[0], "TimeIncrementUnit": metadata.frame[1]}
    return result


def _warn_of_pixels(model: Model, stack: Stack, planes: Planes) -> None:
    """Warn if the stack's pixels have another size than those of the training."""
    pixel = model.header.as_json["file_layout"]["stack"].get("pixel")
    for axis in "XYZ" if planes.keeps_depth else "XY":
        ours = stack.metadata.micrometres(axis)
        theirs = pixel.get(axis) if isinstance(pixel, dict) else None
        if not ours or not isinstance(theirs, int | float) or not 0 < theirs < math.inf:
            continue
        if max(ours / theirs, theirs / ours) > MAX_PIXEL_RATIO:
            warnings.warn(
                f"{stack.path.name}: its pixels are {ours:g} µm along {axis}, those of the training {theirs:g} µm: "
                "resample the stack",
                stacklevel=3,
            )


def _warn_of_values(stack: Stack, x: Bands, planes: Planes) -> None:
    """Warn if most values of a channel lie outside of its scale: they may have another unit."""
    rows, columns = (spread_windows(stack.sizes[axis], _LOOK, _LOOKS) for axis in "YX")
    squares = [Box(*down, *across) for down in rows for across in columns]
    images = [(frame, place) for frame in range(stack.sizes["T"]) for place in planes.places(stack.sizes["Z"])]
    looks = []
    for number, box in enumerate(squares):
        frame, place = images[number * len(images) // len(squares)]
        read = planes.read_x(stack, x.numbers, frame, place, box)
        looks.append(read.reshape(len(x), -1))
    if fault := x.describe_outside(np.concatenate(looks, axis=1), "channel"):
        warnings.warn(f"{stack.path.name}: {fault}: check that the stack has the units of the training", stacklevel=3)
