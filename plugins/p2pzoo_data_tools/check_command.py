"""`p2pzoo data check`: the dataset doctor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pzoo.cli.options import json_option, override_option, print_json, profile_option, recipe_argument
from p2pzoo.utils.errors import UserError

if TYPE_CHECKING:
    from p2pzoo_data_tools.check import Check

NAMED = 5  # cases of a finding that are named on the screen


@click.command("check", short_help="Find what is wrong with a dataset before training.")
@recipe_argument("recipe")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with the pairs, HTML.")
@click.option("--quick", is_flag=True, help="Look at 500 pairs of each split only.")
@click.option("--force", is_flag=True, help="Replace a page that is there already.")
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
    """Find what is wrong with RECIPE's dataset. Every pair is read once; nothing is changed.

    Errors: pairs without partner, unreadable files, sizes or channels that differ, values or labels out of range, NaN,
    empty splits, the same pair in two splits. All but the last keep `p2pzoo run` from training.

    Warnings: duplicates in a split, near duplicates across splits, x and y that lie aside of one another, images of a
    single value, classes that a split lacks, very few pairs, one split that stands in for another.

    Exit code: 0 where there are no errors, warnings or not; 2 where there are.
    """
    if out is not None:
        _refuse(out, force)
    from p2pzoo import config
    from p2pzoo.data.validation import remember_sound
    from p2pzoo.runs.progress import track
    from p2pzoo_data_tools.check import check, opened

    experiment = config.load(recipe, profile, overrides)
    data = opened(experiment.dataset)
    found = check(data, track, quick=quick)
    if not quick and not any(finding.about.stops for finding in found.findings):
        for split, dataset in data.splits.items():
            remember_sound(experiment, split, dataset)
    if out is not None:
        from p2pzoo_data_tools.check_page import write_page

        write_page(out, experiment.title, found, data.splits)
    if as_json:
        print_json(found.json())
    else:
        _print(found)
        if out is not None:
            click.echo(f"\npage  {out}")
    if found.of("error"):
        raise click.exceptions.Exit(2)


def _refuse(out: Path, force: bool) -> None:
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"-o {out}: a page is written; give a name that ends in .html")
    if out.exists() and not force:
        raise UserError(f"{out}: is there already; --force replaces it")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder to write {out.name} into")


def _print(found: Check) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False)
    table = Table("split", "pairs", title=escape(found.dataset), box=None, padding=(0, 2, 0, 0), title_justify="left")
    for name, split in found.splits.items():
        seen = "" if split.looked_at == split.pairs else f" ({split.looked_at} looked at)"
        table.add_row(name, f"{split.pairs}{seen}")
    console.print(table)
    if found.shapes:
        console.print(f"x {found.shapes[0]}, y {found.shapes[1]} (height × width × channels)", markup=False)
    colors = {"error": "red", "warning": "yellow"}
    for finding in found.findings:
        about = finding.about
        head = f"[{colors[about.severity]} bold]{about.severity}[/]  [bold]{about.what}[/] ({len(finding.cases)})"
        console.print(f"\n{head}")
        for case in finding.cases[:NAMED]:
            console.print(f"  {case}", markup=False)
        if (more := len(finding.cases) - NAMED) > 0:
            console.print(f"  ... and {more} more", markup=False)
        console.print(f"  [dim]{escape(about.do)}[/]")
    for line in found.unlooked:
        console.print(f"\nnot looked at  {line}", markup=False)
    errors, warnings = (sum(len(f.cases) for f in found.of(severity)) for severity in ("error", "warning"))
    if not found.findings:
        console.print("\n[green bold]clean[/]  nothing found")
        return
    stops = any(finding.about.stops for finding in found.findings)
    console.print(
        f"\n{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}: "
        f"p2pzoo run {'refuses' if stops else 'takes'} this data",
        markup=False,
    )
