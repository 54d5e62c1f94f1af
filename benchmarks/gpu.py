"""The speed of training on a CUDA device in one table: p2pzoo, the classic step, and p2pzoo with one thing off each.

    python benchmarks/gpu.py

At 256 px with batches of 1, 4 and 16, and at 512 px with batches of 1, width 64. The baseline is `baseline.py`: eager,
fp32, NCHW, torch's default Adam, `.item()` on every loss, as the public PyTorch code does it, with cuDNN free to choose
its kernels by timing, as there. It is given batches that lie ready in memory, as if its loader always kept up; p2pzoo
makes its own. Each contestant has a process; two of them are alive at a time, and take turns.

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
WARM_UP = 8  # more than a graph takes before it is recorded
IMAGES = 10**8  # a training that is long enough for everything to pay
COUNTED = 5  # steps that are watched for waits


@click.command()
@click.option("--rounds", default=7, show_default=True, help="Turns of each contestant.")
@click.option("--steps", default=50, show_default=True, help="Steps per turn.")
@click.option("--without", multiple=True, type=click.Choice([*OFF]), help="Only these lines. All, if none is given.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON instead of the table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also keep the result in this file.")
@click.option("--device", default="cuda", hidden=True)
@click.option("--quick", is_flag=True, hidden=True, help="One small cell: does it run?")
@click.option("--contestant", hidden=True)
@click.option("--cell", nargs=3, type=int, hidden=True)
@click.option("--folder", hidden=True, type=click.Path(path_type=Path))
def main(
    rounds: int, steps: int, without: tuple[str, ...], as_json: bool, output: Path | None, device: str, quick: bool,
    contestant: str | None, cell: tuple[int, int, int] | None, folder: Path | None,
) -> None:  # fmt: skip
    """Print the table of training speed on a CUDA device."""
    if device == "cuda" and not torch.cuda.is_available():
        click.echo(f"gpu.py needs a CUDA device, and torch {torch.__version__} sees none here", err=True)
        sys.exit(2)
    torch.manual_seed(0)
    if contestant and cell and folder:
        serve(contestant, cell, folder, device, steps)
        return
    cells = []
    for size, width, batch in QUICK if quick else CELLS:
        with tempfile.TemporaryDirectory() as temporary:
            draw_pairs(Path(temporary), size)
            given = ("--device", device, "--steps", steps, "--cell", size, width, batch, "--folder", temporary)
            lines = measured(given, [*(without or OFF)], rounds, steps)
        cells.append({"size": size, "width": width, "batch": batch, "lines": lines})
    environment = measure.environment() | {"device": device, "cuda": torch.version.cuda}
    result = {"benchmark": "gpu", "steps": steps, "cells": cells, "environment": environment}
    measure.keep(result, output)
    click.echo(json.dumps(result) if as_json else table(result))


# --- the contestants -------------------------------------------------------------------------------------------


def serve(name: str, cell: tuple[int, int, int], folder: Path, device: str, steps: int) -> None:
    """Be one contestant: `baseline`, `p2pzoo`, or the settings that differ from p2pzoo's own, separated by spaces."""
    if name == "baseline":
        step, on = classic_step(cell, folder, device), {}
    else:
        step, on = zoo_step(cell, folder, device, [] if name == "p2pzoo" else name.split())

    def work() -> None:
        for _ in range(steps):
            step()
        wait(device)

    for _ in range(WARM_UP):
        step()
    wait(device)
    about = {"waits": round(waits(step, device) / COUNTED, 1), "on": [switch for switch in on if on[switch]]}
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
    """p2pzoo's step as `p2pzoo run` takes it, the losses read as rarely as there; and which switches are on."""
    from p2pzoo.compute.engine import Engine
    from p2pzoo.data import Store, TrainBatches
    from p2pzoo.training.checkpoint import LossLogger
    from p2pzoo.training.loop import READ_EVERY_ELSEWHERE, train_step
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
    drawn = TrainBatches(store, batch_size=batch, mirror=True, seed=0)
    closing = contextlib.ExitStack()  # with the process
    batches = closing.enter_context(engine.prefetch(drawn, made.train.steps))
    ledger, taken = LossLogger(), 0

    def step() -> object:
        nonlocal taken
        losses = train_step(play, engine, batches, taken, made.optimizer.lr, 0)
        taken += 1
        ledger.waiting.append((taken, taken * batch, losses))
        return ledger.read() if taken % READ_EVERY_ELSEWHERE == 0 else closing

    return step, engine.on


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def waits(step: Callable[[], object], device: str) -> int:
    """How often COUNTED steps made Python wait for the device."""
    if device != "cuda":
        return 0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        for _ in range(COUNTED):
            step()
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(each.message) for each in told)


# --- the measurement -------------------------------------------------------------------------------------------


def measured(given: tuple[object, ...], without: list[str], rounds: int, steps: int) -> dict[str, Any]:
    """{line: its figures}. Every line is measured beside the p2pzoo that it is compared with."""
    lines: dict[str, Any] = {}
    with contestant(given, "p2pzoo") as ours:
        if ours is None:
            return lines
        lines["p2pzoo"] = {**ours.about, "seconds": []}
        for line in ("baseline", *(f"without {switch}" for switch in without)):
            name = "baseline" if line == "baseline" else OFF[line.removeprefix("without ")]
            with contestant(given, name) as other:
                lines[line] = compared(ours, other, rounds, steps, lines["p2pzoo"])
    return lines


@contextlib.contextmanager
def contestant(given: tuple[object, ...], name: str) -> Iterator[measure.Contestant | None]:
    """A contestant until the end of the block; None where it cannot be, most often for want of memory."""
    try:
        found = measure.Contestant(__file__, *given, "--contestant", name)
    except SystemExit as error:
        click.echo(f"left out: {error}", err=True)
        yield None
        return
    try:
        yield found
    finally:
        found.end()


def compared(
    ours: measure.Contestant, other: measure.Contestant | None, rounds: int, steps: int, own: dict[str, Any]
) -> dict[str, Any] | None:
    """The other's figures, and how many times faster ours is; ours go into `own`."""
    if other is None:
        return None
    try:
        turns = measure.turns({"ours": ours, "other": other}, rounds, 1)
    except SystemExit as error:
        click.echo(f"left out: {error}", err=True)
        return None
    found = {**other.about, "seconds": []}
    for name, figures in (("ours", own), ("other", found)):
        figures["seconds"] += [round(seconds / steps, 6) for seconds in turns[name]["seconds"]]  # of a step
        figures["steps_per_second"] = round(1 / statistics.median(figures["seconds"]), 3)
        figures["peak_megabytes"] = round(turns[name]["peak_bytes"] / 1e6)
    return found | {"ratio": measure.ratio(turns["other"]["seconds"], turns["ours"]["seconds"])}


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
