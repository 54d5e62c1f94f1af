"""How many times as long the rows of a table take for an image as its baseline, by runs that take turns.

    python benchmarks/equal_time.py -o benchmarks/results/speed/equal_time.json

Each turn is a `p2pzoo run` of a few hundred images, on a machine that does nothing else; what counts is its own
timings.jsonl without the first window, so that all of the loop is in it (averaging G, for one), and no start.
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
@click.option("--table", "name", default="best.toml", show_default=True, help="A table file beside this one.")
@click.option("--profile", default="laptop", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Turns of each row.")
@click.option("--images", type=click.IntRange(1), default=400, show_default=True, help="Of a turn.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also keep the result in this file.")
def main(name: str, profile: str, rounds: int, images: int, output: Path | None) -> None:
    """Time the rows of a table against its baseline."""
    from p2pzoo_bench.table_file import read_table

    asked = read_table(str(HERE / name))
    rows = {row.name: row.recipe for row in asked.trained if row.recipe}
    seen = {row: config.load(recipe, profile).train.images_seen for row, recipe in rows.items()}
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    for _ in range(rounds):
        for row, recipe in rows.items():
            seconds[row].append(turn(recipe, profile, images))
    result = {
        "benchmark": "equal_time", "table": name, "profile": profile, "images": images, "baseline": asked.baseline,
        "rows": {
            row: {
                "recipe": rows[row],
                "train_images": seen[row],
                "milliseconds": measure.spread([1e3 * each for each in taken]),
                "times": measure.ratio(taken, seconds[asked.baseline]),
            }
            for row, taken in seconds.items()
        },
        "environment": measure.environment(),
    }  # fmt: skip
    measure.keep(result, output)
    click.echo(table(result))


def turn(recipe: str, profile: str, images: int) -> float:
    """Seconds for an image: the median over the windows of its log, but for the first."""
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
