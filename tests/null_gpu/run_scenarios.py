"""Whole commands with `--device cuda`: train, stop, resume, measure and translate, one after another in one folder."""

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

from click.testing import CliRunner
from null_gpu.run import counting
from null_gpu.training import print_results

from p2pzoo.cli import main
from p2pzoo.training import loop

OVERRIDES = (
    "generator.depth=3", "discriminator.receptive_field=16", "dataset.size=64", "dataset.stride=256",
    "train.images=24", "train.log_every=4", "train.sample_every=12", "train.checkpoint_every=12", "train.ema=0.9",
    "evaluate.samples=2",
)  # fmt: skip
FOLDER = Path(tempfile.mkdtemp())


def run(*overrides):
    options = [option for override in (*OVERRIDES, *overrides) for option in ("-s", override)]
    return _call("run", "zoo:base.toml", "--profile", "smoke", "--runs", FOLDER, "--device", "cuda", *options)


def run_in_fp16():
    return run("compute.precision=fp16")


def run_compiled():
    return run("compute.compile=true", "train.images=8")


def stopped():
    """Run until a signal arrives in the sixteenth step."""
    train_step = loop.train_step

    def interrupt(step_function, engine, batches, step, *rest):
        if step == 15:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(step_function, engine, batches, step, *rest)

    loop.train_step = interrupt
    try:
        return run("train.images=32")
    finally:
        loop.train_step = train_step


def resumed():
    return run("train.images=32")


def evaluated():
    return _call("evaluate", _run_folder(), "--device", "cuda", "--metric", "l1")


def translated():
    [image, *_] = sorted(_run_folder().rglob("*.png"))
    return _call("translate", _run_folder(), image, "-o", FOLDER / "translated", "--device", "cuda")


def _run_folder():
    return next(file.parent for file in FOLDER.glob("*/*/results.json"))


def _call(*arguments):
    with counting() as counted:
        result = CliRunner().invoke(main, [*map(str, arguments)])
    folder = max(FOLDER.glob("*/*/env.json"), key=os.path.getmtime).parent
    return {
        "exit_code": result.exit_code,
        "output": result.output,
        "counted": counted,
        "env": json.loads((folder / "env.json").read_text()),
        "logged": [json.loads(line)["images"] for line in (folder / "metrics.jsonl").read_text().splitlines()],
        "files": [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()],
    }


if __name__ == "__main__":
    scenarios = (run, run_in_fp16, stopped, resumed, evaluated, translated)
    try:
        print_results({function.__name__: function for function in scenarios}, alone={"run_compiled": run_compiled})
    finally:
        shutil.rmtree(FOLDER)
