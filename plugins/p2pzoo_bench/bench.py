"""A table file, its runs, and the finished table: find the results that exist, train the missing ones, compare.

An executor trains the runs (executors.py): on this machine or on a cluster. Seeds are the outermost loop, so each pass
over the rows completes a table. Finished results count in the runs folder, and in results/ beside the table file.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from p2pzoo import config
from p2pzoo.compute.engine import pick_device
from p2pzoo.config.experiment import Experiment
from p2pzoo.config.frozen_table import NO_TABLE
from p2pzoo.data import Store
from p2pzoo.models.checkpoint_model import list_checkpoints
from p2pzoo.plugin.registry import Registry
from p2pzoo.runs.changed_data import DataFingerprints
from p2pzoo.runs.evaluate import (
    build_metrics,
    build_protocol,
    check_needs,
    check_trust,
    evaluate_target,
    find_missing_metrics,
)
from p2pzoo.runs.monitor import read_findings
from p2pzoo.runs.run_folder import Run, locate_run
from p2pzoo.training.environment import software
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import read_object, write_json
from p2pzoo.utils.suggest import did_you_mean
from p2pzoo_bench.answer import find_answer, list_judged_columns
from p2pzoo_bench.changed_target import changed_target
from p2pzoo_bench.comparison import Comparison, TableRow, build_comparison, metric_of, why_not_comparable
from p2pzoo_bench.draws_noise import add_facts_for_answer
from p2pzoo_bench.executors import ACCEPT_STALE, FRESH, Executor, Job
from p2pzoo_bench.metric_numbers import list_numbers
from p2pzoo_bench.metric_texts import explain_metrics
from p2pzoo_bench.row_groups import find_groups
from p2pzoo_bench.run_missing import Progress, run_missing
from p2pzoo_bench.stale_runs import SourceChanges, describe_stale
from p2pzoo_bench.stored_results import EvaluatedImages, FinishedRun
from p2pzoo_bench.table_columns import NOT_TRAINED
from p2pzoo_bench.table_file import Row, Table, is_fold, is_seed

_NO_FOLDS = (
    "its dataset has no folds of its own, and this table trains one run for each fold: split the dataset with -s "
    "dataset.folds={folds}, or copy the table, and write seeds = 3 in place of folds"
)


@dataclass(frozen=True)
class Cell:
    """One run of the table: a row with a seed."""

    row: Row
    experiment: Experiment

    @property
    def images(self) -> int:
        return self.experiment.train.images_seen


class Bench:
    """A table over the runs of a folder. The constructor reads and checks everything and writes nothing.

    overrides  for every row, as `-s` takes them; applied after the rows' own
    options    for every `p2pzoo run`, such as --accept-stale
    pick       returns the profile if `profile` is None

    Raises UserError with every fault of the recipes, and if a metric needs something that the data lacks.
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
            raise UserError(
                f"{table.name}: this table holds rates of the perceptual study; use p2pzoo study and "
                "p2pzoo study-analyze --table"
            )
        self.table, self.registry, self.runs, self.options = table, registry, runs, options
        self.given = overrides
        self.committed = table.folder / "results"
        self.overrides = [*table.overrides({}), *overrides]
        self.unavailable: dict[str, str] = {}
        self._stores: dict[str, Store] = {}
        self._protocols: dict[str, dict[str, Any]] = {}
        self._fingerprints = DataFingerprints()
        self._changes = SourceChanges(self._fingerprints)
        if table.folds and (folded := [*filter(is_fold, overrides)]):
            raise UserError(f"-s {folded[0]}: this table trains one run for each fold; set how many with --seeds")
        if seeded := [*filter(is_seed, overrides)]:
            raise UserError(f"-s {seeded[0]}: a table trains its rows with seeds 0, 1, …; set how many with --seeds")
        picked = pick and functools.cache(pick)
        profile = profile or table.profile
        first = self._first_experiments(profile, picked)
        self._check(first)
        self.profile = next(
            experiment.recipe.profile
            for row, experiment in zip(table.trained, first, strict=True)
            if row.name == table.baseline
        )
        self.seeds = seeds or table.seeds
        self.cells = self._cells(overrides, profile, picked)
        if untrusted := self._untrusted():
            self.unavailable |= untrusted
            self.cells = self._cells(overrides, profile, picked)
        self._check_numbers()

    def _first_experiments(self, profile: str | None, pick: Callable[[], str] | None) -> list[Experiment]:
        """The experiments of seed 0. Raises UserError with the faults of all rows; one that rows share, once."""
        experiments: list[Experiment] = []
        faults: dict[str, str] = {}
        for row in self.table.trained:
            try:
                experiments.append(self._experiment(row, 0, profile, pick))
            except UserError as error:
                for fault in error.faults:
                    no_folds = self.table.folds and fault.startswith("-s dataset.fold=0  ")
                    words = _NO_FOLDS.format(folds=self.table.seeds) if no_folds else fault
                    faults.setdefault(words, f"{row.where}  [rows.{row.name}] {words}")
        if faults:
            raise UserError(*faults.values())
        return experiments

    def _cells(self, overrides: Sequence[str], profile: str | None, pick: Callable[[], str] | None) -> list[Cell]:
        self.overrides = [*self.table.overrides(self.unavailable), *overrides]
        return [
            Cell(row, self._experiment(row, seed, profile, pick))
            for seed in range(self.seeds)
            for row in self.table.trained
            if row.folds is None or seed < row.folds
        ]

    def _experiment(self, row: Row, seed: int, profile: str | None, pick: Callable[[], str] | None) -> Experiment:
        assert row.recipe
        folds = [f"dataset.fold={seed}"] if self.table.folds else []
        further = self.table.further_translations(row)
        chosen = row.chosen[seed] if row.chosen else ()
        settings = [*row.overrides, *chosen, *further, *self.overrides, *row.fixed, f"seed={seed}", *folds]
        return config.load(row.recipe, profile, settings, pick=pick, registry=self.registry)

    def _check(self, experiments: Sequence[Experiment]) -> None:
        """Refuse rows that need something the data lacks, and rows with different protocols.

        A metric of the table that cannot be built here is recorded in `unavailable`, with the reason.
        """
        faults = []
        protocols: dict[str, tuple[Row, dict[str, Any]]] = {}  # {metric: (the first row that has it, its protocol)}
        for row, experiment in zip(self.table.trained, experiments, strict=True):
            store = self.store(experiment)
            try:
                check_needs(experiment, store)
            except UserError as error:
                faults += [f"{row.where}  [rows.{row.name}] {fault}" for fault in error.faults]
                continue
            for name in dict.fromkeys([*self.table.metrics, *map(metric_of, self.table.columns)]):
                if name in self.unavailable or f"{name}{row.suffix}" not in experiment.measurements:
                    continue
                try:
                    described = self._protocol(experiment, f"{name}{row.suffix}", store)
                except UserError as error:
                    if name in self.table.metrics:  # else it is a metric of the recipe: its run reports the error
                        self.unavailable[name] = str(error)
                    continue
                other, before = protocols.setdefault(name, (row, described))
                if reason := why_not_comparable(row.label, described, other.label, before):
                    faults.append(
                        f"{row.where}  [rows.{row.name}] {name} has another protocol than in [rows.{other.name}] "
                        f"({other.where}): {reason}; make the two rows equal in this"
                    )
        named = {name for experiment in experiments for name in experiment.measurements}
        faults += [
            f"{self.table.name}: column '{column}': no row has this metric; they have {', '.join(sorted(named))}"
            for column in self.table.columns
            if metric_of(column) not in named
        ]
        if faults:
            raise UserError(*faults)

    def _check_numbers(self) -> None:
        """Refuse columns such as "fcn_score.clas_iou", if their metric has no such number.

        Where no finished run shows it, the metric measures two images. A name with a further dot, such as
        "coverage.class.water", may depend on the images: it is not checked.
        """
        faults = []
        for column in self.table.columns:
            name = metric_of(column)
            cells = [cell for cell in self.cells if f"{name}{cell.row.suffix}" in cell.experiment.measurements]
            if column.count(".") != 1 or name in self.unavailable:
                continue
            if any(run.has(column) for run in filter(None, map(self.find_finished, cells))):
                continue
            experiment, measured = cells[0].experiment, f"{name}{cells[0].row.suffix}"
            try:
                numbers = list_numbers(experiment, measured, self.store(experiment))
            except Exception:  # each run measures these two images before it trains, and reports it
                continue
            numbers = [name + number.removeprefix(measured) for number in numbers]  # without the row's suffix
            if column not in numbers:
                advice = did_you_mean(column, numbers) or f"; it has {', '.join(numbers)}"
                faults.append(f"{self.table.name}: column '{column}': {name} has no such number{advice}")
        if faults:
            raise UserError(*faults)

    def _untrusted(self) -> dict[str, str]:
        """{metric of the table: reason} for metrics that are not trustworthy here and are not measured yet."""
        reasons: dict[str, str] = {}
        checked: set[tuple[int, str]] = set()
        for experiment in [cell.experiment for cell in self.cells if self.find_finished(cell) is None]:
            store = self.store(experiment)
            for name in self.table.metrics:
                if name in self.unavailable or name in reasons or (id(store), name) in checked:
                    continue
                checked.add((id(store), name))
                try:
                    device = torch.device(pick_device(experiment.compute.device))
                    check_trust(build_metrics(experiment, store, [name]), device)
                except UserError as error:
                    reasons[name] = str(error)
        return reasons

    def store(self, experiment: Experiment) -> Store:
        """The evaluated split of an experiment, opened once."""
        key = json.dumps([experiment.dataset.identity(), experiment.evaluate.split], sort_keys=True)
        if key not in self._stores:
            self._stores[key] = Store(
                experiment.dataset.build(split=experiment.evaluate.split), compute=experiment.compute
            )
        return self._stores[key]

    def _protocol(self, experiment: Experiment, name: str, store: Store) -> dict[str, Any]:
        """`build_protocol`, which builds the metric, once for all runs with the same metric on the same data."""
        measurement = experiment.measurements[name]
        parts = [measurement.metric.identity(), experiment.dataset.identity(), experiment.evaluate.split]
        key = json.dumps([*parts, measurement.translations.protocol()], sort_keys=True, default=str)
        if key not in self._protocols:
            self._protocols[key] = build_protocol(experiment, name, store)
        return self._protocols[key]

    def _lacks_metrics(self, experiment: Experiment, folder: Path) -> bool:
        return bool(find_missing_metrics(experiment, Run(folder), self.store(experiment), self._protocol))

    # --- existing results ---

    def find_finished(self, cell: Cell) -> FinishedRun | None:
        """The cell's results, if they are complete: every metric, under today's protocols, of today's data."""
        run = locate_run(cell.experiment, self.runs)
        is_complete = run.state == "complete" and not self.find_changed_data(cell)
        if is_complete and not self._lacks_metrics(cell.experiment, run.folder):
            return FinishedRun(run.folder, cell.row.suffix)
        for folder in sorted(self.committed.glob(f"*-{cell.experiment.id}")):
            if (folder / "stats.safetensors").exists() and not self._lacks_metrics(cell.experiment, folder):
                return FinishedRun(folder, cell.row.suffix)
        return None

    def find_changed_data(self, cell: Cell) -> list[str]:
        """The names of the data that changed after the cell's run was trained, such as "train data".

        A further pair also moves others to another fold or split, so that such a run may have been trained on the
        images that it would be tested on. [] if nothing was trained yet, or with --accept-stale.
        """
        if ACCEPT_STALE in self.options:
            return []
        run = locate_run(cell.experiment, self.runs)
        has_weights = run.state in ("trained", "complete") or bool(list_checkpoints(run.folder))
        return self._fingerprints.find_changed(cell.experiment, run) if has_weights else []

    def refuse_changed_data(self) -> None:
        """Raises UserError with all runs whose data changed, unless --fresh or --accept-stale is among `options`."""
        if FRESH in self.options:
            return
        faults = [fault for cell in self.cells if (fault := self._changed_data_fault(cell))]
        if faults:
            raise UserError(*dict.fromkeys(faults))  # rows can share a run

    def _changed_data_fault(self, cell: Cell) -> str | None:
        if not self.find_changed_data(cell) or self.find_finished(cell):  # there can be a committed copy of its results
            return None
        return f"{locate_run(cell.experiment, self.runs).folder}: {self._changed_data(cell)}"

    def _changed_data(self, cell: Cell) -> str:
        changed = " and ".join(self.find_changed_data(cell))
        return (
            f"{changed} changed after this run began: train it again with {FRESH}, or use it as it is with "
            f"{ACCEPT_STALE}"
        )

    def stale(self) -> dict[str, list[str]]:
        """{run folder: the code and data that changed} of the finished runs that other code or data trained."""
        stale = {}
        for cell in self.cells:
            finished = self.find_finished(cell)
            if finished and (changed := self._changes.find(cell.experiment, finished.folder)):
                stale[str(finished.folder)] = changed
        return stale

    def missing(self) -> list[Cell]:
        """The cells that must be trained or evaluated, one for each experiment."""
        cells = {cell.experiment.id: cell for cell in self.cells if self.find_finished(cell) is None}
        return list(cells.values())

    # --- missing runs ---

    def run_missing(self, progress: Progress, executor: Executor) -> dict[str, str]:
        """Train and evaluate the missing runs. Returns {id: why it failed} of those that are not finished then.

        Raises Stopped, and UserError for runs whose data changed.
        """
        self.refuse_changed_data()
        cells = {cell.experiment.id: cell for cell in self.missing()}

        def is_finished(id: str) -> bool:
            return self.find_finished(cells[id]) is not None

        failures = run_missing([self.job(cell) for cell in cells.values()], executor, progress, is_finished)
        return {id: reason for id, reason in failures.items() if not is_finished(id)}

    def starts_over(self, cell: Cell) -> bool:
        """Whether --fresh trains the cell's run again, and does not only measure what it lacks.

        So it is if the run is unfinished, if its data changed, or if it did not keep weights that a metric needs.
        """
        if FRESH not in self.options:
            return False
        run = locate_run(cell.experiment, self.runs)
        measured = [measurement.translations for measurement in cell.experiment.measurements.values()]
        has_weights = all(run.weights(translations.weights, translations.at).exists() for translations in measured)
        is_trained = run.state in ("trained", "complete") and has_weights
        return not is_trained or bool(self.find_changed_data(cell))

    def job(self, cell: Cell) -> Job:
        name = f"{cell.row.label}, seed {cell.experiment.seed}"
        options = (option for option in self.options if option != FRESH or self.starts_over(cell))
        return Job(name, cell.experiment, self.runs, tuple(options))

    # --- the table ---

    def _rows(self, failures: Mapping[str, str], targets: bool) -> list[TableRow]:
        """The rows with their finished runs."""
        rows = []
        for row in self.table.rows:
            if row.recipe is None:
                rows += [self._target(row)] if targets else []
                continue
            cells = [cell for cell in self.cells if cell.row is row]
            table_row = TableRow(
                row.name, row.label, cells[0].experiment, published=row.published, evaluate=row.evaluate,
                others=[cell.experiment for cell in cells[1:]] if row.chosen else [],
            )  # fmt: skip
            reasons: dict[str, None] = {}  # each once
            for cell in cells:
                if run := self.find_finished(cell):
                    table_row.runs.append(run)
                else:
                    reasons[self._why_missing(cell, failures)] = None
            table_row.failed = "; ".join(reasons) or None
            rows.append(table_row)
        return rows

    def _why_missing(self, cell: Cell, failures: Mapping[str, str]) -> str:
        """Why a run has no results: it failed now or before, its data changed, or nobody has trained it."""
        if reason := failures.get(cell.experiment.id):
            return reason
        if self.find_changed_data(cell):
            return self._changed_data(cell)
        run = locate_run(cell.experiment, self.runs)
        if run.state != "failed":
            return NOT_TRAINED
        diverged = [finding["message"] for finding in read_findings(run) if finding["kind"] == "diverged"]
        return diverged[0] if diverged else "its training failed: without --no-train it is tried again"

    def _target(self, row: Row) -> TableRow:
        """The row of y itself, measured on the baseline row's data: once, or once for each fold."""
        baseline = [cell.experiment for cell in self.cells if cell.row.name == self.table.baseline]
        table_row = TableRow(row.name, row.label, baseline[0], published=row.published, target=True)
        for experiment in baseline if self.table.folds else baseline[:1]:
            try:
                table_row.runs.append(self._measure_target(row, experiment))
            except UserError as error:
                return replace(table_row, runs=[], failed=str(error))
        return table_row

    def _measure_target(self, row: Row, experiment: Experiment) -> FinishedRun:
        """The results of y itself, as the row shows it, on one experiment's data.

        Raises UserError if it cannot be measured.
        """
        # further translations and snapshots are of a G
        experiment = replace(experiment, evaluate=replace(experiment.evaluate, also=NO_TABLE, at=()))
        store = self.store(experiment)
        # the other keys of [evaluate] are about translations
        evaluated = {key: getattr(experiment.evaluate, key) for key in ("test_mode", "split", "samples")}
        change = changed_target(row, experiment, self.table.seeds)  # all folds, also if --seeds trains fewer
        described = [experiment.dataset.identity(), evaluated, *([change.identity] if change else [])]
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:10]
        run = Run(self.runs / "target" / f"{self.profile}-{digest}")
        data = self._fingerprints.of(experiment) if hasattr(store.dataset, "fingerprint") else {}
        before = (read_object(run.folder / "env.json") or {}).get("data", data)
        is_outdated = before != data and ACCEPT_STALE not in self.options
        for folder in (run.folder, self.committed / f"target-{self.profile}-{digest}"):
            if folder == run.folder and is_outdated:
                continue
            if (folder / "stats.safetensors").exists() and not self._lacks_metrics(experiment, folder):
                return FinishedRun(folder)
        with run.lock():
            if is_outdated:  # all metrics are measured again
                run.clear()
            # {} is no data's fingerprint: with --accept-stale the folder may get numbers of two data sets
            recorded = data if is_outdated or before == data else {}
            write_json(run.folder / "env.json", {**software(), **({"data": recorded} if data else {})})
            seed = experiment.seed if self.table.folds else None
            evaluate_target(experiment, run, store, digest, seed=seed, change=change)
        return FinishedRun(run.folder)

    def better_direction(self, column: str) -> str | None:
        """ "higher", "lower", or None if neither is better; None too if no row has the metric."""
        measurements = [cell.experiment.measurements.get(metric_of(column)) for cell in self.cells]
        return next((getattr(m.metric.factory, "better", None) for m in measurements if m), None)

    def test_per_train(self, experiment: Experiment) -> float:
        """Number of evaluated images per training image."""
        return len(self.store(experiment)) / len(experiment.dataset.build(split="train"))

    def find_drawing_metrics(self) -> list[str]:
        """The metrics among the columns that draw a figure of all rows."""
        metrics = self._baseline.experiment.metrics
        names = dict.fromkeys(map(metric_of, self.table.columns))
        return [name for name in names if name in metrics and hasattr(metrics[name].factory, "draw")]

    @property
    def _baseline(self) -> Cell:
        return next(cell for cell in self.cells if cell.row.name == self.table.baseline)

    def compare(self, failures: Mapping[str, str], *, targets: bool = True) -> Comparison:
        """The table of the runs that are finished.

        failures  as `run_missing` returned them
        targets   with the rows of y itself, which are measured now if they have not been
        """
        facts = {
            "table": self.table.name,
            "title": self.table.title,
            "source": self.table.source,
            "profile": self.profile,
            **({"folds": self.seeds} if self.table.folds else {}),
            **({"pooled_spread": True} if self.table.pooled_spread else {}),
            **self.table.describe_search(),
            **({"data": self.table.data} if self.table.data else {}),
        }
        images = EvaluatedImages.of_store(self.store(self._baseline.experiment))
        rows = self._rows(failures, targets)
        table = build_comparison(rows, self.table.baseline, self.table.columns, self.unavailable, images, facts=facts)
        changed = self.stale()
        if stale := describe_stale(table.rows, lambda _, folder: changed.get(str(folder), [])):
            table.doc["stale"] = stale
        if self.table.answer:
            add_facts_for_answer(table, images)
            table.doc["answer"] = find_answer(table.doc, self.table.primary)
            table.doc["explanations"] = explain_metrics(
                list_judged_columns(table.doc, self.table.primary), table.doc["rows"]
            )
        if self.table.groups:
            table.doc["groups"] = find_groups(table.doc, self.table.primary)
        return table
