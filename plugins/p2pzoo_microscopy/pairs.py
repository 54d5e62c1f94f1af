"""Pairs of stacks: finding their files, checking that they fit, and the blocks they belong to. Imports no torch."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from p2pzoo_geo.alike import ChosenBands, find_mixed_bands, find_other_pixels
from p2pzoo_geo.rasters import Box

from p2pzoo.data.pairing import FaultReporter, Files, find_pairs
from p2pzoo.utils.errors import UserError, collect_faults, raise_faults
from p2pzoo_microscopy.planes import Planes
from p2pzoo_microscopy.stack_files import Stack, channel_names, count, open_stack, select_channels

ChannelChoice = tuple[int | str, ...]
MAX_PIXEL_RATIO = 1.01  # of the pixel sizes of a pair: files round them


@dataclass(frozen=True)
class StackPair:
    """One pair of stacks, in two files or in one.

    id      its name
    x, y    the files
    x_channels, y_channels  numbers from 1
    frames  the frames to use, from 0
    places  planes of the images, as `Planes.places`
    size    (H, W) of a plane
    """

    id: str
    x: Path
    y: Path
    x_channels: tuple[int, ...]
    y_channels: tuple[int, ...]
    frames: tuple[int, ...]
    places: tuple[int, ...]
    size: tuple[int, int]

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.x,) if self.x == self.y else (self.x, self.y)


class Place(NamedTuple):
    """Where an image is. frame, plane: from 0."""

    pair: StackPair
    frame: int
    plane: int
    box: Box


@dataclass(frozen=True)
class Reader:
    """How files are opened, and images made of their planes. series, axes: see `open_stack`."""

    series: int | None
    axes: str | None
    planes: Planes

    def open(self, path: Path) -> Stack:
        return open_stack(path, self.series, self.axes)

    def read(self, place: Place) -> tuple[np.ndarray, np.ndarray]:
        """x (C · window, h, w) and y (C, h, w) as their files have them."""
        pair, frame, plane, box = place
        x = self.planes.read_x(self.open(pair.x), pair.x_channels, frame, plane, box)
        return x, self.planes.read_y(self.open(pair.y), pair.y_channels, frame, plane, box)


def find_files(
    inputs: Path,
    targets: Path | None,
    channels: tuple[ChannelChoice | None, ChannelChoice | None],
    endings: tuple[str, str],
    report: FaultReporter,
) -> dict[str, dict[str, Files]]:
    """{sub-folder or "": {stem: the file of x, the file of y}}. Raises UserError. report: as that of `find_pairs`."""
    if targets is not None:
        return find_pairs(inputs, Path(targets), report=report, suffixes=endings)
    if any(endings):
        raise ValueError("input_suffix and target_suffix need `targets`: without it, x and y are in the same files")
    if None in channels:
        raise ValueError(
            "without `targets`, x and y are in the same files: name their channels, x_channels and y_channels"
        )
    found = find_pairs(inputs, report=report)
    return {sub: {stem: (file, file) for stem, (file,) in files.items()} for sub, files in found.items()}


_Kind = tuple[str, str, int, int]  # dtypes of x and y, numbers of channels of x and y


class _Facts(NamedTuple):
    """What is compared between pairs. pixel: {axis: micrometres, None if unknown}."""

    kind: _Kind
    x: ChosenBands
    y: ChosenBands
    pixel: Mapping[str, float | None]


@dataclass(frozen=True)
class Opener:
    """Opens the stacks of pairs and checks that they fit. Parameters as those of `Stacks`."""

    reader: Reader
    x_channels: ChannelChoice | None
    y_channels: ChannelChoice | None
    t: tuple[int, ...] | None
    size: int

    def open_all(
        self, files: Mapping[str, Mapping[str, Files]], faults: Sequence[str] = ()
    ) -> dict[str, list[StackPair]]:
        """{sub-folder or "": its pairs}. Raises UserError with the faults of all pairs, behind those found before."""
        faults = [*faults]
        facts: list[_Facts] = []
        pairs: dict[str, list[StackPair]] = {}
        for sub, of_sub in files.items():
            for stem, (x, y) in of_sub.items():
                with collect_faults(faults):
                    pair, found = self._open(f"{sub}-{stem}" if sub else stem, x, y)
                    pairs.setdefault(sub, []).append(pair)
                    facts.append(found)
        faults += self._find_differences(facts)
        raise_faults(faults)
        _warn_of_pixels(facts)
        return pairs

    def _find_differences(self, facts: Sequence[_Facts]) -> list[str]:
        """Faults of pairs that each can be used, and not together."""
        kinds: dict[_Kind, Path] = {}
        for each in facts:
            kinds.setdefault(each.kind, each.x.path)
        if len(kinds) > 1:
            (first, one), (other, two) = [*kinds.items()][:2]
            advice = "choose them with x_channels and y_channels"
            if first[2:] == other[2:]:
                advice = "convert them to one dtype and unit"
            return [
                f"{one} and {two}: channels differ, {_format_kind(first)} and {_format_kind(other)}: all pairs must "
                f"have the same, so {advice}"
            ]
        return [
            *find_mixed_bands([each.x for each in facts], "x", self.x_channels, "channel"),
            *find_mixed_bands([each.y for each in facts], "y", self.y_channels, "channel"),
        ]

    def _open(self, id: str, x_path: Path, y_path: Path) -> tuple[StackPair, _Facts]:
        """A pair, and what is compared with others. Raises UserError with all faults of a pair."""
        faults: list[str] = []
        sides = []
        for path, wanted, name in ((x_path, self.x_channels, "x_channels"), (y_path, self.y_channels, "y_channels")):
            with collect_faults(faults):
                stack = self.reader.open(path)
                sides.append((stack, select_channels(stack, wanted, name)))
        raise_faults([*dict.fromkeys(faults)])  # x and y may be one file
        (x, x_channels), (y, y_channels) = sides
        planes = self.reader.planes
        if x_path == y_path and (both := {*x_channels} & {*y_channels}):
            faults.append(f"{x_path}: channel {min(both)} is both in x_channels and in y_channels")
        for check in (_check_sizes, _check_pixels):
            with collect_faults(faults):
                check(x, y, planes)
        height, width = x.sizes["Y"], x.sizes["X"]
        if min(height, width) < self.size:
            faults.append(
                f"{x_path}: is {width}×{height} px, smaller than a window of {self.size} px: make `size` smaller"
            )
        beyond = [number for number in self.t or () if number > x.sizes["T"]]
        if beyond:
            faults.append(f"{x_path}: t = {beyond[0]}: it has {count(x, 'T')}")
        raise_faults(faults)
        frames = tuple(range(x.sizes["T"])) if self.t is None else tuple(number - 1 for number in self.t)
        places = tuple(planes.places(x.sizes["Z"]))
        pair = StackPair(id, x_path, y_path, x_channels, y_channels, frames, places, (height, width))
        metadata = [stack.metadata for stack, _ in sides]
        pixel = {
            axis: next(filter(None, (each.micrometres(axis) for each in metadata)), None)
            for axis in ("XYZ" if planes.keeps_depth else "XY")
        }
        chosen = [ChosenBands(stack.path, numbers, channel_names(stack)) for stack, numbers in sides]
        return pair, _Facts((x.dtype, y.dtype, len(x_channels), len(y_channels)), chosen[0], chosen[1], pixel)


def _check_sizes(x: Stack, y: Stack, planes: Planes) -> None:
    """Raises UserError with all faults of stacks of other sizes."""
    faults: list[str] = []
    names = f"{x.path} and {y.path}"
    with collect_faults(faults):
        for stack in {x.path: x, y.path: y}.values():
            if stack is x or stack.sizes["Z"] > 1 or planes.keeps_depth:
                planes.check_depth(stack)
    (height, width), (other_height, other_width) = ((each.sizes["Y"], each.sizes["X"]) for each in (x, y))
    if (height, width) != (other_height, other_width):
        faults.append(
            f"{names}: sizes differ, {width}×{height} and {other_width}×{other_height} px: resample one to the other"
        )
    if x.sizes["T"] != y.sizes["T"]:
        faults.append(
            f"{names}: lengths differ, {count(x, 'T')} and {count(y, 'T')}: cut one, so that frames belong together"
        )
    if planes.keeps_depth and x.sizes["Z"] != y.sizes["Z"]:
        faults.append(
            f'{names}: depths differ, {count(x, "Z")} and {count(y, "Z")}: project both with z = "max" or "mean", or '
            "choose a plane with z = 1"
        )
    raise_faults(faults)


def _check_pixels(x: Stack, y: Stack, planes: Planes) -> None:
    """Raises UserError for pixels of other sizes. A size that a file does not say is taken for that of the other."""
    for axis in "XYZ" if planes.keeps_depth else "XY":
        ours, theirs = (each.metadata.micrometres(axis) for each in (x, y))
        if ours and theirs and max(ours / theirs, theirs / ours) > MAX_PIXEL_RATIO:
            raise UserError(
                f"{x.path} and {y.path}: pixel sizes differ along {axis}, {ours:g} and {theirs:g} µm: resample one to "
                "the other"
            )


def _format_kind(kind: _Kind) -> str:
    return f"{kind[2]} of {kind[0]} with {kind[3]} of {kind[1]}"


def _warn_of_pixels(facts: Sequence[_Facts]) -> None:
    """Warn if the pixels of pairs differ in size along an axis: a network learns sizes in px."""
    for axis in facts[0].pixel if facts else ():
        sizes = {each.x.path: size for each in facts if (size := each.pixel[axis])}
        if others := find_other_pixels(sizes):
            ours, theirs = (f"{sizes[path]:.4g}" for path in others)
            warnings.warn(
                f"{others[0]} and {others[1]}: pixels differ in size along {axis}, {ours} and {theirs} µm: resample "
                "all pairs to one size",
                stacklevel=4,
            )
            return


def find_blocks(
    pairs: Mapping[str, Sequence[StackPair]], pattern: str | None
) -> dict[str, tuple[str, list[StackPair]]]:
    """{block: (its sub-folder or "", its pairs)}. Raises UserError for a pattern that does not fit the names."""
    if pattern is None:
        return {pair.id: (sub, [pair]) for sub, of_sub in pairs.items() for pair in of_sub}
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f'block = "{pattern}": is no regular expression ({error})') from None
    blocks: dict[str, tuple[str, list[StackPair]]] = {}
    faults = []
    for sub, of_sub in pairs.items():
        for pair in of_sub:
            match = compiled.search(pair.id.removeprefix(f"{sub}-"))
            name = match and (match[1] if compiled.groups else match[0])
            if not name:
                faults.append(f'{pair.x}: block = "{pattern}" finds nothing in its name')
                continue
            of_block = blocks.setdefault(name, (sub, []))
            if of_block[0] != sub:
                faults.append(f"{pair.x}: its block {name} is in {of_block[0]}/ too: move it to one of them")
            of_block[1].append(pair)
    raise_faults(faults)
    return blocks


def file_states(pair: StackPair) -> list[Any]:
    """What changes when a file of the pair does."""
    return [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in pair.files]
