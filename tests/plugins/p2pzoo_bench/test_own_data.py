"""A table on somebody's own pairs, in a given time: `p2pzoo bench TABLE --data RECIPE --budget TIME`."""

import json
import re
import threading
import tomllib
from types import SimpleNamespace

import pytest
from noise_pairs import draw_pairs
from p2pzoo_bench import own_data, rates
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.formats import to_markdown
from p2pzoo_bench.rates import Rate
from p2pzoo_bench.table_file import read_table
from PIL import Image
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


BRIDGE = """
[rows.bridge]
recipe = "zoo.toml"
set = ["drop=['discriminator', 'gan_loss']", "process.use='bridge'"]
label = "bridge (4 steps)"
[rows.bridge_1]
recipe = "zoo.toml"
set = ["drop=['discriminator', 'gan_loss']", "process.use='bridge'"]
evaluate = { process = { steps = 1 } }
label = "bridge (1 step)"
[rows.photos]
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
def finished(folder, run_cli):
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
        [line] = [line for line in page.splitlines() if "accuracy" in line]
        assert "accuracy needs labels" in line, "it is left out, and the page says why"

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
        assert len(speed) == 2

    def test_the_page_says_what_it_was_made_of(self, finished):
        _, table, page = finished
        assert table["data"] == {
            "recipe": "mine.toml", "pairs": 36, "tested": 36, "budget": 1.0,
            "summary": "36 pairs of mine.toml, each tested in one of 3 folds",
            "notes": ["not measured on this data: accuracy needs labels"],
        }  # fmt: skip
        for text in (page, to_markdown(table)):
            assert "36 pairs of mine.toml, each tested in one of 3 folds" in text
            assert "Training time of each row: 1 second, over 3 folds" in text
            assert "Each row trains on 6 images in each fold." in text
            assert "not measured on this data: accuracy needs labels" in text
            assert re.search(r"On your 36 pairs, .* L1", text)
            assert "L1: mean difference" in text

    def test_the_ground_truth_of_any_data_has_its_name(self, finished):
        assert finished[1]["rows"][-1]["label"] == "ground truth"


class TestRowsThatCannotTakeTheData:
    """They are left out with a note, since nothing could be trained."""

    NOTE = (
        "bridge (4 steps; 1 step) is not trained on this data: x has 1 channel and y has 3; flow starts from noise and "
        "can take them"
    )

    @pytest.fixture
    def grey(self, tmp_path):
        folder = write_files(tmp_path, 36)
        for file in folder.glob("a/*.png"):
            Image.open(file).convert("L").save(file)
        (folder / "table.toml").write_text(TABLE.replace("[rows.photos]", BRIDGE))
        return folder

    @pytest.mark.parametrize("options", [(), ("--budget", "1s")], ids=["length of the recipes", "budget"])
    def test_a_process_that_ends_at_x_needs_equal_channels(self, grey, bench, speed, options):
        result = bench(grey, "--dry-run", *options)
        assert result.exit_code == 0, result.output
        lines = result.output.splitlines()
        assert lines.count(self.NOTE) == 1
        assert not any("bridge" in line for line in lines if line != self.NOTE)
        assert len({line.split(",")[0] for line in lines if "seed 0" in line}) == 3

    def test_the_table_has_the_note_and_the_other_rows(self, grey):
        own = on_data(grey)
        assert self.NOTE in own.table.data["notes"]
        assert [row.name for row in own.table.rows] == ["regression", "pix2pix", "flow", "flow_1", "photos"]

    @pytest.mark.parametrize("methods", ["regression,bridge", "bridge,bridge_1", "bridge"])
    @pytest.mark.parametrize("options", [(), ("--budget", "1s")])
    def test_without_a_baseline_or_a_row_beside_it_nothing_is_trained(self, grey, bench, speed, methods, options):
        result = bench(grey, "--methods", methods, *options)
        assert result.exit_code == 2
        assert "x has 1 channel and y has 3" in result.output
        assert len(result.output.strip().splitlines()) == 1
        assert speed == []
        assert not (grey / "runs").exists()

    def test_a_baseline_that_cannot_take_it_is_refused(self, grey):
        (grey / "base.toml").write_text(
            TABLE.replace("[rows.photos]", BRIDGE).replace('baseline = "regression"', 'baseline = "bridge"')
        )
        with pytest.raises(UserError, match=r"bridge \(4 steps; 1 step\), which the rows are compared with, cannot"):
            on_data(grey, "base.toml")
        own = on_data(grey, "base.toml", ["regression", "flow"])
        assert own.table.baseline == "regression"

    def test_where_the_first_method_is_left_out_the_next_one_is_compared_with(self, grey):
        own = on_data(grey, methods=["pix2pix", "bridge", "flow"])
        assert own.table.baseline == "pix2pix"

    def test_a_network_that_refuses_the_size(self, folder):
        recipe = f"{RECIPE}".replace("width = 4\ndepth = 3", "width = 4\ndepth = 6", 1)
        (folder / "deep.toml").write_text(recipe)
        row = '[rows.deep]\nrecipe = "deep.toml"\nlabel = "six levels"\n[rows.photos]'
        (folder / "size.toml").write_text(TABLE.replace("[rows.photos]", row))
        own = on_data(folder, "size.toml")
        [note] = [note for note in own.notes if "six levels" in note]
        assert note.startswith("six levels is not trained on this data: [dataset] size = [32, 32]: generator 'unet': ")
        assert str(folder) not in note

    def test_a_loss_that_refuses_the_channels(self, grey):
        loss = '[rows.colour]\nrecipe = "zoo.toml"\nset = ["losses.lab.use=\'lab-color\'"]\n[rows.photos]'
        for file in grey.glob("b/*.png"):
            Image.open(file).convert("L").save(file)
        (grey / "loss.toml").write_text(TABLE.replace("[rows.photos]", loss))
        [note] = [note for note in on_data(grey, "loss.toml").notes if note.startswith("colour is not trained")]
        assert "RGB" in note

    def test_a_loss_that_needs_labels(self, folder):
        (folder / "labels.toml").write_text(
            TABLE.replace("[rows.photos]", '[rows.oasis]\nrecipe = "zoo:modern/oasis.toml"\n[rows.photos]')
        )
        [note] = [note for note in on_data(folder, "labels.toml").notes if note.startswith("oasis is not trained")]
        assert "needs labels, which the dataset 'datasets:folders' does not have" in note
        assert "remove" not in note

    def test_a_row_whose_speed_cannot_be_measured_is_left_out_too(self, folder, bench, monkeypatch):
        def measure_rates(recipes, file):
            [name] = recipes
            if name.startswith("flow"):
                raise rates.UnknownSpeed(f"{name}: its speed cannot be measured: too little memory")
            return {name: Rate(0.1, 0.001)}

        monkeypatch.setattr(own_data, "measure_rates", measure_rates)
        result = bench(folder, "--budget", "1s", "--dry-run")
        assert result.exit_code == 0, result.output
        note = "flow (2 steps; 1 step) is not trained on this data: its speed cannot be measured: too little memory"
        assert note in result.output.splitlines()
        assert "flow, seed" not in result.output
        monkeypatch.setattr(own_data, "measure_rates", lambda recipes, file: measure_rates({"flow": 0}, file))
        result = bench(folder, "--budget", "1s")
        assert result.exit_code == 2
        assert "regression, which the rows are compared with, cannot be trained on it" in result.output
        assert not (folder / "runs").exists()


def on_data(folder, table="table.toml", methods=()):
    return own_data.on_own_data(
        read_table(str(folder / table)), str(folder / "mine.toml"), "smoke", methods, registry()
    )


def test_data_with_folds_of_its_own_is_tested_on_the_first_three(folder):
    table = read_table(str(folder / "table.toml"))
    own = own_data.on_own_data(table, "zoo:base.toml", "smoke", ["regression"], registry())
    assert (own.table.folds, own.table.seeds) == (True, 3)
    assert not any("dataset.folds" in override for row in own.table.rows for override in row.overrides)


def test_of_folds_of_its_own_the_tested_pairs_are_counted(folder):
    table = read_table(str(folder / "table.toml"))
    own = own_data.on_own_data(table, "zoo:base.toml", "smoke", ["regression"], registry())
    tested = [
        len(config.load("zoo:base.toml", "smoke", [f"dataset.fold={fold}"]).dataset.build(split="test"))
        for fold in range(own.table.seeds)
    ]
    assert own.pairs == sum(tested)
    assert own.describe("mine.toml") == (
        f"{sum(tested)} test pairs of mine.toml, each in one of the first 3 of the dataset's own folds"
    )


class TestMetricsThatCannotMeasureTheData:
    """They are left out and named, since a run with one of them would fail."""

    @pytest.fixture
    def own(self, tmp_path):
        """own(mode): of pairs in a mode of PIL, the table with a metric that takes RGB only."""

        def own(mode, further=""):
            write_files(tmp_path, 36)
            for file in tmp_path.glob("[ab]/*.png"):
                Image.open(file).convert(mode).save(file)
            (tmp_path / "zoo.toml").write_text(
                RECIPE.replace(', "metrics.psnr"', "").replace('"metrics.ssim"', '"metrics.psnr"') + further
            )
            metric = '[metrics.lab_histogram]\nuse = "metrics:lab_histogram"\n[columns]\nlab_histogram = "Lab"\n'
            (tmp_path / "table.toml").write_text(TABLE.replace("[columns]", f'{metric}ssim = "SSIM"'))
            table = read_table(str(tmp_path / "table.toml"))
            return own_data.on_own_data(table, str(tmp_path / "mine.toml"), "smoke", (), registry())

        return own

    def test_grey_images_have_no_colours(self, own):
        own = own("L")
        assert own.notes == (
            "not measured on this data: accuracy needs labels",
            "not measured on this data: Lab: lab_histogram takes RGB (3 channels) images, and these have 1 channel",
        )
        assert [*own.table.columns] == ["ssim", "l1"]
        assert [*own.table.metrics] == []

    def test_a_metric_of_the_rows_recipes_is_dropped_there(self, own, tmp_path):
        own = own("L", further='[metrics.colours]\nuse = "metrics:lab_histogram"\n')
        assert any(note.startswith("not measured on this data: colours: lab_histogram takes RGB") for note in own.notes)
        bench = Bench(own.table, registry(), tmp_path / "runs", profile="smoke")
        assert {name for cell in bench.cells for name in cell.experiment.metrics} == {"l1", "ssim"}
        assert [*own.table.columns] == ["ssim", "l1"]

    def test_a_scorer_of_the_folds_measures(self, folder):
        """Each fold of the earth has a scorer by this name, and the data without a fold has none."""
        scorer = '[metrics.robust]\nuse = "metrics:fcn_score"\nscorer = "robust"\n[columns]\nrobust = "robust"'
        (folder / "robust.toml").write_text(TABLE.replace("[columns]", scorer))
        table = read_table(str(folder / "robust.toml"))
        own = own_data.on_own_data(table, "zoo:base.toml", "smoke", ["regression"], registry())
        assert own.notes == ()
        assert [*own.table.columns] == ["robust", "l1", "fcn_score"]

    def test_a_table_of_which_nothing_is_left_is_refused(self, folder):
        only = TABLE.replace('l1 = "L1"\n', "").replace('primary = "l1"\n', "")
        (folder / "labels.toml").write_text(only)
        table = read_table(str(folder / "labels.toml"))
        with pytest.raises(UserError, match=r"no column of labels can be measured on it \(fcn_score needs labels\)"):
            own_data.on_own_data(table, str(folder / "mine.toml"), "smoke", (), registry())


def test_settings_of_the_machine_that_made_the_table_are_left_out(folder):
    shared = 'folds = 5\nset = ["compute.precision=\'bf16\'", "train.ema=0.5"]'
    (folder / "bf16.toml").write_text(TABLE.replace("folds = 5", shared))
    table = read_table(str(folder / "bf16.toml"))
    own = own_data.on_own_data(table, str(folder / "mine.toml"), "smoke", ["regression"], registry())
    cell = Bench(own.table, registry(), folder / "runs", profile="smoke").cells[0]
    assert (cell.experiment.compute.precision, cell.experiment.train.ema) == ("auto", 0.5)
    assert "[compute]: this machine's, not that of the table" in own.notes


def test_settings_for_the_images_of_the_table_are_left_out(folder):
    of_images = 'set_without_data = ["generator.depth=4", "train.jitter=1.2"]'
    text = TABLE
    for following in ("[rows.pix2pix]", "[rows.flow]"):
        text = text.replace(following, f"{of_images}\n{following}")
    (folder / "sizes.toml").write_text(text)
    table, first = read_table(str(folder / "sizes.toml")), ["regression", "pix2pix"]
    its_own = Bench(table, registry(), folder / "runs", profile="smoke")
    own = own_data.on_own_data(table, str(folder / "mine.toml"), "smoke", first, registry())
    others = Bench(own.table, registry(), folder / "runs", profile="smoke")
    depths = [[cell.experiment.generator.values["depth"] for cell in bench.cells[:2]] for bench in (its_own, others)]
    assert depths == [[4, 4], [3, 3]]
    assert {"generator.depth: the recipe's; the table's is for its own images"} < {*own.notes}


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
    def test_one_run_for_each_row_and_the_answer_says_what_that_means(self, tmp_path, bench, speed):
        folder = write_files(tmp_path, 20)
        result = bench(folder, "--budget", "1s", "--methods", "regression,pix2pix", "-o", folder / "out.json")
        assert result.exit_code == 0, result.output
        table = json.loads((folder / "out.json").read_text())
        assert "folds" not in table
        assert table["answer"][0].endswith("another training may reverse it.")
        assert not any("beyond chance" in line for line in table["answer"])
        assert table["answer"][1].startswith(f"On {table['data']['tested']} of your 20 pairs, ")
        assert f"20 pairs of {folder / 'mine.toml'}, one run for each row, tested on" in result.output

    def test_pairs_are_counted_once_where_val_is_test(self, tmp_path, bench, speed):
        folder = write_files(tmp_path, 22)
        self.move_to_splits(folder, 22, in_train=10)
        lines = bench(folder, "--budget", "1s", "--dry-run").output.splitlines()
        assert f"22 pairs of {folder / 'mine.toml'}, one run for each row, tested on 12 of them" in lines

    def test_pairs_that_are_too_few_for_folds_are_counted_once_too(self, tmp_path, bench, speed):
        folder = write_files(tmp_path, 3)
        self.move_to_splits(folder, 3, in_train=1)
        lines = bench(folder, "--budget", "1s", "--dry-run").output.splitlines()
        assert f"3 pairs of {folder / 'mine.toml'}, one run for each row, tested on 2 of them" in lines

    def move_to_splits(self, folder, count, in_train):
        """Into folders train and test; then val is test."""
        for file in [folder / side / f"{number:03}.png" for side in "ab" for number in range(count)]:
            split = file.parent / ("train" if int(file.stem) < in_train else "test")
            split.mkdir(exist_ok=True)
            file.rename(split / file.name)


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

    @pytest.mark.parametrize("override", ["train.images=100", "train.epochs=2", " train = {images = 100}"])
    def test_a_length_and_a_budget_are_two_answers(self, folder, bench, speed, override):
        result = bench(folder, "--budget", "1s", "--dry-run", "-s", override)
        assert result.exit_code == 2
        assert result.output.strip() == f"-s {override}: --budget says how long the rows train: remove one of the two"
        assert bench(folder, "--budget", "1s", "--dry-run", "-s", "train.batch_size=4").exit_code == 0
        assert bench(folder, "--dry-run", "-s", override).exit_code == 0

    def test_a_budget_replaces_the_length_that_a_row_has(self, folder, bench, speed):
        (folder / "long.toml").write_text(TABLE.replace("folds = 5", 'folds = 5\nset = ["train.epochs=50"]'))
        table = read_table(str(folder / "long.toml"))
        own = own_data.on_own_data(table, str(folder / "mine.toml"), "smoke", ["regression"], registry())
        build = lambda table: Bench(table, registry(), folder / "none", profile="smoke")  # noqa: E731
        budget = own_data.with_budget(own, 1.0, folder / "none", build, threads=1, jobs=1, note=lambda _: None)
        assert {cell.images for cell in build(budget).cells} == {6}

    @pytest.mark.parametrize(("lines", "key"), [("folds = 4\nfold = 1", "folds"), ("folds = 4", "folds")])
    def test_folds_of_the_recipe_are_refused(self, folder, run_cli, lines, key):
        (folder / "folds.toml").write_text(f"{MINE}{lines}\n")
        result = run_cli(
            "bench", folder / "table.toml", "--profile", "smoke", "--data", folder / "folds.toml", "--dry-run"
        )
        assert result.exit_code == 2
        where = f"{folder / 'folds.toml'}:8  [dataset] folds: --data makes the folds itself: remove "
        assert result.output.strip() == where + ("folds and fold" if "\n" in lines else "folds")

    @pytest.mark.parametrize(("recipe", "override"), [("mine.toml", "dataset.folds=5"), (None, "dataset.fold=1")])
    def test_folds_of_the_command_line_are_refused(self, folder, run_cli, recipe, override):
        data = folder / recipe if recipe else "zoo:base.toml"
        result = run_cli(
            "bench", folder / "table.toml", "--profile", "smoke", "--data", data, "--dry-run", "-s", override
        )
        assert result.exit_code == 2
        assert f"-s {override}  [dataset] fold" in result.output
        assert "--data makes the folds itself" in result.output

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
            "--budget: 'regression' needs 1:15 for one training step and for measuring its test images, over 3 folds: "
            "give 76s or more, or name other rows with --methods"
        )
        assert bench(folder, "--budget", "76s", "--dry-run").exit_code == 0

    def test_rows_whose_measuring_takes_longer_than_the_budget_are_left_out(self, folder, bench, monkeypatch):
        """36 pairs: 36 s for one of the two rows of the flow's training, 72 s for both."""
        rate = Rate(1.0, 2.0, {"flow_1": 1.0})

        def measure_rates(recipes, file):
            return {name: rate if "flow" in name else Rate(1.0, 0.1) for name in recipes}

        monkeypatch.setattr(own_data, "measure_rates", measure_rates)
        few = bench(folder, "--budget", "60s", "--dry-run").output
        assert (
            "flow, 1 step is left out: with its translations, measuring this training takes 1:15, longer than the "
            "budget\n" in few
        )
        assert "flow, 2 steps: 40 images in 0:20 for each of 3 folds, 1 s a step; then 0:12 to measure\n" in few
        assert "flow, 1 step, seed 0" not in few
        both = bench(folder, "--budget", "76s", "--dry-run").output
        assert "left out" not in both
        assert "then 0:24 to measure" in both

    def test_a_budget_that_leaves_the_baseline_alone_is_refused(self, folder, bench, monkeypatch):
        rate = Rate(1.0, 2.0, {"flow_1": 1.0})
        monkeypatch.setattr(own_data, "measure_rates", lambda recipes, file: dict.fromkeys(recipes, rate))
        (folder / "table.toml").write_text((folder / "table.toml").read_text().replace('"regression"', '"flow"', 1))
        result = bench(folder, "--budget", "60s", "--dry-run", "--methods", "flow,flow_1")
        assert result.exit_code == 2
        assert "--budget: no row is left beside the baseline: flow, 1 step is left out" in result.output


class TestRates:
    def test_a_rate_is_measured_once_and_kept(self, tmp_path, monkeypatch):
        measured = []
        monkeypatch.setattr(rates, "_measure_in_process", lambda name, recipe: measured.append(name) or Rate(1.0, 2.0))
        file = tmp_path / "runs" / "rates.json"
        assert rates.measure_rates({"a": ""}, file) == {"a": Rate(1.0, 2.0)}
        assert rates.measure_rates({"a": "", "b": ""}, file) == {name: Rate(1.0, 2.0) for name in "ab"}
        assert measured == ["a", "b"]

    def test_with_other_measurements_they_are_timed_again_and_the_length_stays(self, tmp_path, monkeypatch):
        """A row with 50 steps of a training whose speed is known: its run id is that of the training."""
        found = iter([Rate(1.0, 2.0), Rate(3.0, 9.0, {"flow_50": 7.0})])
        monkeypatch.setattr(rates, "_measure_in_process", lambda name, recipe: next(found))
        file, more = tmp_path / "rates.json", "[evaluate.also.flow_50.process]\nsteps = 50\n"
        assert rates.measure_rates({"a": ""}, file) == {"a": Rate(1.0, 2.0)}
        for _ in range(2):
            assert rates.measure_rates({"a": more}, file) == {"a": Rate(1.0, 9.0, {"flow_50": 7.0})}

    def test_two_commands_at_a_time_lose_no_speed(self, tmp_path, monkeypatch):
        file = tmp_path / "rates.json"
        other = threading.Thread(target=rates.measure_rates, args=({"b": ""}, file))

        def measure(name, recipe):
            if name == "a":
                other.start()
                other.join(0.2)
            return Rate(1.0, 2.0)

        monkeypatch.setattr(rates, "_measure_in_process", measure)
        rates.measure_rates({"a": ""}, file)
        other.join()
        assert json.loads(file.read_text()).keys() == {"a", "b"}

    def test_a_damaged_file_changes_no_lengths_silently(self, tmp_path):
        file = tmp_path / "rates.json"
        file.write_text('{"a": ')
        with pytest.raises(UserError, match=r"rates\.json: is damaged; delete it to measure the speeds again"):
            rates.measure_rates({"a": ""}, file)

    def test_it_is_measured_again_where_the_speed_is_another(self, folder, bench, monkeypatch, tmp_path):
        measured = []
        monkeypatch.setattr(
            rates,
            "_measure_in_process",
            lambda name, recipe: measured.append(tomllib.loads(recipe)["compute"]) or Rate(0.1, 0.001),
        )
        (folder / "zoo.toml").write_text(RECIPE.replace("threads = 1\n", ""))
        options = ("--budget", "1s", "--dry-run", "--methods", "regression", "--runs", tmp_path / "runs")
        for further in (("--cpus-per-run", 1), ("--cpus-per-run", 2), ("-s", "compute.checkpointing=true")):
            for _ in range(2):
                assert bench(folder, *options, *further).exit_code == 0
        assert [compute["threads"] for compute in measured] == [1, 2, 0]
        (folder / "zoo.toml").write_text(RECIPE)
        for threads in (1, 2):  # the recipe has one thread
            assert bench(folder, *options, "--cpus-per-run", threads).exit_code == 0
        assert len(measured) <= 4

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

    @pytest.mark.parametrize("samples", [2, 19])
    def test_samples_count_only_where_they_differ(self, tiny, monkeypatch, samples):
        monkeypatch.setattr(rates, "PROBE_SECONDS", 0.0)
        passes = []
        monkeypatch.setattr(rates, "time", SimpleNamespace(perf_counter=lambda: float(len(passes))))
        counting = register_module_forward_hook(
            lambda module, *_: passes.append(1) if type(module).__name__ == "UNet" else None
        )
        settings = [
            "drop=['discriminator', 'gan_loss']", f"metrics.crps={{use='crps', samples={samples}}}",
            "generator.norm=group", "generator.noise=none",
        ]  # fmt: skip
        flow = ["process.use=flow", "process.steps=2", "evaluate.also.more={process={steps=5}}"]
        with counting:
            plain, sampled = (
                rates.measure(config.load(str(tiny), "smoke", [*settings, *further])) for further in ([], flow)
            )
        assert (plain.evaluate, plain.also) == (1, {})
        assert (sampled.evaluate, sampled.also) == (7 * samples, {"more": 5 * samples})

    @pytest.mark.parametrize(
        ("compute", "location"),
        [
            ("store='stream'", "stream"),
            ("store='memory'", "memory"),
            ("store='disk'", "memory"),
            ("store_megabytes=0", "memory"),
            ("store_megabytes=0,store_disk_megabytes=0", "stream"),
        ],
    )
    def test_pairs_are_kept_and_read_as_in_the_training(self, folder, tiny, monkeypatch, compute, location):
        stores = []

        class RecordedStore(rates.Store):
            def __init__(self, *arguments, **options):
                super().__init__(*arguments, **options)
                stores.append((self, options["compute"]))

        monkeypatch.setattr(rates, "PROBE_SECONDS", 0.0)
        monkeypatch.setattr(rates, "Store", RecordedStore)
        data = f"{{use='folders', inputs='{folder}/a', targets='{folder}/b', size=[64, 64], resize='stretch'}}"
        settings = [f"dataset={data}", "compute.readers=0", *(f"compute.{setting}" for setting in compute.split(","))]
        rates.measure(config.load(str(tiny), "smoke", settings))
        store, used = [each for each in stores if each[0].for_training][-1]
        assert (store.location, used.readers) == (location, 0)

    def test_a_recipe_that_cannot_be_trained_is_one_line(self, tiny):
        reason = r"""^mine: its speed cannot be measured: \[generator\] use = "unt": no generator 'unt'"""
        with pytest.raises(UserError, match=reason):
            rates._measure_in_process("mine", f'extends = "{tiny}"\n[generator]\nuse = "unt"\n')

    def test_a_step_that_fails_has_its_reason_without_the_class_of_an_exception(self, tiny, monkeypatch):
        failed = SimpleNamespace(returncode=1, stderr="Traceback\nRuntimeError: shapes (3, 4) do not fit\n", stdout="")
        monkeypatch.setattr(rates.subprocess, "run", lambda *_, **__: failed)
        with pytest.raises(UserError, match=r"^mine: its speed cannot be measured: shapes \(3, 4\) do not fit$"):
            rates._measure_in_process("mine", "")


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
    assert table["answer"][0].startswith("On your 36 pairs, ")
    assert table["answer"][1].startswith("CRPS: ")
