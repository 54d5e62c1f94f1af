"""The committed tables are those computed from the committed run folders."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.learning_curves import build_curve
from p2pzoo_bench.search import build_trials, choose_settings
from p2pzoo_bench.table_file import read_table

from p2pzoo import config
from p2pzoo.plugin.loader import registry

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CURVES = sorted(RESULTS.glob("*-curve-*.json"))
TABLES = sorted({*RESULTS.glob("*-*.json")} - {*CURVES})


def numbers(value, path=""):
    """(path, number) of every float in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from numbers(item, f"{path}.{key}")
    if isinstance(value, float):
        yield path, value


def without_floats(value):
    """The document with None in place of every float."""
    if isinstance(value, dict):
        return {key: without_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_floats(item) for item in value]
    return None if isinstance(value, float) else value


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_every_mean_and_interval_is_recomputed_from_the_runs(file, tmp_path):
    committed = json.loads(file.read_text("utf-8"))
    name, _, profile = file.stem.rpartition("-")
    seeds = max(len(row["runs"]) for row in committed["rows"])
    table = read_table(str(ROOT / "benchmarks" / f"{name}.toml"))
    if chosen := committed.get("search", {}).get("chosen"):  # a test of the search recomputes them from the trials
        rows = (replace(row, chosen=tuple(map(tuple, chosen.get(row.name, ())))) for row in table.rows)
        table = replace(table, rows=tuple(rows))
    bench = Bench(table, registry(), tmp_path, profile=profile, seeds=seeds)
    if bench.unavailable:
        pytest.skip("; ".join(bench.unavailable.values()))
    recomputed = json.loads(json.dumps(bench.compare({}).doc))
    left, right = (dict(numbers(doc)) for doc in (recomputed, committed))
    assert left == pytest.approx(right, rel=1e-9, abs=1e-12), "processors differ in the last digits of a KID's bounds"
    assert without_floats(recomputed) == without_floats(committed)
    assert not [*tmp_path.iterdir()], "all runs are read from benchmarks/results/"


@pytest.mark.parametrize("file", CURVES, ids=lambda file: file.stem)
def test_every_point_of_a_learning_curve_is_recomputed_from_the_runs(file, tmp_path):
    committed = json.loads(file.read_text("utf-8"))
    name, _, metric = file.stem.partition("-curve-")
    bench = Bench(read_table(str(ROOT / "benchmarks" / f"{name}.toml")), registry(), tmp_path)
    if bench.unavailable:
        pytest.skip("; ".join(bench.unavailable.values()))
    recomputed = build_curve(bench.compare({}, targets=False), metric)
    assert dict(numbers(recomputed)) == pytest.approx(dict(numbers(committed)), rel=1e-9, abs=1e-12)
    assert without_floats(recomputed) == without_floats(committed)
    assert all(len(point["values"]) >= 3 for row in recomputed["rows"] for point in row["points"])


def test_the_tables_in_the_readmes_are_those_of_the_results(monkeypatch):
    folder, before = ROOT / "benchmarks", {*sys.modules}
    monkeypatch.syspath_prepend(folder)  # its scripts import each other
    try:
        result = CliRunner().invoke(importlib.import_module("write_readmes").main, ["--check"])
        assert result.exit_code == 0, result.output
    finally:
        for name in sys.modules.keys() - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == folder:
                del sys.modules[name]  # such names as "faults" may mean something else to other tests


@pytest.mark.parametrize("name", ["methods", "zoo_equal_time", "search_best"])
def test_the_rows_of_a_table_at_equal_time_have_the_images_that_were_measured(name):
    measured = json.loads((RESULTS / "speed" / f"row_seconds-{name}.json").read_text())
    table = read_table(str(ROOT / "benchmarks" / f"{name}.toml"))
    assert {row.name for row in table.trained} >= measured["rows"].keys()
    for row in table.trained:
        if row.name in measured["rows"]:
            images = [override for override in row.overrides if override.startswith("train.images=")][-1]
            expected = measured["rows"][row.name]["images_in_the_time_of_the_baseline"]
            assert images == f"train.images={expected}", row.name


def test_the_trials_of_all_methods_have_the_same_learning_rates():
    rows = [row for row in read_table(str(ROOT / "benchmarks" / "methods.toml")).trained if row.trials]
    rates = {tuple(trial for trial in row.trials if len(trial) == 1)[:3] for row in rows}
    assert rates == {(("optimizer.lr=2e-4",), ("optimizer.lr=4e-4",), ("optimizer.lr=8e-4",))}


@pytest.mark.parametrize(("name", "suffix", "times"), [("methods_4x", "", 4), ("methods_last", "_last", 1)])
def test_tables_beside_that_of_methods_have_its_rows_and_trials(name, suffix, times):
    """So that they share its trials, and methods_last its runs too."""
    rows = {row.name: row for row in read_table(str(ROOT / "benchmarks" / "methods.toml")).trained}
    table = read_table(str(ROOT / "benchmarks" / f"{name}.toml"))

    def multiplied(override):
        key, _, value = override.partition("=")
        return f"{key}={int(value) * times}" if key == "train.images" else override

    assert table.trained
    for row in table.trained:
        original = rows[row.name.removesuffix(suffix)]
        assert row.overrides == tuple(map(multiplied, original.overrides))
        assert (row.recipe, row.trials) == (original.recipe, original.trials)
    methods = read_table(str(ROOT / "benchmarks" / "methods.toml"))
    assert (table.metrics, table.columns) == (methods.metrics, methods.columns)
    assert (table.search.metric, table.search.share * times) == (methods.search.metric, methods.search.share)


@pytest.mark.parametrize(
    "file", [file for file in TABLES if "search" in json.loads(file.read_text("utf-8"))], ids=lambda file: file.stem
)
def test_the_settings_of_a_table_are_the_best_of_its_committed_trials(file, tmp_path):
    committed = json.loads(file.read_text("utf-8"))
    name, _, profile = file.stem.rpartition("-")
    table = read_table(str(ROOT / "benchmarks" / f"{name}.toml"))

    def count_images(row):
        return config.load(row.recipe, profile, row.overrides).train.images_seen

    trials = Bench(build_trials(table, count_images), registry(), tmp_path, profile=profile)
    assert choose_settings(table, trials, {}).describe_search() == committed["search"]
