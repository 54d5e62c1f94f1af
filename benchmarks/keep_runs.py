"""Copy finished runs to results/: numbers, environment, statistics, recipe, pictures.

    python benchmarks/keep_runs.py runs/*/laptop-*

A run becomes results/<recipe>-<profile>-seed<N>-<id>/, where `p2pzoo bench` finds it. The pictures are WebP. --busy
omits the times of training and translating, which mean nothing if the machine did other work at the same time; use
row_seconds.py instead.

Statistics are stored in the smallest integers that hold them, and those of the photos once: name the runs of the
ground truth first. --without kid_efficientnet_lite0 omits those of a metric, and --final those of snapshots ([evaluate]
at); their numbers are kept, and so are learning curves and the differences of a table over folds.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click
import torch
from p2pzoo_bench.stored_results import FinishedRun, compact, final_name
from PIL import Image

from p2pzoo.models.safetensors_io import load_tensors, save_tensors
from p2pzoo.runs.results import read_results, write_results
from p2pzoo.utils.files import read_json, write_json

RESULTS = Path(__file__).parent / "results"
KEPT = ("results.json", "env.json", "recipe.toml")
STATS = "stats.safetensors"
QUALITY = 80


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--busy", is_flag=True, help="Omit all times, because the machine did other work too.")
@click.option("--without", multiple=True, metavar="METRIC", help="Omit the statistics of this metric.")
@click.option("--final", is_flag=True, help="Omit the statistics of snapshots.")
@click.option("--no-pictures", is_flag=True, help="Omit the pictures.")
@click.option("--to", default=RESULTS, show_default="results/", type=click.Path(file_okay=False, path_type=Path))
def main(
    runs: tuple[Path, ...], busy: bool, without: tuple[str, ...], final: bool, no_pictures: bool, to: Path
) -> None:  # fmt: skip
    """Copy the files of these run folders that tables and pages show."""
    for run in runs:
        if missing := [name for name in (*KEPT, STATS) if not (run / name).exists() and name != "recipe.toml"]:
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
        keep_stats(run / STATS, target / STATS, without, final)
        if busy:
            env = read_json(target / "env.json")
            env.get("training", {}).pop("seconds", None)
            write_json(target / "env.json", env)
            if (results := read_results(target / "results.json")) and results.pop("timings", None):
                write_results(target / "results.json", results)
        pictures = [] if no_pictures else sorted((run / "samples").glob("test*.png"))  # test@ROW.png: of a table's row
        for picture in pictures:
            name = picture.stem.replace("test", "samples", 1)
            Image.open(picture).save(target / f"{name}.webp", quality=QUALITY, method=6)
        click.echo(target)


def keep_stats(file: Path, target: Path, without: tuple[str, ...], final: bool) -> None:
    """Write the statistics of a run, small: without those that a run of the ground truth in `target`'s folder has."""
    tensors, header = load_tensors(file)
    for name in [*tensors]:
        metric, _, translations = name.partition(".")[0].partition("@")
        if metric in without or (final and translations.isdecimal()):
            del tensors[name]
    same_as = {}
    for truth in sorted(target.parent.parent.glob("target-*")):
        if truth == target.parent:
            continue
        photos, their_header = FinishedRun(truth).stats
        elsewhere = their_header.get("same_as", {})  # its own file must hold them: two that share could name each other
        photos = {name: tensor for name, tensor in photos.items() if name not in elsewhere}
        if their_header["ids"] == header["ids"]:
            shared = [
                name
                for name, tensor in tensors.items()
                if any(torch.equal(photos[each], tensor) for each in (name, final_name(name)) if each in photos)
            ]
            same_as |= dict.fromkeys(shared, truth.name)
            tensors = {name: tensor for name, tensor in tensors.items() if name not in shared}
    small, dtypes = compact(tensors)
    save_tensors(target, small, {**header, "dtypes": dtypes, "same_as": same_as})


if __name__ == "__main__":
    main()
