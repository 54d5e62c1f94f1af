"""Small runs from end to end: training, complete runs, metrics added later, and errors before training."""

import functools
import json
import re
import shutil
import tomllib

import numpy as np
import pytest
import torch

from p2pzoo import config
from p2pzoo.images.io import write_png
from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.plugin.loader import registry
from p2pzoo.plugin.protocols import Callback
from p2pzoo.plugin.registry import Entry, Registry
from p2pzoo.training.run_experiment import run_experiment
from p2pzoo.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("with_reports")

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
    """A Progress that records its calls."""

    def __init__(self):
        self.steps, self.notes = [], []

    def step(self, images, losses):
        self.steps.append((images, losses))

    def note(self, text):
        self.notes.append(text)


def run_in(runs, *overrides, recipe="zoo:base.toml", components=None, **kwargs):
    """(outcome, its Notes) of a small run in the folder `runs`."""
    known = components or registry()
    experiment = config.load(recipe, "smoke", [*SMALL, *overrides], registry=known)
    notes = Notes()
    return run_experiment(experiment, known, runs, notes, **kwargs), notes


@pytest.fixture
def run(tmp_path):
    """run(*overrides, recipe=…): `run_in` in a folder of the test."""
    return functools.partial(run_in, tmp_path)


@pytest.fixture(scope="module")
def shared_plain(tmp_path_factory):
    """(runs folder, outcome, Notes) of a run without overrides. Tests must not change it."""
    runs = tmp_path_factory.mktemp("plain")
    return runs, *run_in(runs)


@pytest.fixture
def copied(shared_plain, tmp_path):
    """The outcome of the run without overrides, as it was in another folder; `run` finds a copy of it."""
    runs, outcome, _ = shared_plain
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    return outcome


def test_a_run_writes_all_files_that_the_readme_lists(shared_plain):
    _, outcome, notes = shared_plain
    folder = outcome.run.folder
    assert {path.name for path in folder.iterdir()} - {".lock"} == {
        "recipe.toml", "status.json", "env.json", "metrics.jsonl", "timings.jsonl", "samples", "checkpoints",
        "model.safetensors", "average.safetensors", "results.json", "stats.safetensors", "report.html",
    }  # fmt: skip
    assert [images for images, _ in notes.steps] == [1, 2, 3, 4, 5, 6]
    lines = outcome.run.lines("metrics.jsonl")
    assert [line["images"] for line in lines] == [2, 4, 6]
    assert set(lines[0]) == {"images", "lr", "D.gan", "D.real", "D.fake", "G.gan", "G.l1"}
    means = [sum(losses["G.l1"] for _, losses in notes.steps[i : i + 2]) / 2 for i in (0, 2, 4)]
    assert [line["G.l1"] for line in lines] == pytest.approx(means), "a line is the mean since the last one"
    assert outcome.run.status["state"] == "complete"
    assert len(list(outcome.run.checkpoints.iterdir())) == 1, "the last one stays, for --continue-from"
    assert not list(folder.rglob("*.tmp"))


def test_a_number_is_stored_with_its_protocol_and_per_image_statistics(shared_plain):
    _, outcome, _ = shared_plain
    results = outcome.results
    assert set(results) == {"id", "recipe", "profile", "seed", "images", "metrics", "measured", "protocols", "timings"}
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
    again, notes = run('drop=["metrics.ssim"]')
    assert (again.trained, notes.steps, notes.notes) == (False, [], [])
    more, notes = run("metrics.again.use=psnr")
    assert (more.trained, notes.steps) == (False, [])
    assert more.run.folder == first.run.folder
    assert more.results["metrics"]["ssim"]["value"] < 1
    assert more.results["metrics"]["again"]["value"] == first.results["metrics"]["psnr"]["value"]
    assert more.results["metrics"]["l1"] == first.results["metrics"]["l1"]
    assert {"l1.l1", "ssim.ssim", "psnr.mse", "again.mse"} <= load_tensors(more.run.stats)[0].keys()
    assert more.run.model.read_bytes() == weights
    assert tomllib.loads(more.run.recipe.read_text())["metrics"].keys() == {"l1", "psnr", "ssim", "again"}


def test_the_time_of_a_translation_is_stored_once_for_each_kind_of_translation_and_in_no_protocol(copied, run):
    [timing] = copied.results["timings"]
    assert timing["milliseconds"] > 0
    assert timing["translations"] == {"test_mode": "paper", "test_batch": 1}
    assert (timing["device"], timing["threads"]) == ("cpu", torch.get_num_threads())
    assert "milliseconds" not in str(copied.results["protocols"])
    more, _ = run("metrics.again.use=psnr")
    assert more.results["timings"] == [timing], "the first measurement stays"
    other, _ = run("metrics.again.use=psnr", "metrics.again.evaluate.test_mode=eval")
    assert other.results["timings"][0] == timing
    assert [each["translations"] for each in other.results["timings"]] == [
        timing["translations"],
        {"test_mode": "eval"},
    ]


def test_another_test_mode_is_another_protocol_of_the_same_run(copied, run):
    evaluated, notes = run("evaluate.test_mode=eval")
    assert notes.steps == []
    assert evaluated.run.folder.name == copied.run.folder.name
    assert evaluated.results["metrics"]["l1"]["protocol"] != copied.results["metrics"]["l1"]["protocol"]
    assert evaluated.results["metrics"]["l1"]["value"] != copied.results["metrics"]["l1"]["value"]


def test_statistics_of_other_images_are_removed(copied, run):
    assert {"l1.l1", "ssim.ssim"} <= load_tensors(copied.run.stats)[0].keys()
    validated, notes = run("evaluate.split=val", 'drop=["metrics.ssim"]')
    assert notes.steps == []
    statistics, header = load_tensors(validated.run.stats)
    assert "ssim.ssim" not in statistics
    assert {len(rows) for rows in statistics.values()} == {len(header["ids"])}


def test_the_same_experiment_under_another_recipe_is_found(run):
    first, _ = run(recipe="zoo:ablation_l1_cgan.toml")
    second, notes = run(recipe="zoo:ablation_patch70.toml")
    assert second.run.folder == first.run.folder
    assert notes.steps == []


def test_equal_runs_are_bit_identical_and_another_seed_is_not(copied, run):
    contents = {name: (copied.run.folder / name).read_bytes() for name in ("metrics.jsonl", "model.safetensors")}
    fresh, notes = run(fresh=True)
    assert len(notes.steps) == 6
    assert {name: (fresh.run.folder / name).read_bytes() for name in contents} == contents
    other, _ = run("seed=1")
    assert other.run.model.read_bytes() != contents["model.safetensors"]


def test_the_resolved_recipe_in_the_folder_is_the_run(shared_plain):
    _, outcome, _ = shared_plain
    recipe = config.load(str(outcome.run.recipe))
    assert recipe.id == outcome.results["id"]


def test_training_lowers_the_loss(run):
    _, notes = run("train.images=60", 'drop=["discriminator", "gan_loss"]', "train.log_every=30", "optimizer.lr=2e-3")
    losses = [losses["G.l1"] for _, losses in notes.steps]
    assert sum(losses[-15:]) < 0.75 * sum(losses[:15])


def test_the_linear_schedule_falls_in_the_second_half(run):
    outcome, _ = run("optimizer.schedule=linear", "train.images=8", "train.log_every=1", "optimizer.lr=0.001")
    rates = [line["lr"] for line in outcome.run.lines("metrics.jsonl")]
    assert rates == pytest.approx([0.001] * 5 + [0.00075, 0.0005, 0.00025])


def test_the_averaged_generator_is_saved(run):
    plain, _ = run("train.checkpoint_every=100")
    averaged, _ = run("train.checkpoint_every=100", "train.ema=0.5")
    _state, _ = load_tensors(next(averaged.run.checkpoints.iterdir()))
    saved, _ = load_tensors(averaged.run.model)
    name = "encoder.0.0.weight"
    assert torch.equal(saved[name], _state[f"average.{name}"])
    assert not torch.equal(saved[name], _state[f"G.{name}"])
    assert torch.equal(_state[f"G.{name}"], load_tensors(plain.run.model)[0][name]), "the average changes G itself"


@pytest.mark.parametrize("has_products", [True, False, None])
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_a_run_names_the_precision_that_is_faster_on_this_cpu(precision, has_products, run, monkeypatch):
    monkeypatch.setattr("p2pzoo.training.run_experiment.has_bf16_products", lambda: has_products)
    _, notes = run(f"compute.precision={precision}", "train.images=1")
    named = [note.split(":")[0] for note in notes.notes if "bf16 products" in note]
    expected = {("bf16", False): ["this CPU has no bf16 products"], ("auto", True): ["this CPU has bf16 products"]}
    assert named == expected.get((precision, has_products), [])


def test_bf16_trains_and_keeps_an_average_in_fp32(run):
    outcome, notes = run("compute.precision=bf16", "train.ema=0.999", "train.checkpoint_every=100")
    state, _ = load_tensors(next(outcome.run.checkpoints.iterdir()))
    name = "encoder.0.0.weight"
    assert state[f"G.{name}"].dtype == torch.float32
    assert not torch.equal(state[f"average.{name}"], state[f"G.{name}"])
    full, exact = run("compute.precision=fp32", "train.ema=0.999", "train.checkpoint_every=100")
    rounded = [losses["G.l1"] for _, losses in notes.steps]
    assert rounded != [losses["G.l1"] for _, losses in exact.steps]
    assert rounded == pytest.approx([losses["G.l1"] for _, losses in exact.steps], rel=0.05)
    assert outcome.run.folder != full.run.folder


class Watcher(Callback):
    calls: list[tuple] = []  # noqa: RUF012 (shared on purpose: the zoo makes the instance)

    def start(self, folder, recipe):
        self.calls.append(("start", recipe["seed"]))

    def log(self, images, losses):
        self.calls.append(("log", images))

    def samples(self, images, path):
        self.calls.append(("samples", images))

    def finish(self, metrics):
        self.calls.append(("finish", sorted(metrics)))


def test_callbacks_watch_and_change_nothing(copied, run):
    weights = copied.run.model.read_bytes()
    components = Registry([*registry(), Entry("callback", "watcher", Watcher, "test", "test")])
    Watcher.calls.clear()
    watched, _ = run("callbacks.mine.use=watcher", components=components, fresh=True)
    metrics = ["l1", "psnr", "psnr.pooled", "ssim"]
    logs = [("log", 2), ("log", 4), ("log", 6)]
    assert Watcher.calls == [("start", 0), *logs, ("samples", 6), ("finish", metrics)]
    assert watched.run.model.read_bytes() == weights


class Pretrained:
    """A loss whose weights can be missing."""

    side = "generator"
    is_missing = False

    def __init__(self):
        if self.is_missing:
            raise UserError("weights.pth: no such file: download it first")

    def __call__(self, out):
        return out.y_hat.mean()


class Recorder(Callback):
    started = 0

    def start(self, folder, recipe):
        Recorder.started += 1


class TestComponentsThatCannotBeBuilt:
    """The error comes before the run's folder, its notes and its callbacks."""

    SETS = ('losses.far={use="pretrained"}', 'callbacks.mine.use="recorder"')

    @pytest.fixture
    def components(self, monkeypatch):
        monkeypatch.setattr(Pretrained, "is_missing", True)
        monkeypatch.setattr(Recorder, "started", 0)
        own = [("loss", "pretrained", Pretrained), ("callback", "recorder", Recorder)]
        return Registry([*registry(), *(Entry(kind, name, made, "test", "test") for kind, name, made in own)])

    def refused(self, runs, components, **options):
        """The error of a run of SETS, and its Notes."""
        experiment = config.load("zoo:base.toml", "smoke", [*SMALL, *self.SETS], registry=components)
        notes = Notes()
        with pytest.raises(UserError) as raised:
            run_experiment(experiment, components, runs, notes, **options)
        return str(raised.value), notes

    def test_a_new_run_leaves_no_folder(self, components, tmp_path):
        message, notes = self.refused(tmp_path / "a" / "runs", components)
        assert "weights.pth: no such file: download it first" in message
        assert not [note for note in notes.notes if "training" in note]
        assert [*tmp_path.iterdir()] == []
        assert Recorder.started == 0

    def test_folders_that_were_there_stay(self, components, tmp_path):
        (tmp_path / "runs" / "base").mkdir(parents=True)
        self.refused(tmp_path / "runs", components)
        assert [*tmp_path.rglob("*")] == [tmp_path / "runs", tmp_path / "runs" / "base"]

    @pytest.mark.parametrize("fresh", [False, True], ids=["resumed", "started over"])
    def test_the_files_of_a_run_that_was_there_are_as_they_were(self, components, fresh, tmp_path, monkeypatch):
        monkeypatch.setattr(Pretrained, "is_missing", False)
        outcome, _ = run_in(tmp_path, *self.SETS, components=components)
        outcome.run.set_status(state="interrupted")
        monkeypatch.setattr(Pretrained, "is_missing", True)

        def content():
            files = (file for file in tmp_path.rglob("*") if file.is_file() and file.name != ".lock")
            return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}

        before = content()
        message, notes = self.refused(tmp_path, components, fresh=fresh)
        assert "weights.pth" in message
        assert not [note for note in notes.notes if "resuming" in note or "training" in note]
        assert content() == before
        assert Recorder.started == 1

    @pytest.mark.parametrize(
        "override",
        [
            'losses.far={use="dists", vgg16="FILE"}',
            'losses.far={use="perceptual", network="mobilenetv3_small_050", weights="FILE"}',
            'generator={use="timm-unet", backbone="test_efficientnet", weights="FILE"}',
        ],
        ids=["dists", "perceptual", "timm-unet"],
    )
    def test_a_component_of_the_zoo_refuses_weights_of_another_network(self, override, tmp_path, run_cli):
        file = tmp_path / "other.pth"
        torch.save({"layer.weight": torch.zeros(2, 2)}, file)
        sets = (argument for each in (*SMALL, override.replace("FILE", str(file))) for argument in ("-s", each))
        result = run_cli("run", "zoo:base.toml", "--profile", "smoke", "--runs", tmp_path / "runs", *sets)
        head, error = result.output.strip().splitlines()
        assert (result.exit_code, head) == (2, "base, profile smoke, seed 0")
        assert "other.pth" in error
        assert [*tmp_path.iterdir()] == [file]

    def test_a_model_of_other_shapes_to_start_from(self, shared_plain, run, tmp_path):
        model = shared_plain[1].run.model
        with pytest.raises(UserError, match=r"model\.safetensors"):
            run(f'init.generator="{model}"', "generator.width=2")
        assert [*tmp_path.iterdir()] == []


class NeedsLabels:
    side = "generator"

    def __call__(self, out):
        return out.y_hat.mean()


def test_missing_fields_of_the_dataset_are_reported_before_training(run, tmp_path):
    class Unlabelled:
        x_range = y_range = (0.0, 255.0)
        classes = palette = None

        def __init__(self, split):
            pass

        def __len__(self):
            return 2

        def __getitem__(self, i):
            from p2pzoo.plugin.batch import Pair

            return Pair(str(i), np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8))

    components = Registry([
        *registry(), Entry("dataset", "bare", Unlabelled, "test", "test"),
        Entry("loss", "labelled", NeedsLabels, "test", "test", needs=("labels",)),
    ])  # fmt: skip
    with pytest.raises(UserError, match=r"\[losses.mine\] needs labels, which the dataset 'test:bare' does not have"):
        run("dataset.use=bare", "losses.mine.use=labelled", components=components)
    assert list(tmp_path.iterdir()) == []


def test_no_file_names_the_machine_or_its_paths(shared_plain):
    runs, outcome, _ = shared_plain
    for name in ("results.json", "env.json", "recipe.toml", "status.json", "metrics.jsonl"):
        assert str(runs) not in (outcome.run.folder / name).read_text()
    assert {"torch", "python", "device", "precision", "threads"} <= json.loads(
        (outcome.run.folder / "env.json").read_text()
    ).keys()


def test_a_metric_without_meaning_on_the_data_is_refused_before_training(run, tmp_path, monkeypatch):
    from p2pzoo_metrics.images import L1

    def trust(self, device):
        raise UserError("l1: it misreads the photos")

    monkeypatch.setattr(L1, "trust", trust, raising=False)
    with pytest.raises(UserError, match="it misreads the photos"):
        run()
    assert not [*tmp_path.rglob("*.safetensors")]


def write_splits(folder):
    """Write two pairs of each split. Returns the override that names them."""
    rng = np.random.default_rng(0)
    for side in ("inputs", "targets"):
        for split in ("train", "val", "test"):
            (folder / side / split).mkdir(parents=True)
            for i in range(2):
                write_png(folder / side / split / f"{i}.png", rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    return f'dataset={{use="folders", inputs="{folder / "inputs"}", targets="{folder / "targets"}"}}'


def test_another_evaluated_split_is_no_change_of_the_data(run, tmp_path):
    setup = (write_splits(tmp_path), "train.images=1", "generator.depth=2", "drop=['discriminator', 'gan_loss']")
    first, _ = run(*setup, "evaluate.split=val")
    measured, notes = run(*setup)
    assert (measured.run.folder, measured.stale, notes.steps) == (first.run.folder, [], [])


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory, run_cli, arguments):
    """(folder, override that names the removed images, output with --json) of a complete run."""
    tmp_path = tmp_path_factory.mktemp("without_data")
    dataset = write_splits(tmp_path)
    command = arguments(tmp_path / "runs", dataset, "train.images=2", "train.checkpoint_every=2")
    assert run_cli(*command, "--quiet").exit_code == 0
    results = run_cli(*command, "--quiet", "--json").output
    for side in ("inputs", "targets"):
        shutil.rmtree(tmp_path / side)
    return tmp_path, dataset, results


class TestWithoutData:
    """A complete run whose training images are gone still gives its stored results."""

    @pytest.fixture
    def complete(self, shared_run, tmp_path, arguments):
        """(arguments of the run, its output with --json), for one test."""
        folder, dataset, results = shared_run
        shutil.copytree(folder / "runs", tmp_path / "runs")
        return arguments(tmp_path / "runs", dataset, "train.images=2", "train.checkpoint_every=2"), results

    def test_the_stored_results_are_printed_with_a_note(self, shared_run, complete, run_cli):
        command, results = complete
        result = run_cli(*command)
        assert (result.exit_code, result.first_step) == (0, None)
        [note] = [line for line in result.output.splitlines() if "the data cannot be opened" in line]
        assert f"{shared_run[0] / 'inputs'}: no such folder" in note
        assert note.endswith("): printing the stored results")
        l1 = json.loads(results)["metrics"]["l1"]["value"]
        assert re.search(rf"^l1 +{l1:.4f}$", result.output, re.MULTILINE)
        again = json.loads(run_cli(*command, "--quiet", "--json").output)
        assert again | {"folder": None} == json.loads(results) | {"folder": None}  # it was copied

    @pytest.mark.parametrize(
        "override",
        ["metrics.again.use=l1", "evaluate.test_mode=eval", "evaluate.split=val"],
        ids=["another metric", "another test mode", "another split"],
    )
    def test_numbers_that_are_not_stored_need_the_data(self, override, shared_run, complete, run_cli):
        command, _ = complete
        result = run_cli(*command, "-s", override)
        assert result.exit_code == 2
        assert f"{shared_run[0] / 'inputs'}: no such folder" in result.output
        assert "stored results" not in result.output

    def test_another_version_of_a_metric_needs_the_data(self, complete, run_cli, monkeypatch):
        monkeypatch.setattr("p2pzoo_metrics.images.L1.version", "2")
        result = run_cli(*complete[0])
        assert result.exit_code == 2
        assert "no such folder" in result.output

    def test_fresh_needs_the_data(self, complete, run_cli):
        assert run_cli(*complete[0], "--fresh").exit_code == 2

    def test_an_unfinished_run_needs_the_data(self, complete, run_cli, tmp_path):
        [status] = tmp_path.glob("runs/*/*/status.json")
        status.write_text(json.dumps({**json.loads(status.read_text()), "state": "trained"}))
        assert run_cli(*complete[0]).exit_code == 2

    def test_code_that_changed_since_is_marked(self, complete, run_cli, tmp_path):
        [status] = tmp_path.glob("runs/*/*/status.json")
        content = json.loads(status.read_text())
        content["sources"]["core"] = "0.0.1 0123456789ab"
        status.write_text(json.dumps(content))
        result = run_cli(*complete[0])
        assert result.exit_code == 0
        assert "core" in result.output
        assert "--fresh" in result.output
