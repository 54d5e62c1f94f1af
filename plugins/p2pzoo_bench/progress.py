"""Progress of a table's runs: a live display in a terminal, else plain lines. All of it goes to standard error."""

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

from p2pzoo.runs.progress import ClosedOutput, format_duration
from p2pzoo.utils.terminal import escape
from p2pzoo_bench.executors import RunningJob

PLAIN_LINE_SECONDS = 60.0  # between lines: a table trains for hours
SPEED_SECONDS = 600  # over which the live display averages the speed: runs start and end, and evaluate in between
MAX_RUN_LINES = 16  # running jobs in the live display: more would not fit a terminal


class NoTableProgress:
    """Prints nothing (--quiet)."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def begin(self, job: RunningJob) -> None: ...

    def images(self, done: int, left: int, running: Sequence[RunningJob]) -> None: ...

    def note(self, text: str) -> None: ...


class PlainTableProgress(NoTableProgress):
    """Prints a line when a run starts, and one every minute."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()
        self.closed_output = ClosedOutput()

    def begin(self, job: RunningJob) -> None:
        self.note(f"{job.job.name}{job.where and f', on {job.where}'}")

    def images(self, done: int, left: int, running: Sequence[RunningJob]) -> None:
        now = time.monotonic()
        if now - self.last < PLAIN_LINE_SECONDS:
            return
        self.last = now
        if done > 0:
            seconds = (now - self.began) / done * left
            self.note(
                f"{done}/{done + left} images of all runs  {len(running)} running  {format_duration(seconds)} left"
            )

    def note(self, text: str) -> None:
        with self.closed_output:
            print(text, file=sys.stderr, flush=True)


class LiveTableProgress(NoTableProgress):
    """Shows a bar for all runs and a line for each running one, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Bar(
            TextColumn("all runs"), BarColumn(), MofNCompleteColumn(), TextColumn("images"),
            TimeRemainingColumn(elapsed_when_finished=True), console=console, speed_estimate_period=SPEED_SECONDS,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=None)
        self.live = Live(self.bar, console=console, refresh_per_second=4)
        self.closed_output = ClosedOutput()

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.closed_output:
            self.live.stop()

    def images(self, done: int, left: int, running: Sequence[RunningJob]) -> None:
        self.bar.update(self.task, completed=done, total=done + left)
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for job in running[:MAX_RUN_LINES]:
            table.add_row(Text(job.job.name), f"{job.images:,} of {job.job.images:,}", Text(job.where, "dim"))
        if len(running) > MAX_RUN_LINES:
            table.add_row(f"and {len(running) - MAX_RUN_LINES} more")
        with self.closed_output:
            self.live.update(Group(self.bar, table))

    def note(self, text: str) -> None:
        with self.closed_output:
            self.console.print(escape(text, keep="\n"), highlight=False, markup=False, soft_wrap=True)


def table_progress(*, quiet: bool = False) -> NoTableProgress:
    """The display for all runs of a table: live if standard error is a terminal, else plain lines."""
    if quiet:
        return NoTableProgress()
    console = Console(stderr=True)
    return LiveTableProgress(console) if console.is_terminal else PlainTableProgress()
