"""Order the rows of a table by their mean rank over several numbers, each counting the same.

    python benchmarks/rank_rows.py benchmarks/results/search_best-laptop.json

Rows with equal numbers share the mean of their ranks. Where the mean rank is equal, the first number decides. The
baseline is marked: changes below it did not help. The rule stands in search_best.toml, and was written before its runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from grid import grid
from scipy.stats import rankdata

METRICS = ("kid_efficientnet_lite0", "l1")  # lower is better in both


@click.command()
@click.argument("document", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(document: Path) -> None:
    """Print the rows in their order."""
    click.echo(as_table(json.loads(document.read_text("utf-8"))))


def as_table(doc: dict[str, Any]) -> str:
    """Markdown: a line for each trained row, the best first."""
    headings = {column["metric"]: column["heading"] for column in doc["columns"]}
    lines = [[label, f"{mean:g}", *map("{:.4f}".format, values)] for label, mean, values in rank_rows(doc)]
    return grid(["", "mean rank", *(f"{headings[metric]} ↓" for metric in METRICS)], lines)


def rank_rows(doc: dict[str, Any]) -> list[tuple[str, float, list[float]]]:
    """(label, mean rank, numbers) of trained rows, the best first. Raises ClickException if a number is not there."""
    rows = [row for row in doc["rows"] if not row.get("target")]
    if unmeasured := [row["label"] for row in rows if None in (row["cells"][metric]["mean"] for metric in METRICS)]:
        raise click.ClickException(f"not measured: {', '.join(unmeasured)}: train the whole table first")
    values = [[row["cells"][metric]["mean"] for metric in METRICS] for row in rows]
    ranks = rankdata(values, axis=0).mean(axis=1)
    labels = [row["label"] + " (baseline)" * (row["name"] == doc["baseline"]) for row in rows]
    ordered = zip(labels, ranks.tolist(), values, strict=True)
    return sorted(ordered, key=lambda row: (row[1], row[2][0]))


if __name__ == "__main__":
    main()
