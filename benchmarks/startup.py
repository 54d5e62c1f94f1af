"""How long `p2pzoo run` takes to its first step, with a warm cache: what is waited for each time a recipe is tried.

    python benchmarks/startup.py --recipe recipes/ablation_patch70.toml

The real command, in a process of its own each round, until metrics.jsonl has its first line (train.log_every = 1), and
then killed. Beside it, in turns, the imports alone: p2pzoo with the libraries that its first optimizer loads.
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

IMPORTS = "import p2pzoo.cli.run, p2pzoo.training.run_experiment, torch._dynamo, torch.distributed.tensor"
MOST_SECONDS = 300


@click.command()
@click.option("--recipe", default="zoo:ablation_patch70.toml", show_default=True)
@click.option("--profile", default="laptop", show_default=True)
@click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As in `p2pzoo run`.")
@click.option("--rounds", default=5, show_default=True, help="Counted ones, after one that warms the cache.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON instead of text.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also keep the result in this file.")
def main(
    recipe: str, profile: str, overrides: tuple[str, ...], rounds: int, as_json: bool, output: Path | None
) -> None:
    """Time `p2pzoo run` from its start to its first step."""
    command = ["run", recipe, "--profile", profile, "--quiet", *(a for o in overrides for a in ("-s", o))]
    seconds: dict[str, list[float]] = {"begun": [], "first_step": [], "imports": []}
    for number in range(rounds + 1):
        moments = until_first_step(command) | {"imports": importing()}
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


def until_first_step(command: list[str]) -> dict[str, float]:
    """Seconds until the run's folder is ready, and until the first step is written down."""
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
                if ended or time.perf_counter() - began > MOST_SECONDS:
                    process.kill()
                    _, told = process.communicate()
                    raise SystemExit(told or f"no step within {MOST_SECONDS} seconds")
                time.sleep(0.002)
        finally:
            process.kill()
            process.communicate()
    return moments


def importing() -> float:
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
