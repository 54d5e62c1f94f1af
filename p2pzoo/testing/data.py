"""What datasets promise."""

from __future__ import annotations

import hashlib
import pickle
import random
from typing import Any

import numpy as np
import torch

from p2pzoo.config.settings import Train
from p2pzoo.data import Store, single_batches, train_batches
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.plugin.batch import Pair, Split
from p2pzoo.testing.kit import Case

SPLITS: tuple[Split, ...] = ("train", "val", "test")
FEW, MANY = 4, 200  # pairs of a split that are looked at closely, and at all


def check_pairs(case: Case) -> None:
    """Each split has pairs, all of one size and channels; labels cover them; classes and palette go together.

    So do encodings, which are known ones of as many channels.
    """
    shapes = set()
    for split in SPLITS:
        data = case.make(split=split)
        assert len(data) > 0, f"{split} has no pairs"
        store = Store(data)
        for index in _spread(len(data), FEW):
            pair = store[index]
            assert isinstance(pair, Pair), f"gives a {type(pair).__name__}, not a Pair"
            assert pair.id, f"pair {index} of {split} has no id"
        shapes.add((store.size, store.channels))
        encoded = Encodings.of(data).y is not None
        assert not encoded or store.channels == (1, 2), f"L and ab have 1 and 2 channels, not {store.channels}"
        classes, palette = data.classes, data.palette
        assert palette is None or (classes and len(palette) == len(classes)), "palette has not one colour per class"
        assert pair.labels is None or classes, "has labels, and no classes"
    assert len(shapes) == 1, f"its splits differ in size or channels: {sorted(shapes)}"


def check_range(case: Case) -> None:
    """`x_range` and `y_range` bring stored values into [-1, 1]."""
    for split in SPLITS:
        store = Store(case.make(split=split))
        for batch in single_batches(store, _spread(len(store), FEW)):
            for name, image in (("x", batch.x), ("y", batch.y)):
                told = f"{name} of '{batch.ids[0]}' reaches from {image.min():.3g} to {image.max():.3g}"
                assert image.abs().max() <= 1 + 1e-6, f"{told}, and not within [-1, 1]"


def check_repeats(case: Case) -> None:
    """A pair is the same whenever it is asked for: what is random belongs to the core, which draws it by the seed."""
    data, before = case.make(split="train"), _random()
    for index in _spread(len(data), FEW):
        _same(data[index], data[index], f"pair {index} differs from itself")
    assert _random() == before, "draws random numbers that are not its own"


def check_ids(case: Case) -> None:
    """Ids are unique within a split."""
    for split in SPLITS:
        data = case.make(split=split)
        ids = [data[index].id for index in _spread(len(data), MANY)]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        assert not twice, f"{split} has the id '{next(iter(twice))}' twice"


def check_splits(case: Case) -> str | None:
    """Nothing that is trained on is tested on. Val and test may be one."""
    seen = {split: _known(case.make(split=split)) for split in SPLITS}
    for split in ("val", "test"):
        for what, own, other in zip(("ids", "images"), seen[split], seen["train"], strict=True):
            both = own.keys() & other.keys()
            assert not both, f"{split} and train share {what}: {own[min(both)]}"
    shared = seen["val"][1].keys() & seen["test"][1].keys()
    assert not shared or seen["val"][1].keys() == seen["test"][1].keys(), "val and test share some of their images"
    return "val and test are one" if shared else None


def check_pickle(case: Case) -> None:
    """It goes to another process and gives the same there."""
    data = case.make(split="train")
    again = pickle.loads(pickle.dumps(data))
    assert len(again) == len(data), "has another length once it is unpickled"
    _same(again[0], data[0], "gives another pair once it is unpickled")


def check_aligned(case: Case) -> None:
    """In training batches, enlarged, cropped and mirrored, x, y and labels still show the same place.

    Their pixels are replaced by their coordinates, and these compared.
    """
    data = case.make(split="train")
    settings = Train(images=8, batch_size=2, jitter=1.25)
    for axis in (0, 1):
        store = Store(_Coordinates(data, axis), enlarge=settings.jitter)
        side = store.size[axis]
        batches = train_batches(store, settings, seed=0)
        for batch in (batches[step] for step in range(4)):
            x, y = batch.x[:, :1], batch.y[:, :1]
            assert torch.equal(x, y), "x and y show different places"
            assert (x.flatten(1).amax(1) - x.flatten(1).amin(1) > 0.5).all(), "a crop shows next to nothing"
            if batch.labels is not None:
                apart = ((x[:, 0] + 1) / 2 * (side - 1) - batch.labels).abs().max().item()
                assert apart <= 1.5, f"labels are {apart:.1f} px away from x"


class _Coordinates:
    """The same dataset, whose pixels hold their row (axis 0) or column (axis 1), from 0 to 1."""

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
        side, own = pair.x.shape[self.axis], pair.labels.shape[self.axis]
        line = np.arange(own) * side // own
        return np.ascontiguousarray(np.broadcast_to(line[:, None] if self.axis == 0 else line, pair.labels.shape))


def _known(data: Any) -> tuple[dict[str, str], dict[str, str]]:
    """{id: id} and {digest of x and y: id} of many of its pairs."""
    pairs = [data[index] for index in _spread(len(data), MANY)]
    digests = {hashlib.sha256(p.x.tobytes() + p.y.tobytes()).hexdigest(): p.id for p in pairs}
    return {pair.id: pair.id for pair in pairs}, digests


def _random() -> tuple[bytes, ...]:
    """The state of everybody's random numbers."""
    numpy: Any = np.random.get_state(legacy=False)
    position = str((numpy["state"]["pos"], random.getstate()))
    return numpy["state"]["key"].tobytes(), position.encode(), torch.get_rng_state().numpy().tobytes()


def _same(one: Pair, other: Pair, told: str) -> None:
    assert (one.id, one.block) == (other.id, other.block), told
    assert np.array_equal(one.x, other.x), told
    assert np.array_equal(one.y, other.y), told
    assert (one.labels is None) == (other.labels is None), told
    assert one.labels is None or np.array_equal(one.labels, np.asarray(other.labels)), told


def _spread(length: int, count: int) -> range:
    return range(0, length, max(1, -(-length // count)))
