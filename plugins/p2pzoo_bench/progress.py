"""What a person sees while a table's runs are made: `p2pzoo.runs.progress`, for many at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from p2pzoo.runs.progress import clock
from p2pzoo_bench.executors import RunningJob

PLAIN_SECONDS = 60.0
SHOWN_RUNS = 16  # of those that are being made at once


class NoTableProgress:
    """Says nothing (--quiet)."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def begin(self, doing: RunningJob) -> None: ...

    def images(self, made: int, left: int, doing: Sequence[RunningJob]) -> None: ...

    def note(self, text: str) -> None: ...


class PlainTableProgress(NoTableProgress):
    """A line for each run, and one a minute."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()

    def begin(self, doing: RunningJob) -> None:
        self.note(f"{doing.job.name}{doing.where and f', on {doing.where}'}")

    def images(self, made: int, left: int, doing: Sequence[RunningJob]) -> None:
        now = time.monotonic()
        if now - self.last < PLAIN_SECONDS:
            return
        self.last = now
        if made > 0:
            seconds = (now - self.began) / made * left
            self.note(f"{made}/{made + left} images of all runs  {len(doing)} at work  {clock(seconds)} left")

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class LiveTableProgress(NoTableProgress):
    """A bar over all runs, and a line for each that is being made, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Bar(
            TextColumn("all runs"), BarColumn(), MofNCompleteColumn(), TextColumn("images"),
            TimeRemainingColumn(elapsed_when_finished=True), console=console, speed_estimate_period=600,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=None)
        self.live = Live(self.bar, console=console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def images(self, made: int, left: int, doing: Sequence[RunningJob]) -> None:
        self.bar.update(self.task, completed=made, total=made + left)
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for each in doing[:SHOWN_RUNS]:
            table.add_row(Text(each.job.name), f"{each.images:,} of {each.job.images:,}", Text(each.where, "dim"))
        if len(doing) > SHOWN_RUNS:
            table.add_row(f"and {len(doing) - SHOWN_RUNS} more")
        self.live.update(Group(self.bar, table))

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def table_progress(*, quiet: bool = False) -> NoTableProgress:
    """Over all runs of a table: what fits the place where standard error goes."""
    if quiet:
        return NoTableProgress()
    console = Console(stderr=True)
    return LiveTableProgress(console) if console.is_terminal else PlainTableProgress()
