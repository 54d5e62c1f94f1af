"""`p2pzoo data check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pzoo.cli.options import json_option, override_option, print_json, profile_option, recipe_argument
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count
from p2pzoo.utils.terminal import escape as printable

if TYPE_CHECKING:
    from p2pzoo_data_tools.check import CheckResult

MAX_PRINTED_CASES = 5  # per finding: the page and --json have all


@click.command("check", short_help="Find what is wrong with a dataset before you train on it.")
@recipe_argument("recipe")
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path, dir_okay=False),
    help="Write an HTML page that shows the pairs in question.",
)  # fmt: skip
@click.option("--quick", is_flag=True, help="Check only 500 pairs of each split.")
@click.option("--force", is_flag=True, help="Overwrite the page if it exists.")
@profile_option
@override_option
@json_option
def check_command(
    recipe: str,
    out: Path | None,
    quick: bool,
    force: bool,
    profile: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check RECIPE's dataset. Every pair is read once; nothing is changed.

    Errors: images without a partner, unreadable files, sizes or channels that differ, values or labels out of range,
    NaN, empty splits, the same pair in two splits, fetched files that changed. With any of them except the last two,
    `p2pzoo run` refuses to train.

    Warnings: duplicates in a split, near duplicates across splits, x and y that are misaligned, images of a single
    value, values that use little of their range, classes that are missing in a split, very few pairs, val and test
    that are the same pairs.

    The exit code is 2 if there are errors, else 0.
    """
    if out is not None:
        _check_output(out, force)
    from p2pzoo import config
    from p2pzoo.data.validation import remember_valid
    from p2pzoo.runs.progress import track
    from p2pzoo_data_tools.check import check_dataset, open_splits

    experiment = config.load_without_data(recipe, profile, overrides)
    data = open_splits(experiment)
    result = check_dataset(data, track, quick=quick)
    if not quick and not any(finding.about.stops for finding in result.findings):
        for split, dataset in data.splits.items():
            remember_valid(experiment, split, dataset)
    if out is not None:
        from p2pzoo_data_tools.check_page import write_page

        write_page(out, experiment.title, result, data.splits)
    if as_json:
        print_json(result.json())
    else:
        _print(result)
        if out is not None:
            click.echo(f"\npage  {out}")
    if result.select("error"):
        raise click.exceptions.Exit(2)


def _check_output(out: Path, force: bool) -> None:
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"-o {out}: the output is an HTML page; use a name that ends in .html")
    if out.exists() and not force:
        raise UserError(f"{out}: already exists; --force overwrites it")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder; create it, or write {out.name} elsewhere")


def _print(result: CheckResult) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False)
    table = Table("split", "pairs", title=escape(result.dataset), box=None, padding=(0, 2, 0, 0), title_justify="left")
    for name, split in result.splits.items():
        checked = "" if split.looked_at == split.pairs else f" ({split.looked_at} checked)"
        table.add_row(name, f"{split.pairs}{checked}")
    console.print(table)
    if result.shapes:
        console.print(f"x {result.shapes[0]}, y {result.shapes[1]} (height × width × channels)", markup=False)
    colors = {"error": "red", "warning": "yellow"}
    for finding in result.findings:
        about = finding.about
        head = f"[{colors[about.severity]} bold]{about.severity}[/]  [bold]{about.what}[/] ({len(finding.cases)})"
        console.print(f"\n{head}")
        for case in finding.cases[:MAX_PRINTED_CASES]:
            console.print(f"  {printable(str(case))}", markup=False)
        if (more := len(finding.cases) - MAX_PRINTED_CASES) > 0:
            console.print(f"  ... and {more} more", markup=False)
        console.print(f"  [dim]{escape(about.do)}[/]")
    for line in result.skipped:
        console.print(f"\nnot checked  {printable(str(line))}", markup=False)
    errors, warnings = (sum(len(f.cases) for f in result.select(severity)) for severity in ("error", "warning"))
    if not result.findings:
        console.print("\n[green bold]clean[/]  nothing found")
        return
    stops = any(finding.about.stops for finding in result.findings)
    console.print(
        f"\n{format_count(errors, 'error')}, {format_count(warnings, 'warning')}: "
        f"p2pzoo run {'refuses' if stops else 'accepts'} this data",
        markup=False,
    )
