"""The average of G that every run keeps, and the metrics that measure it, or G as it was earlier."""

import copy
import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import p2pzoo
from p2pzoo import config
from p2pzoo.data import Store
from p2pzoo.images.io import write_png
from p2pzoo.models.norm_statistics import NORM_IMAGES, estimate_norms
from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.models.test_modes import translate
from p2pzoo.plugin.loader import registry
from p2pzoo.runs.evaluate_model import Request, evaluate_model
from p2pzoo.training.kept_average import KeptAverage
from p2pzoo.training.model_writer import ModelWriter
from p2pzoo.training.run_experiment import run_experiment
from p2pzoo.utils.errors import UserError

SMALL = (
    "dataset.size=64", "dataset.stride=256", "generator.width=4", "discriminator.width=4", "train.images=20",
    "train.log_every=20", "train.checkpoint_every=20", "compute.device=cpu", 'drop=["metrics.ssim", "metrics.psnr"]',
)  # fmt: skip


class Silent:
    def step(self, images, losses): ...
    def note(self, text): ...


def run_in(runs, *overrides):
    return run_experiment(config.load("zoo:base.toml", "smoke", [*SMALL, *overrides]), registry(), runs, Silent())


@pytest.fixture
def run(tmp_path):
    return functools.partial(run_in, tmp_path)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run with a metric for each kind of translations, and snapshots."""
    runs = tmp_path_factory.mktemp("measured")
    metrics = {
        "average": "weights='average'", "eval": "weights='average', test_mode='eval'", "three": "test_batch=3",
        "early": "at=10",
    }  # fmt: skip
    overrides = [f"metrics.{name}={{use='l1', evaluate={{{table}}}}}" for name, table in metrics.items()]
    return run_in(runs, "evaluate.at=[6, 10]", *overrides)


def value(outcome, metric):
    return outcome.results["metrics"][metric]["value"]


def updated(average, weights, images, since):
    decay = min(0.999**since, (1 + images) / (10 + images))
    return decay * average + (1 - decay) * weights


class TestKeptAverage:
    @pytest.mark.parametrize("step_images", [1, 3, 10])
    def test_it_is_the_recursion_over_the_weights_of_every_eighth_image(self, step_images):
        """What is read between two updates has one more, which the recursion does not keep."""
        torch.manual_seed(0)
        network = nn.Linear(3, 2).double()
        average = KeptAverage(network, step_images)
        kept, since = network.weight.detach().clone(), 0
        for step in range(1, 31):
            nn.init.normal_(network.weight)
            average.after_step(step)
            since += step_images
            expected = updated(kept, network.weight.detach(), step * step_images, since)
            for _ in range(2):
                with average.in_place(step) as averaged:
                    due = step % max(1, 8 // step_images) == 0
                    torch.testing.assert_close(averaged.weight.detach(), expected, rtol=0, atol=1e-12)
            if due:
                kept, since = expected, 0
            torch.testing.assert_close(average.tensors()["weight"], kept, rtol=0, atol=1e-12)

    def test_in_place_leaves_weights_and_buffers_as_they_were_in_the_same_memory(self):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
        average = KeptAverage(network, 8)
        nn.init.normal_(network[0].weight)
        before = copy.deepcopy(network.state_dict())
        memory = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
        with average.in_place(8) as averaged, torch.no_grad():
            assert averaged is network
            assert not torch.equal(network[0].weight, before["0.weight"])
            averaged.train()(torch.randn(2, 3, 8, 8))
            assert not torch.equal(network[1].running_mean, before["1.running_mean"])
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, before[name])
            assert (tensor.data_ptr(), tensor.stride()) == (memory[name], before[name].stride())

    def test_batch_norms_get_the_mean_statistics_of_the_batches(self):
        torch.manual_seed(0)
        network = nn.Sequential(nn.BatchNorm2d(3, momentum=0.1), nn.Dropout(0.5)).eval()
        batches = [torch.randn(2, 3, 4, 4) + number for number in range(5)]
        estimate_norms(network, batches)
        means = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
        variances = torch.stack([batch.var((0, 2, 3)) for batch in batches]).mean(0)
        torch.testing.assert_close(network[0].running_mean, means)
        torch.testing.assert_close(network[0].running_var, variances)
        assert (network[0].momentum, network[0].training, network[1].training) == (0.1, False, False)

    def test_batch_norms_that_a_network_keeps_in_eval_mode_keep_their_statistics(self):
        class Partly(nn.Sequential):
            def train(self, mode=True):
                super().train(mode)
                self[0].eval()
                return self

        network = Partly(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
        nn.init.constant_(network[0].running_mean, 3.0)
        estimate_norms(network, [torch.rand(2, 3, 4, 4)])
        assert network[0].running_mean.tolist() == [3.0] * 3
        assert network[1].running_mean.all()
        assert [norm.momentum for norm in network] == [0.1, 0.1]


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_norms_are_estimated_from_as_many_images_whatever_the_number_of_processes(processes, monkeypatch):
    experiment = config.load("zoo:base.toml", "smoke", [*SMALL, "train.images=8000", "train.batch_size=8"])
    train = experiment.train
    store = Store(experiment.dataset.build(split="train"), enlarge=train.jitter, compute=experiment.compute)
    state = SimpleNamespace(engine=SimpleNamespace(to_device=lambda batch: batch))
    monkeypatch.setattr("p2pzoo.compute.distributed.world_size", lambda: processes)
    images = sum(len(x) for x in ModelWriter(experiment, None, state, store)._norm_batches())
    assert NORM_IMAGES <= images < NORM_IMAGES + 8


class TestRuns:
    def test_training_is_the_same_to_the_bit_without_it(self, run, measured, monkeypatch):
        monkeypatch.setattr("p2pzoo.training.loop.KeptAverage", lambda *_: None)
        monkeypatch.setattr("p2pzoo.training.model_writer.plan_snapshots", lambda _: {})
        plain = run()
        assert plain.run.folder.name == measured.run.folder.name, "the same id"
        assert plain.run.model.read_bytes() == measured.run.model.read_bytes()
        assert not plain.run.average.exists()

    def test_the_saved_average_is_an_average_with_norms_of_its_own(self, measured):
        average, header = load_tensors(measured.run.average)
        last, _ = load_tensors(measured.run.model)
        assert header["weights"] == "average"
        assert average.keys() == last.keys()
        differ = {name for name, tensor in average.items() if not torch.equal(tensor, last[name])}
        assert {name for name in average if name.endswith(("weight", "running_mean", "running_var"))} <= differ

    @pytest.mark.parametrize(("images", "at"), [(16, [4, 12, 13]), (20, [16])])
    def test_saved_averages_are_those_of_the_formula_and_snapshots_do_not_change_them(
        self, run, images, at, monkeypatch, tmp_path
    ):
        plain = run(f"train.images={images}").run.average.read_bytes()
        weights, names = [], set()

        class Recording(KeptAverage):
            def __init__(self, network, step_images):
                super().__init__(network, step_images)
                self.name, self.weight = next(network.named_parameters())
                weights.append(self.weight.detach().clone())
                names.add(self.name)

            def after_step(self, step):
                weights.append(self.weight.detach().clone())
                super().after_step(step)

        monkeypatch.setattr("p2pzoo.training.loop.KeptAverage", Recording)
        overrides = (f"train.images={images}", "evaluate.weights=average", f"evaluate.at={at}")
        folder = run_in(tmp_path / "with snapshots", *overrides).run
        assert folder.average.read_bytes() == plain

        [name], kept, since, expected = names, weights[0], 0, {}
        for number, weight in enumerate(weights[1:], 1):
            since += 1
            expected[number] = updated(kept, weight, number, since)
            if number % 8 == 0:
                kept, since = expected[number], 0
        files = {images: folder.average, **{number: folder.weights("average", number) for number in at}}
        for number, file in files.items():
            torch.testing.assert_close(load_tensors(file)[0][name], expected[number], rtol=0, atol=1e-7)

    def test_a_metric_at_some_images_is_that_of_a_run_of_this_length(self, run, measured):
        for images in (6, 10):
            short = run(f"train.images={images}")
            assert value(measured, f"l1@{images}") == value(short, "l1")
        assert value(measured, "early") == value(measured, "l1@10")
        assert "early@6" not in measured.results["metrics"], "it has its own number of images"

    def test_metrics_measure_the_translations_that_they_name(self, measured):
        experiment = config.load(str(measured.run.recipe))
        dataset, layout = experiment.dataset.build(split="test"), {"memory_format": torch.channels_last}
        G = {
            weights: p2pzoo.load(measured.run.folder, device="cpu", weights=weights).G.to(**layout)
            for weights in ("last", "average")
        }
        modes = {
            "l1": (G["last"], "paper", 1), "average": (G["average"], "paper", 1), "eval": (G["average"], "eval", 1),
            "three": (G["last"], "paper", 3),
        }  # fmt: skip
        x = torch.stack([torch.from_numpy(pair.x).permute(2, 0, 1) / 127.5 - 1 for pair in dataset])
        y = torch.stack([torch.from_numpy(pair.y).permute(2, 0, 1) / 127.5 - 1 for pair in dataset])
        numbers = {}
        for name, (network, mode, together) in modes.items():
            y_hat = translate(network, x.contiguous(**layout), mode, together=together)
            numbers[name] = (y_hat - y).abs().mean().item()
        measured_numbers = {name: value(measured, name) for name in modes}
        assert measured_numbers == pytest.approx(numbers, rel=1e-5)
        assert min(np.diff(sorted(numbers.values()))) > 1e-4 * numbers["l1"], "the four differ by more"

    def test_protocols_name_what_differs_and_those_of_earlier_versions_stay(self, measured):
        results = measured.results
        keys = ("test_mode", "test_batch", "weights", "at")
        protocols = {
            name: {key: results["protocols"][digest][key] for key in keys if key in results["protocols"][digest]}
            for name, digest in results["measured"].items()
        }
        assert protocols == {
            "l1": {"test_mode": "paper", "test_batch": 1},
            "average": {"test_mode": "paper", "test_batch": 1, "weights": "average"},
            "eval": {"test_mode": "eval", "weights": "average"},
            "three": {"test_mode": "paper", "test_batch": 3},
            "early": {"test_mode": "paper", "test_batch": 1, "at": 10},
            **{
                f"{name}@{images}": protocols[name] | {"at": images}
                for name in ("l1", "average", "eval", "three")
                for images in (6, 10)
            },
        }

    def test_evaluate_gives_the_numbers_of_the_run_for_every_kind(self, measured):
        again = p2pzoo.evaluate(measured.run.folder)
        assert again.metrics == {name: number["value"] for name, number in measured.results["metrics"].items()}

    def test_evaluate_of_one_file_measures_its_weights(self, measured):
        drop, notes = 'drop=["metrics.eval", "metrics.early", "metrics.average"]', []
        again = evaluate_model(Request(measured.run.average, overrides=[drop]), notes.append)
        assert again["metrics"]["l1"]["value"] == value(measured, "average")
        assert f"only the average weights, those of {measured.run.average}" in notes[0]
        with pytest.raises(UserError, match=r"metric 'early' measures G with other weights \(at\)"):
            p2pzoo.evaluate(measured.run.average)

    def test_a_stored_run_is_not_measured_again(self, run, measured):
        experiment = config.load(str(measured.run.recipe))
        again = run_experiment(experiment, registry(), measured.run.folder.parents[1], Silent())
        assert not again.trained
        assert again.results == measured.results

    @pytest.mark.parametrize(
        ("override", "what"),
        [("evaluate.weights=average", "the average of its weights"), ("evaluate.at=[5]", "its weights after 5 images")],
    )
    def test_a_run_that_kept_no_such_weights_is_refused(self, run, override, what):
        outcome = run("train.images=8")
        outcome.run.average.unlink()
        with pytest.raises(UserError, match=f"trained without keeping {what}: train it again with --fresh"):
            run("train.images=8", override)


class TestRecipes:
    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["train.ema=0.9", "evaluate.weights=average"], r"\[evaluate\] weights = .average.: with \[train\] ema"),
            (["evaluate.test_mode=eval", "evaluate.test_batch=3"], "a test_batch changes nothing"),
            (["metrics.l1.evaluate={test_mode='eval', test_batch=3}"], r"\[metrics.l1\] test mode .eval. uses running"),
            (["evaluate.at=[20]"], "at = 20: the training ends at 20 images"),
            (["metrics.l1.evaluate.at=21"], r"\[metrics.l1\] at = 21: the training ends at 20 images"),
            (["evaluate.at=[10, 5]"], "give each number of images once, in increasing order"),
            (["evaluate.at=[5, 5]"], "give each number of images once, in increasing order"),
            (["metrics.l1.evaluate.wieghts=average"], "has no parameter 'wieghts': did you mean 'weights'"),
            (["metrics.l1.evaluate=3"], "evaluate must be a table, not 3"),
        ],
    )
    def test_what_would_be_ignored_is_refused(self, overrides, message):
        with pytest.raises(UserError, match=message):
            config.load("zoo:base.toml", "smoke", [*SMALL, *overrides])

    def test_a_resolved_recipe_keeps_them(self, measured):
        recipe = measured.run.recipe
        again = config.load(str(recipe))
        assert again.id == measured.results["id"]
        assert {*again.measurements} == {*measured.results["measured"]}


class TestTranslate:
    @pytest.fixture
    def photo(self, tmp_path):
        write_png(tmp_path / "x.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
        return tmp_path / "x.png"

    def test_weights_average(self, measured, photo, run_cli, tmp_path):
        for weights in ("last", "average"):
            out = tmp_path / f"{weights}.npy"
            result = run_cli(
                "translate", measured.run.folder, photo, "-o", out, "--weights", weights, "--device", "cpu"
            )
            assert result.exit_code == 0, result.output
            expected = p2pzoo.load(measured.run.folder, device="cpu", weights=weights).translate(str(photo))
            assert np.array_equal(np.load(out), np.asarray(expected))
        assert not np.array_equal(np.load(tmp_path / "last.npy"), np.load(tmp_path / "average.npy"))

    def test_a_run_stands_for_the_weights_that_its_numbers_measured(self, run, measured, photo, run_cli, tmp_path):
        """What the report shows is what is translated; a run that is not finished has its last weights."""
        averaged = run("train.images=8", "evaluate.weights=average").run.folder
        for folder, weights in ((averaged, "average"), (measured.run.folder, "last")):
            assert run_cli("translate", folder, photo, "-o", out := tmp_path / f"{weights}.npy").exit_code == 0
            by_default, chosen, other = (
                np.asarray(p2pzoo.load(folder, device="cpu", weights=name).translate(str(photo)))
                for name in (None, weights, {"average": "last", "last": "average"}[weights])
            )
            assert np.array_equal(np.load(out), by_default)
            assert np.array_equal(by_default, chosen)
            assert not np.array_equal(by_default, other)
        run(
            "train.images=8", "evaluate.weights=last"
        )  # the same training, whose numbers are now those of the last weights
        assert p2pzoo.load(averaged, device="cpu").weights == "last"
        (averaged / "model.safetensors").unlink()
        with pytest.warns(UserWarning, match="not finished"):
            assert p2pzoo.load(averaged, device="cpu").weights == "last"

    def test_the_file_says_so(self, measured, photo, run_cli, tmp_path):
        from PIL import Image

        assert (
            run_cli("translate", measured.run.folder, photo, "-o", tmp_path / "y.png", "--weights", "average").exit_code
            == 0
        )
        assert json.loads(Image.open(tmp_path / "y.png").text["p2pzoo"])["weights"] == "average"

    @pytest.mark.parametrize("model", ["zoo:earth-small", "model.safetensors"])
    def test_a_model_without_an_average_is_refused(self, model, measured, photo, run_cli, tmp_path):
        path = model if model.startswith("zoo:") else measured.run.model
        result = run_cli("translate", path, photo, "-o", tmp_path / "y.png", "--weights", "average")
        assert result.exit_code == 2
        assert "average" in result.output
        assert not (tmp_path / "y.png").exists()
