"""Trackers as callbacks: the logged values, resumed runs, and errors for missing packages.

wandb is a stand-in that keeps all calls. TensorBoard's writer is one, too, except in TestRealTensorBoard.
"""

import importlib
import importlib.util
import json
import shutil
import sys
import types

import pytest
from p2pzoo_trackers.trackers import TensorBoard, WandB
from tracked_runs import grid_of, losses_of, numbers_of, only

from p2pzoo.utils.errors import UserError

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
        calls.append({"log": plain, "step": step})

    def finish(self):
        calls.append({"finish": True})

class Config:
    def update(self, values, allow_val_change):
        assert allow_val_change
        calls.append({"config": values})

calls, refusal, config = [], "", Config()

def init(**options):
    if refusal:
        raise Error(refusal)
    calls.append({"init": options})
    return Run()
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """The stand-in. `calls`: all calls; `refusal`: the error message of `init`."""
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
    """A stand-in for TensorBoard's writer: the list of all writers, each with its calls."""
    (tmp_path / "packages/tensorboard").mkdir(parents=True)
    (tmp_path / "packages/tensorboard/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    importlib.invalidate_caches()
    created = []

    class SummaryWriter:
        def __init__(self, folder, purge_step=None):
            self.folder, self.purge_step, self.calls, self.closed = folder, purge_step, [], False
            created.append(self)

        def add_scalar(self, name, value, global_step):
            self.calls.append((name, global_step, value))

        def add_text(self, name, text, global_step):
            self.calls.append((name, global_step, text))

        def add_images(self, name, images, global_step, dataformats):
            assert dataformats == "NHWC"
            self.calls.append((name, global_step, images.shape))

        def flush(self):
            pass

        def close(self):
            self.closed = True

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("torch.utils.tensorboard", module, raising=False)
    return created


class TestWandB:
    def test_it_logs_losses_images_results_and_the_recipe_and_changes_nothing(self, wandb, run, plain, tmp_path):
        answer = run(tmp_path / "runs", ON_WANDB)
        assert answer.exit_code == 0, answer.output
        folder = only(tmp_path / "runs")
        assert wandb.calls[0] == {"init": {
            "project": "mine", "entity": "me", "mode": "offline", "id": folder.name, "name": f"tiny {folder.name}",
            "resume": None, "dir": str(folder),
        }}  # fmt: skip
        assert wandb.calls[1]["config"]["generator"]["use"] == "pix2pix:unet"
        logs = [(call["step"], call["log"]) for call in wandb.calls if "log" in call]
        assert {step: log for step, log in logs if "G.l1" in log} == losses_of(folder)
        pictures = [(step, log["samples"]) for step, log in logs if "samples" in log]
        assert pictures == [(images, [grid_of(folder, images)]) for images in (5, 8)]
        assert logs[-1] == (8, numbers_of(folder))
        assert wandb.calls[-1] == {"finish": True}
        assert [step for step, _ in logs] == sorted(step for step, _ in logs), "wandb drops steps that go back"
        assert folder.name == plain.name
        assert (folder / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()

    def test_a_resumed_run_is_the_same_run_in_wandb(self, wandb, run, stop_at, tmp_path):
        stop_at(7, lambda: run(tmp_path, ON_WANDB))
        before, wandb.calls[:] = [*wandb.calls], []
        assert run(tmp_path, ON_WANDB).first_step == 4
        assert wandb.calls[0]["init"]["id"] == before[0]["init"]["id"] == only(tmp_path).name
        assert wandb.calls[0]["init"]["resume"] == "allow"
        logged = {line["step"]: line["log"] for line in [*before, *wandb.calls] if "G.l1" in line.get("log", {})}
        assert logged == losses_of(only(tmp_path))

    def test_a_metric_that_is_added_later_is_logged_and_fresh_starts_again(self, wandb, run, tmp_path):
        run(tmp_path, ON_WANDB)
        wandb.calls.clear()
        assert run(tmp_path, ON_WANDB, "metrics.again.use=l1").first_step is None
        [log] = [line for line in wandb.calls if "log" in line]
        assert log["step"] == 8
        assert log["log"]["final/again"] == log["log"]["final/l1"]
        assert wandb.calls[0]["init"]["resume"] == "allow"
        wandb.calls.clear()
        run(tmp_path, ON_WANDB, flags=["--fresh"])
        assert wandb.calls[0]["init"]["resume"] is None

    def test_an_error_while_training_is_one_warning_and_the_training_goes_on(self, wandb, run, plain, tmp_path):
        def fail(*_, **__):
            raise wandb.Error("the disk is full")

        wandb.Run.log = fail
        answer = run(tmp_path, ON_WANDB)
        assert answer.exit_code == 0, answer.output
        assert answer.output.count("warning: wandb failed at 2 images and logs no more of this run: Error: the ") == 1
        model = only(tmp_path) / "model.safetensors"
        assert model.read_bytes() == (plain / "model.safetensors").read_bytes()

    def test_an_error_of_wandb_is_one_line_before_training(self, wandb, run, tmp_path):
        wandb.refusal = "api_key not configured (no-tty)\nmore"
        answer = run(tmp_path, ON_WANDB)
        assert (answer.exit_code, answer.first_step) == (2, None)
        message = 'wandb does not start: api_key not configured (no-tty) (run `wandb login`, or set mode = "offline")'
        assert answer.output.splitlines()[-1] == message


class TestTensorBoard:
    def test_it_logs_losses_images_results_and_the_recipe(self, writers, run, tmp_path):
        answer = run(tmp_path / "runs", ON_TENSORBOARD)
        assert answer.exit_code == 0, answer.output
        folder, [writer] = only(tmp_path / "runs"), writers
        assert writer.folder == str(folder / "tensorboard")
        expected = {(name, images, v) for images, losses in losses_of(folder).items() for name, v in losses.items()}
        expected |= {(name, 8, value) for name, value in numbers_of(folder).items()}
        for images in (5, 8):
            width, height = grid_of(folder, images)
            expected |= {("samples", images, (1, height, width, 3))}
        [(_, at, text)] = [line for line in writer.calls if line[0] == "recipe"]
        assert at == 0
        assert json.loads(text.strip("`\n"))["generator"]["use"] == "pix2pix:unet"
        assert {line for line in writer.calls if line[0] != "recipe"} == expected
        assert writer.closed

    def test_values_logged_after_the_checkpoint_are_hidden_on_resume(self, writers, run, stop_at, tmp_path):
        stop_at(7, lambda: run(tmp_path, ON_TENSORBOARD))
        assert run(tmp_path, ON_TENSORBOARD).first_step == 4
        first, second = writers
        assert first.folder == second.folder
        visible = [line for line in first.calls if line[1] < second.purge_step] + second.calls
        log = [line for line in visible if line[0] == "G.l1"]
        assert log == [("G.l1", images, losses["G.l1"]) for images, losses in losses_of(only(tmp_path)).items()]


class TestRealTensorBoard:
    @pytest.fixture(autouse=True)
    def skip_without_tensorboard(self):
        pytest.importorskip("tensorboard")

    def test_event_files_of_an_interrupted_run_contain_each_value_once(self, run, stop_at, tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        stop_at(7, lambda: run(tmp_path, ON_TENSORBOARD))
        answer = run(tmp_path, ON_TENSORBOARD)
        assert answer.exit_code == 0, answer.output
        folder = only(tmp_path)
        events = EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        losses = losses_of(folder)
        for name in losses[8]:
            assert [event.step for event in events.Scalars(name)] == list(losses)
            assert [e.value for e in events.Scalars(name)] == pytest.approx([line[name] for line in losses.values()])
        for name, value in numbers_of(folder).items():
            [event] = events.Scalars(name)
            assert (event.step, event.value) == (8, pytest.approx(value))
        assert [(e.step, (e.width, e.height)) for e in events.Images("samples")] == [
            (images, grid_of(folder, images)) for images in (5, 8)
        ]
        [text] = events.Tensors("recipe/text_summary")
        assert "pix2pix:unet" in text.tensor_proto.string_val[0].decode()


@pytest.mark.parametrize(("kind", "package"), [(TensorBoard, "tensorboard"), (WandB, "wandb")])
def test_a_missing_package_is_an_error_before_training(kind, package, run, plain, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name, *more))
    with pytest.raises(UserError, match=rf"needs the package {package}: pip install 'p2pzoo\[{package}\]'"):
        kind()
    shutil.copytree(plain.parents[1], tmp_path, dirs_exist_ok=True)
    model = only(tmp_path) / "model.safetensors"
    before = model.read_bytes()
    callback = f'callbacks.tracker={{use="{package}"}}'
    answer = run(tmp_path, callback, flags=["--fresh"])
    assert (answer.exit_code, answer.first_step) == (2, None)
    assert f"callback '{package}': this callback needs" in answer.output or f"p2pzoo[{package}]" in answer.output
    assert model.read_bytes() == before
    assert run(tmp_path, callback).exit_code == 0, "what is complete is shown without it"
