"""What a table says, in words: which row is ahead of the baseline in what, and where no difference is beyond chance.

A difference is beyond chance where its interval leaves out 0. Over folds its p-value, adjusted for the number of rows
(Holm 1979), must be below 0.05 too; a row without a p-value counts as one with 1. With several seeds on the same
images, both intervals must leave out 0, over seeds and over images: one of them alone is wrong in up to half of the
cases. Of a single run there is the interval over its test images, and another training may reverse what it says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from p2pzoo_bench.folds import holm

SIGNIFICANCE = 0.05
SHOWN = ("ahead", "behind")  # groups whose differences the sentence shows
ROUNDING = 1e-6  # a difference below this part of the numbers is one of float32 rounding


def find_answer(doc: Mapping[str, Any], primary: str | None) -> list[str]:
    """One sentence for each column in which a direction is better, the primary metric's first; then what they mean.

    doc      of `comparison.build_comparison`
    primary  the metric that was chosen before the runs; None: none was
    """
    baseline = next(row for row in doc["rows"] if row["name"] == doc["baseline"])
    sentences = [_describe_column(column, doc["rows"], baseline) for column in list_ranked_columns(doc, primary)]
    lines = [sentence for sentence in sentences if sentence]
    return [*lines, explain(doc, baseline, primary if len(lines) > 1 else None)] if lines else []


def list_ranked_columns(doc: Mapping[str, Any], primary: str | None) -> list[Mapping[str, Any]]:
    """The columns in which a direction is better, the primary metric's first."""
    columns = [column for column in doc["columns"] if column["better"] and not column["unavailable"]]
    return sorted(columns, key=lambda column: column["metric"] != primary)


def measured_rows(column: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows with a number in a column, without those of the ground truth."""
    return [row for row in rows if not row.get("target") and column["metric"] in row["cells"]]


def explain(doc: Mapping[str, Any], baseline: Mapping[str, Any], primary: str | None) -> str:
    """What "beyond chance" and the intervals mean in this table."""
    if "folds" in doc:
        first = next((column["heading"] for column in doc["columns"] if column["metric"] == primary), None)
        named = (
            f" {first} was chosen before the runs; the other metrics are not adjusted for their number."
            if first
            else ""
        )
        return (
            "Beyond chance: over folds, adjusted for the number of rows (Holm). Intervals are 95%, each for itself; "
            f"folds share training images, which makes them too narrow by an unknown amount.{named}"
        )
    if len(baseline.get("runs", ())) > 1:
        return "Beyond chance: both 95% intervals leave out 0, over seeds and over test images; the latter are shown."
    return "All this is over the test images of one run per row; another training may reverse it."


def _describe_column(
    column: Mapping[str, Any], all_rows: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any]
) -> str:
    metric, rows = column["metric"], measured_rows(column, all_rows)
    if metric not in baseline["cells"] or len(rows) < 2:
        return ""
    groups, reason = sort_column(column, rows, baseline)
    if reason:
        return f"{column['heading']}: {reason}, so nothing is said about it."
    best = _find_best(rows, baseline, metric, _sign(column))
    parts = [f"{column['heading']}: the best mean is that of {best['label']}"]
    words = {
        "ahead": f"ahead of {baseline['label']} beyond chance",
        "behind": f"behind {baseline['label']} beyond chance",
        "within": f"no difference beyond chance from {baseline['label']}",
        "open": "without an interval, so undecided",
        "none": "without a number",
    }
    for group, of in groups.items():
        shown = [f"{row['label']}{_show(row['cells'][metric]) if group in SHOWN else ''}" for row in of]
        parts += [f"{words[group]}: {', '.join(shown)}"] if shown else []
    return "; ".join(parts) + "."


def sort_column(
    column: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any]
) -> tuple[dict[str, list[Mapping[str, Any]]], str]:
    """{group of `sort_rows`: its rows}, and why nothing can be said about the column, which then has no rows; or "".

    rows  of `measured_rows`
    """
    metric = column["metric"]
    groups: dict[str, list[Mapping[str, Any]]] = {group: [] for group in ("ahead", "behind", "within", "open", "none")}
    for row in rows:
        if few := row["cells"][metric].get("too_few"):
            return groups, few
    if metric not in baseline["cells"] or not _is_number(baseline["cells"][metric]["mean"]):
        return groups, f"{baseline['label']} has no number"
    others = [row for row in rows if row is not baseline]
    for row, group in zip(others, sort_rows(others, baseline, metric, _sign(column)), strict=True):
        groups[group].append(row)
    return groups, ""


def _sign(column: Mapping[str, Any]) -> int:
    return 1 if column["better"] == "higher" else -1


def sort_rows(rows: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any], metric: str, sign: int) -> list[str]:
    """Where each row stands to the baseline in a metric.

    sign  1 if higher is better, -1 if lower is

    "ahead", "behind"  beyond chance
    "within"           the difference may be chance
    "open"             there is no interval: too few folds, one of which may be missing, or no difference at all
    "none"             its number is not finite
    """
    p = [row["cells"][metric].get("difference", {}).get("p") for row in rows]
    over_folds = any(each is not None for each in p)
    adjusted = holm([1.0 if each is None else each for each in p]) if over_folds else [0.0] * len(rows)
    return [
        _sort_row(row["cells"][metric], baseline["cells"][metric]["mean"], sign, value)
        for row, value in zip(rows, adjusted, strict=True)
    ]


def _sort_row(cell: Mapping[str, Any], reference: float, sign: int, adjusted: float) -> str:
    difference = cell.get("difference")
    if not _is_number(cell["mean"]) or (difference and not _is_number(difference["blocks"]["value"])):
        return "none"
    intervals = _intervals(difference) if difference else []
    if not intervals:
        return "open"
    value = intervals[0]["value"]
    is_rounding = abs(value) <= ROUNDING * max(abs(reference), abs(cell["mean"]))
    if is_rounding or adjusted > SIGNIFICANCE or any(of["low"] <= 0 <= of["high"] for of in intervals):
        return "within"
    return "ahead" if sign * value > 0 else "behind"


def _intervals(difference: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The intervals that decide, the one that is shown first; [] if one of them has no ends."""
    if "p" in difference:
        deciding = [difference["seeds"]]
    else:
        seeds = difference.get("seeds", {})
        deciding = [difference["blocks"], *([seeds] if seeds.get("low") is not None else [])]
    return [] if any(of["low"] is None for of in deciding) else deciding


def _find_best(
    rows: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any], metric: str, sign: int
) -> Mapping[str, Any]:
    """The row with the best mean, of those with all runs of the baseline. Means are compared as their differences are:
    on the same images, each of which counts the same."""
    runs = len(baseline.get("runs", ()))
    reference = baseline["cells"][metric]["mean"]

    def lead(row: Mapping[str, Any]) -> float:
        cell = row["cells"][metric]
        difference = cell.get("difference")
        of = difference["seeds" if "p" in difference else "blocks"]["value"] if difference else cell["mean"] - reference
        return sign * of if _is_number(of) else -math.inf

    complete = [row for row in rows if row is baseline or len(row.get("runs", ())) >= runs]
    return max(complete, key=lambda row: 0.0 if row is baseline else lead(row))


def _show(cell: Mapping[str, Any]) -> str:
    of = _intervals(cell["difference"])[0]
    return f" ({of['value']:+.3g} [{of['low']:+.3g}, {of['high']:+.3g}])".replace("-", "−")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
