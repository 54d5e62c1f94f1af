"""A compared table in the forms that people want: terminal, Markdown, CSV, JSON, LaTeX, and a page with pictures.

All show the document of `comparison.compared`, and nothing that is not in it; the page adds the runs' pictures.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from PIL import Image

from p2pzoo.images.grid import GAP
from p2pzoo.images.io import UNREADABLE, reason
from p2pzoo.runs.report import data_uri, svg
from p2pzoo.utils.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NONE = "–"
ARROWS = {"higher": "↑", "lower": "↓"}
SIGNS = str.maketrans({"–": "--", "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
                       "[": "{[}", "]": "{]}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$",
                       "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
                       "\\": r"\textbackslash{}", "→": r"$\rightarrow$", "∩": r"$\cap$",
                       "λ": r"$\lambda$"})  # fmt: skip


# --- what all forms share --------------------------------------------------------------------------------------


def values(doc: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The heading and rows of the main table: mean ± half the interval, the published number, and what a row costs."""
    published = {c["metric"] for c in doc["columns"] if any(c["metric"] in row["published"] for row in doc["rows"])}
    head = [""]
    for column in doc["columns"]:
        head.append(f"{column['heading']} {ARROWS.get(column['better'], '')}".strip())
        head += ["paper"] if column["metric"] in published else []
    costs = {key: words for key, words in COSTS.items() if any(row.get(key) is not None for row in doc["rows"])}
    head += costs.values()
    rows = []
    for row in doc["rows"]:
        shown = [row["label"]]
        for column in doc["columns"]:
            shown.append(_value(row, column))
            if column["metric"] in published:
                number = row["published"].get(column["metric"])
                shown.append(NONE if number is None else f"{number:.{max(2, _places(number))}f}")
        rows.append(shown + [_cost(key, row.get(key)) for key in costs])
    return head, rows


COSTS = {
    "receptive_field": "D sees, px",
    "receptive_field_over_side": "of the side",
    "parameters": "parameters of G",
    "discriminator_parameters": "of D",
    "seconds": "training, s",
    "peak_megabytes": "peak MB",
}


def differences(doc: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The heading and rows of what each row exceeds the baseline by."""
    baseline = next(row["label"] for row in doc["rows"] if row["name"] == doc["baseline"])
    head = [f"less {baseline}", *(column["heading"] for column in doc["columns"])]
    rows = []
    for row in doc["rows"]:
        if row["name"] != doc["baseline"] and any("difference" in cell for cell in row["cells"].values()):
            rows.append([row["label"], *(_difference(row["cells"].get(c["metric"], {})) for c in doc["columns"])])
    return head, rows


def notes(doc: Mapping[str, Any]) -> list[str]:
    """What a reader must know besides."""
    seeds = sorted({run["seed"] for row in doc["rows"] for run in row["runs"] if run["seed"] is not None})
    percent = f"{doc['confidence']:.0%}"
    found = []
    if len(seeds) > 1:
        found.append(
            f"Mean of seeds {', '.join(map(str, seeds))} ± half of the {percent} Student-t interval over them."
        )
    elif seeds:
        found.append(f"One run a row, seed {seeds[0]}: no interval.")
    differences = [cell["difference"] for row in doc["rows"] for cell in row["cells"].values() if "difference" in cell]
    if differences:
        drawn = f" with its {percent} interval over test {doc['resampled']} (studentised bootstrap, paired by image)"
        if all(difference["blocks"]["low"] is None for difference in differences):
            drawn = f", without an interval: there are too few test {doc['resampled']}"
        seeds_too = "; then half of the interval over seeds" if len(seeds) > 1 else ""
        found.append(f"Differences: the mean over seeds{drawn}{seeds_too}.")
    if doc.get("source"):
        found.append(f"Paper: {doc['source']}.")
    found += [f"{c['heading']}: no number, {c['unavailable']}." for c in doc["columns"] if c["unavailable"]]
    found += [f"{row['label']}: {row['failed']}." for row in doc["rows"] if row["failed"]]
    return found


def _value(row: Mapping[str, Any], column: Mapping[str, Any]) -> str:
    cell = row["cells"].get(column["metric"])
    if cell is None:
        return "unavailable" if column["unavailable"] else ("failed" if row["failed"] else NONE)
    half = None if cell["low"] is None else (cell["high"] - cell["low"]) / 2
    places = decimals(cell["mean"], half)
    return f"{cell['mean']:.{places}f}" + ("" if half is None else f" ± {half:.{places}f}")


def _difference(cell: Mapping[str, Any]) -> str:
    if "difference" not in cell:
        return NONE
    blocks, seeds = cell["difference"]["blocks"], cell["difference"]["seeds"]
    half = None if blocks["low"] is None else (blocks["high"] - blocks["low"]) / 2
    places = decimals(blocks["value"], half)
    text = f"{blocks['value']:+.{places}f}"
    if half is not None:
        text += f" [{blocks['low']:+.{places}f}, {blocks['high']:+.{places}f}]"
    if seeds["low"] is not None:
        text += f"; ±{(seeds['high'] - seeds['low']) / 2:.{places}f}"
    return text.replace("-", "−")


def _places(number: float) -> int:
    """Places after the point that the number was written with."""
    return len(repr(float(number)).partition(".")[2]) if math.isfinite(number) and abs(number) >= 1e-4 else 6


def decimals(value: float, half: float | None) -> int:
    """Places after the point: two digits of the interval, or three of the value."""
    shown = half if half else abs(value)
    if not shown or not math.isfinite(shown):
        return 3
    return max(0, min(6, (1 if half else 2) - math.floor(math.log10(shown))))


def _cost(key: str, number: float | None) -> str:
    if number is None:
        return NONE
    return f"{number:.0%}" if key.endswith("over_side") else f"{number:,.0f}"


# --- the forms -------------------------------------------------------------------------------------------------


def markdown(doc: Mapping[str, Any]) -> str:
    parts = [f"**{doc['title']}** (profile `{doc['profile']}`)", _pipes(*values(doc))]
    if (table := differences(doc))[1]:
        parts.append(_pipes(*table))
    return "\n\n".join([*parts, *notes(doc)])


def _pipes(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def comma_separated(doc: Mapping[str, Any]) -> str:
    """One line for each row and metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["row", "label", "metric", "mean", "low", "high", "runs", "values", "published", "difference", "difference_low",
         "difference_high", "difference_seeds_low", "difference_seeds_high", "protocol"]
    )  # fmt: skip
    for row in doc["rows"]:
        for column in doc["columns"]:
            cell = row["cells"].get(column["metric"], {})
            difference = cell.get("difference", {"blocks": {}, "seeds": {}})
            blocks, seeds = difference["blocks"], difference["seeds"]
            writer.writerow(
                [row["name"], row["label"], column["metric"], *(cell.get(key) for key in ("mean", "low", "high")),
                 len(cell.get("values", ())), " ".join(map(repr, cell.get("values", ()))),
                 row["published"].get(column["metric"]), *(blocks.get(key) for key in ("value", "low", "high")),
                 seeds.get("low"), seeds.get("high"), column["protocol"]]
            )  # fmt: skip
    return out.getvalue()


def latex(doc: Mapping[str, Any]) -> str:
    """A booktabs table."""
    head, rows = values(doc)
    lines = [
        f"% {doc['title']}, profile {doc['profile']}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
    ]
    lines += [" & ".join(map(_escaped, head)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(_escaped, row)) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in notes(doc))])


def _escaped(text: str) -> str:
    return text.translate(SIGNS)


def rich_text(doc: Mapping[str, Any]) -> Any:
    """For a rich Console to print."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
        made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for number, title in enumerate(head):
            made.add_column(Text(title), justify="left" if number == 0 else "right")
        for row in rows:
            made.add_row(*map(Text, row))
        return made

    parts: list[Any] = [Text(f"{doc['title']} (profile {doc['profile']})", style="bold"), table(*values(doc))]
    if (differing := differences(doc))[1]:
        parts += [Text(""), table(*differing)]
    return Group(*parts, Text(""), *(Text(note, style="dim") for note in notes(doc)))


def page(
    doc: Mapping[str, Any], pictures: Mapping[str, Path], size: tuple[int, int], drawings: Mapping[str, Figure]
) -> str:
    """One HTML page that needs nothing else, with the same test images down the rows.

    pictures  {row's name: its grid of test images, x | ŷ | y}; size (H, W) of an image
    drawings  {metric: what it draws of all rows}
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("table.html").read_text("utf-8"))
    cut = {name: _cut(path, size) for name, path in pictures.items()}
    shown = []
    if cut:
        first = next(iter(cut.values()))
        shown.append(("input", [data_uri(row[0]) for row in first]))
        for row in doc["rows"]:
            if row["name"] in cut:
                shown.append((row["label"], [data_uri(tile[1]) for tile in cut[row["name"]]]))
        shown.append(("ground truth", [data_uri(row[2]) for row in first]))
    return template.render(
        doc=doc, values=values(doc), differences=differences(doc), notes=notes(doc), pictures=shown,
        drawings={name: svg(figure) for name, figure in drawings.items()},
        protocols={digest: json.dumps(p, indent=2, ensure_ascii=False) for digest, p in doc["protocols"].items()},
    )  # fmt: skip


def _cut(path: Path, size: tuple[int, int]) -> list[list[Image.Image]]:
    try:
        with Image.open(path) as sheet:
            return tiles(sheet.convert("RGB"), size)
    except UNREADABLE as error:
        raise UserError(f"{path}: {reason(error)}; `p2pzoo run` draws it again") from None


def tiles(sheet: Image.Image, size: tuple[int, int]) -> list[list[Image.Image]]:
    """A grid of `pictures.grid` cut into its rows of x, ŷ and y again."""
    width = (sheet.width - 2 * GAP) // 3
    height = round(width * size[0] / size[1])
    count = (sheet.height + GAP) // (height + GAP)
    return [
        [
            sheet.crop((left, top, left + width, top + height))
            for left in (0, width + GAP, 2 * (width + GAP))
            for top in (number * (height + GAP),)
        ]
        for number in range(count)
    ]
