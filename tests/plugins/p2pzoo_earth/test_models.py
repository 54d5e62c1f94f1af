"""The trained model that comes with the plugin: its size, the numbers of its card, and the command in the READMEs."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from p2pzoo_earth.dataset import Earth
from p2pzoo_earth.models import earth_small
from PIL import Image

import p2pzoo
from p2pzoo import config

ROOT = Path(__file__).parents[3]


def test_it_takes_at_most_8_mb():
    assert (earth_small() / "model.safetensors").stat().st_size <= 8e6


@pytest.mark.parametrize("page", ["README.md", "plugins/p2pzoo_earth/README.md"])
def test_the_readmes_command_translates_its_example(page, run_cli, tmp_path, monkeypatch):
    [command] = re.findall(r"^p2pzoo (translate zoo:earth-small .*)$", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plugins").symlink_to(ROOT / "plugins")
    result = run_cli(*shlex.split(command))
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "photo.png").size == (128, 128)


def test_its_example_is_a_label_map_of_the_test_split():
    data = Earth("test", task="labels-to-photo", size=128)
    example = np.asarray(Image.open(earth_small() / "example.png"))
    assert any(np.array_equal(data[i].x, example) for i in range(len(data)))


def test_its_l1_is_that_of_its_card_and_better_than_the_mean_colour():
    data, model = Earth("test", task="labels-to-photo", size=128), p2pzoo.load("zoo:earth-small", device="cpu")
    card = yaml.safe_load((earth_small() / "README.md").read_text("utf-8").split("---\n")[1])
    numbers = {m["name"]: m["value"] for result in card["model-index"][0]["results"] for m in result["metrics"]}
    errors = [np.abs(model.translate(data[i].x).astype(float) - data[i].y).mean() / 127.5 for i in range(len(data))]
    of_mean_colour = [np.abs(data[i].y - data[i].y.mean(axis=(0, 1))).mean() / 127.5 for i in range(len(data))]
    assert np.mean(errors) == pytest.approx(numbers["l1"], abs=1e-3)
    assert np.mean(errors) < np.mean(of_mean_colour)


def test_it_takes_images_of_other_sizes():
    model = p2pzoo.load("zoo:earth-small", device="cpu")
    assert model.translate(np.zeros((100, 72, 3), np.uint8)).shape == (100, 72, 3)


def test_its_recipe_is_the_one_in_recipes():
    recipe = config.load("zoo:modern/earth_small.toml", "laptop")
    assert recipe.id == p2pzoo.load("zoo:earth-small", device="cpu").run
