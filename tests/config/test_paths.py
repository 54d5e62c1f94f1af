"""Files and folders of a recipe are relative to the recipe file that names them."""

import warnings
from pathlib import Path

import pytest

from p2pzoo import config

RECIPE = 'extends = "zoo:base.toml"\n[dataset]\nuse = "folders"\ninputs = "photos"\ntargets = "maps"\n'


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The current folder: work/ with photos/, maps/ and mine.toml, and other/ beside it without any."""
    work = tmp_path / "work"
    for folder in ("photos", "maps"):
        (work / folder).mkdir(parents=True)
    (work / "mine.toml").write_text(RECIPE)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folders_of(recipe, *overrides):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        experiment = config.load(str(recipe), "smoke", overrides)
    values = experiment.dataset.values
    return [str(values["inputs"]), str(values["targets"])], [str(warning.message) for warning in caught]


def test_they_are_relative_to_the_recipe(home, monkeypatch):
    assert folders_of("work/mine.toml") == (["work/photos", "work/maps"], [])
    assert folders_of(home / "work/mine.toml") == (["work/photos", "work/maps"], [])
    monkeypatch.chdir(home / "other")
    assert folders_of("../work/mine.toml")[0] == ["../work/photos", "../work/maps"]
    monkeypatch.chdir(home / "work")
    assert folders_of("mine.toml") == (["photos", "maps"], [])


def test_so_are_the_files_of_every_other_table(home):
    (home / "work/g.safetensors").touch()
    (home / "tuned.json").touch()
    (home / "work/mine.toml").write_text(
        RECIPE + '[generator]\nuse = "timm-unet"\nweights = "weights/resnet.pth"\n'
        '[init]\ngenerator = "g.safetensors"\n[compute]\nkernels = "tuned.json"\n'
    )
    with pytest.warns(UserWarning, match=r'mine.toml:\d+  \[compute\] kernels = "tuned.json" is found in the current'):
        experiment = config.load("work/mine.toml", "smoke")
    assert experiment.generator.values["weights"] == Path("work/weights/resnet.pth")
    assert experiment.init.generator == Path("work/g.safetensors")
    assert experiment.compute.kernels == Path("tuned.json")


def test_the_id_of_a_run_does_not_depend_on_how_the_recipe_is_named(home, monkeypatch):
    monkeypatch.chdir(home / "work")
    ids = {config.load(path, "smoke").id for path in ("mine.toml", "./mine.toml", str(home / "work/mine.toml"))}
    assert len(ids) == 1


def test_each_file_of_a_chain_counts_for_the_paths_that_it_sets(home):
    (home / "other/later.toml").write_text('extends = "../work/mine.toml"\n[dataset]\ntargets = "drawings"\n')
    (home / "other/drawings").mkdir()
    assert folders_of("other/later.toml")[0] == ["other/../work/photos", "other/drawings"]


def test_those_that_only_the_current_folder_has_are_found_with_a_warning(home):
    (home / "drawings").mkdir()
    (home / "work/mine.toml").write_text(RECIPE.replace("maps", "drawings"))
    folders, [warning] = folders_of("work/mine.toml")
    assert folders == ["work/photos", "drawings"]
    assert warning == (
        'work/mine.toml:5  [dataset] targets = "drawings" is found in the current folder, not beside the recipe: '
        "move it there, or give the path from the recipe"
    )


def test_those_of_s_and_of_shipped_recipes_are_relative_to_the_current_folder(home):
    assert folders_of("work/mine.toml", "dataset.targets=maps") == (["work/photos", "maps"], [])
    assert config.load("zoo:tasks/inpaint.toml", "smoke").dataset.values["root"] == Path("photos")


def test_the_recipe_of_a_run_is_read_as_it_was_written(home):
    run = home / "runs/mine/1"
    run.mkdir(parents=True)
    (run / "recipe.toml").write_text(RECIPE.replace('"photos"', '"work/photos"').replace('"maps"', '"work/maps"'))
    (run / "status.json").write_text("{}")
    assert folders_of(run / "recipe.toml") == (["work/photos", "work/maps"], [])


def test_a_folder_that_does_not_exist_is_named_as_expected_beside_the_recipe(home, run_cli):
    (home / "work/photos").rmdir()
    assert "work/photos: no such folder" in run_cli("data", "check", "work/mine.toml").output
