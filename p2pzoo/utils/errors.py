"""All exceptions that p2pzoo raises on purpose, and which function raises which.

Error                 base class of all
├─ UserError          the user can fix it; exit code 2
│  ├─ DamagedFile     a file is truncated or altered, or p2pzoo did not write it
│  ├─ OutOfMemory     the device or the machine has too little memory
│  └─ Diverged        a loss or a weight became nan or inf (defined in `p2pzoo.runs.monitor`)
├─ ComponentError     a component of a plugin failed; the message names it; exit code 1
└─ PeerProcessError   another process of the same run failed and prints the reason
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

MAX_NAMED_FILES = 3  # per fault, so that a message stays short


class Error(Exception):
    """Base class of the exceptions that p2pzoo raises on purpose. Catch it to catch all of them.

    Two exceptions are not subclasses: ValueError for an argument of a Python function that is out of range, and
    KeyboardInterrupt, which `p2pzoo.train` raises after it has saved a checkpoint.
    """


class UserError(Error):
    """The user can fix this: a recipe, an argument, a file, the installation. The command line exits with code 2.

    The message says what is wrong, where, and what to do. `faults` holds one line for each thing that is wrong.

    Raised by `p2pzoo.list_components`, `create`, `load` and `train`, by `Trained.load`, and by methods of a loaded
    model.

    >>> import p2pzoo
    >>> try:
    ...     p2pzoo.create("loss", "l1", sid="generator")
    ... except p2pzoo.UserError as error:
    ...     print(error.faults)
    ("loss 'l1' has no parameter 'sid': it takes none",)
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class DamagedFile(UserError):
    """A file is truncated or altered, or p2pzoo did not write it.

    Raised by `p2pzoo.load`, by `p2pzoo.train` for the checkpoint that it resumes from, and by
    `p2pzoo.models.safetensors_io.load_tensors`.
    """


class OutOfMemory(UserError):
    """The device or the machine has too little memory for images, tiles or batches of this size.

    Raised by `p2pzoo.train`, and by the methods of a loaded model that translate images.
    """


class ComponentError(Error):
    """A component failed with an exception of its own, which is the `__cause__`. The message names kind, name,
    distribution and method.

    Raised by `p2pzoo.train`.
    """


class PeerProcessError(Error):
    """Another process of the same run failed. That process prints the reason, so this process ends silently.

    Raised by `p2pzoo.train` where a launcher (torchrun, accelerate) started several processes.
    """


class Advice(str):
    """A line among the faults of a `UserError` that says how to fix the others, and is no fault itself."""


class SharedFault(str):
    """One fault that several files have; give it to `UserError` as one of its faults.

    As text it names the first few files.

    lines    the lines of that text; the first one is the headline
    summary  what is wrong with each of the files
    cases    all files, each with its details
    """

    lines: tuple[str, ...]
    summary: str
    cases: tuple[str, ...]

    def __new__(cls, lines: Iterable[str], summary: str, cases: Iterable[str]) -> Self:
        lines = tuple(lines)
        fault = super().__new__(cls, "\n  ".join(lines))
        fault.lines, fault.summary, fault.cases = lines, summary, tuple(cases)
        return fault


def summarize_fault(what: str, cases: Iterable[str], *, of_each: str | None = None) -> list[str]:
    """One fault that several files share: its text, and the first few cases. Empty where there is no case.

    of_each  what is wrong with each of them, where that is not `what`: without the number of cases, for example
    """
    cases = list(cases)
    more = [f"... and {len(cases) - MAX_NAMED_FILES} more"] if len(cases) > MAX_NAMED_FILES else []
    summary = what if of_each is None else of_each
    return [SharedFault([what, *cases[:MAX_NAMED_FILES], *more], summary, cases)] if cases else []


def raise_faults(faults: Sequence[str]) -> None:
    """Raise UserError with these faults, if there are any."""
    if faults:
        raise UserError(*faults)


@contextlib.contextmanager
def collect_faults(faults: list[str]) -> Iterator[None]:
    """A UserError ends the block, and its faults are added to the list, so that all can be reported together.

    >>> faults = []
    >>> with collect_faults(faults):
    ...     raise UserError("a.tif: no such file")
    >>> faults
    ['a.tif: no such file']
    """
    try:
        yield
    except UserError as error:
        faults += error.faults
