"""Folders of images: parallel work, the order of outcomes, bounded memory, and stopping."""

import itertools
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from p2pzoo.images.io import read_image
from p2pzoo.models import model as model_module
from p2pzoo.models import translate_files as translate_files_module
from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader
from p2pzoo.models.scaling import Scaling
from p2pzoo.models.test_modes import translate
from p2pzoo.models.translate_files import describe_translation, sample_paths, translate_files


class Small(nn.Module):
    """Batch norm and dropout, sides of multiples of 8. It records the shape of every batch."""

    size_divisor = 8

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 3, 3, padding=1), nn.Tanh()
        )
        self.shapes = []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return self.layers(x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    header = {
        "in_channels": 3, "out_channels": 3, "size": [8, 8], "test_mode": "paper", "run": "none", "size_divisor": 8,
        "generator": {"use": "small", "params": {}},
    }  # fmt: skip
    return Model(Small(), ModelHeader.parse(header, Path("model.safetensors")), torch.device("cpu"))


@pytest.fixture
def folder(tmp_path):
    """folder((H, W), …): {source: target} of images of these sizes, by number."""

    def folder(*sizes):
        targets = {}
        for number, size in enumerate(sizes):
            source = tmp_path / f"{number:03}.png"
            pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(source)
            targets[source] = tmp_path / "out" / source.name
        return targets

    return folder


def read_targets(targets):
    return {target.name: np.asarray(Image.open(target)) for target in targets.values() if target.exists()}


def has_stopped_cleanly(targets):
    """Every existing file is whole, none is temporary, and no thread is running."""
    for target in targets.values():
        if target.exists():
            Image.open(target).load()
        assert not [*target.parent.glob(".*.tmp")]
    return not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


def test_paper_mode_is_bit_identical_to_translating_each_image_alone(model, folder):
    targets = folder((16, 16), (9, 20), (16, 16), (8, 8))
    list(translate_files(model, targets, "paper", seed=3))
    assert all(shape[0] == 1 for shape in model.G.shapes)
    for source, target in targets.items():
        pixels = read_image(source)
        x = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None].mul(2 / 255).sub(1)
        height, width = pixels.shape[:2]
        rows, columns = (
            [*range(n), *reversed(range(n - 1))][: -(-n // 8) * 8] for n in (height, width)
        )  # the reflection
        x = x[:, :, rows][:, :, :, columns].contiguous()
        y_hat = translate(model.G, x, "paper", seed=3)[0, :, :height, :width].permute(1, 2, 0)
        expected = ((y_hat.clamp(-1, 1) + 1) * (255 / 2)).round().to(torch.uint8).numpy()
        assert np.array_equal(np.asarray(Image.open(target)), expected)


def test_eval_mode_translates_images_of_one_padded_size_together(model, folder, monkeypatch):
    monkeypatch.setattr("p2pzoo.models.model.MAX_BATCH_PIXELS", {"cpu": 3 * 16**2})
    targets = folder(*[(16, 16), (15, 10), (32, 32)] * 4, (8, 8))
    eval_G = model._eval_G
    eval_G.shapes.clear()
    assert [outcome.source for outcome in translate_files(model, targets, "eval")] == list(targets)
    assert sorted(eval_G.shapes) == [(1, 3, 8, 8), *[(1, 3, 32, 32)] * 4, (2, 3, 16, 16), *[(3, 3, 16, 16)] * 2]
    for source, target in targets.items():
        alone = model.translate(read_image(source), test_mode="eval").astype(int)
        assert np.abs(alone - np.asarray(Image.open(target))).max() <= 1


def test_outcomes_are_in_the_order_of_the_inputs(model, folder, monkeypatch):
    monkeypatch.setattr("p2pzoo.models.model.MAX_BATCH_PIXELS", {"cpu": 3 * 16**2})
    targets = folder((8, 8), *[(16, 16)] * 7)
    sources = list(targets)
    sources[3].write_bytes(b"no image")
    sources[5].unlink()
    outcomes = []
    for outcome in translate_files(model, targets, "eval"):
        assert outcome.target.exists() == (not outcome.faults), "an outcome is yielded when its file exists"
        outcomes.append(outcome)
    assert [outcome.source for outcome in outcomes] == sources
    assert [number for number, outcome in enumerate(outcomes) if outcome.faults] == [3, 5]
    assert outcomes[5].faults == (f"{sources[5]}: no such file",)
    assert has_stopped_cleanly(targets)


def test_an_image_of_a_rare_size_does_not_block_the_outcomes_of_the_others(model, folder, monkeypatch):
    monkeypatch.setattr(translate_files_module, "MAX_WAIT", 6)
    monkeypatch.setattr("p2pzoo.models.model.MAX_BATCH_PIXELS", {"cpu": 2 * 16**2})
    targets = folder((8, 8), *[(16, 16)] * 40)
    model._eval_G.shapes.clear()
    next(translate_files(model, targets, "eval"))
    assert len(model._eval_G.shapes) < 20


def test_reading_computing_and_writing_run_in_parallel(model, folder, monkeypatch):
    """Each stage waits until another image is in another stage: without parallel stages this would never end."""
    targets = folder(*[(8, 8)] * 12)
    reading, computing, writing = (threading.Event() for _ in range(3))
    read, write, compute = model_module.read_image, translate_files_module.write_image, model.translate_arrays
    calls = {"read": itertools.count(), "compute": itertools.count(), "write": itertools.count()}

    def slow_read(path):
        if next(calls["read"]) == 6:
            reading.set()
            assert computing.wait(10)
        return read(path)

    def slow_compute(*arguments):
        if next(calls["compute"]) == 3:
            assert reading.wait(10)
            computing.set()
            assert writing.wait(10)
        return compute(*arguments)

    def slow_write(*arguments, **options):
        if next(calls["write"]) == 2:
            writing.set()
            assert computing.wait(10)
        return write(*arguments, **options)

    monkeypatch.setattr(model_module, "read_image", slow_read)
    monkeypatch.setattr(translate_files_module, "write_image", slow_write)
    monkeypatch.setattr(model, "translate_arrays", slow_compute)
    assert not [fault for outcome in translate_files(model, targets, "paper") for fault in outcome.faults]


@pytest.mark.parametrize(
    ("setting", "value", "limit"), [("MAX_IMAGES_AHEAD", 4, 5), ("MAX_PIXELS_AHEAD", 2 * 8 * 8, 3)]
)
def test_few_images_are_read_ahead_and_few_wait_to_be_written(model, folder, monkeypatch, setting, value, limit):
    monkeypatch.setattr(translate_files_module, setting, value)
    monkeypatch.setattr(translate_files_module, "MAX_THREADS", 2)
    targets = folder(*[(8, 8)] * 24)
    counts = {"read": 0, "translated": 0, "written": 0}
    ahead, behind = [], []
    read, write, compute = model_module.read_image, translate_files_module.write_image, model.translate_arrays

    def counting_read(path):
        counts["read"] += 1
        return read(path)

    def counting_compute(images, *rest):
        time.sleep(0.005)  # time in which images can be read
        ahead.append(counts["read"] - counts["translated"])
        counts["translated"] += len(images)
        return compute(images, *rest)

    def slow_write(*arguments, **options):
        behind.append(counts["translated"] - counts["written"])
        time.sleep(0.02)
        write(*arguments, **options)
        counts["written"] += 1

    monkeypatch.setattr(model_module, "read_image", counting_read)
    monkeypatch.setattr(translate_files_module, "write_image", slow_write)
    monkeypatch.setattr(model, "translate_arrays", counting_compute)
    assert len(list(translate_files(model, targets, "paper"))) == 24
    assert max(ahead) <= limit
    assert max(behind) <= limit + 1  # one thread may still write an earlier image while the other reads


def test_written_pixels_are_the_translation_in_a_lossless_file(model, folder):
    [(source, target)] = folder((40, 24)).items()
    list(translate_files(model, {source: target}, "eval", text={"made": "by a test"}))
    image = Image.open(target)
    assert (image.format, image.mode, image.text) == ("PNG", "RGB", {"made": "by a test"})
    assert np.array_equal(np.asarray(image), model.translate(read_image(source), test_mode="eval"))


def test_a_file_that_cannot_be_written_raises_after_the_outcomes_before_it(model, folder, monkeypatch):
    targets = folder(*[(8, 8)] * 30)
    full, write = list(targets.values())[10], translate_files_module.write_image

    def write_until_full(path, *arguments, **options):
        if path == full:
            raise OSError(28, "No space left on device", str(path))
        write(path, *arguments, **options)

    monkeypatch.setattr(translate_files_module, "write_image", write_until_full)
    outcomes = translate_files(model, targets, "paper")
    assert [outcome.source for outcome in itertools.islice(outcomes, 10)] == list(targets)[:10]
    with pytest.raises(OSError, match="No space left"):
        next(outcomes)
    assert has_stopped_cleanly(targets)


def test_a_target_that_cannot_be_written_does_not_stop_the_others(model, folder, tmp_path):
    targets = folder((8, 8), (8, 8), (8, 8))
    first, second, _ = targets
    targets[first] = tmp_path / "out" / f"{'a' * 252}.png"
    targets[second] = tmp_path / "out" / "pipe.png"
    (tmp_path / "out").mkdir()
    os.mkfifo(targets[second])
    outcomes = list(translate_files(model, targets, "paper"))
    assert [outcome.faults for outcome in outcomes] == [
        (f"{targets[first]}: this name is too long for the file system: rename {first}",),
        (f"{targets[second]}: is a pipe, which is not replaced: give the name of a file",),
        (),
    ]


def test_an_interrupt_leaves_whole_files(model, folder, monkeypatch):
    targets = folder(*[(8, 8)] * 60)
    compute, write, calls = model.translate_arrays, translate_files_module.write_image, itertools.count()

    def slow_write(*arguments, **options):
        time.sleep(0.05)
        write(*arguments, **options)

    def compute_then_interrupt(*arguments):
        if next(calls) == 20:
            raise KeyboardInterrupt
        return compute(*arguments)

    monkeypatch.setattr(translate_files_module, "write_image", slow_write)
    monkeypatch.setattr(model, "translate_arrays", compute_then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(translate_files(model, targets, "paper"))
    assert has_stopped_cleanly(targets)
    assert 0 < len(read_targets(targets)) < 20, "files whose writing had not started are not written"


def test_closing_the_generator_leaves_whole_files(model, folder):
    targets = folder(*[(8, 8)] * 60)
    outcomes = translate_files(model, targets, "paper")
    first = next(outcomes)
    outcomes.close()
    assert first.target.exists()
    assert has_stopped_cleanly(targets)
    assert len(read_targets(targets)) < 60


def test_out_of_memory_retries_images_one_by_one_and_skips_those_that_are_too_large(model, folder):
    targets = folder((16, 16), (16, 16), (64, 64), (16, 16))
    forward = model._eval_G.layers.forward

    def forward_with_little_memory(x):
        if x[:, 0].numel() > 16 * 16:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes.")
        return forward(x)

    model._eval_G.layers.forward = forward_with_little_memory
    faults = {outcome.source.name: outcome.faults for outcome in translate_files(model, targets, "eval")}
    [message] = faults.pop("002.png")
    assert message.endswith("002.png: out of memory at 64×64: translate it in tiles (--test-mode eval --tile 32)")
    assert not any(faults.values())
    assert len(read_targets(targets)) == 3
    list(translate_files(model, targets, "eval", tiling=model.resolve_options("eval", 16, 0)[1]))
    assert len(read_targets(targets)) == 4


def test_each_sample_says_with_which_seed_it_is_made_again(model, folder):
    [(source, target)] = folder((16, 16)).items()
    text = {"p2pzoo": describe_translation(model, "paper", 5, "fp32", None, Scaling(), {}, None)}
    list(translate_files(model, {source: target}, "paper", seed=5, samples=3, text=text))
    *samples, mean, spread = (Image.open(path) for path in sample_paths(target, 3))
    said = [json.loads(image.text["p2pzoo"]) for image in (*samples, mean, spread)]
    assert [each["seed"] for each in said] == [5, 6, 7, 5, 5]
    assert [each.get("samples") for each in said] == [None, None, None, 3, 3]
    for image, each in zip(samples, said, strict=False):
        again = model.translate(read_image(source), test_mode="paper", seed=each["seed"], scale="native")
        assert np.array_equal(np.asarray(image), again)
