"""Settings that a table chooses for each row and fold, by the same number of trials for every row.

A trial trains the row's recipe with other settings and fewer images, and is measured on the validation images of the
fold. The best trial gives the settings of the fold's run, which alone is tested. Methods that are tuned with different
effort cannot be compared (Lucic et al. 2018, arXiv:1711.10337).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from p2pzoo.utils.errors import UserError
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.table_file import Row, Table


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
            overrides=(*row.overrides, *trial, f"train.images={images}", "evaluate.split='val'"),
            published={},
            trials=(),
        )
        for row in _first_rows(table)
        for images in [max(1, round(table.search.share * count(row)))]
        for number, trial in enumerate(row.trials)
    )
    return replace(
        table, title=f"{table.title}: trials", source="", baseline=rows[0].name, rows=rows, answer=False, primary=None,
        search=None, columns={metric: metric},
        metrics={name: values for name, values in table.metrics.items() if name == metric},
    )  # fmt: skip


def choose_settings(table: Table, trials: Bench) -> Table:
    """The table with the settings that were best in each fold.

    trials  of `build_trials`

    Raises UserError if a trial is missing.
    """
    assert table.search
    metric = table.search.metric
    if trials.unavailable:
        raise UserError(*trials.unavailable.values())
    missing = [cell for cell in trials.cells if trials.find_finished(cell) is None]
    if missing:
        first = f"'{missing[0].row.label}', seed {missing[0].experiment.seed}"
        raise UserError(
            f"{table.name}: {len(missing)} of {len(trials.cells)} trials are missing, such as {first}: they choose the "
            "settings of the rows; train them first"
        )
    sign = -1 if trials.better_direction(metric) == "lower" else 1
    numbers = {(cell.row.name, cell.experiment.seed): sign * _number(trials, cell, metric) for cell in trials.cells}
    chosen = {
        _training(row): tuple(_best(row, seed, numbers) for seed in range(row.folds or trials.seeds))
        for row in _first_rows(table)
    }
    rows = tuple(replace(row, chosen=chosen[_training(row)]) if row.trials else row for row in table.rows)
    return replace(table, rows=rows)


def _best(row: Row, seed: int, numbers: Mapping[tuple[str, int], float]) -> tuple[str, ...]:
    """The first of the best trials; one without a number is the worst."""
    ranked = [-math.inf if math.isnan(n := numbers[f"{row.name}-{k}", seed]) else n for k in range(len(row.trials))]
    return row.trials[ranked.index(max(ranked))]


def _number(trials: Bench, cell: Any, metric: str) -> float:
    run = trials.find_finished(cell)
    assert run
    value = run.results["metrics"][metric]["value"]
    return math.nan if value is None else float(value)


def _first_rows(table: Table) -> list[Row]:
    """The first row of each training."""
    rows: dict[Any, Row] = {}
    for row in table.trained:
        rows.setdefault(_training(row), row)
    return [*rows.values()]


def _training(row: Row) -> tuple[Any, ...]:
    return row.recipe, row.overrides
