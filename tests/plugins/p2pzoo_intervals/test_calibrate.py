"""`p2pzoo calibrate`, and what `translate` and `evaluate` then do with the model."""

import json
import shutil
import tomllib
import warnings

import numpy as np
import pytest
import tomli_w
import torch
from p2pzoo_intervals.calibrate import _group_by_block, calibrate
from p2pzoo_intervals.coverage import IntervalCoverage
from PIL import Image

import p2pzoo
from p2pzoo import config
from p2pzoo.data import Store
from p2pzoo.images.io import read_image, write_image, write_png
from p2pzoo.models import safetensors_io
from p2pzoo.models.intervals import Calibration
from p2pzoo.plugin import Batch
from p2pzoo.utils.errors import UserError

HEAD = (
    "generator.use=quantile-head", 'generator.of={use="unet", width=4, depth=3}', 'drop=["discriminator", "gan_loss"]',
    "evaluate.test_mode=eval", "train.images=20",
)  # fmt: skip


def train(run, runs, *settings):
    result = run(runs, *settings)
    assert result.exit_code == 0, result.output
    [status] = runs.glob("*/*/status.json")
    return status.parent


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """The folder of a run with a quantile head, test mode eval."""
    return train(run, tmp_path_factory.mktemp("runs"), *HEAD)


@pytest.fixture(scope="module")
def with_dropout(run, tmp_path_factory):
    """The folder of a pix2pix run, whose test mode is paper."""
    return train(run, tmp_path_factory.mktemp("runs"), "train.images=4")


@pytest.fixture(scope="module")
def calibrated(trained, run_cli, tmp_path_factory):
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("calibrated") / "run")
    result = run_cli("calibrate", folder, "--level", "0.8")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def image(trained, tmp_path):
    """The first test input as a PNG."""
    dataset = config.load(str(trained / "recipe.toml")).dataset.build(split="test")
    write_png(tmp_path / "photo.png", dataset[0].x)
    return tmp_path / "photo.png"


def split_of(folder, split):
    dataset = config.load(str(folder / "recipe.toml")).dataset.build(split=split)
    return [dataset[index] for index in range(len(dataset))]


def header_of(file):
    return safetensors_io.load_tensors(file)[1]


class TestCommand:
    def test_the_model_file_carries_the_calibration_and_else_stays_as_it_was(self, trained, calibrated):
        before, after = (safetensors_io.load_tensors(each / "model.safetensors") for each in (trained, calibrated))
        of_file = after[1].pop("calibration")
        assert after[1] == before[1]
        assert all(torch.equal(after[0][name], tensor) for name, tensor in before[0].items())
        blocks = {pair.block for pair in split_of(trained, "val")}
        assert of_file["blocks"] == len(blocks)
        assert (of_file["level"], of_file["samples"], of_file["test_mode"]) == (0.8, 1, "eval")
        assert of_file["data"]["splits"] == ["val"]
        assert of_file["data"]["dataset"]["use"] == "earth:earth"

    def test_the_factor_is_the_one_that_brute_force_finds(self, trained, calibrated):
        model, scores = p2pzoo.load(calibrated, device="cpu"), {}
        for pair in split_of(trained, "val"):
            x, y = (torch.from_numpy(each).permute(2, 0, 1)[None].float() / 127.5 - 1 for each in (pair.x, pair.y))
            with torch.no_grad():
                lower, upper = model.G.eval().interval(x)
            score = (y - (lower + upper) / 2).abs() / ((upper - lower) / 2 + 2 / 255)
            scores.setdefault(pair.block, []).append(score.flatten())
        blocks = [torch.cat(each) for each in scores.values()]
        allowed = (len(blocks) + 1) * 0.2 - 1
        candidates = torch.cat(blocks).unique()
        low, high = 0, len(candidates) - 1
        while low < high:
            middle = (low + high) // 2
            is_enough = sum((b > candidates[middle]).double().mean().item() for b in blocks) <= allowed + 1e-9
            low, high = (low, middle) if is_enough else (middle + 1, high)
        exact = candidates[low].item()
        assert exact * (1 - 1e-5) <= model.calibration.factor <= exact * 1.0011

    def test_no_published_file_says_where_the_data_are(self, trained, run_cli, tmp_path):
        """Neither the model's file, nor a graph or a card: of a folder of this machine, and of a file in a subtable."""
        secret = "Dr_Secret_Clinic"
        for split in ("train", "val", "test"):
            for number in range(5):
                file = tmp_path / secret / split / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng([len(split), number]).integers(0, 256, (32, 64, 3), dtype=np.uint8)
                write_png(file, pixels)
        folder = shutil.copytree(trained, tmp_path / "run")
        recipe = tomllib.loads((folder / "recipe.toml").read_text())
        for name in (secret, "elsewhere"):
            recipe["dataset"] = {"use": "side-by-side", "root": str(tmp_path / name)}
            (folder / "recipe.toml").write_text(tomli_w.dumps(recipe))
            (tmp_path / secret).rename(tmp_path / name)
            output = tmp_path / f"{name}.safetensors"
            result = run_cli("calibrate", folder, "-o", output, "--level", "0.6")
            assert result.exit_code == 0, result.output
            (tmp_path / name).rename(tmp_path / secret)
        assert (tmp_path / f"{secret}.safetensors").read_bytes() == (tmp_path / "elsewhere.safetensors").read_bytes()
        assert header_of(output)["calibration"]["data"]["dataset"]["use"] == "datasets:side-by-side"
        assert len(header_of(output)["calibration"]["images"]) == 5

    def test_it_prints_one_document(self, trained, run_cli, tmp_path):
        result = run_cli("calibrate", trained, "--json", "-o", tmp_path / "new.safetensors", "--level", "0.5")
        document = json.loads(result.output[result.output.index("{") :])
        assert document["file"] == str(tmp_path / "new.safetensors")
        assert document["level"] == 0.5
        assert document["uncovered"] <= 0.5
        assert document["factor"] == header_of(tmp_path / "new.safetensors")["calibration"]["factor"]
        assert "calibration" not in header_of(trained / "model.safetensors")

    def test_a_second_calibration_replaces_the_first_and_equal_ones_are_equal_files(
        self, calibrated, run_cli, tmp_path
    ):
        folder = shutil.copytree(calibrated, tmp_path / "run")
        before = (folder / "model.safetensors").read_bytes()
        assert run_cli("calibrate", folder, "--level", "0.6").exit_code == 0
        assert p2pzoo.load(folder, device="cpu").calibration.level == 0.6
        assert run_cli("calibrate", folder, "--level", "0.8").exit_code == 0
        assert (folder / "model.safetensors").read_bytes() == before

    def test_two_splits_have_the_blocks_of_both(self, trained, run_cli, tmp_path):
        output = tmp_path / "new.safetensors"
        result = run_cli("calibrate", trained, "--split", "val", "--split", "test", "--level", "0.9", "-o", output)
        assert result.exit_code == 0, result.output
        of_file = header_of(output)["calibration"]
        assert of_file["blocks"] == len({pair.block for split in ("val", "test") for pair in split_of(trained, split)})
        assert of_file["data"]["splits"] == ["val", "test"]
        assert "the recipe measures its numbers on test too ([evaluate] split): if they chose" in result.output

    def test_a_level_with_too_few_blocks_is_refused_with_the_least_number(self, trained, run_cli):
        blocks = len({pair.block for pair in split_of(trained, "val")})
        result = run_cli("calibrate", trained, "--level", "0.95")
        assert result.exit_code == 2
        assert f"--level 0.95 needs at least 19 blocks, and val has {blocks}: choose --level 0." in result.output
        assert "calibration" not in header_of(trained / "model.safetensors")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("zoo:earth-small",), "write the calibrated model elsewhere with -o"),
            (("RUN", "-o", "x.pth"), "needs a name that ends in .safetensors"),
            (("RUN/nothing",), "no such model"),
        ],
    )
    def test_bad_arguments_are_refused_in_one_line(self, trained, assert_refused, words, message):
        assert_refused(message, "calibrate", *(each.replace("RUN", str(trained)) for each in words))

    def test_a_model_without_bounds_and_without_random_numbers_is_refused(self, run, run_cli, tmp_path):
        settings = ("train.images=2", "generator.noise=none", "evaluate.test_mode=eval")
        result = run_cli("calibrate", train(run, tmp_path, *settings))
        assert result.exit_code == 2
        assert "draws no random numbers in its test mode, eval" in result.output
        assert 'use = "quantile-head"' in result.output

    def test_an_unfinished_run_is_refused(self, shared_halfway, run_cli):
        [status] = shared_halfway.glob("*/*/status.json")
        result = run_cli("calibrate", status.parent)
        assert result.exit_code == 2
        assert "not finished" in result.output


class TestOtherRecipes:
    def test_another_scale_than_that_of_the_training_is_refused(self, trained, run_cli, tmp_path):
        """`translate --interval` shows the model images at the scale of its training."""
        tensors, header = safetensors_io.load_tensors(trained / "model.safetensors")
        for name, scale in (("same", 1.0), ("other", 0.25)):
            layout = {"size": [64, 64], "scale": [scale, scale], "x_half": None, "alpha": False}
            safetensors_io.save_model_tensors(
                tmp_path / f"{name}.safetensors", tensors, header | {"file_layout": layout}
            )
        for split in ("train", "val", "test"):
            for number in range(5):
                file = tmp_path / "data" / split / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng([len(split), number]).integers(0, 256, (64, 128, 3), dtype=np.uint8)
                write_png(file, pixels)
        recipe = tomllib.loads((trained / "recipe.toml").read_text())
        recipe["dataset"] = {"use": "side-by-side", "root": str(tmp_path / "data")}
        (tmp_path / "mine.toml").write_text(tomli_w.dumps({k: v for k, v in recipe.items() if k != "profile"}))
        options = ("--recipe", tmp_path / "mine.toml", "--level", "0.6", "-o", tmp_path / "out.safetensors")
        refused = run_cli("calibrate", tmp_path / "other.safetensors", *options)
        assert refused.exit_code == 2, refused.output
        assert "mine brings images to 1 of their size, the model's training to 0.25" in refused.output
        assert not (tmp_path / "out.safetensors").exists()
        accepted = run_cli("calibrate", tmp_path / "same.safetensors", *options)
        assert accepted.exit_code == 0, accepted.output
        assert "mine is not the recipe of the model's run" in accepted.output
        tensors, header = safetensors_io.load_tensors(tmp_path / "other.safetensors")
        own = header | {"run": config.load(str(tmp_path / "mine.toml")).id}
        safetensors_io.save_model_tensors(tmp_path / "own.safetensors", tensors, own)
        warned = run_cli("calibrate", tmp_path / "own.safetensors", *options, "--force")  # photos of several sizes
        assert warned.exit_code == 0, warned.output
        assert "these images have another scale than those of the training" in warned.output

    def test_the_own_recipe_needs_no_note(self, trained, run_cli, tmp_path):
        options = ("--recipe", trained / "recipe.toml", "-o", tmp_path / "out.safetensors")
        result = run_cli("calibrate", trained, *options)
        assert (result.exit_code, "is not the recipe" in result.output) == (0, False), result.output
        assert "measures its numbers on" not in result.output


class TestSamples:
    def test_dropout_gives_bounds(self, with_dropout, run_cli, image, tmp_path):
        output = tmp_path / "new.safetensors"
        result = run_cli("calibrate", with_dropout, "--samples", "3", "-o", output)
        assert result.exit_code == 0, result.output
        model = p2pzoo.load(output, device="cpu")
        assert (model.calibration.samples, model.calibration.test_mode) == (3, "paper")
        interval = model.interval(read_image(image))
        assert (interval.lower <= interval.upper).all()

    def test_a_process_gives_bounds_in_eval_mode(self, run, run_cli, image, tmp_path):
        settings = (
            "generator.norm=instance", "process.use=flow", "process.steps=1", 'drop=["discriminator", "gan_loss"]',
            "evaluate.test_mode=eval", "train.images=2",
        )  # fmt: skip
        folder = train(run, tmp_path / "runs", *settings)
        result = run_cli("calibrate", folder, "--samples", "2")
        assert result.exit_code == 0, result.output
        model = p2pzoo.load(folder, device="cpu")
        assert (model.calibration.samples, model.calibration.test_mode) == (2, "eval")
        assert model.interval(read_image(image)).width.min() > 0
        with pytest.raises(ValueError, match="calibration"):
            p2pzoo.load(folder, device="cpu", process={"steps": 2}).interval(read_image(image))

    def test_data_without_blocks_has_one_for_each_image(self, with_dropout, tmp_path):
        for split, count in (("train", 1), ("val", 5), ("test", 1)):
            for seed, side in enumerate("xy"):
                for number in range(count):
                    file = tmp_path / side / split / f"{number}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    pixels = np.random.default_rng([seed, number]).integers(0, 256, (64, 64, 3), dtype=np.uint8)
                    write_png(file, pixels)
        data = f'dataset={{use="folders", inputs="{tmp_path / "x"}", targets="{tmp_path / "y"}"}}'
        experiment = config.load(str(with_dropout / "recipe.toml"), None, [data, "dataset.size=[64, 64]"])
        lines = []
        model = p2pzoo.load(with_dropout, device="cpu")
        outcome = calibrate(model, experiment, level=0.8, splits=["val"], samples=2, note=lines.append)
        assert outcome.calibration.blocks == 5
        assert any("5 images without a block" in line for line in lines)


class TestTranslate:
    def test_it_writes_both_bounds_and_the_width(self, calibrated, run_cli, image, tmp_path):
        out = tmp_path / "out"
        result = run_cli("translate", calibrated, image, "-o", out, "--interval", "0.8", "--json", "--quiet")
        assert result.exit_code == 0, result.output
        names = ["photo.png", "photo-lower.png", "photo-upper.png", "photo-width.png"]
        document = json.loads(result.output)
        assert document["files"][0]["outputs"] == [str(out / name) for name in names]
        y_hat, lower, upper, width = (read_image(out / name).astype(int) for name in names)
        expected = p2pzoo.load(calibrated, device="cpu").interval(read_image(image))
        assert np.array_equal(lower, expected.lower)
        assert np.array_equal(upper, expected.upper)
        assert (lower <= y_hat).all()
        assert (y_hat <= upper).all()
        assert np.abs(width[..., 0] - (upper - lower).mean(2)).max() <= 2, "one grey level is one level of the image"

    @pytest.mark.parametrize("suffix", ["tif", "npy"])
    def test_other_formats_keep_the_width_exact(self, calibrated, run_cli, image, tmp_path, suffix):
        options = ("--interval", "0.8", "--format", suffix)
        assert run_cli("translate", calibrated, image, "-o", tmp_path / "out", *options).exit_code == 0
        width = read_image(tmp_path / "out" / f"photo-width.{suffix}")
        assert np.array_equal(width[..., 0], p2pzoo.load(calibrated, device="cpu").interval(read_image(image)).width)

    def test_tiles_give_bounds_too(self, calibrated, run_cli, tmp_path):
        write_image(tmp_path / "large.png", np.zeros((96, 160, 3), np.uint8))
        options = ("--interval", "0.8", "--tile", "64")
        result = run_cli("translate", calibrated, tmp_path / "large.png", "-o", tmp_path / "out", *options)
        assert result.exit_code == 0, result.output
        assert read_image(tmp_path / "out" / "large-lower.png").shape == (96, 160, 3)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--interval", "0.9"), "calibrated for the level 0.8, not 0.9: `p2pzoo calibrate RUN --level 0.9`"),
            (("--interval", "0.8", "--test-mode", "paper"), "calibrated in test mode eval, not paper"),
            (("--interval", "0.8", "--samples", "3", "--test-mode", "paper"), "--interval and --samples"),
            (("--interval", "0.8", "--scale", "0.5"), "leave out --scale and --size"),
            (("--interval", "0.8", "--precision", "bf16"), "calibrated in fp32"),
            (("--interval", "0.8", "--format", "jpg"), ".jpg changes pixels"),
        ],
    )
    def test_what_makes_no_sense_is_refused_in_one_line(self, calibrated, run_cli, image, tmp_path, options, message):
        result = run_cli("translate", calibrated, image, "-o", tmp_path / "out", *options, "--quiet")
        assert result.exit_code == 2
        assert message.replace("RUN", str(calibrated)) in result.output
        assert not (tmp_path / "out").exists()

    def test_without_a_calibration_it_names_the_command(self, trained, run_cli, image, tmp_path):
        result = run_cli("translate", trained, image, "-o", tmp_path / "out", "--interval", "0.9", "--quiet")
        assert result.exit_code == 2
        assert f"no calibration, so its intervals would promise nothing: `p2pzoo calibrate {trained} --level 0.9`" in (
            result.output
        )

    def test_no_file_is_overwritten(self, calibrated, run_cli, image, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "photo-upper.png").write_bytes(b"mine")
        arguments = ("translate", calibrated, image, "-o", tmp_path / "out", "--interval", "0.8")
        result = run_cli(*arguments)
        assert "photo-upper.png: already exists" in result.output
        assert (tmp_path / "out" / "photo-upper.png").read_bytes() == b"mine"
        assert run_cli(*arguments, "--force").exit_code == 0


class TestEvaluate:
    def test_it_measures_the_coverage_of_test_blocks_by_hand(self, trained, calibrated, run_cli):
        results = p2pzoo.evaluate(calibrated)
        model, shares, widths = p2pzoo.load(calibrated, device="cpu"), {}, []
        for pair in split_of(trained, "test"):
            x, y = (torch.from_numpy(each).permute(2, 0, 1)[None].float() / 127.5 - 1 for each in (pair.x, pair.y))
            with torch.no_grad():
                lower, upper = model.calibration.widen(*model.G.eval().interval(x))
            shares.setdefault(pair.block, []).append(((lower <= y) & (y <= upper)).double().mean().item())
            widths.append((upper - lower).mean().item())
        metrics = results.metrics
        assert metrics["interval-coverage"] == pytest.approx(
            np.mean([np.mean(each) for each in shares.values()]), abs=1e-5
        )
        assert metrics["interval-coverage.width"] == pytest.approx(np.mean(widths), abs=1e-5)
        assert metrics["interval-coverage.level"] == 0.8
        assert metrics["interval-coverage.low"] <= metrics["interval-coverage"] <= metrics["interval-coverage.high"]
        assert 0 <= metrics["interval-coverage.class.forest"] <= 1
        [protocol] = [p for p in results.results["protocols"].values() if "calibration" in p["metric"]]
        assert protocol["metric"]["calibration"]["factor"] == model.calibration.factor

    def test_the_other_numbers_stay_those_of_the_run(self, trained, calibrated):
        of_run = json.loads((trained / "results.json").read_text())["metrics"]
        measured = p2pzoo.evaluate(calibrated).results["metrics"]
        assert {name: measured[name] for name in of_run} == of_run

    def test_only_wanted_metrics_are_measured(self, calibrated):
        assert {*p2pzoo.evaluate(calibrated, metrics="l1").metrics} == {"l1"}
        assert "l1" not in p2pzoo.evaluate(calibrated, metrics="interval-coverage").metrics

    def test_the_images_that_calibrated_are_no_test(self, calibrated, run_cli):
        result = run_cli("evaluate", calibrated, "--split", "val")
        assert result.exit_code == 0, result.output
        count = len(split_of(calibrated, "val"))
        assert f"{count} of these images calibrated the model, so this is no test of it" in result.output

    def test_a_coverage_below_its_target_is_a_warning(self, calibrated, run_cli, tmp_path):
        folder = shutil.copytree(calibrated, tmp_path / "run")
        tensors, header = safetensors_io.load_tensors(folder / "model.safetensors")
        header["calibration"]["factor"] = 0.01
        safetensors_io.save_tensors(folder / "model.safetensors", tensors, header)
        result = run_cli("evaluate", folder)
        assert result.exit_code == 0, result.output
        assert "misses its target 0.8; the 95% interval, " in result.output
        assert "is below the target" in result.output

    def test_in_another_test_mode_it_is_left_out_with_a_note(self, calibrated, run_cli):
        result = run_cli("evaluate", calibrated, "--test-mode", "paper", "--metric", "l1")
        assert result.exit_code == 0
        assert "interval-coverage" not in result.output
        result = run_cli("evaluate", calibrated, "--test-mode", "paper")
        assert "interval-coverage: not measured: this model is calibrated in test mode eval" in result.output
        assert "interval-coverage  " not in result.output
        assert run_cli("evaluate", calibrated, "--test-mode", "paper", "--metric", "interval-coverage").exit_code == 2

    def test_in_another_test_mode_it_is_refused_if_it_is_the_only_metric(self, calibrated, run_cli):
        drop = ", ".join(f'"metrics.{name}"' for name in config.load(str(calibrated / "recipe.toml")).metrics)
        only = ("-s", f"drop=[{drop}]", "-s", "metrics.only.use=interval-coverage")
        result = run_cli("evaluate", calibrated, "--test-mode", "paper", *only)
        assert result.exit_code == 2, result.output
        assert "only: not measured: this model is calibrated in test mode eval" in result.output

    def test_without_a_calibration_it_is_refused_with_the_command(self, trained, run_cli):
        result = run_cli("evaluate", trained, "--metric", "interval-coverage")
        assert result.exit_code == 2
        assert f"`p2pzoo calibrate {trained} --level 0.8`" in result.output

    def test_a_recipe_that_trains_cannot_have_it(self, run, tmp_path):
        result = run(tmp_path, "metrics.coverage.use=interval-coverage", "train.images=2")
        assert result.exit_code == 2
        assert "there is no calibrated model yet" in result.output
        assert result.first_step is None

    def test_two_folders_are_measured_too(self, calibrated, tmp_path):
        for pair in split_of(calibrated, "test"):
            for side in ("x", "y"):
                (tmp_path / side).mkdir(exist_ok=True)
                write_png(tmp_path / side / f"{pair.id}.png", getattr(pair, side))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measured = p2pzoo.evaluate(calibrated, tmp_path / "x", tmp_path / "y", metrics=("l1", "interval-coverage"))
        of_recipe = p2pzoo.evaluate(calibrated).metrics
        assert measured.metrics["interval-coverage.width"] == pytest.approx(
            of_recipe["interval-coverage.width"], abs=1e-5
        )
        assert measured.metrics["l1"] == pytest.approx(of_recipe["l1"], abs=1e-5)


class TestMetric:
    def metric(self, classes=()):
        class Data:
            pass

        Data.classes = classes
        metric = IntervalCoverage(Data())
        metric.calibration = Calibration(0.8, 1.0, 1, "eval", 4, (), {}, "intervals:interval-coverage")
        return metric

    def test_blocks_count_the_same_and_classes_are_pooled(self):
        y = torch.zeros(3, 1, 2, 2)
        y[0] = 1.0  # outside of the interval, all of block a
        y[1, 0, 0, 0] = 1.0
        labels = torch.tensor([[[0, 0], [1, 1]]] * 3)
        bounds = torch.stack([torch.full_like(y, -0.5), torch.full_like(y, 0.5)], dim=1)
        batch = Batch(y, y, ("1", "2", "3"), labels, ("a", "b", "b"))
        metric = self.metric(("sea", "land", "snow"))
        with pytest.warns(UserWarning, match="0.438 on 2 blocks misses its target 0.8; too few blocks for an interval"):
            numbers = metric.reduce(metric.measure(batch, bounds))
        assert numbers == {
            "value": pytest.approx((0 + 7 / 8) / 2), "level": 0.8, "width": 1.0,
            "class.sea": pytest.approx(3 / 6), "class.land": pytest.approx(4 / 6),
        }  # fmt: skip

    def test_without_a_calibration_nothing_is_trusted(self):
        metric = self.metric()
        metric.calibration = None
        with pytest.raises(UserError, match=r"`p2pzoo calibrate RUN --level 0\.8`"):
            metric.trust(torch.device("cpu"))


def test_calibration_counts_an_image_of_two_splits_once(tmp_path):
    """n blocks support the level 1 - 1 / (n + 1): 2 support 0.66. Counted twice, they seem to support 0.8.

    If all values of a block have one score, the expected uncovered share of a new block is then 1/3 and not 0.2.
    """
    for side in "ab":
        for split, number in (("train", 3), ("test", 2)):
            (tmp_path / side / split).mkdir(parents=True)
            for index in range(number):
                pixels = np.full((32, 32, 3), 40 * index + 90 * (side == "b"), np.uint8)
                Image.fromarray(pixels).save(tmp_path / side / split / f"{index}.png")
    (tmp_path / "mine.toml").write_text(
        'extends = "zoo:base.toml"\n[dataset]\nuse = "folders"\ninputs = "a"\ntargets = "b"\nsize = [32, 32]\n'
    )
    dataset = config.load(str(tmp_path / "mine.toml"), "smoke").dataset
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stores = {split: Store(dataset.build(split=split)) for split in ("val", "test")}
    assert len(_group_by_block(stores, lambda _: None)) == 2
