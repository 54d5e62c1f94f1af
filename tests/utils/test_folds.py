"""Folds of any dataset: every pair is tested once, a block is in one split, and new pairs of a block follow it."""

import json
from itertools import chain

import numpy as np
import phantoms
import pytest
import stack_pairs
from hypothesis import given
from hypothesis import strategies as st
from p2pzoo_medical.volumes import Volumes
from p2pzoo_microscopy.stacks import Stacks
from PIL import Image

from p2pzoo import config
from p2pzoo.data import Store
from p2pzoo.runs.evaluate import describe_component
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.folds import Fold, assign

SPLITS = ("train", "val", "test")


@pytest.fixture
def folder(tmp_path):
    """Two folders of 14 pairs without splits."""
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        for number in range(14):
            pixels = np.full((16, 16, 3), 10 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / side / f"{number:02}.png")
    (tmp_path / "mine.toml").write_text(
        'extends = "zoo:base.toml"\n[dataset]\nuse = "folders"\ninputs = "a"\ntargets = "b"\nsize = [16, 16]\n'
    )
    return tmp_path


def load(folder, *overrides):
    return config.load(str(folder / "mine.toml"), "smoke", ["dataset.max_pairs=100", *overrides])


def ids(dataset):
    return [dataset[i].id for i in range(len(dataset))]


def test_every_pair_is_tested_in_one_fold_and_is_in_one_split_of_each(folder):
    tested = []
    for fold in range(3):
        dataset = load(folder, "dataset.folds=3", f"dataset.fold={fold}").dataset
        splits = [ids(dataset.build(split=split)) for split in SPLITS]
        everything = [*chain(*splits)]
        assert len(everything) == len({*everything}) == 14
        assert all(splits)
        tested += splits[2]
    assert sorted(tested) == sorted(set(tested))
    assert len(tested) == 14


def test_a_block_is_in_one_split(folder):
    lines = [
        json.dumps({"x": f"a/{i:02}.png", "y": f"b/{i:02}.png", "split": split, "block": f"scene {i // 2}"})
        for i, split in enumerate(["train"] * 10 + ["test"] * 4)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    (folder / "mine.toml").write_text(
        'extends = "zoo:base.toml"\n[dataset]\nuse = "manifest"\nfile = "pairs.jsonl"\nfolds = 3\nfold = 1\n'
    )
    dataset = load(folder, "dataset.size=[16,16]").dataset
    splits = [dataset.build(split=split) for split in SPLITS]
    blocks = [{each[i].block for i in range(len(each))} for each in splits]
    assert sum(map(len, blocks)) == len(set.union(*blocks)) == 7


def test_the_fold_is_in_the_run_id_the_recipe_and_the_protocol(folder):
    whole, first, second = (
        load(folder),
        load(folder, "dataset.folds=3"),
        load(folder, "dataset.folds=3", "dataset.fold=1"),
    )
    assert len({whole.id, first.id, second.id}) == 3
    assert second.resolved()["dataset"]["fold"] == 1
    assert "folds" not in whole.resolved()["dataset"]
    assert describe_component(second.dataset)["fold"] == 1


def test_a_fold_has_what_its_dataset_has(folder):
    dataset = load(folder, "dataset.folds=3").dataset.build(split="test")
    assert dataset.x_range == (0, 255)
    assert dataset.file_layout.size == (16, 16)
    assert len(dataset.files) == len(dataset.file_shapes) == len(dataset)
    assert dataset.files[0][0].stem in dataset[0].id
    assert not hasattr(dataset, "original")
    assert Store(dataset).size == (16, 16)
    other = load(folder, "dataset.folds=3", "dataset.fold=1").dataset.build(split="test")
    assert dataset.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset.folds=1"], "folds = 1: give a number from 2 to 1000"),
        (["dataset.folds='3'"], 'folds = "3": give a number from 2 to 1000'),
        (["dataset.folds=3", "dataset.fold=3"], "fold = 3: give a number from 0 to 2"),
        (["dataset.fold=3"], "fold: of how many? Add folds = 3, or remove it"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_in_one_line(folder, overrides, message):
    with pytest.raises(UserError) as caught:
        load(folder, *overrides)
    assert message in str(caught.value)
    assert len(caught.value.faults) == 1


def test_too_few_blocks_are_refused(folder):
    with pytest.raises(UserError, match="20 folds need 21 blocks or more, and the data has 14"):
        load(folder, "dataset.folds=20").dataset.build(split="train")


def test_a_dataset_with_folds_of_its_own_keeps_them():
    with pytest.raises(UserError, match="has no parameter 'folds'"):
        config.load("zoo:base.toml", "smoke", ["dataset.folds=3"])
    assert config.load("zoo:base.toml", "smoke", ["dataset.fold=3"]).dataset.values["fold"] == 3


@pytest.mark.parametrize("blocks", [["a", "b", "c"], ["a"] * 9 + ["b", "c"]])
def test_a_fold_that_would_train_on_nothing_is_refused(blocks):
    with pytest.raises(ValueError, match=r"of 2 tests all blocks but '.', .*: use more folds"):
        _ = [assign(blocks, Fold(fold, 2)) for fold in (0, 1)]


@given(st.lists(st.sampled_from([f"block {i}" for i in range(30)]), min_size=40, max_size=200), st.integers(2, 5))
def test_folds_are_complete_and_about_equally_large(blocks, folds):
    if len(set(blocks)) < folds + 1:
        return
    tested = []
    for fold in range(folds):
        try:
            split_of = assign(blocks, Fold(fold, folds))
        except ValueError:
            assert folds == 2, "with more, two blocks or more are left"
            return
        assert set(split_of.values()) == {*SPLITS}
        tested.append([block for block in set(blocks) if split_of[block] == "test"])
    assert sorted(chain(*tested)) == sorted(set(blocks))
    sizes = [sum(blocks.count(block) for block in each) for each in tested]
    assert max(sizes) - min(sizes) <= max(map(blocks.count, set(blocks)))


@pytest.mark.filterwarnings("ignore:.*no pairs in val")
def test_folds_of_stacks_have_all_windows(tmp_path):
    stack_pairs.write_pairs(tmp_path, 6, t=2)

    def build(split):
        return Stacks(split, inputs=tmp_path / "inputs", targets=tmp_path / "targets", size=32)

    whole = [*chain.from_iterable(ids(build(split)) for split in SPLITS)]
    tested = [*chain.from_iterable(ids(Fold(fold, 3).open(build, "test")) for fold in range(3))]
    assert sorted(tested) == sorted({*whole})


@pytest.mark.filterwarnings("ignore:.*no pairs in val")
def test_folds_have_each_slice_once_where_val_is_test(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
    for number in range(6):
        split = "train" if number < 4 else "test"
        for side, values in zip(("inputs", "targets"), phantoms.head(number), strict=True):
            phantoms.write_nifti(tmp_path / side / split / f"p{number}.nii", values, phantoms.AFFINE)

    def build(split):
        windows = {"x_window": (0, 1000), "y_window": (-1000, 1500)}
        return Volumes(split, inputs=tmp_path / "inputs", targets=tmp_path / "targets", skip_empty=False, **windows)

    tested = [*chain.from_iterable(ids(Fold(fold, 3).open(build, "test")) for fold in range(3))]
    assert len(tested) == len({*tested})
