"""The dataset `stacks`: windows of the planes of pairs of microscope stacks; a block is a file, a well or a plate."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar, overload

import numpy as np
from p2pzoo_geo.bands import Bands, Limits, Scale, check_scale
from p2pzoo_geo.rasters import Box
from p2pzoo_geo.windows import (
    MAX_WINDOWS_OF_SCALES,
    PERCENTILES,
    Grid,
    percentile_limits,
    recall,
    remember,
    warn_of_edges,
)
from pydantic import Field

from p2pzoo.data.pairing import Files
from p2pzoo.data.splits import Fractions, Splits, assign_splits, fallback_split
from p2pzoo.plugin import Pair, Split
from p2pzoo_microscopy.pairs import (
    ChannelChoice,
    Opener,
    Place,
    Reader,
    StackPair,
    file_states,
    find_blocks,
    find_files,
)
from p2pzoo_microscopy.planes import PlaneChoice, Planes, StackLayout, describe_stack, repeat_bands
from p2pzoo_microscopy.stack_files import channel_names, require_tifffile

Count = Annotated[int, Field(ge=1)]
_T = TypeVar("_T")


class PerImage(Sequence[_T]):
    """A value for each of many images, made when it is asked for: a time series has millions of windows."""

    def __init__(self, make: Callable[[int], _T], numbers: Sequence[int]) -> None:
        self._make, self._numbers = make, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> _T: ...

    @overload
    def __getitem__(self, index: slice) -> PerImage[_T]: ...

    def __getitem__(self, index: int | slice) -> _T | PerImage[_T]:
        if isinstance(index, slice):
            return PerImage(self._make, self._numbers[index])
        return self._make(self._numbers[index])


class Stacks:
    """Windows of the planes of pairs of stacks: OME-TIFF, ImageJ's, or plain TIFFs of several pages.

    Memory holds one window of each plane that an image is made of. A pair's block is its file, or what `block` finds in
    its name. Values that are NaN or infinite have the lower end of their scale.

    inputs         folder of the stacks x; it may have train/, val/ and test/
    targets        folder of the stacks y, of the same names; default: x and y are channels of the same files
    x_channels     names (of OME) or numbers from 1 of the channels of x; default with `targets`: all
    y_channels     likewise of y
    z              planes: "planes": each is an image; "channels": each is, and x has its neighbours as channels; "max"
                   or "mean": the projection of all; a number from 1: this plane
    z_window       with z = "channels": how many planes x has, odd; default: 3. At the ends the last plane is repeated
    t              numbers from 1 of the frames of a time series; default: all. Each frame is an image
    series         number from 1 of the series, for files with several
    axes           names of the axes, such as "ZYX", for files that do not say them (T, Z, C, and at the end YX)
    size           side of a window in px
    stride         px from one window to the next; default: `size`, so that windows do not overlap
    x_scale        values of x that become -1 and 1: [low, high], one such pair for each channel, or "percentiles": 0.1%
                   and 99.9% of each channel in training windows. Values beyond are clipped
    y_scale        likewise of y. With [low, high], or one channel, metrics such as `mae` are in the file's units
    block          regular expression that finds the name of a block (a well, a plate, a patient) in that of a file: its
                   first group, else all that it matches; default: each file is a block
    input_suffix   end of the names of the files x before their suffix, which those of y do not have: "_BF", ".ome"
    target_suffix  likewise of y
    max_pairs      maximum number of windows in each split, evenly spread
    fractions      fractions of train, val and test, in blocks, where no sub-folders define the splits
    split_seed     seed of the random assignment of blocks to splits

    Raises UserError with a line for each pair of stacks that do not fit; ValueError for parameters that do not.
    """

    classes = None
    palette = None
    picture_note = (
        "Black and white are the ends of each channel's scale (x_scale, y_scale). Of three or more channels the first "
        'three are shown as red, green and blue, of two the first as grey; with z = "channels" planes are channels.'
    )
    next_command = "translate-stack RUN STACK.tif -o OUT.ome.tif"

    def __init__(
        self,
        split: Split,
        *,
        inputs: Path,
        targets: Path | None = None,
        x_channels: ChannelChoice | None = None,
        y_channels: ChannelChoice | None = None,
        z: PlaneChoice = "planes",
        z_window: Count | None = None,
        t: tuple[Count, ...] | None = None,
        series: Count | None = None,
        axes: str | None = None,
        size: Count = 256,
        stride: Count | None = None,
        x_scale: Scale = "percentiles",
        y_scale: Scale = "percentiles",
        block: str | None = None,
        input_suffix: str = "",
        target_suffix: str = "",
        max_pairs: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
    ) -> None:
        require_tifffile("the dataset 'stacks'")
        self._reader = Reader(series, axes, Planes.of(z, z_window))
        faults: list[str] = []
        channels, endings = (x_channels, y_channels), (input_suffix, target_suffix)
        files = find_files(Path(inputs), targets, channels, endings, faults.extend)
        opener = Opener(self._reader, x_channels, y_channels, t, size)
        pairs = opener.open_all(files, faults)
        blocks = find_blocks(pairs, block)
        splits = _assign_blocks(blocks, str(inputs), fractions, split_seed)
        grid = Grid(size, stride or size, size)
        _warn_of_edges(pairs, grid, str(inputs))

        def windows(names: Iterable[str]) -> _Windows:
            return _Windows([(name, pair) for name in names for pair in blocks[name][1]], grid)

        self._windows = windows(fallback_split(splits, split, str(inputs)))
        total = len(self._windows)
        shown = min(total, max_pairs or total)
        numbers = range(total) if shown == total else [i * total // shown for i in range(shown)]
        self._places = PerImage(self._windows.place, numbers)
        self.blocks = PerImage(self._windows.block, numbers)
        self.files = PerImage(self._windows.files, numbers)
        every = [pair for _, of_block in blocks.values() for pair in of_block]
        self.x_bands, self.y_bands = _describe_channels(windows(splits["train"]), self._reader, (x_scale, y_scale))
        self.x_range, self.y_range = self.x_bands.stored_range, self.y_bands.stored_range
        self._window = self._reader.planes.window
        self.file_layout = _describe_layout(every[0], self._reader, self.x_bands, self.y_bands)
        self.fingerprint = _fingerprint(every)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Pair:
        place = self._places[index]
        x, y = self._reader.read(place)
        return Pair(
            _name_image(place), encode(self.x_bands, x, self._window), encode(self.y_bands, y), block=self.blocks[index]
        )


def encode(bands: Bands, values: np.ndarray, window: int = 1) -> np.ndarray:
    """(C · window, H, W) of a stack -> (H, W, C · window) as a dataset stores it. bands: one for each of C channels."""
    valid = np.isfinite(values).all(axis=0) if values.dtype.kind == "f" else np.ones(values.shape[1:], bool)
    return repeat_bands(bands, window).encode(values, valid)


def _name_image(place: Place) -> str:
    pair, frame, plane, box = place
    t = f"-t{frame + 1}" if len(pair.frames) > 1 else ""
    z = f"-z{plane + 1}" if len(pair.places) > 1 else ""
    return f"{pair.id}{t}{z}-r{box.top}-c{box.left}"


class _Windows:
    """All windows of some pairs of stacks, numbered: pair by pair, frame by frame, plane by plane."""

    def __init__(self, pairs: Sequence[tuple[str, StackPair]], grid: Grid) -> None:
        self._pairs = pairs
        self._boxes = {pair.size: grid.windows(Box(0, pair.size[0], 0, pair.size[1])) for _, pair in pairs}
        counts = (len(pair.frames) * len(pair.places) * len(self._boxes[pair.size]) for _, pair in pairs)
        self._ends = [*itertools.accumulate(counts)]

    def __len__(self) -> int:
        return self._ends[-1]

    def place(self, number: int) -> Place:
        index = bisect.bisect_right(self._ends, number)
        pair = self._pairs[index][1]
        boxes = self._boxes[pair.size]
        rest, box = divmod(number - (self._ends[index - 1] if index else 0), len(boxes))
        frame, plane = divmod(rest, len(pair.places))
        return Place(pair, pair.frames[frame], pair.places[plane], boxes[box])

    def files(self, number: int) -> tuple[Path, ...]:
        return self.place(number).pair.files

    def block(self, number: int) -> str:
        return self._pairs[bisect.bisect_right(self._ends, number)][0]

    @property
    def first(self) -> StackPair:
        return self._pairs[0][1]


def _warn_of_edges(pairs: Mapping[str, Sequence[StackPair]], grid: Grid, where: str) -> None:
    counts: Counter[tuple[int, int]] = Counter()
    for pair in itertools.chain(*pairs.values()):
        counts[pair.size] += len(pair.frames) * len(pair.places)
    unreached = sum(grid.unreached(Box(0, size[0], 0, size[1])) * count for size, count in counts.items())
    total = sum(height * width * count for (height, width), count in counts.items())
    warn_of_edges(where, "planes", unreached, total, "their sides")


def _assign_blocks(
    blocks: Mapping[str, tuple[str, Sequence[StackPair]]], where: str, fractions: Fractions, seed: int
) -> Splits:
    """{split: {block: files}}. Raises UserError where a split that must have blocks has none."""
    by_sub: dict[str, dict[str, Files]] = {}
    for name, (sub, pairs) in blocks.items():
        by_sub.setdefault(sub, {})[name] = pairs[0].files
    if "" in by_sub:
        return assign_splits(by_sub, where, fractions, seed)
    splits = assign_splits(by_sub, where, fractions, seed)  # it puts the sub-folder before each name
    return {
        split: {name.removeprefix(f"{split}-"): f for name, f in of_split.items()} for split, of_split in splits.items()
    }


def _describe_channels(training: _Windows, reader: Reader, scales: tuple[Scale, Scale]) -> tuple[Bands, Bands]:
    """The channels of x and y in their files, with their scales. Raises UserError for scales that do not fit."""
    measured = [side for side, scale in zip("xy", scales, strict=True) if scale == "percentiles"]
    limits = _find_scales(training, reader, measured) if measured else {}
    pair, described = training.first, []
    for side, scale, path, numbers in (
        ("x", scales[0], pair.x, pair.x_channels),
        ("y", scales[1], pair.y, pair.y_channels),
    ):
        stack = reader.open(path)
        names = tuple(channel_names(stack)[number - 1] for number in numbers)
        if side not in limits:
            limits[side] = check_scale(f"{side}_scale", scale, len(numbers), "channel")
        described.append(Bands(numbers, names, limits[side], stack.dtype))
    return described[0], described[1]


def _find_scales(training: _Windows, reader: Reader, sides: Sequence[str]) -> dict[str, tuple[Limits, ...]]:
    """{"x" or "y": limits of each channel}: percentiles of training windows. They are remembered in the cache."""
    number = min(len(training), MAX_WINDOWS_OF_SCALES)
    places = [training.place(i * len(training) // number) for i in range(number)]
    pairs = {place.pair.id: place.pair for place in places}
    states = [[pair.x_channels, pair.y_channels, *file_states(pair)] for pair in pairs.values()]
    how = [reader.series, reader.axes, reader.planes.z, reader.planes.window, [*PERCENTILES]]
    key = ["stacks", how, [*sides], states, [[place.pair.id, *place[1:3], *place.box] for place in places]]
    known = recall(key)
    if known is None:
        values: dict[str, list[np.ndarray]] = {side: [] for side in sides}
        for place in places:
            x, y = reader.read(place)
            for side in sides:
                channels = len(place.pair.x_channels if side == "x" else place.pair.y_channels)
                values[side].append({"x": x, "y": y}[side].reshape(channels, -1))
        known = {side: _limits_of(np.concatenate(parts, axis=1), side) for side, parts in values.items()}
        remember(key, known)
    return {side: tuple((low, high) for low, high in known[side]) for side in sides}


def _limits_of(values: np.ndarray, side: str) -> list[Limits]:
    finite = np.isfinite(values).all(axis=0)
    return percentile_limits(values if finite.all() else values[:, finite], side, "channel")


def _describe_layout(pair: StackPair, reader: Reader, x: Bands, y: Bands) -> StackLayout:
    stack = reader.open(pair.x)
    sizes = {axis: stack.metadata.micrometres(axis) for axis in "XYZ"}
    pixel = {axis: size for axis, size in sizes.items() if size}
    return StackLayout(stack=describe_stack(x, y, reader.planes, pixel))


def _fingerprint(pairs: Sequence[StackPair]) -> str:
    """Changes with the names, sizes and dates of the files, not with the folder that they are in."""
    states = [[pair.id, *(state[1:] for state in file_states(pair))] for pair in pairs]
    return hashlib.sha256(json.dumps(states).encode(errors="surrogateescape")).hexdigest()[:12]
