"""`p2pzoo gallery`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("gallery")
@click.argument("runs", metavar="RUNS...", nargs=-1, required=True,
                type=click.Path(exists=True, file_okay=False, path_type=Path))  # fmt: skip
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Where to write.")
@click.option("--title", default="Gallery of runs", show_default=True, help="What stands above it.")
def gallery_command(runs: tuple[Path, ...], output: Path, title: str) -> None:
    """Write a page over all runs in the folders RUNS: filtered, sorted, with the same test images and their curves.

    It is DIR/index.html, works without a server, and links to the runs' reports where they lie. Kept results without
    models are shown too.
    """
    from p2pzoo.plugin.loader import registry
    from p2pzoo_bench.gallery import find_runs, write_gallery

    found = find_runs(runs)
    for fault in write_gallery(output, title, found, registry()):
        click.echo(f"warning: {fault}", err=True)
    click.echo(f"{len(found)} runs  {output / 'index.html'}")
