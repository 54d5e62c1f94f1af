"""`p2pzoo gallery`."""

from __future__ import annotations

from pathlib import Path

import click

from p2pzoo.cli.options import json_option, print_json
from p2pzoo.utils.plurals import format_count


@click.command("gallery")
@click.argument("runs", metavar="RUNS...", nargs=-1, required=True,
                type=click.Path(exists=True, file_okay=False, path_type=Path))  # fmt: skip
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the page to this folder.",
)
@click.option("--title", default="Gallery of runs", show_default=True, help="Title of the page.")
@json_option
def gallery_command(runs: tuple[Path, ...], output: Path, title: str, as_json: bool) -> None:
    """Write a page to browse all runs in the folders RUNS: filter, sort, same test images, loss curves.

    The page is DIR/index.html. It works without a server and links to the reports in the run folders. Committed results
    without models are shown too.
    """
    from p2pzoo.plugin.loader import registry
    from p2pzoo_bench.gallery import find_runs, write_gallery

    gallery_runs = find_runs(runs)
    faults = [*write_gallery(output, title, gallery_runs, registry())]
    for fault in faults:
        click.echo(f"warning: {fault}", err=True)
    page = output / "index.html"
    if as_json:
        print_json({"page": str(page), "runs": len(gallery_runs), "warnings": [*map(str, faults)]})
    else:
        click.echo(f"{format_count(len(gallery_runs), 'run')}  {page}")
