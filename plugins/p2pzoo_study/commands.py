"""`p2pzoo study` and `p2pzoo study-analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from p2pzoo.cli.options import json_option, print_json


@click.command("study")
@click.argument("runs", metavar="[LABEL=]RUN...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Where to write.")
@click.option("--title", default="Real or fake?", show_default=True, help="What stands above the page.")
@click.option("--same-input", is_flag=True, help="Real and fake belong to one x (Table 5), not to two (Table 4).")
@click.option("--display-ms", type=click.IntRange(min=20), default=1000, hidden=True)
def study_command(runs: tuple[str, ...], output: Path, title: str, same_input: bool, display_ms: int) -> None:
    """Write a page that asks people which of two images is fake, with the paper's protocol (Tables 4 and 5).

    Each participant sees the test images of one of the finished RUNs, drawn by the session's id: real and fake for
    1 s each, 10 times for practice and 40 times that count. The page saves a JSON file for `p2pzoo study-analyze`.
    """
    from p2pzoo.plugin.loader import registry
    from p2pzoo_study.page import labels, write_study

    named = labels(runs)
    count = write_study(output, title, named, registry(), same_input=same_input, display_ms=display_ms)
    click.echo(f"{', '.join(named)}: {count} test images  {output / 'index.html'}")


@click.command("study-analyze")
@click.argument("files", metavar="JSON...", nargs=-1, required=True,
                type=click.Path(exists=True, dir_okay=False, path_type=Path))  # fmt: skip
@click.option("--table", metavar="TABLE", help="Beside the published rates of zoo:table4_maps.toml or another file.")
@json_option
def study_analyze_command(files: tuple[Path, ...], table: str | None, as_json: bool) -> None:
    """Say how often participants took the fake for the real image, per algorithm, and whether algorithms differ.

    JSON are the files that the page of `p2pzoo study` saved, one per participant.
    """
    from p2pzoo_bench.table_file import read_table

    from p2pzoo_study.analysis import TOLERANCE_MS, analysed, beside, read_sessions

    found = analysed(read_sessions(files))
    if as_json:
        print_json(found)
        return
    if table:
        click.echo(beside(found, read_table(table)) + "\n")
    for label, row in found["algorithms"].items():
        told = f"{row['participants']} participants, {row['trials']} trials"
        left = f"; {row['left_out']} left out, shown more than {TOLERANCE_MS} ms too long or short" * bool(
            row["left_out"]
        )
        rate = f"fooled {row['fooled']:.1f} %{_ends(row)}" if "fooled" in row else "no trial that counts"
        click.echo(f"{label}: {rate} ({told}{left})")
    for pair in found["differences"]:
        p = "too few participants for p" if pair["p"] is None else f"p = {pair['p']:.2g}"
        click.echo(f"{pair['a']} − {pair['b']}: {pair['difference']:+.1f} points{_ends(pair)}, {p}")
    click.echo("95% intervals and p by bootstrap over participants; p adjusted by Holm's method", err=True)


def _ends(row: dict[str, Any]) -> str:
    return "" if row["low"] is None else f" [{row['low']:.1f}, {row['high']:.1f}]"
