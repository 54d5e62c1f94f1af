"""The rows of a table in groups, for each column: better or worse than the baseline beyond chance, or neither.

Who belongs where is decided in `answer.py`, by the intervals over folds that stand in the table's differences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from p2pzoo_bench.answer import SIGNIFICANCE, explain, list_ranked_columns, measured_rows, sort_column
from p2pzoo_bench.folds import MIN_FOLDS
from p2pzoo_bench.table_columns import NONE, with_arrow

MISSING, FEW = "missing runs", "too few folds"
GROUPS = {  # {key of the document: (group of `answer.sort_rows`, title)}
    "better": ("ahead", "better, beyond chance"),
    "worse": ("behind", "worse, beyond chance"),
    "undecided": ("within", "undecided"),
}
FEW_NAMES = 5
NO_VERDICT = f"no verdict: {MISSING} / {FEW}"


def find_groups(doc: Mapping[str, Any], primary: str | None) -> list[dict[str, Any]]:
    """The groups of each column in which a direction is better, the primary metric's first, as plain values.

    [{"metric", "heading", "better", "worse", "undecided": [names of rows], "no_verdict": {name of a row: reason},
      "expected_by_chance": rows that would be better or worse before a correction if none differed, "primary"}, …]

    doc      of `comparison.build_comparison`, of a table with folds
    primary  the metric that was chosen before the runs; None: none was
    """
    baseline = _find_baseline(doc)
    columns = [_group_column(column, doc["rows"], baseline) for column in list_ranked_columns(doc, primary)]
    return [column | {"primary": column["metric"] == primary} for column in columns]


def _find_baseline(doc: Mapping[str, Any]) -> Mapping[str, Any]:
    baseline: Mapping[str, Any] = next(row for row in doc["rows"] if row["name"] == doc["baseline"])
    return baseline


def _group_column(
    column: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any]
) -> dict[str, Any]:
    metric = column["metric"]
    sorted_rows, reason = sort_column(column, measured_rows(column, rows), baseline)
    groups = {key: [row["name"] for row in sorted_rows[group]] for key, (group, _) in GROUPS.items()}
    judged = {name for names in groups.values() for name in names}
    no_verdict = {
        row["name"]: reason or _why_no_verdict(row, baseline, metric)
        for row in rows
        if not row.get("target") and row is not baseline and row["name"] not in judged
    }
    return {
        "metric": metric, "heading": column["heading"], **groups, "no_verdict": no_verdict,
        "expected_by_chance": round(SIGNIFICANCE * len(judged), 6),
    }  # fmt: skip


def _why_no_verdict(row: Mapping[str, Any], baseline: Mapping[str, Any], metric: str) -> str:
    """Why a row has no interval, or one that says nothing, where the column has no reason of its own."""
    if metric not in row["cells"]:
        return MISSING
    seeds, others = ({run["seed"] for run in each["runs"]} for each in (row, baseline))
    if len(seeds & others) < MIN_FOLDS:
        return MISSING if row["failed"] or baseline["failed"] else FEW
    difference = row["cells"][metric].get("difference")
    if not difference:
        return "no statistics of its images"
    return "equal in all folds" if math.isfinite(difference["blocks"]["value"]) else "not a finite number"


# --- as text ---------------------------------------------------------------------------------------------------


def build_groups_table(doc: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The heading and a row for each group: its rows' labels in each column. Without groups there are no rows.

    Groups are the rows and metrics the columns, so that the table has as few lines with many metrics as with one.
    """
    columns = doc.get("groups", ())
    if not columns:
        return [], []
    labels = {row["name"]: row["label"] for row in doc["rows"]}
    directions = {column["metric"]: column for column in doc["columns"]}
    head = [f"against {_find_baseline(doc)['label']}", *(with_arrow(directions[c["metric"]]) for c in columns)]
    rows = [
        [title, *(_format_names(key, [labels[name] for name in column[key]]) for column in columns)]
        for key, (_, title) in GROUPS.items()
    ]
    if any(column["no_verdict"] for column in columns):
        rows.append([NO_VERDICT, *(_format_reasons(column, labels) for column in columns)])
    return head, rows


def _format_names(key: str, labels: Sequence[str]) -> str:
    """The labels of a group. Of many rows that are undecided, their number: all others are named."""
    return f"the other {len(labels)}" if key == "undecided" and len(labels) > FEW_NAMES else "; ".join(labels) or NONE


def _format_reasons(column: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """The rows without a verdict. Those for which the title has the reason come first."""
    usual: list[str] = []
    others: dict[str, list[str]] = {}
    for name, reason in column["no_verdict"].items():
        (usual if reason in (MISSING, FEW) else others.setdefault(reason, [])).append(labels[name])
    if not usual and len(others) == 1 and not any(column[key] for key in GROUPS):
        return f"all rows: {next(iter(others))}"
    return "; ".join([*usual, *(f"{', '.join(names)}: {reason}" for reason, names in others.items())]) or NONE


def describe_groups(doc: Mapping[str, Any]) -> str:
    """What is below the groups: how many rows chance alone would name, and what "beyond chance" means. "" if none."""
    columns = doc.get("groups", ())
    counts = [sum(len(column[key]) for key in GROUPS) for column in columns]
    if not any(counts):
        return ""
    baseline = _find_baseline(doc)
    expected = _format_range([column["expected_by_chance"] for column in columns])
    primary = next((column["metric"] for column in columns if column["primary"]), None)
    return (
        f"If no row differed from {baseline['label']}, {expected} of the {_format_range(counts)} rows with an interval "
        "would be expected beyond chance in each column before a correction; Holm's correction keeps the probability "
        f"of any such row at {SIGNIFICANCE:.0%} or less for the rows of a column. "
        + explain(doc, baseline, primary if len(columns) > 1 else None)
    )


def _format_range(numbers: Sequence[float]) -> str:
    """
    >>> _format_range([1.75, 1.8]), _format_range([2, 2])
    ('1.75 to 1.8', '2')
    """
    low, high = min(numbers), max(numbers)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
