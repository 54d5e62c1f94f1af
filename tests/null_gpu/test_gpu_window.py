"""The window on a GPU (benchmarks/gpu_window.py) on a device that computes nothing: every stage ends as it must."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from null_gpu import run

ROOT = Path(__file__).parents[2]
# Python imports a module of this name in every process: stages and their children patch torch when they import it
SITECUSTOMIZE = """
import importlib.util
import sys


class PatchTorch:
    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        load = spec.loader.exec_module

        def load_and_patch(module):
            load(module)
            from null_gpu.run import patch_torch

            patch_torch()

        spec.loader.exec_module = load_and_patch
        return spec


sys.meta_path.insert(0, PatchTorch())
"""


@pytest.mark.slow
def test_every_stage_of_the_window_ends_on_a_gpu(built, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    paths = [str(tmp_path), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    out = tmp_path / "window"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu_window.py", "--rehearse", "--seconds", "1700", "--out", out],
        env=os.environ | run.environment(built) | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    records = {
        record["stage"]: record for record in (json.loads(file.read_text("utf-8")) for file in out.glob("*.json"))
    }
    assert {record["status"] for record in records.values()} == {"ok"}
    assert records["inventory"]["results"]["device"]["computes"] is False
    checks = {check["check"]: check["passed"] for record in records.values() for check in record["checks"]}
    for happened in (
        "bf16, deterministic: a graph was recorded", "the recording was tried", "one warning gives the reason",
        "a later recording works", "compile: both were compiled", "fp16: SIGTERM stops the run",
        "every run is complete",
    ):  # fmt: skip
        assert checks[happened] is True
    assert checks["bf16, deterministic: graph and eager are equal to the bit"] is None
    contestants = records["speed_256_1"]["results"]["contestants"]
    assert "cuda_graphs" in contestants["p2pzoo"]["on"]
    assert contestants["p2pzoo"]["waits"] < contestants["classic, best switches"]["waits"]
    assert records["kernels"]["results"]["replay"]["replays"] > 0
    assert all("cuda_graphs" in run["facts"]["on"] for run in records["training"]["results"]["runs"].values())
