"""Measure training speed on a CUDA device: p2pzoo, the classic step, and p2pzoo with one switch off at a time.

    python benchmarks/gpu.py

At 256 px with batches of 1, 4 and 16, and at 512 px with batches of 1, width 64. The baseline is `baseline.py`: eager,
fp32, NCHW, torch's default Adam and `.item()` on every loss, as in the public PyTorch code; as there, cuDNN chooses its
kernels by timing. Its batches are already in memory, as if its loader always kept up; p2pzoo makes its own. Each
contestant is a process; two of them are alive at a time and take turns.

Without `fused_adam` there is no CUDA graph either.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import measure
import torch
from baseline import batches as loaded
from steps import draw_pairs
from train_step import ours_plain

from p2pzoo import config

CELLS = [(256, 64, 1), (256, 64, 4), (256, 64, 16), (512, 64, 1)]  # size, width, batch
QUICK = [(64, 8, 1)]
OFF = {
    "precision": 'compute.precision="fp32"',
    "tf32": "compute.tf32=false",
    "channels_last": "compute.channels_last=false",
    "fused_adam": "compute.fused_adam=false",
    "one_pass": "compute.one_pass=false",
    "compile": "compute.compile=false",
    "cuda_graphs": "compute.cuda_graphs=false",
    "prefetch": "compute.prefetch=false",
}
WARM_UP = 8  # steps before timing: more than the warm-up steps before a graph is recorded
IMAGES = 10**8  # a run this long enables every switch, also compile
COUNTED = 5  # steps in which synchronizations are counted


@click.command()
@click.option("--rounds", default=7, show_default=True, help="Turns per contestant.")
@click.option("--steps", default=50, show_default=True, help="Steps per turn.")
@click.option("--without", multiple=True, type=click.Choice([*OFF]), help="Measure only these lines [default: all].")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of the table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this file.")
@click.option("--device", default="cuda", hidden=True)
@click.option("--quick", is_flag=True, hidden=True, help="Measure one small cell, as a test.")
@click.option("--contestant", hidden=True)
@click.option("--cell", nargs=3, type=int, hidden=True)
@click.option("--folder", hidden=True, type=click.Path(path_type=Path))
def main(
    rounds: int, steps: int, without: tuple[str, ...], as_json: bool, output: Path | None, device: str, quick: bool,
    contestant: str | None, cell: tuple[int, int, int] | None, folder: Path | None,
) -> None:  # fmt: skip
    """Print the table of training speed on a CUDA device."""
    if device == "cuda" and not torch.cuda.is_available():
        click.echo(f"gpu.py needs a CUDA device, and torch {torch.__version__} finds none", err=True)
        sys.exit(2)
    torch.manual_seed(0)
    if contestant and cell and folder:
        serve(contestant, cell, folder, device, steps)
        return
    cells = []
    for size, width, batch in QUICK if quick else CELLS:
        with tempfile.TemporaryDirectory() as temporary:
            draw_pairs(Path(temporary), size)
            arguments = ("--device", device, "--steps", steps, "--cell", size, width, batch, "--folder", temporary)
            lines = measure_lines(arguments, [*(without or OFF)], rounds, steps)
        cells.append({"size": size, "width": width, "batch": batch, "lines": lines})
    environment = measure.environment() | {"device": device, "cuda": torch.version.cuda}
    result = {"benchmark": "gpu", "steps": steps, "cells": cells, "environment": environment}
    measure.keep(result, output)
    click.echo(json.dumps(result) if as_json else table(result))


# --- the contestants -------------------------------------------------------------------------------------------


def serve(name: str, cell: tuple[int, int, int], folder: Path, device: str, steps: int) -> None:
    """Run as one contestant.

    name  "baseline", "p2pzoo", or overrides of p2pzoo, separated by spaces
    """
    if name == "baseline":
        step, enabled = classic_step(cell, folder, device), {}
    else:
        step, enabled = zoo_step(cell, folder, device, [] if name == "p2pzoo" else name.split())

    def work() -> None:
        for _ in range(steps):
            step()
        wait(device)

    for _ in range(WARM_UP):
        step()
    wait(device)
    about = {"waits": round(waits(step, device) / COUNTED, 1), "on": [switch for switch in enabled if enabled[switch]]}
    measure.serve(work, about, peak=torch.cuda.max_memory_allocated if device == "cuda" else None)


def classic_step(cell: tuple[int, int, int], folder: Path, device: str) -> Callable[[], object]:
    size, width, batch = cell
    torch.backends.cudnn.benchmark = True
    classic = ours_plain(size, width)
    classic.G.to(device)
    classic.D.to(device)
    pairs = loaded(folder, size, batch)
    ready = [next(pairs) for _ in range(4)]
    taken = 0

    def step() -> object:
        nonlocal taken
        x, y = ready[taken % len(ready)]
        taken += 1
        return classic.step(x.to(device), y.to(device))

    return step


def zoo_step(
    cell: tuple[int, int, int], folder: Path, device: str, settings: list[str]
) -> tuple[Callable[[], object], dict[str, bool]]:
    """Return a step as in `p2pzoo run`, with losses read as rarely, and whether each switch is enabled."""
    from p2pzoo.compute.engine import Engine
    from p2pzoo.data import Store, TrainBatches
    from p2pzoo.training.checkpoint import LossLogger
    from p2pzoo.training.loop import READ_EVERY_ON_ACCELERATORS, train_step
    from p2pzoo.training.setup import build_objective

    size, width, batch = cell
    overrides = [
        f"generator.width={width}", f"discriminator.width={width}", f"train.batch_size={batch}",
        f"train.images={IMAGES}", "dataset.use=side-by-side", f"dataset.root={folder}",
        f"dataset.size=[{size}, {size}]", f"compute.device={device}", *settings,
    ]  # fmt: skip
    made = config.load("zoo:base.toml", "gpu", overrides)
    engine = Engine(made.compute)
    store = Store(made.dataset.build(split="train"), enlarge=made.train.jitter, kernel=made.train.jitter_kernel)
    objective = build_objective(made, engine, store.channels, store.size)
    play = engine.compile_step(objective)
    train_batches = TrainBatches(store, batch_size=batch, mirror=True, seed=0)
    closing = contextlib.ExitStack()  # closed at the end of the process
    batches = closing.enter_context(engine.prefetch(train_batches, made.train.steps))
    logger, taken = LossLogger(), 0

    def step() -> object:
        nonlocal taken
        losses = train_step(play, engine, batches, taken, made.optimizer.lr, 0)
        taken += 1
        logger.waiting.append((taken, taken * batch, losses))
        return logger.read() if taken % READ_EVERY_ON_ACCELERATORS == 0 else closing

    return step, engine.enabled


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def waits(step: Callable[[], object], device: str) -> int:
    """Return how often Python waits for the device in COUNTED steps."""
    if device != "cuda":
        return 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        for _ in range(COUNTED):
            step()
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


# --- the measurement -------------------------------------------------------------------------------------------


def measure_lines(arguments: tuple[object, ...], without: list[str], rounds: int, steps: int) -> dict[str, Any]:
    """Return {line: its figures}. Each line takes turns with p2pzoo, with which it is compared."""
    lines: dict[str, Any] = {}
    with contestant(arguments, "p2pzoo") as ours:
        if ours is None:
            return lines
        lines["p2pzoo"] = {**ours.about, "seconds": []}
        for line in ("baseline", *(f"without {switch}" for switch in without)):
            name = "baseline" if line == "baseline" else OFF[line.removeprefix("without ")]
            with contestant(arguments, name) as other:
                lines[line] = compare(ours, other, rounds, steps, lines["p2pzoo"])
    return lines


@contextlib.contextmanager
def contestant(arguments: tuple[object, ...], name: str) -> Iterator[measure.Contestant | None]:
    """Start a contestant and end it with the block; None if it fails, most often because memory is too small."""
    try:
        started = measure.Contestant(__file__, *arguments, "--contestant", name)
    except SystemExit as error:
        click.echo(f"skipped: {error}", err=True)
        yield None
        return
    try:
        yield started
    finally:
        started.end()


def compare(
    ours: measure.Contestant, other: measure.Contestant | None, rounds: int, steps: int, own: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the figures of the other contestant and the speed-up of ours; add ours to `own`."""
    if other is None:
        return None
    try:
        turns = measure.turns({"ours": ours, "other": other}, rounds, 1)
    except SystemExit as error:
        click.echo(f"skipped: {error}", err=True)
        return None
    theirs = {**other.about, "seconds": []}
    for name, figures in (("ours", own), ("other", theirs)):
        figures["seconds"] += [round(seconds / steps, 6) for seconds in turns[name]["seconds"]]  # of a step
        figures["steps_per_second"] = round(1 / statistics.median(figures["seconds"]), 3)
        figures["peak_megabytes"] = round(turns[name]["peak_bytes"] / 1e6)
    return theirs | {"ratio": measure.ratio(turns["other"]["seconds"], turns["ours"]["seconds"])}


def table(result: dict[str, Any]) -> str:
    rows = [
        "| | steps/s | p2pzoo's speed over it (spread) | peak MB | waits per step |",
        "|---|---|---|---|---|",
    ]
    for cell in result["cells"]:
        rows.append(f"| **{cell['size']} px, width {cell['width']}, batch {cell['batch']}** | | | | |")
        for line, figures in cell["lines"].items():
            if figures is None or "steps_per_second" not in figures:
                rows.append(f"| {line} | none | | | |")
                continue
            ratio = ""
            if "ratio" in figures:
                low, high = figures["ratio"]["spread"]
                ratio = f"{figures['ratio']['median']:.2f} ({low:.2f} to {high:.2f})"
            rate, peak = figures["steps_per_second"], figures["peak_megabytes"]
            rows.append(f"| {line} | {rate:.2f} | {ratio} | {peak} | {figures['waits']} |")
    environment = result["environment"]
    rows.append(f"\nOn in p2pzoo: {', '.join(result['cells'][0]['lines'].get('p2pzoo', {}).get('on', []))}.")
    where = environment.get("gpu", environment["device"])
    rows.append(f"{where}, torch {environment['torch']}, CUDA {environment['cuda']}, {environment['system']}.")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
    sys.exit()
