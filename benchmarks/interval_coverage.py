"""Simulate how often p2pzoo's 95% intervals contain the true value.

    python benchmarks/interval_coverage.py -o benchmarks/results/coverage.json

Seeds: Student's t over three normal draws. Test regions: the studentised bootstrap over blocks, with the numbers of
blocks and of tiles per block that the test split of earth has at 128 px. The difference of a tile is the effect of its
block plus its own effect; half of the variance comes from the block. Effects are normal or skewed (exponential). The
statistic is a mean over tiles, or a pooled ratio like accuracy, whose true value is that of infinitely many blocks.

Folds (protocol 2): K runs, each with the tiles of one fold of earth. The difference of a run is an effect of its seed
plus the mean over its tiles of the effects of block and tile; seed and blocks contribute equally to its variance.

Tables of many rows on few folds: a number is the effect of its fold plus that of its run. The standard deviation of a
row's runs is 1, or log-normal, or larger in the baseline alone. With the rows' own variances and with `pooled_spread`:
how many tables name a row although none differs from the baseline, how many of five rows are named that differ by
DIFFERENCE standard deviations of a typical run, and how many intervals contain the true value. All these folds are
independent; those of a real table share training images.
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
from p2pzoo_bench.answer import SIGNIFICANCE
from p2pzoo_bench.folds import holm, over_folds, pool_rows
from p2pzoo_bench.intervals import CONFIDENCE, over_seeds, paired_over_blocks

from p2pzoo import config

Draw = Callable[[np.random.Generator, int], np.ndarray]
FOLDS = (3, 5, 10)
TABLES = ((36, 3), (12, 3), (9, 5))  # trainings, folds: of zoo_equal_time.toml, misaligned.toml, methods.toml
UNEQUAL: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {  # standard deviations of the rows
    "equal": lambda rng, rows: np.ones(rows),
    "log-normal, typical factor 1.8": lambda rng, rows: np.exp(rng.normal(0, np.log(1.8), rows)),
    "baseline 3 times the others'": lambda rng, rows: np.where(np.arange(rows) == 0, 3.0, 1.0),
}
DIFFERENCE = 4.0
DIFFERENT = 5  # rows that differ
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
        "tables": {
            f"{rows} rows, {folds} folds": {
                name: table_errors(rows, folds, deviations, trials) for name, deviations in UNEQUAL.items()
            }
            for rows, folds in TABLES
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


def table_errors(rows: int, folds: int, deviations: Draw, trials: int) -> dict[str, dict[str, float]]:
    """By kind of variance, the shares of tables that name a row without cause, of different rows that are named, and of
    intervals that contain the true value."""
    rng = np.random.default_rng(3)
    counts = {kind: {"wrong": 0.0, "found": 0.0, "held": 0.0} for kind in ("own", "pooled")}
    for _ in range(trials):
        numbers = rng.normal(size=folds) + deviations(rng, rows)[:, None] * rng.normal(size=(rows, folds))
        changed = numbers.copy()
        changed[1 : DIFFERENT + 1] += DIFFERENCE
        for kind, count in counts.items():
            ps, adjusted = judge_rows(numbers, pooled=kind == "pooled")
            count["wrong"] += min(adjusted) <= SIGNIFICANCE
            count["held"] += sum(p > 1 - CONFIDENCE for p in ps) / len(ps)
            _, adjusted = judge_rows(changed, pooled=kind == "pooled")
            count["found"] += sum(p <= SIGNIFICANCE for p in adjusted[:DIFFERENT]) / DIFFERENT
    return {kind: {name: round(n / trials, 4) for name, n in count.items()} for kind, count in counts.items()}


def judge_rows(numbers: np.ndarray, *, pooled: bool) -> tuple[list[float], list[float]]:
    """The p-values of the differences of rows 1, 2, … of (rows, folds) to row 0, and the adjusted ones."""
    spread = pool_rows(numbers.tolist()) if pooled else None
    base, *rows = numbers
    tiles = [1] * len(base)
    differences = [over_folds(row - base, tiles, spread and spread.of_difference(row, base)) for row in rows]
    ps = [1.0 if difference.p is None else difference.p for difference in differences]
    return ps, holm(ps)


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
    tables = [
        f"| table | standard deviations of rows | variance | names a row although none differs | names of {DIFFERENT} "
        f"rows that differ by {DIFFERENCE:g} of them | {result['confidence']:.0%} intervals hold the truth |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {deviations} | {kind} | {shares['wrong']:.1%} | {shares['found']:.0%} | {shares['held']:.1%} |"
            for name, by_deviations in result["tables"].items()
            for deviations, by_kind in by_deviations.items()
            for kind, shares in by_kind.items()
        ),
    ]
    note = f"in {result['trials']} simulations of independent folds; those of a real table share training images"
    return "\n".join([*rows, "", *tables, "", note])


if __name__ == "__main__":
    main()
