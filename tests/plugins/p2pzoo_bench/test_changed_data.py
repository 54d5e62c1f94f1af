"""Runs whose data changed: pairs move to other folds, so `p2pzoo bench` neither shows nor measures them unasked."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from noise_pairs import draw_pairs
from p2pzoo_bench import bench as bench_module
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.formats import to_markdown
from p2pzoo_bench.table_file import read_table
from PIL import Image

from p2pzoo import config
from p2pzoo.config.experiment import Component
from p2pzoo.plugin.loader import registry
from p2pzoo.runs.changed_data import DataFingerprints
from p2pzoo.runs.run_folder import Run
from p2pzoo.utils.errors import UserError

RECIPE = """
extends = "zoo:base.toml"
drop = ["metrics.ssim", "metrics.psnr", "discriminator", "gan_loss"]
[dataset]
use = "folders"
inputs = "a"
targets = "b"
size = [32, 32]
[generator]
width = 4
depth = 3
norm = "group"
noise = "none"
[train]
batch_size = 2
images = 2
log_every = 100
[compute]
device = "cpu"
"""
TABLE = """
folds = 3
set = ["dataset.folds=3"]
[columns]
l1 = "L1"
[rows.one]
recipe = "one.toml"
[rows.photos]
target = true
blur = 1.0
"""


def settings_of(fold):
    return ["dataset.folds=3", f"dataset.fold={fold}", f"seed={fold}"]


def load(fold):
    return config.load("one.toml", "smoke", settings_of(fold))


def split_of(fold, split):
    dataset = load(fold).dataset.build(split=split)
    return {dataset[index].id for index in range(len(dataset))}


def draw_over(folder):
    """Other images in the same files."""
    for number, file in enumerate(sorted((folder / "b").glob("*.png"))):
        Image.linear_gradient("L").resize((32, 32)).rotate(10 * number).convert("RGB").save(file)


def add_pair(folder):
    for side in "ab":
        Image.new("RGB", (32, 32)).save(folder / side / "036.png")


@pytest.fixture(scope="module")
def shared_trained(tmp_path_factory, run_cli):
    """A table with its three runs. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    draw_pairs(folder, 36, 32)
    (folder / "one.toml").write_text(RECIPE)
    (folder / "table.toml").write_text(TABLE)
    with contextlib.chdir(folder):  # so that run ids do not hold the folder, and the runs can be copied
        for fold in range(3):
            options = [part for setting in settings_of(fold) for part in ("-s", setting)]
            result = run_cli("run", "one.toml", "--profile", "smoke", *options)
            assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def trained(shared_trained, tmp_path, monkeypatch):
    """A copy of it, the current folder."""
    shutil.copytree(shared_trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bench(run_cli, trained):
    """bench(*options) -> (the command's result, the table as JSON or None)."""

    def bench(*options):
        (trained / "out.json").unlink(missing_ok=True)
        written = () if "--dry-run" in options else ("-o", "out.json")
        result = run_cli("bench", "table.toml", "--profile", "smoke", *written, *options)
        return result, json.loads((trained / "out.json").read_text()) if (trained / "out.json").exists() else None

    return bench


def make_bench(*options, **given):
    return Bench(read_table("table.toml"), registry(), Path("runs"), profile="smoke", options=options, **given)


def statuses(folder):
    return sorted(folder.glob("runs/one/*/status.json"))


class TestModels:
    def test_evaluate_warns_that_images_may_have_trained_the_model(self, trained, run_cli):
        model = statuses(trained)[0].parent
        assert "changed" not in run_cli("evaluate", model).output
        add_pair(trained)
        result = run_cli("evaluate", model)
        assert result.exit_code == 0
        assert "the data changed after this model was trained" in result.output
        copied = shutil.copyfile(model / "model.safetensors", trained / "model.safetensors")
        result = run_cli("evaluate", copied, "--recipe", model / "recipe.toml")
        assert "changed" not in result.output, "a file alone does not know its data"

    def test_calibrate_warns_that_its_promise_depends_on_it(self, trained, run_cli):
        model = statuses(trained)[0].parent
        add_pair(trained)
        result = run_cli("calibrate", model, "--level", "0.5")
        assert "the data changed after this model was trained" in result.output
        assert "the promise holds only if none of these images trained it" in result.output

    def test_a_machine_that_has_only_the_test_images_measures_them(self, trained, run_cli, monkeypatch):
        build = Component.build

        def build_test_only(self, **offered):
            if offered.get("split") == "train":
                raise UserError("a/train: no such folder")
            return build(self, **offered)

        monkeypatch.setattr(Component, "build", build_test_only)
        result = run_cli("evaluate", statuses(trained)[0].parent)
        assert result.exit_code == 0, result.output

    def test_further_images_of_another_split_are_measured_without_a_word(self, trained, run_cli):
        model = statuses(trained)[0].parent
        state = json.loads((model / "status.json").read_text())
        state["sources"]["test data"] = "others"
        (model / "status.json").write_text(json.dumps(state))
        result = run_cli("evaluate", model)
        assert (result.exit_code, "changed" in result.output) == (0, False)


class TestChangedFiles:
    def test_runs_on_other_files_are_not_shown(self, trained, bench):
        draw_over(trained)
        result, table = bench("--no-train")
        assert result.exit_code == 0
        [row, _] = table["rows"]
        assert row["cells"] == {}
        assert "train data and val data and test data changed after this run began" in row["failed"]

    def test_after_a_further_pair_no_image_is_tested_that_was_trained_on(self, trained, bench):
        before = [split_of(fold, "train") for fold in range(3)]
        add_pair(trained)
        assert all(before[fold] & split_of(fold, "test") for fold in range(3))
        result, _ = bench("--dry-run")
        assert result.exit_code == 0
        lines = result.output.splitlines()
        assert len([line for line in lines if "data changed since it was trained" in line]) == 3
        assert lines[-1].startswith("table, profile smoke: 3 of 3 runs are missing: 6 images")
        assert "complete" not in result.output
        assert "metrics are to be measured" not in result.output

    def test_they_are_refused_with_what_to_do(self, trained, bench, monkeypatch):
        add_pair(trained)
        monkeypatch.setattr(bench_module, "run_missing", lambda *_: pytest.fail("it trains"))
        result, table = bench()
        assert (result.exit_code, table) == (2, None)
        lines = [line for line in result.output.splitlines() if " began: " in line]
        assert len(lines) == 3
        assert all(
            line.endswith("train it again with --fresh, or use it as it is with --accept-stale") for line in lines
        )

    def test_an_unfinished_run_is_refused_too(self, trained):
        add_pair(trained)
        for status in statuses(trained):
            status.write_text(json.dumps(json.loads(status.read_text()) | {"state": "interrupted"}))
        with pytest.raises(UserError, match="data changed after this run began"):
            make_bench().refuse_changed_data()
        for checkpoint in trained.glob("runs/one/*/checkpoints/*"):
            checkpoint.unlink()
        make_bench().refuse_changed_data()  # nothing was trained yet

    def test_accepted_runs_are_shown_with_a_note(self, trained, bench):
        draw_over(trained)
        result, table = bench("--accept-stale")
        assert result.exit_code == 0, result.output
        assert len(table["rows"][0]["cells"]["l1"]["values"]) == 3
        assert result.output.count("the code or data changed after this run (train data, val data, test data)") == 3

    def test_fresh_trains_them_again(self, trained, bench, monkeypatch):
        add_pair(trained)
        trained_again = []
        monkeypatch.setattr(bench_module, "run_missing", lambda jobs, *_: trained_again.extend(jobs) or {})
        assert bench("--fresh")[0].exit_code == 0
        assert {job.options for job in trained_again} == {("--fresh",)}
        assert len(trained_again) == 3
        assert "one, seed 2: 2 images (1 steps)" in bench("--fresh", "--dry-run")[0].output

    def test_fresh_only_measures_complete_runs_that_lack_a_metric(self, trained, bench, monkeypatch):
        psnr = '[metrics.psnr]\nuse = "psnr"\n[columns]\npsnr = "PSNR"\n'
        (trained / "table.toml").write_text(TABLE.replace("[columns]\n", psnr))
        state = json.loads(statuses(trained)[2].read_text())
        statuses(trained)[2].write_text(json.dumps(state | {"state": "interrupted"}))
        jobs = []
        monkeypatch.setattr(bench_module, "run_missing", lambda given, *_: jobs.extend(given) or {})
        bench("--fresh")
        assert [job.options for job in jobs] == [(), (), ("--fresh",)]
        plan = bench("--fresh", "--dry-run")[0].output
        assert plan.count("trained, metrics are to be measured") == 2
        assert plan.count("2 images (1 steps)") == 1
        kept = make_bench("--fresh", overrides=["evaluate.at=[1]"])
        assert all(kept.starts_over(cell) for cell in kept.cells), "its weights after one image were not kept"

    def test_the_images_themselves_are_measured_again(self, trained, bench):
        values = []
        for change in (lambda _: None, lambda _: None, draw_over):
            change(trained)
            values.append(bench("--no-train")[1]["rows"][1]["cells"]["l1"]["values"])
        assert values[0] == values[1]
        assert not set(values[0]) & set(values[2])

    def test_numbers_of_the_images_before_and_of_todays_are_not_kept_together(self, trained, bench):
        before = bench("--no-train")[1]["rows"][1]["cells"]["l1"]["values"]
        draw_over(trained)
        psnr = '[metrics.psnr]\nuse = "psnr"\n[columns]\npsnr = "PSNR"\n'
        (trained / "table.toml").write_text(TABLE.replace("[columns]\n", psnr))
        accepted = bench("--no-train", "--accept-stale")[1]["rows"][1]["cells"]
        assert accepted["l1"]["values"] == before
        assert not set(before) & set(bench("--no-train")[1]["rows"][1]["cells"]["l1"]["values"])


class TestChangedCode:
    def test_every_document_of_a_table_names_the_rows(self, trained, bench, run_cli):
        for status in statuses(trained)[:2]:
            state = json.loads(status.read_text())
            state["sources"]["core"] = "another"
            status.write_text(json.dumps(state))
        result, table = bench("--no-train")
        assert result.output.count("the code or data changed after this run (core)") == 2
        assert table["stale"] == [{"row": "one", "label": "one", "stale": 2, "runs": 3, "changed": ["core"]}]
        note = "Code or data changed after these runs were trained: one, 2 of 3 runs (core)."
        assert note in to_markdown(table)
        compared = run_cli("compare", statuses(trained)[0].parent, "--format", "markdown").output
        assert "Code or data changed after these runs were trained: one (core)." in compared


class TestSameData:
    def test_all_runs_count(self, trained):
        assert make_bench().missing() == []
        assert make_bench().stale() == {}

    def test_runs_without_a_record_count_and_open_no_data(self, trained):
        add_pair(trained)
        for status in statuses(trained):
            state = json.loads(status.read_text())
            state["sources"] = {name: value for name, value in state["sources"].items() if not name.endswith(" data")}
            status.write_text(json.dumps(state))
            assert DataFingerprints().find_changed(None, Run(status.parent)) == []
        make_bench().refuse_changed_data()

    def test_a_run_that_was_evaluated_on_its_validation_split_counts(self, trained):
        for status in statuses(trained):
            state = json.loads(status.read_text())
            state["sources"]["test data"] = state["sources"]["val data"]
            status.write_text(json.dumps(state))
        assert make_bench().missing() == []

    def test_each_dataset_is_opened_once(self, trained, monkeypatch):
        opened = []
        build = Component.build
        monkeypatch.setattr(
            Component, "build", lambda self, **offered: opened.append(offered.get("split")) or build(self, **offered)
        )
        fingerprints, experiments = DataFingerprints(), [load(fold) for fold in (0, 1, 0, 1)]
        assert len({fingerprints.of(experiment)["train"] for experiment in experiments}) == 2
        assert opened == ["train", "val", "test"] * 2
