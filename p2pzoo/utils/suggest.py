"""TODO"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(wrong: str, known: Iterable[str], bare: Iterable[str] | None = None) -> str:
    """The end of an error message: what was probably meant, else all that is known (`bare`, if given)."""
    known = list(known)
    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    if close:
        return f": did you mean '{close[0]}'?"
    names = sorted(set(known if bare is None else bare))
    return f": known are {', '.join(names)}" if names else ": none is installed"
