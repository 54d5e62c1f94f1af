"""Measure how time and peak memory of a training step grow with image size, batch, width and number of pairs.

    python benchmarks/scaling.py -o benchmarks/results/speed/scaling.json

Each point is a separate process with the step of `p2pzoo run`; the points of a series take turns. A slope is the
exponent of a power law, fitted to the logarithms round by round: 1 is linear in pixels, images or pairs. Memory does
not include the imports. The plot is written next to the result, as .svg.
"""

from __future__ import annotations

import importlib
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import measure
from steps import draw_pairs, experiment, training

WARM_UP = 2  # steps before timing
BASE = {"size": 128, "width": 32, "batch": 1, "pairs": 64}
QUICK = {"size": 64, "width": 8, "batch": 1, "pairs": 16}


@dataclass(frozen=True)
class Series:
    """One series of points, which vary in a single quantity.

    values  values of the quantity
    quick   values with --quick
    unit    unit of the x axis, to which the slopes refer
    power   power of the value that gives the unit: a side squared is an area
    base    values of the other quantities, where they differ from BASE
    """

    values: Sequence[int]
    quick: Sequence[int]
    unit: str
    power: int = 1
    base: dict[str, int] | None = None


SERIES = {
    "size": Series((64, 128, 256, 512, 1024), (32, 64), "pixels of an image", power=2),
    "batch": Series((1, 2, 4, 8, 16), (1, 2), "images of a batch"),
    "width": Series((16, 24, 32, 48, 64), (4, 8), "channels of the first layers"),
    "pairs": Series((64, 256, 1024, 4096, 16384), (16, 64), "pairs of the dataset", base={"size": 64, "width": 16}),
}


@click.command()
@click.option(
    "--series",
    "names",
    multiple=True,
    type=click.Choice(list(SERIES)),
    help="Measure only this series. May be repeated.",
)
@click.option("--rounds", default=5, show_default=True, help="Turns per point.")
@click.option("--steps", default=3, show_default=True, help="Steps per turn; a turn counts as their median.")
@click.option("--quick", is_flag=True, help="Measure two small points per series in one round, as a test.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of a table.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this file, and its plot as .svg."
)
@click.option("--point", hidden=True)
def main(
    names: tuple[str, ...], rounds: int, steps: int, quick: bool, as_json: bool, output: Path | None, point: str | None
) -> None:
    """Measure how a training step grows."""
    if point:
        serve(**json.loads(point))
        return
    rounds = 1 if quick else rounds
    measured = {name: run(name, rounds, steps, quick) for name in names or SERIES}
    result = {
        "benchmark": "scaling", "rounds": rounds, "steps": steps, "series": measured,
        "environment": measure.environment(),
    }  # fmt: skip
    measure.keep(result, output)
    if output:
        plot(result, output.with_suffix(".svg"))
    click.echo(json.dumps(result) if as_json else table(result))


def run(name: str, rounds: int, steps: int, quick: bool) -> dict[str, Any]:
    """Measure one series."""
    series = SERIES[name]
    base = QUICK if quick else BASE | (series.base or {})
    values = series.quick if quick else series.values
    with tempfile.TemporaryDirectory() as temporary:
        points = {}
        for value in values:
            at = base | {name: value}
            folder = Path(temporary) / f"{at['size']}-{at['pairs']}"
            if not folder.exists():
                (folder / "train").mkdir(parents=True)
                draw_pairs(folder / "train", at["size"], at["pairs"])
                for split in ("val", "test"):
                    (folder / split).mkdir()
                    draw_pairs(folder / split, at["size"], 1)
            points[str(value)] = measure.Contestant(__file__, "--point", json.dumps(at | {"folder": str(folder)}))
        about = {value: contestant.about for value, contestant in points.items()}
        measured = measure.take_turns(points, rounds, steps)

    counted = [value**series.power for value in values]
    seconds = [measured[str(value)]["seconds"] for value in values]
    memory = [measured[str(value)]["peak_bytes"] - about[str(value)]["imports_bytes"] for value in values]
    started = [about[str(value)]["start_seconds"] for value in values]
    return {
        "base": {key: number for key, number in base.items() if key != name},
        "values": list(values),
        "unit": series.unit,
        "counted": counted,
        "milliseconds": [
            {"median": round(1e3 * statistics.median(s), 2), "spread": [round(1e3 * f(s), 2) for f in (min, max)]}
            for s in seconds
        ],
        "peak_megabytes": [round(b / 1e6) for b in memory],
        "start_seconds": [round(s, 3) for s in started],
        "slope": {
            "milliseconds": measure.spread([slope(counted, each) for each in zip(*seconds, strict=True)]),
            "peak_megabytes": round(slope(counted, memory), 3),
            "start_seconds": round(slope(counted, started), 3),
        },
    }


def serve(folder: str, size: int, width: int, batch: int, pairs: int) -> None:
    """Run as one point: import, time from opening the data to the end of the first step, then take steps on demand."""
    for library in (
        "p2pzoo.training.run_experiment",
        "torch._dynamo",
        "torch.distributed.tensor",
    ):  # the first optimizer imports these
        importlib.import_module(library)
    made = experiment(Path(folder), size, width, batch)
    imports = measure.peak_bytes()
    start = time.perf_counter()
    for split in ("val", "test"):  # as a run does
        made.dataset.build(split=split)
    work = training(made)
    work()
    started = time.perf_counter() - start
    for _ in range(WARM_UP):
        work()
    measure.serve(work, {"start_seconds": started, "imports_bytes": imports})


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the exponent of y ∝ x^slope, fitted by least squares to the logarithms."""
    return statistics.linear_regression([math.log(v) for v in x], [math.log(v) for v in y]).slope


def plot(result: dict[str, Any], file: Path) -> None:
    """Plot one log-log panel per series: milliseconds on the left axis, memory (for pairs: start-up) on the right."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "p2pzoo", "svg.fonttype": "none", "font.size": 9}):
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullLocator

        series = {name: result["series"][name] for name in SERIES if name in result["series"]}
        rows = -(-len(series) // 2)
        figure = Figure(figsize=(9, 3.2 * rows), layout="constrained")
        for axes, (name, found) in zip(figure.subplots(rows, 2, squeeze=False).flat, series.items(), strict=False):
            right, unit = ("start_seconds", "start-up in s") if name == "pairs" else ("peak_megabytes", "peak in MB")
            medians = [each["median"] for each in found["milliseconds"]]
            exponents = found["slope"]["milliseconds"]["median"], found["slope"][right]
            sides = (axes, medians, "ms per step", "C0", "o"), (axes.twinx(), found[right], unit, "C1", "s")
            span = max(
                4, *(max(values) / min(values) for _, values, *_ in sides)
            )  # the same for both axes, so that slopes can be compared
            for (side, values, label, color, marker), exponent in zip(sides, exponents, strict=True):
                counted = found["counted"]
                through = [statistics.fmean(math.log(v) for v in each) for each in (counted, values)]
                fitted = [math.exp(through[1] + exponent * (math.log(v) - through[0])) for v in counted]
                side.plot(counted, values, marker, color=color, markersize=4)
                side.plot(counted, fitted, "--", color=color, linewidth=1)
                side.set_xscale("log")
                side.set_yscale("log")
                centre = math.sqrt(min(values) * max(values))
                side.set_ylim(centre / span**0.6, centre * span**0.6)
                side.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 100 else (1,)))
                side.yaxis.set_major_formatter("{x:g}")
                side.yaxis.set_minor_locator(NullLocator())
                side.set_ylabel(f"{label}, slope {exponent:.2f}", color=color)
            axes.set_xticks(counted, [_ticked(name, value) for value in found["values"]])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_title(found["unit"], loc="left", fontsize=9)
            axes.grid(alpha=0.3)
        for axes in figure.axes[len(series) :]:
            axes.set_visible(axes.has_data())
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None, "Creator": None})


def _ticked(name: str, value: int) -> str:
    return f"{value}²" if SERIES[name].power == 2 else f"{value:,}"


def table(result: dict[str, Any]) -> str:
    rows = []
    for name, found in result["series"].items():
        rows.append(f"{name:>8} {'ms':>10} {'peak MB':>10} {'start s':>10}")
        columns = ("values", "milliseconds", "peak_megabytes", "start_seconds")
        for value, time_, peak, start in zip(*(found[column] for column in columns), strict=True):
            rows.append(f"{value:>8} {time_['median']:>10.1f} {peak:>10} {start:>10.2f}")
        slopes = found["slope"]
        rows.append(
            f"{'slope':>8} {slopes['milliseconds']['median']:>10.2f} {slopes['peak_megabytes']:>10.2f} "
            f"{slopes['start_seconds']:>10.2f}   per {found['unit']}"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
    sys.exit()
