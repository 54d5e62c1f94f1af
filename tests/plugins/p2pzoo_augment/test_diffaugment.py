"""DiffAugment (arXiv:2006.10738): ranges by hand, alignment of x and y, gradients, errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from p2pzoo_augment.diffaugment import NUM_RANDOM, DiffAugment, color, cutout, translation

from p2pzoo.data.augmentation import DISCRIMINATOR_PASSES, Augmentations
from p2pzoo.plugin.batch import Batch

SIDE = 16
ALMOST = 1 - 2**-24  # the largest random number in [0, 1)
fraction = st.floats(0, 1, exclude_max=True, width=32)


def images(count=1, channels=3, size=(SIDE, SIDE), seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, *size, generator=draw) * 2 - 1


def random_rows(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def test_color_is_brightness_then_saturation_then_contrast():
    x = images()
    changed = color(x, random_rows((0.2, 0.9, 0.1)))[0].permute(1, 2, 0).double().numpy()
    pixels = x[0].permute(1, 2, 0).double().numpy() + (0.2 - 0.5)
    grey = pixels.mean(2, keepdims=True)
    pixels = grey + (2 * 0.9) * (pixels - grey)
    expected = pixels.mean() + (0.5 + 0.1) * (pixels - pixels.mean())
    np.testing.assert_allclose(changed, expected, atol=1e-6)


def test_the_middle_of_all_ranges_changes_nothing():
    torch.testing.assert_close(color(images(), random_rows((0.5, 0.5, 0.5))), images(), atol=1e-6, rtol=0)
    assert torch.equal(translation(images(), random_rows((0.5, 0.5))), images())


@pytest.mark.parametrize(
    ("u", "down", "right"), [((0, 0.5), -2, 0), ((ALMOST, 0.5), 2, 0), ((0.5, 0), 0, -2), ((0, ALMOST), -2, 2)]
)
def test_translation_is_by_up_to_an_eighth_of_a_side_with_zeros_from_outside(u, down, right):
    moved = translation(images(), random_rows(u))[0]
    expected = torch.zeros(3, SIDE + 8, SIDE + 8)
    expected[:, 4 + down : 4 + down + SIDE, 4 + right : 4 + right + SIDE] = images()[0]
    assert torch.equal(moved, expected[:, 4:-4, 4:-4])


def test_all_shifts_have_equal_probability():
    draw = torch.Generator().manual_seed(0)
    x = torch.zeros(5000, 1, SIDE, SIDE)
    x[:, :, 8, 8] = 1
    moved = translation(x, torch.rand(5000, 2, generator=draw)).mean(0)[0, 6:11, 6:11]
    torch.testing.assert_close(moved, torch.full((5, 5), 1 / 25), atol=0.012, rtol=0)
    assert moved.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("u", "rows", "columns"),
    [((0.5, 0.5), (4, 12), (4, 12)), ((0, 0.5), (0, 4), (4, 12)), ((0.5, ALMOST), (4, 12), (12, 16))],
    ids=["in the middle", "over the upper edge", "over the right edge"],
)
def test_cutout_hides_a_square_of_half_a_side_with_its_centre_anywhere(u, rows, columns):
    expected = images().clone()
    expected[..., slice(*rows), slice(*columns)] = 0
    assert torch.equal(cutout(images(), random_rows(u)), expected)


def test_shifts_and_cutouts_are_relative_to_each_side():
    x = torch.ones(1, 1, 8, 32)
    assert (cutout(x, random_rows((0.5, 0.5))) == 0).sum() == 4 * 16
    assert (translation(x, random_rows((0, 0))) == 0).sum() == 8 * 32 - 7 * 28


@settings(max_examples=50, deadline=None)
@given(u=st.tuples(*[fraction] * 4))
def test_x_and_y_stay_aligned(u):
    line = torch.linspace(-1, 1, SIDE)
    place = torch.stack(torch.meshgrid(line, line, indexing="ij"))[None]
    x, y, labels = DiffAugment(policy=("translation", "cutout"))(place, place.clone(), None, random_rows(u))
    assert torch.equal(x, y)
    assert labels is None


@pytest.mark.parametrize("side", ["x", "y", "both"])
def test_color_side_sets_the_images_that_change(side):
    x, y, _ = DiffAugment(policy=("color",), color_side=side)(images(), images(), None, random_rows((0.1, 0.2, 0.3)))
    assert torch.equal(x, images()) == (side == "y")
    assert torch.equal(y, images()) == (side == "x")
    assert torch.equal(x, y) == (side == "both")


def test_policy_sets_the_order_and_the_number_of_random_numbers():
    assert DiffAugment().policy == tuple(NUM_RANDOM)
    assert DiffAugment().num_random == 7
    some = DiffAugment(policy=("cutout", "color"))
    assert some.num_random == 5
    u = random_rows((0.1, 0.2, 0.3, 0.4, 0.9))
    _, y, _ = some(images(), images(), None, u)
    assert torch.equal(y, color(cutout(images(), u[:, :2]), u[:, 2:]))


@pytest.mark.parametrize("policy", [(), ("color", "color")])
def test_an_empty_or_repeated_policy_is_an_error(policy):
    with pytest.raises(ValueError, match="name one or more of color, translation, cutout, each once"):
        DiffAugment(policy=policy)


def test_first_and_second_derivatives_equal_finite_differences():
    x, y = (images(2, 1, (4, 4), seed).double().requires_grad_() for seed in (0, 1))
    u = random_rows((0.1, 0.8, 0.3, 0.9, 0.2, 0.4, 0.6), (0.9, 0.2, 0.6, 0.4, 0.7, 0.9, 0.1)).double()
    augmentation = DiffAugment(color_side="both")
    assert torch.autograd.gradcheck(lambda *xy: augmentation(*xy, None, u)[:2], (x, y))
    assert torch.autograd.gradgradcheck(lambda *xy: augmentation(*xy, None, u)[:2], (x, y))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_image_is_bit_identical_in_any_batch(size):
    def augmented(size):
        make = Augmentations({"a": DiffAugment(color_side="both")}, batch_size=size, seed=0)
        parts = []
        for step in range(6 // size):
            part = slice(step * size, (step + 1) * size)
            x, y = (images(6, seed=seed)[part].contiguous(memory_format=torch.channels_last) for seed in (0, 1))
            batch = make(Batch(x, y, ("",) * size), step)
            for moment in DISCRIMINATOR_PASSES:
                parts.append(torch.stack([*make.augment_for_d(batch.random, moment, x, y)], 1))
        return [torch.cat(parts[i::3]) for i in range(3)]

    assert all(map(torch.equal, augmented(size), augmented(6)))
