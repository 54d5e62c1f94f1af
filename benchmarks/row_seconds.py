"""Measure what a training step of each row of a table costs, relative to the baseline of the table.

    python benchmarks/row_seconds.py benchmarks/methods.toml -o benchmarks/results/speed/row_seconds-methods.json

A few rows at a time take turns with the baseline, each in a process of its own, on a machine that does nothing else.
The runs behind the tables may have shared their machine with other work, so their own times are not used. Tables at
equal training time have their rows' `train.images` from here. Samples, checkpoints and evaluation are not counted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import measure
import torch
from steps import training

from p2pzoo import config

if TYPE_CHECKING:
    from p2pzoo_bench.table_file import Row, Table

WARM_UP = 3  # steps before timing
IMAGES_STEP = 50  # numbers of images are multiples of this


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--profile", help="In place of the table's.")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Turns per row.")
@click.option(
    "--steps", type=click.IntRange(1), default=5, show_default=True, help="Steps per turn; their median counts."
)
@click.option("--together", type=click.IntRange(2), default=8, show_default=True, help="Processes at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of a table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this file.")
@click.option("--contestant", hidden=True)
def main(
    file: Path, profile: str | None, rounds: int, steps: int, together: int,
    as_json: bool, output: Path | None, contestant: str | None,
) -> None:  # fmt: skip
    """Time a training step of every row that FILE trains."""
    from p2pzoo_bench.table_file import read_table

    table = read_table(str(file))
    if contestant:
        serve(table, contestant, profile)
        return
    rows = trainings(table)
    measured: dict[str, dict[str, Any]] = {}
    others = [row.name for row in rows if row.name != table.baseline]
    for names in [others[i : i + together - 1] for i in range(0, len(others), together - 1)] or [[]]:
        measured |= time_rows(file, table, names, profile, rounds, steps)
    costs = {row.name: {**measured[row.name], **settings(row)} for row in rows}
    result = {
        "benchmark": "row_seconds", "table": file.name, "profile": profile or table.profile, "baseline": table.baseline,
        "rounds": rounds, "rows": costs, "environment": measure.environment(),
    }  # fmt: skip
    measure.keep(result, output)
    click.echo(json.dumps(result) if as_json else as_table(result))


def trainings(table: Table) -> list[Row]:
    """The rows that train, without those that only translate by another row's training."""
    rows: dict[tuple[Any, ...], Row] = {}
    for row in table.trained:
        rows.setdefault((row.recipe, row.overrides), row)
    return list(rows.values())


def settings(row: Row) -> dict[str, Any]:
    """What decides the cost of a row's step: a table whose row has other settings needs another measurement."""
    return {"recipe": row.recipe, "set": [each for each in row.overrides if not each.startswith("train.images=")]}


def time_rows(
    file: Path, table: Table, names: list[str], profile: str | None, rounds: int, steps: int
) -> dict[str, dict[str, Any]]:
    """{row: what its step costs} of the baseline and these rows, which take turns."""
    chosen = ["--profile", profile] if profile else []
    contestants = {
        name: measure.Contestant(__file__, file, *chosen, "--contestant", name) for name in (table.baseline, *names)
    }
    about = {name: contestant.about for name, contestant in contestants.items()}
    measured = measure.take_turns(contestants, rounds, steps)
    for name, each in measured.items():
        each["seconds"] = [seconds / about[name]["period"] for seconds in each["seconds"]]
    per_image = {
        name: [seconds / about[name]["batch"] for seconds in each["seconds"]] for name, each in measured.items()
    }
    images = about[table.baseline]["images"]
    rows = {}
    for name, each in measured.items():
        milliseconds = measure.spread([1e3 * seconds for seconds in each["seconds"]])
        times = measure.ratio(per_image[name], per_image[table.baseline])
        rows[name] = {
            **about[name],
            "milliseconds": milliseconds,
            "times": times,
            "seconds": round(milliseconds["median"] * about[name]["steps"] / 1e3),
            "images_in_the_time_of_the_baseline": round(images / times["median"] / IMAGES_STEP) * IMAGES_STEP,
            "peak_megabytes": round(each["peak_bytes"] / 1e6),
        }
    return rows


def serve(table: Table, name: str, profile: str | None) -> None:
    """Run as one row, on the first fold. Where a loss is computed in every k-th step only, a repeat is k steps."""
    torch.manual_seed(0)
    [row] = [row for row in table.trained if row.name == name]
    assert row.recipe
    fold = ["dataset.fold=0"] if table.folds else []
    made = config.load(row.recipe, profile or table.profile, [*row.overrides, *fold])
    step = training(made)
    for _ in range(WARM_UP):
        step()
    period = max([1, *(loss.values.get("every", 1) for loss in made.losses.values())])

    def work() -> None:
        for _ in range(period):
            step()

    about = {"label": row.label, "batch": made.train.batch_size, "steps": made.train.steps, "period": period}
    measure.serve(work, {**about, "images": made.train.images_seen})


def as_table(result: dict[str, Any]) -> str:
    head = ["row", "batch", "ms a step (spread)", "times the baseline, an image", "steps", "s in all", "peak MB"]
    rows = []
    for row in result["rows"].values():
        low, high = row["milliseconds"]["spread"]
        step = f"{row['milliseconds']['median']:.1f} ({low:.1f} to {high:.1f})"
        times = f"{row['times']['median']:.2f} ({row['times']['spread'][0]:.2f} to {row['times']['spread'][1]:.2f})"
        numbers = [f"{row['steps']:,}", f"{row['seconds']:,}", str(row["peak_megabytes"])]
        rows.append([row["label"], str(row["batch"]), step, times, *numbers])
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    main()
