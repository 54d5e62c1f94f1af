"""What a person sees while a run goes on: a live display in a terminal, a plain line every few seconds elsewhere.

Everything goes to standard error; standard output is for results.
"""

from __future__ import annotations

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
from rich.progress import track as shown_while
from rich.table import Table

T = TypeVar("T")
LABELS = {"D.real": "D on real", "D.fake": "D on fake"}  # mean logits: above 0 is "real"
PLAIN_SECONDS = 5.0
RATE_OVER = 50  # steps that the shown rate is averaged over


class Speed:
    """Steps per second over the last few readings."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=RATE_OVER)

    def __call__(self, images: int, batch_size: int) -> float:
        self._seen.append((time.perf_counter(), images))
        (then, first), (now, last) = self._seen[0], self._seen[-1]
        return (last - first) / batch_size / (now - then) if now > then else 0.0


class NoProgress:
    """Says nothing (--quiet)."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def step(self, images: int, losses: dict[str, float]) -> None: ...

    def note(self, text: str) -> None: ...


class PlainProgress:
    """One line every few seconds: for logs and pipes."""

    def __init__(self, images: int, batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size
        self.speed, self.last = Speed(), time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def step(self, images: int, losses: dict[str, float]) -> None:
        rate = self.speed(images, self.batch_size)
        if time.monotonic() - self.last < PLAIN_SECONDS and images < self.images:
            return
        self.last = time.monotonic()
        left = (self.images - images) / self.batch_size / rate if rate else 0.0
        shown = "  ".join(f"{LABELS.get(name, name)} {value:.3f}" for name, value in losses.items())
        self.note(f"{images}/{self.images} images  {rate:.1f} steps/s  {clock(left)} left  {shown}")

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class LiveProgress:
    """A bar, the rate, the time left, and each loss, redrawn in place."""

    def __init__(self, images: int, batch_size: int, console: Console) -> None:
        self.batch_size, self.console, self.speed = batch_size, console, Speed()
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
        self._began = False

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.live.stop()

    def step(self, images: int, losses: dict[str, float]) -> None:
        if not self._began:  # a resumed run's time left counts from here
            self.bar.reset(self.task, completed=images)
            self._began = True
        rate = self.speed(images, self.batch_size)
        self.bar.update(self.task, completed=images, rate=rate)
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in losses:
            table.add_column(LABELS.get(name, name), justify="right", min_width=8)
        table.add_row(*(f"{value:.3f}" for value in losses.values()))
        self.live.update(Group(self.bar, table))

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def progress(images: int, batch_size: int, *, quiet: bool = False) -> NoProgress | PlainProgress | LiveProgress:
    """What fits the place where standard error goes."""
    if quiet:
        return NoProgress()
    console = Console(stderr=True)
    if console.is_terminal:
        return LiveProgress(images, batch_size, console)
    return PlainProgress(images, batch_size)


def track(items: Iterable[T], total: int, doing: str) -> Iterator[T]:
    """The items as they are; in a terminal, a bar shows how many of `total` were taken."""
    console = Console(stderr=True)
    shown = console.is_terminal and total > 0
    yield from shown_while(items, doing, total=total, console=console, transient=True, disable=not shown)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress(Protocol):
    """What shows a run to the person at the terminal."""

    def step(self, images: int, losses: dict[str, float]) -> None: ...

    def note(self, text: str) -> None: ...
