"""Where scenes lie: which show the same ground on one grid, and which overlap on different grids.

Several dates of a place must be in one split: its targets are nearly the same. Imports no torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from p2pzoo_geo.rasters import MAX_SHIFT, pixel_size

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_ADVICE = "bring all scenes to one grid and extent (gdalwarp -tr -te), or put those that overlap in one of train/, "


@dataclass(frozen=True)
class Ground:
    """The place of a raster.

    crs      as WKT; "" without one
    size     (H, W)
    corners  (x, y) of its corners in the CRS, in their order around it
    pixel    shorter side of a pixel in units of the CRS
    """

    crs: str
    size: tuple[int, int]
    corners: tuple[tuple[float, float], ...]
    pixel: float


class PlacedScene(NamedTuple):
    """A scene with a georeference. folder: train, val or test, or "" without sub-folders. path: for messages."""

    id: str
    folder: str
    path: Path
    ground: Ground


def read_ground(source: DatasetReader) -> Ground | None:
    """The place of a raster; None for pixels without a coordinate system, or without a place in it."""
    to_place = source.transform
    if source.crs is None or to_place.is_identity:
        return None
    places = ((0, 0), (source.width, 0), (source.width, source.height), (0, source.height))
    a, b, c, d, e, f = to_place[:6]
    corners = tuple((a * column + b * row + c, d * column + e * row + f) for column, row in places)
    crs = source.crs.to_wkt() if source.crs else ""
    return Ground(crs, (source.height, source.width), corners, min(pixel_size(source)))


def find_first_scenes(scenes: Sequence[PlacedScene]) -> dict[str, str]:
    """{id of a scene: id of the first scene, by name, that shows the same ground on the same grid}."""
    firsts: dict[str, str] = {}
    kinds: dict[tuple[str, tuple[int, int]], list[PlacedScene]] = {}
    for scene in sorted(scenes):
        kinds.setdefault((scene.ground.crs, scene.ground.size), []).append(scene)
    for of_kind in kinds.values():
        corners = np.array([scene.ground.corners for scene in of_kind])
        for number, scene in enumerate(of_kind):
            if scene.id not in firsts:
                shifts = np.abs(corners[number:] - corners[number]).max(axis=(1, 2))
                for same in np.flatnonzero(shifts <= MAX_SHIFT * scene.ground.pixel):
                    firsts.setdefault(of_kind[number + same].id, scene.id)
    return firsts


def warn_of_repeated_ground(scenes: Sequence[PlacedScene], firsts: dict[str, str]) -> None:
    """Warn of two scenes of which parts can be in different splits, although they show the same ground.

    firsts: as `find_first_scenes`.
    """
    known: dict[tuple[str, str], PlacedScene] = {}  # one scene of each ground and folder
    for scene in sorted(scenes):
        known.setdefault((firsts[scene.id], scene.folder), scene)
    by_ground = {first: scene for (first, _), scene in reversed(known.items())}
    for (first, folder), scene in known.items():
        other = by_ground[first]
        if other.folder != folder:
            warnings.warn(
                f"{other.path} and {scene.path}: show the same ground, in {other.folder}/ and {folder}/, so the test "
                "may be on land of the training: move both to one of them",
                stacklevel=4,
            )
            return
    for one, two in _overlapping([*known.values()]):
        if one.folder != two.folder or not one.folder:
            warnings.warn(
                f"{one.path} and {two.path}: show the same ground on different grids, so the test may be on land of "
                f"the training: {_ADVICE}val/ and test/",
                stacklevel=4,
            )
            return


def _overlapping(scenes: Sequence[PlacedScene]) -> Iterator[tuple[PlacedScene, PlacedScene]]:
    """Pairs of scenes that share more than a pixel's breadth of ground. Those without a CRS are compared apart."""
    for has_crs in (True, False):
        members = [scene for scene in scenes if bool(scene.ground.crs) == has_crs]
        if len(members) < 2:
            continue
        boxes = _bounding_boxes([scene.ground for scene in members])
        order = np.argsort(boxes[:, 0], kind="stable")
        members, boxes = [members[i] for i in order], boxes[order]
        for number, (_, low, right, high) in enumerate(boxes):
            rest = boxes[number + 1 :]
            near = (rest[:, 0] < right) & (rest[:, 1] < high) & (rest[:, 3] > low)  # false for NaN
            for offset in np.flatnonzero(near):
                one, two = sorted((members[number], members[number + 1 + offset]))
                if _share_ground(one.ground, two.ground):
                    yield one, two


def _bounding_boxes(grounds: Sequence[Ground]) -> np.ndarray:
    """(N, 4) left, low, right, high: in the CRS if all have one, else in degrees. NaN where there is no way to them."""
    from rasterio.warp import transform_bounds

    corners = np.array([ground.corners for ground in grounds])
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    if len({ground.crs for ground in grounds}) > 1:
        for number, ground in enumerate(grounds):
            try:
                boxes[number] = transform_bounds(ground.crs, "EPSG:4326", *boxes[number])
            except Exception:  # a local CRS; PROJ and GDAL raise errors of several types
                boxes[number] = np.nan
    return boxes


def _share_ground(one: Ground, two: Ground) -> bool:
    """Whether two rasters overlap by more than a pixel, by the separating axis theorem in the CRS of the first."""
    quads = [np.array(one.corners), np.array(two.corners)]
    if two.crs != one.crs:
        from rasterio.warp import transform

        try:
            quads[1] = np.array(transform(two.crs, one.crs, *quads[1].T)).T
        except Exception:  # as in `_bounding_boxes`
            return False
    for quad in quads:
        sides = np.roll(quad, -1, axis=0) - quad
        normals = np.stack([-sides[:, 1], sides[:, 0]], axis=1) / np.linalg.norm(sides, axis=1, keepdims=True)
        first, second = (each @ normals.T for each in quads)  # (corner, normal)
        depth = np.minimum(first.max(axis=0), second.max(axis=0)) - np.maximum(first.min(axis=0), second.min(axis=0))
        if not (depth > one.pixel).all():
            return False
    return True
