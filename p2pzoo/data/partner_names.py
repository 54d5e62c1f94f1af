"""Why the files of two folders have no common names: endings, upper and lower case, zeros in front of numbers.

Works on stems: file names without suffix. Imports no torch.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence

MIN_MATCHING = 0.5  # of the smaller folder's names: fewer matches may be chance
_MAX_COMPARED = 2000  # names of each folder that the search compares, so that it takes less than a second
_MAX_ENDING = 40  # characters


def suggest_names(a: Collection[str], b: Collection[str], *, takes_suffixes: bool) -> str | None:
    """Advice where many of these stems are equal without their endings, by case, or by zeros. None if they are not.

    a, b            the stems of two folders that are paired with nothing
    takes_suffixes  whether endings can be set as `input_suffix` and `target_suffix`

    >>> suggest_names(["1_A", "2_A"], ["1_B", "2_B"], takes_suffixes=True)
    '2 of 2 names match without their endings: set input_suffix = "_A", target_suffix = "_B"'
    """
    if not a or not b:
        return None
    if endings := find_endings(a, b):
        ours, theirs = endings
        matching = len(_without(ours, a) & _without(theirs, b))
        advice = "rename the files, or pair them with the dataset `folders`, which has input_suffix and target_suffix"
        if takes_suffixes:
            settings = (("input", ours), ("target", theirs))
            advice = "set " + ", ".join(f'{name}_suffix = "{suffix}"' for name, suffix in settings if suffix)
        return f"{matching} of {len(a)} names match without their endings: {advice}"
    rules: tuple[tuple[str, Callable[[str], str]], ...] = (
        ("if upper and lower case are equal", str.casefold),
        ("without zeros in front of numbers", _without_zeros),
        (
            "without zeros in front of numbers, and if upper and lower case are equal",
            lambda s: _without_zeros(s).casefold(),
        ),
        ("without their first letters", lambda stem: re.sub(r"^\D+", "", stem)),
    )
    for rule, simplify in rules:
        ours_simple, theirs_simple = ({simplify(stem) for stem in stems} for stems in (a, b))
        matching = len(ours_simple & theirs_simple)
        is_one_to_one = len(ours_simple) == len(a) and len(theirs_simple) == len(b)
        if is_one_to_one and matching >= MIN_MATCHING * min(len(a), len(b)):
            advice = 'rename the files, or list the pairs in a file (use = "manifest")'
            return f"{matching} of {len(a)} names match {rule}: {advice}"
    return None


def find_endings(a: Collection[str], b: Collection[str]) -> tuple[str, str] | None:
    """The endings without which the most stems of `a` and `b` match, if half of the fewer stems do. One may be "".

    >>> find_endings(["001", "011"], ["001_mask", "011_mask"])
    ('', '_mask')
    """
    ours, theirs = (sorted(stems)[:_MAX_COMPARED] for stems in (a, b))

    def rank(endings: tuple[str, str]) -> tuple[int, bool, int]:
        matching = len(_without(endings[0], ours) & _without(endings[1], theirs))
        begins_word = not any(ending[:1].isalnum() for ending in endings)
        return matching, begins_word, -len("".join(endings))

    best = max(dict.fromkeys(_candidates(ours, theirs)), key=rank, default=("", ""))
    return best if rank(best)[0] >= MIN_MATCHING * min(len(ours), len(theirs)) else None


def _candidates(ours: Sequence[str], theirs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of endings behind which a few of the stems match, the shortest first."""
    for stem in ours[:: max(1, len(ours) // 5)]:
        for end in range(len(stem), max(0, len(stem) - _MAX_ENDING), -1):
            for other in theirs[bisect_left(theirs, stem[:end]) :][:4]:
                if other.startswith(stem[:end]) and other != stem and len(other) - end <= _MAX_ENDING:
                    yield stem[end:], other[end:]


def _without(ending: str, stems: Collection[str]) -> set[str]:
    return {stem.removesuffix(ending) for stem in stems if stem.endswith(ending) and stem != ending}


def _without_zeros(stem: str) -> str:
    return re.sub(r"(?<!\d)0+(?=\d)", "", stem)
