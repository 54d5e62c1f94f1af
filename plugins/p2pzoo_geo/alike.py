"""What all pairs of files must have alike: the names and units of their bands, and nearly the size of a pixel.

The dataset `stacks` uses it for channels too. Imports no torch and no rasterio.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_PIXEL_RATIO = 1.05  # of the pixels of two pairs, without a warning


@dataclass(frozen=True)
class ChosenBands:
    """The bands of a file that are x, or y.

    numbers  of them, from 1
    names    of all bands of the file; None for one without a name
    units    of the chosen bands; None for one without a unit. (): the file says none
    """

    path: Path
    numbers: tuple[int, ...]
    names: tuple[str | None, ...]
    units: tuple[str | None, ...] = ()

    def name(self, place: int) -> str | None:
        """Of a chosen band; place: from 0."""
        return self.names[self.numbers[place] - 1]

    def unit(self, place: int) -> str | None:
        return self.units[place] if self.units else None


def find_mixed_bands(
    files: Sequence[ChosenBands], side: str, wanted: Sequence[int | str] | None, what: str = "band"
) -> list[str]:
    """Faults of files whose chosen bands have other names or units than those of the first. None fits all.

    side     "x" or "y"
    wanted   the numbers and names that a recipe gives; None: it gives none
    what     "band" or "channel", for messages

    Where a recipe gives the number of a band, names that the other file has nowhere are a warning: they may be
    those of a date.
    """
    parameter = f"{side}_{what}s"
    warned = False
    for place, (first, other) in _differences(files, "name"):
        ours, theirs = first.name(place), other.name(place)
        line = f"{first.path} and {other.path}: {what} {place + 1} of {side} is '{ours}' and '{theirs}'"
        if ours in other.names or theirs in first.names:
            return [f"{line}: the files have another order: name them in {parameter}"]
        if wanted is None:
            return [f"{line}: give their numbers in {parameter} if they are the same, or name them alike in all files"]
        if not warned:
            warnings.warn(f"{line}: check that they are the same", stacklevel=5)
            warned = True
    for place, (first, other) in _differences(files, "unit"):
        return [
            f"{first.path} and {other.path}: the units of {what} {place + 1} of {side} differ, {first.unit(place)} and "
            f"{other.unit(place)}: bring all to one unit (gdal_calc), or mend their tags"
        ]
    return []


def _differences(files: Sequence[ChosenBands], kind: str) -> Iterable[tuple[int, tuple[ChosenBands, ChosenBands]]]:
    """(place, (the first file that says a name or a unit there, one that says another))."""
    firsts: dict[int, ChosenBands] = {}
    for file in files:
        for place in range(len(file.numbers)):
            value = getattr(file, kind)(place)
            if value and getattr(firsts.setdefault(place, file), kind)(place) != value:
                yield place, (firsts[place], file)


def find_other_pixels(sizes: Mapping[Path, float]) -> tuple[Path, Path] | None:
    """The files with the smallest and the largest pixels, where these differ by more than 5%.

    >>> [path.name for path in find_other_pixels({Path("a"): 10.0, Path("b"): 10.2, Path("c"): 20.0})]
    ['a', 'c']
    """
    if not sizes:
        return None
    smallest, largest = (choose(sizes, key=lambda path: sizes[path]) for choose in (min, max))
    return (smallest, largest) if sizes[largest] > MAX_PIXEL_RATIO * sizes[smallest] else None
