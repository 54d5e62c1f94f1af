"""Where a table or the verdicts on claims go: to the terminal, to a file by its ending, as JSON to standard output."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from p2pzoo.cli.options import print_json, without_nan
from p2pzoo.cli.tables import open_console
from p2pzoo.utils.errors import UserError

FORMATS = ("rich", "markdown", "csv", "json", "latex", "html", "svg")
CLAIM_FORMATS = ("rich", "markdown", "json", "html", "svg")
CURVE_FORMATS = ("rich", "markdown", "csv", "json", "html", "svg")
ENDINGS = {".md": "markdown", ".csv": "csv", ".json": "json", ".tex": "latex", ".html": "html", ".svg": "svg"}


def resolve_format(form: str | None, output: Path | None, as_json: bool) -> str:
    """The format of --format, else by the ending of -o, else rich. Raises UserError if there is none."""
    if as_json and output is None:
        if form not in (None, "json"):
            raise UserError(f"--format {form} and --json: standard output takes one of them; write the other with -o")
        return "json"
    if form == "rich" and output:
        raise UserError(f"-o {output}: --format rich is for a terminal; use one of {', '.join(FORMATS[1:])}")
    if form or output is None:
        return form or "rich"
    if output.suffix not in ENDINGS:
        raise UserError(f"-o {output}: its ending names no format; use one of {', '.join(ENDINGS)}, or set --format")
    return ENDINGS[output.suffix]


def check_curve_options(curve: str | None, columns: Sequence[str], form: str) -> None:
    """Raises UserError for a format that learning curves do not have, and for --column, which they do not use."""
    if curve and columns:
        raise UserError("--column: --curve shows its own metric only: remove one of the two")
    if curve and form not in CURVE_FORMATS:
        raise UserError(f"--curve {curve}: no format {form}; use one of {', '.join(CURVE_FORMATS)}")


def check_dry_run(form: str | None, output: Path | None) -> None:
    """Raises UserError for --format and -o, which a dry run does not use."""
    if given := "-o" if output else "--format" if form else None:
        raise UserError(f"{given}: --dry-run prints what would be trained, and no table: remove one of the two")


def write_document(
    document: Any, form: str, output: Path | None, as_json: bool, *, format_text: Callable[[str], str],
    to_rich: Callable[[], Any],
) -> None:  # fmt: skip
    """Print a document, or write it to the output file; with as_json print it as JSON in any case.

    document     plain values, for --json
    format_text  returns it in a format that is text, other than JSON
    to_rich      returns a renderable for a terminal
    """
    from p2pzoo.utils.files import write_text

    if as_json:
        print_json(document)
    if output is None and as_json:
        return
    if form == "rich":
        open_console().print(to_rich())
        return
    text = json.dumps(without_nan(document), indent=2, ensure_ascii=False) if form == "json" else format_text(form)
    if output is None:
        click.echo(text, nl=not text.endswith("\n"))
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, text if text.endswith("\n") else text + "\n")
        click.echo(f"written  {output}", err=True)
