"""From pairs to batches: x, y and labels stay aligned, and random choices depend only on (seed, sample)."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pzoo.data import Store, TrainBatches, single_batches
from p2pzoo.images.resize import resize
from p2pzoo.plugin.batch import Pair
from p2pzoo.utils.errors import UserError


class Coordinates:
    """Pairs whose pixels are their position: x and y hold (row, column, index), labels hold the row."""

    classes = palette = None

    def __init__(self, height=8, width=12, length=5, dtype=np.uint8, limits=(0.0, 255.0)):
        self.shape, self.length, self.dtype = (height, width), length, dtype
        self.x_range = self.y_range = limits

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        rows, columns = np.indices(self.shape)
        image = np.stack([rows, columns, np.full(self.shape, i)], axis=-1).astype(self.dtype)
        return Pair(f"p{i}", image, image.copy(), rows.copy(), f"b{i // 2}")


def test_stored_values_become_minus_one_to_one():
    dataset = Coordinates(dtype=np.uint16, limits=(0.0, 22.0))
    batch = next(iter(single_batches(Store(dataset))))
    assert batch.x.shape == (1, 3, 8, 12)
    assert batch.x.dtype == torch.float32
    assert torch.allclose(batch.x[0, 1, 0], torch.arange(12) / 11 - 1)
    assert (batch.ids, batch.blocks) == (("p0",), ("b0",))
    assert batch.labels.dtype == torch.int64


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 20), st.integers(8, 20), st.integers(0, 9), st.sampled_from([1.0, 286 / 256, 1.5]), st.booleans())
def test_x_y_and_labels_stay_aligned_through_every_augmentation(height, width, seed, enlarge, mirror):
    store = Store(Coordinates(height, width), enlarge=enlarge)
    for step in range(4):
        batch = TrainBatches(store, batch_size=3, mirror=mirror, seed=seed)[step]
        assert batch.x.shape == (3, 3, height, width)
        assert torch.equal(batch.x, batch.y)
        rows = (batch.x[:, 0] + 1) * 127.5
        assert (rows - batch.labels).abs().max() <= 1.0 + 1e-3, "labels follow the pixels up to the enlargement"


def test_every_epoch_shows_each_pair_once_in_a_new_order():
    batches = TrainBatches(Store(Coordinates()), batch_size=1, mirror=False, seed=3)
    epochs = [[batches[e * 5 + i].ids[0] for i in range(5)] for e in range(3)]
    assert all(sorted(epoch) == ["p0", "p1", "p2", "p3", "p4"] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_sample_depends_neither_on_earlier_steps_nor_on_the_batch_size():
    def batches(batch_size):
        return TrainBatches(Store(Coordinates(), enlarge=1.5), batch_size=batch_size, mirror=True, seed=1)

    single = batches(1)
    one_by_one = torch.cat([single[i].x for i in range(8)])
    assert torch.equal(torch.cat([batches(4)[1].x, batches(4)[0].x]), one_by_one[[4, 5, 6, 7, 0, 1, 2, 3]])
    other_seed = TrainBatches(Store(Coordinates(), enlarge=1.5), batch_size=8, mirror=True, seed=2)
    assert not torch.equal(other_seed[0].x, one_by_one)


def test_jitter_uses_every_offset_and_flips_half_of_the_samples():
    store = Store(Coordinates(8, 8, length=1, dtype=np.float32), enlarge=1.25)
    batches = TrainBatches(store, batch_size=1, mirror=True, seed=0)
    images = [batches[i].x[0] for i in range(300)]
    corners = {tuple(image[:2].amin((1, 2)).tolist()) for image in images}
    assert len(corners) == 9, "an enlargement from 8 to 10 px allows 3 × 3 crops"
    flipped = sum(image[1, 0, 0] > image[1, 0, -1] for image in images)
    assert 110 < flipped < 190


def test_enlarging_agrees_with_pillow():
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for kernel, resample in (("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)):
        ours = resize(noise, (18, 18), kernel, (0, 255)).astype(int)
        pillow = np.asarray(Image.fromarray(noise).resize((18, 18), resample)).astype(int)
        assert np.abs(ours - pillow).max() <= 1
    assert resize(noise.astype(np.uint16), (18, 18), "bicubic", (0, 65535)).dtype == np.uint16
    four = np.dstack([noise, noise[..., :1]])
    assert resize(four, (18, 18), "bicubic", (0, 255)).shape == (18, 18, 4)


def test_crops_of_the_lua_code_never_begin_at_the_edge():
    store = Store(Coordinates(8, 8, length=1, dtype=np.float32), enlarge=1.25)
    corners = {crop_from: set() for crop_from in (0, 1)}
    for crop_from, positions in corners.items():
        batches = TrainBatches(store, batch_size=1, mirror=False, seed=0, crop_from=crop_from)
        positions |= {tuple(batches[i].x[0, :2, 0, 0].tolist()) for i in range(100)}
    assert len(corners[0]) == 9
    assert len(corners[1]) == 4, "2 × 2 of the 3 × 3 crops do not begin at 0"
    assert corners[1] < corners[0]
    without_jitter = TrainBatches(
        Store(Coordinates(8, 8), enlarge=1.0), batch_size=1, mirror=False, seed=0, crop_from=1
    )
    assert without_jitter[0].x.shape[2:] == (8, 8), "without jitter there is one crop"


def test_with_replacement_each_sample_is_drawn_from_all_pairs():
    batches = TrainBatches(Store(Coordinates()), batch_size=1, mirror=False, seed=3, replacement=True)
    ids = [batches[i].ids[0] for i in range(500)]
    counts = [ids.count(f"p{i}") for i in range(5)]
    assert all(70 < count < 130 for count in counts)
    assert any(len(set(ids[i : i + 5])) < 5 for i in range(0, 500, 5)), "an epoch may show a pair twice"
    repeats = sum(a == b for a, b in pairwise(ids))
    assert 70 < repeats < 130, "the next pair is the same in a fifth of the cases"
    again = TrainBatches(Store(Coordinates()), batch_size=4, mirror=False, seed=3, replacement=True)
    assert again[3].ids == tuple(ids[12:16]), "it depends only on the sample"


def test_bilinear_corners_keeps_the_corner_pixels():
    """Torch7's image.scale: pixel i of n is at i · (side - 1) / (n - 1)."""
    ramp = np.tile(np.arange(0, 250, 50, dtype=np.uint8)[None, :, None], (5, 1, 1))  # 0, 50, 100, 150, 200
    row = resize(ramp, (9, 9), "bilinear-corners", (0, 255))[4, :, 0]
    assert row.tolist() == [0, 25, 50, 75, 100, 125, 150, 175, 200]
    assert resize(ramp, (9, 9), "bilinear", (0, 255))[4, :, 0].tolist() != row.tolist()


def test_area_gives_the_mean_of_the_area_that_a_pixel_covers():
    image = np.zeros((1, 2, 1), np.float32)
    image[0, 1] = 1.0
    assert resize(image, (1, 3), "area", (0, 1))[0, :, 0].tolist() == pytest.approx([0.0, 0.5, 1.0])
    noise = np.random.default_rng(0).random((8, 6, 3)).astype(np.float32)
    larger = resize(noise, (11, 9), "area", (0, 1))
    np.testing.assert_allclose(larger.mean((0, 1)), noise.mean((0, 1)), rtol=1e-5)


class FinelyLabelled(Coordinates):
    """Labels at four times the height and twice the width of x, holding their row in x."""

    def __getitem__(self, i):
        pair = super().__getitem__(i)
        return Pair(pair.id, pair.x, pair.y, pair.labels.repeat(4, 0).repeat(2, 1), pair.block)


def test_evaluation_gets_larger_labels_unchanged():
    store = Store(FinelyLabelled())
    batch = next(iter(single_batches(store)))
    assert batch.x.shape == (1, 3, 8, 12)
    assert torch.equal(batch.labels[0], torch.arange(8).repeat_interleave(4)[:, None].expand(32, 24))
    assert not store._kept, "they are large, and evaluation reads them once"


@pytest.mark.parametrize("enlarge", [1.0, 1.5])
def test_training_gets_labels_in_the_size_of_the_images(enlarge):
    batch = TrainBatches(Store(FinelyLabelled(), enlarge=enlarge), batch_size=3, mirror=True, seed=0)[0]
    assert batch.labels.shape == (3, 8, 12)
    rows = (batch.x[:, 0] + 1) * 127.5
    assert (rows - batch.labels).abs().max() <= (1e-3 if enlarge == 1 else 1.0 + 1e-3)


def test_smaller_labels_are_refused():
    class Turned(Coordinates):
        def __getitem__(self, i):
            pair = super().__getitem__(i)
            return Pair("turned", pair.x, pair.y, pair.labels.T)

    with pytest.raises(
        UserError, match="pair 'turned': labels are 12 × 8, x is 8 × 12; labels may have more pixels than x, not fewer"
    ):
        Store(Turned())[0]


def test_a_pair_with_another_shape_than_the_first_is_named():
    class Odd(Coordinates):
        def __getitem__(self, i):
            pair = super().__getitem__(i)
            return Pair("odd one", pair.x[:4], pair.y) if i == 3 else pair

    with pytest.raises(UserError, match="pair 'odd one': x is 4 × 12 × 3, the first pair's is 8 × 12 × 3"):
        list(single_batches(Store(Odd())))
    with pytest.raises(UserError, match="no pairs"):
        Store(Coordinates(length=0))


def test_a_step_of_several_batches_concatenates_those_of_single_batch_steps():
    def batches(**options):
        return TrainBatches(Store(Coordinates(), enlarge=1.5), batch_size=2, mirror=True, seed=1, **options)

    single, step = [batches()[at] for at in range(3, 6)], batches(batches_per_step=3)[1]
    assert step.ids == tuple(name for batch in single for name in batch.ids)
    assert torch.equal(step.x, torch.cat([batch.x for batch in single]))
