"""Format a comparison: terminal, Markdown, CSV, and an HTML page with pictures. (`latex.py`: LaTeX.)

Every format shows only what is in the document of `comparison.build_comparison`; the page adds the runs' pictures.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from p2pzoo.images.grid import GRID_GAP
from p2pzoo.images.io import PILLOW_ERRORS, describe_read_error, open_picture
from p2pzoo.runs.pages import data_uri, figure_to_svg, render_page
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.terminal import escape
from p2pzoo_bench.answer import split_line
from p2pzoo_bench.notes import describe_chosen, describe_data
from p2pzoo_bench.row_groups import build_groups_table, describe_groups
from p2pzoo_bench.stale_runs import format_stale
from p2pzoo_bench.table_columns import (
    COSTS,
    NONE,
    NOT_TRAINED,
    TableColumn,
    find_best_cells,
    list_columns,
    with_arrow,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_PUBLISHED_DECIMALS = 2  # of published numbers: 0.4 is shown as 0.40, like the paper's other numbers


# --- tables and notes that all formats share -------------------------------------------------------------------


def build_main_table(doc: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The heading and the rows of the main table: mean ± half of its interval, cost of the row."""
    columns = list_columns(doc)
    measured = {column["metric"]: column for column in doc["columns"]}
    rows = [[row["label"], *(_format_cell(row, column, measured) for column in columns)] for row in doc["rows"]]
    return ["", *(column.heading for column in columns)], rows


def build_published_table(doc: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The heading and the rows of the published numbers. `build_notes` says how they were measured.

    They are from other data and another size than ours, so that they stand in rows of their own, never beside ours.
    """
    columns = [c for c in doc["columns"] if any(c["metric"] in row["published"] for row in doc["rows"])]
    head = ["published", *map(with_arrow, columns)]
    rows = []
    for row in doc["rows"]:
        numbers = [row["published"].get(column["metric"]) for column in columns]
        if any(number is not None for number in numbers):
            rows.append([row["label"], *(NONE if n is None else _format_published(n) for n in numbers)])
    return head, rows


def build_difference_table(doc: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The heading and the rows of the differences between each row and the baseline."""
    baseline = next(row["label"] for row in doc["rows"] if row["name"] == doc["baseline"])
    head = [f"difference to {baseline}", *(column["heading"] for column in doc["columns"])]
    rows = []
    for row in doc["rows"]:
        if row["name"] != doc["baseline"] and any("difference" in cell for cell in row["cells"].values()):
            cells = [_format_difference(row["cells"].get(column["metric"], {})) for column in doc["columns"]]
            rows.append([row["label"], *cells])
    return head, rows


def build_further_tables(doc: Mapping[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """The tables below the main one that have rows: published numbers, differences."""
    return [table for table in (build_published_table(doc), build_difference_table(doc)) if table[1]]


def _describe_spreads(columns: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a table with a pooled spread says of the variance of its differences, which not every column may have."""
    if not any(column.get("spread") for column in columns):
        return []
    without = [column["heading"] for column in columns if "spread" in column and not column["spread"]]
    but = f" Not in {', '.join(without)}: too few rows have numbers." if without else ""
    return [
        "The variance of a difference is the sum of those of its two rows. A row's is that of all trainings with every "
        f"fold together, or its own where that is larger; degrees of freedom after Welch and Satterthwaite.{but}"
    ]


def _seeds_of(row: Mapping[str, Any]) -> list[int]:
    """The seeds of its runs, in order. A row of the ground truth has none, except over folds."""
    return sorted(run["seed"] for run in row["runs"] if run["seed"] is not None)


def _describe_means(doc: Mapping[str, Any], percent: str) -> list[str]:
    """What the cells of the table are means of. Rows that have fewer of the runs are named."""
    runs = [(row["label"], own) for row in doc["rows"] if (own := _seeds_of(row))]
    seeds = sorted({seed for _, own in runs for seed in own})
    fewer = [(label, own) for label, own in runs if len(own) < len(seeds)]
    named = "; ".join(f"{label}: {', '.join(map(str, own))}" for label, own in fewer)
    if not runs:
        return []
    if all(len(own) == 1 for _, own in runs):
        return [f"One run per row, {f'of the seeds {named}' if named else f'seed {seeds[0]}'}: no interval."]
    if "folds" not in doc:
        of = ", ".join(map(str, seeds)) + (f" ({named})" if named else "")
        return [f"Mean of seeds {of} ± half of the {percent} Student-t interval over them."]
    but = f" ({'; '.join(f'{label}: {len(own)}' for label, own in fewer)})" if fewer else ""
    return [
        f"Mean of {len(seeds)} folds{but} ± half of the {percent} Student-t interval over them. Each fold is a run "
        "with its own seed, tested on its own images."
    ]


def _describe_unpaired(doc: Mapping[str, Any]) -> list[str]:
    """Which rows have no differences because they share no seed with the baseline."""
    baseline = next(row for row in doc["rows"] if row["name"] == doc["baseline"])
    own, kind = {*_seeds_of(baseline)}, "fold" if "folds" in doc else "seed"
    labels = [row["label"] for row in doc["rows"] if own and _seeds_of(row) and own.isdisjoint(_seeds_of(row))]
    return [f"No difference of {', '.join(labels)}: no {kind} in common with {baseline['label']}."] if labels else []


def build_notes(doc: Mapping[str, Any]) -> list[str]:
    """The notes below the table: what the intervals mean, how far published numbers compare, and missing numbers."""
    percent = f"{doc['confidence']:.0%}"
    notes = _describe_means(doc, percent)
    differences = [cell["difference"] for row in doc["rows"] for cell in row["cells"].values() if "difference" in cell]
    if differences and "folds" in doc:
        notes.append(f"Differences: the mean over the images of all folds with its {percent} interval over folds.")
        notes += _describe_spreads(doc["columns"])
    elif differences:
        interval = f" with its {percent} interval over test {doc['resampled']} (studentised bootstrap, paired by image)"
        if all(difference["blocks"]["low"] is None for difference in differences):
            interval = f", without an interval: there are too few test {doc['resampled']}"
        has_seeds = any(difference["seeds"]["low"] is not None for difference in differences)
        over_seeds = "; then half of the interval over seeds" if has_seeds else ""
        notes.append(f"Differences: the mean over seeds{interval}{over_seeds}.")
    notes += _describe_unpaired(doc)
    if search := doc.get("search"):
        notes.append(
            f"Settings of each row and seed: the best of {search['trials']} trials by {search['metric']} on the "
            f"validation images, each with {search['share']:.0%} of the row's images."
        )
        notes += describe_chosen(doc)
    if build_published_table(doc)[1]:
        source = f": {doc['source']}" if doc.get("source") else ""
        notes.append(f"Published numbers{source}. Compare them with each other, not with ours.")
    if timed := sorted({each for row in doc["rows"] if row.get("milliseconds") for each in row["timed_on"]}):
        notes.append(
            f"{COSTS['milliseconds']}: the median time of a translation where the runs were evaluated "
            f"({'; '.join(timed)}). Another machine, or other work on it, has other times."
        )
    few = {
        column["heading"]: cell["too_few"]
        for column in doc["columns"]
        for row in doc["rows"]
        if "too_few" in (cell := row["cells"].get(column["metric"], {}))
    }
    notes += [f"{heading}: {why}." for heading, why in few.items()]
    notes += [f"{c['heading']}: no number, {c['unavailable']}." for c in doc["columns"] if c["unavailable"]]
    notes += [f"{row['label']}: {row['failed']}." for row in doc["rows"] if row["failed"]]
    notes += format_stale(doc.get("stale", ()))
    notes += [f"{note}." for note in doc.get("left_out", ())]
    return notes + [f"{note}." for note in doc.get("data", {}).get("notes", ())]


def _format_cell(row: Mapping[str, Any], column: TableColumn, measured: Mapping[str, Any]) -> str:
    if column.kind == "metric":
        return _format_value(row, measured[column.key])
    return _format_cost(column.key, row.get(column.key))


def _format_value(row: Mapping[str, Any], column: Mapping[str, Any]) -> str:
    cell = row["cells"].get(column["metric"])
    if cell is None:
        if column["unavailable"]:
            return "unavailable"
        return "missing" if row["failed"] == NOT_TRAINED else "failed" if row["failed"] else NONE
    half = None if cell["low"] is None else (cell["high"] - cell["low"]) / 2
    places = decimals(cell["mean"], half)
    too_few = " (too few images)" if "too_few" in cell else ""
    return f"{cell['mean']:.{places}f}" + ("" if half is None else f" ± {half:.{places}f}") + too_few


def _format_difference(cell: Mapping[str, Any]) -> str:
    if "difference" not in cell:
        return NONE
    blocks, seeds = cell["difference"]["blocks"], cell["difference"]["seeds"]
    if "p" in cell["difference"]:  # over folds: one interval, which holds images and seeds
        blocks, seeds = seeds, {"low": None}
    half = None if blocks["low"] is None else (blocks["high"] - blocks["low"]) / 2
    places = decimals(blocks["value"], half)
    text = f"{blocks['value']:+.{places}f}"
    if half is not None:
        text += f" [{blocks['low']:+.{places}f}, {blocks['high']:+.{places}f}]"
    if seeds["low"] is not None:
        text += f"; ±{(seeds['high'] - seeds['low']) / 2:.{places}f}"
    return text.replace("-", "−")


def _format_published(number: float) -> str:
    """A published number with the decimals that it was written with, at least MIN_PUBLISHED_DECIMALS."""
    written = len(repr(float(number)).partition(".")[2]) if math.isfinite(number) and abs(number) >= 1e-4 else 6
    return f"{number:.{max(MIN_PUBLISHED_DECIMALS, written)}f}"


def decimals(value: float, half: float | None) -> int:
    """How many decimals to show: two digits of half the interval, or three of the value.

    >>> decimals(0.6612, 0.0213), decimals(23.54, None)
    (3, 1)
    """
    number = half if half else abs(value)
    if not number or not math.isfinite(number):
        return 3
    return max(0, min(6, (1 if half else 2) - math.floor(math.log10(number))))


def _format_cost(key: str, number: float | None) -> str:
    if number is None:
        return NONE
    if key == "milliseconds":
        return f"{number:,.{decimals(number, None)}f}"
    return f"{number:.0%}" if key.endswith("over_side") else f"{number:,.0f}"


# --- formats ---------------------------------------------------------------------------------------------------


def to_markdown(doc: Mapping[str, Any]) -> str:
    parts = [f"**{doc['title']}** (profile `{doc['profile']}`)"]
    for lines in (doc.get("answer"), doc.get("explanations")):
        parts += ["\n".join(f"- {line}" for line in lines)] if lines else []
    parts += describe_data(doc)
    if (groups := build_groups_table(doc))[1]:
        parts += [markdown_table(*groups), *filter(None, [describe_groups(doc)])]
    parts += [markdown_table(*table) for table in (build_main_table(doc), *build_further_tables(doc))]
    return "\n\n".join([*parts, *build_notes(doc)])


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def to_csv(doc: Mapping[str, Any]) -> str:
    """One line for each row and metric, with every value in full precision. images: that the row's runs train on.

    difference_low and difference_high are the interval of the page: over folds where the table has folds, else over
    blocks of images. Each of the two also has columns of its own.
    """
    interval = "seeds" if doc.get("folds") else "blocks"
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["row", "label", "metric", "mean", "low", "high", "runs", "values", "published", "difference", "difference_low",
         "difference_high", "difference_blocks_low", "difference_blocks_high", "difference_seeds_low",
         "difference_seeds_high", "protocol", "published_protocol", "images"]
    )  # fmt: skip
    for row in doc["rows"]:
        for column in doc["columns"]:
            cell = row["cells"].get(column["metric"], {})
            difference = cell.get("difference", {"blocks": {}, "seeds": {}})
            blocks, seeds = difference["blocks"], difference["seeds"]
            published = row["published"].get(column["metric"])
            writer.writerow(
                [row["name"], row["label"], column["metric"], *(cell.get(key) for key in ("mean", "low", "high")),
                 len(cell.get("values", ())), " ".join(map(repr, cell.get("values", ()))),
                 published, blocks.get("value"),
                 *(of.get(key) for of in (difference[interval], blocks, seeds) for key in ("low", "high")),
                 column["protocol"], None if published is None else doc.get("source"), row.get("images")]
            )  # fmt: skip
    return out.getvalue()


def to_rich(doc: Mapping[str, Any]) -> Any:
    """A renderable for a rich Console."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def build_table(head: Sequence[str], rows: Sequence[Sequence[str]], justify: Any = "right") -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for number, title in enumerate(head):
            table.add_column(Text(title), justify="left" if number == 0 else justify)
        for row in rows:
            table.add_row(*(Text(escape(cell)) for cell in row))
        return table

    title = Text(escape(f"{doc['title']} (profile {doc['profile']})"), style="bold")
    parts: list[Any] = [title, build_table(*build_main_table(doc))]
    for table in build_further_tables(doc):
        parts += [Text(""), build_table(*table)]
    facts = [Text(escape(line)) for line in describe_data(doc)]
    if answer := [Text(escape(f"- {line}")) for line in doc.get("answer", ())]:
        explained = [Text(escape(line), style="dim") for line in doc.get("explanations", ())]
        facts = [*answer, *([Text("")] if explained else []), *explained, Text(""), *facts]
    parts = [*facts, *parts]
    if (groups := build_groups_table(doc))[1]:
        parts = [build_table(*groups, "left"), Text(escape(describe_groups(doc)), style="dim"), Text(""), *parts]
    return Group(*parts, Text(""), *(Text(escape(note), style="dim") for note in build_notes(doc)))


def to_html(
    doc: Mapping[str, Any], pictures: Mapping[str, Path], size: tuple[int, int], figures: Mapping[str, Figure]
) -> str:
    """A self-contained HTML page, with the same test images down the rows.

    pictures  {row's name: its grid of test images, x | ŷ | y}
    size      (H, W) of an image
    figures   {metric: its figure of all rows}

    Raises UserError if a grid cannot be read.
    """
    grids = {name: _read_grid(path, size) for name, path in pictures.items()}
    image_rows = []
    if grids:
        first = next(iter(grids.values()))
        image_rows.append(("input", [data_uri(x) for x, _, _ in first]))
        for row in doc["rows"]:
            if row["name"] in grids:
                image_rows.append((row["label"], [data_uri(y_hat) for _, y_hat, _ in grids[row["name"]]]))
        image_rows.append(("ground truth", [data_uri(y) for _, _, y in first]))
    return render_page(
        Path(__file__).with_name("table.html"), doc=doc,
        main_table=build_main_table(doc), best=find_best_cells(doc), data=describe_data(doc),
        answer=[split_line(line) for line in doc.get("answer", ())],
        groups=build_groups_table(doc), groups_note=describe_groups(doc),
        published=build_published_table(doc), differences=build_difference_table(doc), notes=build_notes(doc),
        pictures=image_rows, figures={name: figure_to_svg(figure) for name, figure in figures.items()},
        protocols={digest: json.dumps(p, indent=2, ensure_ascii=False) for digest, p in doc["protocols"].items()},
    )  # fmt: skip


def _read_grid(path: Path, size: tuple[int, int]) -> list[list[Image.Image]]:
    try:
        with open_picture(path) as grid:
            return split_grid(grid.convert("RGB"), size)
    except PILLOW_ERRORS as error:
        raise UserError(f"{path}: {describe_read_error(error)}; `p2pzoo run` draws it again") from None


def split_grid(grid: Image.Image, size: tuple[int, int]) -> list[list[Image.Image]]:
    """Split a picture of `images.grid.make_grid` into rows of x, ŷ and y, at the grid's scale. size: (H, W)."""
    width = (grid.width - 2 * GRID_GAP) // 3
    height = round(width * size[0] / size[1])
    count = (grid.height + GRID_GAP) // (height + GRID_GAP)
    lefts = (0, width + GRID_GAP, 2 * (width + GRID_GAP))
    tops = [number * (height + GRID_GAP) for number in range(count)]
    return [[grid.crop((left, top, left + width, top + height)) for left in lefts] for top in tops]
