"""Do calibrated intervals cover y on new regions as promised? Three sources of intervals, over folds of the earth.

    python benchmarks/uncertainty.py --runs runs/uncertainty -o benchmarks/results/uncertainty.json

For each source and each of the first folds of FOLDS: train, calibrate the average of G at level .8 on the validation
blocks, and measure coverage on the test blocks. Fold r has seed r. No block that calibrates has chosen anything: the
recipes were fixed before, and no checkpoint is chosen. The numbers of each fold are kept in RUNS, so that an
interrupted call goes on. The promise is for a block, so a fold counts by its test blocks; a class by its pixels there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import measure
import numpy as np
from grid import grid

from p2pzoo import config
from p2pzoo.plugin import Dataset

LEVEL = 0.8
FOLDS = (0, 1, 2, 7, 8, 9)  # those with 7 to 9 validation blocks: 4 or 5 promise .8 only if they are covered whole
SETTINGS = ("train.ema=0", "compute.threads=1", "compute.precision=bf16")  # the average beside G is calibrated
SOURCES: dict[str, dict[str, Any]] = {  # name: label, recipe, samples of which the bounds are the extremes
    "quantiles": {"label": "quantile head, .1 and .9", "recipe": "zoo:modern/quantiles.toml", "samples": None},
    "dropout": {"label": "pix2pix, 19 samples of dropout", "recipe": "zoo:base.toml", "samples": 19},
    "flow": {"label": "flow of 4 steps, 19 samples", "recipe": "zoo:modern/flow.toml", "samples": 19},
}


@click.command()
@click.option("--runs", type=click.Path(file_okay=False, path_type=Path), default="runs/uncertainty", show_default=True)
@click.option("--profile", default="laptop", show_default=True)
@click.option("--folds", type=click.IntRange(3, len(FOLDS)), default=len(FOLDS), show_default=True)
@click.option("--images", type=click.IntRange(1), default=7000, show_default=True, help="Training images of a run.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Runs at a time.")
@click.option("-s", "overrides", multiple=True, help="Override a setting of all recipes.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write (JSON).")
def main(
    runs: Path, profile: str, folds: int, images: int, jobs: int, overrides: tuple[str, ...], output: Path | None
) -> None:
    """Train, calibrate and measure every source on every fold."""
    runs.mkdir(parents=True, exist_ok=True)
    settings = (*SETTINGS, f"train.images={images}", *overrides)
    cells = [(source, fold) for fold in FOLDS[:folds] for source in SOURCES]
    with ThreadPoolExecutor(jobs) as pool:
        measured = list(pool.map(lambda cell: measure_cell(runs, profile, settings, *cell), cells))
    rows = {
        source: {**about, "folds": [each for (name, _), each in zip(cells, measured, strict=True) if name == source]}
        for source, about in SOURCES.items()
    }
    result = {
        "benchmark": "uncertainty", "level": LEVEL, "profile": profile, "images": images, "rows": rows,
        "environment": measure.environment(),
    }  # fmt: skip
    measure.keep(result, output)
    click.echo(table(result))


def measure_cell(runs: Path, profile: str, settings: tuple[str, ...], source: str, fold: int) -> dict[str, Any]:
    """The numbers of one source on one fold: read from `runs` if they are there."""
    about = SOURCES[source]
    chosen = [*settings, f"seed={fold}", f"dataset.fold={fold}"]
    experiment = config.load(about["recipe"], profile, chosen)
    identity = experiment.id
    kept = runs / f"{source}-fold{fold}-{identity}.json"
    if not kept.exists():
        folder = train(runs / f"{source}-fold{fold}-{identity}", about["recipe"], profile, chosen)
        calibrated = folder / "calibrated.safetensors"
        samples = ["--samples", about["samples"]] if about["samples"] else []
        recipe = ["--recipe", folder / "recipe.toml"]
        average = folder / "average.safetensors"
        calibration = ask("calibrate", average, *recipe, *samples, "--level", LEVEL, "-o", calibrated, "--force")
        results = ask("evaluate", calibrated, *recipe, "--metric", "interval-coverage", "--quiet")
        numbers = {name: number["value"] for name, number in results["metrics"].items()}
        [protocol] = results["protocols"].values()
        blocks, pixels = count_blocks_and_pixels(experiment.dataset.build(split=experiment.evaluate.split))
        kept.write_text(json.dumps({
            "fold": fold, "factor": calibration["factor"], "blocks": calibration["blocks"],
            "uncovered_when_calibrated": calibration["uncovered"], "test_images": protocol["images"],
            "test_blocks": blocks, "test_pixels": pixels, **numbers,
        }))  # fmt: skip
    number: dict[str, Any] = json.loads(kept.read_text())
    return number


def count_blocks_and_pixels(data: Dataset) -> tuple[int, dict[str, int]]:
    """How many blocks the images have, and how many pixels each class has in all of them."""
    blocks: set[str | None] = set()
    pixels: Counter[int] = Counter()
    for index in range(len(data)):
        pair = data[index]
        blocks.add(pair.block)
        if pair.labels is not None:
            values, counts = np.unique(pair.labels, return_counts=True)
            pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return len(blocks), {name: pixels[label] for label, name in enumerate(data.classes or ())}


def train(runs: Path, recipe: str, profile: str, settings: list[str]) -> Path:
    """The folder of the run, trained if it is not complete."""
    overrides = [part for setting in settings for part in ("-s", setting)]
    call("run", recipe, "--profile", profile, "--runs", runs, "--quiet", *overrides)
    [folder] = [results.parent for results in runs.glob("*/*/results.json")]
    return folder


def ask(*arguments: object) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(call(*arguments, "--json"))
    return answer


def call(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "p2pzoo", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"p2pzoo {' '.join(map(str, arguments))}\n{done.stderr}")
    return done.stdout


def table(result: dict[str, Any]) -> str:
    from p2pzoo_bench.folds import over_folds

    head = ["intervals of", f"covered, mean over new blocks; expected: at least {result['level']:g} [95% over folds]",
            "lowest fold", "lowest class", "mean width, of [-1, 1]", "λ"]  # fmt: skip
    lines = []
    for row in result["rows"].values():
        folds = row["folds"]
        tiles = [fold["test_images"] for fold in folds]
        covered = over_folds([fold["interval-coverage"] for fold in folds], [fold["test_blocks"] for fold in folds])
        of = covered.interval()
        classes = lowest_class(folds)
        width = over_folds([fold["interval-coverage.width"] for fold in folds], tiles).value
        factors = [fold["factor"] for fold in folds]
        ends = f" [{of.low:.3f}, {min(1.0, of.high):.3f}]" if of.low is not None and of.high is not None else ""
        lines.append([
            row["label"], f"{of.value:.3f}{ends}", f"{min(covered.of):.3f}", f"{classes[0]}: {classes[1]:.3f}",
            f"{width:.3f}", f"{min(factors):.2f} to {max(factors):.2f}",
        ])  # fmt: skip
    return grid(head, lines)


def lowest_class(folds: list[dict[str, Any]]) -> tuple[str, float]:
    """The class with the least coverage of all its pixels in the test images of these folds, and that coverage."""
    prefix = "interval-coverage.class."
    means = {}
    for name in sorted({key.removeprefix(prefix) for fold in folds for key in fold if key.startswith(prefix)}):
        found = [(fold[prefix + name], fold["test_pixels"][name]) for fold in folds if prefix + name in fold]
        means[name] = sum(a * b for a, b in found) / sum(b for _, b in found)
    return min(means.items(), key=lambda item: item[1])


if __name__ == "__main__":
    main()
