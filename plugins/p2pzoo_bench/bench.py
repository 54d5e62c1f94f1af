"""From a table file to a finished table: find what is there, train what is missing, put it together.

Runs are made where a `Executor` says (`places`): here, or on a cluster. Seeds are the outermost loop, so that each pass
over the rows makes a whole table.
Finished results count wherever they lie: in the runs folder, or beside the table file in results/.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from p2pzoo import config
from p2pzoo.compute.engine import pick_device
from p2pzoo.config.experiment import Experiment
from p2pzoo.config.provenance import changed_sources, sources
from p2pzoo.data import Store
from p2pzoo.plugin.registry import Registry
from p2pzoo.runs.evaluate import check_needs, check_trust, evaluate_target, metrics_of, missing, protocol
from p2pzoo.runs.monitor import read_findings
from p2pzoo.runs.report import images_of
from p2pzoo.runs.run_folder import Run, run_for
from p2pzoo.training.run_experiment import software
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import write_json
from p2pzoo_bench.comparison import Comparison, Finished, Line, compared, differences, metric_of
from p2pzoo_bench.executors import FRESH, Executor, Job, RunningJob
from p2pzoo_bench.table_file import Row, Table, is_seed

POLL_SECONDS, SHOWN_SECONDS = 0.1, 0.5
TRIES = 3  # of a run that is lost again and again before it has saved anything more


class Progress(Protocol):
    """Who shows how far a table is."""

    def begin(self, doing: RunningJob) -> None:
        """A run starts."""

    def images(self, made: int, left: int, doing: Sequence[RunningJob]) -> None:
        """How many images the runs have seen since all this began, how many are still to come, and what is made."""

    def note(self, text: str) -> None: ...


class Stopped(Exception):
    """A signal ended the runs that were going on; what is done is kept."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


@dataclass(frozen=True)
class Cell:
    """One run of the table: a row with a seed."""

    row: Row
    experiment: Experiment

    @property
    def images(self) -> int:
        return self.experiment.train.images_seen


class Bench:
    """A table over the runs of a folder. Reads and checks everything when it is made, and writes nothing then.

    overrides  for every row, as `-s` takes them; after the rows' own
    options    for every `p2pzoo run`, such as --accept-stale

    Raises UserError with every fault of the recipes, and where a metric needs what the data lacks.
    """

    def __init__(
        self,
        table: Table,
        registry: Registry,
        runs: Path,
        *,
        profile: str | None = None,
        seeds: int | None = None,
        overrides: Sequence[str] = (),
        options: Sequence[str] = (),
        pick: Callable[[], str] | None = None,
    ) -> None:
        if table.study:
            told = "a table of what people say: p2pzoo study asks them, p2pzoo study-analyze --table shows it"
            raise UserError(f"{table.name}: {told}")
        self.table, self.registry, self.runs, self.options = table, registry, runs, options
        self.committed = table.folder / "results"
        self.overrides = [*table.overrides({}), *overrides]
        self.unavailable: dict[str, str] = {}
        self._stores: dict[str, Store] = {}
        if seeded := [*filter(is_seed, overrides)]:
            raise UserError(f"-s {seeded[0]}: a table's rows are made with seeds 0, 1, …; say how many with --seeds")
        picked = pick and functools.cache(pick)
        first = [self._experiment(row, 0, profile, picked) for row in table.trained]
        self._check(first)
        self.profile = next(
            experiment.recipe.profile
            for row, experiment in zip(table.trained, first, strict=True)
            if row.name == table.baseline
        )
        self._seeds = seeds or table.seeds
        self.cells = self._cells(overrides, profile, picked)
        if untrusted := self._untrusted():
            self.unavailable |= untrusted
            self.cells = self._cells(overrides, profile, picked)

    def _cells(self, overrides: Sequence[str], profile: str | None, pick: Callable[[], str] | None) -> list[Cell]:
        self.overrides = [*self.table.overrides(self.unavailable), *overrides]
        return [
            Cell(row, self._experiment(row, seed, profile, pick))
            for seed in range(self._seeds)
            for row in self.table.trained
        ]

    def _experiment(self, row: Row, seed: int, profile: str | None, pick: Callable[[], str] | None) -> Experiment:
        assert row.recipe
        settings = [*row.overrides, *self.overrides, f"seed={seed}"]
        return config.load(row.recipe, profile, settings, pick=pick, registry=self.registry)

    def _check(self, experiments: Sequence[Experiment]) -> None:
        """What the data lacks is refused, and rows that are measured in unlike ways.

        A metric of the table that cannot be had here is left out, with its reason.
        """
        faults = []
        protocols: dict[str, tuple[str, dict[str, Any]]] = {}  # {metric: (the first row that has it, its protocol)}
        for row, experiment in zip(self.table.trained, experiments, strict=True):
            store = self.store(experiment)
            try:
                check_needs(experiment, store)
            except UserError as error:
                faults += [f"[rows.{row.name}] {fault}" for fault in error.faults]
                continue
            for name in dict.fromkeys([*self.table.metrics, *map(metric_of, self.table.columns)]):
                if name in self.unavailable or name not in experiment.metrics:
                    continue
                try:
                    described = protocol(experiment, name, store)
                except UserError as error:
                    if name in self.table.metrics:  # a recipe's own: its run says so
                        self.unavailable[name] = str(error)
                    continue
                other, before = protocols.setdefault(name, (row.name, described))
                if told := "; ".join(differences(before, described)):
                    faults.append(f"[rows.{row.name}] {name} is measured otherwise than in [rows.{other}] ({told})")
        named = {name for experiment in experiments for name in experiment.metrics}
        faults += [
            f"{self.table.name}: column '{column}' names no metric of its rows; they have {', '.join(sorted(named))}"
            for column in self.table.columns
            if metric_of(column) not in named
        ]
        if faults:
            raise UserError(*faults)

    def _untrusted(self) -> dict[str, str]:
        """{metric of the table: why its numbers would mean nothing}, of those that are still to be measured."""
        lacking = [cell.experiment for cell in self.cells if self.finished(cell) is None]
        told: dict[str, str] = {}
        checked: set[tuple[int, str]] = set()
        for experiment in lacking:
            store = self.store(experiment)
            for name in self.table.metrics:
                if name in self.unavailable or name in told or (id(store), name) in checked:
                    continue
                checked.add((id(store), name))
                try:
                    device = torch.device(pick_device(experiment.compute.device))
                    check_trust(metrics_of(experiment, store, [name]), device)
                except UserError as error:
                    told[name] = str(error)
        return told

    def store(self, experiment: Experiment) -> Store:
        """The split that an experiment is evaluated on, opened once."""
        key = json.dumps([experiment.dataset.identity(), experiment.evaluate.split], sort_keys=True)
        if key not in self._stores:
            self._stores[key] = Store(
                experiment.dataset.build(split=experiment.evaluate.split), compute=experiment.compute
            )
        return self._stores[key]

    # --- what is there ---

    def finished(self, cell: Cell) -> Finished | None:
        """The cell's results, if they are complete: with every metric, under today's protocols."""
        store = self.store(cell.experiment)
        run = run_for(cell.experiment, self.runs)
        if run.state == "complete" and not missing(cell.experiment, run, store):
            return Finished(run.folder)
        for folder in sorted(self.committed.glob(f"*-{cell.experiment.id}")):
            if (folder / "stats.safetensors").exists() and not missing(cell.experiment, Run(folder), store):
                return Finished(folder)
        return None

    def stale(self) -> dict[str, list[str]]:
        """{folder in the runs folder: what has changed since} of finished runs that were made by other code."""
        found = {}
        for cell in self.cells:
            run = run_for(cell.experiment, self.runs)
            changed = changed_sources(run.status.get("sources", {}), sources(cell.experiment))
            if changed and run.state == "complete":
                found[str(run.folder)] = changed
        return found

    def missing(self) -> list[Cell]:
        """The cells that must still be trained or evaluated, one for each experiment."""
        cells = {cell.experiment.id: cell for cell in self.cells if self.finished(cell) is None}
        return list(cells.values())

    # --- what is missing ---

    def run_missing(self, progress: Progress, place: Executor) -> dict[str, str]:
        """Train and evaluate what is missing. Returns {id: why it failed}. Raises Stopped.

        A run that is lost with the machine it was on begins again elsewhere, from its last checkpoint.
        """
        failures: dict[str, str] = {}
        jobs = {cell.experiment.id: self._job(cell) for cell in self.missing()}
        waiting = deque(jobs.values())
        count = Count(jobs.values())
        lost: dict[str, list[int]] = {}  # {id: images that it had seen each time}
        begun: set[str] = set()
        shown_at = 0.0

        def fail(job: Job, told: str) -> None:
            failures[job.id] = told
            progress.note(f"{job.name} failed: {told}")
            count.end(job)

        with _catch_signals() as came, place:
            passed_on = 0
            while place.waiting() or (waiting and not came):
                while waiting and not came and place.room():
                    job = waiting.popleft()
                    try:
                        place.begin(job)
                    except UserError as error:
                        fail(job, str(error))
                time.sleep(POLL_SECONDS)
                for signum in came[passed_on:]:
                    place.stop(signal.SIGTERM if signum == signal.SIGHUP else signum)  # the terminal was closed
                    passed_on += 1
                for ended in place.ended():
                    job = ended.job
                    begun.discard(job.id)
                    if ended.lost and not came:
                        lost.setdefault(job.id, []).append(saved := _saved(job))
                        if lost[job.id][-TRIES:].count(saved) < TRIES:
                            progress.note(f"{job.name} was lost ({ended.lost}); it goes on from {saved} images")
                            waiting.appendleft(job.again())
                            continue
                    if ended.stopped and not came:  # by someone else: the table stops with it
                        os.kill(os.getpid(), signal.SIGTERM)
                    elif (told := ended.failed or ended.lost) and not came:
                        fail(job, told)
                    elif not came:
                        count.end(job, whole=True)
                        for found in read_findings(job.run):
                            progress.note(f"{job.name}: {found['what']} ({found['told']}, at {found['images']} images)")
                if time.monotonic() - shown_at > SHOWN_SECONDS:
                    shown_at = time.monotonic()
                    doing = place.doing()
                    for each in doing:
                        if each.job.id not in begun:
                            progress.begin(each)
                            begun.add(each.job.id)
                    progress.images(*count(doing), doing)
            if came:  # whatever the runs made of it: they may not have been ready to listen
                raise Stopped(came[0])
        progress.images(*count([]), [])
        return failures

    def _job(self, cell: Cell) -> Job:
        name = f"{cell.row.label}, seed {cell.experiment.seed}"
        return Job(name, cell.experiment, self.runs, tuple(self.options))

    # --- the table ---

    def _lines(self, failures: Mapping[str, str]) -> list[Line]:
        """The rows with what is finished of them."""
        found = []
        for row in self.table.rows:
            if row.recipe is None:
                found.append(self._target(row))
                continue
            cells = [cell for cell in self.cells if cell.row is row]
            line = Line(row.name, row.label, cells[0].experiment, published=row.published)
            for cell in cells:
                if finished := self.finished(cell):
                    line.finished.append(finished)
                else:
                    line.failed = failures.get(cell.experiment.id, "not trained yet")
            found.append(line)
        return found

    def _target(self, row: Row) -> Line:
        """What y itself would score on the baseline row's data."""
        experiment = self._baseline.experiment
        store = self.store(experiment)
        described = [experiment.dataset.identity(), vars(experiment.evaluate)]
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:10]
        line = Line(row.name, row.label, experiment, published=row.published, target=True)
        for folder in (
            self.runs / "target" / f"{self.profile}-{digest}",
            self.committed / f"target-{self.profile}-{digest}",
        ):
            if (folder / "stats.safetensors").exists() and not missing(experiment, Run(folder), store):
                return replace(line, finished=[Finished(folder)])
        run = Run(self.runs / "target" / f"{self.profile}-{digest}")
        try:
            with run.lock():
                evaluate_target(experiment, run, store, digest)
                write_json(run.folder / "env.json", software())
        except UserError as error:
            return replace(line, failed=str(error))
        return replace(line, finished=[Finished(run.folder)])

    def drawing(self) -> list[str]:
        """The metrics among the columns that draw something of all rows."""
        metrics = self._baseline.experiment.metrics
        shown = dict.fromkeys(map(metric_of, self.table.columns))
        return [name for name in shown if name in metrics and hasattr(metrics[name].factory, "draw")]

    @property
    def _baseline(self) -> Cell:
        return next(cell for cell in self.cells if cell.row.name == self.table.baseline)

    def compared(self, failures: Mapping[str, str]) -> Comparison:
        """The table of what is finished by now. failures: as `call_factory` gave them."""
        facts = {
            "table": self.table.name,
            "title": self.table.title,
            "source": self.table.source,
            "profile": self.profile,
        }
        store = self.store(self._baseline.experiment)
        lines = self._lines(failures)
        return compared(lines, self.table.baseline, self.table.columns, self.unavailable, store, facts=facts)


class Count:
    """How many images a table's runs have seen since it began, and how many they have still to see."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = {job.id: job for job in jobs}
        self._had = {id: 0 if FRESH in job.options else RunningJob(job).images for id, job in self._jobs.items()}
        self._now = dict(self._had)

    def end(self, job: Job, *, whole: bool = False) -> None:
        """No more is to come of this run: it is whole, or it has failed."""
        self._now[job.id] = job.images if whole else max(RunningJob(job).images, self._had[job.id])
        self._jobs.pop(job.id)

    def __call__(self, doing: Sequence[RunningJob]) -> tuple[int, int]:
        self._now |= {each.job.id: max(each.images, self._had[each.job.id]) for each in doing}
        left = sum(job.images - self._now[id] for id, job in self._jobs.items())
        return sum(self._now.values()) - sum(self._had.values()), left


@contextlib.contextmanager
def _catch_signals() -> Iterator[list[int]]:
    """The signals to stop that have come. A closed terminal is none under nohup."""
    came: list[int] = []
    closed = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    listened = (signal.SIGINT, signal.SIGTERM, *closed)
    before = {signum: signal.signal(signum, lambda signum, _frame: came.append(signum)) for signum in listened}
    try:
        yield came
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _saved(job: Job) -> int:
    """The images that a run's last checkpoint is of."""
    return max((images_of(file) for file in job.run.checkpoints.glob("*.safetensors")), default=0)
