"""Finds images that their EXIF orientation may turn against each other. Imports no torch.

Every file is turned upright when it is read. Where only one file of a pair has an orientation, the other may show the
pixels before or after that turn. The sizes decide it if the turn swaps height and width, and the images have the same
proportions after it, but not before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from p2pzoo.images.io import TRANSPOSING, ImageHeader

DIFFERENT_ORIENTATIONS = (
    "files of a pair have different EXIF orientations, which may turn x against y: save both upright, or remove the "
    "orientation if their stored pixels match:"
)
TURNED_HALVES = (
    "images with A and B side by side are turned by their EXIF orientation, which moves A and B to other sides: "
    "save them upright, or remove the orientation if A is the left half as stored:"
)


def describe_differences(pairs: Iterable[tuple[Sequence[Path], Sequence[ImageHeader]]]) -> Iterator[str]:
    """A text for each pair whose files have different orientations, if their sizes do not show that they match.

    pairs  of each pair: its files, and their headers
    """
    for files, headers in pairs:
        for (first, a), (second, b) in pairwise(zip(files, headers, strict=True)):
            if a.orientation != b.orientation and not _sizes_match(a, b):
                yield f"{first} has {_describe(a)}, {second} has {_describe(b)}"


def describe_turned(headers: Mapping[Path, ImageHeader]) -> Iterator[str]:
    """A text for each file that has an orientation."""
    return (f"{file} has {_describe(header)}" for file, header in headers.items() if header.orientation != 1)


def _sizes_match(a: ImageHeader, b: ImageHeader) -> bool:
    """Whether the proportions show that both images are upright after their turns."""
    upright = _proportions(a, is_turned=True), _proportions(b, is_turned=True)
    stored = _proportions(a, is_turned=False), _proportions(b, is_turned=False)
    return _are_close(*upright) and not _are_close(*stored)


def _proportions(header: ImageHeader, *, is_turned: bool) -> float:
    height, width, _ = header.shape
    return height / width if is_turned or header.orientation not in TRANSPOSING else width / height


def _are_close(a: float, b: float) -> bool:
    return abs(a / b - 1) < 0.02  # one pixel of rounding in 50


def _describe(header: ImageHeader) -> str:
    return f"orientation {header.orientation}" if header.orientation != 1 else "none"
