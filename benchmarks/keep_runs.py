"""Copy finished runs to results/: numbers, environment, statistics, recipe, pictures.

    python benchmarks/keep_runs.py runs/*/laptop-*

A run becomes results/<recipe>-<profile>-seed<N>-<id>/, where `p2pzoo bench` finds it. The pictures are WebP. --busy
omits the training time, which means nothing if the machine did other work at the same time; use row_seconds.py instead.
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
@click.option("--busy", is_flag=True, help="Omit the training time, because the machine did other work too.")
@click.option("--to", default=RESULTS, show_default="results/", type=click.Path(file_okay=False, path_type=Path))
def main(runs: tuple[Path, ...], busy: bool, to: Path) -> None:
    """Copy the files of these run folders that tables and pages show."""
    for run in runs:
        if missing := [name for name in KEPT if not (run / name).exists() and name != "recipe.toml"]:
            click.echo(f"{run}: not a finished run, it lacks {', '.join(missing)}", err=True)
            sys.exit(2)
        if (state := (read_json(run / "status.json") or {}).get("state", "complete")) != "complete":
            click.echo(f"{run}: not a finished run, its state is {state}", err=True)
            sys.exit(2)
    for run in runs:
        target = to / f"{run.parent.name}-{run.name}"
        target.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (run / name).exists():  # the ground truth has no recipe
                shutil.copyfile(run / name, target / name)
        if busy:
            env = read_json(target / "env.json")
            env.get("training", {}).pop("seconds", None)
            write_json(target / "env.json", env)
        for picture in (run / "samples").glob("test.png"):
            Image.open(picture).save(target / "samples.webp", quality=QUALITY, method=6)
        click.echo(target)


if __name__ == "__main__":
    main()
