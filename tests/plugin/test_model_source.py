"""Addresses of models: a plugin finds what is behind SCHEME:, wherever a model or initial weights can be named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import p2pzoo
from p2pzoo import config
from p2pzoo.plugin.model_source import FoundModel, find_model, is_address, locate_weights, pin_model
from p2pzoo.plugin.registry import KINDS, MODEL_SOURCE
from p2pzoo.utils.errors import UserError

# its newest version is the last folder by name
SHELF = """
import pathlib
import p2pzoo

ROOT = pathlib.Path(__file__).parent / "shelf"

@p2pzoo.hookimpl
def register_model_sources(register):
    register("shelf", find, summary="Models of a shelf", paper="none")

def find(name):
    name, _, version = name.partition("@")
    versions = sorted(folder.name for folder in (ROOT / name).glob(version or "*"))
    if not versions:
        raise p2pzoo.UserError(f"shelf:{name}: no such model")
    return p2pzoo.plugin.FoundModel(ROOT / name / versions[-1], f"shelf:{name}@{versions[-1]}")
"""


@pytest.fixture
def shelf(install, complete, tmp_path):
    """A folder of versions, of which the first, "1", holds the model and the recipe of a run."""
    install("shelving", SHELF)
    [trained] = complete.glob("*/*")
    folder = tmp_path / "site" / "shelf" / "cmp" / "facades" / "1"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "recipe.toml"):
        shutil.copy(trained / name, folder)
    return folder.parent


@pytest.fixture
def tile(tmp_path):
    Image.new("RGB", (64, 64), (66, 133, 214)).save(tmp_path / "tile.png")
    return tmp_path / "tile.png"


def test_only_registered_schemes_are_addresses(shelf):
    assert is_address("shelf:cmp/facades")
    assert is_address(Path("zoo:earth-small"))
    for path in ("shelf/cmp", "other:cmp/facades", "shelf", "/x/shelf:cmp"):
        assert not is_address(path)
        assert find_model(path) is None
    assert MODEL_SOURCE not in KINDS


def test_a_source_gives_the_folder_and_the_exact_version(shelf):
    assert find_model("shelf:cmp/facades") == FoundModel(shelf / "1", "shelf:cmp/facades@1")
    assert pin_model(Path("shelf:cmp/facades")) == Path("shelf:cmp/facades@1")
    assert pin_model(Path("zoo:earth-small")) == Path("zoo:earth-small")
    assert pin_model(Path("runs/a")) == Path("runs/a") == locate_weights(Path("runs/a"))
    assert locate_weights(Path("shelf:cmp/facades")) == shelf / "1" / "model.safetensors"


def test_commands_take_an_address_and_files_name_the_version(shelf, run_cli, tile, tmp_path):
    result = run_cli("translate", "shelf:cmp/facades", tile, "-o", tmp_path / "named.png", "--device", "cpu")
    assert result.exit_code == 0, result.output
    run_cli("translate", shelf / "1" / "model.safetensors", tile, "-o", tmp_path / "file.png", "--device", "cpu")
    assert np.array_equal(*(np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("named", "file")))
    assert json.loads(Image.open(tmp_path / "named.png").text["p2pzoo"])["address"] == "shelf:cmp/facades@1"
    assert "address" not in json.loads(Image.open(tmp_path / "file.png").text["p2pzoo"])
    result = run_cli("evaluate", "shelf:cmp/facades", "--device", "cpu", "-o", tmp_path / "r.json", "--metric", "l1")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "r.json").read_text())["model"] == "shelf:cmp/facades@1"


def test_python_takes_an_address(shelf):
    model = p2pzoo.load("shelf:cmp/facades", device="cpu")
    assert model.address == "shelf:cmp/facades@1"
    assert p2pzoo.load(shelf / "1", device="cpu").address is None


@pytest.mark.parametrize(
    "command",
    [["translate", "shelf:x", "TILE", "-o", "OUT"], ["evaluate", "shelf:x"],
     ["calibrate", "shelf:x", "-o", "O.safetensors"], ["export", "shelf:x", "--to", "junyanz", "-o", "OUT.pth"]],
)  # fmt: skip
def test_an_address_without_a_model_is_one_line(shelf, run_cli, tile, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_cli(*[str(tile) if argument == "TILE" else argument for argument in command])
    assert (result.exit_code, result.output) == (2, "shelf:x: no such model\n")


@pytest.mark.parametrize("command", ["calibrate", "card"])
def test_a_published_model_is_not_changed(shelf, run_cli, tmp_path, command):
    result = run_cli(command, "shelf:cmp/facades", *(["-o", tmp_path / "card"] if command == "card" else []))
    assert result.exit_code == 2
    assert "published" in result.output


def test_a_path_that_does_not_exist_names_the_schemes(shelf, run_cli, tile, tmp_path):
    result = run_cli("translate", "shelv:cmp/facades", tile, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "or shelf:…" in result.output


@pytest.mark.parametrize(
    ("hook", "address"), [("register_models", "zoo:facades"), ("register_model_sources", "facades:maps")]
)
def test_a_plugin_without_its_model_is_named(hook, address, install, run_cli, tile, tmp_path):
    """As of a wheel that was built without the folder."""
    install("lossy", f"import p2pzoo\n@p2pzoo.hookimpl\ndef {hook}(register):\n    register('facades', find)\n"
                     "def find(*name):\n    return FOLDER if not name else p2pzoo.plugin.FoundModel(FOLDER)\n"
                     f"FOLDER = p2pzoo.utils.paths.Path({str(tmp_path / 'lost')!r})\n")  # fmt: skip
    line = f"{address}: plugin 'lossy' (lossy 1.0) names a folder that does not exist, {tmp_path / 'lost'}"
    for command in (["translate", address, tile, "-o", tmp_path / "o.png"], ["evaluate", address]):
        result = run_cli(*command)
        assert (result.exit_code, result.output.startswith(line)) == (2, True), result.output
        assert len(result.output.splitlines()) == 1


def recipe(tmp_path, text):
    file = tmp_path / "recipes" / "mine.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f'extends = "zoo:base.toml"\n[init]\n{text}\n')
    return str(file)


def test_initial_weights_are_pinned_and_count_by_their_content(shelf, tmp_path):
    named = config.load(recipe(tmp_path, 'generator = "shelf:cmp/facades"'), "smoke")
    assert named.resolved()["init"]["generator"] == "shelf:cmp/facades@1"
    local = config.load(recipe(tmp_path, f'generator = "{shelf}/1/model.safetensors"'), "smoke")
    assert named.id == local.id
    shutil.copytree(shelf / "1", shelf / "2")
    newer = config.load(recipe(tmp_path, 'generator = "shelf:cmp/facades"'), "smoke")
    assert newer.resolved()["init"]["generator"] == "shelf:cmp/facades@2"
    assert newer.id == named.id


def test_initial_weights_of_an_unknown_address_are_a_fault_of_their_line(shelf, tmp_path):
    with pytest.raises(UserError, match=r'mine.toml:3  \[init\] generator = "shelf:x": shelf:x: no such model'):
        config.load(recipe(tmp_path, 'generator = "shelf:x"'), "smoke")


def test_a_run_starts_from_an_address(shelf, run, tmp_path):
    result = run(tmp_path / "runs", "init.generator=shelf:cmp/facades", "train.images=2")
    assert result.exit_code == 0, result.output
    [folder] = (tmp_path / "runs").glob("*/*")
    assert 'generator = "shelf:cmp/facades@1"' in (folder / "recipe.toml").read_text()
    shutil.copytree(shelf / "1", shelf / "2")  # the run's own recipe still means the first
    assert config.load(str(folder / "recipe.toml")).init.generator == Path("shelf:cmp/facades@1")


def test_the_models_of_plugins_can_start_a_run(tmp_path):
    made = config.load(recipe(tmp_path, 'generator = "zoo:earth-small"'), "smoke")
    assert made.init.generator == Path("zoo:earth-small")
    assert len(made.id) == 10
