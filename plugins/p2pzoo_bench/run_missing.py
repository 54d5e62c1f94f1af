"""Train the missing runs of a table with an executor: start them, restart lost ones, pass signals on, count images."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from p2pzoo.runs.monitor import read_findings
from p2pzoo.runs.report import parse_images_seen
from p2pzoo.runs.run_folder import Run
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.signals import handling, stop_signals, stop_this_process
from p2pzoo_bench.executors import FRESH, Ended, Executor, Job, RunningJob

POLL_SECONDS = 0.1
DISPLAY_SECONDS = 0.5  # between two updates of the display
MAX_LOST = 3  # a run that is lost so often without a new checkpoint fails: something on it kills its machine


class Progress(Protocol):
    """Shows how far a table is."""

    def begin(self, job: RunningJob) -> None:
        """A run starts."""

    def images(self, done: int, left: int, running: Sequence[RunningJob]) -> None:
        """Show the images done since the table started, the images left, and the runs that train now."""

    def note(self, text: str) -> None:
        """Print one line."""


class Stopped(Exception):
    """A signal ended the running jobs; everything they saved is kept."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


def run_missing(
    jobs: Sequence[Job], executor: Executor, progress: Progress, is_finished: Callable[[str], bool] = lambda _: False
) -> dict[str, str]:
    """Train and evaluate the jobs. Returns {id: why it failed}. Raises Stopped after a signal.

    is_finished  whether the run of this id has all its results. Such a run did not fail, whatever its exit code is:
                 that of a run with a number that is nan is 1

    A run whose machine is lost starts again on another one, from its last checkpoint.
    """
    table = _Table(jobs, executor, progress, is_finished)
    with _catch_signals() as signals, executor:
        passed_on = 0
        while executor.waiting() or (table.waiting and not signals):
            if not signals:
                table.start()
            time.sleep(POLL_SECONDS)
            for signum in signals[passed_on:]:
                executor.stop(signum if signum == signal.SIGINT else signal.SIGTERM)  # SIGHUP: the terminal was closed
                passed_on += 1
            for ended in executor.ended():
                table.running.discard(ended.job.id)
                if not signals:
                    table.end(ended)
            table.display()
        if signals:  # whatever the exit codes were: a run may not have had its signal handler yet
            raise Stopped(signals[0])
    progress.images(*table.count([]), [])
    return table.failures


def has_diverged(run: Run) -> bool:
    """Whether the training of this run ended because a number was not finite."""
    return run.state == "failed" and any(finding["kind"] == "diverged" for finding in read_findings(run))


class _Table:
    """The jobs that wait, run, and failed."""

    def __init__(
        self, jobs: Sequence[Job], executor: Executor, progress: Progress, is_finished: Callable[[str], bool]
    ) -> None:
        self.executor, self.progress, self.is_finished = executor, progress, is_finished
        self.waiting = deque(jobs)
        self.running: set[str] = set()  # ids that were announced as running
        self.failures: dict[str, str] = {}
        self.count = ImageCount(jobs)
        self._saved_when_lost: dict[str, list[int]] = {}  # {id: images of its last checkpoint, each time it was lost}
        self._displayed_at = 0.0

    def start(self) -> None:
        """Start waiting jobs while the executor has room."""
        while self.waiting and self.executor.room():
            job = self.waiting.popleft()
            try:
                self.executor.begin(job)
            except UserError as error:
                self.fail(job, str(error))

    def end(self, ended: Ended) -> None:
        """Record a job's end: finished, failed, or lost and to be started again."""
        job = ended.job
        if ended.lost and self._restart(job, ended.lost):
            return
        if ended.stopped:  # by someone else: the table stops with it
            stop_this_process()
        elif (message := ended.failed or ended.lost) and not self.is_finished(job.id):
            self.fail(job, message)
        else:
            if message:
                self.progress.note(f"{job.name}: {message}")
            self.count.end(job, complete=True)
            for finding in read_findings(job.run):
                self.progress.note(
                    f"{job.name}: {finding['what']} ({finding['message']}, at {finding['images']} images)"
                )

    def fail(self, job: Job, message: str) -> None:
        self.failures[job.id] = message
        self.progress.note(f"{job.name} failed: {message}")
        self.count.end(job)

    def display(self) -> None:
        """Update the display, at most every DISPLAY_SECONDS."""
        if time.monotonic() - self._displayed_at <= DISPLAY_SECONDS:
            return
        self._displayed_at = time.monotonic()
        running = self.executor.running()
        for running_job in running:
            if running_job.job.id not in self.running:
                self.progress.begin(running_job)
                self.running.add(running_job.job.id)
        self.progress.images(*self.count(running), running)

    def _restart(self, job: Job, reason: str) -> bool:
        """Queue a lost job again; False if it was lost MAX_LOST times without saving more."""
        saved = _saved_images(job)
        history = self._saved_when_lost.setdefault(job.id, [])
        history.append(saved)
        if history[-MAX_LOST:].count(saved) >= MAX_LOST:
            return False
        self.progress.note(f"{job.name} was lost ({reason}); it resumes from {saved} images")
        self.waiting.appendleft(job.resumed())
        return True


class ImageCount:
    """Counts the images that a table's runs trained on since it started, and those that are left."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = {job.id: job for job in jobs}
        self._at_start = {id: 0 if FRESH in job.options else RunningJob(job).images for id, job in self._jobs.items()}
        self._now = dict(self._at_start)

    def end(self, job: Job, *, complete: bool = False) -> None:
        """Record that this run ended: complete, or failed. It will train no more images."""
        self._now[job.id] = job.images if complete else max(RunningJob(job).images, self._at_start[job.id])
        self._jobs.pop(job.id)

    def __call__(self, running: Sequence[RunningJob]) -> tuple[int, int]:
        """(images done since the start, images left)."""
        self._now |= {r.job.id: max(r.images, self._at_start[r.job.id]) for r in running}
        left = sum(job.images - self._now[id] for id, job in self._jobs.items())
        return sum(self._now.values()) - sum(self._at_start.values()), left


@contextlib.contextmanager
def _catch_signals() -> Iterator[list[int]]:
    """Collects the signals that stop a command."""
    received: list[int] = []
    with handling(lambda signum, _frame: received.append(signum), stop_signals()):
        yield received


def _saved_images(job: Job) -> int:
    """How many images the run had seen at its last checkpoint."""
    return max((parse_images_seen(file) for file in job.run.checkpoints.glob("*.safetensors")), default=0)
