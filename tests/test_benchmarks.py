"""The benchmarks run, at a size that takes seconds; what they measure is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(name, *arguments):
    command = [sys.executable, BENCHMARKS / f"{name}.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_translate_folder_reports_both_contestants_and_where_it_ran():
    small = ["--images", 3, "--size", 64, "--width", 4, "--rounds", 1]
    done = run("translate_folder", *small, "--json")
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    report = json.loads(line)
    assert (report["images"], report["size"], report["width"], report["rounds"]) == (3, 64, 4, 1)
    for what in ("translate", "load_and_translate"):
        low, high = report[what]["ratio_range"]
        assert 0 < low <= report[what]["ratio"] <= high
    assert report["largest_difference"] <= 1, "both made the same pictures, rounding apart"
    assert report["megabytes"].keys() == {"classic", "ours"}
    assert report["env"]["threads"] >= 1

    page = run("translate_folder", *small).stdout
    assert "| load and translate |" in page


def test_a_size_that_makes_no_network_is_told_in_one_line():
    done = run("translate_folder", "--images", 1, "--size", 50, "--width", 4)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("the nearest that fit: 48×48 or 52×52")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_gpu_compares_what_it_says_though_only_cuda_shows_what_that_is_worth():
    quick = ["--device", "cpu", "--quick", "--rounds", 1, "--steps", 1, "--without", "one_pass"]
    done = run("gpu", *quick, "--json")
    assert done.returncode == 0, done.stderr
    [cell] = json.loads(done.stdout)["cells"]
    assert cell["lines"].keys() == {"p2pzoo", "baseline", "instance norm", "instance norm, without one_pass"}
    assert "one_pass" in cell["lines"]["instance norm"]["on"]
    assert "one_pass" not in cell["lines"]["instance norm, without one_pass"]["on"]
    assert cell["lines"]["baseline"]["ratio"]["median"] > 0


def test_gpu_says_in_one_line_that_it_needs_cuda(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = run("gpu")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "needs a CUDA device" in line
