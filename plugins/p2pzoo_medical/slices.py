"""Which slices of a pair of volumes are used, and the windows of their values."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from p2pzoo.utils.errors import UserError
from p2pzoo_medical.body import Body
from p2pzoo_medical.copies import recall, remember
from p2pzoo_medical.units import AxisName
from p2pzoo_medical.volume import Volume

PERCENTILES = (0.1, 99.9)  # of "percentiles": a few outliers do not set the window, and 0.2% of the values are clipped
MAX_SLICES_OF_WINDOWS = 64  # evenly spread over the training slices: 4 million values of slices of 256 × 256

Limits = tuple[float, float]


@dataclass(frozen=True, eq=False)
class VolumePair:
    """A pair of volumes with the same voxels.

    id     of the patient and the pair, without a name: "patient-03", or "patient-03-2" for a second pair
    block  of the patient: "patient-03"
    """

    id: str
    block: str
    x: Volume
    y: Volume
    body: Body | None


def find_slices(pair: VolumePair, axis: AxisName) -> list[int]:
    """The slices with something to translate: with body, or without a mask those in which x and y have two values.

    Remembered in the cache until the files change. Raises UserError for an empty mask.
    """
    key = ["slices", axis, pair.x.state, pair.y.state, pair.body.state if pair.body else None]
    known = recall(key)
    if known is None:
        known = {"slices": [index for index in range(pair.x.slice_count(axis)) if _is_used(pair, axis, index)]}
        remember(key, known)
    if pair.body and not known["slices"]:
        raise UserError(f"{pair.body.volume.path}: the body mask is empty: make it again, or move the pair away")
    return [int(index) for index in known["slices"]]


def _is_used(pair: VolumePair, axis: AxisName, index: int) -> bool:
    if pair.body:
        return bool(pair.body.read_slice(axis, index).any())
    return all(_has_two_values(volume.read_slice(axis, index)) for volume in (pair.x, pair.y))


def _has_two_values(image: np.ndarray) -> bool:
    finite = image[np.isfinite(image)]
    return bool(finite.size and finite.min() < finite.max())


def find_windows(
    slices: Sequence[tuple[VolumePair, int]], axis: AxisName, sides: Sequence[str]
) -> Mapping[str, Limits]:
    """{"x" or "y": the percentiles of the finite values in these slices}, remembered until the files change.

    Raises UserError if there is no finite value.
    """
    if len(slices) > MAX_SLICES_OF_WINDOWS:
        slices = [slices[i * len(slices) // MAX_SLICES_OF_WINDOWS] for i in range(MAX_SLICES_OF_WINDOWS)]
    states = [[pair.x.state, pair.y.state, index] for pair, index in slices]
    key = ["windows", axis, [*sides], [*PERCENTILES], states]
    known = recall(key)
    if known is None:
        known = {}
        for side in sides:
            volumes = [(pair.x if side == "x" else pair.y, index) for pair, index in slices]
            known[side] = _limits([volume.read_slice(axis, index) for volume, index in volumes], side)
        remember(key, known)
    return {side: (float(known[side][0]), float(known[side][1])) for side in sides}


def _limits(images: Sequence[np.ndarray], side: str) -> Limits:
    values = np.concatenate([image[np.isfinite(image)] for image in images])
    if not values.size:
        raise UserError(f"{side}_window: the training slices have no finite value: give [low, high]")
    low, high = (float(limit) for limit in np.percentile(values.astype(np.float64), PERCENTILES))
    if values.dtype.kind in "iu":
        low, high = float(np.floor(low)), float(np.ceil(high))
    if low >= high:
        warnings.warn(f"{side}: the training slices have one value, {low:g}", stacklevel=4)
        high = low + 1
    return low, high
