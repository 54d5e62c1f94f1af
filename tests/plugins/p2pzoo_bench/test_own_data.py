"""A table on somebody's own pairs, in a given time: `p2pzoo bench TABLE --data RECIPE --budget TIME`."""

import json
from types import SimpleNamespace

import pytest
from noise_pairs import draw_pairs
from p2pzoo_bench import own_data, rates
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.rates import Rate
from p2pzoo_bench.table_file import read_table
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from p2pzoo import config
from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError

RECIPE = """
extends = "zoo:base.toml"
drop = ["metrics.ssim", "metrics.psnr"]
[generator]
width = 4
depth = 3
norm = "group"
noise = "none"
[discriminator]
width = 4
receptive_field = 16
[train]
batch_size = 2
log_every = 100
[compute]
device = "cpu"
threads = 1
"""
TABLE = """
title = "Which method"
baseline = "regression"
primary = "l1"
answer = true
folds = 5
[metrics.fcn_score]
use = "metrics:fcn_score"
[columns]
l1 = "L1"
fcn_score = "accuracy"
[rows.regression]
recipe = "zoo.toml"
set = ["drop=['discriminator', 'gan_loss']"]
[rows.pix2pix]
recipe = "zoo.toml"
[rows.flow]
recipe = "zoo.toml"
set = ["drop=['discriminator', 'gan_loss']", "process.use='flow'", "process.steps=2"]
label = "flow, 2 steps"
[rows.flow_1]
recipe = "zoo.toml"
set = ["drop=['discriminator', 'gan_loss']", "process.use='flow'", "process.steps=2"]
evaluate = { process = { steps = 1 } }
label = "flow, 1 step"
[rows.photos]
target = true
"""
MINE = """
extends = "zoo:base.toml"
[dataset]
use = "folders"
inputs = "a"
targets = "b"
size = [32, 32]
"""


def write_files(folder, count):
    draw_pairs(folder, count, 32)
    (folder / "zoo.toml").write_text(RECIPE)
    (folder / "table.toml").write_text(TABLE)
    (folder / "mine.toml").write_text(MINE)
    return folder


@pytest.fixture
def speed(monkeypatch):
    """Every row takes 0.1 s for a step, and 1 ms for an image that is measured."""
    asked = []

    def measure_rates(recipes, file):
        asked.append([*recipes])
        return {name: Rate(0.1, 0.001) for name in recipes}

    monkeypatch.setattr(own_data, "measure_rates", measure_rates)
    return asked


@pytest.fixture
def bench(run_cli):
    def bench(folder, *options):
        arguments = ("--profile", "smoke", "--runs", folder / "runs", "--data", folder / "mine.toml")
        return run_cli("bench", folder / "table.toml", *arguments, *options)

    return bench


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("mine"), 36)


@pytest.fixture(scope="module")
def finished(folder, run_cli, no_reports):
    """(the results of two calls, the table as JSON, its page)"""
    runs = ("--profile", "smoke", "--runs", folder / "finished", "--data", folder / "mine.toml", "--budget", "1s")
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_data, "measure_rates", lambda recipes, file: {name: Rate(0.1, 0.001) for name in recipes})
        for name in ("out.json", "out.html"):
            results.append(run_cli("bench", folder / "table.toml", *runs, "-o", folder / name))
            assert results[-1].exit_code == 0, results[-1].output
    return results, json.loads((folder / "out.json").read_text()), (folder / "out.html").read_text()


@pytest.mark.slow
class TestWithFolds:
    def test_every_row_trains_its_budget_on_every_fold(self, finished, folder):
        _, table, _ = finished
        assert table["folds"] == 3
        assert {row["name"]: len(row["runs"]) for row in table["rows"]} == {
            "regression": 3, "pix2pix": 3, "flow": 3, "flow_1": 3, "photos": 3,
        }  # fmt: skip
        results = [json.loads(path.read_text()) for path in (folder / "finished").glob("zoo/*/results.json")]
        assert len(results) == 9, "the two rows of the flow share their runs"
        assert {result["images"] for result in results} == {6}, "1 s / 3 folds / 0.1 s a step, 2 images a step"

    def test_it_says_beforehand_what_it_does_and_how_long_it_takes(self, finished):
        lines = finished[0][0].output.splitlines()
        assert "not measured on this data: accuracy needs labels" in lines
        assert f"36 pairs of {lines[1].split(' of ')[1].split(',')[0]}, each tested in one of 3 folds" in lines
        assert "regression: 6 images in 0:00 for each of 3 folds, 0.1 s a step; then 0:00 to measure" in lines
        assert any(line.startswith("all rows: about 0:0") for line in lines)

    def test_the_page_begins_with_the_answer_and_shows_the_rows(self, finished):
        _, table, page = finished
        assert table["answer"]
        assert page.index('<ul class="answer">') < page.index("<table>")
        assert all(row in page for row in ("regression", "pix2pix", "flow, 2 steps", "flow, 1 step"))
        assert "accuracy" not in page

    @pytest.mark.parametrize("width", [390, 1200], ids=["phone", "desk"])
    def test_the_page_fits_the_window_of_a_browser(self, finished, folder, browser, width, tmp_path):
        page = browser.new_page(viewport={"width": width, "height": 800})
        urls, errors = [], []
        page.on("request", lambda request: urls.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        address = (folder / "out.html").as_uri()
        page.goto(address)
        assert [url for url in urls if not url.startswith("data:")] == [address]
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing overflows the window"
        assert page.locator("ul.answer:visible li").count() > 0
        assert page.locator("table:visible").count() > 0
        assert page.locator("img").count() > 0
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        page.screenshot(path=str(tmp_path / "bench.png"), full_page=True)
        page.close()
        assert errors == []

    def test_a_second_call_trains_nothing(self, finished):
        assert "runs to train" not in finished[0][1].output

    def test_rows_can_be_chosen(self, folder, finished, bench, speed):
        result = bench(folder, "--budget", "1s", "--methods", "regression,flow_1", "--dry-run")
        assert result.exit_code == 0
        assert [line.split(",")[0] for line in result.output.splitlines() if "seed 0" in line] == ["regression", "flow"]
        assert len(speed[0]) == 2


def test_data_with_folds_of_its_own_is_tested_on_the_first_three(folder):
    table = read_table(str(folder / "table.toml"))
    own = own_data.on_own_data(table, "zoo:base.toml", "smoke", ["regression"], registry())
    assert (own.table.folds, own.table.seeds) == (True, 3)
    assert not any("dataset.folds" in override for row in own.table.rows for override in row.overrides)


def test_settings_of_the_machine_that_made_the_table_are_left_out(folder):
    shared = 'folds = 5\nset = ["compute.precision=\'bf16\'", "train.ema=0.5"]'
    (folder / "bf16.toml").write_text(TABLE.replace("folds = 5", shared))
    table = read_table(str(folder / "bf16.toml"))
    own = own_data.on_own_data(table, str(folder / "mine.toml"), "smoke", ["regression"], registry())
    cell = Bench(own.table, registry(), folder / "runs", profile="smoke").cells[0]
    assert (cell.experiment.compute.precision, cell.experiment.train.ema) == ("auto", 0.5)
    assert "[compute]: this machine's, not that of the table" in own.notes


def test_without_blocks_a_kernel_distance_leaves_out_the_image_itself(folder):
    kid = '[metrics.kid_efficientnet_lite0]\nuse = "metrics:kid_efficientnet_lite0"\nbetween_blocks = true\n[columns]'
    table = TABLE.replace("[columns]", f'{kid}\nkid_efficientnet_lite0 = "KID"', 1)
    (folder / "kid.toml").write_text(table)
    own = own_data.on_own_data(read_table(str(folder / "kid.toml")), str(folder / "mine.toml"), "smoke", (), registry())
    assert own.table.columns["kid_efficientnet_lite0.paired"] == "KID"
    assert "between_blocks" not in own.table.metrics["kid_efficientnet_lite0"]
    assert "KID: leaves out the image itself only; this data has no blocks" in own.notes
    of_earth = own_data.on_own_data(read_table(str(folder / "kid.toml")), "zoo:base.toml", "smoke", (), registry())
    assert of_earth.table.columns["kid_efficientnet_lite0"] == "KID"


class TestWithFewPairs:
    def test_one_run_for_each_row_and_the_answer_says_what_that_means(self, tmp_path, bench, speed, no_reports):
        folder = write_files(tmp_path, 20)
        result = bench(folder, "--budget", "1s", "--methods", "regression,pix2pix", "-o", folder / "out.json")
        assert result.exit_code == 0, result.output
        table = json.loads((folder / "out.json").read_text())
        assert "folds" not in table
        assert table["answer"][-1].endswith("another training may reverse it.")
        assert "one run for each row, tested on" in result.output


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--budget", "0s"), "'0s' is not a duration"),
            (("--methods", "regresion"), "--methods regresion: no such row in table: did you mean 'regression'?"),
            (("--seeds", 3), "--seeds: with --data the number of pairs decides how many folds there are; remove it"),
        ],
    )
    def test_one_line_says_what_to_do(self, folder, bench, speed, options, message):
        result = bench(folder, *options)
        assert result.exit_code == 2
        assert message in result.output.strip().splitlines()[-1]
        assert not (folder / "runs").exists()

    def test_budget_and_methods_need_data(self, folder, run_cli):
        for options in (("--budget", "1m"), ("--methods", "flow")):
            result = run_cli("bench", folder / "table.toml", *options)
            assert result.exit_code == 2
            assert f"{options[0]} needs --data RECIPE" in result.output

    def test_a_budget_for_less_than_one_evaluation_is_refused_with_the_least_that_works(
        self, folder, bench, monkeypatch
    ):
        monkeypatch.setattr(own_data, "measure_rates", lambda recipes, file: dict.fromkeys(recipes, Rate(1.0, 2.0)))
        result = bench(folder, "--budget", "10s")
        assert result.exit_code == 2
        assert result.output.strip().splitlines()[-1] == (
            "--budget: a row needs 1:15 for one training step and for measuring its test images, over 3 fold(s): give "
            "76s or more"
        )
        assert bench(folder, "--budget", "76s", "--dry-run").exit_code == 0


class TestRates:
    def test_a_rate_is_measured_once_and_kept(self, tmp_path, monkeypatch):
        measured = []
        monkeypatch.setattr(rates, "_measure_in_process", lambda name, recipe: measured.append(name) or Rate(1.0, 2.0))
        file = tmp_path / "runs" / "rates.json"
        assert rates.measure_rates({"a": ""}, file) == {"a": Rate(1.0, 2.0)}
        assert rates.measure_rates({"a": "", "b": ""}, file) == {name: Rate(1.0, 2.0) for name in "ab"}
        assert measured == ["a", "b"]

    @pytest.mark.parametrize(
        "generator",
        [
            ("generator.norm=group", "generator.noise=none"),
            ('generator={use="adm-unet", width=4, multipliers=[1, 1], blocks=1, attention=[]}',),
        ],
        ids=["plane", "takes_time"],
    )
    def test_it_is_that_of_the_training_and_of_all_translations(self, tiny, monkeypatch, generator):
        monkeypatch.setattr(rates, "PROBE_SECONDS", 0.0)
        convolutions = []  # in place of seconds, so that the load of the machine does not count
        monkeypatch.setattr(rates, "time", SimpleNamespace(perf_counter=lambda: float(len(convolutions))))
        counting = register_module_forward_hook(
            lambda module, *_: convolutions.append(1) if isinstance(module, nn.Conv2d) else None
        )
        flow = [*generator, "drop=['discriminator', 'gan_loss']", "process.use=flow"]
        with counting:
            one, many = (
                rates.measure(config.load(str(tiny), "smoke", [*flow, f"process.steps={steps}"])) for steps in (1, 60)
            )
        assert one.step == many.step == one.evaluate > 0, "a step of training calls G once"
        assert many.evaluate == 60 * one.evaluate

    def test_a_recipe_that_cannot_be_trained_is_one_line(self, tiny):
        with pytest.raises(UserError, match=r"mine: its speed cannot be measured: .*no generator 'unt'"):
            rates._measure_in_process("mine", f'extends = "{tiny}"\n[generator]\nuse = "unt"\n')


@pytest.mark.slow
def test_the_methods_table_runs_on_two_folders_of_pairs(tmp_path, run_cli, monkeypatch):
    slow = Rate(0.25, 0.01)  # so that few images are trained on, however fast the machine is
    monkeypatch.setattr(own_data, "measure_rates", lambda recipes, file: dict.fromkeys(recipes, slow))
    draw_pairs(tmp_path, 36, 32)
    (tmp_path / "mine.toml").write_text(MINE.replace("[32, 32]", "[64, 64]\nresize = 'stretch'"))
    arguments = ("--data", tmp_path / "mine.toml", "--budget", "9s", "--profile", "smoke", "--cpus-per-run", 1)
    rows = ["regression", "pix2pix", "bridge_1", "diffusion"]
    result = run_cli(
        "bench", "zoo:methods.toml", *arguments, "--methods", ",".join(rows), "--runs", tmp_path / "runs", "-o",
        tmp_path / "methods.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    table = json.loads((tmp_path / "methods.json").read_text())
    assert [row["name"] for row in table["rows"]] == [*rows, "photos"]
    assert all(len(row["runs"]) == 3 for row in table["rows"])
    diversity = {row["name"]: row["cells"]["diversity"]["mean"] for row in table["rows"]}
    assert diversity["regression"] == 0 < diversity["diffusion"]
    assert table["answer"][0].startswith("CRPS: ")
