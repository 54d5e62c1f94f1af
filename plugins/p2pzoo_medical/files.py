"""Finds pairs of volumes in folders, and opens volumes of either format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from p2pzoo.data.pairing import SPLITS
from p2pzoo.data.partner_names import suggest_names
from p2pzoo.utils.errors import UserError, raise_faults, summarize_fault
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


def find_volumes(*folders: Path) -> dict[str, dict[str, Paths]]:
    """{"train", … or "" without these sub-folders: {name: its volume in each of the folders}}, sorted by name.

    A volume is a .nii or .nii.gz file, or a folder of DICOM files. Raises UserError for folders that are missing, empty
    or nested in another way, and for volumes without a partner.
    """
    raise_faults([f"{folder}: no such folder" for folder in folders if not folder.is_dir()])
    try:
        subs = [[name for name in SPLITS if (folder / name).is_dir()] for folder in folders]
        if any(names != subs[0] for names in subs):
            listing = ", ".join(
                f"{folder} has {', '.join(names) or 'none'}" for folder, names in zip(folders, subs, strict=True)
            )
            raise UserError(f"{listing}: all folders must have the same of train/, val/ and test/, or none any")
        found = {sub: [_list_volumes(folder / sub) for folder in folders] for sub in subs[0] or [""]}
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None
    faults: list[str] = []
    for sub, (first, *others) in found.items():
        for folder, other in zip(folders[1:], others, strict=True):
            faults += _missing_partners(folders[0] / sub, first, folder / sub, other)
    raise_faults(faults)
    return {sub: {name: tuple(each[name] for each in lists) for name in lists[0]} for sub, lists in found.items()}


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


def _missing_partners(here: Path, ours: Mapping[str, Path], there: Path, theirs: Mapping[str, Path]) -> list[str]:
    """Faults that name the volumes of each folder without a partner in the other."""
    advice = suggest_names(ours.keys() - theirs.keys(), theirs.keys() - ours.keys(), takes_suffixes=False)
    faults = []
    for a, mine, b, others in ((here, ours, there, theirs), (there, theirs, here, ours)):
        missing = [path.name for name, path in mine.items() if name not in others]
        faults += summarize_fault(f"{a}: {len(missing)} without a partner of the same name in {b}:", missing)
    return [f"{here} and {there}: {advice}", *faults] if faults and advice else faults
