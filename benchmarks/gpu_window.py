"""Measure in ten minutes what one visit to a GPU can settle: correctness, then speed, then training runs.

    python benchmarks/gpu_window.py --out window

Each stage is a process with a time limit that writes its results as it goes; a stage that fails or takes too long stops
no other. `--rehearse` runs everything at toy size on whatever device there is, also on a CPU. The folder holds a JSON
file for each stage, logs, and summary.md; it takes less than 60 MB.
"""

from __future__ import annotations

import importlib
import json
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from window import driver, summary
from window.context import Context, Record
from window.plan import BY_NAME, SECONDS, STAGES

from p2pzoo.utils.files import read_object


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the results.")
@click.option("--rehearse", is_flag=True, help="Run everything at toy size, on a GPU or on a CPU.")
@click.option("--seconds", type=int, default=SECONDS, show_default=True, help="Time for everything.")
@click.option("--only", multiple=True, type=click.Choice([*BY_NAME]), help="Run only this stage. May be repeated.")
@click.option("--summary", "summarize", type=click.Path(path_type=Path, exists=True), help="Print a folder's summary.")
@click.option("--stage", hidden=True, type=click.Choice([*BY_NAME]))
@click.option("--context", hidden=True)
def main(
    out: Path | None, rehearse: bool, seconds: int, only: tuple[str, ...], summarize: Path | None, stage: str | None,
    context: str | None,
) -> None:  # fmt: skip
    """Measure in ten minutes what one visit to a GPU can settle."""
    if stage and context:
        run_stage(stage, Context.parse(context))
    elif summarize:
        click.echo(summary.text(summarize))
    elif out is None:
        raise click.UsageError("give --out FOLDER, or --summary FOLDER")
    else:
        sys.exit(0 if run_window(out, rehearse, seconds, only) else 1)


def run_stage(name: str, context: Context) -> None:
    """Be the process of one stage."""
    record = Record(name, context)
    importlib.import_module(f"window.{BY_NAME[name].module}").run(context, record)


def run_window(out: Path, rehearse: bool, seconds: int, only: tuple[str, ...]) -> bool:
    """Run the stages and write the summary. Returns whether every stage ended and no check failed."""
    began = time.time()
    if out.exists() and any(out.iterdir()):
        raise click.UsageError(f"--out {out}: is not empty: give a new folder")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    work = Path(tempfile.mkdtemp(prefix="gpu-window-"))
    context = Context(out, work, "cpu", rehearse, True, began + seconds)

    def log(text: str) -> None:
        click.echo(f"{time.time() - began:6.1f} s  {text}", err=True)

    window = driver.Window(Path(__file__).resolve(), context, began + seconds, log)
    try:
        window.run_stage(STAGES[0])
        device = find_device(out)
        if device["type"] == "cpu" and not rehearse:
            raise click.UsageError(f"gpu_window.py needs a CUDA device, and torch {device['torch']} finds none")
        window.context = replace(context, device=device["type"], computes=device["computes"])
        window.run([*driver.select(only, context.sizes)])
    finally:
        shutil.rmtree(work, ignore_errors=True)
        summary.pack(out, log)
    click.echo(summary.text(out))
    return driver.is_good(out)


def find_device(out: Path) -> dict[str, Any]:
    """What the inventory found: {"type", "torch", "computes"}."""
    record = read_object(out / "inventory.json") or {}
    try:
        device: dict[str, Any] = record["results"]["device"]
    except KeyError:
        raise click.ClickException(f"the inventory failed: {json.dumps(record.get('log', []))}") from None
    return device


if __name__ == "__main__":
    main()
