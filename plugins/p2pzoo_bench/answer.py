"""What a table says, in words: which row is ahead of the baseline in what, and where no difference is beyond chance.

A difference is beyond chance where its interval leaves out 0. Over folds its p-value, adjusted for the number of rows
(Holm 1979), must be below 0.05 too; a row without a p-value counts as one with 1. With several seeds on the same
images, both intervals must leave out 0, over seeds and over images: one of them alone is wrong in up to half of the
cases. Of a single run there is only the interval over its test images, and another training may reverse what it says:
so the differences are described, and none is called beyond chance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from p2pzoo.utils.plurals import format_count
from p2pzoo_bench.folds import holm
from p2pzoo_bench.metric_texts import ONE_SAMPLE_HERE, is_judged_by_one_sample
from p2pzoo_bench.row_names import group_by_training, name_together

SIGNIFICANCE = 0.05
SHOWN = ("ahead", "behind")  # groups whose differences the sentence shows
BEGINNINGS = (
    "ahead of ",
    "behind ",
    "better than ",
    "worse than ",
    "no difference ",
    "with an ",
    "without a",
)  # of parts
WORDS = {"ahead": "better", "behind": "worse"}
ROUNDING = 1e-6  # a difference below this part of the numbers is one of float32 rounding


def find_answer(doc: Mapping[str, Any], primary: str | None) -> list[str]:
    """How many methods differ from the baseline; a sentence for each column in which a direction is better; what they
    mean. Of one run per row, what they mean comes first.

    The first sentence is about the primary metric, or the first column that says something. Rows of one training are
    one method, and are named together.

    doc      of `comparison.build_comparison`
    primary  the metric that was chosen before the runs; None: none was
    """
    baseline = next(row for row in doc["rows"] if row["name"] == doc["baseline"])
    columns = list_judged_columns(doc, primary)
    if not columns:
        return []
    lines = [*_summarize(doc, columns, baseline), *(_describe_column(column, doc, baseline) for column in columns)]
    meaning = explain(doc, baseline, primary if len(columns) > 1 else None)
    return [meaning, *lines] if _has_one_run(doc, baseline) else [*lines, meaning]


def list_judged_columns(doc: Mapping[str, Any], primary: str | None) -> list[Mapping[str, Any]]:
    """The ranked columns in which the baseline and another row have a number."""
    baseline = next(row for row in doc["rows"] if row["name"] == doc["baseline"])
    return [
        column
        for column in list_ranked_columns(doc, primary)
        if column["metric"] in baseline["cells"] and len(measured_rows(column, doc["rows"])) > 1
    ]


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
    return "All that follows is over the test images of one run per row; another training may reverse it."


def _has_one_run(doc: Mapping[str, Any], baseline: Mapping[str, Any]) -> bool:
    return "folds" not in doc and len(baseline.get("runs", ())) < 2


def _name_images(doc: Mapping[str, Any], column: Mapping[str, Any]) -> str:
    """ "these 12 test images", as many as a column was measured on."""
    count = doc.get("protocols", {}).get(column.get("protocol"), {}).get("images")
    return f"these {format_count(count, 'test image')}" if count and count > 1 else "these test images"


def _summarize(doc: Mapping[str, Any], columns: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any]) -> list[str]:
    """One plain sentence about the first column that has a verdict; [] if none has one."""
    for column in columns:
        rows = measured_rows(column, doc["rows"])
        groups, reason = sort_column(column, rows, baseline)
        if not reason:
            return [_summarize_column(doc, column, groups, baseline)]
    return []


def _summarize_column(
    doc: Mapping[str, Any],
    column: Mapping[str, Any],
    groups: Mapping[str, Sequence[Mapping[str, Any]]],
    baseline: Mapping[str, Any],
) -> str:
    where, heading = _name_place(doc, column, baseline), column["heading"]
    verdicts = {row["name"]: group for group, rows in groups.items() for row in rows}
    others = [row for row in doc["rows"] if row["name"] in verdicts]
    methods = group_by_training(others)
    judged = [method for method in methods if any(verdicts[row["name"]] in (*SHOWN, "within") for row in method)]
    if not judged:
        return f"{where}, no method has an interval in {heading}, so nothing is said about {baseline['label']}."
    differing = [method for method in judged if any(verdicts[row["name"]] in SHOWN for row in method)]
    named = {group: ", ".join(_name_rows(groups[group])) for group in SHOWN if groups[group]}
    than = f"{baseline['label']}{'' if _has_one_run(doc, baseline) else ' beyond chance'} in {heading}"
    if len(judged) == 1:
        if not differing:
            return f"{where}, {name_together([row['label'] for row in judged[0]])} does not differ from {than}."
        return f"{where}, {' and '.join(f'{names} is {WORDS[group]}' for group, names in named.items())} than {than}."
    of = f"{len(judged)} methods" + (" with an interval" if len(judged) < len(methods) else "")
    of += " (rows of one training are one)" if len(methods) < len(others) else ""
    if not differing:
        return f"{where}, none of {of} differs from {than}."
    who = f"all {of}" if len(differing) == len(judged) else f"{len(differing)} of {of}"
    shown = "; ".join(f"{WORDS[group]}: {names}" for group, names in named.items())
    return f"{where}, {who} {'differ' if len(differing) > 1 else 'differs'} from {than}: {shown}."


def split_line(line: str) -> list[str]:
    """The parts of a sentence of the answer: what is best in a column, then a part for each group of rows.

    >>> split_line("L1: the best mean is that of a; ahead of b beyond chance: a (4 steps; 1 step).")
    ['L1: the best mean is that of a', 'ahead of b beyond chance: a (4 steps; 1 step).']
    """
    return re.split(f"; (?={'|'.join(BEGINNINGS)})", line)


def _name_place(doc: Mapping[str, Any], column: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    """What a sentence about all rows begins with: the user's pairs, or the folds, seeds or images of the table."""
    each = ", one training each" if _has_one_run(doc, baseline) else ""
    if data := doc.get("data"):
        of = f"{data['tested']} of " if data["tested"] < data["pairs"] else ""
        return f"On {of}your {format_count(data['pairs'], 'pair')}{each}"
    if "folds" in doc:
        return f"Over {format_count(doc['folds'], 'fold')}"
    return f"On {_name_images(doc, column)}{each}" if each else f"Over {len(baseline['runs'])} seeds"


def _name_rows(rows: Sequence[Mapping[str, Any]], metric: str | None = None) -> list[str]:
    """The names of rows, those of one training together. metric: shown with their difference in it."""
    return [
        name_together(
            [row["label"] for row in method], [_show(row["cells"][metric]) for row in method] if metric else ()
        )
        for method in group_by_training(rows)
    ]


def _describe_column(column: Mapping[str, Any], doc: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    metric, rows = column["metric"], measured_rows(column, doc["rows"])
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
    if _has_one_run(doc, baseline):
        on = f"than {baseline['label']} on {_name_images(doc, column)}, one training each"
        words |= {"ahead": f"better {on}", "behind": f"worse {on}", "open": "without an interval"}
        words["within"] = "with an interval over these images that holds 0"
    for group, of in groups.items():
        shown = _name_rows(of, metric if group in SHOWN else None)
        parts += [f"{words[group]}: {', '.join(shown)}"] if shown else []
    has_noise = is_judged_by_one_sample(column) and any(row.get("noise") for row in rows)
    return "; ".join(parts) + "." + (f" {ONE_SAMPLE_HERE}" if has_noise else "")


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
    "open"             there is no interval: too few folds, one of which may be missing, one run only where the baseline
                       has several seeds, or no difference at all
    "none"             its number is not finite
    """
    p = [row["cells"][metric].get("difference", {}).get("p") for row in rows]
    over_folds = any(each is not None for each in p)
    adjusted = holm([1.0 if each is None else each for each in p]) if over_folds else [0.0] * len(rows)
    several = len(baseline.get("runs", ())) > 1
    return [
        _sort_row(row["cells"][metric], baseline["cells"][metric]["mean"], sign, value, several=several)
        for row, value in zip(rows, adjusted, strict=True)
    ]


def _sort_row(cell: Mapping[str, Any], reference: float, sign: int, adjusted: float, *, several: bool) -> str:
    difference = cell.get("difference")
    if not _is_number(cell["mean"]) or (difference and not _is_number(difference["blocks"]["value"])):
        return "none"
    intervals = _intervals(difference) if difference else []
    if not intervals or (difference and several and difference.get("seeds", {}).get("low") is None):
        return "open"  # of several seeds, a row may have one run only
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
    return f"{of['value']:+.3g} [{of['low']:+.3g}, {of['high']:+.3g}]".replace("-", "−")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
