"""Measure the time of `p2pzoo run` until its first step, and of `p2pzoo translate` until its first translation.

    python benchmarks/startup.py --recipe recipes/ablation_patch70.toml

Three processes take turns, with a warm cache. One is the real `p2pzoo run`, killed when metrics.jsonl has its first
line (train.log_every = 1). The other two first import what `run` or `translate` imports, print when that is done, and
go on as that command: so the time after the imports is a difference within one process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import measure

# the clock is that of the system: its moments in two processes can be compared
AFTER_IMPORTS = """
import sys, time
import {imports}
print(time.monotonic(), flush=True)
from p2pzoo.cli import main
main(sys.argv[1:])
"""
RUN_IMPORTS = "p2pzoo.cli.run, p2pzoo.training.run_experiment, p2pzoo.training.loop, kornia.metrics"
TRANSLATE_IMPORTS = "p2pzoo.cli.translate, p2pzoo.compute.engine, p2pzoo.models.load, p2pzoo.models.translate_files"
EXAMPLE = Path(__file__).parents[1] / "plugins/p2pzoo_earth/earth_small/example.png"
RUN_FILES = {"begun": "*/*/status.json", "first_step": "*/*/metrics.jsonl"}  # of a runs folder
TRANSLATE_FILES = {"translation": "*.png"}  # of an output folder
TIMEOUT_SECONDS = 300


@click.command()
@click.option("--recipe", default="zoo:ablation_patch70.toml", show_default=True)
@click.option("--profile", default="laptop", show_default=True)
@click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, as in `p2pzoo run`.")
@click.option("--model", default="zoo:earth-small", show_default=True, help="Model of the translation.")
@click.option(
    "--image", default=EXAMPLE, type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Image of the translation [default: the example of earth-small].",
)  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds, after one of warm-up.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of text.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this file.")
def main(
    recipe: str, profile: str, overrides: tuple[str, ...], model: str, image: Path, rounds: int, as_json: bool,
    output: Path | None,
) -> None:  # fmt: skip
    """Time `p2pzoo run` until the end of its first step, and `p2pzoo translate` until its first translation."""
    sets = [argument for override in (*overrides, "train.log_every=1") for argument in ("-s", override)]
    run = ["run", recipe, "--profile", profile, "--quiet", *sets, "--runs"]
    translate = ["translate", model, str(image), "--quiet", "-o"]
    seconds: dict[str, list[float]] = {"begun": [], "first_step": [], "imports": []}
    after_imports: dict[str, list[float]] = {"first_step": [], "translation": []}
    for number in range(rounds + 1):
        _, moments = time_command(run, RUN_FILES)
        imports, moments_of_run = time_command(run, RUN_FILES, RUN_IMPORTS)
        imports_of_translate, moments_of_translate = time_command(translate, TRANSLATE_FILES, TRANSLATE_IMPORTS)
        if number:
            for moment, value in {**moments, "imports": imports}.items():
                seconds[moment].append(value)
            after_imports["first_step"].append(moments_of_run["first_step"] - imports)
            after_imports["translation"].append(moments_of_translate["translation"] - imports_of_translate)
    result = {
        "benchmark": "startup",
        "recipe": recipe.removeprefix("zoo:"),
        "profile": profile,
        "model": model if ":" in model else Path(model).name,
        "seconds": {moment: measure.spread(values) for moment, values in seconds.items()},
        "after_imports": {moment: measure.spread(values) for moment, values in after_imports.items()},
        "environment": measure.environment(),
    }
    measure.keep(result, output)
    click.echo(json.dumps(result) if as_json else text(result))


def time_command(
    command: Sequence[str], files: Mapping[str, str], imports: str | None = None
) -> tuple[float, dict[str, float]]:
    """Return the seconds until the imports are done, and until each of the files is there; then kill the process.

    command  arguments of `p2pzoo`; a new folder becomes the last one
    files    {moment: pattern of a file in that folder}
    imports  what the process imports first; None for the real command, whose first result is 0
    """
    code = ["-c", AFTER_IMPORTS.format(imports=imports)] if imports else ["-m", "p2pzoo"]
    with tempfile.TemporaryDirectory() as temporary:
        arguments = [sys.executable, *code, *command, temporary]
        began = time.monotonic()
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stdout
            line = process.stdout.readline() if imports else str(began)
            imported = float(line) if line else began  # no line: it has failed, which `wait_for_files` reports
            moments = wait_for_files(process, Path(temporary), files)
        finally:
            process.kill()
            process.communicate()
    return imported - began, {moment: seen - began for moment, seen in moments.items()}


def wait_for_files(process: subprocess.Popen[str], folder: Path, files: Mapping[str, str]) -> dict[str, float]:
    """Return when each of the files was first seen with content. Exits with the process's message if it fails."""
    seen: dict[str, float] = {}
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while len(seen) < len(files):
        has_ended = process.poll() is not None  # before the look at the files: it may have written them and ended
        for moment, pattern in files.items():
            if moment not in seen and any(file.stat().st_size for file in folder.glob(pattern)):
                seen[moment] = time.monotonic()
        if len(seen) < len(files) and (has_ended or time.monotonic() > deadline):
            process.kill()
            _, stderr = process.communicate()
            missing = ", ".join(moment for moment in files if moment not in seen)
            raise SystemExit(stderr or f"{missing}: not reached after {TIMEOUT_SECONDS} seconds")
        time.sleep(0.002)
    return seen


def text(result: dict[str, Any]) -> str:
    rows = {moment.replace("_", " "): each for moment, each in result["seconds"].items()}
    rows |= {f"{moment.replace('_', ' ')} after imports": each for moment, each in result["after_imports"].items()}
    lines = []
    for words, each in rows.items():
        low, high = each["spread"]
        lines.append(f"{words:<26} {each['median']:>6.2f} s ({low:.2f} to {high:.2f})")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
