"""Losses for misaligned pairs: what R warps and learns, its state, and the shifts that a loss tolerates."""

import itertools

import numpy as np
import pytest
import torch
from fault_injection import STEP, SimulatedKill, after, only, outcome, simulate_kill
from p2pzoo_losses.misalignment import Registration, ShiftTolerantL1, load_registration, warp
from torch.nn import functional as F

from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import StepOutputs
from p2pzoo.utils.errors import UserError

SIDE = 32


def smooth(count=1, side=SIDE, seed=0, channels=3):
    draw = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, channels, side // 4 + 1, side // 4 + 1, generator=draw) * 2 - 1
    return F.interpolate(noise, (side, side), mode="bicubic").clamp(-1, 1)


def step_outputs(y, y_hat):
    return StepOutputs(Batch(torch.zeros_like(y), y, ("a",) * len(y)), y_hat).for_generator()


def constant_displacement(down, right, shape):
    return torch.tensor([float(down), float(right)]).view(1, 2, 1, 1).expand(shape[0], 2, *shape[2:])


class TestWarp:
    @pytest.mark.parametrize("size", [(32, 32), (20, 33)])
    def test_it_equals_grid_sample_with_its_gradients(self, size):
        torch.manual_seed(0)
        images, displacement = torch.randn(2, 3, *size).double(), 6 * torch.randn(2, 2, *size).double()
        lines = [torch.arange(side).double() for side in size]
        place = torch.stack(torch.meshgrid(*lines, indexing="ij"))
        results = []
        for own in (True, False):
            inputs = images.clone().requires_grad_(), displacement.clone().requires_grad_()
            if own:
                warped = warp(*inputs)
            else:
                down, right = (place + inputs[1]).unbind(1)
                grid = torch.stack([2 * right / (size[1] - 1) - 1, 2 * down / (size[0] - 1) - 1], -1)
                warped = F.grid_sample(inputs[0], grid, padding_mode="border", align_corners=True)
            (warped * torch.cos(warped)).sum().backward()
            results.append([warped, *(each.grad for each in inputs)])
        for mine, expected in zip(*results, strict=True):
            torch.testing.assert_close(mine, expected)

    def test_no_displacement_changes_no_bit(self):
        images = smooth(2)
        assert torch.equal(warp(images, torch.zeros(2, 2, SIDE, SIDE)), images)

    def test_a_whole_displacement_moves_pixels_and_repeats_the_edge(self):
        images = smooth()
        moved = warp(images, constant_displacement(3, -2, images.shape))
        assert torch.equal(moved[..., :-3, 2:], images[..., 3:, :-2])
        assert torch.equal(moved[..., :-3, 0], images[..., 3:, 0])


class TestRegistration:
    def test_at_the_start_it_is_l1(self):
        y, y_hat = smooth(2), smooth(2, seed=1)
        assert Registration(3, (SIDE, SIDE))(step_outputs(y, y_hat)).item() == F.l1_loss(y_hat, y).item()

    def test_the_smoothness_by_hand(self):
        """The displacement is 0.5 px down in the left half, and 0 in the right half."""
        loss = Registration(1, (4, 4), levels=1, smoothness=3.0)
        field = torch.zeros(1, 2, 4, 4)
        field[:, 0, :, :2] = 0.5
        loss.displacement = lambda y_hat, y: field
        y = torch.zeros(1, 1, 4, 4)
        across = 4 * 0.5**2 / (2 * 4 * 3)  # 4 of 2 · 4 · 3 horizontal differences
        assert loss(step_outputs(y, y)).item() == pytest.approx(3 * across)

    @pytest.mark.parametrize(("down", "right"), [(2, 0), (-1, 2)])
    def test_it_learns_the_shift_between_translations_and_targets_in_pixels(self, down, right):
        torch.manual_seed(0)
        loss = Registration(3, (SIDE, SIDE), width=8, levels=2, max_displacement=8, smoothness=0.1)
        optimizer = torch.optim.Adam(loss.parameters(), lr=3e-3)
        first = None
        for step in range(150):
            y_hat = smooth(4, seed=step)
            y = warp(y_hat, constant_displacement(down, right, y_hat.shape))
            value = loss(step_outputs(y, y_hat))
            first = first or value.item()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        assert value.item() < first / 2
        y_hat = smooth(4, seed=1000)
        y = warp(y_hat, constant_displacement(down, right, y_hat.shape))
        with torch.no_grad():
            inner = loss.displacement(y_hat, y)[..., 4:-4, 4:-4]
        assert inner.mean((0, 2, 3)).tolist() == pytest.approx([down, right], abs=0.5)

    def test_the_displacement_is_bounded(self):
        loss = Registration(3, (SIDE, SIDE), max_displacement=5.0)
        torch.nn.init.constant_(loss.to_displacement.bias, 100.0)
        assert loss.displacement(smooth(), smooth()).unique().tolist() == pytest.approx([5.0])

    def test_gradients_reach_the_translation_and_r(self):
        loss, y_hat = Registration(3, (SIDE, SIDE)), smooth(seed=1).requires_grad_()
        loss(step_outputs(smooth(), y_hat)).backward()
        assert y_hat.grad.any()
        assert loss.to_displacement.weight.grad.any()

    def test_it_is_computed_in_fp32_under_autocast(self):
        loss = Registration(3, (SIDE, SIDE))
        torch.nn.init.normal_(loss.to_displacement.weight, std=0.01)
        out = step_outputs(smooth(), smooth(seed=1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = loss(out)
        assert half.item() == loss(out).item()
        y_hat = smooth(seed=1).bfloat16().requires_grad_()
        loss(step_outputs(smooth().bfloat16(), y_hat)).backward()
        assert y_hat.grad.isfinite().all()
        assert y_hat.grad.any()

    def test_images_that_are_too_small_are_an_error_with_what_to_do(self):
        with pytest.raises(ValueError, match="levels = 3 needs sides of at least 8 px, not 4×32: set fewer levels"):
            Registration(3, (4, 32), levels=3)

    @pytest.mark.parametrize("levels", [1, 3])
    def test_it_sees_as_far_to_each_side_as_it_says(self, levels):
        loss = Registration(1, (64, 64), levels=levels, width=2).double()
        for parameter in loss.parameters():
            torch.nn.init.constant_(parameter, 0.01)
        y_hat = torch.zeros(1, 1, 64, 64, dtype=torch.float64, requires_grad=True)
        [gradient] = torch.autograd.grad(loss.displacement(y_hat, y_hat.detach())[0, 0, 32, 32], y_hat)
        seen = gradient[0, 0].any(1).nonzero() - 32
        assert (seen.min().item(), seen.max().item()) == (-2 * 2**levels, 2 * 2**levels)

    @pytest.mark.parametrize("side", [9, 31])
    def test_sides_need_no_divisor(self, side):
        loss = Registration(3, (side, side), levels=3)
        assert loss.displacement(smooth(side=side), smooth(side=side)).shape == (1, 2, side, side)


def test_a_killed_run_resumes_with_bit_identical_results_and_its_r_can_be_asked(run, tmp_path):
    overrides = ("losses.r.use=registration", "losses.r.width=2", "losses.r.levels=2")
    assert run(tmp_path / "whole", *overrides).exit_code == 0
    with after(STEP, simulate_kill, call=8), pytest.raises(SimulatedKill):
        run(tmp_path / "killed", *overrides)
    assert "resuming" in run(tmp_path / "killed", *overrides).output
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    folder = only(tmp_path / "killed")
    tensors = [
        load_tensors(max(each.glob("checkpoints/*.safetensors")))[0] for each in (folder, only(tmp_path / "whole"))
    ]
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())

    R = load_registration(folder)
    assert torch.equal(R.to_displacement.weight, tensors[0]["losses[r].to_displacement.weight"])
    assert R.displacement(smooth(side=64), smooth(side=64, seed=1)).any()
    with pytest.raises(UserError, match=r'give the name of a loss with use = "registration" \(it has: r\)'):
        load_registration(folder, "other")
    with pytest.raises(UserError, match="no run with a checkpoint"):
        load_registration(tmp_path)


class TestShiftTolerantL1:
    @pytest.mark.parametrize(("down", "right"), [*itertools.product((-2, 0, 1), (-1, 0, 2))])
    def test_a_shift_within_the_radius_costs_nothing_away_from_the_edge(self, down, right):
        y_hat = smooth(2)
        y = torch.roll(y_hat, (down, right), (2, 3))
        value = ShiftTolerantL1(radius=2, window=3)(step_outputs(y, y_hat)).item()
        plain = F.l1_loss(y, y_hat).item()
        assert value < 0.35 * plain if down or right else value == 0

    def test_a_larger_shift_costs(self):
        y_hat = smooth(2)
        y = torch.roll(y_hat, (4, 0), (2, 3))
        assert ShiftTolerantL1(radius=2)(step_outputs(y, y_hat)).item() > 0.3 * F.l1_loss(y, y_hat).item()

    def test_a_window_as_large_as_the_image_has_one_shift(self):
        """Two halves that are shifted differently cannot both be matched."""
        y_hat = smooth(1)
        y = torch.cat([torch.roll(y_hat, 1, 3)[:, :, :16], torch.roll(y_hat, -1, 3)[:, :, 16:]], 2)
        small, large = (ShiftTolerantL1(radius=1, window=w)(step_outputs(y, y_hat)).item() for w in (5, 63))
        assert small < 0.5 * large

    @pytest.mark.parametrize(("radius", "window"), [(0, 1), (1, 3), (2, 5)])
    def test_it_equals_a_computation_with_numpy(self, radius, window):
        y, y_hat = smooth(2, 12), smooth(2, 12, seed=1)
        expected = np.mean([by_numpy(*pair, radius, window) for pair in zip(y.numpy(), y_hat.numpy(), strict=True)])
        value = ShiftTolerantL1(radius=radius, window=window)(step_outputs(y, y_hat)).item()
        assert value == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("window", [3, 21, 41])
    def test_values_and_gradients_are_those_of_a_square_window(self, window):
        """On an image of 32×24 px: a window may be larger than the image."""
        y, y_hat = smooth(2)[..., :24], smooth(2, seed=1)[..., :24].requires_grad_()
        value = ShiftTolerantL1(radius=1, window=window)(step_outputs(y, y_hat))
        wide = F.pad(y_hat, (1, 1, 1, 1), mode="replicate")
        shifted = [wide[:, :, i : i + 32, j : j + 24] for i, j in itertools.product(range(3), repeat=2)]
        distances = torch.cat([(each - y).abs().mean(1, keepdim=True) for each in shifted], 1)
        square = F.avg_pool2d(distances, window, 1, window // 2, count_include_pad=False).amin(1).mean()
        torch.testing.assert_close(value, square)
        torch.testing.assert_close(*(torch.autograd.grad(each, y_hat)[0] for each in (value, square)))

    def test_without_shifts_and_window_it_is_l1(self):
        y, y_hat = smooth(2), smooth(2, seed=1)
        value = ShiftTolerantL1(radius=0, window=1)(step_outputs(y, y_hat)).item()
        assert value == pytest.approx(F.l1_loss(y_hat, y).item(), rel=1e-6)

    def test_an_even_window_is_an_error(self):
        with pytest.raises(ValueError, match="window = 4: a window around a pixel has an odd side, such as 5"):
            ShiftTolerantL1(window=4)


def by_numpy(y, y_hat, radius, window):
    """Pixel by pixel, for one image (C, H, W)."""
    height, width = y.shape[1:]
    wide = np.pad(y_hat, ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    half = window // 2
    total = 0.0
    for row, column in itertools.product(range(height), range(width)):
        rows, columns = (slice(max(0, i - half), i + half + 1) for i in (row, column))
        total += min(
            np.abs(wide[:, down : down + height, right : right + width] - y)[:, rows, columns].mean()
            for down, right in itertools.product(range(2 * radius + 1), repeat=2)
        )
    return total / (height * width)


@pytest.mark.parametrize("size", [(6_000_000, 3), (3, 6_000_000)])
def test_images_of_more_pixels_than_float32_can_count_are_not_moved_by_0(size):
    image = (torch.arange(size[0] * size[1]) % 251).float().view(1, 1, *size)
    no_displacement = torch.zeros(1, 1, 1, 1).expand(1, 2, *size)
    assert torch.equal(warp(image, no_displacement), image)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_displacement_of_half_precision_moves_whole_pixels_exactly(dtype):
    image = torch.arange(4100.0).view(1, 1, 2, 2050)
    right = torch.tensor([0.0, 1.0], dtype=dtype).view(1, 2, 1, 1).expand(1, 2, 2, 2050)
    assert torch.equal(warp(image, right)[..., :-1], image[..., 1:])


@pytest.mark.parametrize(("size", "limit"), [((2, 2**24 + 1), "at most 16777216 px"), ((1, 8), "at least 2 px")])
def test_sides_that_cannot_be_warped_are_refused(size, limit):
    image = torch.zeros(1, 1, 1, 1).expand(1, 1, *size)
    with pytest.raises(ValueError, match=f"warp needs sides of {limit}, not {size[0]}×{size[1]}"):
        warp(image, image.expand(1, 2, *size))
