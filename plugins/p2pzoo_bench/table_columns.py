"""The columns of a printed table: which there are, which the user wants, and where the best numbers are."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.suggest import did_you_mean
from p2pzoo_bench.answer import find_answer, list_judged_columns
from p2pzoo_bench.comparison import Comparison, metric_of
from p2pzoo_bench.metric_texts import explain_metrics

NONE = "–"  # in a cell without a number
NOT_TRAINED = "not trained yet"  # why a row has no numbers
ARROWS = {"higher": "↑", "lower": "↓"}
COSTS = {
    "receptive_field": "receptive field (px)",
    "receptive_field_over_side": "RF / image side",
    "parameters": "G parameters",
    "discriminator_parameters": "D parameters",
    "images": "training images",
    "seconds": "training, s",
    "peak_megabytes": "peak MB",
    "milliseconds": "ms per image",
}


@dataclass(frozen=True)
class TableColumn:
    """A column. kind: "metric" or "cost". key: the metric or the cost."""

    kind: str
    key: str
    heading: str


def with_arrow(column: Mapping[str, Any]) -> str:
    """The heading of a metric's column, with the direction that is better.

    >>> with_arrow({"heading": "PSNR", "better": "higher"})
    'PSNR ↑'
    """
    return f"{column['heading']} {ARROWS.get(column['better'], '')}".strip()


def list_columns(doc: Mapping[str, Any]) -> list[TableColumn]:
    """The columns of the main table after the rows' labels, in their order."""
    columns = []
    for column in doc["columns"]:
        columns.append(TableColumn("metric", column["metric"], with_arrow(column)))
    known = [key for key in COSTS if any(row.get(key) is not None for row in doc["rows"])]
    if len(count_images(doc)) == 1:  # equal numbers need no column
        known.remove("images")
    return columns + [TableColumn("cost", key, COSTS[key]) for key in doc.get("costs", known)]


def count_images(doc: Mapping[str, Any]) -> set[int]:
    """The numbers of images that runs of the table's rows train on.

    >>> count_images({"rows": [{"images": 7000}, {"images": 1200}, {"images": 7000}, {"target": True}]}) == {7000, 1200}
    True
    """
    return {row["images"] for row in doc["rows"] if row.get("images") is not None}


def find_columns(names: Sequence[str], metrics: Collection[str]) -> tuple[list[str], list[str]]:
    """(metrics, costs) with these names, in their order. The name of a metric also stands for all its numbers.

    Raises UserError for any other name.

    >>> find_columns(["seconds", "fcn_score"], ["l1", "fcn_score.class_iou", "fcn_score.pixel_accuracy"])
    (['fcn_score.class_iou', 'fcn_score.pixel_accuracy'], ['seconds'])
    """
    found: dict[str, None] = {}
    for name in names:
        numbers = [name] if name in metrics else [metric for metric in metrics if metric_of(metric) == name]
        if not numbers and name not in COSTS:
            raise UserError(f"--column {name}: no such column{did_you_mean(name, [*metrics, *COSTS])}")
        found |= dict.fromkeys(numbers)
    return [*found], list(dict.fromkeys(name for name in names if name in COSTS))


def select_columns(table: Comparison, names: Sequence[str], *, primary: str | None = None) -> Comparison:
    """The table with only these columns: metrics, then costs, in the order of the names. No names: all columns.

    The answer in words is about these columns too.

    primary  the metric that was chosen before the runs

    Raises UserError as `find_columns` does.
    """
    if not names:
        return table
    by_metric = {column["metric"]: column for column in table.doc["columns"]}
    metrics, costs = find_columns(names, by_metric)
    rows = [
        {key: value for key, value in row.items() if key not in COSTS or key in costs}
        | {"cells": {metric: row["cells"][metric] for metric in metrics if metric in row["cells"]}}
        for row in table.doc["rows"]
    ]
    doc = table.doc | {"columns": [by_metric[metric] for metric in metrics], "costs": costs, "rows": rows}
    if "groups" in doc:
        doc["groups"] = [column for column in doc["groups"] if column["metric"] in metrics]
    if "answer" in doc:
        doc["answer"] = find_answer(doc, primary)
        doc["explanations"] = explain_metrics(list_judged_columns(doc, primary), doc["rows"])
    used = {metric_of(metric) for metric in metrics}
    return replace(table, doc=doc, metrics={name: m for name, m in table.metrics.items() if name in used})


def find_best_cells(doc: Mapping[str, Any]) -> set[tuple[int, int]]:
    """(row, column of `list_columns`) of the best mean of each metric.

    Rows with fewer runs than others do not compete, since other folds have other images; nor do rows of the ground
    truth and numbers of too few images. A single row is not the best of anything.
    """
    rows = {number: row for number, row in enumerate(doc["rows"]) if not row.get("target")}
    better = {column["metric"]: column["better"] for column in doc["columns"]}
    best = set()
    for place, column in enumerate(list_columns(doc)):
        if column.kind != "metric" or better[column.key] not in ARROWS:
            continue
        cells = {number: row["cells"][column.key] for number, row in rows.items() if column.key in row["cells"]}
        runs = max((len(cell["values"]) for cell in cells.values()), default=0)
        means = {
            number: cell["mean"]
            for number, cell in cells.items()
            if len(cell["values"]) == runs and "too_few" not in cell
        }
        finite = [mean for mean in means.values() if math.isfinite(mean)]
        if len(means) > 1 and finite:
            top = (max if better[column.key] == "higher" else min)(finite)
            best |= {(number, place) for number, mean in means.items() if mean == top}
    return best
