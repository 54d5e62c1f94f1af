"""Measure the time per image of each row of a table relative to its baseline, with runs that take turns.

    python benchmarks/equal_time.py -o benchmarks/results/speed/equal_time.json

Each turn is a `p2pzoo run` of a few hundred images, on a machine that does nothing else. The time comes from its
timings.jsonl without the first window: it includes the whole training loop (for example averaging G), but no start-up.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import measure

from p2pzoo import config

HERE = Path(__file__).parent


@click.command()
@click.option(
    "--table", "name", default="best.toml", show_default=True, help="Table file in the folder of this script."
)
@click.option("--profile", default="laptop", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Turns per row.")
@click.option("--images", type=click.IntRange(1), default=400, show_default=True, help="Images per turn.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this file.")
def main(name: str, profile: str, rounds: int, images: int, output: Path | None) -> None:
    """Time the rows of a table against its baseline."""
    from p2pzoo_bench.table_file import read_table

    table_file = read_table(str(HERE / name))
    rows = {row.name: row.recipe for row in table_file.trained if row.recipe}
    images_seen = {row: config.load(recipe, profile).train.images_seen for row, recipe in rows.items()}
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    for _ in range(rounds):
        for row, recipe in rows.items():
            seconds[row].append(turn(recipe, profile, images))
    result = {
        "benchmark": "equal_time", "table": name, "profile": profile, "images": images, "baseline": table_file.baseline,
        "rows": {
            row: {
                "recipe": rows[row],
                "train_images": images_seen[row],
                "milliseconds": measure.spread([1e3 * each for each in taken]),
                "times": measure.ratio(taken, seconds[table_file.baseline]),
            }
            for row, taken in seconds.items()
        },
        "environment": measure.environment(),
    }  # fmt: skip
    measure.keep(result, output)
    click.echo(table(result))


def turn(recipe: str, profile: str, images: int) -> float:
    """Return the seconds per image of one run: the median over the windows of its log except the first."""
    with tempfile.TemporaryDirectory() as runs:
        options = ["--profile", profile, "--runs", runs, "--quiet", "-s", f"train.images={images}"]
        logged = ["-s", f"train.log_every={images // 4}"]
        subprocess.run(
            [sys.executable, "-m", "p2pzoo", "run", recipe, *options, *logged], check=True, capture_output=True
        )
        [log] = Path(runs).glob("*/*/timings.jsonl")
        windows = [json.loads(line) for line in log.read_text().splitlines()][1:]
    before = images // 4
    rates = []
    for window in windows:
        rates.append(window["seconds"] / (window["images"] - before))
        before = window["images"]
    return statistics.median(rates)


def table(result: dict[str, Any]) -> str:
    lines = ["| recipe | ms an image (spread) | times the baseline's (spread) |", "| --- | --- | --- |"]
    for row in result["rows"].values():
        spent, times = row["milliseconds"], row["times"]
        name = row["recipe"].removeprefix("zoo:").removesuffix(".toml")
        shown = [f"{each['median']:.{digits}f} ({each['spread'][0]:.{digits}f} to {each['spread'][1]:.{digits}f})"
                 for each, digits in ((spent, 1), (times, 2))]  # fmt: skip
        lines.append(f"| {name} | {shown[0]} | {shown[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
