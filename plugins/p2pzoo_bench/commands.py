"""`p2pzoo bench` and `p2pzoo compare`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pzoo.cli.options import max_time_option, override_option, profile_option, same_command
from p2pzoo.utils.errors import UserError

if TYPE_CHECKING:
    from p2pzoo_bench.comparison import Comparison
    from p2pzoo_bench.executors import Executor

FORMATS = ("rich", "markdown", "csv", "json", "latex", "html", "svg")
ENDINGS = {".md": "markdown", ".csv": "csv", ".json": "json", ".tex": "latex", ".html": "html", ".svg": "svg"}

format_option = click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="What is printed, or written to OUT [default: rich, or as OUT ends].",
)
output_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="OUT",
    help="Write the table to this file: .md, .csv, .json, .tex or .html; .svg is what its metric draws (Figure 7).",
)  # fmt: skip
runs_option = click.option(
    "--runs", type=click.Path(path_type=Path, file_okay=False), default="runs", show_default=True,
    help="Where run folders are.",
)  # fmt: skip


@click.command("bench")
@click.argument("table", metavar="TABLE")
@profile_option
@override_option
@click.option("--seeds", type=click.IntRange(min=1), help="How many, from 0 on [default: the table's].")
@click.option("--on", "where", metavar="PLACE", default="local", show_default=True,
              help="Where runs are made: local, ray (the cluster of RAY_ADDRESS, or of this machine), "
                   "or ray://HOST:10001.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=1),
              help="How many runs at a time [default: 1; on a cluster as many as fit]. Here they share the cores, and "
                   "take the GPUs in turn.")  # fmt: skip
@click.option(
    "--cpus-per-run",
    type=click.IntRange(min=1),
    help="Threads of a run whose recipe leaves that open [default: all cores, shared; on a cluster 1].",
)
@click.option(
    "--gpus-per-run",
    type=click.FloatRange(min=0),
    help="On a cluster: GPUs of a run, such as 0.5 [default: 1 where there are any].",
)
@runs_option
@click.option("--dry-run", is_flag=True, help="Say what would be trained, and train nothing.")
@click.option("--fresh", is_flag=True, help="Start over the runs that are not finished, instead of resuming them.")
@click.option("--accept-stale", is_flag=True, help="Resume them although code has changed since they began.")
@format_option
@output_option
@max_time_option
@click.option("--quiet", is_flag=True, help="Show no progress.")
def bench_command(
    table: str, profile: str | None, overrides: tuple[str, ...], seeds: int | None, where: str,
    jobs: int | None, cpus_per_run: int | None, gpus_per_run: float | None, runs: Path, dry_run: bool,
    fresh: bool, accept_stale: bool, form: str | None, output: Path | None, quiet: bool,
) -> None:  # fmt: skip
    """Train what TABLE (a file, or zoo:NAME.toml) compares and is not there yet, and print the table.

    Runs are found by what they are, in the runs folder and in results/ beside the table file. Stop it and start it
    again: it goes on. A run that fails leaves the others standing.
    """
    from p2pzoo import config
    from p2pzoo.plugin.loader import registry
    from p2pzoo_bench.bench import Bench, Stopped
    from p2pzoo_bench.progress import table_progress
    from p2pzoo_bench.table_file import read_table

    form = _form(form, output)
    asked = {"--fresh": fresh, "--accept-stale": accept_stale}
    asked_for = read_table(table)
    place = _place(where, runs, jobs, cpus_per_run, gpus_per_run)
    bench = Bench(
        asked_for, registry(), runs, profile=profile, seeds=seeds, overrides=overrides,
        options=[option for option, on in asked.items() if on], pick=lambda: config.profile_by_hardware(overrides, place.kind),
    )  # fmt: skip
    if form == "svg":
        _one_that_draws(bench.drawing())
    missing = bench.missing()
    if dry_run:
        for cell in missing:
            click.echo(f"{cell.row.label}, seed {cell.experiment.seed}: {cell.images} images, id {cell.experiment.id}")
        click.echo(f"{len(missing)} of {len(bench.cells)} runs are missing", err=True)
        return
    failures: dict[str, str] = {}
    if missing:
        with table_progress(quiet=quiet) as shown:
            shown.note(
                f"{bench.table.title}: {len(missing)} of {len(bench.cells)} runs to make, profile {bench.profile}"
            )
            try:
                failures = bench.run_missing(shown, place)
            except Stopped as stopped:
                shown.note(f"stopped; {same_command(fresh)} goes on from there")
                sys.exit(128 + stopped.signum)
    for folder, changed in bench.stale().items():
        click.echo(f"{folder}: made with other code ({', '.join(changed)} changed since)", err=True)
    _show(bench.compared(failures), form, output)
    if failures:
        sys.exit(1)


@click.command("compare")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--baseline", metavar="ROW", help="The row that the others are compared with [default: the first].")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Only this metric. May be repeated.")
@format_option
@output_option
def compare_command(
    runs: tuple[Path, ...], baseline: str | None, metrics: tuple[str, ...], form: str | None, output: Path | None
) -> None:
    """Put finished runs beside one another: those that differ by their seed alone make one row.

    Numbers that were measured under unlike protocols are refused, saying what differs.
    """
    from p2pzoo.plugin.loader import registry
    from p2pzoo_bench.comparison import compare_runs

    form = _form(form, output)
    _show(compare_runs(runs, registry(), baseline=baseline, wanted=metrics), form, output)


def _place(where: str, runs: Path, jobs: int | None, cpus: int | None, gpus: float | None) -> Executor:
    if where == "local":
        if gpus is not None:
            raise UserError("--gpus-per-run is for a cluster (--on ray): here --jobs runs take the GPUs in turn")
        from p2pzoo_bench.executors import Machine

        return Machine(jobs or 1, cpus)
    if where != "ray" and not where.startswith("ray://"):
        raise UserError(f"--on {where}: no such place; there are local, ray, and ray://HOST:10001")
    from p2pzoo_bench.cluster import Cluster

    return Cluster(where, runs, jobs=jobs, cpus=cpus, gpus=gpus)


def _form(form: str | None, output: Path | None) -> str:
    if form == "rich" and output:
        raise UserError(f"-o {output}: rich is for a terminal; take one of {', '.join(FORMATS[1:])}")
    if form or output is None:
        return form or "rich"
    if output.suffix not in ENDINGS:
        raise UserError(f"-o {output}: end it in {', '.join(ENDINGS)}, or say --format")
    return ENDINGS[output.suffix]


def _show(table: Comparison, form: str, output: Path | None) -> None:
    import json

    from p2pzoo.utils.files import write_text
    from p2pzoo_bench import formats

    doc = table.doc
    if form == "rich":
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            console.width = 1000  # whoever reads a pipe wants one line a row
        console.print(formats.rich_text(doc))
        return
    if form == "html":
        text = formats.page(doc, table.pictures, table.size, table.drawings())
    elif form == "svg":
        text = _drawing(table)
    elif form == "json":
        text = json.dumps(doc, indent=2, ensure_ascii=False) + "\n"
    else:
        text = {"markdown": formats.markdown, "csv": formats.comma_separated, "latex": formats.latex}[form](doc)
    if output is None:
        click.echo(text, nl=not text.endswith("\n"))
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, text if text.endswith("\n") else text + "\n")
        click.echo(f"written  {output}", err=True)


def _drawing(table: Comparison) -> str:
    """What the one metric of a table that draws has drawn."""
    from p2pzoo.runs.report import svg

    drawn = table.drawings()
    _one_that_draws([*drawn])
    return str(svg(*drawn.values()))


def _one_that_draws(drawn: Sequence[str]) -> None:
    if len(drawn) != 1:
        told = f"{len(drawn)} draw ({', '.join(drawn)})" if drawn else "none draws"
        raise UserError(f"svg is the drawing of one metric, and of this table's {told}; html has all there is")
