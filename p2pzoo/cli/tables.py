"""Print tables and results. Imports rich when it prints."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from p2pzoo.utils.terminal import escape

if TYPE_CHECKING:
    from rich.console import Console

UNFOLDED_WIDTH = (
    21  # columns with texts up to this length are not folded; the longest parameter is eps_before_correction
)
PIPE_WIDTH = 1000  # columns in a pipe: one line per row, which `grep` can find. $COLUMNS overrides it


def open_console() -> Console:
    """Return a rich console on stdout. In a pipe it is so wide that a table has one line per row."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, max_widths: Mapping[str, int] | None = None
) -> None:
    """Print rows below a header. Long texts are folded to the width of the terminal.

    max_widths  {title: width above which a column is folded}
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column, title in enumerate(header):
        longest = max((len(row[column]) for row in rows), default=0)
        max_width = (max_widths or {}).get(title)
        no_wrap = max_width is None and longest <= UNFOLDED_WIDTH
        table.add_column(title, no_wrap=no_wrap, max_width=max_width, overflow="fold")
    for row in rows:
        table.add_row(*(Text(escape(cell, keep="\n")) for cell in row))
    open_console().print(table)


def print_metrics(results: Mapping[str, Any]) -> None:
    """Print the numbers of results.json, one line each."""
    from p2pzoo.runs.results import describe_too_few

    for name, number in results["metrics"].items():
        too_few = describe_too_few(results, name)
        click.echo(f"{name:<16} {number['value']:.4f}{too_few and f'  ({too_few})'}")


def exit_if_nan(results: Mapping[str, Any]) -> None:
    """Exit with code 1 and a line that names them if metrics of results.json are nan."""
    if unmeasured := [name for name, number in results["metrics"].items() if math.isnan(number["value"])]:
        names = ", ".join(unmeasured)
        click.echo(f"{names}: not a number (nan): too few test images for it, or ŷ is not finite", err=True)
        sys.exit(1)
