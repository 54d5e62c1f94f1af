"""The benchmarks run at a small size; the measured values are not tested."""

import importlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from click.testing import CliRunner
from p2pzoo_bench.stored_results import FinishedRun
from p2pzoo_earth.dataset import Earth
from PIL import Image

from p2pzoo import config
from p2pzoo.models.safetensors_io import save_tensors
from p2pzoo.runs.results import read_results, write_results

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(name, *arguments):
    command = [sys.executable, BENCHMARKS / f"{name}.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture
def load(monkeypatch):
    """load("drift"): the module of a benchmark, in this process."""
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    torch.set_num_threads(threads)


# run by a fork in place of `python SCRIPT ARGUMENTS`; answers are lines of stdout, which is stderr too
SCRIPT = """
import os, runpy, sys
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def run_here(load):
    """run_here("drift", …): run a benchmark in this process, whose imports are done. Returns the result of click."""

    def run_here(name, *arguments):
        with mock.patch.dict(os.environ):
            return CliRunner().invoke(load(name).main, [*map(str, arguments)], catch_exceptions=False)

    return run_here


@pytest.fixture
def run_forked(run_here, load, fork, monkeypatch):
    """As `run_here`; and its contestants are forks."""

    def fork_script(command, **_):
        process = fork(*command[1:], code=SCRIPT)
        process.args = command
        return process

    monkeypatch.setattr(load("measure"), "subprocess", SimpleNamespace(Popen=fork_script, PIPE=None))
    return run_here


@pytest.mark.slow
def test_translate_folder_compares_speed_and_pixels_of_three_contestants(tmp_path, run_forked):
    small = ["--images", 3, "--size", 64, "--width", 4, "--rounds", 1]
    done = run_forked("translate_folder", *small, "-o", tmp_path / "result.json")
    assert done.exit_code == 0, done.output
    assert "| p2pzoo |" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["images"], result["size"], result["width"]) == (3, 64, 4)
    assert result["contestants"].keys() == {"baseline", "ours", "bf16"}
    seconds = {name: each["seconds"]["median"] for name, each in result["contestants"].items()}
    for name, each in result["contestants"].items():
        assert each["ratio"]["median"] == pytest.approx(seconds["baseline"] / seconds[name], rel=0.1)
        assert each["difference"]["largest"] <= (1 if name == "ours" else 8), "the same images up to rounding"
    assert result["contestants"]["bf16"]["difference"]["mean"] > 0, "another precision"


@pytest.mark.slow
def test_startup_times_a_run_and_a_translation_and_their_rows_are_in_the_table(tmp_path, load, monkeypatch):
    small = ["--profile", "smoke", "-s", "generator.width=4", "-s", "discriminator.width=4", "--rounds", 1]
    done = run("startup", *small, "-o", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    assert "translation after imports" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["after_imports"]) == {"first_step", "translation"}
    assert all(each["spread"][0] > 0 for each in result["after_imports"].values())
    assert result["seconds"]["first_step"]["median"] >= result["seconds"]["begun"]["median"] > 0

    write_readmes = load("write_readmes")
    monkeypatch.setattr(write_readmes, "result", lambda name: result)
    assert "the first file of `p2pzoo translate`, from the end of the imports on" in write_readmes.startup()
    del result["after_imports"]  # as in a file from before this measurement
    assert "from the end of the imports" not in write_readmes.startup()


@pytest.mark.slow
def test_startup_ends_with_the_message_of_a_command_that_fails(load):
    startup = load("startup")
    with pytest.raises(SystemExit, match=r"nowhere\.toml"):
        startup.time_command(["run", "nowhere.toml", "--runs"], startup.RUN_FILES, startup.RUN_IMPORTS)


@pytest.mark.slow
def test_data_loading_compares_every_kind_of_store_with_the_classic_way(tmp_path, run_forked):
    small = ["--pairs", 4, "--size", 32, "--rounds", 2]
    done = run_forked("data_loading", *small, "-o", tmp_path / "result.json")
    assert done.exit_code == 0, done.output
    assert "| p2pzoo, later epochs, in memory |" in done.stdout
    assert "Without enlargement pixels differ by 0 levels" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["pairs"], result["size"]) == (4, 32)
    contestants = result["contestants"]
    assert contestants.keys() == {"classic", "workers", "first", "memory", "prepare", "disk", "stream"}
    assert all(each["pairs_per_second"]["rounds"] == 2 for each in contestants.values())
    assert contestants["classic"]["ratio"]["spread"] == [1, 1]
    assert result["pixels"]["same resize"] == {"share": 0, "largest": 0}
    assert result["pixels"]["enlarged"]["largest"] <= 2, "two ways to round the same kernel"


def test_an_impossible_size_is_an_error_in_one_line(load):
    small = ["--images", "1", "--size", "50", "--width", "4"]
    done = CliRunner().invoke(load("translate_folder").main, small)
    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert line.endswith("the nearest that fit: 48×48 or 52×52")


@pytest.mark.slow
def test_drift_reports_ours_and_a_harmless_reordering(tmp_path, run_here, load):
    done = run_here("drift", "--size", 64, "--width", 4, "--steps", 3, "--json", "-o", tmp_path / "kept" / "drift.json")
    assert done.exit_code == 0, done.output
    [line] = done.stdout.splitlines()
    report = json.loads(line)
    assert json.loads((tmp_path / "kept" / "drift.json").read_text()) == report
    assert (report["size"], report["width"], report["steps"]) == (64, 4, 3)
    for name in ("p2pzoo", "channels-last"):
        assert 0 < report[name]["weights"] < 1e-3
        assert 0 < report[name]["losses"] < 1e-3
    table = CliRunner().invoke(load("drift").main, ["--size", "64", "--width", "4", "--steps", "1"]).output
    assert "| p2pzoo |" in table


@pytest.mark.slow
def test_train_step_compares_both_and_records_the_scale(tmp_path, run_forked):
    small = ["--size", 32, "--width", 4, "--batch", 2, "--rounds", 1, "--steps", 1, "--without", "lowering"]
    done = run_forked("train_step", *small, "--precision", "bf16", "-o", tmp_path / "result.json")
    assert done.exit_code == 0, done.output
    assert "p2pzoo in bf16 is " in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["size"], result["width"], result["batch"], result["precision"]) == (32, 4, 2, "bf16")
    times = result["milliseconds"]
    assert times.keys() == {"baseline", "ours", "without lowering"}
    assert result["ratio"]["median"] == pytest.approx(times["baseline"] / times["ours"], rel=0.05)
    assert f"together {result['share_of_floor']:.0%} of p2pzoo's time" in done.stdout
    floor = result["floor"]["milliseconds"]
    assert result["share_of_floor"] == pytest.approx((floor["arithmetic"] + floor["memory"]) / times["ours"], abs=1e-3)


def test_the_floor_of_a_step_counts_its_arithmetic_and_the_bytes_it_moves(load):
    """Two layers of one 3×3 kernel each on 8×8 images: the second is called twice, as D is."""
    roofline = load("roofline")
    first, second = torch.nn.Conv2d(2, 4, 3, padding=1, bias=False), torch.nn.Conv2d(4, 4, 3, padding=1)

    def step():
        y = first(torch.zeros(1, 2, 8, 8))
        (second(y) + second(y.detach())).sum().backward()

    counted = roofline.count({"G": first, "D": second}, step)
    flop_first, flop_second = 2 * 64 * 9 * 2 * 4, 2 * 64 * 9 * 4 * 4
    assert counted == {
        # forward and weight gradient of all; input gradient of the second in its first call only
        "flop": 2 * flop_first + (2 + 1 + 2) * flop_second,
        "weights": 72 + 148,
        "weight_uses": 72 + 2 * 148,
        "activations": 3 * 64 * 4,
    }
    fp32, bf16 = (roofline.traffic(counted, precision) for precision in ("fp32", "bf16"))
    assert fp32 == {"weights": (72 + 296) * 8 + 220 * 4, "optimizer": 220 * 28, "activations": 768 * 20}
    assert bf16 == {"weights": (72 + 296) * 10 + 220 * 8, "optimizer": 220 * 28, "activations": 768 * 10}


def test_training_time_of_a_busy_machine_is_not_copied(tmp_path, load):
    def keep_runs(*arguments):
        return CliRunner().invoke(load("keep_runs").main, [*map(str, arguments)])

    run_folder = tmp_path / "runs" / "mine" / "laptop-seed0-abc"
    (run_folder / "samples").mkdir(parents=True)
    for name in ("recipe.toml", "model.safetensors"):
        (run_folder / name).write_bytes(b"{}")
    facts = {
        "id": "abc",
        "recipe": "mine",
        "profile": "laptop",
        "seed": 0,
        "metrics": {},
        "measured": {},
        "protocols": {},
    }
    timing = {"translations": {}, "milliseconds": 9.5, "device": "cpu", "threads": 1}
    write_results(run_folder / "results.json", facts | {"timings": [timing]})
    save_tensors(run_folder / "stats.safetensors", {}, {"ids": [], "blocks": []})
    (run_folder / "env.json").write_text('{"threads": 1, "training": {"seconds": 9.5, "peak_megabytes": 700}}')
    Image.new("RGB", (8, 8)).save(run_folder / "samples" / "test.png")
    for options, training in (((), {"seconds": 9.5, "peak_megabytes": 700}), (("--busy",), {"peak_megabytes": 700})):
        done = keep_runs(run_folder, "--to", tmp_path / "results", *options)
        assert done.exit_code == 0, done.output
        copied = tmp_path / "results" / "mine-laptop-seed0-abc"
        assert json.loads((copied / "env.json").read_text()) == {"threads": 1, "training": training}
        assert read_results(copied / "results.json") == (facts if options else facts | {"timings": [timing]})
        assert {file.name for file in copied.iterdir()} == {
            "results.json", "stats.safetensors", "recipe.toml", "env.json", "samples.webp"
        }  # fmt: skip
    (run_folder / "results.json").unlink()
    done = keep_runs(run_folder, "--to", tmp_path / "results")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "lacks results.json" in done.stderr


def test_statistics_are_kept_small_and_those_of_the_photos_once(tmp_path, load):
    generator = torch.Generator().manual_seed(0)

    def write(recipe, y_hat, ids=("a", "b"), name="laptop-1"):
        folder = tmp_path / "runs" / recipe / name
        folder.mkdir(parents=True)
        tensors = {
            "hist.y": torch.randint(0, 16384, (2, 500), generator=torch.Generator().manual_seed(1)).float(),
            "hist@10.y": torch.randint(0, 16384, (2, 500), generator=torch.Generator().manual_seed(1)).float(),
            "hist.y_hat": y_hat, "fcn.confusion": torch.arange(18).reshape(2, 3, 3) * 100,
            "kid.features": torch.rand(2, 1280, generator=generator), "l1.l1": torch.rand(2, generator=generator),
        }  # fmt: skip
        save_tensors(folder / "stats.safetensors", tensors, {"ids": [*ids], "blocks": ["x", None]})
        for file in ("results.json", "env.json"):
            (folder / file).write_text("{}")
        return folder, tensors

    def integers():
        return torch.randint(0, 16384, (2, 500), generator=generator).float()

    photos, mine, other = (
        write("target", integers()), write("mine", integers()), write("other", integers(), ids=("c", "d"))
    )  # fmt: skip

    def keep(*arguments):
        options = ("--to", tmp_path / "kept", "--without", "kid")
        done = CliRunner().invoke(load("keep_runs").main, [*map(str, (*arguments, *options))], catch_exceptions=False)
        assert done.exit_code == 0, done.output

    keep(photos[0], mine[0], other[0])
    for name, (_, tensors) in {"mine-laptop-1": mine, "other-laptop-1": other}.items():
        read, header = FinishedRun(tmp_path / "kept" / name).stats
        assert read.keys() == tensors.keys() - {"kid.features"}
        for key, tensor in read.items():
            assert tensor.dtype == tensors[key].dtype
            assert torch.equal(tensor, tensors[key])
        assert header["blocks"] == ["x", None]
    sizes = [
        (tmp_path / "kept" / name / "stats.safetensors").stat().st_size for name in ("mine-laptop-1", "other-laptop-1")
    ]
    assert sizes[0] + 3500 < sizes[1] < 8000  # 2 bytes for each count; both of the photos are in the target's file

    blurred = write("target", integers(), name="laptop-2")[0]
    keep(blurred, photos[0])  # kept a second time: neither leaves it to the other
    for each in ("target-laptop-1", "target-laptop-2", "mine-laptop-1"):
        assert torch.equal(FinishedRun(tmp_path / "kept" / each).stats[0]["hist.y"], mine[1]["hist.y"])
    keep(mine[0], "--final")
    assert FinishedRun(tmp_path / "kept" / "mine-laptop-1").stats[0].keys() == mine[1].keys() - {
        "kid.features", "hist@10.y"
    }  # fmt: skip


TABLE = """
title = "Two rows"
baseline = "single"
[columns]
"l1" = "L1"
[rows.single]
recipe = "zoo:ablation_l1.toml"
label = "one image per step"
[rows.ten]
recipe = "zoo:ablation_unet_l1.toml"
label = "ten images per step"
"""


@pytest.mark.slow
def test_row_seconds_compares_each_training_with_that_of_the_baseline(tmp_path, run_forked):
    (tmp_path / "two.toml").write_text(TABLE)
    quick = ["--profile", "smoke", "--rounds", 1, "--steps", 1]
    done = run_forked("row_seconds", tmp_path / "two.toml", *quick, "-o", tmp_path / "result.json")
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert {name: row["steps"] for name, row in rows.items()} == {"single": 20, "ten": 2}
    assert rows["single"]["times"]["median"] == 1
    per_image = {name: row["milliseconds"]["median"] / row["batch"] for name, row in rows.items()}
    assert rows["ten"]["times"]["median"] == pytest.approx(per_image["ten"] / per_image["single"], abs=0.002)
    for row in rows.values():
        assert row["seconds"] == pytest.approx(row["steps"] * row["milliseconds"]["median"] / 1e3, abs=0.5)
        assert row["label"] in done.stdout


@pytest.mark.slow
def test_scaling_fits_a_slope_to_every_series_and_plots_it(tmp_path, load):
    done = run("scaling", "--quick", "--series", "batch", "-o", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    batch = result["series"]["batch"]
    assert (batch["values"], batch["base"]) == ([1, 2], {"size": 64, "width": 8, "pairs": 16})
    first, last = (each["median"] for each in batch["milliseconds"])
    growth = math.log(last / first) / math.log(batch["counted"][1] / batch["counted"][0])
    assert batch["slope"]["milliseconds"]["median"] == pytest.approx(growth, abs=0.01)
    assert min(batch["peak_megabytes"]) > 0
    assert batch["unit"] in (tmp_path / "result.svg").read_text()
    result["series"]["pairs"] = batch | {"unit": "pairs of the dataset"}
    plot = tmp_path / "two.svg"
    load("scaling").plot(result, plot)
    assert all(unit in plot.read_text() for unit in (batch["unit"], "pairs of the dataset", "start-up in s"))
    assert plot.stat().st_size < 100_000


def test_an_exact_deformation_has_no_error_and_none_has_that_of_the_warp(load, monkeypatch, tmp_path):
    module = load("recovered_warp")
    data = Earth("train", size=64, stride=256, warp=2)
    (tmp_path / "recipe.toml").write_text(
        'extends = "zoo:base.toml"\n[dataset]\nsize = 64\nstride = 256\nwarp = 2\n', "utf-8"
    )
    places = iter(range(0, 2 * len(data)))

    def displacement(y_hat, y):
        index = next(places)
        exact = index < len(data)
        return torch.from_numpy(data.displacement(index % len(data)) * exact)[None]

    monkeypatch.setattr(module, "load_registration", lambda run: SimpleNamespace(displacement=displacement))
    monkeypatch.setattr(module.p2pzoo, "load", lambda run: SimpleNamespace(translate=lambda x: x))
    exact, none = (module.compare(tmp_path, len(data)) for _ in range(2))
    assert exact["field"] == pytest.approx(2.0, abs=1e-5)
    assert exact["error"] == 0
    assert none["error"] == none["field"]


def test_the_sources_of_uncertainty_keep_an_average_and_its_folds_can_promise_more_than_all(load):
    uncertainty = load("uncertainty")
    for source in uncertainty.SOURCES.values():  # a run whose own weights are an average keeps no other one
        assert config.load(source["recipe"], "laptop", uncertainty.SETTINGS).train.ema == 0
    for fold in uncertainty.FOLDS:
        dataset = Earth("val", size=64, fold=fold)
        blocks = len({dataset[index].block for index in range(len(dataset))})
        assert (blocks + 1) * (1 - uncertainty.LEVEL) > 1.5  # blocks that may be uncovered, and one


@pytest.mark.slow
def test_uncertainty_measures_coverage_on_every_fold_and_goes_on(tmp_path, run_here, load, monkeypatch):
    uncertainty = load("uncertainty")
    monkeypatch.setattr(uncertainty, "SOURCES", {"quantiles": uncertainty.SOURCES["quantiles"]})
    small = ["--runs", tmp_path / "runs", "--profile", "smoke", "--folds", 3, "--images", 4, "--jobs", 1]
    options = [*small, "-s", "compute.precision=fp32", "-o", tmp_path / "result.json"]
    done = run_here("uncertainty", *options)
    assert done.exit_code == 0, done.output
    [row] = json.loads((tmp_path / "result.json").read_text())["rows"].values()
    assert [fold["fold"] for fold in row["folds"]] == [0, 1, 2]
    assert all(fold["blocks"] >= 7 for fold in row["folds"])
    assert all(0 < fold["interval-coverage"] <= 1 and fold["factor"] > 0 for fold in row["folds"])
    assert all(1 < fold["test_blocks"] <= fold["test_images"] for fold in row["folds"])
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").glob("*.json")}
    assert run_here("uncertainty", *options).output == done.output
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").glob("*.json")} == kept


def test_uncertainty_trains_each_setting_in_a_folder_of_its_own(load, monkeypatch, tmp_path):
    """So that a trial with fewer images does not stand in the way of the real runs."""
    uncertainty = load("uncertainty")

    def call(command, *options):
        if command == "run":
            [images] = [each for each in options if str(each).startswith("train.images=")]
            folder = options[options.index("--runs") + 1] / "base" / images
            folder.mkdir(parents=True)
            (folder / "results.json").write_text("{}")
        protocols = {"a": {"images": 10}}
        answer = {"factor": 1.0, "blocks": 7, "uncovered": 0.1, "metrics": {}, "protocols": protocols}
        return json.dumps(answer)

    monkeypatch.setattr(uncertainty, "call", call)
    monkeypatch.setattr(uncertainty, "count_blocks_and_pixels", lambda data: (4, {}))
    for images in (100, 7000):
        settings = (*uncertainty.SETTINGS, f"train.images={images}")
        assert uncertainty.measure_cell(tmp_path, "laptop", settings, "dropout", 0)["test_blocks"] == 4
    assert len([*tmp_path.glob("*.json")]) == 2


def test_the_table_of_uncertainty_has_the_interval_over_folds_and_the_lowest_class(load):
    """Folds count by their test blocks, and classes by their pixels."""

    def fold(covered, width, factor, blocks=5, classes=(), pixels=()):
        numbers = {f"interval-coverage.class.{name}": share for name, share in dict(classes).items()}
        own = {"interval-coverage": covered, "interval-coverage.width": width, "test_pixels": dict(pixels)}
        return {"test_images": 10, "test_blocks": blocks, "factor": factor, **own, **numbers}

    both = fold(0.85, 0.4, 2.0, classes={"sea": 0.5, "snow": 0.75}, pixels={"sea": 20, "snow": 7})
    last = fold(0.9, 0.5, 1.0, classes={"snow": 0.75}, pixels={"sea": 0, "snow": 2})
    folds = [fold(0.8, 0.3, 1.5, classes={"sea": 0.9}, pixels={"sea": 20, "snow": 0}), both, last]
    rows = {"one": {"label": "one source", "folds": folds}}
    table = load("uncertainty").table
    half = 4.302653 * 0.05 / 3**0.5
    assert table({"level": 0.8, "rows": rows}).splitlines()[-1] == (
        f"| one source | 0.850 [{0.85 - half:.3f}, {0.85 + half:.3f}] | 0.800 | sea: 0.700 | 0.400 | 1.00 to 2.00 |"
    )
    folds[0]["test_blocks"], folds[0]["test_pixels"]["sea"] = 10, 60
    row = table({"level": 0.8, "rows": rows}).splitlines()[-1]
    assert row.startswith("| one source | 0.838 [")
    assert "snow: 0.750" in row, "sea: (60 * 0.9 + 20 * 0.5) / 80 = 0.8"


def test_rows_are_ordered_by_their_mean_rank_and_then_by_kid(load):
    def row(label, kid, l1, **more):
        cells = {"kid_efficientnet_lite0": {"mean": kid}, "l1": {"mean": l1}}
        return {"name": label.lower(), "label": label, "cells": cells, **more}

    rank_rows = load("rank_rows")
    rows = [row("A", 0.3, 0.1), row("B", 0.1, 0.3), row("C", 0.1, 0.2), row("photos", 0.0, 0.0, target=True)]
    ranked = rank_rows.rank_rows({"baseline": "a", "rows": rows})
    assert [(label, mean) for label, mean, _ in ranked] == [("C", 1.75), ("A (baseline)", 2.0), ("B", 2.25)]
    with pytest.raises(rank_rows.click.ClickException, match="not measured: D"):
        rank_rows.rank_rows({"baseline": "a", "rows": [*rows, row("D", None, 0.1)]})


def test_a_page_shows_groups_ranks_and_claims_of_the_files_it_names(load, monkeypatch, tmp_path):
    pages = load("write_readmes")
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "speed")
    cells = {"kid_efficientnet_lite0": {"mean": 0.1}, "l1": {"mean": 0.2}}
    columns = [{"metric": metric, "heading": metric.upper(), "better": "lower"} for metric in cells]
    group = {"metric": "l1", "heading": "L1", "better": ["b"], "worse": [], "undecided": [], "no_verdict": {}}
    document = {
        "baseline": "a", "confidence": 0.95, "columns": columns, "folds": 3, "resampled": "regions",
        "rows": [{"name": name, "label": name.upper(), "cells": cells, "runs": [], "failed": None} for name in "ab"],
        "groups": [{**group, "expected_by_chance": 0.05, "primary": False}],
    }  # fmt: skip
    (tmp_path / "zoo.json").write_text(json.dumps(document))
    part = json.loads((BENCHMARKS / "results/claims.json").read_text())[0]["parts"][0] | {"paper": None}
    claim = {"id": "R0", "text": "B is better", "source": "", "verdict": "undecided", "reason": "", "described": False}
    rest = {"curves": None, "adjusted_p": 0.2, "p": 0.2, "parts": [part]}
    (tmp_path / "own_claims.json").write_text(json.dumps([claim | rest]))

    def shown(name):
        page = f"before\n<!-- table: {name} -->\nold\n<!-- end -->\nafter"
        return pages.rewritten(page)

    assert "| better, beyond chance | B |" in shown("groups-zoo")
    assert "| A (baseline) | 1.5 | 0.1000 | 0.2000 |" in shown("ranks-zoo")
    assert "(results/own_claims.svg)" in shown("claims-own_claims")
    assert "| R0 | B is better | – | per-pixel acc. +0.0" in shown("claims-own_claims")
    assert "B is better" in shown("verdicts-own_claims")


def test_runs_of_another_table_are_not_mixed_into_recovered_warps(load, tmp_path):
    recipe = 'extends = "zoo:modern/registration.toml"\nseed = {}\n[dataset]\nsize = 64\nfold = {}\nwarp = {}\n'
    runs = [tmp_path / name for name in "abc"]
    for number, run in enumerate(runs):
        run.mkdir()
        (run / "recipe.toml").write_text(recipe.format(number, number, number), "utf-8")
    module = load("recovered_warp")
    module.refuse_other_settings(tuple(runs))
    with (runs[2] / "recipe.toml").open("a", encoding="utf-8") as file:
        file.write("[discriminator]\nreceptive_field = 34\n")
    refused = CliRunner().invoke(module.main, [*map(str, runs)])
    assert refused.exit_code == 1
    assert re.search(r"/c: differs from .*/a in more than seed, fold and warp", refused.output)


def test_the_table_of_recovered_warps_has_a_line_for_each_warp(load):
    runs = [{"warp": warp, "field": 1.0, "error": error} for warp, error in ((2, 0.4), (0, 0.1), (2, 0.6))]
    lines = load("recovered_warp").table({"runs": runs}).splitlines()
    assert lines[2:] == ["| 0 px | 1 | 1.00 (1.00 to 1.00) | 0.10 (0.10 to 0.10) |",
                         "| 2 px | 2 | 1.00 (1.00 to 1.00) | 0.50 (0.40 to 0.60) |"]  # fmt: skip
