"""Runs that SIGTERM stops and that resume: model.safetensors has the bytes of a run that nothing stopped.

Each variant trains the same recipe with `p2pzoo run`, twice beside each other; one of the two is stopped.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from p2pzoo.utils.files import read_object, write_text
from window.context import Context, Record

RECIPE = """
extends = "zoo:base.toml"
title = "stopped and resumed"
drop = ["metrics.ssim"]
[generator]
width = {width}
[discriminator]
width = {width}
receptive_field = 34
[dataset]
size = 64
stride = 256
[train]
images = {images}
log_every = 4
sample_every = {images}
checkpoint_every = {images}
[evaluate]
samples = 1
[compute]
device = "{device}"
threads = 1
deterministic = true
"""
VARIANTS = {
    "auto": (),
    "compile": ("compute.compile=true",),
    "fp16": ("compute.precision=fp16",),
}
ONLY_CUDA = ("compile", "fp16")  # compiling for a CPU would take a minute for each of three processes
STOPPED = 128 + signal.SIGTERM  # exit code
POLL = 0.01  # seconds


def run(context: Context, record: Record) -> None:
    recipe = write_recipe(context)
    names = variants(context)
    with ThreadPoolExecutor(len(names)) as threads:
        futures = {name: threads.submit(stop_and_resume, context, recipe, name) for name in names}
        for name, future in futures.items():
            try:
                figures = future.result()
            except Exception as error:  # of one variant
                record.check(f"{name}: the model is equal to the byte", False, error=f"{type(error).__name__}: {error}")
                continue
            record.set(name, figures)
            record.check(f"{name}: SIGTERM stops the run", figures["code"] == STOPPED, code=figures["code"])
            record.check(f"{name}: before its end", 0 < figures["images"] < context.sizes.resume_images)
            record.compare(
                f"{name}: the model is equal to the byte", figures["models"][0] == figures["models"][1],
                models=figures["models"],
            )  # fmt: skip
            if name == "compile":
                record.check("compile: both were compiled", all("compile" in on for on in figures["on"]))


def variants(context: Context) -> list[str]:
    """Those of this window that the device has."""
    return [name for name in context.sizes.variants if context.device == "cuda" or name not in ONLY_CUDA]


def write_recipe(context: Context) -> Path:
    width = max(8, context.sizes.width)
    text = RECIPE.format(width=width, images=context.sizes.resume_images, device=context.device)
    recipe = context.work / "stopped.toml"
    write_text(recipe, text)
    return recipe


def stop_and_resume(context: Context, recipe: Path, name: str) -> dict[str, Any]:
    """Returns the exit code of the stopped run, the images that it had used, and the hashes of both models."""
    folders = [context.work / f"resume-{name}-{kind}" for kind in ("whole", "stopped")]
    whole, stopped = (start(context, recipe, name, folder, "first") for folder in folders)
    metrics = wait_for_first_line(folders[1], stopped)
    stopped.send_signal(signal.SIGTERM)
    code = stopped.wait()
    run_folder = metrics.parent
    images = int((read_object(run_folder / "status.json") or {}).get("images", 0))
    again = start(context, recipe, name, folders[1], "resumed").wait()
    if again or whole.wait():
        raise RuntimeError(f"exit codes {whole.returncode} and, resumed, {again}: see logs/resume-{name}-*.log")
    models = [next(folder.glob("*/*/model.safetensors")) for folder in folders]
    environments = [json.loads((model.parent / "env.json").read_text("utf-8")) for model in models]
    return {
        "code": code,
        "images": images,
        "models": [hashlib.sha256(model.read_bytes()).hexdigest()[:16] for model in models],
        "on": [each["on"] for each in environments],
        "precision": environments[0]["precision"],
    }


def start(context: Context, recipe: Path, name: str, runs: Path, what: str) -> subprocess.Popen[bytes]:
    overrides = [argument for override in VARIANTS[name] for argument in ("-s", override)]
    command = [sys.executable, "-m", "p2pzoo", "run", str(recipe), "--profile", "smoke", "--runs", str(runs)]
    with (context.out / "logs" / f"resume-{name}-{runs.name.rpartition('-')[2]}-{what}.log").open("wb") as log:
        return subprocess.Popen([*command, *overrides], stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def wait_for_first_line(runs: Path, process: subprocess.Popen[bytes]) -> Path:
    """Wait until the run has logged losses, and return its metrics.jsonl."""
    while True:
        for metrics in runs.glob("*/*/metrics.jsonl"):
            if metrics.stat().st_size:
                return metrics
        if process.poll() is not None:
            raise RuntimeError(f"the run ended before it logged a line, with code {process.returncode}")
        time.sleep(POLL)
