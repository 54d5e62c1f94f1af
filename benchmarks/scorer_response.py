"""Print the table of plugins/p2pzoo_earth/README.md: what the scorers of the folds say of changed photos.

    python benchmarks/scorer_response.py

It measures the rows of the ground truth of table1_losses.toml on every fold, and trains nothing.
"""

from __future__ import annotations

from pathlib import Path

import click
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.comparison import TableRow
from p2pzoo_bench.formats import markdown_table
from p2pzoo_bench.table_file import read_table
from p2pzoo_earth.geometry import FOLDS

from p2pzoo.plugin.loader import registry

TABLE = Path(__file__).parent / "table1_losses.toml"
ROWS = {"photos": "photos", "blur_1": "1 px", "blur_2": "2 px", "flat": "flat"}  # row of the table: heading
SCORERS = {"": "fcn_score", "-robust": "fcn_robust"}  # ending of the scorer's name: metric


@click.command()
@click.option("--runs", default="runs", type=click.Path(path_type=Path), help="Folder for what is measured.")
def main(runs: Path) -> None:
    """Print pixel accuracy and class IoU of photos, blurred photos and flat colours, for each scorer and fold."""
    rows = {row.name: row for row in Bench(read_table(str(TABLE)), registry(), runs).compare({}).rows}
    if failed := [rows[name].failed for name in ROWS if rows[name].failed]:
        raise click.ClickException(str(failed[0]))
    lines = []
    for pair in range(FOLDS // 2):
        for ending, metric in SCORERS.items():
            for fold in (pair, pair + FOLDS // 2):
                cells = [numbers(rows[name], metric, fold) for name in ROWS]
                lines.append([f"fold{pair}{ending}", str(fold), str(count_tiles(rows["photos"], fold)), *cells])
    click.echo(markdown_table(["scorer", "fold", "tiles", *ROWS.values()], lines))


def numbers(row: TableRow, metric: str, fold: int) -> str:
    """Pixel accuracy and class IoU of a row on a fold."""
    found = row.runs[fold].results["metrics"]
    return f"{found[metric]['value']:.3f}, {found[f'{metric}.class_iou']['value']:.3f}"


def count_tiles(row: TableRow, fold: int) -> int:
    return len(row.runs[fold].stats[1]["ids"])


if __name__ == "__main__":
    main()
