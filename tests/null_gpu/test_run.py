"""Whole commands with `--device cuda`: train, stop, resume, measure, translate; and a run of two processes."""

import ast
import contextlib
import re
import shutil
import socket

import pytest

SCRIPT = "run_scenarios.py"
WARMUP = 3  # steps that are not replayed


def test_a_run_records_its_step_once_and_replays_it_to_the_end(scenarios):
    result = scenarios(SCRIPT, "run")
    assert result["exit_code"] == 0, result["output"]
    assert "without a CUDA graph" not in result["output"]
    assert result["counted"]["captures"] == 1
    assert result["counted"]["graph_launches"] == 24 - WARMUP
    env = result["env"]
    assert (env["device"], env["gpu"], env["precision"]) == ("cuda", "Null GPU", "fp32"), "in TF32: few pixels"
    assert {"cuda_graphs", "prefetch", "fused_adam", "channels_last", "tf32"} <= {*env["on"]}
    assert {"model.safetensors", "results.json", "report.html", "samples/test.png"} <= {*result["files"]}
    assert result["logged"] == [*range(4, 25, 4)]


def test_a_run_in_fp16_is_recorded_too(scenarios):
    result = scenarios(SCRIPT, "run_in_fp16")
    assert result["exit_code"] == 0, result["output"]
    assert result["env"]["precision"] == "fp16"
    assert result["counted"]["graph_launches"] == 24 - WARMUP


@pytest.mark.slow
def test_compiled_networks_are_recorded_with_fewer_kernels(scenarios):
    """Inductor and Triton compile for the device in a minute, as on a real one."""
    if shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler, and g++ is not installed")
    result, plain = scenarios(SCRIPT, "run_compiled", alone=True), scenarios(SCRIPT, "run")
    assert result["exit_code"] == 0, result["output"]
    assert "training without" not in result["output"]
    assert {"compile", "cuda_graphs"} <= {*result["env"]["on"]}
    assert result["counted"]["graph_launches"] == 8 - WARMUP
    assert result["counted"]["captured"] < plain["counted"]["captured"]


def test_a_stopped_run_is_saved_and_resumes_with_a_graph_of_its_own(scenarios):
    stopped, resumed = scenarios(SCRIPT, "stopped"), scenarios(SCRIPT, "resumed")
    assert stopped["exit_code"] == 130, stopped["output"]
    assert stopped["counted"]["graph_launches"] == 16 - WARMUP
    assert "checkpoints/images-0000000016.safetensors" in stopped["files"]
    assert resumed["exit_code"] == 0, resumed["output"]
    assert "resuming" in resumed["output"]
    assert resumed["counted"]["captures"] == 1
    assert resumed["counted"]["graph_launches"] == 32 - 16 - WARMUP
    assert resumed["logged"] == [*range(4, 33, 4)]


@pytest.mark.parametrize("name", ["evaluated", "translated"])
def test_a_trained_model_is_used_on_the_device(name, scenarios):
    result = scenarios(SCRIPT, name)
    assert result["exit_code"] == 0, result["output"]
    assert result["counted"]["launches"] > 10


def test_two_processes_train_on_two_devices_and_exchange_gradients_without_a_graph(start_on_null_gpu, tiny, tmp_path):
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    processes = [
        start_on_null_gpu(
            "p2pzoo", "run", tiny, "--profile", "smoke", "--runs", tmp_path, "--device", "cuda",
            "-s", "train.batch_size=2", "-s", "train.images=8",
            NULL_GPUS="2", NULL_REPORT="1", WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", RANK=rank, LOCAL_RANK=rank,
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
        )
        for rank in "01"
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    counted = [ast.literal_eval(stderr.splitlines()[-1]) for _, stderr in outputs]
    assert counted[0]["collectives"] == counted[1]["collectives"] >= 2 * 4, "at least one per network and step"
    assert all(each["captures"] == 0 for each in counted)
    assert "training without a CUDA graph: several processes exchange gradients" in "".join(outputs[0])
    [rate] = re.findall(r"8/8 images +([0-9.]+) steps/s", outputs[0][1])
    assert float(rate) < 1000, "the losses of several steps are read at once, which does not make them fast"
    assert "training" not in "".join(outputs[1]), "only the first process prints"
