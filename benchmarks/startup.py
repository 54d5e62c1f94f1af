"""Measure the time of `p2pzoo run` until its first step, with a warm cache.

    python benchmarks/startup.py --recipe recipes/ablation_patch70.toml

Each round starts the real command, waits until metrics.jsonl has its first line (train.log_every = 1), and kills it. In
turns with it, another process only imports what a run imports.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import measure

IMPORTS = "import p2pzoo.cli.run, p2pzoo.training.run_experiment, p2pzoo.training.loop, kornia.metrics"
TIMEOUT_SECONDS = 300


@click.command()
@click.option("--recipe", default="zoo:ablation_patch70.toml", show_default=True)
@click.option("--profile", default="laptop", show_default=True)
@click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, as in `p2pzoo run`.")
@click.option("--rounds", default=5, show_default=True, help="Rounds, after one that fills the cache.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of text.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this file.")
def main(
    recipe: str, profile: str, overrides: tuple[str, ...], rounds: int, as_json: bool, output: Path | None
) -> None:
    """Time `p2pzoo run` from its start to the end of its first step."""
    command = ["run", recipe, "--profile", profile, "--quiet", *(a for o in overrides for a in ("-s", o))]
    seconds: dict[str, list[float]] = {"begun": [], "first_step": [], "imports": []}
    for number in range(rounds + 1):
        moments = time_first_step(command) | {"imports": time_imports()}
        for moment, values in seconds.items():
            values += [moments[moment]] if number else []
    after = [run - imports for run, imports in zip(seconds["first_step"], seconds["imports"], strict=True)]
    result = {
        "benchmark": "startup",
        "recipe": recipe.removeprefix("zoo:"),
        "profile": profile,
        "seconds": {moment: measure.spread(values) for moment, values in seconds.items()},
        "seconds_after_imports": measure.spread(after),
        "environment": measure.environment(),
    }
    measure.keep(result, output)
    click.echo(json.dumps(result) if as_json else text(result))


def time_first_step(command: list[str]) -> dict[str, float]:
    """Return the seconds until the run folder exists, and until the first step is logged."""
    moments: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        watched = {"begun": "status.json", "first_step": "metrics.jsonl"}
        arguments = [sys.executable, "-m", "p2pzoo", *command, "--runs", temporary, "-s", "train.log_every=1"]
        began = time.perf_counter()
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            while "first_step" not in moments:
                for moment, name in watched.items():
                    if moment not in moments and any(f.stat().st_size for f in Path(temporary).glob(f"*/*/{name}")):
                        moments[moment] = time.perf_counter() - began
                ended = process.poll() is not None and "first_step" not in moments
                if ended or time.perf_counter() - began > TIMEOUT_SECONDS:
                    process.kill()
                    _, stderr = process.communicate()
                    raise SystemExit(stderr or f"`p2pzoo run` has taken no step after {TIMEOUT_SECONDS} seconds")
                time.sleep(0.002)
        finally:
            process.kill()
            process.communicate()
    return moments


def time_imports() -> float:
    """Return the seconds of a process that only imports."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.perf_counter() - began


def text(result: dict[str, Any]) -> str:
    seconds: dict[str, Any] = result["seconds"]
    rows = [f"{moment.replace('_', ' '):<12} {seconds[moment]['median']:>6.2f} s" for moment in seconds]
    low, high = result["seconds_after_imports"]["spread"]
    return "\n".join(
        [*rows, f"{'after imports':<12} {result['seconds_after_imports']['median']:>5.2f} s ({low:.2f} to {high:.2f})"]
    )


if __name__ == "__main__":
    main()
