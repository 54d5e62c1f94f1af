"""Keeps what is to be shown of finished runs in results/: numbers, environment, statistics, recipe, pictures.

    python benchmarks/keep_runs.py runs/*/laptop-*

A run becomes results/<recipe>-<profile>-seed<N>-<id>/, where `p2pzoo bench` finds it. The pictures are WebP. --busy
leaves out how long training took, which says nothing where the machine did other work beside it; row_seconds.py tells.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click
from PIL import Image

from p2pzoo.utils.files import read_json, write_json

RESULTS = Path(__file__).parent / "results"
KEPT = ("results.json", "env.json", "stats.safetensors", "recipe.toml")
QUALITY = 80


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--busy", is_flag=True, help="The machine did other work too: leave out how long training took.")
@click.option("--to", default=RESULTS, show_default="results/", type=click.Path(file_okay=False, path_type=Path))
def main(runs: tuple[Path, ...], busy: bool, to: Path) -> None:
    """Keep what is to be shown of these run folders."""
    for run in runs:
        if missing := [name for name in KEPT if not (run / name).exists() and name != "recipe.toml"]:
            click.echo(f"{run}: no finished run, it lacks {', '.join(missing)}", err=True)
            sys.exit(2)
        if (state := (read_json(run / "status.json") or {}).get("state", "complete")) != "complete":
            click.echo(f"{run}: no finished run, it is {state}", err=True)
            sys.exit(2)
    for run in runs:
        kept = to / f"{run.parent.name}-{run.name}"
        kept.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (run / name).exists():  # the ground truth has no recipe
                shutil.copyfile(run / name, kept / name)
        if busy:
            env = read_json(kept / "env.json")
            env.get("training", {}).pop("seconds", None)
            write_json(kept / "env.json", env)
        for picture in (run / "samples").glob("test.png"):
            Image.open(picture).save(kept / "samples.webp", quality=QUALITY, method=6)
        click.echo(kept)


if __name__ == "__main__":
    main()
