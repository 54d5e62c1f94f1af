"""The dataset `scenes`: windows of pairs of georeferenced rasters of any size, and blocks of them as regions."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from pydantic import Field

from p2pzoo.data.pairing import FaultReporter, Files, find_pairs
from p2pzoo.data.splits import Fractions, Share, Splits, assign_splits, fallback_split
from p2pzoo.plugin import Pair, Split
from p2pzoo.utils.errors import UserError, collect_faults, raise_faults
from p2pzoo_geo.alike import ChosenBands, find_mixed_bands, find_other_pixels
from p2pzoo_geo.bands import Bands, Scale, SceneLayout, check_scale
from p2pzoo_geo.ground import PlacedScene, find_first_scenes, read_ground, warn_of_repeated_ground
from p2pzoo_geo.rasters import (
    Box,
    Resampled,
    Resampling,
    crs_name,
    file_states,
    format_scaling,
    grid_faults,
    open_pair,
    open_raster,
    pixel_in_units,
    pixel_size,
    read_scaling,
    read_units,
    require_rasterio,
    resample_faults,
    select_bands,
)
from p2pzoo_geo.windows import Grid, Reader, Scene, find_scales, find_windows, warn_of_edges

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

Count = Annotated[int, Field(ge=1)]
BandChoice = tuple[int | str, ...]
CLASSES = ("nodata", "valid")


class _Kind(NamedTuple):
    """What all pairs of rasters must have alike."""

    bands: str
    scaling: str  # the tags of scale and offset: equal values stand for equal quantities
    counts: tuple[int, ...]  # of bands


class _Facts(NamedTuple):
    """What is compared between pairs of rasters. pixel: as `pixel_in_units`."""

    kind: _Kind
    x: ChosenBands
    y: ChosenBands
    pixel: tuple[str, tuple[float, float]] | None


class Scenes:
    """Windows of pairs of rasters on one grid. Memory holds one window, and one block's mask while windows are chosen.

    A pair's labels are 1 ("valid") where both rasters have data and 0 ("nodata") elsewhere, so metrics can leave
    pixels out: `mae` with classes = ["valid"], `band-error` by itself. Where a raster has none, x and y both have the
    lower end of their scale. A pair's block is its region: a square of ground that is in one split only, also where
    several scenes on one grid show it, such as dates.

    inputs      folder of the rasters x, or one raster; folders may have train/, val/ and test/
    targets     folder of the rasters y of the same names (suffixes may differ), or one raster
    size        side of a window in px
    stride      px from one window to the next; default: `size`, so that windows do not overlap
    block       side of a block in px, at least `size`
    x_bands     numbers from 1, or descriptions, of the bands of x; default: all but opacity
    y_bands     likewise of y
    x_scale     values of x that become -1 and 1: [low, high], one such pair for each band, or "percentiles": 0.1% and
                99.9% of each band in training windows. Values beyond are clipped
    y_scale     likewise of y. With [low, high], or one band, metrics such as `mae` are in the band's units
    max_nodata  share of a window that may be without data in x or y; windows with more are left out
    resample    "x" or "y": bring this raster to the other's grid while reading; default: refuse other grids
    resampling  how: "nearest", "bilinear" (default), "cubic", "average" or "mode"
    max_pairs   maximum number of windows in each split, evenly spread
    fractions   fractions of train, val and test, in blocks, where no sub-folders define the splits
    split_seed  seed of the random assignment of blocks to splits

    Raises UserError with a line for each pair of rasters that do not fit; ValueError for sizes that do not.
    """

    classes = CLASSES
    palette = ((0, 0, 0), (255, 255, 255))
    unscored = ("nodata",)
    picture_note = (
        "Black and white are the ends of each band's scale (x_scale, y_scale). Of three or more bands the first three "
        "are shown as red, green and blue, of two the first as grey."
    )
    next_command = "translate-scene RUN SCENE.tif -o OUT.tif"

    def __init__(
        self,
        split: Split,
        *,
        inputs: Path,
        targets: Path,
        size: Count = 256,
        stride: Count | None = None,
        block: Count = 2048,
        x_bands: BandChoice | None = None,
        y_bands: BandChoice | None = None,
        x_scale: Scale = "percentiles",
        y_scale: Scale = "percentiles",
        max_nodata: Share = 0.0,
        resample: Resampled | None = None,
        resampling: Resampling | None = None,
        max_pairs: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
    ) -> None:
        require_rasterio("the dataset 'scenes'")
        if block < size:
            raise ValueError(f"block = {block} is smaller than a window, size = {size}")
        if resampling and not resample:
            raise ValueError(f'resampling = "{resampling}" needs resample = "x" or "y"')
        self._reader = Reader(resample, resampling or "bilinear")
        scenes = _open_scenes(Path(inputs), Path(targets), (x_bands, y_bands), self._reader, size)
        grid = Grid(size, stride or size, block)
        _warn_of_edges(scenes, grid, str(inputs))
        regions: dict[str, tuple[Scene, list[Box]]] = {}
        names: dict[str, list[str]] = {}
        damaged: list[str] = []
        for sub, of_sub in scenes.items():
            for scene in of_sub:
                with collect_faults(damaged):
                    found = find_windows(scene, grid, self._reader, max_nodata)
                    regions |= {name: (scene, boxes) for name, boxes in found.items()}
                    names.setdefault(sub, []).extend(found)
        raise_faults(damaged)
        if not regions:
            raise UserError(f"{inputs}: every window has more than {max_nodata:.0%} without data: raise max_nodata")
        firsts = _find_repeated_ground(scenes)
        blocks = {name: firsts[s.id] + name.removeprefix(s.id) for name, (s, _) in regions.items()}
        splits = _assign_blocks(names, blocks, regions, str(inputs), fractions, split_seed)

        def windows(of_split: Iterable[str]) -> list[tuple[str, Scene, Box]]:
            return [(blocks[name], regions[name][0], box) for name in of_split for box in regions[name][1]]

        pairs = windows(fallback_split(splits, split, str(inputs)))
        count = min(len(pairs), max_pairs or len(pairs))
        self._pairs = [pairs[i * len(pairs) // count] for i in range(count)]
        self.blocks = [name for name, _, _ in self._pairs]
        every = [scene for of_sub in scenes.values() for scene in of_sub]
        training = [(scene, box) for _, scene, box in windows(splits["train"])]
        bands = _describe_bands(every[0], training, self._reader, {"x": x_scale, "y": y_scale})
        self.x_bands, self.y_bands = bands
        self.x_range, self.y_range = self.x_bands.stored_range, self.y_bands.stored_range
        self.file_layout = _describe_layout(every[0], self._reader, *bands)
        self.fingerprint = _fingerprint(every, firsts)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        name, scene, box = self._pairs[index]
        x, y, valid = self._reader.read(scene, box)
        return Pair(
            f"{scene.id}-r{box.top}-c{box.left}",
            self.x_bands.encode(x, valid),
            self.y_bands.encode(y, valid),
            labels=valid.astype(np.uint8),
            block=name,
        )


def _find_scenes(inputs: Path, targets: Path, report: FaultReporter) -> dict[str, dict[str, Files]]:
    """{sub-folder or "": {stem: (file of x, file of y)}}. Raises UserError. report: as that of `find_pairs`."""
    if inputs.is_file() and targets.is_file():
        return {"": {inputs.stem: (inputs, targets)}}
    if inputs.is_file() or targets.is_file():
        file, folder = (inputs, targets) if inputs.is_file() else (targets, inputs)
        raise UserError(f"{file} is a file, and {folder} is none: give two folders of rasters, or two rasters")
    return find_pairs(inputs, targets, report=report)


def _open_scenes(
    inputs: Path,
    targets: Path,
    wanted: tuple[BandChoice | None, BandChoice | None],
    reader: Reader,
    size: int,
) -> dict[str, list[Scene]]:
    """{sub-folder or "": its scenes}. Raises UserError with the faults of all pairs of rasters."""
    faults: list[str] = []
    facts: list[_Facts] = []
    scenes: dict[str, list[Scene]] = {}
    for sub, pairs in _find_scenes(inputs, targets, faults.extend).items():
        for stem, (x, y) in pairs.items():
            with collect_faults(faults):
                scene, found = _open_scene(f"{sub}-{stem}" if sub else stem, x, y, wanted, reader, size)
                scenes.setdefault(sub, []).append(scene)
                facts.append(found)
    faults += _find_differences(facts, wanted)
    raise_faults(faults)
    _warn_of_pixels(facts)
    return scenes


def _find_differences(facts: Sequence[_Facts], wanted: tuple[BandChoice | None, BandChoice | None]) -> list[str]:
    """Faults of pairs of rasters that each can be used, and not together."""
    examples: dict[_Kind, Path] = {}
    for each in facts:
        examples.setdefault(each.kind, each.x.path)
    if len(examples) > 1:
        (first, one), (other, two) = [*examples.items()][:2]
        if first.bands != other.bands:
            advice = "choose them with x_bands and y_bands"
            if first.counts == other.counts:
                advice = "convert them to one dtype and unit (gdal_translate -ot)"
            return [
                f"{one} and {two}: bands differ, {first.bands} and {other.bands}: all pairs must have the same, so "
                f"{advice}"
            ]
        return [
            f"{one} and {two}: their tags of scale and offset differ, {first.scaling} and {other.scaling}, so "
            "equal values mean other things: bring all rasters to one scale (gdal_calc)"
        ]
    return [
        *find_mixed_bands([each.x for each in facts], "x", wanted[0]),
        *find_mixed_bands([each.y for each in facts], "y", wanted[1]),
    ]


def _warn_of_pixels(facts: Sequence[_Facts]) -> None:
    """Warn if the pixels of pairs differ in size: a network learns sizes in px."""
    known = {each.x.path: each.pixel for each in facts if each.pixel}
    for unit, side in itertools.product(("m", "°"), range(2)):
        sizes = {path: pixel[1][side] for path, pixel in known.items() if pixel[0] == unit}
        if others := find_other_pixels(sizes):
            ours, theirs = ("{:.4g} × {:.4g}".format(*known[path][1]) for path in others)
            warnings.warn(
                f"{others[0]} and {others[1]}: their pixels differ in size, {ours} and {theirs} {unit}: resample all "
                "pairs to one size (gdalwarp -tr)",
                stacklevel=4,
            )
            return


def _open_scene(
    id: str, x: Path, y: Path, wanted: tuple[BandChoice | None, BandChoice | None], reader: Reader, size: int
) -> tuple[Scene, _Facts]:
    """A scene, and what is compared with others. Raises UserError for rasters that do not fit."""
    faults: list[str] = []
    sides: list[tuple[DatasetReader, tuple[int, ...]]] = []
    with contextlib.ExitStack() as opened:
        for path, choice, name in ((x, wanted[0], "x_bands"), (y, wanted[1], "y_bands")):
            with collect_faults(faults):
                source = opened.enter_context(open_raster(path))
                sides.append((source, select_bands(source, choice, name)))
        raise_faults(faults)
        (x_source, x_bands), (y_source, y_bands) = sides
        faults += (resample_faults if reader.resample else grid_faults)(x_source, y_source)
        grid = y_source if reader.resample == "x" else x_source
        if min(grid.width, grid.height) < size:
            faults.append(
                f"{x}: is {grid.width}×{grid.height} px, smaller than a window of {size} px: make `size` smaller"
            )
        raise_faults(faults)
        kind = _Kind(
            " with ".join(f"{len(numbers)} of {source.dtypes[numbers[0] - 1]}" for source, numbers in sides),
            " with ".join(", ".join(map(format_scaling, read_scaling(*side))) for side in sides),
            (len(x_bands), len(y_bands)),
        )
        chosen = [
            ChosenBands(path, numbers, source.descriptions, read_units(source, numbers))
            for path, (source, numbers) in zip((x, y), sides, strict=True)
        ]
        facts = _Facts(kind, chosen[0], chosen[1], pixel_in_units(grid))
        states = (*file_states(x_source), *file_states(y_source))
        return Scene(id, x, y, x_bands, y_bands, (grid.height, grid.width), states, read_ground(grid)), facts


def _warn_of_edges(scenes: Mapping[str, Sequence[Scene]], grid: Grid, where: str) -> None:
    sizes = [scene.size for of_sub in scenes.values() for scene in of_sub]
    unreached = sum(grid.unreached(box) for size in sizes for box in grid.blocks(*size))
    total = sum(height * width for height, width in sizes)
    warn_of_edges(where, "blocks", unreached, total, "`block` and the sides of the scenes")


def _find_repeated_ground(scenes: Mapping[str, Sequence[Scene]]) -> dict[str, str]:
    """{id of a scene: id of the first one that shows its ground on its grid}; warns where splits can share ground."""
    placed = [PlacedScene(s.id, sub, s.x, s.ground) for sub, of_sub in scenes.items() for s in of_sub if s.ground]
    firsts = find_first_scenes(placed)
    warn_of_repeated_ground(placed, firsts)
    return {s.id: firsts.get(s.id, s.id) for of_sub in scenes.values() for s in of_sub}


def _assign_blocks(
    names: Mapping[str, Sequence[str]],
    blocks: Mapping[str, str],
    regions: Mapping[str, tuple[Scene, list[Box]]],
    where: str,
    fractions: Fractions,
    seed: int,
) -> Splits:
    """{split: {region: its files}}. Raises UserError where a split that should have blocks has none.

    names   {sub-folder or "": its regions}
    blocks  {region: the region whose name decides the split where no sub-folder does}: that of the first date
    """

    def files(name: str) -> Files:
        return regions[name][0].x, regions[name][0].y

    if "" in names:
        pairs = {"": {blocks[name]: files(name) for name in names[""]}}
    else:
        pairs = {sub: {name.removeprefix(f"{sub}-"): files(name) for name in of_sub} for sub, of_sub in names.items()}
    splits = assign_splits(pairs, where, fractions, seed, unit="block", remedy="make `block` smaller")
    if "" not in names:
        return splits
    return {s: {name: files(name) for name in names[""] if blocks[name] in chosen} for s, chosen in splits.items()}


def _describe_bands(
    scene: Scene, training: Sequence[tuple[Scene, Box]], reader: Reader, scales: Mapping[str, Scale]
) -> tuple[Bands, Bands]:
    """The bands of x and y with their scales. Raises UserError for scales that do not fit."""
    measured = [side for side, scale in scales.items() if scale == "percentiles"]
    limits = dict(find_scales(training, reader, measured)) if measured else {}
    described = []
    for side, path, numbers in (("x", scene.x, scene.x_bands), ("y", scene.y, scene.y_bands)):
        if side not in limits:
            limits[side] = check_scale(f"{side}_scale", scales[side], len(numbers))
        with open_raster(path) as source:
            names = tuple(source.descriptions[number - 1] for number in numbers)
            first = numbers[0] - 1
            tags = read_units(source, numbers), read_scaling(source, numbers)
            described.append(Bands(numbers, names, limits[side], source.dtypes[first], source.nodatavals[first], *tags))
    return described[0], described[1]


def _describe_layout(scene: Scene, reader: Reader, x_bands: Bands, y_bands: Bands) -> SceneLayout:
    with open_pair(scene.x, scene.y, reader.resample, reader.resampling) as (x, _):
        place = {"pixel": [*pixel_size(x)], "crs": crs_name(x)}
    return SceneLayout(scene={"x": x_bands.as_json(), "y": y_bands.as_json(), **place})


def _fingerprint(scenes: Sequence[Scene], firsts: Mapping[str, str]) -> str:
    """Changes with the names, sizes and dates of the files, not with the folder that they are in.

    firsts: as `find_first_scenes`. Repeated ground changes it too: earlier versions had it in other splits.
    """
    states: list[object] = [[scene.id, *(state[1:] for state in scene.states)] for scene in scenes]
    if repeated := {id: first for id, first in firsts.items() if id != first}:
        states.append(repeated)
    return hashlib.sha256(json.dumps(states).encode(errors="surrogateescape")).hexdigest()[:12]
