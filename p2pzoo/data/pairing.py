"""Finds pairs of image files in folders. No file is changed.

two folders     inputs/001.jpg + targets/001.png: paired by their name without suffix
side by side    001.png: A is its left half, B its right half (as in the archives of the pix2pix paper)

Either layout may have the sub-folders train/, val/ and test/. Imports no torch.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from p2pzoo.images.io import IMAGE_SUFFIXES, ImageHeader, find_images, inspect_image
from p2pzoo.plugin.batch import Split
from p2pzoo.utils.errors import MAX_NAMED_FILES, UserError, raise_faults, summarize_fault

SPLITS: tuple[Split, ...] = ("train", "val", "test")
Files = tuple[Path, ...]  # the files of one pair: one of each folder
ImageShape = tuple[int, int, int]  # height, width, channels
FaultReporter = Callable[[Sequence[str]], None]  # takes faults, and raises or collects them
HeaderReader = Callable[[Path], ImageHeader]


def find_pairs(
    *folders: Path, report: FaultReporter | None = None, nested: bool = False
) -> dict[str, dict[str, Files]]:
    """{sub-folder: {stem: its file in each of the folders}}, sorted by name.

    The sub-folders are train, val and test where they exist, or "" where the folders themselves have the images. Other
    folders in them, hidden files and files that are no images are ignored. No file is opened.

    report  gets the faults of single files, which are then left out: shared stems, missing partners. Default: raise
    nested  whether to search folders inside too, at any depth: the stem of a/b/001.jpg is then "a-b-001"

    Raises UserError where a folder is missing, unreadable, empty or nested in another way, where files of one folder
    share a stem, and where a file has no partner. The last two go to `report` instead, if it is given.
    """
    try:
        _refuse_missing(folders)
        subs = _sub_folders(folders)
        files_by_sub = {sub: [find_images(folder / sub, nested=nested) for folder in folders] for sub in subs}
        if faults := [
            _no_images(folder / sub, root=not sub)
            for sub, lists in files_by_sub.items()
            for folder, files in zip(folders, lists, strict=True)
            if not files
        ]:
            raise UserError(*faults)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None

    faults = []
    stems: dict[str, list[dict[str, Path]]] = {}
    for sub, lists in files_by_sub.items():
        stems[sub] = []
        for folder, files in zip((folder / sub for folder in folders), lists, strict=True):
            stemmed = [(stem_of(file, folder), file) for file in files]
            stems[sub].append(dict(stemmed))
            faults += filter(None, [_shared_stems(stemmed, folder)])
    for sub, (first, *others) in stems.items():
        for other, folder in zip(others, folders[1:], strict=True):
            faults += _missing_partners(first, other, folders[0] / sub, folder / sub)
    (report or raise_faults)(faults)
    common = {
        sub: [stem for stem in folders_files[0] if all(stem in files for files in folders_files)]
        for sub, folders_files in stems.items()
    }
    return {sub: {stem: tuple(files[stem] for files in stems[sub]) for stem in common[sub]} for sub in stems}


def stem_of(file: Path, folder: Path | None = None) -> str:
    """The file's name without suffix, after the names of the folders between `folder` and the file.

    Accents are normalized (NFC), because file systems encode them in two ways.

    >>> stem_of(Path("photos/a/b/001.jpg"), Path("photos"))
    'a-b-001'
    """
    parents = file.relative_to(folder).parts[:-1] if folder else ()
    return unicodedata.normalize("NFC", "-".join([*parents, file.stem]))


def read_headers(files: Iterable[Path], report: FaultReporter | None = None) -> dict[Path, ImageHeader]:
    """The header of every image file, without decoding its pixels. Raises UserError that names unusable files.

    report  gets their faults instead of raising, and the files are left out
    """
    headers = inspect_files(((file, inspect_image) for file in files), report)
    return {file: header for (file, _), header in headers.items()}


def inspect_files(
    files: Iterable[tuple[Path, HeaderReader]], report: FaultReporter | None = None
) -> dict[tuple[Path, HeaderReader], ImageHeader]:
    """The headers of files that are read by different functions. As `read_headers`."""
    headers, broken = {}, []
    for file, read_one in dict.fromkeys(files):
        try:
            headers[file, read_one] = read_one(file)
        except UserError as error:
            broken.append(str(error))
    (report or raise_faults)(summarize_fault(f"{count_images(broken)} cannot be used:", broken))
    return headers


def format_size(height: int, width: int) -> str:
    """A size as image viewers show it, width first.

    >>> format_size(height=480, width=640)
    '640×480 px'
    """
    return f"{width}×{height} px"


def halves(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, 2W, C) -> copies of the left and the right half, each (H, W, C)."""
    middle = image.shape[1] // 2
    return image[:, :middle].copy(), image[:, middle:].copy()


def odd_widths(shapes: Mapping[Path, ImageShape]) -> list[str]:
    """A fault that names the images with an odd width, which have no two equal halves; else empty."""
    odd = (f"{file} is {format_size(*shape[:2])}" for file, shape in shapes.items() if shape[1] % 2)
    return summarize_fault("images with A and B side by side must have an even width:", odd)


# --- checks ----------------------------------------------------------------------------------------------------


def _refuse_missing(folders: Sequence[Path]) -> None:
    def fault(folder: Path) -> str:
        if folder.exists():
            return f"{folder}: is a file; a folder of images is expected"
        searched = "" if folder.is_absolute() else f" (looked for in {Path.cwd()})"
        return f"{folder}: no such folder{searched}"

    raise_faults([fault(folder) for folder in folders if not folder.is_dir()])


def _sub_folders(folders: Sequence[Path]) -> list[str]:
    """Which of train, val and test the folders have, or [""]."""
    subs: dict[Path, list[str]] = {folder: [name for name in SPLITS if (folder / name).is_dir()] for folder in folders}
    first = subs[folders[0]]
    if any(names != first for names in subs.values()):
        listing = ", ".join(f"{folder} has {_join_folders(names) or 'none'}" for folder, names in subs.items())
        raise UserError(f"{listing}: both folders must have the same of train/, val/ and test/, or neither any")
    if not first:
        return [""]
    raise_faults(
        [
            f"{folder}: {count_images(images)} next to {_join_folders(first)} would be in no split: "
            "move them in, or away"
            for folder in folders
            if (images := find_images(folder))
        ]
    )
    return first


def _no_images(folder: Path, *, root: bool) -> str:
    """The fault of a folder without images: what it contains instead."""
    subs = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    counts = {path: len(find_images(path)) for path in subs}
    splits = {path: [name for name in SPLITS if (path / name).is_dir()] for path in subs}
    contents = [f"{path.name}/ with {_join_folders(names)}" for path, names in splits.items() if names]
    contents += [f"{path.name}/ with {count} image{'s' * (count != 1)}" for path, count in counts.items() if count]
    if contents:
        expected = "images, or train/, val/ and test/," if root else "images"
        num_more = len(contents) - MAX_NAMED_FILES
        listing = "; ".join(contents[:MAX_NAMED_FILES]) + (f" and {num_more} more" if num_more > 0 else "")
        return f"{folder}: expected {expected} in this folder itself, found {listing}: give the folder that has them"
    files = [path.name for path in sorted(folder.iterdir()) if path.is_file()]
    more = ", ..." * (len(files) > MAX_NAMED_FILES)
    listing = f"found {', '.join(files[:MAX_NAMED_FILES])}{more}" if files else "it is empty"
    return f"{folder}: expected images ({', '.join(suffix[1:] for suffix in IMAGE_SUFFIXES)}), {listing}"


def _shared_stems(files: Sequence[tuple[str, Path]], folder: Path) -> str:
    by_stem: dict[str, list[str]] = {}
    for stem, file in files:
        by_stem.setdefault(stem, []).append(str(file.relative_to(folder)))
    shared = [" and ".join(names) for names in by_stem.values() if len(names) > 1]
    what = f"{folder}: files are paired by their name without suffix, and some have the same:"
    return "".join(summarize_fault(what, shared))


def _missing_partners(a: Mapping[str, Path], b: Mapping[str, Path], folder_a: Path, folder_b: Path) -> list[str]:
    """Faults that name the files of each folder without a partner in the other."""
    faults = []
    for mine, theirs, here, there in ((a, b, folder_a, folder_b), (b, a, folder_b, folder_a)):
        unpaired = [file.name for stem, file in mine.items() if stem not in theirs]
        what = f"{here}: {len(unpaired)} of {count_images(mine)} without a partner of the same name in {there}:"
        faults += summarize_fault(what, unpaired)
    return faults


def count_images(images: Iterable[object]) -> str:
    count = len(list(images))
    return f"{count} image{'s' * (count != 1)}"


def _join_folders(names: Sequence[str]) -> str:
    return ", ".join(f"{name}/" for name in names)
