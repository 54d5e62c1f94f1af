"""From a table file to a finished table: find what is there, train what is missing, put it together.

Every run is a process of its own, `p2pzoo run` with the row's recipe and one seed, because Accelerate's state and peak
memory belong to a process. Seeds are the outermost loop, so that each pass over the rows makes a whole table.
Finished results count wherever they lie: in the runs folder, or beside the table file in results/.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from p2pzoo.comparison import Comparison, Finished, Line, compared
from p2pzoo.data import Store
from p2pzoo.errors import UserError
from p2pzoo.evaluate import check_needs, evaluate_target, missing
from p2pzoo.experiment import Experiment, check
from p2pzoo.files import write_json
from p2pzoo.recipe import read_recipe
from p2pzoo.registry import Registry
from p2pzoo.run import Run, run_for
from p2pzoo.session import software
from p2pzoo.tables import Row, Table

POLL_SECONDS = 0.5


class Progress(Protocol):
    """Who shows how far a table is."""

    def begin(self, what: str) -> None:
        """A run starts."""

    def images(self, done: int) -> None:
        """How many images the runs have seen so far, of those that were missing at the start."""

    def note(self, text: str) -> None: ...


class Stopped(Exception):
    """A signal ended the run that was going on; what is done is kept."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


@dataclass(frozen=True)
class Cell:
    """One run of the table: a row with a seed."""

    row: Row
    experiment: Experiment

    @property
    def images(self) -> int:
        return self.experiment.train.steps * self.experiment.train.batch_size


class Bench:
    """A table over the runs of a folder. Reads and checks everything when it is made, and writes nothing then.

    overrides: for every row, as `-s` takes them; after the rows' own.

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
        pick: Callable[[], str] | None = None,
    ) -> None:
        self.table, self.registry, self.runs = table, registry, runs
        self.committed = table.folder / "results"
        self.overrides = [*table.overrides({}), *overrides]
        self.unavailable: dict[str, str] = {}
        self._stores: dict[str, Store] = {}
        first = [self._experiment(row, 0, profile, pick) for row in table.trained]
        self.profile = first[0].recipe.profile
        self._check(first)
        self.overrides = [*table.overrides(self.unavailable), *overrides]
        self.cells = [
            Cell(row, self._experiment(row, seed, self.profile, pick))
            for seed in range(seeds or table.seeds)
            for row in table.trained
        ]

    def _experiment(self, row: Row, seed: int, profile: str | None, pick: Callable[[], str] | None) -> Experiment:
        assert row.recipe
        settings = [*row.overrides, *self.overrides, f"seed={seed}"]
        return check(read_recipe(row.recipe, profile, settings, pick=pick), self.registry)

    def _check(self, experiments: Sequence[Experiment]) -> None:
        """What the data lacks is refused; a metric that cannot be had here is left out, with its reason."""
        faults = []
        for row, experiment in zip(self.table.trained, experiments, strict=True):
            store = self.store(experiment)
            try:
                check_needs(experiment, store)
            except UserError as error:
                faults += [f"[rows.{row.name}] {fault}" for fault in error.faults]
                continue
            for name in self.table.metrics:
                if name not in self.unavailable:
                    try:
                        experiment.metrics[name].build(dataset=store.dataset)
                    except UserError as error:
                        self.unavailable[name] = str(error)
        named = {name for experiment in experiments for name in experiment.metrics}
        faults += [
            f"{self.table.name}: column '{column}' names no metric of its rows; they have {', '.join(sorted(named))}"
            for column in self.table.columns
            if column.partition(".")[0] not in named
        ]
        if faults:
            raise UserError(*faults)

    def store(self, experiment: Experiment) -> Store:
        """The split that an experiment is evaluated on, opened once."""
        key = json.dumps([experiment.dataset.identity(), experiment.evaluate.split], sort_keys=True)
        if key not in self._stores:
            self._stores[key] = Store(experiment.dataset.build(split=experiment.evaluate.split))
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

    def missing(self) -> list[Cell]:
        """The cells that must still be trained or evaluated, one for each experiment."""
        cells = {cell.experiment.id: cell for cell in self.cells if self.finished(cell) is None}
        return list(cells.values())

    # --- what is missing ---

    def fill(self, progress: Progress) -> dict[str, str]:
        """Train and evaluate what is missing. Returns {id: why it failed}. Raises Stopped."""
        failures = {}
        seen = 0
        for cell in self.missing():
            progress.begin(f"{cell.row.label}, seed {cell.experiment.seed}")
            run = run_for(cell.experiment, self.runs)
            told = self._train(cell, run, lambda images, before=seen: progress.images(before + images))  # type: ignore[misc]
            seen += cell.images
            progress.images(seen)
            if told:
                failures[cell.experiment.id] = told
                progress.note(f"{cell.row.label}, seed {cell.experiment.seed} failed: {told}")
        return failures

    def command(self, cell: Cell) -> list[str]:
        """`p2pzoo run` of a cell."""
        recipe = cell.experiment.recipe
        assert cell.row.recipe
        settings = [*cell.row.overrides, *self.overrides]
        profile = [] if recipe.profile == "plain" else ["--profile", recipe.profile]
        return [
            *(sys.executable, "-m", "p2pzoo", "run", cell.row.recipe, *profile),
            *("--seed", str(cell.experiment.seed), "--runs", str(self.runs), "--quiet"),
            *(part for setting in settings for part in ("-s", setting)),
        ]

    def _train(self, cell: Cell, run: Run, shown: Callable[[int], None]) -> str | None:
        """Run a cell to its end; why it failed, or None."""
        process = subprocess.Popen(
            self.command(cell),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,  # a terminal's Ctrl-C reaches it once, through us
        )
        try:
            with _passed_on(process) as came:
                while True:
                    try:
                        _, told = process.communicate(timeout=POLL_SECONDS)
                        break
                    except subprocess.TimeoutExpired:
                        shown(min(_images_of(run), cell.images))
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if came:  # whatever the run made of it: it may not have been ready to listen, or have ended
            raise Stopped(came[0])
        if process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise Stopped(process.returncode - 128)
        if process.returncode == 0:
            return None
        lines = [line for line in told.splitlines() if line.strip()]
        return lines[-1] if lines else f"ended with code {process.returncode}"

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
        with run.lock():
            evaluate_target(experiment, run, store, digest)
            write_json(run.folder / "env.json", software())
        return replace(line, finished=[Finished(run.folder)])

    @property
    def _baseline(self) -> Cell:
        return next(cell for cell in self.cells if cell.row.name == self.table.baseline)

    def compared(self, failures: Mapping[str, str]) -> Comparison:
        """The table of what is finished by now. failures: as `fill` gave them."""
        facts = {
            "table": self.table.name,
            "title": self.table.title,
            "source": self.table.source,
            "profile": self.profile,
        }
        store = self.store(self._baseline.experiment)
        lines = self._lines(failures)
        return compared(lines, self.table.baseline, self.table.columns, self.unavailable, store, facts=facts)


@contextlib.contextmanager
def _passed_on(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """A signal to stop goes to the run, which saves itself. Gives the signals that came."""
    came: list[int] = []

    def pass_on(signum: int, _frame: object) -> None:
        came.append(signum)
        process.send_signal(signum)

    before = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _images_of(run: Run) -> int:
    """How many images a run has seen, as its log tells."""
    lines = run.lines("timings.jsonl")
    return int(lines[-1]["images"]) if lines else 0
