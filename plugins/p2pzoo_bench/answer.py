"""What a table says, in words: which row is ahead of the baseline in what, and where no difference is beyond chance.

A difference is beyond chance where its interval leaves out 0: over folds, adjusted for the number of rows in the
table's primary metric (Holm 1979), or over the test images of a single run, where another training may reverse it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from p2pzoo_bench.folds import holm

SIGNIFICANCE = 0.05


def find_answer(doc: Mapping[str, Any], primary: str | None) -> list[str]:
    """One sentence or two for each column in which a direction is better; the primary metric's first.

    doc      of `comparison.build_comparison`
    primary  the metric whose differences are adjusted for the number of rows; None: no metric's are
    """
    baseline = next(row for row in doc["rows"] if row["name"] == doc["baseline"])
    columns = [column for column in doc["columns"] if column["better"] and not column["unavailable"]]
    columns.sort(key=lambda column: column["metric"] != primary)
    sentences = [_describe_column(doc, column, baseline, primary) for column in columns]
    lines = [sentence for sentence in sentences if sentence]
    if lines and "folds" not in doc:
        lines.append("All this is over the test images of one run per row; another training may reverse it.")
    return lines


def _describe_column(
    doc: Mapping[str, Any], column: Mapping[str, Any], baseline: Mapping[str, Any], primary: str | None
) -> str:
    metric, sign = column["metric"], 1 if column["better"] == "higher" else -1
    rows = [row for row in doc["rows"] if not row.get("target") and metric in row["cells"]]
    others = [row for row in rows if row is not baseline]
    if baseline not in rows or not others:
        return ""
    if few := next((row["cells"][metric]["too_few"] for row in rows if "too_few" in row["cells"][metric]), None):
        return f"{column['heading']}: {few}, so nothing is said about it."
    best = max(rows, key=lambda row: sign * row["cells"][metric]["mean"])
    groups: dict[str, list[str]] = {"ahead": [], "behind": [], "unknown": []}
    adjusted = _adjusted(others, metric) if metric == primary else {}
    for row in others:
        interval = _interval(row["cells"][metric])
        if interval is None or adjusted.get(row["name"], 0) > SIGNIFICANCE or interval[1] <= 0 <= interval[2]:
            groups["unknown"].append(row["label"])
            continue
        value, low, high = interval
        shown = f"{row['label']} ({value:+.3g} [{low:+.3g}, {high:+.3g}])".replace("-", "−")
        groups["ahead" if sign * value > 0 else "behind"].append(shown)
    adjusted_text = f", adjusted for {len(others)} rows" if adjusted and len(others) > 1 else ""
    parts = [f"{column['heading']}: the best mean is that of {best['label']}"]
    for name, words in (("ahead", "ahead of"), ("behind", "behind")):
        if groups[name]:
            parts.append(f"{words} {baseline['label']} beyond chance{adjusted_text}: {', '.join(groups[name])}")
    if groups["unknown"]:
        parts.append(f"no difference beyond chance from {baseline['label']}: {', '.join(groups['unknown'])}")
    return "; ".join(parts) + "."


def _interval(cell: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """(difference, low, high) of a cell; None without an interval."""
    difference = cell.get("difference")
    if difference is None:
        return None
    of = difference["seeds"] if "p" in difference else difference["blocks"]
    return None if of["low"] is None else (of["value"], of["low"], of["high"])


def _adjusted(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float]:
    """{row: its p-value, adjusted for all rows}; {} without p-values, which only folds have."""
    p = {row["name"]: row["cells"][metric].get("difference", {}).get("p") for row in rows}
    known = {name: value for name, value in p.items() if value is not None}
    return dict(zip(known, holm([*known.values()]), strict=True))
