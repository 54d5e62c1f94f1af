"""The exceptions that the command line knows: what the user can mend, and what another process tells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self


class UserError(Exception):
    """The user can mend this: what is wrong, where, and what to do; several faults are several lines. Exit code 2."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class Fault(str):
    """One fault that several things have. As text it names the first few, in `lines`; `what` it is, and all `cases`."""

    lines: tuple[str, ...]
    what: str
    cases: tuple[str, ...]

    def __new__(cls, lines: Iterable[str], what: str, cases: Iterable[str]) -> Self:
        lines = tuple(lines)
        fault = super().__new__(cls, "\n  ".join(lines))
        fault.lines, fault.what, fault.cases = lines, what, tuple(cases)
        return fault


class PeerProcessError(Exception):
    """A failure of ours in another process of the same run, which tells it: this one ends without a word."""
