"""Finds pairs of image files in folders. No file is changed.

two folders     inputs/001.jpg + targets/001.png: paired by their name without suffix
side by side    001.png: A is its left half, B its right half (as in the archives of the pix2pix paper)

Either layout may have the sub-folders train/, val/ and test/. Imports no torch.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from p2pzoo.data.partner_names import suggest_names
from p2pzoo.images.find_images import describe_other_files, find_images
from p2pzoo.images.io import IMAGE_SUFFIXES, ImageHeader, inspect_image
from p2pzoo.plugin.batch import Split
from p2pzoo.utils.errors import MAX_NAMED_FILES, Advice, UserError, raise_faults, summarize_fault
from p2pzoo.utils.plurals import format_count

SPLITS: tuple[Split, ...] = ("train", "val", "test")
Files = tuple[Path, ...]  # the files of one pair: one of each folder
ImageShape = tuple[int, int, int]  # height, width, channels
FaultReporter = Callable[[Sequence[str]], None]  # takes faults, and raises or collects them
HeaderReader = Callable[[Path], ImageHeader]


def find_pairs(
    *folders: Path,
    report: FaultReporter | None = None,
    nested: bool = False,
    suffixes: tuple[str, str] | None = None,
) -> dict[str, dict[str, Files]]:
    """{sub-folder: {stem: its file in each of the folders}}, sorted by name.

    The sub-folders are train, val and test where they exist, or "" where the folders themselves have the images. Other
    folders in them and hidden files are ignored; a warning counts the files that are no images. No file is opened.

    report    gets the faults of single files, which are then left out: shared stems, missing partners. Default: raise
    nested    whether to search folders inside too, at any depth: the stem of a/b/001.jpg is then "a-b-001"
    suffixes  ends of the names in the first and the second folder, which a stem does not have: "_A" and "_B" for
              001_A.jpg and 001_B.png. With different ones, both may be one folder. None: the caller has no setting for
              them

    Raises UserError where a folder is missing, unreadable, empty or nested in another way, where the first two are one
    folder, where files of one folder share a stem, where no file has a partner, and where one has none. The last one
    goes to `report` instead, as do shared stems, if it is given.
    """
    endings = [*(suffixes or ("", "")), *[""] * len(folders)][: len(folders)]
    files_by_sub = _find_files(folders, endings, nested=nested)
    faults: list[str] = []
    stems: dict[str, list[dict[str, Path]]] = {}
    for sub, lists in files_by_sub.items():
        stems[sub] = []
        for root, files, ending in zip(folders, lists, endings, strict=True):
            stemmed, unknown = _cut_endings([(stem_of(file, root / sub), file) for file in files], ending)
            what = f'{root / sub}: {len(unknown)} of {count_images(files)} have a name that does not end in "{ending}":'
            faults += summarize_fault(what, unknown)
            faults += filter(None, [_shared_stems(stemmed, root / sub)])
            stems[sub].append(dict(stemmed))
    for sub, (first, *others) in stems.items():
        for other, folder in zip(others, folders[1:], strict=True):
            takes_suffixes = suffixes is not None and folder == folders[1]
            faults += find_missing_partners(first, other, folders[0] / sub, folder / sub, takes_suffixes=takes_suffixes)
    pairs = {
        sub: {stem: tuple(files[stem] for files in lists) for stem in lists[0] if all(stem in files for files in lists)}
        for sub, lists in stems.items()
    }
    (report if report and any(pairs.values()) else raise_faults)(faults)
    return pairs


def _find_files(folders: Sequence[Path], endings: Sequence[str], *, nested: bool) -> dict[str, list[list[Path]]]:
    """{sub-folder: the images in each of the folders}."""
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
        if line := describe_other_files((folder / sub for sub in subs for folder in folders), nested=nested):
            warnings.warn(line, stacklevel=3)
        for sub, lists in files_by_sub.items():
            if len(lists) > 1 and (folders[0] / sub).samefile(folders[1] / sub):
                lists[0], lists[1] = _share_folder(folders[0] / sub, folders[1] / sub, lists[0], endings)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None
    return files_by_sub


def _share_folder(a: Path, b: Path, files: list[Path], endings: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Divide the images of one folder by their endings. Raises UserError if the endings are equal."""
    ours, theirs = endings[:2]
    if ours == theirs:
        names = f"{a} and {b} are" if a != b else f"{a} is"
        advice = "give the folder of the other images, or the different endings of their names"
        both = " one folder," if a != b else ""
        raise UserError(f"{names}{both} both the input and the target: {advice}")

    def belongs_to(file: Path, ending: str, other: str) -> bool:
        stem = stem_of(file)
        return stem.endswith(ending) and not (len(other) > len(ending) and stem.endswith(other))

    known = [file for file in files if stem_of(file).endswith((ours, theirs))]
    if other := [file for file in files if file not in set(known)]:
        what = f'{a}: {count_images(other)} with a name that ends neither in "{ours}" nor in "{theirs}":'
        raise UserError(*summarize_fault(what, [file.name for file in other]))
    return [f for f in known if belongs_to(f, ours, theirs)], [f for f in known if belongs_to(f, theirs, ours)]


def _cut_endings(stemmed: Sequence[tuple[str, Path]], ending: str) -> tuple[list[tuple[str, Path]], list[str]]:
    """The stems without their ending and their files, and the names of the files that do not have the ending."""
    ending = unicodedata.normalize("NFC", ending)
    known = [(stem.removesuffix(ending), file) for stem, file in stemmed if stem.endswith(ending) and stem != ending]
    unknown = [file.name for stem, file in stemmed if not stem.endswith(ending) or stem == ending]
    return known, unknown


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
    (report or raise_faults)(summarize_fault(f"{count_images(broken)} cannot be used:", broken, of_each=""))
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
    contents += [f"{path.name}/ with {format_count(count, 'image')}" for path, count in counts.items() if count]
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


def find_missing_partners(
    a: Mapping[str, Path],
    b: Mapping[str, Path],
    folder_a: Path,
    folder_b: Path,
    *,
    takes_suffixes: bool,
    noun: str = "image",
) -> list[str]:
    """Faults that name the files of each folder without a partner in the other; first, why they may have none.

    a, b            {stem: its file} of the two folders
    takes_suffixes  as `suggest_names`
    noun            what a file is, for messages
    """
    faults = []
    for mine, theirs, here, there in ((a, b, folder_a, folder_b), (b, a, folder_b, folder_a)):
        unpaired = [file.name for stem, file in mine.items() if stem not in theirs]
        what = (
            f"{here}: {len(unpaired)} of {format_count(len(mine), noun)} without a partner of the same name in {there}:"
        )
        of_each = f"{here}: without a partner of the same name in {there}:"
        faults += summarize_fault(what, unpaired, of_each=of_each)
    advice = suggest_names(a.keys() - b.keys(), b.keys() - a.keys(), takes_suffixes=takes_suffixes)
    return [Advice(f"{folder_a} and {folder_b}: {advice}"), *faults] if advice else faults


def count_images(images: Iterable[object]) -> str:
    return format_count(len([*images]), "image")


def _join_folders(names: Sequence[str]) -> str:
    return ", ".join(f"{name}/" for name in names)
