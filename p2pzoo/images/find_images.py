"""Finds the image files of a folder, and counts the files of other kinds. Hidden files are ignored. No torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from p2pzoo.images.io import IMAGE_SUFFIXES

_HIDDEN_ON_WINDOWS = ("thumbs.db", "desktop.ini")
_MAX_NAMED = 6


def find_images(folder: Path, *, nested: bool = False) -> list[Path]:
    """The image files of a folder, sorted by name, without hidden ones. nested: those of folders inside, too."""
    return sorted(file for file in _list_files(folder, nested=nested) if file.suffix.lower() in IMAGE_SUFFIXES)


def describe_other_files(folders: Iterable[Path], *, nested: bool = False) -> str | None:
    """A line that counts the files that `find_images` leaves out, by suffix. None if there are none.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("1.gif", "2.GIF", "scan.nii.gz", ".hidden.gif", "photo.png"):
    ...         (Path(folder) / name).touch()
    ...     describe_other_files([Path(folder)]).partition(": ")[2]
    '3 files are not read, because of their kind (2 .gif, 1 .nii.gz): convert them to PNG or TIFF, or move them away'
    """
    folders = list(dict.fromkeys(folders))
    counts = Counter(
        _full_suffix(file)
        for folder in folders
        for file in _list_files(folder, nested=nested)
        if file.suffix.lower() not in IMAGE_SUFFIXES and file.name.lower() not in _HIDDEN_ON_WINDOWS and file.is_file()
    )
    if not counts:
        return None
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{count:,} {suffix}" for suffix, count in ordered[:_MAX_NAMED]]
    more = ", ..." * (len(counts) > _MAX_NAMED)
    total = counts.total()
    files, their = ("files are", "their") if total > 1 else ("file is", "its")
    them = "them" if total > 1 else "it"
    return (
        f"{', '.join(map(str, folders))}: {total:,} {files} not read, because of {their} kind "
        f"({', '.join(named)}{more}): convert {them} to PNG or TIFF, or move {them} away"
    )


def describe_nested_images(folders: Iterable[Path], besides: Collection[Path] = ()) -> str | None:
    """A line that counts the images in sub-folders, which `find_images` leaves out. None if there are none.

    besides  folders whose images are not counted

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a.png", "day2/b.png", "day2/c.png", "day3/d.png"):
    ...         (Path(folder) / name).parent.mkdir(exist_ok=True)
    ...         (Path(folder) / name).touch()
    ...     describe_nested_images([Path(folder)]).partition(": ")[2]
    '3 images in sub-folders are left out (2 in day2, 1 in day3): give these folders, too'
    """
    folders = list(dict.fromkeys(folders))
    not_counted = {folder.resolve() for folder in (*folders, *besides)}
    counts = Counter(
        str(file.parent.relative_to(folder))
        for folder in folders
        for file in _list_nested(folder)
        if not_counted.isdisjoint(parent.resolve() for parent in file.parents if folder in parent.parents)
    )
    if not counts:
        return None
    named = [f"{count:,} in {name}" for name, count in sorted(counts.items())[:_MAX_NAMED]]
    more = ", ..." * (len(counts) > _MAX_NAMED)
    total = counts.total()
    images = "images in sub-folders are" if total > 1 else "image in a sub-folder is"
    these = "these folders" if len(counts) > 1 else "this folder"
    return f"{', '.join(map(str, folders))}: {total:,} {images} left out ({', '.join(named)}{more}): give {these}, too"


def _list_nested(folder: Path) -> list[Path]:
    try:
        return [file for file in find_images(folder, nested=True) if file.parent != folder]
    except OSError:  # a sub-folder that may not be read: its images were not asked for
        return []


def _full_suffix(file: Path) -> str:
    """Both suffixes of a packed file: ".nii.gz"."""
    parts = [part.lower() for part in file.suffixes[-2:]]
    return "".join(parts if parts[1:] == [".gz"] else parts[-1:]) or "without a suffix"


def _list_files(folder: Path, *, nested: bool) -> Iterator[Path]:
    """The paths in a folder that are not hidden, in any order; with `nested`, the files at any depth."""
    if not nested:
        yield from (path for path in folder.iterdir() if not path.name.startswith("."))
        return

    def refuse(error: OSError) -> None:
        raise error

    visited = {os.path.realpath(folder)}  # a link may lead back to a folder above
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        targets = {name: os.path.realpath(os.path.join(parent, name)) for name in sorted(folders) if name[0] != "."}
        folders[:] = [name for name, target in targets.items() if target not in visited]
        visited.update(targets.values())
        yield from (Path(parent, name) for name in names if name[0] != ".")
