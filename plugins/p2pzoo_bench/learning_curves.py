"""Learning curves: a metric after 3,500, 7,000, … images of the same training (`[evaluate] at`), with a band."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from p2pzoo.runs.pages import figure_to_svg, figure_to_svg_file, render_page
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count
from p2pzoo.utils.suggest import did_you_mean
from p2pzoo.utils.terminal import escape
from p2pzoo_bench.comparison import shared_protocol, why_not_comparable
from p2pzoo_bench.formats import NONE, decimals, markdown_table
from p2pzoo_bench.intervals import CONFIDENCE, over_seeds
from p2pzoo_bench.table_columns import with_arrow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from p2pzoo.config.experiment import Experiment
    from p2pzoo_bench.comparison import Comparison, TableRow

_MILESTONE = re.compile(r"@\d+(?=\.|$)")  # of evaluate.at; the names of evaluate.also begin with a letter


def list_curves(rows: Iterable[TableRow]) -> list[str]:
    """The numbers that some run has after several numbers of images, as columns are called: "fcn_score.class_iou"."""
    names = [name for row in rows for run in row.runs for name in run.results["metrics"]]
    return _curves_among(names)


def _curves_among(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(_MILESTONE.sub("", name) for name in names if _MILESTONE.search(name)))


def check_curve(column: str, experiments: Iterable[Experiment]) -> None:
    """Raises UserError if none of these runs will be measured with this metric after several numbers of images.

    Which numbers of the metric there are ("fcn_score.class_iou") is not known before they are measured.
    """
    known = _curves_among(name for experiment in experiments for name in experiment.measurements)
    metric, dot, key = column.partition(".")
    if metric not in known:
        raise _no_such_curve(column, [f"{name}{dot}{key}" for name in known], "row")


def _no_such_curve(column: str, known: Sequence[str], what: str) -> UserError:
    why = did_you_mean(column, known) if known else f": no {what} has one; train with evaluate.at = [3500, 7000]"
    return UserError(f"--curve {column}: no such curve{why}")


def build_curve(table: Comparison, column: str) -> dict[str, Any]:
    """The curves of a table's rows in one number, as plain values.

    {"curve": column, "heading", "better", "confidence", "rows": [{"name", "label", "points": [
        {"images", "values", "mean", "low", "high"}, …]}]}

    A point has the values of the runs that were measured there, and their Student-t interval; those of a run under
    another protocol than its last number are left out. Rows without a training have no curve.

    Raises UserError if no run has the number after several numbers of images, and if the last numbers of the rows have
    different protocols.
    """
    if column not in (known := list_curves(table.rows)):
        raise _no_such_curve(column, known, "run")
    shared_protocol(table.rows, column, by_seed="folds" in table.doc)
    headings = {entry["metric"]: entry for entry in table.doc["columns"]}
    entry = headings.get(column, {"heading": column, "better": None})
    rows = [
        {"name": row.name, "label": row.label, "points": points}
        for row in table.rows
        if not row.target and (points := _points(row, column))
    ]
    return {
        "curve": column, "title": table.doc["title"], "profile": table.doc["profile"], "heading": entry["heading"],
        "better": entry["better"], "confidence": CONFIDENCE, "rows": rows,
    }  # fmt: skip


def _points(row: TableRow, column: str) -> list[dict[str, Any]]:
    name, dot, key = column.partition(".")
    pattern = re.compile(rf"{re.escape(name)}(?:@(\d+))?{re.escape(dot + key)}")
    values: dict[int, list[float]] = {}
    for run in row.runs:
        for number, entry in run.results["metrics"].items():
            if (match := pattern.fullmatch(number)) and _is_comparable(row, run.results, entry, column):
                images = int(match[1]) if match[1] else int(run.results["images"])
                values.setdefault(images, []).append(float(entry["value"]))
    points = []
    for images, numbers in sorted(values.items()):
        interval = over_seeds(numbers)
        points.append(
            {"images": images, "values": numbers, "mean": interval.value, "low": interval.low, "high": interval.high}
        )
    return points


def _is_comparable(row: TableRow, results: Mapping[str, Any], entry: Mapping[str, Any], column: str) -> bool:
    """Whether a number of a run was measured as its last one was: `evaluate` may have measured that alone again."""
    if (last := results["metrics"].get(column)) is None:
        return True
    measured, expected = ({**results["protocols"][each["protocol"]], "at": None} for each in (entry, last))
    return not why_not_comparable(row.label, measured, row.label, expected)


def build_rows(doc: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The heading and the rows of the curves as a table: a column for each number of images."""
    counts = sorted({point["images"] for row in doc["rows"] for point in row["points"]})
    rows = []
    for row in doc["rows"]:
        points = {point["images"]: point for point in row["points"]}
        rows.append([row["label"], *(_format_point(points.get(images)) for images in counts)])
    return ["", *(f"{images:,} images" for images in counts)], rows


def _format_point(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return NONE
    half = None if point["low"] is None else (point["high"] - point["low"]) / 2
    places = decimals(point["mean"], half)
    return f"{point['mean']:.{places}f}" + ("" if half is None else f" ± {half:.{places}f}")


def _title(doc: Mapping[str, Any]) -> str:
    return f"{doc['title']}: {with_arrow(doc)}"


def _note(doc: Mapping[str, Any]) -> str:
    runs = _count_runs([doc])
    fewer = [f"{row['label']}: {n}" for row in doc["rows"] if (n := runs[row["name"]]) < max(runs.values())]
    most = f" (up to {max(runs.values())}; {'; '.join(fewer)})" if fewer else ""
    return (
        f"Mean over the runs that were measured there{most} ± half of its {doc['confidence']:.0%} Student-t interval. "
        "The points of a run belong to one training."
    )


def _count_runs(docs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """{row: how many runs it has}, the most of any point, in the order of the rows."""
    counts: dict[str, int] = {}
    for row in (row for doc in docs for row in doc["rows"]):
        counts[row["name"]] = max([counts.get(row["name"], 0), *(len(point["values"]) for point in row["points"])])
    return counts


def to_markdown(doc: Mapping[str, Any]) -> str:
    return "\n\n".join(
        [f"**{_title(doc)}** (profile `{doc['profile']}`)", markdown_table(*build_rows(doc)), _note(doc)]
    )


def to_csv(doc: Mapping[str, Any]) -> str:
    """One line for each row and number of images, with every value in full precision."""
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "label", "metric", "images", "mean", "low", "high", "values"])
    for row in doc["rows"]:
        for point in row["points"]:
            numbers = [point[key] for key in ("images", "mean", "low", "high")]
            writer.writerow([row["name"], row["label"], doc["curve"], *numbers, " ".join(map(repr, point["values"]))])
    return out.getvalue()


def to_rich(doc: Mapping[str, Any]) -> Any:
    """A renderable for a rich Console."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head, rows = build_rows(doc)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for number, heading in enumerate(head):
        table.add_column(Text(heading), justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(Text(escape(cell)) for cell in row))
    return Group(Text(escape(_title(doc)), style="bold"), table, Text(""), Text(escape(_note(doc)), style="dim"))


def to_svg(doc: Mapping[str, Any]) -> str:
    return figure_to_svg_file(draw_curves([doc]))


def to_html(doc: Mapping[str, Any]) -> str:
    """A self-contained page with the figure and the numbers."""
    from pathlib import Path

    page = {"title": _title(doc), "profile": doc["profile"], "columns": [], "rows": [], "protocols": {}}
    return render_page(
        Path(__file__).with_name("table.html"), doc=page, main_table=build_rows(doc), best=(), published=([], []),
        groups=([], []), differences=([], []), notes=[_note(doc)], pictures=[],
        figures={"Learning curves": figure_to_svg(draw_curves([doc]))}, protocols={},
    )  # fmt: skip


def draw_curves(docs: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel for each number, a line with a band for each row. A row has one colour in all panels, and one legend
    names all rows, with the number of runs of those that have fewer than others."""
    from matplotlib.figure import Figure

    columns = min(len(docs), 3)
    lines = -(-len(docs) // columns)
    runs = _count_runs(docs)
    colours = {name: f"C{number}" for number, name in enumerate(runs)}
    handles: dict[str, Any] = {}
    figure = Figure(figsize=(max(4 * columns, 6), 3.4 * lines), layout="constrained")
    for axes, doc in zip(figure.subplots(lines, columns, squeeze=False).flat, docs, strict=False):
        for row in doc["rows"]:
            points = [point for point in row["points"] if point["mean"] == point["mean"]]  # not nan
            images = [point["images"] for point in points]
            n = runs[row["name"]]
            label = row["label"] + (f" ({format_count(n, 'run')})" if n < max(runs.values()) else "")
            colour, means = colours[row["name"]], [point["mean"] for point in points]
            [handles[row["name"]]] = axes.plot(images, means, "o-", ms=3, lw=1.2, color=colour, label=label)
            banded = [point for point in points if point["low"] is not None]
            if len(banded) > 1:
                axes.fill_between(
                    [point["images"] for point in banded], [point["low"] for point in banded],
                    [point["high"] for point in banded], color=colour, alpha=0.15, lw=0,
                )  # fmt: skip
        axes.set_title(with_arrow(doc), fontsize=9)
        axes.set_xlabel("images")
        axes.grid(alpha=0.3)
    for axes in figure.axes[len(docs) :]:
        axes.set_visible(False)
    if docs:
        lines_of_rows = [handles[name] for name in runs]
        figure.legend(handles=lines_of_rows, loc="outside lower center", ncols=5, frameon=False)
    return figure
