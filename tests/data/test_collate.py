"""A batch that is scaled on the device equals, bit for bit, one that is scaled on the host."""

import numpy as np
import pytest
import torch

from p2pzoo.data import Store, TrainBatches
from p2pzoo.data.collate import StoredBatch, collate, collate_stored
from p2pzoo.plugin.batch import Batch, Pair


class Noise:
    """Pairs of any dtypes and ranges, with labels."""

    classes = palette = None

    def __init__(self, dtypes=("uint8", "uint8"), ranges=((0, 255), (0, 255)), labels="uint8", channels=3):
        self.dtypes, self.labels, self.channels = dtypes, labels, channels
        self.x_range, self.y_range = ranges

    def __len__(self):
        return 5

    def __getitem__(self, index):
        random = np.random.default_rng(index)
        x, y = (random.integers(0, 256, (16, 24, self.channels)).astype(dtype) for dtype in self.dtypes)
        labels = random.integers(0, 9, (16, 24)).astype(self.labels) if self.labels else None
        return Pair(f"{index}", x, y, labels, block="b")


def is_same(one, other):
    fields = [(getattr(one, name), getattr(other, name)) for name in ("x", "y", "labels", "random")]
    return one.ids == other.ids and one.blocks == other.blocks and all(map(is_same_tensor, *zip(*fields, strict=True)))


def is_same_tensor(one, other):
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)


@pytest.mark.parametrize("limits", [(0, 255), (0.0, 255.0), (3, 200), (0, 1), (-7, 40)])
def test_all_256_values_are_scaled_as_on_the_host(limits):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    pair = Pair("a", values, values)
    dataset = Noise(ranges=(limits, (0, 255)))
    stored = collate_stored([pair], dataset, [False])
    assert stored.x.dtype == torch.uint8
    assert is_same(stored.scaled(), collate([pair], dataset))


@pytest.mark.parametrize(
    ("dtypes", "labels", "stored"),
    [
        (("uint8", "uint8"), "uint8", (torch.uint8, torch.uint8, torch.uint8)),
        (("uint8", "float32"), "int32", (torch.uint8, torch.float32, torch.int64)),
        (("uint16", "uint8"), None, (torch.float32, torch.uint8, None)),
    ],
)
def test_only_bytes_stay_as_they_are_stored(dtypes, labels, stored):
    dataset = Noise(dtypes, ((0, 255), (10, 90)), labels)
    pairs = [dataset[index] for index in range(3)]
    batch = collate_stored(pairs, dataset, [True, False, True])
    assert tuple(None if t is None else t.dtype for t in (batch.x, batch.y, batch.labels)) == stored
    assert type(batch.scaled()) is Batch
    assert is_same(batch.scaled(), collate(pairs, dataset, [True, False, True]))


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_made_in_two_parts_have_the_same_crops_flips_and_random_numbers(channels):
    store = Store(Noise(channels=channels), enlarge=1.25)
    batches = TrainBatches(
        store,
        batch_size=2,
        mirror=True,
        seed=3,
        batches_per_step=2,
        sample_random=lambda step: torch.full((4, 1), step),
    )
    for step in (5, 0, 2):
        stored = batches.make_stored(step, batches.read(step))
        assert isinstance(stored, StoredBatch)
        assert is_same(stored.scaled(), batches[step])
        assert (batches[step].random == step).all()
