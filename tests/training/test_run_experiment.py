"""Runs from end to end, small: what is trained, what is found again, what is measured later, what is refused."""

import json
import tomllib

import pytest
import torch

from p2pzoo import config
from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.plugin.loader import registry
from p2pzoo.plugin.protocols import Callback
from p2pzoo.plugin.registry import Entry, Registry
from p2pzoo.training.run_experiment import run_experiment
from p2pzoo.utils.errors import UserError

SMALL = (
    "dataset.size=64",
    "dataset.stride=256",  # one tile a region
    "generator.width=4",
    "discriminator.width=4",
    "train.images=6",
    "train.log_every=2",
    "train.checkpoint_every=2",
    "compute.device=cpu",
)


class Notes:
    """A Progress that keeps what it is told."""

    def __init__(self):
        self.steps, self.notes = [], []

    def step(self, images, losses):
        self.steps.append((images, losses))

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def run(tmp_path):
    """run(*overrides, recipe=…) -> (outcome, what was shown)."""

    def run(*overrides, recipe="zoo:base.toml", components=None, **kwargs):
        known = components or registry()
        experiment = config.load(recipe, "smoke", [*SMALL, *overrides], registry=known)
        shown = Notes()
        return run_experiment(experiment, known, tmp_path, shown, **kwargs), shown

    return run


def test_a_run_leaves_all_that_the_readme_promises(run):
    outcome, shown = run()
    folder = outcome.run.folder
    assert {path.name for path in folder.iterdir()} - {".lock"} == {
        "recipe.toml", "status.json", "env.json", "metrics.jsonl", "timings.jsonl", "samples", "checkpoints",
        "model.safetensors", "results.json", "stats.safetensors", "report.html",
    }  # fmt: skip
    assert [images for images, _ in shown.steps] == [1, 2, 3, 4, 5, 6]
    lines = outcome.run.lines("metrics.jsonl")
    assert [line["images"] for line in lines] == [2, 4, 6]
    assert set(lines[0]) == {"images", "lr", "D.gan", "D.real", "D.fake", "G.gan", "G.l1"}
    means = [sum(losses["G.l1"] for _, losses in shown.steps[i : i + 2]) / 2 for i in (0, 2, 4)]
    assert [line["G.l1"] for line in lines] == pytest.approx(means), "a line is the mean since the last one"
    assert outcome.run.status["state"] == "complete"
    assert len(list(outcome.run.checkpoints.iterdir())) == 1, "the last one stays, for --continue-from"
    assert not list(folder.rglob("*.tmp"))


def test_a_number_carries_its_protocol_and_the_images_it_is_the_mean_of(run):
    outcome, _ = run()
    results = outcome.results
    assert set(results) == {"id", "recipe", "profile", "seed", "images", "metrics", "measured", "protocols"}
    assert set(results["metrics"]) == {"l1", "psnr", "psnr.pooled", "ssim"}
    protocol = results["protocols"][results["metrics"]["l1"]["protocol"]]
    statistics, header = load_tensors(outcome.run.stats)
    assert protocol["metric"]["use"] == "metrics:l1"
    assert (protocol["split"], protocol["test_mode"], protocol["size"]) == ("test", "paper", [64, 64])
    assert protocol["images"] == len(header["ids"]) == len(header["blocks"]) == len(statistics["l1.l1"])
    assert results["metrics"]["l1"]["value"] == pytest.approx(statistics["l1.l1"].double().mean().item())


def test_a_complete_run_is_not_trained_again_but_new_metrics_are_measured(run):
    first, _ = run('drop=["metrics.ssim"]')
    weights = first.run.model.read_bytes()
    again, shown = run('drop=["metrics.ssim"]')
    assert (again.trained, shown.steps, shown.notes) == (False, [], [])
    more, shown = run("metrics.again.use=psnr")
    assert (more.trained, shown.steps) == (False, [])
    assert more.run.folder == first.run.folder
    assert more.results["metrics"]["ssim"]["value"] < 1
    assert more.results["metrics"]["again"]["value"] == first.results["metrics"]["psnr"]["value"]
    assert more.results["metrics"]["l1"] == first.results["metrics"]["l1"]
    assert {"l1.l1", "ssim.ssim", "psnr.mse", "again.mse"} <= load_tensors(more.run.stats)[0].keys()
    assert more.run.model.read_bytes() == weights
    assert tomllib.loads(more.run.recipe.read_text())["metrics"].keys() == {"l1", "psnr", "ssim", "again"}


def test_another_test_mode_is_another_protocol_of_the_same_run(run):
    paper, _ = run()
    evaluated, shown = run("evaluate.test_mode=eval")
    assert shown.steps == []
    assert evaluated.run.folder == paper.run.folder
    assert evaluated.results["metrics"]["l1"]["protocol"] != paper.results["metrics"]["l1"]["protocol"]
    assert evaluated.results["metrics"]["l1"]["value"] != paper.results["metrics"]["l1"]["value"]


def test_statistics_are_kept_only_beside_others_of_the_same_images(run):
    tested, _ = run()
    assert {"l1.l1", "ssim.ssim"} <= load_tensors(tested.run.stats)[0].keys()
    validated, _ = run("evaluate.split=val", 'drop=["metrics.ssim"]')
    statistics, header = load_tensors(validated.run.stats)
    assert "ssim.ssim" not in statistics
    assert {len(rows) for rows in statistics.values()} == {len(header["ids"])}


def test_the_same_experiment_under_another_recipe_is_found(run):
    first, _ = run(recipe="zoo:ablation_l1_cgan.toml")
    second, shown = run(recipe="zoo:ablation_patch70.toml")
    assert second.run.folder == first.run.folder
    assert shown.steps == []


def test_two_equal_runs_are_equal_to_the_bit_and_another_seed_is_not(run, tmp_path):
    first, _ = run()
    kept = {name: (first.run.folder / name).read_bytes() for name in ("metrics.jsonl", "model.safetensors")}
    fresh, shown = run(fresh=True)
    assert len(shown.steps) == 6
    assert {name: (fresh.run.folder / name).read_bytes() for name in kept} == kept
    other, _ = run("seed=1")
    assert other.run.model.read_bytes() != kept["model.safetensors"]


def test_the_resolved_recipe_in_the_folder_is_the_run(run):
    outcome, _ = run()
    recipe = config.load(str(outcome.run.recipe))
    assert recipe.id == outcome.results["id"]


def test_training_makes_the_translations_better(run):
    _, shown = run("train.images=60", 'drop=["discriminator", "gan_loss"]', "train.log_every=30", "optimizer.lr=2e-3")
    losses = [losses["G.l1"] for _, losses in shown.steps]
    assert sum(losses[-15:]) < 0.75 * sum(losses[:15])


def test_the_linear_schedule_falls_in_the_second_half(run):
    outcome, _ = run("optimizer.schedule=linear", "train.images=8", "train.log_every=1", "optimizer.lr=0.001")
    rates = [line["lr"] for line in outcome.run.lines("metrics.jsonl")]
    assert rates == pytest.approx([0.001] * 5 + [0.00075, 0.0005, 0.00025])


def test_the_averaged_generator_is_what_is_saved(run):
    plain, _ = run("train.checkpoint_every=100")
    averaged, _ = run("train.checkpoint_every=100", "train.ema=0.5")
    _state, _ = load_tensors(next(averaged.run.checkpoints.iterdir()))
    saved, _ = load_tensors(averaged.run.model)
    name = "encoder.0.0.weight"
    assert torch.equal(saved[name], _state[f"average.{name}"])
    assert not torch.equal(saved[name], _state[f"G.{name}"])
    assert torch.equal(_state[f"G.{name}"], load_tensors(plain.run.model)[0][name]), "G itself trains as without"


def test_bf16_trains_and_its_averaged_generator_is_its_own(run):
    outcome, shown = run("compute.precision=bf16", "train.ema=0.999", "train.checkpoint_every=100")
    state, _ = load_tensors(next(outcome.run.checkpoints.iterdir()))
    name = "encoder.0.0.weight"
    assert state[f"G.{name}"].dtype == torch.float32
    assert not torch.equal(state[f"average.{name}"], state[f"G.{name}"])
    full, exact = run("compute.precision=fp32", "train.ema=0.999", "train.checkpoint_every=100")
    rounded = [losses["G.l1"] for _, losses in shown.steps]
    assert rounded != [losses["G.l1"] for _, losses in exact.steps]
    assert rounded == pytest.approx([losses["G.l1"] for _, losses in exact.steps], rel=0.05)
    assert outcome.run.folder != full.run.folder


class Watcher(Callback):
    seen: list[tuple] = []  # noqa: RUF012 (shared on purpose: the zoo makes the instance)

    def start(self, folder, recipe):
        self.seen.append(("start", recipe["seed"]))

    def log(self, images, losses):
        self.seen.append(("log", images))

    def samples(self, images, path):
        self.seen.append(("samples", images))

    def finish(self, metrics):
        self.seen.append(("finish", sorted(metrics)))


def test_callbacks_watch_and_change_nothing(run):
    plain, _ = run()
    weights = plain.run.model.read_bytes()
    components = Registry([*registry(), Entry("callback", "watcher", Watcher, "test", "test")])
    Watcher.seen.clear()
    watched, _ = run("callbacks.mine.use=watcher", components=components, fresh=True)
    metrics = ["l1", "psnr", "psnr.pooled", "ssim"]
    logs = [("log", 2), ("log", 4), ("log", 6)]
    assert Watcher.seen == [("start", 0), *logs, ("samples", 6), ("finish", metrics)]
    assert watched.run.model.read_bytes() == weights


class NeedsLabels:
    side = "generator"

    def __call__(self, out):
        return out.y_hat.mean()


def test_what_the_data_lacks_is_told_before_training(run, tmp_path):
    class Unlabelled:
        x_range = y_range = (0.0, 255.0)
        classes = palette = None

        def __init__(self, split):
            pass

        def __len__(self):
            return 2

        def __getitem__(self, i):
            import numpy as np

            from p2pzoo.plugin.batch import Pair

            return Pair(str(i), np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8))

    components = Registry([
        *registry(), Entry("dataset", "bare", Unlabelled, "test", "test"),
        Entry("loss", "labelled", NeedsLabels, "test", "test", needs=("labels",)),
    ])  # fmt: skip
    with pytest.raises(UserError, match=r"\[losses.mine\] needs labels, which the dataset 'test:bare' does not have"):
        run("dataset.use=bare", "losses.mine.use=labelled", components=components)
    assert list(tmp_path.iterdir()) == []


def test_results_name_no_machine(run, tmp_path):
    outcome, _ = run()
    for name in ("results.json", "env.json", "recipe.toml", "status.json", "metrics.jsonl"):
        assert str(tmp_path) not in (outcome.run.folder / name).read_text()
    assert {"torch", "python", "device", "precision", "threads"} <= json.loads(
        (outcome.run.folder / "env.json").read_text()
    ).keys()


def test_a_metric_that_nobody_could_trust_is_refused_before_training(run, tmp_path, monkeypatch):
    from p2pzoo_metrics.images import L1

    def trust(self, device):
        raise UserError("l1: it misreads the photos")

    monkeypatch.setattr(L1, "trust", trust, raising=False)
    with pytest.raises(UserError, match="it misreads the photos"):
        run()
    assert not [*tmp_path.rglob("*.safetensors")]
