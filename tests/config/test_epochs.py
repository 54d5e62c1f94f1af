"""[train] epochs: a length in passes over the training pairs, which becomes `images`."""

import re

import pytest

from p2pzoo import config
from p2pzoo.images.io import write_png
from p2pzoo.utils.errors import UserError

BASE = 'extends = "zoo:base.toml"\n'


@pytest.fixture
def photos(tmp_path):
    """(folder, override that uses it): 7 training pairs."""
    import numpy as np

    for split, count in (("train", 7), ("val", 2), ("test", 2)):
        (tmp_path / "photos" / split).mkdir(parents=True)
        for number in range(count):
            write_png(tmp_path / "photos" / split / f"{number}.png", np.full((64, 128, 3), 9 * number, np.uint8))
    return f'dataset={{use="side-by-side", root="{tmp_path / "photos"}"}}'


@pytest.fixture
def load(tmp_path):
    """load(text of a recipe, *overrides) -> the experiment."""

    def load(text, *overrides, profile="smoke", function=config.load):
        file = tmp_path / "mine.toml"
        file.write_text(BASE + text)
        return function(str(file), profile, overrides)

    return load


def test_epochs_become_images_and_the_same_run(load, photos):
    by_epochs = load("", photos, "train.epochs=3")
    assert by_epochs.train.images == 21
    assert by_epochs.id == load("", photos, "train.images=21").id
    assert by_epochs.resolved()["train"]["images"] == 21
    assert "epochs" not in by_epochs.resolved()["train"]
    assert by_epochs.origin(("train", "images")) == "-s train.epochs=3: 3 epochs of the training pairs"
    assert load("", photos, "train.epochs=0.5").train.images == 4, "rounded up"


def test_the_schedule_spans_the_resolved_images(load, photos):
    experiment = load("", photos, "train.epochs=3", "train.batch_size=7")
    assert (experiment.train.steps, experiment.train.images_seen) == (3, 21)


def test_a_later_layer_replaces_the_other_key(load, photos):
    file = "[train]\nepochs = 2\n[profiles.smoke.train]\nimages = 5\n"
    assert load(file, photos).train.images == 5, "the profile comes after the file's own tables"
    assert load(file, photos, profile="laptop").train.images == 14
    assert load(file, photos, "train.epochs=4").train.images == 28


@pytest.mark.parametrize(
    ("text", "overrides", "place"),
    [
        ("[train]\nimages = 5\nepochs = 2\n", (), r"mine\.toml:4"),
        ("[profiles.smoke.train]\nimages = 5\nepochs = 2\n", (), r"mine\.toml:4"),
        ("", ("train.images=5", "train.epochs=2"), "-s train.epochs=2"),
        ("", ("train={images=5, epochs=2}",), "-s train="),
    ],
)
def test_both_in_one_layer_are_refused(text, overrides, place, load, photos):
    with pytest.raises(UserError, match=rf"{place}.*epochs and images are given together: remove one of them"):
        load(text, photos, *overrides)


@pytest.mark.parametrize(
    ("text", "overrides", "fault"),
    [
        (
            "",
            ("evaluate.at=[20, 21]",),
            r"-s evaluate\.at=\[20, 21\]  \[evaluate\] at = 21: the training ends at 21 images",
        ),
        ("[evaluate]\nat = [99]\n", (), r"mine\.toml:3  \[evaluate\] at = 99: the training ends at 21 images"),
        (
            "[metrics.l1.evaluate]\nat = 99\n",
            (),
            r"mine\.toml:3  \[metrics\.l1\] at = 99: the training ends at 21 images",
        ),
        ("[evaluate.also.late]\nat = 99\n", (), r"mine\.toml:3  \[evaluate\] at = 99: the training ends at 21 images"),
    ],
)
def test_weights_after_the_end_are_refused_before_training(text, overrides, fault, load, photos):
    with pytest.raises(UserError, match=fault):
        load(text, photos, "train.epochs=3", *overrides)


def test_weights_before_the_end_are_measured(load, photos):
    assert load("", photos, "train.epochs=3", "evaluate.at=[20]").evaluate.at == (20,)


def test_one_image_is_no_plural(load, photos):
    with pytest.raises(UserError, match="at = 5: the training ends at 1 image,"):
        load("", photos, "train.epochs=0.02", "evaluate.at=[5]")


def test_without_the_data_the_recipe_still_prints(load, run_cli, tmp_path):
    missing = 'dataset={use="side-by-side", root="nowhere"}'
    experiment = load("", missing, "train.epochs=3", function=config.load_without_data)
    assert experiment.resolved()["train"]["epochs"] == 3
    assert "images" not in experiment.resolved()["train"]
    with pytest.raises(UserError, match=r"train\.epochs=3.*epochs = 3: needs the number of training pairs"):
        _ = experiment.id
    with pytest.raises(UserError, match="nowhere"):
        load("", missing, "train.epochs=3")
    result = run_cli("recipe", tmp_path / "mine.toml", "-s", missing, "-s", "train.epochs=3")
    assert result.exit_code == 0, result.output
    assert "epochs = 3" in result.output
    assert re.search(r"# no id: .*nowhere", result.output)


def test_faults_name_what_to_do(load, photos, install):
    with pytest.raises(UserError, match=r"\[train\] needs images \(the length of the training\) or epochs"):
        load('drop = ["train"]\n', photos)
    with pytest.raises(UserError, match=r"epochs = 0: "):
        load("", photos, "train.epochs=0")
    install("endless", "from p2pzoo.plugin import hookimpl\n" + ENDLESS)
    with pytest.raises(UserError, match=r"epochs = 2: the dataset 'endless:endless' has no length: give images"):
        load("", 'dataset={use="endless"}', "train.epochs=2")


ENDLESS = """
class Endless:
    def __init__(self, split): ...

@hookimpl
def register_datasets(register):
    register("endless", Endless, summary="Pairs without an end", paper="none")
"""
