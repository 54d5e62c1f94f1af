"""Whole runs with `--device cuda`, by the command line."""

import ast
import json

import pytest

STEPS, WARMUP = 40, 3


@pytest.fixture(scope="module")
def plain(on_null_gpu, tiny, tmp_path_factory):
    """(process, run folder, counters) of the tiny recipe on the null GPU."""
    runs = tmp_path_factory.mktemp("runs")
    arguments = ["p2pzoo", "--debug", "run", tiny, "--profile", "smoke", "--runs", runs, "--device", "cuda"]
    process = on_null_gpu(*arguments, NULL_REPORT="1")
    assert process.returncode == 0, process.stderr
    [folder] = [file.parent for file in runs.glob("*/*/model.safetensors")]
    return process, folder, ast.literal_eval(process.stderr.splitlines()[-1])


def test_a_run_records_its_step_once_and_replays_it_to_the_end(plain):
    process, folder, counted = plain
    assert counted["captures"] == 1
    assert counted["graph_launches"] == STEPS - WARMUP
    assert "without a CUDA graph" not in process.stderr
    env = json.loads((folder / "env.json").read_text())
    assert {"cuda_graphs", "prefetch", "fused_adam", "channels_last"} <= {*env["on"]}
    assert (env["device"], env["gpu"], env["precision"]) == ("cuda", "Null GPU", "bf16")
