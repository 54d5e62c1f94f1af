"""Augmentation of pairs: alignment of x, y and labels, cases computed by hand, errors."""

import colorsys

import kornia
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia import enhance
from p2pzoo_augment.pairs import Affine, FlipRotate, Photometric
from p2pzoo_augment.ranges import per_image
from packaging import version

from p2pzoo.data.augmentation import Augmentations
from p2pzoo.plugin import schema
from p2pzoo.plugin.batch import Batch

SIDE = 16
GEOMETRY = {
    "flip-rotate": FlipRotate((SIDE, SIDE)),
    "affine": Affine((SIDE, SIDE), degrees=45, scale=(0.7, 1.4), translate=0.2),
    "affine, nearest": Affine((SIDE, SIDE), degrees=45, scale=(0.7, 1.4), translate=0.2, resampling="nearest"),
}
PHOTOMETRY = {side: Photometric(3, 3, side=side, hue=0.1) for side in ("x", "y", "both")}
fraction = st.floats(0, 1, exclude_max=True, width=32)


def coordinates(count=1):
    """(count, 2, SIDE, SIDE): the row and column of each pixel, in [-1, 1]."""
    line = torch.linspace(-1, 1, SIDE)
    return torch.stack(torch.meshgrid(line, line, indexing="ij"))[None].repeat(count, 1, 1, 1)


def images(count, seed=0, channels=3):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, SIDE, SIDE, generator=draw) * 2 - 1


def random_rows(*rows):
    return torch.tensor(rows, dtype=torch.float32)


class TestGeometry:
    @pytest.mark.parametrize("augmentation", GEOMETRY.values(), ids=GEOMETRY)
    @settings(max_examples=50, deadline=None)
    @given(data=st.data())
    def test_x_y_and_labels_stay_aligned(self, augmentation, data):
        u = random_rows(*data.draw(st.lists(st.tuples(*[fraction] * augmentation.num_random), min_size=1, max_size=3)))
        grid = coordinates(len(u))
        rows = ((grid[:, 0] + 1) / 2 * (SIDE - 1)).round().long()
        x, y, labels = augmentation(grid, grid.clone(), rows, u)
        assert torch.equal(x, y)
        assert x.abs().max() <= 1 + 1e-6
        assert labels.dtype == torch.int64
        apart = (labels / (SIDE - 1) * 2 - 1 - x[:, 0]).abs().max() * (SIDE - 1) / 2
        assert apart < (1e-5 if augmentation is GEOMETRY["flip-rotate"] else 0.51), "labels are the nearest pixel's"

    @pytest.mark.parametrize(
        ("u", "expected"),
        [
            ((0.9, 0.9, 0.1), lambda image: image),
            ((0.1, 0.9, 0.1), lambda image: image[:, ::-1]),
            ((0.9, 0.1, 0.1), lambda image: image[::-1]),
            ((0.9, 0.9, 0.3), lambda image: np.rot90(image, 1)),
            ((0.9, 0.9, 0.6), lambda image: np.rot90(image, 2)),
            ((0.9, 0.9, 0.9), lambda image: np.rot90(image, 3)),
            ((0.1, 0.9, 0.3), lambda image: np.rot90(image[:, ::-1], 1)),
        ],
        ids=["as it is", "mirrored", "upended", "90°", "180°", "270°", "mirrored, then 90°"],
    )
    def test_flips_and_rotations_equal_those_of_numpy(self, u, expected):
        x, labels = images(1), torch.arange(SIDE**2).view(1, SIDE, SIDE)
        turned, _, marked = GEOMETRY["flip-rotate"](x, x, labels, random_rows(u))
        for channel, its in zip(x[0], turned[0], strict=True):
            assert np.array_equal(its, expected(channel.numpy()))
        assert np.array_equal(marked[0], expected(labels[0].numpy()))

    def test_probabilities_and_turns_can_be_set(self):
        u = random_rows(*[(0.3, 0.3, i / 4) for i in range(4)])
        x = images(4)
        never = FlipRotate((SIDE, SIDE), horizontal=0, vertical=0, quarter_turns=False)
        always = FlipRotate((SIDE, SIDE), horizontal=1, vertical=1, quarter_turns=False)
        assert torch.equal(never(x, x, None, u)[0], x)
        assert torch.equal(always(x, x, None, u)[0], x.flip(2, 3))

    def test_the_eight_symmetries_of_a_square_have_equal_probability(self):
        draw = torch.Generator().manual_seed(0)
        x = torch.arange(4.0).view(1, 1, 2, 2).repeat(4000, 1, 1, 1)
        turned, _, _ = FlipRotate((2, 2))(x, x, None, torch.rand(4000, 3, generator=draw))
        ways = np.unique(turned.flatten(1).numpy(), axis=0, return_counts=True)[1] / 4000
        assert len(ways) == 8
        assert ways == pytest.approx([1 / 8] * 8, abs=0.02)

    def test_quarter_turns_need_square_images(self):
        with pytest.raises(ValueError, match=r"needs square images, but these are 8×16: set quarter_turns = false"):
            FlipRotate((8, 16))
        oblong = torch.rand(1, 3, 8, 16)
        moved, _, _ = FlipRotate((8, 16), quarter_turns=False)(oblong, oblong, None, random_rows((0.1, 0.1, 0.9)))
        assert torch.equal(moved, oblong.flip(2, 3))

    def test_affine_with_zero_strengths_changes_nothing(self):
        still = Affine((SIDE, SIDE), degrees=0, scale=(1, 1), translate=0)
        x = images(1)
        torch.testing.assert_close(still(x, x, None, random_rows((0.2, 0.7, 0.1, 0.9)))[0], x, atol=1e-5, rtol=0)

    def test_a_rotation_by_90_degrees_is_a_quarter_turn(self):
        turning = Affine((SIDE, SIDE), degrees=180, scale=(1, 1), translate=0)
        x = images(1)
        turned, _, _ = turning(x, x, None, random_rows((0.75, 0.5, 0.5, 0.5)))  # -180 + 0.75 · 360 = 90
        torch.testing.assert_close(turned, torch.rot90(x, 3, (2, 3)), atol=1e-4, rtol=0)

    def test_a_shift_moves_right_and_down_and_reflects_at_the_edge(self):
        shifting = Affine((SIDE, SIDE), degrees=0, scale=(1, 1), translate=0.25, resampling="nearest")
        x = images(1)
        moved, _, _ = shifting(x, x, None, random_rows((0.5, 0.5, 0.75, 0.5)))  # half of 4 px to the right
        torch.testing.assert_close(moved[..., 2:], x[..., :-2], atol=1e-5, rtol=0)
        torch.testing.assert_close(moved[..., :2], x[..., 1:3].flip(3), atol=1e-5, rtol=0)
        moved, _, _ = shifting(x, x, None, random_rows((0.5, 0.5, 0.5, 0.75)))
        torch.testing.assert_close(moved[:, :, 2:], x[:, :, :-2], atol=1e-5, rtol=0)

    def test_a_factor_above_1_enlarges_about_the_centre(self):
        enlarging = Affine((SIDE, SIDE), degrees=0, scale=(2, 2), translate=0)
        x = coordinates()
        torch.testing.assert_close(enlarging(x, x, None, random_rows((0.5,) * 4))[0], x / 2, atol=1e-5, rtol=0)

    def test_a_minimum_scale_above_the_maximum_is_an_error(self):
        with pytest.raises(ValueError, match=r"scale = \[1.2, 0.8\]: give the minimum factor first"):
            Affine((SIDE, SIDE), scale=(1.2, 0.8))


class TestPhotometry:
    @pytest.mark.parametrize("side", PHOTOMETRY)
    def test_side_sets_the_images_that_change(self, side):
        x, labels = images(2), torch.zeros(2, SIDE, SIDE, dtype=torch.int64)
        random = random_rows((0.1, 0.2, 0.8, 0.9), (0.9, 0.7, 0.1, 0))
        lit_x, lit_y, marked = PHOTOMETRY[side](x, x.clone(), labels, random)
        assert torch.equal(lit_x, x) == (side == "y")
        assert torch.equal(lit_y, x) == (side == "x")
        assert torch.equal(lit_x, lit_y) == (side == "both")
        assert marked is labels

    def test_the_default_does_not_change_y(self):
        assert schema.check_params(Photometric, {})["side"] == "x"

    @pytest.mark.parametrize("side", PHOTOMETRY)
    @settings(max_examples=25, deadline=None)
    @given(u=st.tuples(*[fraction] * 4))
    def test_values_stay_within_minus_1_and_1(self, side, u):
        lit_x, lit_y, _ = PHOTOMETRY[side](images(1), images(1, seed=1), None, random_rows(u))
        assert max(lit_x.abs().max(), lit_y.abs().max()) <= 1

    @pytest.mark.parametrize("strength", ["brightness", "contrast", "saturation", "hue"])
    def test_each_strength_is_for_pixels_in_0_1(self, strength):
        off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
        light = Photometric(3, 3, **{**off, strength: 0.2})
        u = [0.25, 0.25, 0.25, 0.25]  # brightness -0.1, factors 0.9, hue -0.1 of the circle
        x = images(1) * 0.5  # nothing is clipped
        changed = (light(x, x, None, random_rows(u))[0][0].permute(1, 2, 0).reshape(-1, 3).double() + 1) / 2
        pixels = (x[0].permute(1, 2, 0).reshape(-1, 3).double() + 1) / 2
        if strength == "brightness":
            expected = pixels - 0.1
        elif strength == "contrast":
            mean = (pixels @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)).mean()
            expected = mean + 0.9 * (pixels - mean)
        else:
            colours = []
            for pixel in pixels.tolist():
                h, s, v = colorsys.rgb_to_hsv(*pixel)
                colours.append(
                    colorsys.hsv_to_rgb(h, 0.9 * s, v) if strength == "saturation"
                    else colorsys.hsv_to_rgb((h - 0.1) % 1, s, v)
                )  # fmt: skip
            expected = torch.tensor(colours, dtype=torch.float64)
        torch.testing.assert_close(changed, expected, atol=1e-5, rtol=0)

    @staticmethod
    def contrasts(channels, side, memory_format):
        """Images of different brightness, their factors of contrast, the changed images, and one after the other."""
        light = Photometric(channels, channels, brightness=0, contrast=0.5, saturation=0, hue=0)
        draw = torch.Generator().manual_seed(channels)
        bright = torch.tensor([0.2, 0.6, 1.0, 0.4]).view(4, 1, 1, 1)
        x = (torch.rand(4, channels, side, side + 1, generator=draw) * bright * 2 - 1).contiguous(
            memory_format=memory_format
        )
        random = torch.rand(4, 4, generator=draw)
        singly = torch.cat([light(x[i : i + 1], x[:1], None, random[i : i + 1])[0] for i in range(4)])
        return x, 0.5 + random[:, 1], light(x, x, None, random)[0], singly

    @pytest.mark.parametrize("channels", [1, 2, 3, 5])
    def test_contrast_is_about_the_mean_of_each_image_whatever_kornia_computes(self, channels, monkeypatch):
        def of_the_whole_batch(image, factor):  # kornia below 0.9, where images are not RGB
            return (image.mean() + per_image(factor) * (image - image.mean())).clamp(0, 1)

        monkeypatch.setattr(enhance, "adjust_contrast_with_mean_subtraction", of_the_whole_batch)
        _, _, together, singly = self.contrasts(channels, SIDE, torch.contiguous_format)
        assert torch.equal(together, singly)

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("side", [8, 33, 256])
    @pytest.mark.parametrize("channels", [1, 2, 3, 5])
    def test_contrast_has_the_bits_of_kornia(self, channels, side, memory_format):
        """Earlier versions called it: their runs resume with the same bits."""
        x, factors, together, _ = self.contrasts(channels, side, memory_format)
        expected = enhance.adjust_contrast_with_mean_subtraction((x + 1) / 2, factors)
        if channels != 3 and version.parse(kornia.__version__) < version.parse("0.9"):
            pytest.skip("this version of kornia mixes the images of a batch")
        assert torch.equal(together, expected * 2 - 1)

    def test_saturation_and_hue_need_rgb(self):
        for arguments, side, found in (
            ((1, 3), "x", "x has 1 channel"),
            ((3, 1), "y", "y has 1 channel"),
            ((3, 4), "both", "y has 4 channels"),
        ):
            with pytest.raises(ValueError, match=f"need RGB, but {found}: set saturation = 0"):
                Photometric(*arguments, side=side)
        Photometric(1, 3, side="y")
        grey = images(1, channels=1)
        lit, _, _ = Photometric(1, 1, saturation=0, hue=0)(grey, grey, None, random_rows((0.9,) * 4))
        assert lit.mean() > grey.mean()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_image_is_bit_identical_in_any_batch(size):
    named = {**GEOMETRY, "light": Photometric(3, 3, side="both", hue=0.1)}

    def augmented(size):
        make = Augmentations(named, batch_size=size, seed=0)
        parts = []
        for step in range(6 // size):
            part = slice(step * size, (step + 1) * size)
            x, y = (images(6, seed)[part].contiguous(memory_format=torch.channels_last) for seed in (0, 1))
            parts.append(make(Batch(x, y, ("",) * size, torch.arange(6)[part, None, None].repeat(1, SIDE, SIDE)), step))
        return [torch.cat([getattr(part, field) for part in parts]) for field in ("x", "y", "labels")]

    assert all(map(torch.equal, augmented(size), augmented(6)))
