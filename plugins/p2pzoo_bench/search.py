"""Settings that a table chooses for each row and fold, by the same number of trials for every row.

A trial trains the row's recipe with other settings and fewer images, and is measured on the validation images of the
fold, translated as the recipe says: rows with other translations of the same training share its settings. The best
trial gives the settings of the fold's run, which alone is tested. Methods that are tuned with different effort cannot
be compared (Lucic et al. 2018, arXiv:1711.10337).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from p2pzoo.runs.run_folder import locate_run
from p2pzoo.utils.errors import UserError, raise_faults
from p2pzoo_bench.bench import Bench, Cell
from p2pzoo_bench.comparison import metric_of
from p2pzoo_bench.executors import FRESH
from p2pzoo_bench.run_missing import has_diverged
from p2pzoo_bench.table_file import Row, Table, key_of, list_trainings, overlaps
from p2pzoo_bench.validation_split import find_split_fault


class Trials(Bench):
    """The trials of a table: a Bench of `build_trials`.

    One that diverged is the worst. It would diverge again, so it is trained again with --fresh only.
    """

    def missing(self) -> list[Cell]:
        missing = super().missing()
        return missing if FRESH in self.options else [cell for cell in missing if not _has_diverged(self, cell)]


def build_trials(table: Table, count: Callable[[Row], int]) -> Table:
    """The table whose rows are the trials: "bridge-0" has the first of `trials` of [rows.bridge].

    count  returns the number of images of a row's own training
    """
    assert table.search
    metric = table.search.metric
    rows = tuple(
        replace(
            row,
            name=f"{row.name}-{number}",
            label=f"{row.label}, trial {number + 1}",
            overrides=(*row.overrides, *trial),
            fixed=(f"train.images={images}", "evaluate.split='val'"),
            published={},
            evaluate={},
            trials=(),
        )
        for row in list_trainings(table).values()
        for images in [max(1, round(table.search.share * count(row)))]
        for number, trial in enumerate(row.trials)
    )
    return replace(
        table, title=f"{table.title}: trials", source="", baseline=rows[0].name, rows=rows, answer=False, groups=False,
        pooled_spread=False, primary=None, search=None, columns={metric: metric},
        metrics={name: values for name, values in table.metrics.items() if name == metric_of(metric)},
    )  # fmt: skip


def check_search(table: Table, trials: Bench, overrides: Sequence[str]) -> None:
    """Raises UserError before anything is trained, if the search cannot choose.

    trials     of `build_trials`
    overrides  of the command line: they hold for all trials, so a trial must not set the same, or a part of it
    """
    assert table.search
    if trials.unavailable:
        raise UserError(*trials.unavailable.values())
    if trials.better_direction(table.search.metric) is None:
        raise UserError(
            f"{table.name}: [search] metric = {table.search.metric!r}: neither more nor less of it is better: name "
            "another metric"
        )
    data = {
        json.dumps(cell.experiment.dataset.identity(), sort_keys=True): cell.experiment
        for cell in trials.cells
        if cell.experiment.seed == 0  # folds are split alike
    }
    raise_faults([fault for experiment in data.values() if (fault := find_split_fault(experiment))])
    for row in table.trained:
        for key in (key_of(setting) for trial in row.trials for setting in trial):
            if given := [override for override in overrides if overlaps(key_of(override), key)]:
                raise UserError(f"-s {given[0]}: the trials of [rows.{row.name}] set {key}; remove it there or here")


def choose_settings(table: Table, trials: Bench, failures: Mapping[str, str]) -> Table:
    """The table with the settings that were best in each fold.

    trials    of `build_trials`
    failures  {id of a trial: why it failed}

    A trial that diverged is the worst. Raises UserError if another one is missing.
    """
    assert table.search
    metric = table.search.metric
    missing = [cell for cell in trials.cells if trials.find_finished(cell) is None and not _has_diverged(trials, cell)]
    if missing:
        first = missing[0]
        reason = f" ({failures[first.experiment.id]})" if first.experiment.id in failures else ""
        raise UserError(
            f"{table.name}: {len(missing)} of {len(trials.cells)} trials are missing, such as '{first.row.label}', "
            f"seed {first.experiment.seed}{reason}: they choose the settings of the rows; train them first"
        )
    sign = -1 if trials.better_direction(metric) == "lower" else 1
    numbers = {(cell.row.name, cell.experiment.seed): sign * _number(trials, cell, metric) for cell in trials.cells}
    chosen = {
        row.training: tuple(_best(row, seed, numbers) for seed in range(min(row.folds or trials.seeds, trials.seeds)))
        for row in list_trainings(table).values()
    }
    rows = tuple(replace(row, chosen=chosen[row.training]) if row.trials else row for row in table.rows)
    return replace(table, rows=rows)


def _best(row: Row, seed: int, numbers: Mapping[tuple[str, int], float]) -> tuple[str, ...]:
    """The first of the best trials; one without a number is the worst."""
    ranked = [-math.inf if math.isnan(n := numbers[f"{row.name}-{k}", seed]) else n for k in range(len(row.trials))]
    return row.trials[ranked.index(max(ranked))]


def _number(trials: Bench, cell: Cell, metric: str) -> float:
    run = trials.find_finished(cell)
    if run is None:  # it diverged
        return math.nan
    return run.number(metric)


def _has_diverged(trials: Bench, cell: Cell) -> bool:
    return has_diverged(locate_run(cell.experiment, trials.runs))
