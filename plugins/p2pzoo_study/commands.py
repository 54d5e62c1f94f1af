"""`p2pzoo study` and `p2pzoo study-analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from p2pzoo.cli.options import json_option, print_json
from p2pzoo.utils.plurals import format_count
from p2pzoo.utils.terminal import escape


@click.command("study")
@click.argument("runs", metavar="[LABEL=]RUN...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the page to this folder.",
)
@click.option("--title", default="Real or fake?", show_default=True, help="Title of the page.")
@click.option("--same-input", is_flag=True, help="Show real and fake of the same x (Table 5), not of two (Table 4).")
@click.option("--display-ms", type=click.IntRange(min=20), default=1000, hidden=True)
@json_option
def study_command(
    runs: tuple[str, ...], output: Path, title: str, same_input: bool, display_ms: int, as_json: bool
) -> None:
    """Write a page that asks people which of two images is fake, with the paper's protocol (Tables 4 and 5).

    Each participant sees test images of one of the finished RUNs, chosen by the session id: real and fake for 1 s each,
    10 times for practice and 40 times that count. LABEL is the algorithm's name in the results [default: the recipe's
    name]. The page saves a JSON file for `p2pzoo study-analyze`.
    """
    from p2pzoo.plugin.loader import registry
    from p2pzoo_study.page import parse_runs, write_study

    folders = parse_runs(runs)
    count = write_study(output, title, folders, registry(), same_input=same_input, display_ms=display_ms)
    page = output / "index.html"
    if as_json:
        print_json({"page": str(page), "runs": {label: str(run) for label, run in folders.items()}, "images": count})
    else:
        click.echo(escape(f"{', '.join(folders)}: {count} test images  {page}"))


@click.command("study-analyze")
@click.argument("files", metavar="JSON...", nargs=-1, required=True,
                type=click.Path(exists=True, dir_okay=False, path_type=Path))  # fmt: skip
@click.option(
    "--table", metavar="TABLE", help="Print the published rates of this table too, as in zoo:table4_maps.toml."
)
@json_option
def study_analyze_command(files: tuple[Path, ...], table: str | None, as_json: bool) -> None:
    """Analyse a study: how often participants took the fake for the real image, and whether algorithms differ.

    JSON are the files that the page of `p2pzoo study` saved, one per participant.
    """
    from p2pzoo_bench.table_file import read_table

    from p2pzoo_study.analysis import TOLERANCE_MS, analyse, check_table, format_table, read_sessions

    analysis = analyse(read_sessions(files))
    published = read_table(table) if table else None
    if published:
        check_table(analysis, published)
    if as_json:
        rates = {row.name: dict(row.published) for row in published.rows} if published else None
        print_json(analysis | ({"published": rates} if rates else {}))
        return
    if published:
        click.echo(escape(format_table(analysis, published) + "\n", keep="\n"))
    for label, row in analysis["algorithms"].items():
        counts = f"{format_count(row['participants'], 'participant')}, {format_count(row['trials'], 'trial')}"
        if row["left_out"]:
            counts += (
                f"; {row['left_out']} not counted: an image was shown more than {TOLERANCE_MS} ms too long "
                "or too short, or the page was left"
            )
        rate = f"fooled {row['fooled']:.1f} %{_format_interval(row)}" if "fooled" in row else "no trial that counts"
        click.echo(escape(f"{label}: {rate} ({counts})"))
    for pair in analysis["differences"]:
        both = format_count(pair["same_people"], "participant")
        reason = f"no p: {both} are in both groups" if pair["same_people"] else "too few participants for p"
        p = reason if pair["p"] is None else f"p = {pair['p']:.2g}"
        points = f"{pair['difference']:+.1f} points{_format_interval(pair)}, {p}"
        click.echo(escape(f"{pair['a']} − {pair['b']}: {points}"))
    click.echo(
        "95% intervals of Wilson over participants; p by bootstrap over participants, adjusted by Holm's method",
        err=True,
    )


def _format_interval(row: dict[str, Any]) -> str:
    return "" if row["low"] is None else f" [{row['low']:.1f}, {row['high']:.1f}]"
