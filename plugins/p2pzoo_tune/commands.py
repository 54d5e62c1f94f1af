"""`p2pzoo tune`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pzoo.cli.options import json_option, override_option, print_json, profile_option, recipe_argument, stop
from p2pzoo.cli.tables import open_console
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.signals import exit_code

if TYPE_CHECKING:
    from p2pzoo_tune.tune import Measurement


@click.command("tune")
@recipe_argument("recipe")
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="kernels.json",
    show_default=True,
    help="Kernels file to write.",
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=9, show_default=True, help="Number of timings of each algorithm."
)
@profile_option
@override_option
@click.option("--force", is_flag=True, help="Overwrite the file if it exists.")
@json_option
def tune_command(
    recipe: str,
    out: Path,
    repeats: int,
    profile: str | None,
    overrides: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Find faster kernels for RECIPE's convolutions on this machine's CPU.

    Takes one training step, times every algorithm for each of its convolutions, and writes those that are faster than
    p2pzoo's default by more than 5%. Use the file with `p2pzoo run RECIPE -s compute.kernels=FILE`: the run copies it
    to its folder and resumes with it. Results agree up to rounding. Run nothing else on the machine meanwhile.
    """
    if out.exists() and not force:
        raise UserError(f"{out}: already exists; --force overwrites it")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder; create it, or write {out.name} elsewhere")
    from rich.console import Console
    from rich.progress import Progress

    from p2pzoo import config
    from p2pzoo.compute.tuned_kernels import write_kernels
    from p2pzoo_tune import tune

    try:
        experiment = config.load(recipe, profile, overrides)
        calls = tune.record_shapes(experiment)
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("convolutions", total=len(calls))
            measurements = tune.measure_all(calls, repeats, lambda: bar.advance(task))
    except KeyboardInterrupt as interrupt:
        stop("stopped before all convolutions were measured; nothing is written", exit_code(interrupt))
    kernels = tune.select_overrides(measurements)
    write_kernels(out, kernels)
    if as_json:
        saved = _to_ms(sum(each.saved for each in measurements))
        print_json({"file": str(out), "saved": saved, "shapes": [_to_json(each) for each in measurements]})
        return
    _print(measurements)
    click.echo(f"written          {out}")
    if kernels:
        options = [*(("--profile", profile) if profile else ()), *(a for o in overrides for a in ("-s", o))]
        command = ["p2pzoo", "run", recipe, *options, "-s", f"compute.kernels={out}"]
        click.echo(f"next             {shlex.join(command)}")


def _to_json(measurement: Measurement) -> dict[str, object]:
    """Return a measurement as JSON, with milliseconds per call."""
    return {
        "key": measurement.shape.key(),
        "calls": measurement.calls,
        "shipped": measurement.default,
        "chosen": measurement.chosen,
        "milliseconds": {algorithm: _to_ms(seconds) for algorithm, seconds in measurement.seconds.items()},
    }


def _print(measurements: list[Measurement]) -> None:
    from rich.table import Table

    from p2pzoo.compute.tuned_kernels import ALGORITHMS

    table = Table(box=None, padding=(0, 2, 0, 0), title="milliseconds per call", title_justify="left")
    for head in ("convolution", "kernel, stride", "calls", *ALGORITHMS, "default", "faster", "saves"):
        table.add_column(head, justify="right" if head in ("calls", *ALGORITHMS, "saves") else "left")
    for each in sorted(measurements, key=lambda each: -each.saved):
        images, window = each.shape.key().split(" kernel ")
        window = window.replace(" stride", ",").partition(" padding")[0] + " transposed" * each.shape.window.transposed
        times = [f"{_to_ms(each.seconds[name]):.2f}" if name in each.seconds else "" for name in ALGORITHMS]
        faster = (each.chosen, f"{_to_ms(each.saved):.2f}") if each.chosen != each.default else ("", "")
        table.add_row(images, window, str(each.calls), *times, each.default, *faster)
    open_console().print(table, markup=False)
    total = sum(each.calls * each.seconds[each.default] for each in measurements)
    saved = sum(each.saved for each in measurements)
    improved = sum(each.chosen != each.default for each in measurements)
    click.echo(f"faster           {improved} of {len(measurements)} convolutions")
    click.echo(
        f"saves about      {_to_ms(saved):.1f} ms of {_to_ms(total):.1f} ms for the convolutions of each training step"
    )


def _to_ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)
