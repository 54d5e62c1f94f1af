"""The scorer of the embedded dataset reads real photos well enough to score translations."""

import pytest
import torch
from p2pzoo_earth.dataset import SCORERS_OF_FOLDS, TASKS, Earth
from p2pzoo_metrics.segmentation import FCNScore

from p2pzoo.data import Store, single_batches
from p2pzoo.models.safetensors_io import load_tensors

MINIMA = {"value": 0.72, "class_iou": 0.55}  # pixel accuracy and class IoU: the self-check in the scorer's file


@pytest.mark.parametrize("task", TASKS)
def test_every_task_whose_y_is_a_photo_has_it(task):
    assert (Earth("val", task=task).scorer is not None) == task.endswith(("-to-photo", "-to-color", "inpainting"))


def test_it_is_small_and_its_header_names_the_training_data():
    earth = Earth("val")
    assert earth.scorer.stat().st_size < 5_000_000
    _, header = load_tensors(earth.scorer)
    assert header["classes"] == list(earth.classes)
    assert (header["trained_on"]["dataset"], header["trained_on"]["split"]) == ("earth:earth", "train")
    assert header["self_check"] == {"pixel_accuracy": MINIMA["value"], "class_iou": MINIMA["class_iou"]}


@pytest.mark.parametrize("file", sorted(SCORERS_OF_FOLDS.glob("*.safetensors")), ids=lambda file: file.stem)
def test_a_scorer_of_two_folds_has_seen_no_region_that_either_tests(file):
    assert file.stat().st_size < 1_500_000
    _, header = load_tensors(file)
    trained_on = header["trained_on"]
    first = trained_on["dataset"]["fold"]
    assert file.stem in (f"fold{first}", f"fold{first}-robust")
    assert (trained_on["blur"] > 0) == (trained_on["colour"] > 0) == file.stem.endswith("-robust")
    seen = {pair.block for pair in Earth("train", fold=first)}
    for fold in (first, first + 5):
        earth = Earth("test", fold=fold)
        assert file in (earth.scorer, *earth.scorers.values())
        assert not seen & {pair.block for pair in earth}


@pytest.mark.slow
def test_it_reaches_its_minima_on_real_test_photos_and_noise_scores_lower():
    earth = Earth("test")
    metric, store = FCNScore(earth), Store(earth)
    real, noisy = [], []
    for number, batch in enumerate(single_batches(store)):
        real.append(metric.measure(batch, batch.y)["confusion"])
        if number % 8 == 0:
            noise = torch.rand(batch.y.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
            noisy.append(metric.measure(batch, noise)["confusion"])
    reached = metric.reduce({"confusion": torch.cat(real)})
    assert all(reached[name] >= minimum for name, minimum in MINIMA.items()), reached
    assert metric.reduce({"confusion": torch.cat(noisy)})["value"] < 0.4
