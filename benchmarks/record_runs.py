"""Record what every recipe trains to in profile smoke, and compare two such records: a refactor must change nothing.

    python benchmarks/record_runs.py record before.json --checkout ../before
    python benchmarks/record_runs.py record after.json
    python benchmarks/record_runs.py compare before.json after.json

A record holds for each recipe: its id, the SHA-256 of the tensors in model.safetensors, the SHA-256 of metrics.jsonl,
and the values of results.json. Records are comparable on one machine, with one version of torch. The published datasets
and the photos that recipes/tasks need are drawn: two noise images for each folder. An interrupted record resumes.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
ARCHIVES = {  # name: (side in px of one half, folders)
    "facades": (256, ("train", "val", "test")),
    "maps": (600, ("train", "val")),
    "edges2shoes": (256, ("train", "val")),
    "edges2handbags": (256, ("train", "val")),
    "night2day": (256, ("train", "val", "test")),
    "cityscapes": (256, ("train", "val")),
}


def draw_data(folder: Path) -> None:
    """Stand-ins for the published archives and for a folder of photos, the same at every call."""
    for name, (side, splits) in ARCHIVES.items():
        random = np.random.default_rng(0)
        for split in splits:
            (folder / "datasets" / name / split).mkdir(parents=True)
            for number in range(2):
                noise = random.integers(0, 256, (4, 8, 3), dtype=np.uint8)
                Image.fromarray(noise).resize((2 * side, side)).save(folder / f"datasets/{name}/{split}/{number}.jpg")
    for split in ("train", "val"):
        (folder / "photos" / split).mkdir(parents=True)
        for number in range(2):
            noise = np.random.default_rng(number).integers(0, 256, (4, 6, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((192, 128)).save(folder / f"photos/{split}/{number}.jpg")


def hash_tensors(path: Path) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a safetensors file's tensors, without its metadata."""
    digest = hashlib.sha256()
    for name, array in sorted(load_file(path).items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()


def record_recipe(recipe: Path, checkout: Path, folder: Path) -> dict[str, Any]:
    """Train one recipe of a checkout in profile smoke and return its record, or the error that ended it."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "P2PZOO_CACHE": str(folder),
        "PYTHONPATH": os.pathsep.join([str(checkout), str(checkout / "plugins")]),
    }
    runs = folder / "runs" / recipe.relative_to(checkout / "recipes").with_suffix("")
    command = ["-m", "p2pzoo", "run", str(recipe), "--profile", "smoke", "--runs", str(runs), "--json"]
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    [run] = {path.parent for path in runs.glob("*/*/model.safetensors")}
    results = json.loads((run / "results.json").read_text("utf-8"))
    return {
        "id": results["id"],
        "tensors": hash_tensors(run / "model.safetensors"),
        "log": hashlib.sha256((run / "metrics.jsonl").read_bytes()).hexdigest(),
        "metrics": {name: number["value"] for name, number in sorted(results["metrics"].items())},
        "protocols": {name: number["protocol"] for name, number in sorted(results["metrics"].items())},
    }


@click.group()
def main() -> None:
    """Show that a refactor changed no number."""


@main.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--checkout", type=click.Path(exists=True, file_okay=False, path_type=Path), default=ROOT)
@click.option("--jobs", default=2, help="Recipes at a time, one thread each.")
def record(output: Path, checkout: Path, jobs: int) -> None:
    """Train every recipe of CHECKOUT in profile smoke and write OUTPUT."""
    checkout = checkout.resolve()
    kept: dict[str, Any] = json.loads(output.read_text("utf-8")) if output.exists() else {}
    recipes = {
        p.relative_to(checkout / "recipes").as_posix(): p for p in sorted((checkout / "recipes").rglob("*.toml"))
    }
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(jobs) as pool:
        draw_data(folder := Path(temporary))
        missing = [name for name in recipes if name not in kept]
        records = pool.map(lambda name: record_recipe(recipes[name], checkout, folder), missing)
        for name, entry in zip(missing, records, strict=True):
            kept[name] = entry
            output.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", "utf-8")
            click.echo(f"{name}: {entry.get('error') or entry['id']}")


@main.command()
@click.argument("before", type=click.Path(exists=True, path_type=Path))
@click.argument("after", type=click.Path(exists=True, path_type=Path))
def compare(before: Path, after: Path) -> None:
    """Print each difference between two records; exit with 1 if there is any."""
    old, new = (json.loads(path.read_text("utf-8")) for path in (before, after))
    differences = [
        f"{name}: {key} differs: {old.get(name, {}).get(key)} before, {new.get(name, {}).get(key)} after"
        for name in sorted({*old, *new})
        for key in ("error", "id", "tensors", "log", "metrics", "protocols")
        if old.get(name, {}).get(key) != new.get(name, {}).get(key)
    ]
    errors = [name for name, entry in sorted(new.items()) if "error" in entry]
    for line in [*differences, *(f"{name}: was not trained: {new[name]['error']}" for name in errors)]:
        click.echo(line)
    click.echo(f"{len(new)} recipes, {len(differences)} differences")
    raise SystemExit(1 if differences or errors else 0)


if __name__ == "__main__":
    main()
