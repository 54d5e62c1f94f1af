"""`p2pzoo bench` trains missing runs once, resumes interrupted ones, and a run that fails does not stop the others."""

import contextlib
import functools
import json
import shutil
import signal
import time
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import p2pzoo_earth
import pytest
import tomli_w
from fault_injection import STEP, SimulatedKill, after, simulate_kill
from p2pzoo_bench import bench as bench_module
from p2pzoo_bench import executors
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.executors import Job, LocalExecutor
from p2pzoo_bench.formats import to_markdown
from p2pzoo_bench.table_file import read_table
from PIL import Image

from p2pzoo import config
from p2pzoo.models.safetensors_io import load_tensors, save_tensors
from p2pzoo.plugin.loader import registry
from p2pzoo.runs.run_folder import locate_run
from p2pzoo.utils.errors import UserError

RECIPE = """
extends = "{tiny}"
[train]
images = {images}
checkpoint_every = 4
"""

TABLE = """
title = "Losses"
source = "nobody"
baseline = "both"
[columns]
psnr = "PSNR"
l1 = "L1"
[rows.l1]
recipe = "l1.toml"
label = "L1 alone"
published = { psnr = 20 }
[rows.both]
recipe = "both.toml"
label = "L1 + cGAN"
[rows.photos]
target = true
label = "ground truth"
"""


def write_files(folder, tiny):
    """A table of two rows and the ground truth, and the recipes of its rows."""
    (folder / "both.toml").write_text(RECIPE.format(tiny=tiny, images=8))
    (folder / "l1.toml").write_text('extends = "both.toml"\ndrop = ["discriminator", "gan_loss"]\n')
    (folder / "table.toml").write_text(TABLE)


def place_of(file, line):
    """file:line of the line with this text."""
    return f"{file}:{file.read_text().splitlines().index(line) + 1}"


def read_models(runs):
    return {path.parent.name: path.read_bytes() for path in runs.glob("*/*/model.safetensors")}


def only(runs, row):
    [folder] = (runs / row).glob("smoke-seed0-*")
    return folder


@pytest.fixture
def files(tmp_path, tiny):
    write_files(tmp_path, tiny)
    return tmp_path


@pytest.fixture(scope="session")
def bench_in(run_cli):
    """bench_in(folder, "--seeds", 2, …) -> (the command's result, the table as JSON or None)."""

    def bench_in(folder, *options):
        out = folder / "out.json"
        out.unlink(missing_ok=True)
        written = () if "--dry-run" in options else ("-o", out)
        result = run_cli(
            "bench", folder / "table.toml", "--profile", "smoke", "--runs", folder / "runs", *written, *options
        )
        return result, json.loads(out.read_text()) if out.exists() else None

    return bench_in


@pytest.fixture
def bench(bench_in, files):
    """bench("--seeds", 2, …): the same in the test's own folder."""
    return functools.partial(bench_in, files)


@dataclass(frozen=True)
class Trained:
    """A table whose runs of seed 0 were trained in parallel. Those of seed 1 were there before."""

    folder: Path
    result: Any  # of the command
    doc: dict[str, Any]


@pytest.fixture(scope="module")
def shared_trained(run_cli, bench_in, tiny, tmp_path_factory):
    """A Trained. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    write_files(folder, tiny)
    for row in ("l1", "both"):
        options = ("--profile", "smoke", "--runs", folder / "runs", "--seed", "1")
        result = run_cli("run", folder / f"{row}.toml", *options)
        assert result.exit_code == 0, result.output
    return Trained(folder, *bench_in(folder, "--seeds", 2, "--jobs", 2))


@pytest.fixture
def trained(shared_trained, files):
    """The same, copied to the test's own folder."""
    shutil.copytree(shared_trained.folder / "runs", files / "runs")
    return shared_trained


@pytest.fixture
def begin(files, start):
    """begin(*options): `p2pzoo bench` of one seed of the table, in another process."""

    def begin(*options):
        arguments = ("--profile", "smoke", "--runs", files / "runs", "--seeds", "1")
        return start("-m", "p2pzoo", "bench", files / "table.toml", *arguments, *options)

    return begin


@pytest.mark.slow
def test_parallel_runs_are_bit_identical_to_single_ones(trained, files, run_cli):
    assert trained.result.exit_code == 0, trained.result.output
    assert "2 of 4 runs to train" in trained.result.output
    for row in ("l1", "both"):
        run_cli("run", files / f"{row}.toml", "--profile", "smoke", "--runs", files / "single")
    single, parallel = read_models(files / "single"), read_models(files / "runs")
    assert len(single) == 2
    assert len(parallel) == 4
    assert parallel | single == parallel
    for number, row in enumerate(("l1", "both")):
        metrics = json.loads((only(files / "single", row) / "results.json").read_text())["metrics"]
        cells = trained.doc["rows"][number]["cells"]
        assert {name: cell["values"][0] for name, cell in cells.items()} == {
            name: metrics[name]["value"] for name in ("psnr", "l1")
        }


@pytest.mark.slow
def test_the_second_call_trains_nothing_and_prints_the_same_table(trained, bench, files):
    l1, both, photos = trained.doc["rows"]
    assert [run["seed"] for run in l1["runs"]] == [0, 1]
    assert l1["cells"]["psnr"]["mean"] == pytest.approx(sum(l1["cells"]["psnr"]["values"]) / 2)
    assert l1["published"] == {"psnr": 20}
    assert photos["cells"]["l1"]["values"] == [0.0], "y is equal to itself"
    assert "difference" in l1["cells"]["psnr"]
    assert "difference" not in both["cells"]["psnr"], "a row does not differ from itself"
    assert l1["discriminator_parameters"] is None
    assert both["receptive_field"] == 16

    before = {file: file.stat().st_mtime_ns for file in (files / "runs").rglob("model.safetensors")}
    assert len(before) == 4
    result, again = bench("--seeds", 2)
    assert result.exit_code == 0
    assert "runs to train" not in result.output
    assert again == trained.doc
    assert before == {file: file.stat().st_mtime_ns for file in (files / "runs").rglob("model.safetensors")}


@pytest.mark.slow
def test_committed_results_beside_the_table_count(trained, bench, files):
    for run in (files / "runs").glob("*/smoke-*"):
        kept = files / "results" / f"{run.parent.name}-{run.name}"
        kept.mkdir(parents=True)
        for name in ("results.json", "env.json", "stats.safetensors"):
            shutil.copy(run / name, kept / name)
    shutil.rmtree(files / "runs")
    result, again = bench("--seeds", 2)
    assert result.exit_code == 0
    assert again == trained.doc
    assert not [*(files / "runs").rglob("model.safetensors")], "nothing was trained"


@pytest.mark.slow
def test_a_row_that_fails_does_not_stop_the_others_and_findings_of_the_monitor_are_printed(trained, bench, files):
    assert "L1 + cGAN, seed 0: " not in trained.result.output, "no finding"
    (files / "here.safetensors").write_bytes(b"no model")
    init = f'[init]\ngenerator = "{files}/here.safetensors"\n'
    (files / "broken.toml").write_text((files / "both.toml").read_text() + init)
    row = '[rows.broken]\nrecipe = "broken.toml"\nlabel = "No model"\n[rows.l1]'
    (files / "table.toml").write_text(TABLE.replace("[rows.l1]", row))
    with (files / "l1.toml").open("a") as recipe:
        recipe.write("[losses.l1]\nweight = 1e-9\n")
    result, doc = bench("--seeds", 1)
    assert result.exit_code == 1
    assert "2 of 3 runs to train" in result.output
    broken, l1, both, _ = doc["rows"]
    assert broken["cells"] == {}
    assert "here.safetensors" in broken["failed"]
    for row in (l1, both):
        assert row["failed"] is None
        assert row["cells"]["psnr"]["values"]
    assert "L1 alone, seed 0: Most of G's weights get no gradient (100% of them, at 8 images)" in result.output


@pytest.mark.slow
def test_an_interrupted_table_resumes(trained, bench, files, tiny, begin, wait_for):
    (files / "both.toml").write_text(RECIPE.format(tiny=tiny, images=120))
    (files / "l1.toml").write_text('extends = "both.toml"\ndrop = ["discriminator", "gan_loss"]\n[train]\nimages = 8\n')
    shutil.rmtree(files / "runs" / "both")
    process = begin()
    wait_for(lambda: [*(files / "runs").glob("both/*/checkpoints/*.safetensors")], process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGINT, output
    assert "the same command resumes from there" in output
    status = json.loads((only(files / "runs", "both") / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert 0 < status["images"] < 120
    result, doc = bench("--seeds", 1)
    assert result.exit_code == 0, result.output
    assert "1 of 2 runs to train" in result.output
    assert doc["rows"][1]["cells"]["psnr"]["values"]


@pytest.mark.slow
def test_a_signal_before_the_run_has_its_handler_stops_the_table(begin, wait_for):
    process = begin()

    def runs():
        with contextlib.suppress(OSError):  # another child process that has ended
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            return [child for child in children if b"\0run\0" in Path(f"/proc/{child}/cmdline").read_bytes()]

    wait_for(runs, process)
    time.sleep(0.2)  # it is still importing
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "failed" not in output


@pytest.mark.slow
def test_a_closed_terminal_stops_all_parallel_runs(files, tiny, begin, wait_for):
    (files / "both.toml").write_text(RECIPE.format(tiny=tiny, images=4000))
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, also by child processes
    try:
        process = begin("--jobs", "2")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(lambda: {path.parts[-4] for path in (files / "runs").glob("*/*/checkpoints/*")} >= {"l1", "both"}, process)
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGHUP, output
    states = [json.loads(path.read_text())["state"] for path in (files / "runs").glob("*/*/status.json")]
    assert states == ["interrupted", "interrupted"]


class EndlessProcess:
    """A process that never ends."""

    def __init__(self, command, *, env, **_):
        [recipe] = [part for part in command if str(part).endswith(".toml")]
        self.threads = tomllib.loads(recipe.read_text())["compute"]["threads"]
        self.gpu = env.get("CUDA_VISIBLE_DEVICES")

    def poll(self):
        return None


@pytest.mark.parametrize(("jobs", "cpus", "expected"), [(4, None, 1), (2, None, 3), (1, None, 0), (4, 2, 2)])
def test_parallel_runs_share_cores_and_take_gpus_in_turn(files, monkeypatch, jobs, cpus, expected):
    table = Bench(read_table(str(files / "table.toml")), registry(), files / "runs", profile="smoke", seeds=2)
    processes = []
    monkeypatch.setattr(
        executors.subprocess, "Popen", lambda *a, **k: processes.append(EndlessProcess(*a, **k)) or processes[-1]
    )
    monkeypatch.setattr(executors, "count_usable_cores", lambda: 6)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    executor = LocalExecutor(jobs, cpus)
    for cell in table.cells[:jobs]:
        experiment = replace(cell.experiment, compute=replace(cell.experiment.compute, threads=0))
        assert executor.room()
        executor.begin(Job("", experiment, files / "runs"))
    assert not executor.room()
    assert [process.gpu for process in processes] == (["3", "5", "3", "5"][:jobs] if jobs > 1 else ["3,5"])
    assert {process.threads for process in processes} == {expected}


def test_a_recipe_that_sets_threads_gets_them(files):
    cell = Bench(read_table(str(files / "table.toml")), registry(), files / "runs", profile="smoke").cells[0]
    assert tomllib.loads(Job("", cell.experiment, files / "runs").recipe(3))["compute"]["threads"] == 1


def test_dry_run_prints_what_would_be_trained(bench, files):
    result, doc = bench("--seeds", 2, "--dry-run")
    assert result.exit_code == 0
    assert doc is None
    assert "L1 + cGAN, seed 1: 8 images" in result.output
    assert "4 of 4 runs are missing" in result.output
    assert not (files / "runs").exists()


def test_no_train_prints_the_rows_that_are_there(bench, files):
    result, doc = bench("--seeds", 1, "--no-train")
    assert result.exit_code == 0
    assert {row["failed"] for row in doc["rows"] if not row.get("target")} == {"not trained yet"}
    assert "| missing |" in to_markdown(doc)
    assert "failed" not in to_markdown(doc)
    assert [folder.name for folder in (files / "runs").iterdir()] == ["target"]


def test_all_reasons_of_missing_runs_are_notes_also_those_of_earlier_commands(bench, files):
    table = Bench(read_table(str(files / "table.toml")), registry(), files / "runs", profile="smoke", seeds=3)
    both = [cell.experiment for cell in table.cells if cell.row.name == "both"]
    for seed, message in ((0, "g_loss is nan at 4 images"), (2, None)):
        run = locate_run(both[seed], files / "runs")
        run.folder.mkdir(parents=True)
        run.set_status(state="failed")
        if message:
            run.append("findings.jsonl", [{"images": 4, "kind": "diverged", "message": message}])
    result, doc = bench("--seeds", 3, "--no-train")
    assert result.exit_code == 0
    assert doc["rows"][0]["failed"] == "not trained yet"
    assert doc["rows"][1]["failed"].split("; ")[:2] == ["g_loss is nan at 4 images", "not trained yet"]
    assert "its training failed" in doc["rows"][1]["failed"]


def test_a_dry_run_lists_every_row_and_estimates_the_time_of_missing_ones(bench, files, run_cli, monkeypatch):
    recipe = files / "both.toml"
    assert run_cli("run", recipe, "--profile", "smoke", "--runs", files / "runs", "--quiet").exit_code == 0
    environment = only(files / "runs", "both") / "env.json"
    environment.write_text(json.dumps({**json.loads(environment.read_text()), "training": {"seconds": 75 * 8}}))
    built = []
    build = bench_module.build_protocol
    monkeypatch.setattr(bench_module, "build_protocol", lambda *args: built.append(args[1]) or build(*args))
    result, _ = bench("--seeds", 3, "--dry-run")
    assert sorted(built) == ["l1", "psnr"]  # once for the whole table
    lines = result.output.splitlines()
    assert f"L1 + cGAN, seed 0: complete, {environment.parent}" in lines
    [seed_1] = [line for line in lines if line.startswith("L1 + cGAN, seed 1: ")]
    assert f"8 images (8 steps), about 10:00, {recipe}, id " in seed_1
    [unknown] = [line for line in lines if line.startswith("L1 alone, seed 0: ")]
    assert "about" not in unknown
    assert lines[-1] == "Losses, profile smoke: 5 of 6 runs are missing: 40 images"
    document = json.loads(bench("--seeds", 3, "--dry-run", "--json")[0].output)
    assert (document["missing"], document["seconds"]) == (5, None)
    assert [run["state"] for run in document["runs"]].count("complete") == 1


def test_a_wrong_recipe_is_reported_with_the_tables_line(bench, files):
    (files / "both.toml").write_text((files / "both.toml").read_text() + "imagse = 3\n")
    (files / "table.toml").write_text(TABLE.replace("l1.toml", "l2.toml").replace("published = { psnr = 20 }", ""))
    result, _ = bench("--dry-run")
    assert result.exit_code == 2
    first, second = result.output.splitlines()
    assert first.startswith(f"{files / 'table.toml'}:9  [rows.l1] ")
    assert "l2.toml: no such recipe" in first
    assert second.startswith(f"{files / 'table.toml'}:13  [rows.both] ")
    assert "both.toml:6  [train] has no parameter 'imagse': did you mean 'images'?" in second


def test_a_recipe_in_place_of_a_table_is_called_so(files, run_cli):
    result = run_cli("bench", files / "both.toml", "--dry-run")
    assert result.exit_code == 2
    assert f"{files / 'both.toml'}: is a recipe, not a table (it has extends): `p2pzoo run " in result.output


def test_an_override_applies_to_every_row(bench):
    result, _ = bench("--seeds", 1, "--dry-run", "-s", "train.images=2")
    assert result.output.count(": 2 images (2 steps)") == 2


def test_seeds_are_the_outermost_loop(files):
    table = Bench(read_table(str(files / "table.toml")), registry(), files / "runs", profile="smoke", seeds=2)
    assert [(cell.row.name, cell.experiment.seed) for cell in table.cells] == [
        ("l1", 0), ("both", 0), ("l1", 1), ("both", 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (('recipe = "l1.toml"', 'recipe = "l2.toml"'), "l2.toml: no such recipe"),
        (('psnr = "PSNR"', 'psmr = "PSNR"'), "column 'psmr': no row has this metric; they have l1, psnr"),
        (
            ('psnr = "PSNR"', '"psnr.poled" = "PSNR"'),
            "column 'psnr.poled': psnr has no such number: did you mean 'psnr.pooled'?",
        ),
        (("[columns]", '[metrics.m]\nuse = "nothing"\n[columns]'), "no metric 'nothing'"),
    ],
)
def test_faults_are_reported_before_training(bench, files, replacement, message):
    (files / "table.toml").write_text(TABLE.replace(*replacement).replace("published = { psnr = 20 }", ""))
    result, _ = bench()
    assert result.exit_code == 2
    assert message in result.output
    assert not (files / "runs").exists()


def test_a_metric_that_needs_what_the_data_lacks_is_refused_before_training(bench, files):
    for split in ("train", "val", "test"):
        (files / "pairs" / split).mkdir(parents=True)
        Image.new("RGB", (128, 64)).save(files / "pairs" / split / "a.png")
    data = f'[dataset]\nuse = "side-by-side"\nroot = "{files}/pairs"\nsize = [64, 64]\n'
    (files / "both.toml").write_text((files / "both.toml").read_text() + data)
    metric = '[metrics.fcn]\nuse = "fcn_score"\n[columns]\nfcn = "FCN"\n'
    (files / "table.toml").write_text(TABLE.replace("[columns]\n", metric))
    result, _ = bench()
    assert result.exit_code == 2
    assert (
        "[metrics.fcn] needs labels, which the dataset 'datasets:side-by-side' does not have: remove it"
        in result.output
    )
    where = place_of(files / "table.toml", 'recipe = "both.toml"')
    assert f"{where}  [rows.both] [metrics.fcn] needs labels" in result.output
    assert not (files / "runs").exists()


@pytest.mark.slow
def test_an_unavailable_metric_costs_only_its_column_and_names_the_missing_file(trained, bench, files):
    metric = '[metrics.fcn]\nuse = "fcn_score"\nweights = "none.safetensors"\n[columns]\nfcn = "FCN"\n'
    (files / "table.toml").write_text(TABLE.replace("[columns]\n", metric))
    result, doc = bench("--seeds", 1)
    assert result.exit_code == 0, result.output
    [fcn, psnr, _] = doc["columns"]
    assert "none.safetensors" in fcn["unavailable"]
    assert psnr["unavailable"] is None
    for row in doc["rows"]:
        assert "fcn" not in row["cells"]
        assert "psnr" in row["cells"]


def test_recipes_without_profiles_can_be_rows(bench, files):
    """For example, the resolved recipe of a finished run."""
    for name in ("l1", "both"):
        tree = config.load(str(files / f"{name}.toml"), "smoke").resolved()
        del tree["profile"]
        (files / f"{name}.toml").write_text(tomli_w.dumps(tree))
    table = Bench(read_table(str(files / "table.toml")), registry(), files / "runs", pick=lambda: "laptop")
    assert table.profile == "plain"
    assert len(table.missing()) == 2


def test_rows_that_mix_average_and_last_weights_are_refused_with_their_lines(bench, files):
    (files / "l1.toml").write_text((files / "l1.toml").read_text() + '[evaluate]\nweights = "average"\n')
    result, _ = bench()
    assert result.exit_code == 2
    where = place_of(files / "table.toml", 'recipe = "both.toml"')
    assert f"{where}  [rows.both] psnr has another protocol than in [rows.l1] (" in result.output
    assert "weights: last instead of average; name them in the rows' labels" in result.output


def test_rows_with_different_protocols_are_refused_before_training(bench, files):
    (files / "l1.toml").write_text((files / "l1.toml").read_text() + '[evaluate]\ntest_mode = "eval"\n')
    result, _ = bench()
    assert result.exit_code == 2
    lines = {name: place_of(files / "table.toml", f'recipe = "{name}.toml"') for name in ("l1", "both")}
    assert (
        f"{lines['both']}  [rows.both] psnr has another protocol than in [rows.l1] ({lines['l1']}): " in result.output
    )
    assert ": test_mode: paper instead of eval; test_batch: 1" in result.output
    assert not (files / "runs").exists()


@pytest.mark.parametrize("option", ["seed=3", " seed = 3"])
def test_a_seed_is_refused_as_an_override(bench, files, option):
    result, _ = bench("-s", option)
    assert (result.exit_code, "set how many with --seeds" in result.output) == (2, True)
    (files / "table.toml").write_text(TABLE.replace('label = "L1 alone"', f'set = ["{option}"]'))
    result, _ = bench()
    assert (result.exit_code, "[rows.l1] must not set the seed" in result.output) == (2, True)


@pytest.mark.parametrize(("options", "message"), [
    (("--format", "rich"), "rich is for a terminal"), (("--format", "svg"), "none of them draws"),
])  # fmt: skip
def test_an_impossible_format_is_refused_before_training(bench, files, options, message):
    result, _ = bench(*options)
    assert (result.exit_code, message in result.output) == (2, True)
    assert not (files / "runs").exists()


@pytest.mark.parametrize(("options", "message"), [
    (("--curve", "psnr", "-o", "t.tex"), "--curve psnr: no format latex; use one of rich, markdown"),
    (("--curve", "psmr", "-s", "evaluate.at=[2,4]"), "--curve psmr: no such curve: did you mean 'psnr'?"),
    (("--curve", "psmr.pooled", "-s", "evaluate.at=[2,4]"), "psmr.pooled: no such curve: did you mean 'psnr.pooled'?"),
    (("--curve", "psnr"), "--curve psnr: no such curve: no row has one; train with evaluate.at = [3500, 7000]"),
    (("--curve", "psnr", "--dry-run"), "train with evaluate.at = [3500, 7000]"),
    (("--curve", "psnr", "--column", "psnr"), "--column: --curve shows its own metric only: remove one of the two"),
])  # fmt: skip
def test_an_impossible_curve_is_refused_before_training(bench, files, options, message):
    result, _ = bench(*options)
    assert (result.exit_code, message in result.output) == (2, True), result.output
    assert not (files / "runs").exists()


def test_a_curve_of_runs_that_are_there_needs_no_further_training(bench, files, run_cli):
    for row in ("l1", "both"):
        options = ("--profile", "smoke", "--runs", files / "runs", "-s", "evaluate.at=[4]", "--quiet")
        assert run_cli("run", files / f"{row}.toml", *options).exit_code == 0
    result, doc = bench("--curve", "psnr", "--seeds", 1)
    assert result.exit_code == 0, result.output
    assert [[point["images"] for point in row["points"]] for row in doc["rows"]] == [[4, 8], [4, 8]]


@pytest.mark.parametrize("options", [("-o", "out.md"), ("--format", "csv")])
def test_a_dry_run_refuses_options_of_the_table(bench, files, options):
    result, _ = bench("--dry-run", *options)
    assert result.exit_code == 2
    assert f"{options[0]}: --dry-run prints what would be trained, and no table: remove one of the two" in result.output

    (files / "claims.toml").write_text('title = "T"\n[claims.P1]\n')
    (files / "table.toml").write_text((files / "claims.toml").read_text())
    assert f"{options[0]}: --dry-run prints" in bench("--dry-run", *options)[0].output


@pytest.mark.slow
def test_a_scorer_that_misreads_the_photos_costs_only_its_column(trained, bench, files):
    tensors, header = load_tensors(Path(p2pzoo_earth.__file__).with_name("scorer.safetensors"))
    save_tensors(files / "bad.safetensors", tensors, header | {"self_check": {"pixel_accuracy": 1.1}})
    metric = f'[metrics.fcn]\nuse = "fcn_score"\nweights = "{files}/bad.safetensors"\n[columns]\nfcn = "FCN"\n'
    (files / "table.toml").write_text(TABLE.replace("[columns]\n", metric))
    result, doc = bench("--seeds", 1)
    assert result.exit_code == 0, result.output
    assert "misreads the real photos" in doc["columns"][0]["unavailable"]
    for row in doc["rows"]:
        assert "fcn" not in row["cells"]
        assert "psnr" in row["cells"]


@pytest.mark.slow
def test_a_target_that_cannot_be_measured_does_not_stop_the_rows(trained, bench, files, monkeypatch):
    def broken(*_, **__):
        raise UserError("no photos")

    monkeypatch.setattr("p2pzoo_bench.bench.evaluate_target", broken)
    shutil.rmtree(files / "runs" / "target")
    result, doc = bench("--seeds", 1)
    assert result.exit_code == 0, result.output
    l1, _, photos = doc["rows"]
    assert (photos["cells"], photos["failed"]) == ({}, "no photos")
    assert l1["cells"]["psnr"]["values"]


@pytest.mark.slow
def test_a_stale_run_fails_and_accept_stale_resumes_it(trained, bench, files, run_cli):
    shutil.rmtree(files / "runs" / "l1")
    with after(STEP, simulate_kill, call=6), pytest.raises(SimulatedKill):
        run_cli("run", files / "l1.toml", "--profile", "smoke", "--runs", files / "runs")
    status = only(files / "runs", "l1") / "status.json"
    facts = json.loads(status.read_text())
    assert facts["images"] == 4, "a checkpoint is there"
    facts["sources"]["core"] = "another"
    status.write_text(json.dumps(facts))
    result, doc = bench("--seeds", 1, "-s", "metrics.l1.use=l1")
    assert result.exit_code == 1
    assert "core" in doc["rows"][0]["failed"]
    assert "--accept-stale" in doc["rows"][0]["failed"]
    result, doc = bench("--seeds", 1, "--accept-stale")
    assert result.exit_code == 0, result.output
    assert doc["rows"][0]["failed"] is None
    assert doc["rows"][0]["cells"]["psnr"]["values"] == trained.doc["rows"][0]["cells"]["psnr"]["values"][:1]


def test_an_unknown_ending_is_refused(run_cli, files):
    result = run_cli("bench", files / "table.toml", "-o", files / "table.docx")
    assert result.exit_code == 2
    assert "use one of .md, .csv, .json, .tex, .html, .svg" in result.output
