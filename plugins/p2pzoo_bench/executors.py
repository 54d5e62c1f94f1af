"""An executor trains the runs of a table: on this machine, or on a Ray cluster (cluster.py).

Each run is a process of its own, `p2pzoo run`, because Accelerate's state and peak memory belong to a process. It ends
when its parent ends.
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

from p2pzoo.compute.engine import count_usable_cores
from p2pzoo.config.experiment import Experiment
from p2pzoo.runs.run_folder import Run, locate_run
from p2pzoo.utils.signals import IS_WINDOWS, stop_signals

FRESH, ACCEPT_STALE = "--fresh", "--accept-stale"


@dataclass(frozen=True)
class Job:
    """A run to train: `p2pzoo run` of an experiment, with options such as --accept-stale."""

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
        return locate_run(self.experiment, self.runs)

    def resumed(self) -> Job:
        """The same job, without --fresh: it resumes from its last checkpoint."""
        return replace(self, options=tuple(option for option in self.options if option != FRESH))

    def recipe(self, threads: int) -> str:
        """The experiment as a recipe in TOML. threads: used if the recipe sets none (0: all cores)."""
        tree = self.experiment.resolved()
        tree["compute"]["threads"] = self.experiment.compute.threads or threads
        return tomli_w.dumps(tree)


@dataclass(frozen=True)
class RunningJob:
    """A run that trains now, and where."""

    job: Job
    where: str = ""

    @property
    def images(self) -> int:
        """How many images it has seen, from its log."""
        lines = self.job.run.lines("timings.jsonl")
        return min(int(lines[-1]["images"]), self.job.images) if lines else 0


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    failed   why it failed
    stopped  whether a signal from elsewhere stopped it
    lost     why its machine was lost
    """

    job: Job
    failed: str | None = None
    stopped: bool = False
    lost: str | None = None


class Executor(Protocol):
    """Trains jobs. Leaving its context stops all runs after they saved, and waits for them."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    @property
    def kind(self) -> str:
        """The profile for its hardware: "gpu" or "laptop"."""

    def room(self) -> bool:
        """Whether another run can start."""

    def begin(self, job: Job) -> None:
        """Start a run, or queue it. Raises UserError if it cannot run here."""

    def running(self) -> Sequence[RunningJob]:
        """The runs that train now; one that was started may still be queued."""

    def waiting(self) -> int:
        """How many were started and have not ended."""

    def ended(self) -> Sequence[Ended]:
        """The runs that ended since the last call. Does not block."""

    def stop(self, signum: int) -> None:
        """Stop all runs after they saved. signum: SIGINT or SIGTERM."""


class Process:
    """`p2pzoo run` of a recipe. It saves and stops on a signal, and when this process is gone."""

    def __init__(
        self, name: str, recipe: str, runs: Path, options: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self._recipes = tempfile.TemporaryDirectory(prefix="p2pzoo-")
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # open as long as the run
        file = Path(self._recipes.name) / f"{name}.toml"
        file.write_text(recipe, "utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "p2pzoo", "run", file, "--runs", runs, "--quiet", "--with-parent", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            env={**os.environ, **(environment or {})},
            process_group=0,  # a terminal's Ctrl-C reaches it once, through us
        )

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.poll()

    def stop(self, signum: int) -> None:
        if IS_WINDOWS:  # where a signal would end it at once: --with-parent saves and stops when this pipe is closed
            assert self._process.stdin
            self._process.stdin.close()
        else:
            self._process.send_signal(signum)

    def end(self) -> tuple[int, str | None]:
        """Wait for the end. Returns the exit code, and the error message if it failed."""
        code = self._process.wait()
        assert self._process.stdin
        self._process.stdin.close()
        with self._stderr, self._recipes:
            self._stderr.seek(0)
            text = self._stderr.read()
        if code == 0:
            return code, None
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("warning:")]
        lines += [describe_kill(-code)] if code < 0 else []
        return code, "; ".join(lines) or f"exit code {code}, without a message"


def describe_kill(signum: int) -> str:
    """What a signal did to a run that could not save.

    >>> describe_kill(signal.SIGSEGV)
    'killed by signal 11 (SIGSEGV)'
    """
    name = f" ({signal.Signals(signum).name})" if signum in [*signal.Signals] else ""
    advice = ", as the system does when memory runs out: use fewer --jobs or a smaller batch; the same command resumes"
    return f"killed by signal {signum}{name}{advice if name == ' (SIGKILL)' else ''}"


def was_stopped(code: int) -> bool:
    """Whether a signal stopped the run that ended with this code."""
    return code in [128 + signum for signum in stop_signals()]


class LocalExecutor:
    """This machine: `jobs` runs at a time, which share its cores evenly and take its GPUs in turn.

    jobs     how many runs at a time
    threads  of each run whose recipe sets none [default: all cores, shared]
    """

    def __init__(self, jobs: int = 1, threads: int | None = None) -> None:
        self.threads = threads or (max(1, count_usable_cores() // jobs) if jobs > 1 else 0)
        self._gpus = visible_gpus() if jobs > 1 else []
        self.jobs = jobs
        self._working: dict[int, tuple[Job, Process]] = {}  # {slot: …}, slots 0 to jobs - 1

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
        return len(self._working) < self.jobs

    def begin(self, job: Job) -> None:
        slot = next(slot for slot in range(self.jobs) if slot not in self._working)
        gpu = {"CUDA_VISIBLE_DEVICES": self._gpus[slot % len(self._gpus)]} if self._gpus else {}
        process = Process(job.experiment.recipe.name, job.recipe(self.threads), job.runs, job.options, gpu)
        self._working[slot] = (job, process)

    def running(self) -> list[RunningJob]:
        return [RunningJob(job) for job, _ in self._working.values()]

    def waiting(self) -> int:
        return len(self._working)

    def ended(self) -> list[Ended]:
        ended = []
        for slot in [slot for slot, (_, process) in self._working.items() if process.poll() is not None]:
            job, process = self._working.pop(slot)
            code, message = process.end()
            ended.append(Ended(job, stopped=True) if was_stopped(code) else Ended(job, failed=message))
        return ended

    def stop(self, signum: int) -> None:
        for _, process in self._working.values():
            process.stop(signum)


def visible_gpus() -> list[str]:
    """The CUDA devices of this process, as CUDA_VISIBLE_DEVICES names them."""
    if (names := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in names.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(torch.cuda.device_count())]
