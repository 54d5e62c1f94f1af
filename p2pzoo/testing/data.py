"""Checks of datasets."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import numpy as np
import torch

from p2pzoo.config.settings import Train
from p2pzoo.data import Store, single_batches, train_batches
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.plugin.batch import Pair, Split
from p2pzoo.testing.component_case import ComponentCase, random_states

_SPLITS: tuple[Split, ...] = get_args(Split)
_NUM_CHECKED = 4  # pairs of a split that are decoded and compared: keeps the checks of large datasets fast
_NUM_IDENTIFIED = 200  # pairs of a split of which ids and hashes are compared: cheaper per pair, so more of them


def check_dataset_pairs(case: ComponentCase) -> None:
    """Each split has pairs, all of one size and one channel count.

    `classes` comes with labels, `palette` has one colour per class, an encoding fits the channels, and `files` has the
    paths of each pair's files.
    """
    shapes = set()
    for split in _SPLITS:
        data = case.build(split=split)
        assert len(data) > 0, f"{split} has no pairs"
        store = Store(data)
        for index in _spread(len(data), _NUM_CHECKED):
            pair = store[index]
            assert isinstance(pair, Pair), f"pair {index} of {split} is a {type(pair).__name__}, not a Pair"
            assert pair.id, f"pair {index} of {split} has no id"
        shapes.add((store.size, store.channels))
        encoded = Encodings.of(data).y is not None
        channels_fit = not encoded or store.channels == (1, 2)
        assert channels_fit, f"L and ab have 1 and 2 channels, not {store.channels}"
        classes, palette = data.classes, data.palette
        one_colour_each = palette is None or (classes and len(palette) == len(classes))
        assert one_colour_each, "`palette` does not have one colour per class"
        assert pair.labels is None or classes, "has labels, but no `classes`"
        _check_files(data, split)
    assert len(shapes) == 1, f"its splits differ in size or channels: {sorted(shapes)}"


def _check_files(data: Any, split: Split) -> None:
    """`files[i]`, if there are any, are the paths of existing files."""
    if (files := getattr(data, "files", None)) is None:
        return
    assert len(files) == len(data), f"`files` of {split} has {len(files)} entries for {len(data)} pairs"
    for index in _spread(len(data), _NUM_CHECKED):
        paths, where = files[index], f"`files[{index}]` of {split}"
        is_sequence = isinstance(paths, Sequence) and not isinstance(paths, str)
        assert is_sequence, f"{where} is a {type(paths).__name__}, not a sequence of the paths of that pair's files"
        assert paths, f"{where} is empty: list the files that the pair is read from"
        for path in paths:
            assert isinstance(path, Path), f"{where} holds a {type(path).__name__}: expected pathlib.Path"
            assert path.exists(), f"{where}: {path} does not exist"


def check_dataset_range(case: ComponentCase) -> None:
    """`x_range` and `y_range` bring all stored values into [-1, 1]."""
    for split in _SPLITS:
        store = Store(case.build(split=split))
        for batch in single_batches(store, _spread(len(store), _NUM_CHECKED)):
            for name, image in (("x", batch.x), ("y", batch.y)):
                values = f"values of {name} of '{batch.ids[0]}' are {image.min():.3g} to {image.max():.3g}"
                assert image.abs().max() <= 1 + 1e-6, f"{values}, not within [-1, 1]: check `{name}_range`"


def check_dataset_repeats(case: ComponentCase) -> None:
    """A pair is the same at each access. Random changes are the core's task, from the seed."""
    data, before = case.build(split="train"), random_states()
    for index in _spread(len(data), _NUM_CHECKED):
        _assert_same_pair(data[index], data[index], f"pair {index} changes between two accesses")
    assert random_states() == before, "draws random numbers"


def check_dataset_rebuilt(case: ComponentCase) -> None:
    """Built again, it has the same pairs, also where the file system lists files in another order."""
    data = case.build(split="train")
    with _other_random_numbers(), _reversed_listings():
        other = case.build(split="train")
        same_length = len(data) == len(other)
        assert same_length, f"has {len(data)} pairs, and {len(other)} when it is built again"
        for index in _spread(len(data), _NUM_CHECKED):
            _assert_same_pair(
                data[index],
                other[index],
                f"pair {index} is another one when it is built again: sort lists of files, and take random numbers "
                "from a fixed seed (`p2pzoo.utils.rng.numpy_rng`)",
            )


@contextlib.contextmanager
def _other_random_numbers() -> Iterator[None]:
    """Inside, all global random number generators are in another state."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextlib.contextmanager
def _reversed_listings() -> Iterator[None]:
    """Inside, folders list their files in reverse order, as another file system may."""
    listdir, scandir = os.listdir, os.scandir

    with (
        mock.patch.object(os, "listdir", lambda *args: listdir(*args)[::-1]),
        mock.patch.object(os, "scandir", lambda *args: _ReversedScandir(scandir(*args))),
    ):
        yield


def check_dataset_ids(case: ComponentCase) -> None:
    """Ids are unique within a split."""
    for split in _SPLITS:
        data = case.build(split=split)
        ids = [data[index].id for index in _spread(len(data), _NUM_IDENTIFIED)]
        repeated = sorted({name for name in ids if ids.count(name) > 1})
        assert not repeated, f"{split} has the id '{next(iter(repeated))}' twice"


def check_dataset_splits(case: ComponentCase) -> str | None:
    """No pair of train is in val or test. Val and test may be the same split."""
    contents = {split: _ids_and_digests(case.build(split=split)) for split in _SPLITS}
    for split in ("val", "test"):
        for what, here, in_train in zip(("ids", "images"), contents[split], contents["train"], strict=True):
            shared = here.keys() & in_train.keys()
            assert not shared, f"{split} and train share {what}: {here[min(shared)]}"
    val, test = contents["val"][1].keys(), contents["test"][1].keys()
    assert val == test or not val & test, "val and test share some of their images, but not all"
    return "val and test are the same split" if val & test else None


def check_dataset_pickle(case: ComponentCase) -> None:
    """Can be pickled for another process, and gives the same pairs there."""
    data = case.build(split="train")
    unpickled = pickle.loads(pickle.dumps(data))
    assert len(unpickled) == len(data), f"has {len(data)} pairs, but {len(unpickled)} after unpickling"
    _assert_same_pair(unpickled[0], data[0], "gives another pair after unpickling")


def check_dataset_alignment(case: ComponentCase) -> None:
    """x, y and labels show the same place in training batches, which are enlarged, cropped and mirrored.

    The check replaces each pixel by its coordinate and compares these.
    """
    data = case.build(split="train")
    settings = Train(images=8, batch_size=2, jitter=1.25)
    for axis in (0, 1):
        store = Store(_Coordinates(data, axis), enlarge=settings.jitter)
        side = store.size[axis]
        batches = train_batches(store, settings, seed=0)
        for batch in (batches[step] for step in range(4)):
            x, y = batch.x[:, :1], batch.y[:, :1]
            assert torch.equal(x, y), "x and y show different places"
            assert (x.flatten(1).amax(1) - x.flatten(1).amin(1) > 0.5).all(), "a crop shows almost nothing of the image"
            if batch.labels is not None:
                distance = ((x[:, 0] + 1) / 2 * (side - 1) - batch.labels).abs().max().item()
                assert distance <= 1.5, f"labels are misaligned with x by {distance:.1f} px"


class _ReversedScandir:
    """What os.scandir returns, an iterator and a context manager, in reverse order."""

    def __init__(self, entries: Any) -> None:
        with entries:
            self._entries = iter([*entries][::-1])

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._entries)

    def __enter__(self) -> _ReversedScandir:
        return self

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None: ...


class _Coordinates:
    """A dataset with each pixel replaced by its row (axis 0) or column (axis 1), scaled to 0 to 1."""

    x_range = y_range = (0.0, 1.0)

    def __init__(self, data: Any, axis: int) -> None:
        self.data, self.axis = data, axis
        self.classes, self.palette = data.classes, data.palette

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Pair:
        pair = self.data[index]
        x, y = (self._image(image.shape) for image in (pair.x, pair.y))
        return Pair(pair.id, x, y, None if pair.labels is None else self._labels(pair), pair.block)

    def _image(self, shape: tuple[int, ...]) -> np.ndarray:
        line = np.linspace(0, 1, shape[self.axis], dtype=np.float32)
        line = line[:, None, None] if self.axis == 0 else line[None, :, None]
        return np.ascontiguousarray(np.broadcast_to(line, shape))

    def _labels(self, pair: Pair) -> np.ndarray:
        assert pair.labels is not None
        side, labels_side = pair.x.shape[self.axis], pair.labels.shape[self.axis]
        line = np.arange(labels_side) * side // labels_side
        return np.ascontiguousarray(np.broadcast_to(line[:, None] if self.axis == 0 else line, pair.labels.shape))


def _ids_and_digests(data: Any) -> tuple[dict[str, str], dict[str, str]]:
    """{id: id} and {digest of x and y: id} of up to _NUM_IDENTIFIED pairs."""
    pairs = [data[index] for index in _spread(len(data), _NUM_IDENTIFIED)]
    digests = {hashlib.sha256(p.x.tobytes() + p.y.tobytes()).hexdigest(): p.id for p in pairs}
    return {pair.id: pair.id for pair in pairs}, digests


def _assert_same_pair(first: Pair, second: Pair, message: str) -> None:
    assert (first.id, first.block) == (second.id, second.block), message
    assert np.array_equal(first.x, second.x), message
    assert np.array_equal(first.y, second.y), message
    assert (first.labels is None) == (second.labels is None), message
    assert first.labels is None or np.array_equal(first.labels, np.asarray(second.labels)), message


def _spread(length: int, count: int) -> range:
    """About `count` indices, evenly spread over `length`."""
    return range(0, length, max(1, -(-length // count)))
