"""Simulate how often p2pzoo's 95% intervals contain the true value.

    python benchmarks/interval_coverage.py -o benchmarks/results/coverage.json

Seeds: Student's t over three normal draws. Test regions: the studentised bootstrap over blocks, with the numbers of
blocks and of tiles per block that the test split of earth has at 128 px. The difference of a tile is the effect of its
block plus its own effect; half of the variance comes from the block. Effects are normal or skewed (exponential). The
statistic is a mean over tiles, or a pooled ratio like accuracy, whose true value is that of infinitely many blocks.

Folds (protocol 2): K runs, each with the tiles of one fold of earth. The difference of a run is an effect of its seed
plus the mean over its tiles of the effects of block and tile; seed and blocks contribute equally to its variance.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import measure
import numpy as np
from p2pzoo_bench.folds import over_folds
from p2pzoo_bench.intervals import CONFIDENCE, over_seeds, paired_over_blocks

from p2pzoo import config

Draw = Callable[[np.random.Generator, int], np.ndarray]
FOLDS = (3, 5, 10)
EFFECTS: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "skewed": lambda rng, n: rng.exponential(size=n) - 1,
}


@click.command()
@click.option("--trials", default=2000, show_default=True, help="Number of simulated tables.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of a table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this file.")
def main(trials: int, as_json: bool, output: Path | None) -> None:
    """Measure the coverage of the intervals in p2pzoo's tables."""
    tiles = test_blocks()
    rng = np.random.default_rng(0)
    held = [interval.low <= 0 <= interval.high for interval in (over_seeds(rng.normal(size=3)) for _ in range(trials))]  # type: ignore[operator]
    result: dict[str, Any] = {
        "benchmark": "coverage", "trials": trials, "confidence": CONFIDENCE, "tiles_of_blocks": tiles,
        "seeds": {"n": 3, "coverage": round(float(np.mean(held)), 4)},
        "blocks": {
            f"{what}, {name}": round(simulate(np.random.default_rng(1), tiles, draw, trials), 4)
            for name, draw in EFFECTS.items()
            for what, simulate in (("mean", mean_coverage), ("pooled ratio", ratio_coverage))
        },
        "folds": {
            f"{folds}, {name}": round(fold_coverage(np.random.default_rng(2), fold_blocks()[:folds], draw, trials), 4)
            for name, draw in EFFECTS.items()
            for folds in FOLDS
        },
        "environment": measure.environment(),
    }  # fmt: skip
    measure.keep(result, output)
    click.echo(json.dumps(result) if as_json else table(result))


def test_blocks() -> list[int]:
    """Return the numbers of tiles per block of the test split of earth."""
    made = config.load("zoo:base.toml", "laptop")
    dataset = made.dataset.build(split="test")
    return sorted(Counter(dataset[i].block for i in range(len(dataset))).values())


@functools.cache
def fold_blocks() -> list[list[int]]:
    """Return the numbers of tiles per block of the test split of each fold of earth."""
    made = [config.load("zoo:base.toml", "laptop", [f"dataset.fold={fold}"]) for fold in range(max(FOLDS))]
    return [list(Counter(pair.block for pair in each.dataset.build(split="test")).values()) for each in made]


def fold_coverage(rng: np.random.Generator, folds: list[list[int]], draw: Draw, trials: int) -> float:
    """Coverage of the interval over folds."""
    held = 0
    for _ in range(trials):
        differences = []
        for tiles in folds:
            regions = np.repeat(draw(rng, len(tiles)), tiles) + draw(rng, sum(tiles))
            shares = np.array(tiles) / sum(tiles)
            spread = float(((shares**2).sum() + 1 / sum(tiles)) ** 0.5)  # of the mean over the regions
            differences.append(float(regions.mean() + spread * draw(rng, 1)[0]))
        interval = over_folds(differences, [sum(tiles) for tiles in folds]).interval()
        assert interval.low is not None
        assert interval.high is not None
        held += interval.low <= 0 <= interval.high
    return held / trials


def mean_coverage(rng: np.random.Generator, tiles: list[int], draw: Draw, trials: int) -> float:
    """Coverage for a mean over tiles."""
    blocks = np.repeat(range(len(tiles)), tiles)
    held = 0
    for _ in range(trials):
        values = np.repeat(draw(rng, len(tiles)), tiles) + draw(rng, len(blocks))
        interval = paired_over_blocks(lambda images, v=values: float(v[images].mean()), blocks.tolist())  # type: ignore[misc]
        assert interval.low is not None
        assert interval.high is not None
        held += interval.low <= 0 <= interval.high
    return held / trials


def ratio_coverage(rng: np.random.Generator, tiles: list[int], draw: Draw, trials: int) -> float:
    """Coverage for a difference of pooled accuracies: correct pixels over counted pixels, which vary by tile."""
    blocks = np.repeat(range(len(tiles)), tiles)
    held = 0
    for _ in range(trials):
        count = rng.uniform(0.2, 1.0, len(blocks))
        right = np.repeat(draw(rng, len(tiles)), tiles) * 0.05 + draw(rng, len(blocks)) * 0.05

        def difference(images: np.ndarray, count: np.ndarray = count, right: np.ndarray = right) -> float:
            return float((right * count)[images].sum() / count[images].sum())

        interval = paired_over_blocks(difference, blocks.tolist())
        assert interval.low is not None
        assert interval.high is not None
        held += interval.low <= 0 <= interval.high
    return held / trials


def table(result: dict[str, Any]) -> str:
    rows = [f"| a {result['confidence']:.0%} interval over | holds the truth in |", "|---|---|"]
    rows.append(f"| {result['seeds']['n']} seeds (Student's t), normal | {result['seeds']['coverage']:.1%} |")
    for name, coverage in result["blocks"].items():
        rows.append(f"| {len(result['tiles_of_blocks'])} test blocks (bootstrap), {name} | {coverage:.1%} |")
    for name, coverage in sorted(result["folds"].items(), key=lambda item: int(item[0].partition(",")[0])):
        folds, _, shape = name.partition(", ")
        rows.append(f"| {folds} folds of earth (Student's t), {shape} | {coverage:.1%} |")
    return "\n".join([*rows, "", f"in {result['trials']} simulations"])


if __name__ == "__main__":
    main()
