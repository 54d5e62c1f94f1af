"""A table on somebody's own pairs, in a given time: `p2pzoo bench zoo:methods.toml --data mine.toml --budget 20m`.

[dataset] is taken from their recipe, and all else from the table, except its [compute]: that was for the machine which
made the table. Every row trains for the same time. With MIN_PAIRS pairs or more, the time is split among three folds,
so that each pair is tested once and differences have an interval over folds; with fewer there is one run for each row,
tested on the recipe's own test split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from p2pzoo import config
from p2pzoo.config.experiment import Experiment
from p2pzoo.data import Store
from p2pzoo.plugin import schema
from p2pzoo.plugin.registry import Registry
from p2pzoo.runs.progress import format_duration
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.folds import Fold
from p2pzoo.utils.suggest import did_you_mean
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.executors import Job
from p2pzoo_bench.rates import Rate, measure_rates
from p2pzoo_bench.table_file import Row, Table, inline, key_of

MIN_PAIRS, NUM_FOLDS = 30, 3
RATES = "rates.json"  # in the runs folder: a table keeps the lengths that it began with
Note = Callable[[str], None]


@dataclass(frozen=True)
class OwnData:
    """A table on other data.

    table   its rows train on the data
    pairs   how many there are
    test    how many of them a run is tested on, about
    notes   what the table does not show on this data, one line each
    """

    table: Table
    pairs: int
    test: int
    notes: tuple[str, ...] = ()


def on_own_data(table: Table, recipe: str, profile: str | None, methods: Sequence[str], registry: Registry) -> OwnData:
    """The table on the data of a recipe.

    methods  names of the rows to train; (): all

    Raises UserError for unknown methods, and for a recipe whose data cannot be read.
    """
    experiment = config.load(recipe, profile, registry=registry)
    rows = _choose_rows(table, methods)
    fold_overrides, pairs, test = _split(experiment)
    store = Store(experiment.dataset.build(split=experiment.evaluate.split), compute=experiment.compute)
    metrics, notes = _usable_metrics(table, store, registry)
    columns = {column: heading for column, heading in table.columns.items() if column.partition(".")[0] not in notes}
    renamed = {column: columns[column] for column in columns if metrics.get(column) != table.metrics.get(column)}
    columns = {f"{column}.paired" if column in renamed else column: heading for column, heading in columns.items()}
    dataset = {"use": experiment.dataset.entry.full_name, **_without_none(experiment.dataset.values)}
    overrides = (f"dataset={inline(dataset)}", *(fold_overrides or ()))
    trained = [row.name for row in rows if row.recipe]
    return OwnData(
        replace(
            table,
            title=f"{table.title}: {Path(recipe).stem}",
            source="",
            rows=tuple(
                replace(row, overrides=(*_without_compute(row), *overrides), published={}, folds=None, trials=())
                for row in rows
            ),
            search=None,
            baseline=table.baseline if table.baseline in trained else trained[0],
            folds=fold_overrides is not None,
            groups=table.groups and fold_overrides is not None,
            answer=table.answer or (table.groups and fold_overrides is None),  # groups need the interval over folds
            seeds=1 if fold_overrides is None else NUM_FOLDS,
            metrics=metrics,
            columns=columns,
            folder=table.folder,
        ),
        pairs,
        test,
        (
            *(f"not measured on this data: {why}" for why in notes.values()),
            *(f"{heading}: leaves out the image itself only; this data has no blocks" for heading in renamed.values()),
            *(["[compute]: this machine's, not that of the table"] if any(map(_has_compute, rows)) else []),
            *(["settings: those of the recipes; [search] is left out with --data"] if table.search else []),
        ),
    )


def with_budget(
    own: OwnData, budget: float, runs: Path, build: Callable[[Table], Bench], *, threads: int, jobs: int, note: Note
) -> Table:
    """The table with a number of images for each row that takes `budget` seconds of training, over all its folds.

    build    makes the Bench of a table
    threads  of each run; 0: all cores
    jobs     runs that train at a time, for the estimate of the whole time

    Raises UserError if the budget is shorter than one step and one evaluation of a row.
    """
    first = {cell.row.name: cell.experiment for cell in reversed(build(own.table).cells)}
    rows = {_training(row): row for row in reversed(own.table.trained)}  # one row of each training, the first
    rows = dict(reversed(rows.items()))
    recipes = {}
    for row in rows.values():
        note(f"measuring how fast '{row.label}' trains")
        recipes[_key(row, first[row.name])] = Job(row.name, first[row.name], runs).recipe(threads)
    rates = measure_rates(recipes, runs / RATES)
    seconds = budget / own.table.seeds
    images, total = {}, 0.0
    least = 0.0
    for training, row in rows.items():
        experiment, rate = first[row.name], rates[_key(row, first[row.name])]
        evaluation = rate.evaluate * own.test
        least = max(least, own.table.seeds * (rate.step + evaluation))
        images[training] = max(1, int(seconds / rate.step)) * experiment.train.step_images
        total += own.table.seeds * (seconds + evaluation)
        note(_describe(row, images[training], rate, seconds, evaluation, own.table.seeds))
    if budget < least:
        raise UserError(
            f"--budget: a row needs {format_duration(least)} for one training step and for measuring its test images, "
            f"over {own.table.seeds} fold(s): give {_round_up(least)} or more"
        )
    note(f"all rows: about {format_duration(total / jobs)}, {jobs} run(s) at a time")
    rows_with_images = tuple(
        replace(row, overrides=(*row.overrides, f"train.images={images[_training(row)]}")) if row.recipe else row
        for row in own.table.rows
    )
    return replace(own.table, rows=rows_with_images)


def _describe(row: Row, images: int, rate: Rate, seconds: float, evaluation: float, folds: int) -> str:
    each = f" for each of {folds} folds" if folds > 1 else ""
    return (
        f"{row.label}: {images:,} images in {format_duration(seconds)}{each}, {rate.step:.2g} s a step; then "
        f"{format_duration(evaluation)} to measure"
    )


def _round_up(seconds: float) -> str:
    return f"{-(-int(seconds + 1) // 60)}m" if seconds > 90 else f"{int(seconds) + 1}s"


def _key(row: Row, experiment: Experiment) -> str:
    """The name of a row's rate: it changes with the recipe."""
    return f"{row.name}-{experiment.id}"


def _training(row: Row) -> tuple[Any, ...]:
    """What rows that share a training have in common."""
    return row.recipe, row.overrides


def _without_compute(row: Row) -> list[str]:
    return [override for override in row.overrides if key_of(override).partition(".")[0] != "compute"]


def _has_compute(row: Row) -> bool:
    return len(_without_compute(row)) < len(row.overrides)


def _choose_rows(table: Table, methods: Sequence[str]) -> list[Row]:
    targets = [row for row in table.rows if not (row.recipe or row.blur or row.flat or row.other_fold)]
    if not methods:
        return [*table.trained, *targets]
    names = [row.name for row in table.trained]
    if unknown := [name for name in methods if name not in names]:
        raise UserError(f"--methods {unknown[0]}: no such row in {table.name}{did_you_mean(unknown[0], names)}")
    return [*(row for row in table.trained if row.name in methods), *targets]


def _split(experiment: Experiment) -> tuple[list[str] | None, int, int]:
    """(the overrides that ask for folds; the pairs of all splits; those that a run is tested on, about).

    A dataset with folds of its own needs no override; None in their place: there are too few pairs for folds.
    """
    component = replace(experiment.dataset, fold=None)
    has_own_folds = "fold" in schema.get_params(component.factory)
    if has_own_folds:
        sizes = [len(component.build(split=split)) for split in ("train", "val", "test")]
        return ([] if sum(sizes) >= MIN_PAIRS else None), sum(sizes), sizes[2]
    try:
        folded = [replace(component, fold=Fold(0, NUM_FOLDS)).build(split=split) for split in ("train", "val", "test")]
    except UserError:  # fewer blocks than folds need
        folded = []
    pairs = sum(map(len, folded))
    if pairs >= MIN_PAIRS:
        return [f"dataset.folds={NUM_FOLDS}"], pairs, pairs // NUM_FOLDS
    sizes = [len(component.build(split=split)) for split in ("train", "val", "test")]
    return None, sum(sizes), sizes[2]


def _usable_metrics(
    table: Table, store: Store, registry: Registry
) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """(the table's metrics that this data has what they need for, {name of another: why it is not measured}).

    Without blocks, a kernel distance leaves out the image itself (`NAME.paired`) in place of images of its block.
    """
    available = {"labels": store.has_labels, "blocks": store.has_blocks}
    metrics, notes = {}, {}
    for name, values in table.metrics.items():
        missing = [need for need in registry.get("metric", str(values.get("use"))).needs if not available.get(need)]
        if missing:
            notes[name] = f"{table.columns.get(name, name)} needs {missing[0]}"
        elif values.get("between_blocks") and not store.has_blocks:
            metrics[name] = {key: value for key, value in values.items() if key != "between_blocks"}
        else:
            metrics[name] = values
    return metrics, notes


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.to_jsonable(values).items() if value is not None}
