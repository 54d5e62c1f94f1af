"""Compare finished runs: means over seeds, differences over test images, one protocol per column.

The result is a document of plain values, the same for runs in runs/ and for committed results; `formats.py` prints it.
Differences come from the stored statistics of each image, which the metrics reduce: no training data is needed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from p2pzoo import config
from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.config.recipe import iter_leaves
from p2pzoo.config.settings import AT_USE_KINDS
from p2pzoo.models import safetensors_io
from p2pzoo.models.build import build_network, on_meta
from p2pzoo.models.process import generator_channels
from p2pzoo.plugin.registry import Registry
from p2pzoo.runs.results import describe_too_few
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.suggest import did_you_mean
from p2pzoo_bench.folds import FoldDifference, Spread, over_folds, pool_rows
from p2pzoo_bench.intervals import CONFIDENCE, Interval, over_seeds, paired_over_blocks
from p2pzoo_bench.stored_results import EvaluatedImages, FinishedRun, build_metrics, open_evaluated_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_FILES = ("recipe.toml", "results.json", "stats.safetensors")  # that a comparison reads


@dataclass
class TableRow:
    """A row of the table: its finished runs, one per seed.

    experiment  of its first seed: all share data and metrics, and their networks, unless [search] chose these
    others      of its other seeds, if [search] chose settings for each
    target      whether the row measures y itself instead of a translation
    failed      why runs are missing
    evaluate    what its translations differ in from those of the experiment
    """

    name: str
    label: str
    experiment: Experiment
    runs: list[FinishedRun] = field(default_factory=list)
    published: Mapping[str, float] = field(default_factory=dict)
    target: bool = False
    failed: str | None = None
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    others: Sequence[Experiment] = ()

    @property
    def picture(self) -> Path | None:
        """The first run's grid of test images."""
        return next((run.picture for run in self.runs if run.picture), None)


@dataclass(frozen=True)
class Comparison:
    """A table.

    doc      all its numbers, as plain values
    metrics  {name: metric} of its columns
    size     (H, W) of the images
    spreads  {column: the spread of all rows over folds}, if the table pools it
    """

    doc: dict[str, Any]
    rows: tuple[TableRow, ...]
    metrics: Mapping[str, Any]
    size: tuple[int, int]
    spreads: Mapping[str, Spread | None] = field(default_factory=dict)

    @property
    def pictures(self) -> dict[str, Path]:
        """{row's name: its grid of test images}"""
        return {row.name: row.picture for row in self.rows if not row.target and row.picture}

    def draw_figures(self) -> dict[str, Figure]:
        """{metric: its figure of all rows}, for metrics that have `draw`. A row's seeds are concatenated."""
        figures = {}
        for name, metric in self.metrics.items():
            stats = {row.label: _concatenated_stats(row, name) for row in self.rows if row.runs and not row.target}
            if hasattr(metric, "draw") and stats and all(stats.values()):
                figures[name] = metric.draw(stats)
        return figures


def _concatenated_stats(row: TableRow, name: str) -> dict[str, torch.Tensor]:
    """A metric's statistics, {statistic: (seeds × N, ...)}; empty if one of the seeds lacks it."""
    stats = [safetensors_io.strip_prefix(name, run.stats[0]) for run in row.runs]
    return {key: torch.cat([tensors[key] for tensors in stats]) for key in stats[0]} if all(stats) else {}


def compare_runs(
    folders: Sequence[Path], registry: Registry, *, baseline: str | None = None, wanted: Sequence[str] = ()
) -> Comparison:
    """Compare finished runs. Seeds of one experiment are one row.

    baseline  a row's name [default: the first row]
    wanted    names of metrics, as in [metrics.NAME] [default: all that all rows have]

    Raises UserError for a folder without a finished run, for an unknown baseline or metric, and if protocols differ.
    """
    rows = _group_by_experiment(folders, registry)
    runs = [run for row in rows for run in row.runs]
    names = [row.name for row in rows]
    if baseline is not None and baseline not in names:
        raise UserError(f"--baseline {baseline}: no such row{did_you_mean(baseline, names)}")
    shared = [c for c in runs[0].results["metrics"] if all(c in run.results["metrics"] for run in runs)]
    if unknown := [name for name in wanted if all(metric_of(column) != name for column in shared)]:
        raise UserError(
            f"--metric {unknown[0]}: not every run has it{did_you_mean(unknown[0], {metric_of(c) for c in shared})}"
        )
    columns = {column: column for column in shared if not wanted or metric_of(column) in wanted}
    data = open_evaluated_images(rows[0].experiment, runs)
    profiles = sorted({str(run.results["profile"]) for run in runs})
    facts: dict[str, Any] = {"table": "compare", "title": "Comparison", "source": "", "profile": ", ".join(profiles)}
    if not wanted and (left_out := _describe_left_out(runs, shared)):
        facts["left_out"] = left_out
    return build_comparison(rows, baseline or names[0], columns, {}, data, facts=facts)


def _describe_left_out(runs: Sequence[FinishedRun], shared: Sequence[str]) -> list[str]:
    """A note for the numbers that only some of the runs have: an evaluation that was interrupted has stored a part."""
    lacking: dict[str, list[str]] = {}
    for name in dict.fromkeys(metric_of(column) for run in runs for column in run.results["metrics"]):
        without = [run for run in runs if all(metric_of(column) != name for column in run.results["metrics"])]
        if without:
            lacking.setdefault(", ".join(str(run.folder) for run in without), []).append(name)
    return [f"Not in all runs, so left out: {', '.join(names)} (missing in {runs})" for runs, names in lacking.items()]


def _group_by_experiment(folders: Sequence[Path], registry: Registry) -> list[TableRow]:
    """One row for each experiment, with its seeds. A run that is listed twice counts once."""
    rows: dict[str, TableRow] = {}
    for folder in folders:
        if not all((folder / name).is_file() for name in RUN_FILES):
            raise UserError(f"{folder}: not a finished run (it needs {', '.join(RUN_FILES)})")
        run = FinishedRun(folder)
        if not run.results:
            raise UserError(
                f"{folder / 'results.json'}: not the results of a run; `p2pzoo run` with its recipe writes them again"
            )
        experiment = config.load(str(folder / "recipe.toml"), registry=registry)
        identity = json.dumps(experiment.identity() | {"seed": None}, sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:6]
        name = str(run.results["recipe"])
        row = rows.setdefault(digest, TableRow(name, name, experiment))
        if all(run.results["id"] != other.results["id"] for other in row.runs):
            row.runs.append(run)
    _rename_duplicates(rows)
    return list(rows.values())


def _rename_duplicates(rows: Mapping[str, TableRow]) -> None:
    """Append the hash of its settings to the name of each row that shares its recipe's name with another."""
    names = [row.name for row in rows.values()]
    for digest, row in rows.items():
        if names.count(row.name) > 1:
            row.name = row.label = f"{row.name} ({digest})"


def build_comparison(
    rows: Sequence[TableRow],
    baseline: str,
    columns: Mapping[str, str],
    unavailable: Mapping[str, str],
    data: EvaluatedImages,
    *,
    facts: Mapping[str, Any],
) -> Comparison:
    """Build the table of these rows. Raises UserError if a column would mix protocols.

    columns      {metric: heading}, as in a table file
    unavailable  {name of a metric: why there is no number}
    data         the evaluated split, or what the runs store about it
    facts        further entries of the document: title, source, profile, …; "folds" if each seed has its own data;
                 "pooled_spread" if intervals over folds take the spread of all rows together
    """
    measured = {column: heading for column, heading in columns.items() if metric_of(column) not in unavailable}
    folds = "folds" in facts
    digests = {column: shared_protocol(rows, column, by_seed=folds) for column in measured}
    reference = next(row for row in rows if row.name == baseline)
    components = {
        name: measurement.metric
        for name, measurement in reference.experiment.measurements.items()
        if name not in unavailable and any(metric_of(column) == name for column in columns)
    }
    metrics = build_metrics(components, data)
    reducers = {name: CachedReduce(metric, name) for name, metric in metrics.items()}
    spreads = _pool_columns(rows, reference, measured) if facts.get("pooled_spread") else {}
    doc = {
        **facts,
        "baseline": baseline,
        "resampled": "regions" if data.has_blocks else "images",
        "confidence": CONFIDENCE,
        "columns": [
            {
                "metric": column,
                "heading": heading,
                "better": better_direction(metrics, components, metric_of(column)),
                "protocol": digests.get(column),
                "unavailable": unavailable.get(metric_of(column)),
                **({"spread": vars(spread) if (spread := spreads[column]) else None} if column in spreads else {}),
            }
            for column, heading in columns.items()
        ],
        "rows": [_describe_row(row, reference, measured, reducers, data, spreads, folds=folds) for row in rows],
        "protocols": {
            digest: run.results["protocols"][digest]
            for row in rows
            for run in row.runs
            for digest in digests.values()
            if digest in run.results["protocols"]
        },
    }
    return Comparison(doc, tuple(rows), metrics, data.size, spreads)


def _pool_columns(
    rows: Sequence[TableRow], reference: TableRow, columns: Mapping[str, str]
) -> dict[str, Spread | None]:
    """{column: the spread of the trainings that have a finite number in every fold of the reference}.

    Rows that show the same training count once.
    """
    seeds = sorted(run.results["seed"] for run in reference.runs)
    trained = [{run.results["seed"]: run for run in row.runs} for row in rows if not row.target]
    complete = [[runs[seed] for seed in seeds] for runs in trained if all(seed in runs for seed in seeds)]
    trainings = {tuple(run.results["id"] for run in runs): runs for runs in reversed(complete)}
    spreads = {}
    for column in columns:
        having = [runs for runs in trainings.values() if all(column in run.results["metrics"] for run in runs)]
        numbers = [[_value(run, column) for run in runs] for runs in having]
        spreads[column] = pool_rows([row for row in numbers if np.isfinite(row).all()])
    return spreads


def metric_of(column: str) -> str:
    """The name of the metric that a column belongs to.

    >>> metric_of("fcn_score.class_iou")
    'fcn_score'
    """
    return column.partition(".")[0]


def better_direction(metrics: Mapping[str, Any], components: Mapping[str, Component], name: str) -> str | None:
    """Which direction is better, from the metric or, if it could not be built, from its class."""
    metric = metrics.get(name) or (components[name].factory if name in components else None)
    return getattr(metric, "better", None)


def shared_protocol(rows: Sequence[TableRow], column: str, *, by_seed: bool = False) -> str | None:
    """The protocol that all numbers of a column share, or that of its first number if each seed has its own data.

    by_seed  only numbers of the same seed must share their protocol

    Raises UserError if they do not.
    """
    first: dict[Any, tuple[TableRow, str, dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row.target):  # a row of y, which fits more, is not the one to compare with
        for run in row.runs:
            if column not in run.results["metrics"]:
                continue
            digest = run.results["metrics"][column]["protocol"]
            protocol = run.results["protocols"][digest]
            before, expected, other = first.setdefault(
                run.results["seed"] if by_seed else None, (row, digest, protocol)
            )
            if row.target or before.target:  # y is the same with any weights of G
                protocol, other = _without_translations(protocol), _without_translations(other)
            if digest != expected and (reason := why_not_comparable(row.label, protocol, before.label, other)):
                raise UserError(
                    f"{column}: '{row.label}' has another protocol than '{before.label}' ({reason}): compare only runs "
                    "that were evaluated in the same way"
                )
    return next((digest for _, digest, _ in first.values()), None)


def _without_translations(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What a protocol says besides the weights of G and its parameters at use."""
    return {key: value for key, value in protocol.items() if key not in ("weights", *AT_USE_KINDS)}


def why_not_comparable(label: str, protocol: Mapping[str, Any], other_label: str, other: Mapping[str, Any]) -> str:
    """What differs between the protocols of two rows; "" if their numbers may stand in one column.

    Rows of the last weights of G and of their average may, if each label says which it shows; and those of a process or
    generator with other parameters at use, if a label has their values.

    >>> why_not_comparable("flow, last", {"split": "test"}, "flow", {"split": "test", "weights": "average"})
    "weights: last instead of average; name them in the rows' labels"
    >>> why_not_comparable("flow, last", {"split": "test"}, "flow, average", {"split": "test", "weights": "average"})
    ''
    """
    weights, other_weights = protocol.get("weights", "last"), other.get("weights", "last")
    of_rows = dict.fromkeys(("weights", *AT_USE_KINDS))
    reasons = describe_differences({**other, **of_rows}, {**protocol, **of_rows})
    for kind in AT_USE_KINDS:
        tables = (label, protocol.get(kind, {})), (other_label, other.get(kind, {}))
        if tables[0][1] != tables[1][1] and (unnamed := [name for name, table in tables if not _names(name, table)]):
            reasons.append(f"{kind}: {tables[0][1]} instead of {tables[1][1]}; name the values in '{unnamed[0]}'")
    if weights != other_weights and not (weights in label and other_weights in other_label):
        reasons.append(f"weights: {weights} instead of {other_weights}; name them in the rows' labels")
    return "; ".join(reasons)


def _names(label: str, table: Mapping[str, Any]) -> bool:
    """Whether a label has all values of a table: "flow, 4 steps" those of {"steps": 4}."""
    words = re.findall(r"[\w.]+", label)
    return all(f"{value:g}" in words if isinstance(value, float) else str(value) in words for value in table.values())


def describe_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Describe what differs between two protocols: b's value, then a's.

    >>> describe_differences({"split": "test", "images": 12}, {"split": "val", "images": 12})
    ['split: val instead of test']
    """
    left, right = dict(iter_leaves(a)), dict(iter_leaves(b))
    return [
        f"{'.'.join(key)}: {right.get(key)} instead of {left.get(key)}"
        for key in {**left, **right}
        if left.get(key) != right.get(key)
    ]


def _describe_row(
    row: TableRow,
    reference: TableRow,
    columns: Mapping[str, str],
    reducers: Mapping[str, CachedReduce],
    data: EvaluatedImages,
    spreads: Mapping[str, Spread | None],
    *,
    folds: bool,
) -> dict[str, Any]:
    """The row's entry of the document."""
    is_reference = row is reference
    differences = {} if is_reference else _differences_from(row, reference, columns, reducers, spreads, folds=folds)
    cells = {}
    for column in columns:
        values = [run.results["metrics"][column]["value"] for run in row.runs if column in run.results["metrics"]]
        if values:
            few = _describe_too_few(row, column, reducers, folds=folds)
            cells[column] = {
                "values": values,
                **_describe_interval(over_seeds(values)),
                **differences.get(column, {}),
                **({"too_few": few} if few else {}),
            }
    seconds, memory = (_read_costs(row, key) for key in ("seconds", "peak_megabytes"))
    return {
        "name": row.name,
        "label": row.label,
        "runs": [{"id": run.results["id"], "seed": run.results.get("seed")} for run in row.runs],
        "failed": row.failed,
        "published": dict(row.published),
        **({"target": True} if row.target else _describe_networks_of(row, data)),
        "seconds": round(float(np.median(seconds)), 1) if seconds else None,
        "peak_megabytes": max(memory) if memory else None,
        **_describe_timings(row),
        "cells": cells,
    }


def _describe_too_few(row: TableRow, column: str, reducers: Mapping[str, CachedReduce], *, folds: bool) -> str:
    """What to print beside a number of too few images; "" for the others.

    The mean over folds of an unbiased metric is one of all their images: its interval holds how much each fold varies.
    """
    runs = [run for run in row.runs if column in run.results["metrics"]]
    few = next((text for run in runs if (text := describe_too_few(run.results, column))), "")
    reduce = reducers.get(metric_of(column))
    if not (few and folds and reduce and getattr(reduce.metric, "unbiased", False)):
        return few
    numbers = [run.results["metrics"][column] for run in runs]
    images = sum(
        run.results["protocols"][number["protocol"]]["images"] for run, number in zip(runs, numbers, strict=True)
    )
    minimum = max(number.get("minimum_images", 0) for number in numbers)
    return "" if images >= minimum else f"too few images: {images} in all folds, of at least {minimum}"


def _read_costs(row: TableRow, key: str) -> list[float]:
    """This cost of each run that recorded it. The target has none, and a committed copy may lack its seconds."""
    trainings = [run.env.get("training") for run in row.runs]
    costs = [training.get(key) for training in trainings if isinstance(training, dict)]
    return [cost for cost in costs if isinstance(cost, (int, float)) and math.isfinite(cost)]


def _describe_timings(row: TableRow) -> dict[str, Any]:
    """The median time of a translation over the row's runs, and on what it was measured; {} if no run recorded it."""
    wanted = row.experiment.translations.changed(row.evaluate).protocol()
    found = [t for run in row.runs for t in run.results.get("timings", ()) if t["translations"] == wanted]
    milliseconds = [t["milliseconds"] for t in found if math.isfinite(t["milliseconds"])]
    if not milliseconds:
        return {}
    on = sorted({f"{t.get('gpu', t['device'])}, {t['threads']} thread{'s' * (t['threads'] != 1)}" for t in found})
    return {"milliseconds": round(float(np.median(milliseconds)), 3), "timed_on": on}


def _describe_interval(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.value, "low": interval.low, "high": interval.high}


def _differences_from(
    row: TableRow,
    reference: TableRow,
    columns: Mapping[str, str],
    reducers: Mapping[str, CachedReduce],
    spreads: Mapping[str, Spread | None],
    *,
    folds: bool,
) -> dict[str, dict[str, Any]]:
    """{column: {"difference": …}}: the row's number minus the reference's, with intervals over blocks and over seeds.

    spreads  {column: the spread of all rows}, for columns that pool it
    folds    each seed has its own images: the interval over seeds is that over folds (folds.py)

    Raises UserError if the two were measured on different images.
    """
    pairs = pair_runs(row, reference, folds=folds)
    differences = {}
    for column in columns:
        name, _, key = column.partition(".")
        usable = [(a, b) for a, b in pairs if column in a.results["metrics"] and column in b.results["metrics"]]
        if name not in reducers or not usable:
            continue
        reduce = reducers[name]
        if not folds and not all(reduce.is_kept(run) for pair in usable for run in pair):
            continue
        check_same_images(column, row, reference, usable, folds=folds)
        if folds:
            of_folds, of_blocks = difference_over_folds(
                usable, reduce, key or "value", None if row.target else spreads.get(column)
            )
            interval = vars(of_folds.interval())  # holds the variance of regions too; "blocks" is a diagnostic
            differences[column] = {"difference": {"blocks": vars(of_blocks), "seeds": interval, "p": of_folds.p}}
            continue

        def difference(images: np.ndarray, usable: Any = usable, reduce: Any = reduce, key: str = key) -> float:
            return float(
                np.mean([reduce(a, images)[key or "value"] - reduce(b, images)[key or "value"] for a, b in usable])
            )

        blocks = _blocks_of(usable[0][0])
        by_seed = [_value(a, column) - _value(b, column) for a, b in usable]
        # the target has no seeds of its own: the baseline's seeds are not independent values of it
        seeds = Interval(float(np.mean(by_seed))) if row.target else over_seeds(by_seed)
        differences[column] = {
            "difference": {
                "blocks": vars(paired_over_blocks(difference, blocks)),
                "seeds": vars(seeds),
            }
        }
    return differences


def check_same_images(
    column: str, row: TableRow, reference: TableRow, pairs: Sequence[tuple[FinishedRun, FinishedRun]], *, folds: bool
) -> None:
    first = pairs[0][0].stats[1]["ids"]
    if any(run.stats[1]["ids"] != (a.stats[1]["ids"] if folds else first) for a, b in pairs for run in (a, b)):
        raise UserError(
            f"{column}: '{row.label}' and '{reference.label}' were measured on different images: "
            "evaluate both on the same data"
        )


def _blocks_of(run: FinishedRun) -> list[str]:
    """The block of each image, or its id if it has none."""
    header = run.stats[1]
    both = zip(header["blocks"], header["ids"], strict=True)
    return [block if block is not None else image for block, image in both]


def difference_over_folds(
    pairs: Sequence[tuple[FinishedRun, FinishedRun]], reduce: CachedReduce, key: str, spread: Spread | None = None
) -> tuple[FoldDifference, Interval]:
    """The difference over the images of all folds, each weighted by its number of images, of pairs of runs, by seed.

    The second interval resamples blocks and ignores how runs vary: it is a diagnostic. It has no ends if the runs do
    not keep the metric's statistics.

    spread  of the runs of the table, where it is pooled; used if the pairs have all its folds
    """
    blocks_by_fold = [_blocks_of(a) for a, _ in pairs]
    ends = np.cumsum([len(blocks) for blocks in blocks_by_fold])
    starts = ends - [len(blocks) for blocks in blocks_by_fold]

    def of_fold(fold: int, images: np.ndarray) -> float:
        a, b = pairs[fold]
        return float(reduce(a, images)[key] - reduce(b, images)[key])

    def difference(images: np.ndarray) -> float:
        parts = [images[(images >= start) & (images < end)] - start for start, end in zip(starts, ends, strict=True)]
        terms = [len(part) * of_fold(fold, part) for fold, part in enumerate(parts) if len(part)]
        return sum(terms) / len(images)

    tiles = [len(blocks) for blocks in blocks_by_fold]
    a, b = ([reduce.number(pair[side], key) for pair in pairs] for side in (0, 1))
    variance = spread.of_difference(a, b) if spread and len(pairs) == len(spread.folds) else None
    if not all(reduce.is_kept(run) for pair in pairs for run in pair):
        folds = over_folds(list(np.subtract(a, b)), tiles, variance)
        return folds, Interval(folds.value)
    folds = over_folds([of_fold(fold, np.arange(count)) for fold, count in enumerate(tiles)], tiles, variance)
    blocks = [f"{fold}:{block}" for fold, names in enumerate(blocks_by_fold) for block in names]
    return folds, paired_over_blocks(difference, blocks)


def pair_runs(row: TableRow, reference: TableRow, *, folds: bool) -> list[tuple[FinishedRun, FinishedRun]]:
    """The runs of both rows with the same seed. Without folds the target has no seed: it is paired with each run of the
    reference."""
    if row.target and not folds:
        return [(row.runs[0], b) for b in reference.runs] if row.runs else []
    by_seed = {run.results["seed"]: run for run in reference.runs}
    runs = sorted(row.runs, key=lambda run: int(run.results["seed"]))
    return [(a, by_seed[a.results["seed"]]) for a in runs if a.results["seed"] in by_seed]


def _value(run: FinishedRun, column: str) -> float:
    return float(run.results["metrics"][column]["value"])


class CachedReduce:
    """A metric's numbers on a subset of a run's images. The cache serves all columns and rows."""

    def __init__(self, metric: Any, name: str) -> None:
        self.metric, self.name = metric, name
        self._cache: dict[tuple[int, bytes], Mapping[str, float]] = {}

    def is_kept(self, run: FinishedRun) -> bool:
        """Whether a run keeps the metric's statistics."""
        return bool(safetensors_io.strip_prefix(self.name, run.stats[0]))

    def number(self, run: FinishedRun, key: str) -> float:
        """The metric's number of all images, from the results."""
        return float(run.results["metrics"][self.name if key == "value" else f"{self.name}.{key}"]["value"])

    def __call__(self, run: FinishedRun, images: np.ndarray) -> Mapping[str, float]:
        key = (id(run), images.tobytes())
        if key not in self._cache:
            indices = torch.from_numpy(images)
            stats = safetensors_io.strip_prefix(self.name, run.stats[0])
            self._cache[key] = self.metric.reduce({name: values[indices] for name, values in stats.items()})
        return self._cache[key]


def _describe_networks_of(row: TableRow, data: EvaluatedImages) -> dict[str, Any]:
    """`_describe_networks` of all seeds of a row; None for what differs between them."""
    first = row.experiment
    own = _describe_networks(first, data)
    networks = first.generator, first.discriminator
    differing = [other for other in row.others if (other.generator, other.discriminator) != networks]
    for described in [_describe_networks(other, data) for other in differing]:
        own = {key: value if described.get(key) == value else None for key, value in own.items()}
    return own


def _describe_networks(experiment: Experiment, data: EvaluatedImages) -> dict[str, Any]:
    """Parameters of G and D and D's receptive field, computed without memory for weights; {} if they are unknown."""
    if data.channels is None:
        return {}
    try:
        with on_meta():
            channels = generator_channels(experiment, data.channels, data.size)
            G = build_network(experiment.generator, channels, data.size)
            D = build_network(experiment.discriminator, data.channels, data.size) if experiment.discriminator else None
    except UserError:  # the row failed, with this reason
        return {}
    receptive_field = getattr(D, "receptive_field", None)
    return {
        "parameters": sum(p.numel() for p in G.parameters()),
        "discriminator_parameters": sum(p.numel() for p in D.parameters()) if D else None,
        "receptive_field": receptive_field,
        "receptive_field_over_side": round(receptive_field / min(data.size), 3) if receptive_field else None,
        "images": experiment.train.images_seen,
    }
