"""The scorer that comes with the embedded data reads real photos well enough to judge others."""

import pytest
import torch
from p2pzoo_earth.dataset import TASKS, Earth
from p2pzoo_metrics.segmentation import FCNScore

from p2pzoo.data import Store, single_batches
from p2pzoo.models.safetensors_io import load_tensors

LEAST = {"value": 0.72, "class_iou": 0.55}  # pixel accuracy and class IoU


@pytest.mark.parametrize("task", TASKS)
def test_every_task_that_ends_in_a_photo_has_it(task):
    assert (Earth("val", task=task).scorer is not None) == task.endswith(("-to-photo", "-to-color", "inpainting"))


def test_is_small_and_says_what_it_was_trained_on():
    earth = Earth("val")
    assert earth.scorer.stat().st_size < 5_000_000
    _, header = load_tensors(earth.scorer)
    assert header["classes"] == list(earth.classes)
    assert (header["trained_on"]["dataset"], header["trained_on"]["split"]) == ("earth:earth", "train")
    assert header["self_check"] == {"pixel_accuracy": LEAST["value"], "class_iou": LEAST["class_iou"]}


@pytest.mark.slow
def test_reaches_its_thresholds_on_the_real_test_photos_and_loses_by_noise():
    earth = Earth("test")
    metric, store = FCNScore(earth), Store(earth)
    real, noisy = [], []
    for batch in single_batches(store):
        real.append(metric.measure(batch, batch.y)["confusion"])
        noise = torch.rand(batch.y.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        noisy.append(metric.measure(batch, noise)["confusion"])
    reached = metric.reduce({"confusion": torch.cat(real)})
    assert all(reached[name] >= least for name, least in LEAST.items()), reached
    assert metric.reduce({"confusion": torch.cat(noisy)})["value"] < 0.4
