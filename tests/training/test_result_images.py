"""Which test images the report of a run shows as best and worst."""

import pytest
from PIL import Image

from p2pzoo import config
from p2pzoo.images.grid import grid_indices
from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.plugin.loader import registry
from p2pzoo.training import result_images
from p2pzoo.training import run_experiment as run_experiment_module
from p2pzoo.training.result_images import BEST_AND_WORST, pick_best_and_worst
from p2pzoo.training.run_experiment import run_experiment


class Silent:
    def step(self, images, losses): ...
    def note(self, text): ...


@pytest.mark.parametrize(
    ("count", "best", "worst"),
    [
        (1, [0], []),
        (2, [0], [1]),
        (3, [0, 1], [2]),
        (5, [0, 1, 2], [4, 3]),
        (9, [0, 1, 2], [8, 7, 6]),
    ],
)
def test_no_image_is_among_the_best_and_the_worst(count, best, worst):
    assert BEST_AND_WORST == 3
    assert pick_best_and_worst(range(count), lambda index: index) == {"best": best, "worst": worst}


def test_images_of_one_region_are_shown_once_in_a_list():
    region = {0: "a", 1: "a", 2: "b", 3: "b", 4: "a", 5: "a"}
    assert pick_best_and_worst([0, 1, 2, 3, 4, 5], region.get) == {"best": [0, 2], "worst": [5, 3]}


def test_only_the_images_that_may_be_shown_are_read():
    read = []
    pick_best_and_worst(range(1000), lambda index: read.append(index) or index)
    assert len(read) == 2 * BEST_AND_WORST


def test_the_pictures_are_those_that_were_measured_also_where_several_are_translated_together(tmp_path, monkeypatch):
    recorded, grids = [], []
    monkeypatch.setattr(run_experiment_module, "write_report", lambda *args: recorded.append(args))
    monkeypatch.setattr(result_images, "make_grid", lambda rows: grids.append(rows) or Image.new("L", (1, 1)))
    overrides = [
        "dataset.size=64", "dataset.stride=256", "generator.width=4", "generator.norm=batch", "discriminator.width=4",
        "train.images=4", "evaluate.test_batch=5", "compute.device=cpu", 'drop=["metrics.ssim", "metrics.psnr"]',
    ]  # fmt: skip
    outcome = run_experiment(config.load("zoo:base.toml", "smoke", overrides), registry(), tmp_path, Silent())

    *_, (_, _, comparisons, _) = recorded
    assert len(comparisons) == 6
    for comparison in comparisons:
        error = (comparison.y_hat - comparison.y).abs().mean().item()
        assert comparison.note.endswith(f" {error:.4f}"), comparison.note
    of_images = load_tensors(outcome.run.stats)[0]["l1.l1"]
    [rows] = grids
    for index, (_, y_hat, y) in zip(grid_indices(len(of_images)), rows, strict=True):
        assert (y_hat - y).abs().mean().item() == pytest.approx(of_images[index].item(), abs=1e-6)
