"""What is committed of the paper's tables comes from the run folders that are committed with it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.table_file import read_table

from p2pzoo.plugin.loader import registry

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TABLES = sorted(RESULTS.glob("*-*.json"))


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_every_mean_and_interval_is_recomputed_from_the_runs(file, tmp_path):
    committed = json.loads(file.read_text("utf-8"))
    name, _, profile = file.stem.rpartition("-")
    seeds = max(len(row["runs"]) for row in committed["rows"])
    bench = Bench(
        read_table(str(ROOT / "benchmarks" / f"{name}.toml")), registry(), tmp_path, profile=profile, seeds=seeds
    )
    if bench.unavailable:
        pytest.skip("; ".join(bench.unavailable.values()))
    assert json.loads(json.dumps(bench.compared({}).doc)) == committed
    assert not [*tmp_path.iterdir()], "all of it lies in benchmarks/results/"


def test_the_readmes_show_what_was_measured():
    told = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "write_readmes.py", "--check"], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stdout + told.stderr
