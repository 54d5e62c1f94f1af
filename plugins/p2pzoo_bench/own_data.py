"""A table on somebody's own pairs, in a given time: `p2pzoo bench zoo:methods.toml --data mine.toml --budget 20m`.

[dataset] is taken from their recipe, and all else from the table, except its [compute], which was for the machine that
made the table, and `set_without_data` of its rows, which was for the images. Every row trains for the same time. With
MIN_PAIRS pairs or more, the time is split among three folds, so that each pair is tested once and differences have an
interval over folds (of a dataset with folds of its own, the first three are tested); with fewer there is one run for
each row, tested on the recipe's own test split. Rows that cannot take the data are left out, with a note
(trainable_rows.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from p2pzoo import config
from p2pzoo.config.experiment import FOLD_KEYS, Component, Experiment
from p2pzoo.config.recipe import LENGTHS, parse_override
from p2pzoo.data import Store
from p2pzoo.data.pairing import SPLITS
from p2pzoo.plugin import schema
from p2pzoo.plugin.registry import Registry
from p2pzoo.runs.progress import format_duration
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.folds import Fold
from p2pzoo.utils.plurals import format_count
from p2pzoo.utils.suggest import did_you_mean
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.comparison import metric_of
from p2pzoo_bench.executors import Job
from p2pzoo_bench.rates import Rate, UnknownSpeed, measure_rates, name_rate
from p2pzoo_bench.table_file import Row, Table, inline, key_of, list_trainings
from p2pzoo_bench.trainable_rows import Reason, find_reasons, leave_out
from p2pzoo_bench.usable_metrics import leave_out_unusable, without_blocks

MIN_PAIRS, NUM_FOLDS = 30, 3
GROUND_TRUTH = "ground truth"  # the label of y itself: the table's may say what its own images are, such as photos
RATES = "rates.json"  # in the runs folder: a table keeps the lengths that it began with
Note = Callable[[str], None]
Folds = Literal["made", "own"] | None


@dataclass(frozen=True)
class OwnData:
    """A table on other data.

    table  its rows train on the data
    folds  "made": p2pzoo splits the pairs; "own": the dataset does; None: there are too few pairs for folds
    pairs  how many are tested in one of the folds; without folds, how many there are
    test   how many of them a run is tested on, about
    notes  what the table leaves out on this data, and what differs from its own, one line each
    """

    table: Table
    folds: Folds
    pairs: int
    test: int
    notes: tuple[str, ...] = ()

    def describe(self, recipe: str) -> str:
        """One line: how many pairs of the recipe are tested."""
        if self.folds == "own":
            return (
                f"{self.pairs} test pairs of {recipe}, each in one of the first {NUM_FOLDS} of the dataset's own folds"
            )
        pairs = f"{format_count(self.pairs, 'pair')} of {recipe}"
        if self.folds == "made":
            return f"{pairs}, each tested in one of {NUM_FOLDS} folds"
        return f"{pairs}, one run for each row, tested on {self.test} of them"

    def with_facts(self, recipe: str) -> OwnData:
        """The table with the facts that its document has about the data. recipe: the name of its file."""
        facts = {
            "recipe": recipe, "pairs": self.pairs, "tested": self.pairs if self.folds else self.test, "budget": None,
            "summary": self.describe(recipe), "notes": [*self.notes],
        }  # fmt: skip
        return replace(self, table=replace(self.table, data=facts))


def on_own_data(
    table: Table,
    recipe: str,
    profile: str | None,
    methods: Sequence[str],
    registry: Registry,
    overrides: Sequence[str] = (),
) -> OwnData:
    """The table on the data of a recipe.

    methods    names of the rows to train; (): all
    overrides  of the command line; those of [dataset] change the data

    Raises UserError for unknown methods, for a recipe that names a fold or whose data cannot be read, if the baseline
    or all rows beside it cannot be trained on it, and if none of the table's columns can be measured on it.
    """
    of_data = [override for override in overrides if "dataset" in parse_override(override)]
    experiment = config.load(recipe, profile, of_data, registry=registry)
    _refuse_folds(experiment)
    chosen = _choose_rows(table, methods)
    folds, pairs, test = _split(experiment)
    measured_first = _fold_of(experiment.dataset, folds, 0).build(split=experiment.evaluate.split)
    store = Store(measured_first, compute=experiment.compute)
    values = {"use": experiment.dataset.entry.full_name, **_without_none(experiment.dataset.values)}
    on_data = (f"dataset={inline(values)}", *([f"dataset.folds={NUM_FOLDS}"] if folds == "made" else []))
    rows = [replace(row, overrides=(*_for_other_data(row), *on_data), only_here=()) for row in chosen]
    given = [*overrides, *(["dataset.fold=0"] if folds else [])]
    reasons, processes = find_reasons(rows, table, profile, given, store, registry)
    moved = _move(table, recipe, rows, {row.name for row in rows if row.training in reasons}, folds)
    moved, left_out = leave_out(moved, recipe, reasons, processes)
    moved = moved if store.has_blocks else replace(moved, metrics=without_blocks(moved.metrics))
    changed, unmeasured = leave_out_unusable(moved, profile, store, registry)
    measured = {column: heading for column, heading in table.columns.items() if metric_of(column) not in unmeasured}
    if not measured:
        why = "; ".join(f"{name}{reason}" for name, reason in unmeasured.items())
        raise UserError(f"--data {recipe}: no column of {table.name} can be measured on it ({why}): use another table")
    renamed = {name for name in measured if changed.metrics.get(name) != table.metrics.get(name)}
    columns = {f"{name}.paired" if name in renamed else name: heading for name, heading in measured.items()}
    notes = (
        *left_out,
        *(f"not measured on this data: {table.columns.get(name, name)}{why}" for name, why in unmeasured.items()),
        *(f"{measured[name]}: leaves out the image itself only; this data has no blocks" for name in measured
          if name in renamed),
        *(["[compute]: this machine's, not that of the table"] if any(map(_has_compute, chosen)) else []),
        *dict.fromkeys(f"{key_of(override)}: the recipe's; the table's is for its own images"
                       for row in chosen for override in row.only_here),
        *(["settings: those of the recipes; [search] is left out with --data"] if table.search else []),
    )  # fmt: skip
    own = OwnData(replace(changed, columns=columns), folds, pairs, test, notes)
    return own.with_facts(Path(recipe).name)


def _move(table: Table, recipe: str, rows: Sequence[Row], refused: Collection[str], folds: Folds) -> Table:
    """The table with these rows, and without what was for its own data only. Its baseline is its own, or if that was
    not chosen, the first row that is not `refused`."""
    trained = [row.name for row in rows if row.recipe]
    usable = [name for name in trained if name not in refused] or trained
    return replace(
        table,
        title=f"{table.title}: {Path(recipe).stem}",
        source="",
        rows=tuple(
            replace(row, published={}, folds=None, trials=(), label=row.label if row.recipe else GROUND_TRUTH)
            for row in rows
        ),
        search=None,
        baseline=table.baseline if table.baseline in trained else usable[0],
        folds=folds is not None,
        groups=table.groups and folds is not None,
        pooled_spread=table.pooled_spread and folds is not None,
        answer=table.answer or (table.groups and folds is None),  # groups need the interval over folds
        seeds=NUM_FOLDS if folds else 1,
    )


def check_budget(overrides: Sequence[str]) -> None:
    """Raises UserError if an override of the command line says how long to train, as --budget does.

    >>> check_budget(["train.batch_size=4"])
    """
    for override in overrides:
        train = parse_override(override).get("train")
        if isinstance(train, dict) and not train.keys().isdisjoint(LENGTHS):
            raise UserError(f"-s {override}: --budget says how long the rows train: remove one of the two")


def with_budget(
    own: OwnData, budget: float, runs: Path, build: Callable[[Table], Bench], *, threads: int, jobs: int, note: Note
) -> Table:
    """The table with a number of images for each row that takes `budget` seconds of training, over all its folds.

    build    makes the Bench of a table
    threads  of each run; 0: all cores
    jobs     runs that train at a time, for the estimate of the whole time

    A row whose speed cannot be measured is left out, with those of its training; so are rows with further translations
    of a training that take longer to measure than the budget (`_leave_out_slow`).

    Raises UserError if the budget is shorter than one step and one evaluation of a training, and if no row is left
    beside the baseline.
    """
    first = {cell.row.name: cell.experiment for cell in reversed(build(own.table).cells)}
    own, rates = _measure(own, first, runs, threads, note)
    own, rates = _leave_out_slow(own, rates, budget, note)
    seconds = budget / own.table.seeds
    images, total = {}, 0.0
    needs: dict[str, float] = {}
    for training, row in list_trainings(own.table).items():
        experiment, rate = first[row.name], rates[training]
        evaluation = rate.evaluate * own.test
        needs[row.label] = own.table.seeds * (rate.step + evaluation)
        images[training] = max(1, int(seconds / rate.step)) * experiment.train.step_images
        total += own.table.seeds * (seconds + evaluation)
        note(_describe(row, images[training], rate, seconds, evaluation, own.table.seeds))
    if budget < (least := max(needs.values())):
        raise UserError(
            f"--budget: '{max(needs, key=needs.__getitem__)}' needs {format_duration(least)} for one training step and "
            f"for measuring its test images, over {format_count(own.table.seeds, 'fold')}: give {_round_up(least)} or "
            "more, or name other rows with --methods"
        )
    note(f"all rows: about {format_duration(total / jobs)}, {format_count(jobs, 'run')} at a time")
    rows_with_images = tuple(
        replace(row, overrides=(*_without_length(row), f"train.images={images[row.training]}")) if row.recipe else row
        for row in own.table.rows
    )
    return replace(own.table, rows=rows_with_images, data={**own.table.data, "budget": budget})


def _leave_out_slow(
    own: OwnData, rates: Mapping[Any, Rate], budget: float, note: Note
) -> tuple[OwnData, dict[Any, Rate]]:
    """(the table without rows whose measuring does not fit in the budget, the rates without them).

    Of a training, the rows with further translations that take least stay, as long as all of them fit. The row of its
    own translations and the baseline always stay. Raises UserError if no other row is left.
    """
    slow: dict[str, str] = {}
    kept: dict[Any, Rate] = {}
    for training, rate in rates.items():
        rows = [row for row in own.table.trained if row.training == training and row.name != own.table.baseline]
        further = sorted((row for row in rows if row.name in rate.also), key=lambda row: rate.also[row.name])
        taken = rate.step / own.test + rate.evaluate - sum(rate.also[row.name] for row in further)
        for row in further:
            of_row = rate.also[row.name]
            if (needs := own.table.seeds * own.test * (taken + of_row)) > budget:
                slow[row.name] = (
                    f"{row.label} is left out: with its translations, measuring this training takes "
                    f"{format_duration(needs)}, longer than the budget"
                )
            else:
                taken += of_row
        left = sum(rate.also[row.name] for row in further if row.name in slow)
        kept[training] = replace(rate, evaluate=rate.evaluate - left)
    if not slow:
        return own, kept
    for line in slow.values():
        note(line)
    rows = tuple(row for row in own.table.rows if row.name not in slow)
    if sum(row.recipe is not None for row in rows) < 2:
        raise UserError(
            "--budget: no row is left beside the baseline: " + "; ".join(slow.values()) + ": give more, or name other "
            "rows with --methods"
        )
    own = replace(own, table=replace(own.table, rows=rows), notes=(*own.notes, *slow.values()))
    return own.with_facts(own.table.data["recipe"]), kept


def _measure(
    own: OwnData, first: Mapping[str, Experiment], runs: Path, threads: int, note: Note
) -> tuple[OwnData, dict[Any, Rate]]:
    """(the table without rows whose speed cannot be measured, {training: its rate}).

    first  {row: its first experiment}
    """
    rates: dict[Any, Rate] = {}
    reasons: dict[Any, Reason] = {}
    for training, row in list_trainings(own.table).items():
        key = f"{row.name}-{name_rate(first[row.name], threads)}"
        note(f"measuring how fast '{row.label}' trains")
        recipe = Job(row.name, first[row.name], runs).recipe(threads)
        try:
            rates[training] = measure_rates({key: recipe}, runs / RATES)[key]
        except UnknownSpeed as error:
            reasons[training] = Reason(str(error).removeprefix(f"{key}: "))
            if row.name == own.table.baseline:  # refused, before the others are measured
                leave_out(own.table, own.table.data["recipe"], reasons)
    table, left_out = leave_out(own.table, own.table.data["recipe"], reasons)
    for line in left_out:
        note(line)
    return replace(own, table=table, notes=(*own.notes, *left_out)).with_facts(own.table.data["recipe"]), rates


def _describe(row: Row, images: int, rate: Rate, seconds: float, evaluation: float, folds: int) -> str:
    each = f" for each of {folds} folds" if folds > 1 else ""
    return (
        f"{row.label}: {images:,} images in {format_duration(seconds)}{each}, {rate.step:.2g} s a step; then "
        f"{format_duration(evaluation)} to measure"
    )


def _round_up(seconds: float) -> str:
    return f"{-(-int(seconds + 1) // 60)}m" if seconds > 90 else f"{int(seconds) + 1}s"


def _without_length(row: Row) -> list[str]:
    return [override for override in row.overrides if key_of(override) not in {f"train.{name}" for name in LENGTHS}]


def _for_other_data(row: Row) -> list[str]:
    return [override for override in row.overrides if override not in row.only_here and not _is_compute(override)]


def _has_compute(row: Row) -> bool:
    return any(map(_is_compute, row.overrides))


def _is_compute(override: str) -> bool:
    return key_of(override).partition(".")[0] == "compute"


def _choose_rows(table: Table, methods: Sequence[str]) -> list[Row]:
    targets = [row for row in table.rows if not (row.recipe or row.blur or row.flat or row.other_fold)]
    if not methods:
        return [*table.trained, *targets]
    names = [row.name for row in table.trained]
    if unknown := [name for name in methods if name not in names]:
        raise UserError(f"--methods {unknown[0]}: no such row in {table.name}{did_you_mean(unknown[0], names)}")
    return [*(row for row in table.trained if row.name in methods), *targets]


def _refuse_folds(experiment: Experiment) -> None:
    """Raises UserError if the recipe names a fold, or how many there are: --data makes them."""
    keys = ("fold",) if _has_own_folds(experiment) else FOLD_KEYS
    if given := [key for key in keys if ("dataset", key) in experiment.recipe.origins]:
        where = experiment.recipe.where(("dataset", given[0]))
        raise UserError(f"{where}  [dataset] {given[0]}: --data makes the folds itself: remove {' and '.join(given)}")


def _has_own_folds(experiment: Experiment) -> bool:
    return "fold" in schema.get_params(experiment.dataset.factory)


def _split(experiment: Experiment) -> tuple[Folds, int, int]:
    """`folds`, `pairs` and `test` of `OwnData`."""
    component = experiment.dataset
    if _has_own_folds(experiment):
        parts = _open_splits(component)
        if sum(map(len, parts)) < MIN_PAIRS:
            return None, _count_pairs(parts), len(parts[-1])
        tested = sum(len(_fold_of(component, "own", fold).build(split="test")) for fold in range(NUM_FOLDS))
        return "own", tested, tested // NUM_FOLDS
    try:
        pairs = sum(map(len, _open_splits(_fold_of(component, "made", 0))))
    except UserError:  # fewer blocks than folds need
        parts = _open_splits(component)
        return None, _count_pairs(parts), len(parts[-1])
    return (
        ("made", pairs, pairs // NUM_FOLDS) if pairs >= MIN_PAIRS else (None, pairs, len(component.build(split="test")))
    )


def _fold_of(component: Component, folds: Folds, fold: int) -> Component:
    """The dataset with its pairs split as in this fold."""
    if folds == "own":
        return replace(component, values={**component.values, "fold": fold})
    return replace(component, fold=Fold(fold, NUM_FOLDS)) if folds == "made" else component


def _open_splits(component: Component) -> list[Any]:
    return [component.build(split=split) for split in SPLITS]


def _count_pairs(parts: Sequence[Any]) -> int:
    """The pairs of several splits. Those that two splits share, as where val is test, count once."""
    counts: Counter[bytes] = Counter()
    for part in parts:
        pairs = (part[index] for index in range(len(part)))
        counts |= Counter(hashlib.sha256(pair.x.tobytes() + pair.y.tobytes()).digest() for pair in pairs)
    return counts.total()


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.to_jsonable(values).items() if value is not None}
