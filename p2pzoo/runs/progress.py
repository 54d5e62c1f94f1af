"""Progress of a run: a live display in a terminal, else a plain line every few seconds.

Everything goes to standard error; standard output is for results.
"""

from __future__ import annotations

import errno
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Protocol, Self, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.progress import track as rich_track
from rich.table import Table

from p2pzoo.utils.terminal import escape

_T = TypeVar("_T")
LOSS_LABELS = {"D.real": "D on real", "D.fake": "D on fake"}  # mean logits: above 0 is "real"
NO_READER = (errno.EPIPE, errno.EIO, errno.EINVAL)  # of a pipe, of a terminal, of a pipe on Windows
PLAIN_LINE_SECONDS = 5.0  # between lines: a log of hours stays readable
MAX_RATE_STEPS = 50  # readings that the rate is averaged over: a slow checkpoint does not make it jump


class StepRate:
    """Steps per second over the last readings."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, int]] = deque(maxlen=MAX_RATE_STEPS)

    def __call__(self, images: int, batch_size: int) -> float:
        self._readings.append((time.perf_counter(), images))
        (then, first), (now, last) = self._readings[0], self._readings[-1]
        return (last - first) / batch_size / (now - then) if now > then else 0.0


class NoProgress:
    """Prints nothing (--quiet)."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def step(self, images: int, losses: dict[str, float]) -> None: ...

    def note(self, text: str) -> None: ...


class ClosedOutput:
    """Stops the command as SIGTERM does, once, when the reader of standard error is gone (`| head`, a closed terminal).

    Without a reader nobody learns how the run goes on. In the training loop it saves first.
    """

    def __init__(self) -> None:
        self._is_closed = False

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> bool:
        if isinstance(error, SystemExit):  # what rich makes of a closed pipe
            error = error.__context__
        if not isinstance(error, OSError) or error.errno not in NO_READER:
            return False
        if not self._is_closed:
            self._is_closed = True
            signal.raise_signal(signal.SIGTERM)
        return True


class PlainProgress:
    """Prints a line every few seconds, for logs and pipes."""

    def __init__(self, images: int, batch_size: int) -> None:
        self.images, self.batch_size, self.closed_output = images, batch_size, ClosedOutput()
        self.speed, self.last = StepRate(), time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def step(self, images: int, losses: dict[str, float]) -> None:
        rate = self.speed(images, self.batch_size)
        if time.monotonic() - self.last < PLAIN_LINE_SECONDS and images < self.images:
            return
        self.last = time.monotonic()
        left = (self.images - images) / self.batch_size / rate if rate else 0.0
        losses_text = "  ".join(f"{LOSS_LABELS.get(name, name)} {value:.3f}" for name, value in losses.items())
        self.note(f"{images}/{self.images} images  {rate:.1f} steps/s  {format_duration(left)} left  {losses_text}")

    def note(self, text: str) -> None:
        with self.closed_output:
            print(text, file=sys.stderr, flush=True)


class LiveProgress:
    """Shows a bar, the rate, the time left and each loss in the terminal."""

    def __init__(self, images: int, batch_size: int, console: Console) -> None:
        self.batch_size, self.console, self.speed = batch_size, console, StepRate()
        self.bar = Bar(
            TextColumn("images"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} steps/s"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
        )
        self.task = self.bar.add_task("training", total=images, rate=0.0)
        self.live = Live(self.bar, console=console, refresh_per_second=4)
        self._began, self.closed_output = False, ClosedOutput()

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self.closed_output:
            self.live.stop()

    def step(self, images: int, losses: dict[str, float]) -> None:
        if not self._began:  # of a resumed run, the time left is estimated from here
            self.bar.reset(self.task, completed=images)
            self._began = True
        rate = self.speed(images, self.batch_size)
        self.bar.update(self.task, completed=images, rate=rate)
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in losses:
            table.add_column(LOSS_LABELS.get(name, name), justify="right", min_width=8)
        table.add_row(*(f"{value:.3f}" for value in losses.values()))
        with self.closed_output:
            self.live.update(Group(self.bar, table))

    def note(self, text: str) -> None:
        with self.closed_output:
            self.console.print(escape(text, keep="\n"), highlight=False, markup=False, soft_wrap=True)


def make_progress(images: int, batch_size: int, *, quiet: bool = False) -> NoProgress | PlainProgress | LiveProgress:
    """The progress that fits standard error: live in a terminal, plain lines elsewhere, nothing if quiet."""
    if quiet:
        return NoProgress()
    console = Console(stderr=True)
    if console.is_terminal:
        return LiveProgress(images, batch_size, console)
    return PlainProgress(images, batch_size)


def track(items: Iterable[_T], total: int, doing: str) -> Iterator[_T]:
    """Yield the items; in a terminal, a bar with the text `doing` counts them up to `total`.

    >>> list(track("ab", total=2, doing="reading"))
    ['a', 'b']
    """
    console = Console(stderr=True)
    is_visible = console.is_terminal and total > 0
    yield from rich_track(items, doing, total=total, console=console, transient=True, disable=not is_visible)


def format_duration(seconds: float) -> str:
    """
    >>> format_duration(75), format_duration(3675)
    ('1:15', '1:01:15')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress(Protocol):
    """Shows a run to the user. step: after the losses of a step were read; note: one line of text."""

    def step(self, images: int, losses: dict[str, float]) -> None: ...

    def note(self, text: str) -> None: ...
