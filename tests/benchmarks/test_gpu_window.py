"""The window on a GPU: its stages run at toy size, and what fails or hangs stops nothing else."""

import importlib
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STAGES = """
import json, subprocess, sys, time
from pathlib import Path
name, context = sys.argv[2], json.loads(sys.argv[4])
out = Path(context["out"])
if name == "hangs":
    (out / "hangs.json").write_text(json.dumps({"stage": "hangs", "checks": [], "results": {"first": 1}}))
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (out / "child").write_text(str(child.pid))
    time.sleep(60)
if name == "fails":
    print("before", file=sys.stderr)
    raise ValueError("this stage is broken")
if name == "beside":
    time.sleep(60)
(out / f"{name}.json").write_text(json.dumps({"stage": name, "checks": [], "results": {"until": context["until"]}}))
"""


@pytest.fixture
def load(monkeypatch):
    """load("driver"): a module of benchmarks/window, in this process."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return lambda name: importlib.import_module(f"window.{name}")


@pytest.fixture
def context(load, tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    return load("context").Context(out, work, "cpu", False, True, time.time() + 60)


def assert_ends(pid):
    """Fail if this process still runs in ten seconds; one that nobody has waited for has ended too."""
    end = time.monotonic() + 10
    status = Path(f"/proc/{pid}/stat")
    while status.exists() and ") Z " not in status.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)


def run(*arguments, **variables):
    command = [sys.executable, BENCHMARKS / "gpu_window.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1500, env=os.environ | variables)


@pytest.mark.slow
def test_a_rehearsal_runs_every_stage_and_all_checks_pass(load, tmp_path):
    out = tmp_path / "window"
    done = run("--rehearse", "--seconds", 1400, "--out", out, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr + done.stdout
    stages = ["inventory", *(stage.name for stage in load("driver").select((), load("plan").TOY))]
    assert {"references", "combinations", "captures", "graphs", "resume", "speed_256_1", "kernels"} <= {*stages}
    records = {name: json.loads((out / f"{name}.json").read_text("utf-8")) for name in stages}
    assert {name: record["status"] for name, record in records.items()} == dict.fromkeys(stages, "ok")
    for name, record in records.items():
        assert record["rehearsal"]
        assert record["seed"] == 0
        assert record["environment"]["torch"] == version("torch")
        assert all(check["passed"] for check in record["checks"]), (name, record["checks"])
    assert {"combinations", "graphs", "captures", "resume", "training", "speed_256_1"} <= {
        name for name, record in records.items() if record["checks"]
    }
    runs = records["training"]["results"]["runs"]
    assert {len(each["milestones"]) for each in runs.values()} == {4}
    assert done.stdout == (out / "summary.md").read_text("utf-8")
    assert run("--summary", out).stdout == done.stdout
    for text in ("A rehearsal", "## Combinations", "equal to the bit", "## Speed", "| L1 + cGAN"):
        assert text in done.stdout
    assert sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) < 10e6


def test_without_a_gpu_and_without_rehearse_it_is_an_error(tmp_path):
    done = run("--out", tmp_path / "window", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "needs a CUDA device" in done.stderr.splitlines()[-1]


def test_results_are_not_mixed_with_those_of_another_window(tmp_path):
    (tmp_path / "inventory.json").write_text("{}")
    done = run("--out", tmp_path)
    assert done.returncode == 2
    assert "is not empty" in done.stderr.splitlines()[-1]


def test_a_stage_that_hangs_or_fails_stops_no_other(load, context, tmp_path):
    plan, driver = load("plan"), load("driver")
    script = tmp_path / "stages.py"
    script.write_text(STAGES)
    lines = []
    window = driver.Window(script, context, time.time() + plan.PACK_SECONDS + 30, lines.append)
    stages = [
        plan.Stage("beside", "", None, "", until="works"),
        *(
            plan.Stage(name, "", seconds, "")
            for name, seconds in (("hangs", 1.5), ("fails", 20), ("works", 20), ("rest", None))
        ),
    ]
    driver_names = dict.fromkeys(stage.name for stage in stages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "BY_NAME", driver_names)
        patch.setattr(driver, "GRACE", 0.2)
        window.run(stages)
    assert window.statuses == {
        "hangs": "timed out",
        "fails": "failed",
        "beside": "stopped",
        "works": "ok",
        "rest": "ok",
    }
    records = {name: json.loads((context.out / f"{name}.json").read_text("utf-8")) for name in driver_names}
    assert records["hangs"]["results"] == {"first": 1}, "what it had written is kept"
    assert records["fails"]["log"][-1] == "ValueError: this stage is broken"
    assert records["rest"]["results"]["until"] == pytest.approx(window.end - plan.PACK_SECONDS), "all that is left"
    assert_ends(int((context.out / "child").read_text()))
    assert [line.partition(":")[0] for line in lines] == ["hangs", "fails", "beside", "works", "rest"]


def test_a_stage_without_time_left_does_not_start(load, context, tmp_path):
    plan, driver = load("plan"), load("driver")
    window = driver.Window(tmp_path / "none.py", context, time.time() + plan.PACK_SECONDS, lambda _: None)
    window.run([plan.Stage("late", "", 10, "")])
    assert window.statuses == {"late": "no time left"}


def test_the_budgets_fit_into_the_window_and_leave_minutes_for_training(load):
    plan = load("plan")
    budgets = sum(stage.seconds for stage in plan.STAGES if stage.seconds)
    assert plan.SECONDS < 600
    assert plan.SECONDS - plan.PACK_SECONDS - budgets >= 180


def step(deviation):
    """Losses and Adam's state of a step; the state deviates by this share in one direction."""
    generator = torch.Generator().manual_seed(0)
    vectors = {
        f"{name}.{key}": torch.randn(1000, generator=generator) for name in "GD" for key in ("exp_avg", "exp_avg_sq")
    }
    noise = torch.randn(1000, generator=generator)
    return {"G.l1": 0.5}, {
        key: vector + deviation * vector.norm() / noise.norm() * noise for key, vector in vectors.items()
    }


@pytest.mark.parametrize(("rounding", "deviation", "passed"), [
    (1e-6, 0.5e-4, True), (1e-6, 2e-4, False), (1e-4, 2e-4, True), (1e-4, 6e-4, False),
])  # fmt: skip
def test_a_step_in_fp32_may_deviate_by_1e_4_or_by_a_multiple_of_the_rounding(
    load, context, rounding, deviation, passed
):
    save = importlib.import_module("p2pzoo.models.safetensors_io").save_tensors
    losses, vectors = step(0)
    header = {"losses": losses, "rounding": dict.fromkeys(vectors, rounding), "cosine": dict.fromkeys(vectors, 0.999)}
    save(context.work / "0.safetensors", vectors, header)
    record = load("context").Record("combinations", context)
    steps = {"fp32": step(deviation), "bf16": step(0.3)}
    load("combinations").compare("base", steps, context.work / "0.safetensors", record, {})
    outcomes = {check["check"]: check["passed"] for check in record.values["checks"]}
    assert outcomes == {"base, fp32": passed, "base, bf16": False}
    assert json.loads(record.file.read_text("utf-8"))["checks"] == record.values["checks"]


def test_numbers_of_a_device_that_computes_nothing_are_recorded_and_not_compared(load, context):
    record = load("context").Record("graphs", importlib.import_module("dataclasses").replace(context, computes=False))
    record.compare("equal to the bit", False, largest=float("inf"))
    record.check("a graph was recorded", False)
    assert json.loads(record.file.read_text("utf-8"))["checks"] == [
        {"check": "equal to the bit", "passed": None, "largest": "inf"},
        {"check": "a graph was recorded", "passed": False},
    ]


def test_the_difference_of_two_states_names_the_tensor_that_differs_most(load):
    difference = load("build").difference
    expected = {"a": torch.zeros(3), "b": torch.zeros(3)}
    assert difference(expected, expected)["different"] == 0
    found = difference({"a": torch.tensor([0, 1e-3, 0]), "b": torch.tensor([0, 0, 0.5])}, expected)
    assert found == {"tensors": 2, "different": 2, "largest": 0.5, "where": "b"}
    assert difference({"a": torch.zeros(3)}, expected)["different"] == 1
    assert difference({"a": torch.zeros(3), "b": torch.full((3,), torch.nan)}, expected)["where"] == "b"


def test_the_measured_rate_fixes_the_number_of_images(load, context):
    training = load("training")
    rates = {"together": [
        {"images_per_second": rate, "build_seconds": 2.0, "evaluation_seconds": 0.5} for rate in (50.0, 40.0)
    ] + [{"error": "ended"}]}  # fmt: skip
    images = training.choose_images(rates, 2, context)  # 40 images/s for 0.9 × 60 s / 2 runs less 2 + 8 × 0.5 s
    assert images == pytest.approx(40 * (0.9 * 60 / 2 - 6), abs=16)
    assert images % 8 == 0
    assert training.choose_images({"together": [{"error": "ended"}]}, 2, context) == 0


def test_a_summary_survives_missing_and_incomplete_stages(load, tmp_path):
    summary = load("summary")
    assert "| training | not run |" in summary.text(tmp_path)
    (tmp_path / "graphs.json").write_text(
        json.dumps({"stage": "graphs", "status": "timed out", "seconds": 3, "results": {"bf16": {}},
                    "checks": [{"check": "bf16: equal", "passed": False, "largest": 0.1}]})
    )  # fmt: skip
    text = summary.text(tmp_path)
    assert "| graphs | timed out | 3 | 40 | 0 of 1 |" in text
    assert "**bf16: equal**: {'largest': 0.1}" in text
    assert "incomplete (KeyError: 'graph')" in text


def test_a_summary_shows_numbers_that_are_not_finite(load, tmp_path):
    found = {"different": 3, "tensors": 9, "largest": "nan"}  # as a stage writes it
    results = {"a failed capture": {"against eager": found, "warnings": ["w"]}}
    (tmp_path / "captures.json").write_text(
        json.dumps({"stage": "captures", "status": "ok", "seconds": 3, "results": results, "checks": []})
    )
    text = load("summary").text(tmp_path)
    assert "| a failed capture | 3 of 9 tensors differ, by nan at most | w |" in text


def test_the_folder_is_made_small_enough(load, tmp_path, monkeypatch):
    summary = load("summary")
    monkeypatch.setattr(summary, "MAX_BYTES", 10_000)
    monkeypatch.setattr(summary, "MAX_LOG_BYTES", 100)
    for name, size in (("training/large.png", 20_000), ("training/small.png", 1_000), ("logs/graphs.log", 500)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"." * size)
    lines = []
    summary.pack(tmp_path, lines.append)
    assert {file.name for file in tmp_path.rglob("*.*")} == {"small.png", "graphs.log", "summary.md"}
    assert (tmp_path / "logs" / "graphs.log").stat().st_size < 200
    assert lines == ["training/large.png is deleted: the folder would have more than 0 MB"]


CONTESTANT = """
import json, sys, time
name = sys.argv[sys.argv.index("--name") + 1]
if name == "fails":
    sys.exit(3)
if name == "hangs":
    time.sleep(60)
print(json.dumps({"waits": 0.0}), flush=True)
for _ in sys.stdin:
    seconds = 0.2 if name == "p2pzoo" else 0.5
    print(json.dumps({"seconds": [seconds], "peak_bytes": 5e6, "waited": {"batches": 0.05}}), flush=True)
"""


@pytest.mark.slow
def test_a_contestant_that_fails_or_hangs_is_left_out(load, context, tmp_path, monkeypatch):
    speed, plan = load("speed"), load("plan")
    script = tmp_path / "contestants.py"
    script.write_text(CONTESTANT)
    monkeypatch.setattr(speed, "CONTESTANTS", script)
    monkeypatch.setattr(speed, "READY_SHARE", 0.08)  # of the 60 seconds of this context
    cell = plan.Cell(64, 8, 1, 10, 3, ("p2pzoo", "fails", "hangs", "slower"))
    monkeypatch.setitem(plan.FULL.cells, "speed_512_1", cell)
    record = load("context").Record("speed_512_1", context)
    speed.run(context, record)
    results = record.values["results"]
    assert results["left_out"].keys() == {"fails", "hangs"}
    assert results["left_out"]["fails"].startswith("failed (3)")
    assert results["left_out"]["hangs"] == "not ready in time"
    assert [check["passed"] for check in record.values["checks"]] == [False]
    slower = results["contestants"]["slower"]
    assert slower["milliseconds"] == 50  # 0.5 s for 10 steps
    assert slower["times_as_long"]["median"] == 2.5
    assert slower["share_of_time_waiting_for"] == {"batches": 0.1}
    assert len(slower["rounds"]) == 3


WORKER = """
import json, os, sys
for line in sys.stdin:
    request = json.loads(line)
    if request.get("seed") == 1:
        os._exit(4)
    if request["do"] == "train":
        print(json.dumps({"images": request["images"], "seconds": 1, "metrics": {"last": {"l1": 0.1}}}), flush=True)
    rates = {"images_per_second": 10.0, "build_seconds": 1.0, "evaluation_seconds": 0.1}
    print(json.dumps({"done": "complete", **rates}), flush=True)
"""


def test_a_worker_that_ends_takes_no_other_run_with_it(load, context, tmp_path, monkeypatch):
    training = load("training")
    script = tmp_path / "runs.py"
    script.write_text(WORKER)
    monkeypatch.setattr(training, "WORKER", script)
    record = load("context").Record("training", context)
    training.run(context, record)
    runs = record.values["results"]["runs"]
    assert len(runs) == 15
    assert {run["status"] for run in runs.values() if run["seed"] != 1} == {"complete"}
    assert all("ended with code 4" in run["status"] for run in runs.values() if run["seed"] == 1)
    assert [check["passed"] for check in record.values["checks"]] == [False]
    assert "| L1 + GAN |" in load("summary").training("training", record.values["results"])
