"""A volume of any format: its place in the patient, and its slices, read from disk one by one."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from p2pzoo.utils.errors import UserError
from p2pzoo_medical.units import AxisName

AXES: dict[AxisName, int] = {"sagittal": 0, "coronal": 1, "axial": 2}  # of the canonical volume: to right, front, head
MAX_OPEN = 8  # volumes whose files are mapped at once; the operating system drops their pages when it needs memory
MAX_SHIFT = 0.05  # voxels between the corners of two volumes that count as equal: headers are written rounded
_MAX_SHEAR = 1e-3  # cosine between the axes of a volume that count as perpendicular


class RawData(Protocol):
    """Where the values of a volume are: an uncompressed file, or one that a copy is made of."""

    def place(self) -> tuple[Path, int]:
        """The file and the first byte of the values in it. Raises UserError."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume whose voxels are read when they are needed.

    path      its file, or the folder of its series
    shape     voxels along the axes i, j, k as stored; i changes first
    affine    (4, 4): voxel indices -> mm in the patient, to the right, to the front, to the head (RAS)
    dtype     of its values, after the rescale
    state     changes when its files do, or are moved; version: when they change
    raw       where its values are, with the dtype that they have there
    slope     value = slope × what is stored + intercept
    modality  DICOM's name of it, if it is from DICOM
    patient   DICOM's PatientID, None if it has none. It must stand in no message and in no file
    """

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    dtype: str
    state: str
    version: str
    raw: RawData
    raw_dtype: str
    slope: float = 1.0
    intercept: float = 0.0
    modality: str | None = None
    patient: str | None = field(default=None, repr=False)

    def stored(self) -> np.ndarray:
        """(i, j, k), a read-only map of the file, before slope and intercept."""
        path, offset = self.raw.place()
        return open_map(path, offset, self.raw_dtype, self.shape, self.state)

    def to_values(self, stored: np.ndarray) -> np.ndarray:
        """What is stored -> values, in memory."""
        if self.slope == 1 and self.intercept == 0:
            return np.array(stored, dtype=self.dtype)
        return (np.asarray(stored) * np.float64(self.slope) + self.intercept).astype(self.dtype)

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Voxels to the right, to the front and to the head."""
        across, front, head = (self.shape[axis] for axis in self.orientation.order)
        return across, front, head

    @property
    def canonical_affine(self) -> np.ndarray:
        """(4, 4): indices of the canonical volume -> mm."""
        return self.orientation.affine(self.affine, self.shape)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm from voxel to voxel to the right, to the front and to the head."""
        across, front, head = (float(side) for side in np.linalg.norm(self.canonical_affine[:3, :3], axis=0))
        return across, front, head

    @functools.cached_property
    def orientation(self) -> Orientation:
        return Orientation.of(self.affine)

    def slice_count(self, axis: AxisName) -> int:
        return self.canonical_shape[AXES[axis]]

    def slice_size(self, axis: AxisName) -> tuple[int, int]:
        """(H, W) of its slices."""
        across, down = (self.canonical_shape[number] for number in range(3) if number != AXES[axis])
        return down, across

    def read_slice(self, axis: AxisName, index: int) -> np.ndarray:
        """(H, W) values; see `slice_view`."""
        return self.to_values(slice_view(self.orientation.canonical(self.stored()), axis, index))


@functools.lru_cache(maxsize=MAX_OPEN)
def open_map(path: Path, offset: int, dtype: str, shape: tuple[int, int, int], state: str) -> np.ndarray:
    """A read-only map of (i, j, k) values in a file. state: another one maps the file again."""
    return np.memmap(path, dtype, "r", offset, shape, order="F")


@dataclass(frozen=True)
class Orientation:
    """How the axes of a volume become those to the right, to the front and to the head.

    order    the axis as stored, for each of them
    flipped  for each axis as stored: whether it runs to the left, to the back or to the feet
    """

    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    @classmethod
    def of(cls, affine: np.ndarray) -> Orientation:
        """The closest one: an oblique volume is not resampled.

        >>> Orientation.of(np.diag([-1.0, 1, 2, 1]))
        Orientation(order=(0, 1, 2), flipped=(True, False, False))
        """
        from nibabel.orientations import io_orientation

        axes = io_orientation(affine)  # for each stored axis: (canonical axis, 1 or -1)
        first, second, third = (int(axis) for axis in np.argsort(axes[:, 0]))
        right, front, head = (bool(sign < 0) for sign in axes[:, 1])
        return cls((first, second, third), (right, front, head))

    def canonical(self, stored: np.ndarray) -> np.ndarray:
        """A view of (i, j, k) with the axes to the right, to the front and to the head. Writing to it is possible."""
        flips = tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flipped)
        return stored[flips].transpose(self.order)

    def affine(self, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """The affine of the view that `canonical` makes."""
        to_stored = np.zeros((4, 4))
        to_stored[3, 3] = 1
        for axis, source in enumerate(self.order):
            to_stored[source, axis] = -1 if self.flipped[source] else 1
            to_stored[source, 3] = shape[source] - 1 if self.flipped[source] else 0
        return affine @ to_stored


def slice_view(canonical: np.ndarray, axis: AxisName, index: int) -> np.ndarray:
    """A view (H, W) of a canonical volume, as radiologists look at it.

    The head, in an axial slice the front, is up. The patient's right side, in a sagittal slice the front, is at the
    left. Slices are counted from the feet, from the back, or from the patient's left side.

    >>> volume = np.arange(8).reshape(2, 2, 2)
    >>> slice_view(volume, "axial", 0).tolist()
    [[6, 2], [4, 0]]
    """
    number = AXES[axis]
    return np.moveaxis(canonical, number, 0)[index].T[::-1, ::-1]


def slice_spacing(volume: Volume, axis: AxisName) -> tuple[float, float, float]:
    """mm from voxel to voxel down a slice, across it, and from slice to slice."""
    across, down = (volume.spacing[number] for number in range(3) if number != AXES[axis])
    return down, across, volume.spacing[AXES[axis]]


def check_affine(affine: np.ndarray, what: object) -> None:
    """Raises UserError for axes without length, or that are not perpendicular."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and (lengths > 0).all()):
        raise UserError(f"{what}: its affine gives voxels no size: set another qform or sform")
    axes = affine[:3, :3] / lengths
    shear = np.abs(axes.T @ axes - np.eye(3)).max()
    if shear > _MAX_SHEAR:
        angle = np.degrees(np.arcsin(min(shear, 1)))
        raise UserError(
            f"{what}: its affine is sheared, its axes are {angle:.1f}° off the right angle: resample it to a grid "
            "with right angles"
        )


def geometry_fault(x: Volume, y: Volume) -> str | None:
    """A line if two volumes do not have the same voxels, however each is stored."""
    names, advice = f"{x.path} and {y.path}", "resample one to the grid of the other"
    if x.canonical_shape != y.canonical_shape:
        ours, theirs = ("×".join(map(str, each.canonical_shape)) for each in (x, y))
        return f"{names}: shapes differ, {ours} and {theirs} voxels (right, front, head): {advice}"
    if not np.allclose(x.spacing, y.spacing, rtol=1e-3, atol=0):
        ours, theirs = (" × ".join(f"{side:.4g}" for side in each.spacing) for each in (x, y))
        return f"{names}: voxels differ, {ours} and {theirs} mm (right, front, head): {advice}"
    corners = np.array([[*np.unravel_index(number, (2, 2, 2)), 1] for number in range(8)], float).T
    corners[:3] *= np.array(x.canonical_shape)[:, None] - 1
    shift = np.abs(np.linalg.solve(x.canonical_affine, y.canonical_affine @ corners) - corners).max()
    if shift > MAX_SHIFT:
        return f"{names}: affines differ, by up to {shift:.3g} voxels: {advice}"
    return None


def require(module: str, what: str) -> Any:
    """The module nibabel or pydicom. what: what needs it, for the message. Raises UserError if it is not installed."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{what} needs {module}: pip install 'p2pzoo[medical]'") from None
