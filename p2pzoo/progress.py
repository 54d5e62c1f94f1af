"""What a person sees while a run goes on: a live display in a terminal, a plain line every few seconds elsewhere.

Everything goes to standard error; standard output is for results.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from p2pzoo.tables.places import Doing

LABELS = {"D.real": "D on real", "D.fake": "D on fake"}  # mean logits: above 0 is "real"
PLAIN_SECONDS = 5.0
PLAIN_TABLE_SECONDS = 60.0
SHOWN_RUNS = 16  # of those that are being made at once
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
        self.note(f"{images}/{self.images} images  {rate:.1f} steps/s  {_clock(left)} left  {shown}")

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


# --- a table of runs ---


class NoTableProgress:
    """Says nothing (--quiet)."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def begin(self, doing: Doing) -> None: ...

    def images(self, done: int, doing: Sequence[Doing]) -> None: ...

    def note(self, text: str) -> None: ...


class PlainTableProgress(NoTableProgress):
    """A line for each run, and one a minute."""

    def __init__(self, images: int) -> None:
        self.total, self.began, self.last = images, time.monotonic(), time.monotonic()

    def begin(self, doing: Doing) -> None:
        self.note(f"{doing.job.name}{doing.where and f', on {doing.where}'}")

    def images(self, done: int, doing: Sequence[Doing]) -> None:
        now = time.monotonic()
        if now - self.last < PLAIN_TABLE_SECONDS:
            return
        self.last = now
        if seen := done + sum(each.images for each in doing):
            left = (now - self.began) / seen * (self.total - seen)
            self.note(f"{seen}/{self.total} images of all runs  {len(doing)} at work  {_clock(left)} left")

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class LiveTableProgress(NoTableProgress):
    """A bar over all runs, and a line for each that is being made, redrawn in place."""

    def __init__(self, images: int, console: Console) -> None:
        self.console = console
        self.bar = Bar(
            TextColumn("all runs"), BarColumn(), MofNCompleteColumn(), TextColumn("images"),
            TimeRemainingColumn(elapsed_when_finished=True), console=console, speed_estimate_period=600,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=images)
        self.live = Live(self.bar, console=console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def images(self, done: int, doing: Sequence[Doing]) -> None:
        seen = [each.images for each in doing]
        self.bar.update(self.task, completed=done + sum(seen))
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for each, images in [*zip(doing, seen, strict=True)][:SHOWN_RUNS]:
            table.add_row(each.job.name, f"{images:,} of {each.job.images:,}", Text(each.where, "dim"))
        if len(doing) > SHOWN_RUNS:
            table.add_row(f"and {len(doing) - SHOWN_RUNS} more")
        self.live.update(Group(self.bar, table))

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def table_progress(images: int, *, quiet: bool = False) -> NoTableProgress:
    """Over all runs of a table: what fits the place where standard error goes."""
    if quiet:
        return NoTableProgress()
    console = Console(stderr=True)
    return LiveTableProgress(images, console) if console.is_terminal else PlainTableProgress(images)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
