"""Suggestions for misspelt names, as the end of an error message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MIN_SIMILARITY = 0.6  # difflib's own default; two wrong letters in a name of six still find it


def did_you_mean(name: str, known: Iterable[str], names_to_list: Iterable[str] | None = None) -> str:
    """The end of a message about an unknown name: the most similar known name, else all of them.

    names_to_list  names to list when no known name is similar; `known` by default

    >>> "no loss 'l3'" + did_you_mean("l3", ["l1", "ssim"])
    "no loss 'l3': known are l1, ssim"
    >>> "no loss 'sim'" + did_you_mean("sim", ["l1", "ssim"])
    "no loss 'sim': did you mean 'ssim'?"
    """
    known = list(known)
    if similar := find_similar(name, known):
        return f": did you mean '{similar}'?"
    names = sorted(set(known if names_to_list is None else names_to_list))
    return f": known are {', '.join(names)}" if names else ": none is installed"


def find_similar(name: str, known: Iterable[str]) -> str | None:
    """The most similar known name, if one is similar. One with the same letters in another order always is.

    >>> find_similar("resnt9", ["resnet9", "unet"])
    'resnet9'
    >>> find_similar("Adma", ["Adamax", "Adam"])
    'Adam'
    >>> find_similar("day2night", ["night2day"])
    'night2day'
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, cutoff=MIN_SIMILARITY)
    swapped = [each for each in known if sorted(each.lower()) == sorted(name.lower())]
    return next(iter([*swapped, *close]), None)
