"""The dataset `volumes`: slices of pairs of medical volumes, and patients as blocks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from p2pzoo.data.splits import Fractions, fallback_split
from p2pzoo.plugin import Pair, Split
from p2pzoo.utils.errors import UserError, collect_faults, raise_faults
from p2pzoo_medical.body import Body
from p2pzoo_medical.copies import digest
from p2pzoo_medical.files import Paths, find_volumes, open_volume
from p2pzoo_medical.patients import PatientRule, assign_patients, number_pairs
from p2pzoo_medical.slices import Limits, VolumePair, find_slices, find_windows
from p2pzoo_medical.units import NOTICE, AxisName, MaskRule, Units, VolumeLayout, common_dtype
from p2pzoo_medical.volume import Volume, geometry_fault, require, slice_spacing

Count = Annotated[int, Field(ge=1)]
Window = Literal["percentiles"] | Limits
CLASSES = ("outside", "body")
MAX_SPACING_RATIO = 1.05  # of voxels of two pairs, without a warning


class Volumes:
    """2D slices of pairs of volumes: NIfTI files or DICOM series, in any orientation. Memory holds single slices.

    A pair's block is its patient, who is in one split only. Blocks and ids are numbers, in the order of the patients'
    names: no name or PatientID leaves the dataset (`sources` says which files a block has). With masks, labels are 1
    ("body") and 0 ("outside"), so that `mae` with classes = ["body"] is the error in the units of y under the mask.
    Slices are shown as radiologists look at them: the head or the front up, the patient's right side at the left.

    inputs      folder of the volumes x: .nii or .nii.gz files, or folders of one DICOM series each; it may have train/,
                val/ and test/
    targets     folder of the volumes y of the same names, with the same voxels
    axis        "axial", "coronal" or "sagittal" slices, whatever the orientation of the files
    slices      odd number: x also has the neighbouring slices as channels (2.5D); at an end the last slice is repeated
    size        (H, W), or one side of a square: slices are cropped or padded to it around their centre. Default: all
                slices must have one size
    x_window    values of x that become -1 and 1: [low, high], after DICOM's or NIfTI's rescale (Hounsfield units of a
                CT), or "percentiles": 0.1% and 99.9% of the training slices. Values beyond are clipped
    y_window    likewise of y
    patient     regular expression: what it finds (its first group) in DICOM's PatientID, else in the file name, is the
                patient. Default: the whole PatientID or name
    masks       folder of body masks of the same names: volumes that are not 0 in the body
    mask        {above = T, of = "y" or "x"}: the body is the largest part above this value, its holes filled
    skip_empty  leave out slices without body; without masks, those in which x or y has only one value
    max_pairs   maximum number of slices in each split, evenly spread
    fractions   fractions of train, val and test, in patients, where no sub-folders define the splits
    split_seed  seed of the random assignment of patients to splits

    Raises UserError with a line for each pair that does not fit; ValueError for parameters that do not.
    """

    picture_note = (
        "Black and white are the ends of x_window and y_window. With slices of 3 or more, the first three slices of x "
        "are shown as red, green and blue: grey where they are alike."
    )
    next_command = "translate-volume RUN VOLUME.nii.gz -o OUT.nii.gz"
    licence = f"unknown: state here what may be done with your data, and with a model trained on it. {NOTICE}"

    def __init__(
        self,
        split: Split,
        *,
        inputs: Path,
        targets: Path,
        axis: AxisName = "axial",
        slices: Count = 1,
        size: Count | tuple[Count, Count] | None = None,
        x_window: Window = "percentiles",
        y_window: Window = "percentiles",
        patient: str | None = None,
        masks: Path | None = None,
        mask: MaskRule | None = None,
        skip_empty: bool = True,
        max_pairs: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
    ) -> None:
        require("nibabel", "the dataset 'volumes'")
        if slices % 2 == 0:
            raise ValueError(f"slices = {slices}: give an odd number, the slice itself is in the middle")
        if masks is not None and mask is not None:
            raise ValueError("masks and mask are two ways to give body masks: remove one")
        for name, window in (("x_window", x_window), ("y_window", y_window)):
            _check_window(name, window)
        self._axis, self._slices = axis, slices
        folders = (Path(inputs), Path(targets), *([] if masks is None else [Path(masks)]))
        pairs, keys, self._size = _open_pairs(folders, PatientRule(patient), mask, axis, size)
        splits = assign_patients(keys, str(inputs), fractions, split_seed)
        used = _choose_slices(pairs, axis, skip_empty=skip_empty)

        def slices_of(blocks: Iterable[str]) -> list[tuple[VolumePair, int]]:
            wanted = set(blocks)
            return [(pair, index) for pair in pairs if keys[pair.id][1] in wanted for index in used[pair.id]]

        every = slices_of(fallback_split(splits, split, str(inputs)))
        if not every:
            raise UserError(f"{inputs}: no slice of {split} has something to show: set skip_empty = false")
        count = min(len(every), max_pairs or len(every))
        self._pairs = [every[i * len(every) // count] for i in range(count)]
        self.blocks = [pair.block for pair, _ in self._pairs]
        self.sources: dict[str, list[tuple[Path, Path]]] = {}
        for pair in pairs:
            self.sources.setdefault(pair.block, []).append((pair.x.path, pair.y.path))
        self.x_units, self.y_units = _find_units(pairs, slices_of(splits["train"]), axis, (x_window, y_window))
        self.x_range, self.y_range = self.x_units.window, self.y_units.window
        has_masks = masks is not None or mask is not None
        self.classes = CLASSES if has_masks else None
        self.palette = ((0, 0, 0), (255, 255, 255)) if has_masks else None
        self.unscored = ("outside",) if has_masks else ()
        self.file_layout = _describe_layout(pairs, axis, slices, (self.x_units, self.y_units), mask)
        versions = [[pair.id, pair.x.version, pair.y.version, pair.body and pair.body.version] for pair in pairs]
        self.fingerprint = digest(versions)[:12]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        pair, number = self._pairs[index]
        channels = read_channels(pair.x, self._axis, number, self._slices)
        x = np.stack([self.x_units.encode(channel) for channel in channels], axis=-1)
        y = self.y_units.encode(pair.y.read_slice(self._axis, number))[..., None]
        labels = pair.body.read_slice(self._axis, number).astype(np.uint8) if pair.body else None
        return Pair(
            f"{pair.id}-{self._axis}-{number:03d}",
            fit(x, self._size, self.x_range[0]),
            fit(y, self._size, self.y_range[0]),
            labels=None if labels is None else fit(labels, self._size, 0),
            block=pair.block,
        )


def read_channels(volume: Volume, axis: AxisName, index: int, slices: int) -> list[np.ndarray]:
    """Slice `index` of a volume between its neighbours, `slices` in all, each (H, W). Ends are repeated."""
    last = volume.slice_count(axis) - 1
    half = slices // 2
    return [volume.read_slice(axis, min(max(index + at, 0), last)) for at in range(-half, half + 1)]


def fit(image: np.ndarray, size: tuple[int, int], fill: float) -> np.ndarray:
    """(H, W) or (H, W, C) cropped or padded to `size` around its centre.

    >>> fit(np.ones((1, 4)), (3, 2), 0).tolist()
    [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    """
    if image.shape[:2] == size:
        return image
    result = np.full((*size, *image.shape[2:]), fill, image.dtype)
    source, target = [], []
    for length, wanted in zip(image.shape[:2], size, strict=True):
        common = min(length, wanted)
        first, into = (length - common) // 2, (wanted - common) // 2
        source.append(slice(first, first + common))
        target.append(slice(into, into + common))
    result[tuple(target)] = image[tuple(source)]
    return result


def _choose_slices(pairs: Sequence[VolumePair], axis: AxisName, *, skip_empty: bool) -> dict[str, list[int]]:
    """{id of a pair: its slices}. Raises UserError for empty masks, whichever slices are used, and damaged files."""
    faults: list[str] = []
    used = {}
    for pair in pairs:
        with collect_faults(faults):
            found = find_slices(pair, axis) if skip_empty or pair.body else []
            used[pair.id] = found if skip_empty else [*range(pair.x.slice_count(axis))]
    raise_faults(faults)
    return used


def _check_window(name: str, window: Window) -> None:
    if window != "percentiles" and not -math.inf < window[0] < window[1] < math.inf:
        raise UserError(f"{name} = [{window[0]:g}, {window[1]:g}]: the first number must be lower than the second")


def _open_pairs(
    folders: Sequence[Path],
    rule: PatientRule,
    mask: MaskRule | None,
    axis: AxisName,
    size: int | tuple[int, int] | None,
) -> tuple[list[VolumePair], dict[str, tuple[str, str]], tuple[int, int]]:
    """The pairs, sorted by patient; {id of a pair: (sub-folder, key of its patient)}; (H, W) of the slices.

    Raises UserError with all faults that need no voxels: of names, of headers, and of patients who are in two splits.
    """
    faults: list[str] = []
    opened: list[tuple[str, str, Volume, Volume, Body | None]] = []
    for sub, pairs in find_volumes(*folders, report=faults.extend).items():
        for name, paths in pairs.items():
            with collect_faults(faults):
                x, y, body = _open_pair(paths, mask)
                opened.append((rule.find(name, x, y), sub, x, y, body))
    faults += _find_split_patients(opened)
    chosen = (0, 0)
    with collect_faults(faults):
        chosen = _check_sizes([x for _, _, x, _, _ in opened], axis, size)
    raise_faults(faults)
    return *number_pairs(opened), chosen


def _find_split_patients(opened: Sequence[tuple[str, str, Volume, Volume, Body | None]]) -> list[str]:
    """Faults of patients who are in two splits."""
    faults = []
    places: dict[str, tuple[str, Path]] = {}
    for patient, sub, x, _, _ in opened:
        where, path = places.setdefault(patient, (sub, x.path))
        if where != sub:
            faults.append(
                f"{path} and {x.path}: one patient is in {where}/ and in {sub}/: move all volumes of a patient to one "
                "split"
            )
    return faults


def _open_pair(paths: Paths, mask: MaskRule | None) -> tuple[Volume, Volume, Body | None]:
    """x, y and the body mask. Raises UserError with all faults of files that cannot be used together."""
    faults: list[str] = []
    volumes: list[Volume] = []
    for path in paths:
        with collect_faults(faults):
            volumes.append(open_volume(path))
    raise_faults(faults)
    x, y, *masks = volumes
    raise_faults([*filter(None, [geometry_fault(x, other) for other in (y, *masks)])])
    if masks:
        return x, y, Body(masks[0], None)
    return x, y, None if mask is None else Body(x if mask.get("of") == "x" else y, mask["above"])


def _check_sizes(volumes: Sequence[Volume], axis: AxisName, wanted: int | tuple[int, int] | None) -> tuple[int, int]:
    """The (H, W) of the slices. Raises UserError if they differ and no size is given."""
    if not volumes:  # all have faults of their own
        return 0, 0
    spacings = {slice_spacing(volume, axis)[:2]: volume.path for volume in volumes}
    (first, one), (last, other) = min(spacings.items()), max(spacings.items())
    if max(b / a for a, b in zip(first, last, strict=True)) > MAX_SPACING_RATIO:
        ours, theirs = (" × ".join(f"{side:.3g}" for side in each) for each in (first, last))
        warnings.warn(
            f"{one} and {other}: pixels of {axis} slices differ, {ours} and {theirs} mm: resample all volumes to one",
            stacklevel=4,
        )
    if wanted is not None:
        return (wanted, wanted) if isinstance(wanted, int) else (wanted[0], wanted[1])
    sizes = {volume.slice_size(axis): volume.path for volume in volumes}
    if len(sizes) > 1:
        (a, one), (b, other) = [*sizes.items()][:2]
        raise UserError(
            f"{one} and {other}: {axis} slices have different sizes, {a[1]}×{a[0]} and {b[1]}×{b[0]} px: set size, "
            f"such as size = [{max(a[0], b[0])}, {max(a[1], b[1])}]"
        )
    return next(iter(sizes))


def _find_units(
    pairs: Sequence[VolumePair],
    training: Sequence[tuple[VolumePair, int]],
    axis: AxisName,
    windows: tuple[Window, Window],
) -> tuple[Units, Units]:
    chosen: dict[str, Any] = dict(zip("xy", windows, strict=True))
    measured = [side for side, window in chosen.items() if window == "percentiles"]
    chosen |= find_windows(training, axis, measured) if measured else {}
    described = []
    for side, volumes in (("x", [pair.x for pair in pairs]), ("y", [pair.y for pair in pairs])):
        modalities = {volume.modality for volume in volumes}
        modality = modalities.pop() if len(modalities) == 1 else None
        described.append(
            Units((float(chosen[side][0]), float(chosen[side][1])), common_dtype(v.dtype for v in volumes), modality)
        )
    return described[0], described[1]


def _describe_layout(
    pairs: Sequence[VolumePair], axis: AxisName, slices: int, units: tuple[Units, Units], mask: MaskRule | None
) -> VolumeLayout:
    spacing = np.median([slice_spacing(pair.x, axis) for pair in pairs], axis=0)
    rule = None if mask is None else {"above": float(mask["above"]), "of": mask.get("of", "y")}
    return VolumeLayout(
        volume={
            "axis": axis, "slices": slices, "x": units[0].as_json(), "y": units[1].as_json(),
            "spacing": [round(float(side), 6) for side in spacing], "mask": rule,
        }
    )  # fmt: skip
