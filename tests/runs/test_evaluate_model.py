"""Measuring a trained model: the run's own numbers to the bit, other splits and recipes, two folders, and errors."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

import p2pzoo
from p2pzoo import config
from p2pzoo.images.io import write_png
from p2pzoo.models import safetensors_io
from p2pzoo.runs.results import read_results

KEYS = ("metrics", "measured", "protocols")


@pytest.fixture(scope="module")
def run_folder(shared_complete):
    [status] = shared_complete.glob("*/*/status.json")
    return status.parent


@pytest.fixture(scope="module")
def test_pairs(tiny):
    experiment = config.load(str(tiny), "smoke")
    dataset = experiment.dataset.build(split="test")
    return [dataset[index] for index in range(len(dataset))]


@pytest.fixture(scope="module")
def folders(test_pairs, tmp_path_factory):
    """(inputs, targets): the pairs of the tiny recipe's test split as PNGs."""
    root = tmp_path_factory.mktemp("pairs")
    for name, side in (("inputs", "x"), ("targets", "y")):
        (root / name).mkdir()
        for pair in test_pairs:
            write_png(root / name / f"{pair.id}.png", getattr(pair, side))
    return root / "inputs", root / "targets"


@pytest.fixture
def evaluate(run_cli):
    """evaluate(model, …): the document that `p2pzoo evaluate --json` prints."""

    def evaluate(*arguments):
        result = run_cli("evaluate", *arguments, "--json", "--quiet")
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    return evaluate


def with_scale(model, folder, scale):
    """A copy of a model file whose training images were brought to this scale."""
    tensors, header = safetensors_io.load_tensors(model)
    header["file_layout"] = {"size": [128, 128], "scale": [scale, scale], "x_half": None, "alpha": False}
    folder.mkdir()
    safetensors_io.save_tensors(folder / "model.safetensors", tensors, header)
    return folder / "model.safetensors"


def test_a_run_is_measured_with_the_numbers_that_it_printed(run_folder, evaluate):
    results = read_results(run_folder / "results.json")
    measured = evaluate(run_folder)
    assert {key: measured[key] for key in KEYS} == {key: results[key] for key in KEYS}
    assert [measured[key] for key in ("id", "recipe", "profile", "seed")] == [
        results[key] for key in ("id", "recipe", "profile", "seed")
    ]
    assert evaluate(run_folder / "model.safetensors")["metrics"] == results["metrics"]


def test_another_split_and_test_mode_are_measured_as_the_run_measures_them(complete, run, evaluate):
    [folder] = [status.parent for status in complete.glob("*/*/status.json")]
    first = read_results(folder / "results.json")
    assert run(complete, "evaluate.split=val", "evaluate.test_mode=eval").exit_code == 0
    of_run = read_results(folder / "results.json")
    measured = evaluate(folder, "--split", "val", "--test-mode", "eval")
    assert {key: measured[key] for key in KEYS} == {key: of_run[key] for key in KEYS}
    assert measured["metrics"] != first["metrics"]


def test_a_model_that_is_tested_in_batches_can_be_measured_in_eval_mode(run_folder, evaluate, tmp_path):
    file = tmp_path / "batches.toml"
    file.write_text(f'extends = "{run_folder / "recipe.toml"}"\n[evaluate]\ntest_batch = 2\n')
    expected = evaluate(run_folder, "--test-mode", "eval")["metrics"]
    assert evaluate(run_folder, "--recipe", file, "--test-mode", "eval")["metrics"] == expected


def test_a_metric_with_a_test_mode_of_its_own_is_named(run_folder, run_cli):
    result = run_cli("evaluate", run_folder, "--metric", "l1", "-s", ON_EVAL, "--test-mode", "paper")
    assert "in another test mode, which a table of their own in the recipe names: l1 (eval)" in result.output


def test_a_model_elsewhere_is_measured_on_the_recipe_that_is_given(run_folder, tiny, tmp_path, evaluate):
    file = tmp_path / "g.safetensors"
    shutil.copy(run_folder / "model.safetensors", file)
    measured = evaluate(file, "--recipe", tiny, "--profile", "smoke", "--metric", "psnr")
    results = read_results(run_folder / "results.json")
    assert measured["metrics"] == {
        key: value for key, value in results["metrics"].items() if key.partition(".")[0] == "psnr"
    }
    assert (measured["recipe"], measured["seed"]) == ("tiny", 0)
    (tmp_path / "other.toml").write_text(f'extends = "{tiny}"\n[train]\nimages = 41\n')
    other = evaluate(file, "--recipe", tmp_path / "other.toml", "--profile", "smoke", "--metric", "l1")
    assert other["seed"] is None  # another experiment: its seed is not the model's


def test_any_metric_is_measured_by_its_name(run_folder, evaluate):
    measured = evaluate(run_folder, "--metric", "ssim", "--metric", "sharpness")
    assert list(measured["measured"]) == ["ssim", "sharpness"]
    assert 0 < measured["metrics"]["ssim"]["value"] <= 1


def test_two_folders_of_the_test_pairs_have_the_numbers_of_the_test_split(run_folder, folders, evaluate, test_pairs):
    results = read_results(run_folder / "results.json")
    measured = evaluate(run_folder, *folders)
    assert {name: number["value"] for name, number in measured["metrics"].items()} == {
        name: number["value"] for name, number in results["metrics"].items()
    }
    [protocol] = {json.dumps({k: v for k, v in p.items() if k != "metric"}) for p in measured["protocols"].values()}
    protocol = json.loads(protocol)
    assert (protocol["split"], protocol["images"], protocol["size"]) == ("all", len(test_pairs), [64, 64])


def test_a_models_scale_is_used_for_folders_as_translate_uses_it(run_folder, folders, evaluate, tmp_path, test_pairs):
    native = evaluate(run_folder, *folders, "--metric", "l1")
    file = with_scale(run_folder / "model.safetensors", tmp_path / "half", 0.5)
    measured = evaluate(file, *folders, "--metric", "l1")
    model = p2pzoo.load(file, device="cpu")
    errors = [np.abs(model.translate(pair.x).astype(float) - pair.y).mean() * 2 / 255 for pair in test_pairs]
    assert measured["metrics"]["l1"]["value"] == pytest.approx(np.mean(errors), abs=1 / 255)
    assert {"scale": [0.5, 0.5]} in [protocol.get("scaling") for protocol in measured["protocols"].values()]
    assert measured["metrics"]["l1"]["value"] != native["metrics"]["l1"]["value"]
    assert evaluate(file, *folders, "--metric", "l1", "--scale", "native")["metrics"] == native["metrics"]
    sized = evaluate(file, *folders, "--metric", "l1", "--size", 32, 32)
    assert sized["metrics"]["l1"]["value"] == measured["metrics"]["l1"]["value"]


def test_a_model_that_does_not_say_its_scale_is_measured_with_one_warning(run_folder, folders, run_cli, tmp_path):
    tensors, header = safetensors_io.load_tensors(run_folder / "model.safetensors")
    del header["file_layout"]  # as imported weights
    file = tmp_path / "model.safetensors"
    safetensors_io.save_tensors(file, tensors, header)
    warned = run_cli("evaluate", file, *folders, "--metric", "l1", "--quiet")
    assert (warned.exit_code, warned.output.count("warning: ")) == (0, 1)
    assert "such as --scale 0.5 (--scale native: no warning)" in warned.output
    silent = run_cli("evaluate", file, *folders, "--metric", "l1", "--quiet", "--scale", "native")
    assert warned.output.splitlines()[1:] == silent.output.splitlines()


def test_pairs_of_folders_may_have_any_sizes(run_folder, tmp_path, evaluate):
    images = np.random.default_rng(0)
    for name in ("inputs", "targets"):
        for index, size in enumerate([(40, 56), (64, 96)]):
            (tmp_path / name / "val").mkdir(parents=True, exist_ok=True)
            write_png(tmp_path / name / "val" / f"{index}.png", images.integers(0, 256, (*size, 3), np.uint8))
    measured = evaluate(run_folder, tmp_path / "inputs", tmp_path / "targets", "--split", "val", "--metric", "l1")
    [protocol] = measured["protocols"].values()
    assert (protocol["split"], protocol["images"], protocol.get("size")) == ("val", 2, None)


def test_results_are_written_with_protocols_and_overwritten_by_force_alone(run_folder, run_cli, tmp_path):
    file = tmp_path / "val.json"
    arguments = ["evaluate", run_folder, "--split", "val", "--metric", "l1", "-o", file]
    printed = run_cli(*arguments)
    assert printed.exit_code == 0, printed.output
    results = read_results(file)
    assert f"l1               {results['metrics']['l1']['value']:.4f}" in printed.output.splitlines()
    assert [protocol["split"] for protocol in results["protocols"].values()] == ["val"]
    refused = run_cli(*arguments)
    assert (refused.exit_code, "already exists; --force overwrites it" in refused.output) == (2, True)
    assert run_cli(*arguments, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"test_mode": "foo"}, "test_mode must be one of paper, eval, not 'foo'"),
        ({"split": "tets"}, "split must be one of train, val, test, not 'tets'"),
    ],
)
def test_an_argument_that_is_out_of_range_is_a_value_error(argument, message):
    with pytest.raises(ValueError, match=message):
        p2pzoo.evaluate("zoo:earth-small", **argument)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.safetensors"], "nowhere.safetensors: no such model"),
        (["COPY"], "copy.safetensors: has no recipe.toml beside it, so nothing says on which images to measure it"),
        (["COPY", "INPUTS", "TARGETS"], "copy.safetensors: has no recipe.toml beside it: give --metric NAME"),
        (["nowhere.safetensors", "--recipe", "zoo:base.toml"], "nowhere.safetensors: no such model"),
        (["RUN", "inputs"], "inputs: give two folders, one of inputs and one of targets"),
        (["RUN", "mine.toml"], "mine.toml: is a recipe: give it with --recipe"),
        (["RUN", "a", "b", "c"], "give two folders, one of inputs and one of targets, not 3"),
        (["RUN", "INPUTS", "b"], "b: no such folder"),
        (["RUN", "INPUTS", "INPUTS"], "the inputs and the targets are the same folder"),
        (["RUN", "INPUTS", "TARGETS", "--split", "val"], "--split val: "),
        (
            ["RUN", "INPUTS", "TARGETS", "-s", "train.images=3"],
            "-s train.images=3: only [metrics], [compute] of a recipe",
        ),
        (["RUN", "-s", 'drop=["metrics.ssim", "losses.l1"]'], "only [dataset], [metrics], [evaluate], [compute]"),
        (["RUN", "-s", "drop=metrics"], "-s drop=metrics: only [dataset], [metrics], [evaluate]"),
        (["RUN", "-s", "drop=[discriminator"], "-s drop=[discriminator: only [dataset], [metrics]"),
        (["RUN", "INPUTS", "TARGETS", "-s", "drop=evaluate"], "-s drop=evaluate: only [metrics], [compute] of"),
        (["RUN", "--test-mode", "eval", "-s", "evaluate.test_batch=2"], "so a test_batch changes nothing"),
        (["RUN", "--split", "val", "-s", "evaluate.split=test"], "--split and -s evaluate.split set the same value"),
        (["RUN", "-s", "drop=metrics.l2"], "-s drop=metrics.l2  drop: there is no 'metrics.l2': did you mean"),
        (["RUN", "INPUTS", "TARGETS", "--scale", "half"], '--scale is "native" or a number above 0'),
        (["RUN", "INPUTS", "TARGETS", "--metric", "fcn_score"], "metric 'fcn_score' needs labels"),
        (["RUN", "--scale", "0.5"], "--scale and --size are for two folders"),
        (["RUN", "--metric", "psnrr"], "--metric psnrr: no metric 'psnrr': did you mean 'psnr'?"),
        (["RUN", "--recipe", "zoo:nothing.toml"], "zoo:nothing.toml: no such recipe"),
        (["RUN", "-o", "numbers.txt"], "-o numbers.txt: the output is JSON"),
        (["RUN", "-o", "RESULTS"], "this file belongs to the run in its folder"),
        (["RUN", "-s", "dataset.task=grey-to-color"], "x has 1 channel in tiny, and 3 in the model"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_one_line(run_folder, folders, run_cli, words, message, monkeypatch):
    monkeypatch.chdir(folders[0].parent)
    names = {"RUN": run_folder, "INPUTS": folders[0], "TARGETS": folders[1], "RESULTS": run_folder / "results.json"}
    names["COPY"] = shutil.copy(run_folder / "model.safetensors", folders[0].parent / "copy.safetensors")
    paths = [names.get(word, word) for word in words]
    result = run_cli("evaluate", *paths)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert len(result.output.splitlines()) == 1


ON_EVAL = "metrics.l1.evaluate.test_mode=eval"  # translations of its own, which two folders do not have


class TestFoldersAndAMetricWithTranslationsOfItsOwn:
    def test_is_refused_if_it_is_asked_for_by_name(self, run_folder, folders, run_cli):
        result = run_cli("evaluate", run_folder, *folders, "--metric", "psnr", "--metric", "l1", "-s", ON_EVAL)
        assert result.exit_code == 2, result.output
        assert "--metric l1: has a table [metrics.l1.evaluate]" in result.output
        assert len(result.output.splitlines()) == 1

    def test_can_be_measured_without_its_table_as_the_error_says(
        self, run_folder, folders, run_cli, evaluate, tmp_path
    ):
        (tmp_path / "mine.toml").write_text(
            f'extends = "{run_folder / "recipe.toml"}"\n[metrics.l1.evaluate]\ntest_mode = "eval"\n'
        )
        request = (run_folder, *folders, "--metric", "l1", "--recipe", tmp_path / "mine.toml")
        result = run_cli("evaluate", *request)
        [option] = re.findall("-s '(.*?)'", result.output)
        assert evaluate(*request, "-s", option)["measured"].keys() == {"l1"}

    def test_is_left_out_with_a_note_otherwise(self, run_folder, folders, run_cli):
        result = run_cli("evaluate", run_folder, *folders, "-s", ON_EVAL)
        assert result.exit_code == 0, result.output
        assert "l1: not measured, since [metrics.NAME.evaluate] is for a recipe's own images" in result.output

    def test_is_refused_if_no_metric_is_left(self, run_folder, folders, run_cli, tmp_path):
        names = config.load(str(run_folder / "recipe.toml")).metrics
        drop = ", ".join(f'"metrics.{name}"' for name in names if name != "l1")
        result = run_cli("evaluate", run_folder, *folders, "-s", ON_EVAL, "-s", f"drop=[{drop}]", "--quiet")
        assert result.exit_code == 2, result.output
        assert "no metric is left to measure" in result.output


def test_a_target_of_another_size_is_named(run_folder, folders, tmp_path, run_cli):
    targets = tmp_path / "targets"
    shutil.copytree(folders[1], targets)
    first = sorted(targets.iterdir())[0]
    write_png(first, np.zeros((32, 64, 3), np.uint8))
    result = run_cli("evaluate", run_folder, folders[0], targets)
    assert result.exit_code == 2
    assert f"{folders[0] / first.name} is 64×64 px, {first} is 64×32 px" in result.output


def test_the_function_gives_the_numbers_of_the_command(run_folder, folders, evaluate):
    threads = torch.get_num_threads()
    try:
        of_run = p2pzoo.evaluate(run_folder, metrics="l1")
        of_folders = p2pzoo.evaluate(str(run_folder), *folders, metrics=["l1"], device="cpu")
    finally:
        torch.set_num_threads(threads)
    of_command = evaluate(run_folder, "--metric", "l1")
    assert of_run.results.keys() == of_command.keys()
    assert {key: of_run.results[key] for key in KEYS} == {key: of_command[key] for key in KEYS}
    assert of_run.metrics == of_folders.metrics
    with pytest.raises(p2pzoo.UserError, match="give two folders"):
        p2pzoo.evaluate(run_folder, folders[0])


CLASSES = """
[[classes]]
name = "sky"
colour = [70, 130, 180]
[[classes]]
name = "sea"
colour = [0, 0, 90]
"""


@pytest.fixture(scope="module")
def own_images(tmp_path_factory):
    """A folder with photos/ and maps/ of 32 × 32 px in train/, val/ and test/, and the class file of the maps."""
    root, random = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name, high, channels in (("photos", 256, 3), ("maps", 2, 1)):
            (root / name / split).mkdir(parents=True)
            for index in range(2):
                image = random.integers(0, high, (32, 32, channels), np.uint8)
                write_png(root / name / split / f"{index}.png", image)
    (root / "classes.toml").write_text(CLASSES)
    return root


@pytest.mark.parametrize(
    ("dataset", "folders", "metric"),
    [
        ('use="folders", inputs="photos", targets="maps", target_labels="classes.toml"', ("photos", "maps"),
         "label_accuracy"),
        ('use="folders", inputs="maps", targets="photos", input_labels="classes.toml"', ("maps", "photos"), "l1"),
        ('use="colorize", root="photos", size=[32, 32]', ("photos", "photos"), "l1"),
        ('use="colorize", root="photos", size=[32, 32]', ("photos", "photos"), "crps"),
    ],
    ids=["photos to label maps", "label maps to photos", "lightness to colours", "several samples of colours"],
)  # fmt: skip
def test_label_maps_and_colours_have_the_runs_numbers_too(
    dataset, folders, metric, own_images, run, evaluate, tmp_path, monkeypatch
):
    monkeypatch.chdir(own_images)
    small = ["generator.depth=2", "generator.width=4", "train.images=2", "train.checkpoint_every=2"]
    data = f"dataset={{{dataset}}}"
    done = run(tmp_path, data, *small, f"metrics={{m={{use='{metric}'}}}}")
    assert done.exit_code == 0, done.output
    [folder] = [status.parent for status in tmp_path.glob("*/*/status.json")]
    of_run = read_results(folder / "results.json")["metrics"]
    measured = evaluate(folder, *folders)["metrics"]
    assert {name: number["value"] for name, number in measured.items()} == {
        name: number["value"] for name, number in of_run.items()
    }
