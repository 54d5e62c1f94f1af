"""`p2pzoo tune`."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pzoo.cli.options import json_option, override_option, print_json, profile_option, recipe_argument
from p2pzoo.utils.errors import UserError

if TYPE_CHECKING:
    from p2pzoo_tune.tune import Finding

PIPE_WIDTH = 240  # whoever reads a pipe wants one line a row


@click.command("tune")
@recipe_argument("recipe")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="kernels.json",
    show_default=True,
    help="The file to write.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=9, show_default=True, help="Timings of each form.")
@profile_option
@override_option
@click.option("--force", is_flag=True, help="Replace a file that is there already.")
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

    Takes one training step, times every way to compute each of its convolutions, and writes those that are faster
    than p2pzoo's own choice by more than 5%. A run uses them with -s compute.kernels=FILE, keeps them in its folder,
    and goes on with them. Results agree to rounding. Nothing else should run on the machine meanwhile.
    """
    if out.exists() and not force:
        raise UserError(f"{out}: is there already; --force replaces it")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder to write {out.name} into")
    from rich.console import Console
    from rich.progress import Progress

    from p2pzoo import config
    from p2pzoo.compute.tuned_kernels import write_kernels
    from p2pzoo_tune import tune

    try:
        experiment = config.load(recipe, profile, overrides)
        asked = tune.asked_shapes(experiment)
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as shown:
            task = shown.add_task("convolutions", total=len(asked))
            found = tune.find(asked, repeats, lambda: shown.advance(task))
    except KeyboardInterrupt:
        click.echo("stopped; nothing was written", err=True)
        raise click.exceptions.Exit(128 + signal.SIGINT) from None
    write_kernels(out, tune.overrides(found))
    if as_json:
        print_json({"file": str(out), "saved": _ms(sum(f.saved for f in found)), "shapes": [_told(f) for f in found]})
        return
    _print(found)
    click.echo(f"written          {out}")
    if tune.overrides(found):
        again = [*(("--profile", profile) if profile else ()), *(a for o in overrides for a in ("-s", o))]
        command = ["p2pzoo", "run", recipe, *again, "-s", f"compute.kernels={out}"]
        click.echo(f"next             {shlex.join(command)}")


def _told(finding: Finding) -> dict[str, object]:
    """A finding as JSON; times in milliseconds, of one call."""
    return {
        "key": finding.shape.key(),
        "calls": finding.calls,
        "shipped": finding.shipped,
        "chosen": finding.chosen,
        "milliseconds": {form: _ms(seconds) for form, seconds in finding.seconds.items()},
    }


def _print(found: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    from p2pzoo.compute.tuned_kernels import FORMS

    table = Table(box=None, padding=(0, 2, 0, 0), title="milliseconds of one call", title_justify="left")
    for head in ("convolution", "kernel, stride", "calls", *FORMS, "shipped", "faster", "saves"):
        table.add_column(head, justify="right" if head in ("calls", *FORMS, "saves") else "left")
    for each in sorted(found, key=lambda each: -each.saved):
        images, window = each.shape.key().split(" kernel ")
        window = window.replace(" stride", ",").partition(" padding")[0] + " transposed" * each.shape.window.transposed
        times = [f"{_ms(each.seconds[form]):.2f}" if form in each.seconds else "" for form in FORMS]
        better = (each.chosen, f"{_ms(each.saved):.2f}") if each.chosen != each.shipped else ("", "")
        table.add_row(images, window, str(each.calls), *times, each.shipped, *better)
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(table, markup=False)
    whole = sum(each.calls * each.seconds[each.shipped] for each in found)
    saved = sum(each.saved for each in found)
    others = sum(each.chosen != each.shipped for each in found)
    click.echo(f"faster           {others} of {len(found)} convolutions")
    click.echo(f"saves about      {_ms(saved):.1f} ms of {_ms(whole):.1f} ms in each step's convolutions")


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)
