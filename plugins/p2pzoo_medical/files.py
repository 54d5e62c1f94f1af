"""Finds pairs of volumes in folders, and opens volumes of either format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from p2pzoo.data.pairing import SPLITS, FaultReporter, find_missing_partners
from p2pzoo.utils.errors import UserError, collect_faults, raise_faults
from p2pzoo_medical.dicom import find_dicom_files, open_series
from p2pzoo_medical.nifti import nifti_stem, open_nifti
from p2pzoo_medical.volume import Volume

Paths = tuple[Path, ...]  # of x, of y, and of the mask if there are masks


def open_volume(path: Path) -> Volume:
    """A .nii or .nii.gz file, or the folder of a DICOM series. Raises UserError."""
    if path.is_dir():
        return open_series(path)
    if path.is_file() and nifti_stem(path) is None:
        raise UserError(f"{path}: is no volume: give a .nii or .nii.gz file, or the folder of a DICOM series")
    return open_nifti(path)


def find_volumes(*folders: Path, report: FaultReporter = raise_faults) -> dict[str, dict[str, Paths]]:
    """{"train", … or "" without these sub-folders: {name: its volume in each of the folders}}, sorted by name.

    A volume is a .nii or .nii.gz file, or a folder of DICOM files.

    report  gets the faults of volumes without a partner, which are then left out

    Raises UserError for folders that are missing, empty or nested in another way, and where no volume has a partner.
    """
    raise_faults([f"{folder}: no such folder" for folder in folders if not folder.is_dir()])
    try:
        subs = [[name for name in SPLITS if (folder / name).is_dir()] for folder in folders]
        if any(names != subs[0] for names in subs):
            listing = ", ".join(
                f"{folder} has {', '.join(names) or 'none'}" for folder, names in zip(folders, subs, strict=True)
            )
            raise UserError(f"{listing}: all folders must have the same of train/, val/ and test/, or none any")
        found = _list_all([*folders], subs[0] or [""])
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None
    faults: list[str] = []
    for sub, (first, *others) in found.items():
        for folder, other in zip(folders[1:], others, strict=True):
            faults += find_missing_partners(
                first, other, folders[0] / sub, folder / sub, takes_suffixes=False, noun="volume"
            )
    pairs = {
        sub: {name: tuple(each[name] for each in lists) for name in lists[0] if all(name in each for each in lists)}
        for sub, lists in found.items()
    }
    (report if any(pairs.values()) else raise_faults)(faults)
    return pairs


def _list_all(folders: Sequence[Path], subs: Sequence[str]) -> dict[str, list[dict[str, Path]]]:
    """{sub-folder: the volumes in each of the folders}. Raises UserError with the faults of all folders."""
    faults: list[str] = []
    found: dict[str, list[dict[str, Path]]] = {sub: [] for sub in subs}
    for sub in subs:
        for folder in folders:
            with collect_faults(faults):
                found[sub].append(_list_volumes(folder / sub))
    raise_faults(faults)
    return found


def _list_volumes(folder: Path) -> dict[str, Path]:
    """{name: path}, sorted. Raises UserError if there are none, or two of one name."""
    volumes: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = None
        if not path.name.startswith("."):
            name = nifti_stem(path) if path.is_file() else path.name if find_dicom_files(path) else None
        if name is None:
            continue
        if name in volumes:
            raise UserError(f"{folder}: {volumes[name].name} and {path.name} have one name: move one of them away")
        volumes[name] = path
    if not volumes:
        files = " (it has DICOM files itself: give each series a folder in it)" if find_dicom_files(folder) else ""
        raise UserError(f"{folder}: has no .nii or .nii.gz files and no folders of DICOM files{files}")
    return volumes
