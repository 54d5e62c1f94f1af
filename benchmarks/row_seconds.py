"""Measure the cost of each row of the paper's tables: milliseconds per step, and seconds for all steps of a run.

    python benchmarks/row_seconds.py -o benchmarks/results/speed/row_seconds-laptop.json

Rows take turns, each in a separate process, on a machine that does nothing else. The runs behind the tables may have
shared their machine with other work, so their own times are not used. Samples, checkpoints and evaluation are not
counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import measure
import torch
from steps import training

from p2pzoo import config

PAPER_TABLES = sorted(Path(__file__).parent.glob("table*.toml"))
WARM_UP = 3  # steps before timing


@click.command()
@click.option("--profile", default="laptop", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns per row.")
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Steps per turn; a turn counts as their median.",
)
@click.option(
    "--table", "tables", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure the rows of this table, in place of the paper's tables. May be repeated.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of a table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this file.")
@click.option("--contestant", hidden=True)
def main(
    profile: str,
    rounds: int,
    steps: int,
    tables: tuple[Path, ...],
    as_json: bool,
    output: Path | None,
    contestant: str | None,
) -> None:
    """Time a training step of every recipe that the tables compare."""
    if contestant:
        serve(contestant, profile)
        return
    contestants = {
        recipe: measure.Contestant(__file__, "--profile", profile, "--contestant", recipe)
        for recipe in recipes(tables or PAPER_TABLES)
    }
    about = {recipe: contestant.about for recipe, contestant in contestants.items()}
    measured = measure.take_turns(contestants, rounds, steps)
    rows = {}
    for recipe, each in measured.items():
        milliseconds = measure.spread([1e3 * seconds for seconds in each["seconds"]])
        rows[recipe] = {
            **about[recipe],
            "milliseconds": milliseconds,
            "seconds": round(milliseconds["median"] * about[recipe]["steps"] / 1e3),
            "peak_megabytes": round(each["peak_bytes"] / 1e6),
        }
    result = {
        "benchmark": "row_seconds", "profile": profile, "rounds": rounds, "rows": rows,
        "environment": measure.environment(),
    }  # fmt: skip
    measure.keep(result, output)
    click.echo(json.dumps(result) if as_json else table(result))


def recipes(files: Iterable[Path]) -> list[str]:
    """Return the recipes of these tables in their order, without duplicates."""
    from p2pzoo_bench.table_file import read_table

    tables = [read_table(str(file)) for file in files]
    return list(dict.fromkeys(row.recipe for table in tables for row in table.trained if row.recipe))


def serve(recipe: str, profile: str) -> None:
    """Run as one row."""
    torch.manual_seed(0)
    made = config.load(recipe, profile)
    work = training(made)
    for _ in range(WARM_UP):
        work()
    measure.serve(work, {"title": made.title, "batch": made.train.batch_size, "steps": made.train.steps})


def table(result: dict[str, Any]) -> str:
    head = ["recipe", "batch", "ms a step (spread)", "steps", "s in all", "peak MB"]
    rows = []
    for recipe, row in result["rows"].items():
        low, high = row["milliseconds"]["spread"]
        step = f"{row['milliseconds']['median']:.1f} ({low:.1f} to {high:.1f})"
        name = recipe.removeprefix("zoo:").removesuffix(".toml")
        rows.append(
            [name, str(row["batch"]), step, f"{row['steps']:,}", f"{row['seconds']:,}", str(row["peak_megabytes"])]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    main()
