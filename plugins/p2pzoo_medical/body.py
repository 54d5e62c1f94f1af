"""Body masks: where a volume shows the patient, from a file or by a threshold."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from p2pzoo.utils.errors import UserError
from p2pzoo_medical.copies import cached_copy
from p2pzoo_medical.units import AxisName
from p2pzoo_medical.volume import Volume, open_map, slice_view

_ROWS = 32  # slices of a volume that are compared with the threshold at once


class Body:
    """The mask of one volume: where a mask volume is not 0, or where the largest part above a threshold is.

    volume  the mask, or the volume that is compared with the threshold
    above   the threshold, in the units of the volume; None: the volume is the mask

    By a threshold, the largest connected part counts (faces of voxels touch), so that the table is left out, and in
    each axial slice its holes are filled, such as lungs. It is found once, in memory of about six bytes for each voxel,
    and kept in the cache.
    """

    def __init__(self, volume: Volume, above: float | None) -> None:
        self.volume, self.above = volume, above

    @property
    def state(self) -> list[object]:
        """Changes when the mask does."""
        return ["body", self.volume.state, self.above]

    @property
    def version(self) -> list[object]:
        """As the state, but does not change when files are moved."""
        return [self.volume.version, self.above]

    def canonical(self) -> np.ndarray:
        """(right, front, head), 0 outside; read from disk when it is indexed."""
        if self.above is None:
            return self.volume.orientation.canonical(self.volume.stored())
        shape = self.volume.canonical_shape
        size = int(np.prod(shape, dtype=np.int64))
        path = cached_copy(self.state, size, f"the body mask of {self.volume.path}", self._write)
        return open_map(path, 0, "uint8", shape, str(path))

    def read_slice(self, axis: AxisName, index: int) -> np.ndarray:
        """(H, W) bool, as `slice_view`."""
        return np.asarray(slice_view(self.canonical(), axis, index)) != 0

    def _write(self, file: BinaryIO) -> None:
        assert self.above is not None
        file.write(find_body(self.volume, self.above).astype(np.uint8).tobytes(order="F"))


def find_body(volume: Volume, above: float) -> np.ndarray:
    """(right, front, head) bool: the largest connected part above the threshold, holes of axial slices filled.

    Raises UserError if there is none.
    """
    from scipy import ndimage

    canonical = volume.orientation.canonical(volume.stored())
    mask = np.empty(canonical.shape, bool)
    for first in range(0, canonical.shape[2], _ROWS):
        part = slice(first, first + _ROWS)
        mask[..., part] = volume.to_values(canonical[..., part]) > above
    parts, count = ndimage.label(mask)
    if count == 0:
        raise UserError(f"{volume.path}: no voxel is above {above:g}, so the body mask is empty: lower `above`")
    if count > 1:
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        mask = parts == sizes.argmax()
    for index in range(mask.shape[2]):
        mask[..., index] = ndimage.binary_fill_holes(mask[..., index])
    return mask
