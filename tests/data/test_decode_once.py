"""At the start of a run each image is decoded at most once: validation, store and sample images share the pixels."""

import threading
from collections import Counter

import numpy as np
import pytest
from p2pzoo_datasets import pairs
from PIL import Image

from p2pzoo import config
from p2pzoo.config.settings import Compute
from p2pzoo.data import Store, validation
from p2pzoo.data.validation import validate_or_raise
from p2pzoo.plugin.batch import Pair
from p2pzoo.training import loop
from p2pzoo.utils.errors import UserError

NUM_PAIRS = {"train": 6, "val": 3, "test": 3}
NUM_FILES = 2 * sum(NUM_PAIRS.values())
LOCATIONS = ("memory", "disk", "stream")
RECIPE = """
extends = "zoo:base.toml"
title = "decode once"
drop = ["metrics.ssim"]
[generator]
width = 8
[discriminator]
width = 8
[dataset]
use = "folders"
inputs = "{folder}/inputs"
targets = "{folder}/targets"
[train]
images = 12
log_every = 4
sample_every = 12
checkpoint_every = 12
[evaluate]
samples = 2
[compute]
device = "cpu"
threads = 1
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe on folders of PNG images, with an empty cache."""
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for side in ("inputs", "targets"):
        for split, count in NUM_PAIRS.items():
            folder = tmp_path / side / split
            folder.mkdir(parents=True)
            for number in range(count):
                image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / f"{number}.png")
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE.format(folder=tmp_path))
    return file


@pytest.fixture
def decodes(monkeypatch):
    """{file: how often the `folders` dataset decoded it before the first training step}."""
    counts, lock = Counter(), threading.Lock()
    counts.has_started = False
    read_image, train_step = pairs.read_image, loop.train_step

    def counting_read_image(path):
        if not counts.has_started:
            with lock:
                counts["/".join(path.parts[-3:])] += 1
        return read_image(path)

    def first_step(*args, **kwargs):
        counts.has_started = True
        return train_step(*args, **kwargs)

    monkeypatch.setattr(pairs, "read_image", counting_read_image)
    monkeypatch.setattr(loop, "train_step", first_step)
    return counts


class TestRuns:
    @pytest.fixture
    def train(self, run_cli, recipe, tmp_path):
        def train(location, *overrides):
            settings = [word for each in (f"compute.store={location}", *overrides) for word in ("-s", each)]
            return run_cli("run", recipe, "--profile", "smoke", "--runs", tmp_path / "runs", *settings)

        return train

    @pytest.mark.parametrize("location", LOCATIONS)
    def test_each_file_is_decoded_once_before_the_first_step(self, train, decodes, location):
        result = train(location)
        assert result.exit_code == 0, result.output
        assert set(decodes.values()) == {1}
        assert len(decodes) == NUM_FILES

    def test_an_evaluated_val_split_is_decoded_once_too(self, train, decodes):
        assert train("memory", "evaluate.split=val").exit_code == 0
        assert set(decodes.values()) == {1}
        assert not any("/test/" in file for file in decodes)

    def test_splits_that_were_valid_before_are_not_validated_again(self, train, decodes):
        assert train("disk").exit_code == 0
        decodes.clear()
        decodes.has_started = False
        assert train("disk", "seed=1").exit_code == 0
        assert set(decodes.values()) == {1}

    @pytest.mark.parametrize("location", LOCATIONS)
    def test_a_fault_in_any_split_keeps_all_files_off_the_disk(self, train, tmp_path, location):
        for split in ("train", "val"):
            (tmp_path / "targets" / split / "2.png").write_bytes(b"no image")
        for file in ("inputs/train/4.png", "targets/test/1.png"):
            path = tmp_path / file
            path.write_bytes(path.read_bytes()[:200])
        result = train(location)
        assert (result.exit_code, result.first_step) == (2, None)
        assert not (tmp_path / "runs").exists()
        assert not list((tmp_path / "cache").glob("stores/*.pairs"))


class Counting:
    """Black pairs that count how often each is decoded; those in `broken` cannot be."""

    x_range = y_range = (0.0, 255.0)
    classes = palette = None
    fingerprint = "black"

    def __init__(self, length, broken=(), side=8):
        self.length, self.broken, self.side, self.decodes = length, broken, side, Counter()

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.decodes[index] += 1
        if index in self.broken:
            raise UserError(f"pair {index} is broken")
        return Pair(f"p{index}", *np.full((2, self.side, self.side, 1), index, np.uint8))


class TestValidation:
    @pytest.fixture(autouse=True)
    def _cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))

    @pytest.fixture
    def experiment(self, tiny):
        return config.load(str(tiny), "smoke", [])

    @staticmethod
    def stores(location, readers=8, **datasets):
        compute = Compute(store=location, readers=readers)
        return {
            split: Store(dataset, enlarge=1.25 if split == "train" else None, compute=compute, origin="tests")
            for split, dataset in datasets.items()
        }

    @pytest.mark.parametrize("location", LOCATIONS)
    @pytest.mark.parametrize("readers", [0, 8])
    def test_validated_pairs_are_not_decoded_again_where_the_store_keeps_them(self, experiment, location, readers):
        train, val = Counting(70), Counting(5)
        stores = self.stores(location, readers, train=train, val=val)
        stores["val"].need_soon([0, 3])
        validate_or_raise(experiment, stores, print)
        for index in (0, 3):
            assert stores["val"][index].x.max() == index
        expected = Store(Counting(70), enlarge=1.25)
        if location != "stream":
            stores["train"].prepare()
            assert all(np.array_equal(stores["train"][i].x, expected[i].x) for i in range(70))
        assert train.decodes == Counter(range(70))
        assert val.decodes == Counter(range(5))

    def test_a_sample_of_a_large_split_is_checked_while_the_file_on_disk_is_written(self, experiment, monkeypatch):
        monkeypatch.setattr(validation, "MAX_PAIRS_BEFORE_RUN", 4)
        train, notes = Counting(12), []
        stores = self.stores("disk", train=train)
        validate_or_raise(experiment, stores, notes.append)
        assert notes[0].startswith("train: 4 of 12 pairs are checked before training")
        assert stores["train"].fully_cached
        assert train.decodes == Counter(range(12))

    def test_faults_of_the_sample_are_reported_before_those_of_other_pairs(self, experiment, monkeypatch, tmp_path):
        monkeypatch.setattr(validation, "MAX_PAIRS_BEFORE_RUN", 4)  # 0, 3, 6, 9
        for broken, message in (((2, 9), "pair 9 is broken"), ((2,), "pair 2 is broken")):
            with pytest.raises(UserError) as error:
                validate_or_raise(experiment, self.stores("disk", train=Counting(12, broken)), print)
            assert [fault for fault in error.value.faults if message in fault]
            assert not list((tmp_path / "cache").glob("stores/*.pairs"))

    def test_every_fault_of_every_split_is_reported_in_the_order_of_the_splits(self, experiment):
        datasets = {"train": Counting(9, broken=(3, 7)), "val": Counting(3, broken=(2,))}
        with pytest.raises(UserError) as error:
            validate_or_raise(experiment, self.stores("disk", **datasets), print)
        cases = [fault for fault in error.value.faults if "is broken" in fault]
        assert [case.partition(":")[0].strip() for case in cases] == ["train pair 3", "train pair 7", "val pair 2"]

    @pytest.mark.parametrize("location", LOCATIONS)
    def test_without_training_no_training_pair_is_kept(self, experiment, location, tmp_path):
        stores = self.stores(location, train=Counting(6))
        validate_or_raise(experiment, stores, print, keep_train=False)
        assert not stores["train"].fully_cached
        assert not list((tmp_path / "cache").glob("stores/*.pairs"))
