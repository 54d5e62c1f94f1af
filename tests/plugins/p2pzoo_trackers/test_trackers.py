"""Trackers as callbacks: what they are told, that a run that goes on stays one run, and what is said where they lack.

wandb is a stand-in that keeps what it is told; TensorBoard is the real one where it is installed, else a stand-in too.
"""

import importlib
import importlib.util
import json
import sys
import types

import pytest
from p2pzoo_trackers.trackers import TensorBoard, WandB
from PIL import Image

from p2pzoo.training.gan_step import Objective
from p2pzoo.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("no_reports")

ON_WANDB = 'callbacks.tracker={use="wandb", project="mine", entity="me", mode="offline"}'
ON_TENSORBOARD = 'callbacks.tracker={use="tensorboard"}'

FAKE_WANDB = """
import json

class Error(Exception):
    pass

class Image:
    def __init__(self, image):
        self.size = image.size

class Run:
    def log(self, values, step=None):
        plain = {k: [i.size for i in v] if isinstance(v, list) else v for k, v in values.items()}
        told.append({"log": plain, "step": step})

    def finish(self):
        told.append({"finish": True})

class Config:
    def update(self, values, allow_val_change):
        assert allow_val_change
        told.append({"config": values})

told, refuses, config = [], "", Config()

def init(**options):
    if refuses:
        raise Error(refuses)
    told.append({"init": options})
    return Run()
"""


@pytest.fixture(scope="session")
def run(run):
    """The tiny recipe, and less of it: it logs image 14 after its checkpoint of image 12."""
    short = ("train.images=16", "train.log_every=2", "train.sample_every=10", "train.checkpoint_every=6")
    return lambda runs, *overrides, flags=(): run(runs, *short, *overrides, flags=flags)


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """The stand-in. `told`: all it was told; `refuses`: what it says instead of beginning."""
    site = tmp_path / "packages"
    (site / "wandb").mkdir(parents=True)
    (site / "wandb/__init__.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    importlib.invalidate_caches()
    yield importlib.import_module("wandb")
    sys.modules.pop("wandb", None)


@pytest.fixture
def writers(tmp_path, monkeypatch):
    """A stand-in for TensorBoard's writer; the list of those that were made, each with what it was told."""
    (tmp_path / "packages/tensorboard").mkdir(parents=True)
    (tmp_path / "packages/tensorboard/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    importlib.invalidate_caches()
    made = []

    class SummaryWriter:
        def __init__(self, folder, purge_step=None):
            self.folder, self.purge_step, self.told, self.closed = folder, purge_step, [], False
            made.append(self)

        def add_scalar(self, name, value, global_step):
            self.told.append((name, global_step, value))

        def add_text(self, name, text, global_step):
            self.told.append((name, global_step, text))

        def add_images(self, name, images, global_step, dataformats):
            assert dataformats == "NHWC"
            self.told.append((name, global_step, images.shape))

        def flush(self):
            pass

        def close(self):
            self.closed = True

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("torch.utils.tensorboard", module, raising=False)
    return made


@pytest.fixture
def stop_at(monkeypatch):
    """stop_at(n): the training of this test breaks off in step n, once."""

    class Gone(BaseException):
        pass

    def stop_at(number, act):
        take = Objective.step

        def step(self, batch, at):
            if at == number:
                raise Gone
            return take(self, batch, at)

        with monkeypatch.context() as patch:
            patch.setattr(Objective, "step", step)
            with pytest.raises(Gone):
                act()

    return stop_at


def only(runs):
    [folder] = {file.parent for file in runs.glob("*/*/recipe.toml")}
    return folder


def losses_of(folder):
    """{images: losses} of metrics.jsonl."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["images"]: {k: v for k, v in line.items() if k not in ("images", "lr")} for line in lines}


def numbers_of(folder):
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    return {f"final/{name}": number["value"] for name, number in metrics.items()}


def grid_of(folder, images):
    return Image.open(folder / f"samples/images-{images:08d}.png").size


class TestWandB:
    def test_it_is_told_of_losses_pictures_numbers_and_the_recipe(self, wandb, run, tmp_path):
        answer = run(tmp_path / "runs", ON_WANDB)
        assert answer.exit_code == 0, answer.output
        folder = only(tmp_path / "runs")
        assert wandb.told[0] == {"init": {
            "project": "mine", "entity": "me", "mode": "offline", "id": folder.name, "name": f"tiny {folder.name}",
            "resume": None, "dir": str(folder),
        }}  # fmt: skip
        assert wandb.told[1]["config"]["generator"]["use"] == "pix2pix:unet"
        logs = [(told["step"], told["log"]) for told in wandb.told if "log" in told]
        assert {step: log for step, log in logs if "G.l1" in log} == losses_of(folder)
        pictures = [(step, log["samples"]) for step, log in logs if "samples" in log]
        assert pictures == [(images, [grid_of(folder, images)]) for images in (10, 16)]
        assert logs[-1] == (16, numbers_of(folder))
        assert wandb.told[-1] == {"finish": True}
        assert [step for step, _ in logs] == sorted(step for step, _ in logs), "wandb drops steps that go back"

    def test_it_changes_nothing(self, wandb, run, tmp_path):
        run(tmp_path / "plain")
        run(tmp_path / "told", ON_WANDB)
        plain, told = (only(tmp_path / name) for name in ("plain", "told"))
        assert plain.name == told.name
        assert (plain / "model.safetensors").read_bytes() == (told / "model.safetensors").read_bytes()

    def test_a_run_that_goes_on_is_the_same_one_there(self, wandb, run, stop_at, tmp_path):
        stop_at(15, lambda: run(tmp_path, ON_WANDB))
        before, wandb.told[:] = [*wandb.told], []
        assert run(tmp_path, ON_WANDB).began == 12
        assert wandb.told[0]["init"]["id"] == before[0]["init"]["id"] == only(tmp_path).name
        assert wandb.told[0]["init"]["resume"] == "allow"
        told = {line["step"]: line["log"] for line in [*before, *wandb.told] if "G.l1" in line.get("log", {})}
        assert told == losses_of(only(tmp_path))

    def test_a_run_that_begins_anew_does_so_there(self, wandb, run, tmp_path):
        run(tmp_path, ON_WANDB, "train.images=8")
        wandb.told.clear()
        run(tmp_path, ON_WANDB, "train.images=8", flags=["--fresh"])
        assert wandb.told[0]["init"]["resume"] is None

    def test_a_metric_that_is_added_later_is_told_too(self, wandb, run, tmp_path):
        run(tmp_path, ON_WANDB, "train.images=8")
        wandb.told.clear()
        assert run(tmp_path, ON_WANDB, "train.images=8", "metrics.again.use=l1").began is None
        [log] = [line for line in wandb.told if "log" in line]
        assert log["step"] == 8
        assert log["log"]["final/again"] == log["log"]["final/l1"]
        assert wandb.told[0]["init"]["resume"] == "allow"

    def test_what_wandb_refuses_is_told_in_a_line_before_training(self, wandb, run, tmp_path):
        wandb.refuses = "api_key not configured (no-tty)\nmore"
        answer = run(tmp_path, ON_WANDB)
        assert (answer.exit_code, answer.began) == (2, None)
        told = 'wandb does not begin: api_key not configured (no-tty) (`wandb login`, or mode = "offline")'
        assert answer.output.splitlines()[-1] == told


class TestTensorBoard:
    def test_it_is_told_of_losses_pictures_numbers_and_the_recipe(self, writers, run, tmp_path):
        answer = run(tmp_path / "runs", ON_TENSORBOARD)
        assert answer.exit_code == 0, answer.output
        folder, [writer] = only(tmp_path / "runs"), writers
        assert writer.folder == str(folder / "tensorboard")
        expected = {(name, images, v) for images, losses in losses_of(folder).items() for name, v in losses.items()}
        expected |= {(name, 16, value) for name, value in numbers_of(folder).items()}
        for images in (10, 16):
            width, height = grid_of(folder, images)
            expected |= {("samples", images, (1, height, width, 3))}
        [(_, at, text)] = [line for line in writer.told if line[0] == "recipe"]
        assert at == 0
        assert json.loads(text.strip("`\n"))["generator"]["use"] == "pix2pix:unet"
        assert {line for line in writer.told if line[0] != "recipe"} == expected
        assert writer.closed

    def test_what_an_earlier_part_logged_beyond_its_checkpoint_is_hidden(self, writers, run, stop_at, tmp_path):
        stop_at(15, lambda: run(tmp_path, ON_TENSORBOARD))
        assert run(tmp_path, ON_TENSORBOARD).began == 12
        first, second = writers
        assert first.folder == second.folder
        told = [line for line in first.told if line[1] < second.purge_step] + second.told
        log = [line for line in told if line[0] == "G.l1"]
        assert log == [("G.l1", images, losses["G.l1"]) for images, losses in losses_of(only(tmp_path)).items()]


class TestRealTensorBoard:
    @pytest.fixture(autouse=True)
    def needs_it(self):
        pytest.importorskip("tensorboard")

    def test_its_files_read_back_hold_one_run_that_was_cut_off_once(self, run, stop_at, tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        stop_at(15, lambda: run(tmp_path, ON_TENSORBOARD))
        answer = run(tmp_path, ON_TENSORBOARD)
        assert answer.exit_code == 0, answer.output
        folder = only(tmp_path)
        found = EventAccumulator(str(folder / "tensorboard"))
        found.Reload()
        losses = losses_of(folder)
        for name in losses[16]:
            assert [event.step for event in found.Scalars(name)] == list(losses)
            assert [e.value for e in found.Scalars(name)] == pytest.approx([line[name] for line in losses.values()])
        for name, value in numbers_of(folder).items():
            [event] = found.Scalars(name)
            assert (event.step, event.value) == (16, pytest.approx(value))
        assert [(e.step, (e.width, e.height)) for e in found.Images("samples")] == [
            (images, grid_of(folder, images)) for images in (10, 16)
        ]
        [text] = found.Tensors("recipe/text_summary")
        assert "pix2pix:unet" in text.tensor_proto.string_val[0].decode()


@pytest.mark.parametrize(("kind", "package"), [(TensorBoard, "tensorboard"), (WandB, "wandb")])
def test_a_missing_package_is_told_with_its_extra_before_anything_is_lost(kind, package, run, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name, *more))
    with pytest.raises(UserError, match=rf"needs the package {package}: pip install 'p2pzoo\[{package}\]'"):
        kind()
    run(tmp_path, "train.images=8")
    model = only(tmp_path) / "model.safetensors"
    before = model.read_bytes()
    callback = f'callbacks.tracker={{use="{package}"}}'
    answer = run(tmp_path, "train.images=8", callback, flags=["--fresh"])
    assert (answer.exit_code, answer.began) == (2, None)
    assert f"callback '{package}': this tracker needs" in answer.output or f"p2pzoo[{package}]" in answer.output
    assert model.read_bytes() == before
    assert run(tmp_path, "train.images=8", callback).exit_code == 0, "what is complete is shown without it"
