"""Where the runs of a table are made: on this machine, or on a Ray cluster (`cluster`).

A place is told what to make and later asks nothing: it says which runs are being made, and what became of those that
are not any more. Everywhere a run is a process of its own, `p2pzoo run`, because Accelerate's state and peak memory
belong to a process, and it ends with whoever began it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import tomli_w
import torch

from p2pzoo.compute.engine import usable_cores
from p2pzoo.config.experiment import Experiment
from p2pzoo.runs.run_folder import Run, run_for

FRESH = "--fresh"


@dataclass(frozen=True)
class Job:
    """A run that is to be made: `p2pzoo run` of an experiment, with options such as --accept-stale."""

    name: str
    experiment: Experiment
    runs: Path
    options: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return self.experiment.id

    @property
    def images(self) -> int:
        return self.experiment.train.images_seen

    @property
    def run(self) -> Run:
        return run_for(self.experiment, self.runs)

    def again(self) -> Job:
        """The same, going on from what there is of it."""
        return replace(self, options=tuple(option for option in self.options if option != FRESH))

    def recipe(self, threads: int) -> str:
        """The experiment as a recipe, to be computed with so many threads where it does not say (0: all there are)."""
        tree = self.experiment.resolved()
        tree["compute"]["threads"] = self.experiment.compute.threads or threads
        return tomli_w.dumps(tree)


@dataclass(frozen=True)
class RunningJob:
    """A run that is being made, and where."""

    job: Job
    where: str = ""

    @property
    def images(self) -> int:
        """How many it has seen, as its log tells."""
        lines = self.job.run.lines("timings.jsonl")
        return min(int(lines[-1]["images"]), self.job.images) if lines else 0


@dataclass(frozen=True)
class Ended:
    """What became of a run. failed: why; stopped: someone told it to; lost: it died of where it was, as that tells."""

    job: Job
    failed: str | None = None
    stopped: bool = False
    lost: str | None = None


class Executor(Protocol):
    """Leaving its context tells all runs to save themselves and end, and waits for them."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    @property
    def kind(self) -> str:
        """The profile for its hardware: "gpu" or "laptop"."""

    def room(self) -> bool:
        """Whether another run may be begun."""

    def begin(self, job: Job) -> None:
        """Raises UserError where this run cannot be made here."""

    def doing(self) -> Sequence[RunningJob]:
        """The runs that are being made. One that was begun may have to wait first."""

    def waiting(self) -> int:
        """How many were begun and have not ended."""

    def ended(self) -> Sequence[Ended]:
        """The runs that have ended since the last time. Returns at once."""

    def stop(self, signum: int) -> None:
        """Tell all runs to save themselves and end: SIGINT or SIGTERM."""


class Process:
    """`p2pzoo run` of a recipe. It stops and saves when told to, or when this process is gone."""

    def __init__(
        self, name: str, recipe: str, runs: Path, options: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self._recipes = tempfile.TemporaryDirectory(prefix="p2pzoo-")
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # as long as the run
        file = Path(self._recipes.name) / f"{name}.toml"
        file.write_text(recipe, "utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "p2pzoo", "run", file, "--runs", runs, "--quiet", "--with-parent", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            env={**os.environ, **(environment or {})},
            process_group=0,  # a terminal's Ctrl-C reaches it once, through us
        )

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._process.poll()

    def stop(self, signum: int) -> None:
        self._process.send_signal(signum)

    def end(self) -> tuple[int, str | None]:
        """Wait for its end: the exit code, and why it failed if it did."""
        code = self._process.wait()
        assert self._process.stdin
        self._process.stdin.close()
        with self._said, self._recipes:
            self._said.seek(0)
            text = self._said.read()
        if code == 0:
            return code, None
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("warning:")]
        return code, "; ".join(lines) or f"ended with code {code}"


def was_stopped(code: int) -> bool:
    """Whether a run that ended with this code was told to stop."""
    return code in (128 + signal.SIGINT, 128 + signal.SIGTERM)


class Machine:
    """This one: so many runs at a time, which share its cores evenly and take its GPUs in turn.

    threads  of each run, where its recipe leaves that open [default: the cores, shared]
    """

    def __init__(self, jobs: int = 1, threads: int | None = None) -> None:
        self._threads = threads or (max(1, usable_cores() // jobs) if jobs > 1 else 0)
        self._gpus = visible_gpus() if jobs > 1 else []
        self._jobs = jobs
        self._working: dict[int, tuple[Job, Process]] = {}  # by one of as many places

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGTERM)
        for job_process in self._working.values():
            job_process[1].end()

    @property
    def kind(self) -> str:
        return "gpu" if torch.cuda.is_available() else "laptop"

    def room(self) -> bool:
        return len(self._working) < self._jobs

    def begin(self, job: Job) -> None:
        at = next(at for at in range(self._jobs) if at not in self._working)
        gpu = {"CUDA_VISIBLE_DEVICES": self._gpus[at % len(self._gpus)]} if self._gpus else {}
        process = Process(job.experiment.recipe.name, job.recipe(self._threads), job.runs, job.options, gpu)
        self._working[at] = (job, process)

    def doing(self) -> list[RunningJob]:
        return [RunningJob(job) for job, _ in self._working.values()]

    def waiting(self) -> int:
        return len(self._working)

    def ended(self) -> list[Ended]:
        found = []
        for at in [at for at, (_, process) in self._working.items() if process.poll() is not None]:
            job, process = self._working.pop(at)
            code, told = process.end()
            found.append(Ended(job, stopped=True) if was_stopped(code) else Ended(job, failed=told))
        return found

    def stop(self, signum: int) -> None:
        for _, process in self._working.values():
            process.stop(signum)


def visible_gpus() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (told := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in told.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(torch.cuda.device_count())]
