"""Losses of G: each compared with an independent computation, at its minimum, and in half precision."""

import math

import numpy as np
import pytest
import torch
from kornia.color import lab_to_rgb, rgb_to_lab
from kornia.filters import spatial_gradient
from kornia.metrics import ssim
from p2pzoo_losses.feature_matching import FeatureMatching
from p2pzoo_losses.misalignment import Registration, ShiftTolerantL1
from p2pzoo_losses.perceptual import Perceptual
from p2pzoo_losses.pixels import Charbonnier, Edge, FocalFrequency, GradientDifference, LabColor, TotalVariation
from p2pzoo_losses.structure import EXPONENTS, SSIM, MultiScaleSSIM
from p2pzoo_pix2pix.discriminators import PatchDiscriminator
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from p2pzoo.compute.engine import frozen
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import StepOutputs
from p2pzoo.utils.errors import UserError

SIDE = 48
SIZE = (SIDE, SIDE)
MINIMUM = {  # the loss, and its value where ŷ is y
    "feature-matching": (FeatureMatching, 0.0),
    "perceptual": (lambda: Perceptual(3, SIZE), 0.0),
    "ssim": (lambda: SSIM(SIZE), 0.0),
    "ms-ssim": (lambda: MultiScaleSSIM(SIZE, scales=3), 0.0),
    "charbonnier": (lambda: Charbonnier(eps=0.01), 0.01),
    "edge": (lambda: Edge(SIZE), 0.0),
    "gradient-difference": (lambda: GradientDifference(SIZE), 0.0),
    "gradient-difference, squared": (lambda: GradientDifference(SIZE, alpha=2.0), 0.0),
    "registration": (lambda: Registration(3, SIZE, width=4), 0.0),
    "shift-tolerant-l1": (ShiftTolerantL1, 0.0),
    "focal-frequency": (FocalFrequency, 0.0),
    "lab-color": (lambda: LabColor(3), 0.0),
}
LOSSES = {name: make for name, (make, _) in MINIMUM.items()} | {"total-variation": TotalVariation}


def images(count=2, side=SIDE, channels=3, seed=0):
    """x, y and ŷ, smooth enough to have structure."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.rand(3, count, channels, side, side, generator=draw) * 2 - 1
    coarse = F.interpolate(noise.flatten(0, 1)[..., ::8, ::8], (side, side), mode="bilinear").view_as(noise)
    return (0.8 * coarse + 0.2 * noise).unbind()


def discriminator():
    torch.manual_seed(0)
    return PatchDiscriminator(3, 3, SIZE, receptive_field=16, width=4, norm="instance")


def step_outputs(y, y_hat, D=None):
    return StepOutputs(Batch(torch.zeros_like(y), y, ("a",) * len(y)), y_hat, D).for_generator()


def gradient_at(loss, y, y_hat, D=None):
    y_hat = y_hat.clone().requires_grad_()
    value = loss(step_outputs(y, y_hat, D))
    value.backward()
    return value.item(), y_hat.grad


@pytest.mark.parametrize("name", MINIMUM)
def test_at_the_target_a_loss_is_at_its_minimum_with_a_finite_gradient(name):
    make, least = MINIMUM[name]
    loss, D = make(), discriminator()
    _, y, y_hat = images()
    value, gradient = gradient_at(loss, y, y, D)
    assert value == pytest.approx(least, abs=1e-5)
    assert gradient.isfinite().all()
    torch.manual_seed(1)
    ignores_signs = name.startswith("gradient-difference")  # of slopes, as the paper defines it
    for other in (y_hat, y + 0.05 * torch.randn_like(y), torch.zeros_like(y), *([] if ignores_signs else [-y])):
        assert loss(step_outputs(y, other, D)).item() > value + 1e-5


@pytest.mark.parametrize("name", MINIMUM)
def test_gradient_descent_brings_the_translation_closer_to_the_target(name):
    loss, D = MINIMUM[name][0](), discriminator()
    _, y, y_hat = images()
    value, gradient = gradient_at(loss, y, y_hat, D)
    step = 1e-2 * value / gradient.norm() ** 2  # a hundredth of the way down, were the loss linear
    lower = loss(step_outputs(y, y_hat - step * gradient, D)).item()
    assert lower == pytest.approx(0.99 * value, rel=3e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_only_the_generator_gets_gradients(name):
    loss, D = LOSSES[name](), discriminator()
    _, y, y_hat = images()
    y, y_hat = y.requires_grad_(), y_hat.requires_grad_()
    with frozen(D):
        loss(step_outputs(y, y_hat, D)).backward()
    assert loss.side == "generator"
    assert y_hat.grad.any()
    assert all(p.grad is None for p in D.parameters())
    if name == "feature-matching":
        assert y.grad is None, "what D sees in y is a target"


@pytest.mark.parametrize("at", ["apart", "equal", "black and white"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_computed_in_fp32_under_autocast(name, at):
    loss, D = LOSSES[name](), discriminator()
    _, y, y_hat = images()
    if at == "equal":
        y_hat = y
    if at == "black and white":
        y, y_hat = torch.full_like(y, -1), torch.ones_like(y)
    plain, _ = gradient_at(loss, y, y_hat, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradient = gradient_at(loss, y, y_hat, D)
    assert gradient.isfinite().all()
    networks = name in ("feature-matching", "perceptual")
    assert value == pytest.approx(plain, rel=0.05 if networks else 1e-6, abs=1e-5 if networks else 1e-7)


class OperationRecorder(TorchDispatchMode):
    """Record the operations that torch executes."""

    def __init__(self):
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations.add(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", LOSSES)
def test_no_values_are_copied_between_host_and_device(name):
    """Otherwise a step could not be recorded as a CUDA graph.

    `lift_fresh` converts a Python number to a tensor, `_local_scalar_dense` a tensor to a Python number.
    """
    loss, D = LOSSES[name](), discriminator()
    _, y, y_hat = images()
    with OperationRecorder() as watched:
        loss(step_outputs(y, y_hat.requires_grad_(), D)).backward()
    assert not [
        each for each in watched.operations if "lift_fresh" in each or "scalar_dense" in each or "nonzero" in each
    ]


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_a_batch_is_the_mean_over_its_images(name):
    loss, D = LOSSES[name](), discriminator()
    _, y, y_hat = images(3)
    alone = [loss(step_outputs(y[i : i + 1], y_hat[i : i + 1], D)).item() for i in range(3)]
    assert loss(step_outputs(y, y_hat, D)).item() == pytest.approx(sum(alone) / 3, rel=1e-4)


# --- each by itself ------------------------------------------------------------------------------------------------


def test_charbonnier_by_hand():
    y, y_hat = torch.tensor([[[[0.0, 0.5]]]]), torch.tensor([[[[0.4, 0.5]]]])
    assert Charbonnier(eps=0.3)(step_outputs(y, y_hat)).item() == pytest.approx((0.5 + 0.3) / 2)


def test_edge_by_hand():
    """ŷ has a vertical edge of height 1 in its middle, y is constant: both columns at the edge have slope 1/2."""
    y, y_hat = torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)
    y_hat[..., 3:] = 1
    expected = 0.5 * 8 / 32  # of 16 pixels that have neighbours all around, in two directions
    assert Edge((6, 6))(step_outputs(y, y_hat)).item() == pytest.approx(expected)
    assert Edge((6, 6))(step_outputs(y, y_hat.mT)).item() == pytest.approx(expected)
    assert Edge((6, 6))(step_outputs(y, y + 0.7)).item() == pytest.approx(0, abs=1e-7)


def test_edge_equals_kornias_sobel_gradients_away_from_the_border():
    _, y, y_hat = images()
    slopes = [spatial_gradient(each)[..., 1:-1, 1:-1] for each in (y, y_hat)]
    assert Edge(SIZE)(step_outputs(y, y_hat)).item() == pytest.approx(F.l1_loss(*slopes).item(), rel=1e-5)


def test_edge_needs_three_pixels_per_side():
    with pytest.raises(ValueError, match="edge needs sides of at least 3 px, not 2×8"):
        Edge((2, 8))


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_gradient_difference_by_hand(alpha):
    """Vertical slopes 1 and -2 against 0 and 0.5; horizontal slopes 1 and -2 against 0.5 and 1."""
    y, y_hat = torch.tensor([[[[0.0, 1.0], [1.0, -1.0]]]]), torch.tensor([[[[0.0, 0.5], [0.0, 1.0]]]])
    vertical = ((1 - 0) ** alpha + (2 - 0.5) ** alpha) / 2
    horizontal = ((1 - 0.5) ** alpha + (2 - 1) ** alpha) / 2
    loss = GradientDifference((2, 2), alpha=alpha)
    assert loss(step_outputs(y, y_hat)).item() == pytest.approx(vertical + horizontal)


def test_gradient_difference_equals_the_papers_sum_with_numpy():
    _, y, y_hat = images()
    a, b = (each.double().numpy() for each in (y, y_hat))
    terms = [
        (np.abs(np.abs(np.diff(a, axis=axis)) - np.abs(np.diff(b, axis=axis))) ** 2).sum() / np.diff(a, axis=axis).size
        for axis in (2, 3)
    ]
    value = GradientDifference(SIZE, alpha=2.0)(step_outputs(y, y_hat)).item()
    assert value == pytest.approx(sum(terms), rel=1e-5)


def test_gradient_difference_needs_neighbours():
    with pytest.raises(ValueError, match="gradient-difference needs sides of at least 2 px, not 1×8"):
        GradientDifference((1, 8))


def test_total_variation_by_hand_and_0_for_a_constant_image():
    y_hat = torch.tensor([[[[0.0, 0.5], [0.25, 0.25]]]])
    vertical, horizontal = (0.25 + 0.25) / 2, (0.5 + 0) / 2
    assert TotalVariation()(step_outputs(torch.zeros(1, 1, 2, 2), y_hat)).item() == pytest.approx(vertical + horizontal)
    value, gradient = gradient_at(TotalVariation(), *images()[1:2], torch.full((2, 3, SIDE, SIDE), 0.3))
    assert value == 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_focal_frequency_equals_a_computation_with_numpy(alpha):
    _, y, y_hat = images()
    expected = []
    for image in (y_hat - y).double().flatten(0, 1).numpy():
        amplitude = np.abs(np.fft.fft2(image, norm="ortho"))
        expected.append((amplitude**alpha / (amplitude**alpha).max() * amplitude**2).mean())
    value = FocalFrequency(alpha=alpha)(step_outputs(y, y_hat)).item()
    assert value == pytest.approx(np.mean(expected), rel=1e-4)
    if alpha == 0:
        assert value == pytest.approx(F.mse_loss(y_hat, y).item(), rel=1e-4), "Parseval"


def test_no_gradient_flows_through_the_weight_of_a_frequency():
    """If one frequency differs, its weight is 1, and the gradient is that of the mean square."""
    wave = torch.cos(2 * math.pi * torch.arange(8.0) / 8).expand(1, 1, 8, 8)
    _, gradient = gradient_at(FocalFrequency(), torch.zeros(1, 1, 8, 8), wave)
    torch.testing.assert_close(gradient, 2 * wave / 64, atol=1e-6, rtol=1e-4)


def test_lab_color_ignores_lightness():
    lab = torch.tensor([[50.0, 10.0, -20.0], [60.0, 14.0, -12.0]])[:, :, None, None]
    y, y_hat = (lab_to_rgb(lab).split(1)[i] * 2 - 1 for i in range(2))
    assert LabColor(3)(step_outputs(y, y_hat)).item() == pytest.approx((4 + 8) / 2, abs=0.05)
    grey = torch.linspace(-1, 1, 5).expand(1, 3, 5, 5)
    assert LabColor(3)(step_outputs(grey, -grey)).item() == pytest.approx(0, abs=0.05)


def test_lab_color_equals_kornias():
    _, y, y_hat = images()
    colours = [rgb_to_lab((each + 1) / 2)[:, 1:] for each in (y, y_hat)]
    assert LabColor(3)(step_outputs(y, y_hat)).item() == pytest.approx(F.l1_loss(*colours).item(), rel=1e-3)


def test_lab_color_has_a_finite_gradient_for_black_white_and_values_out_of_range():
    y_hat = torch.tensor([-1.0, 1.0, -3.0, 2.0, -1.2, -1 + 1e-7]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    y = torch.linspace(-1, 1, 18).view(1, 3, 1, 6)
    value, gradient = gradient_at(LabColor(3), y, y_hat)
    assert math.isfinite(value)
    assert gradient.isfinite().all()
    assert not gradient[..., 2:5].any(), "outside of [-1, 1]"


def test_lab_color_needs_rgb():
    with pytest.raises(ValueError, match="RGB images, 3 channels, not 1"):
        LabColor(1)


class TestStructure:
    def test_ssim_equals_kornias(self):
        _, y, y_hat = images()
        unit = [(each + 1) / 2 for each in (y, y_hat)]
        expected = 1 - ssim(*unit, 11, max_val=1.0, eps=0.0, padding="valid").mean().item()
        assert SSIM(SIZE)(step_outputs(y, y_hat)).item() == pytest.approx(expected, abs=1e-5)

    def test_ssim_of_constant_images_by_hand(self):
        """(2 a b + C1) / (a² + b² + C1) with a = 0.25, b = 0.75, C1 = 1e-4."""
        y, y_hat = (torch.full((1, 1, 16, 16), value) for value in (-0.5, 0.5))
        expected = 1 - (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
        assert SSIM((16, 16))(step_outputs(y, y_hat)).item() == pytest.approx(expected, rel=1e-3)

    @pytest.mark.parametrize("side", [176, 190])
    def test_ms_ssim_equals_the_papers_product_over_five_scales(self, side):
        _, y, y_hat = images(side=side)
        y_hat = 0.7 * y + 0.3 * y_hat
        expected = [ms_ssim_by_numpy(*(p.double().numpy() for p in pair)) for pair in planes(y, y_hat)]
        loss = MultiScaleSSIM((side, side))(step_outputs(y, y_hat))
        assert loss.item() == pytest.approx(1 - np.mean(expected), rel=1e-3)

    def test_ms_ssim_of_one_scale_is_ssim(self):
        _, y, y_hat = images()
        y_hat = 0.7 * y + 0.3 * y_hat
        one, other = MultiScaleSSIM(SIZE, scales=1), SSIM(SIZE)
        assert one(step_outputs(y, y_hat)).item() == pytest.approx(other(step_outputs(y, y_hat)).item(), rel=1e-4)

    def test_the_negative_of_the_target_has_a_finite_gradient(self):
        """Its structure is negative at each scale, and a negative number has no fractional power."""
        _, y, _ = images()
        value, gradient = gradient_at(MultiScaleSSIM(SIZE, scales=3), y, -y)
        assert 0.9 < value <= 1
        assert gradient.isfinite().all()

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: SSIM((10, 64)), "ssim needs sides of at least 11 px, not 10×64"),
            (lambda: MultiScaleSSIM((128, 128)), "ms-ssim of 5 scales needs sides of at least 176 px, not 128×128"),
            (lambda: MultiScaleSSIM((256, 43), scales=4), "of at least 88 px, not 256×43: set scales = 2$"),
            (lambda: MultiScaleSSIM((8, 8), scales=1), "ms-ssim of 1 scale needs sides of at least 11 px, not 8×8"),
            (lambda: MultiScaleSSIM((8, 8), scales=2), "of at least 22 px, not 8×8: scales = 1 needs 11 px"),
        ],
    )  # fmt: skip
    def test_images_that_are_too_small_are_an_error_with_scales_that_fit(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    @pytest.mark.parametrize(("scales", "side"), [*enumerate([11, 22, 44, 88, 176], 1)])
    def test_the_smallest_size_is_accepted(self, scales, side):
        _, y, y_hat = images(1, side)
        value, gradient = gradient_at(MultiScaleSSIM((side, side), scales=scales), y, 0.5 * (y + y_hat))
        assert 0 < value < 1
        assert gradient.isfinite().all()


def planes(y, y_hat):
    return zip((y.flatten(0, 1) + 1) / 2, (y_hat.flatten(0, 1) + 1) / 2, strict=True)


def ms_ssim_by_numpy(a, b):
    """MS-SSIM of two channels in [0, 1], window by window as in Wang et al."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(image):
        windows = np.lib.stride_tricks.sliding_window_view(image, (11, 11))
        return np.einsum("ijkl,kl->ij", windows, window)

    product = 1.0
    for scale, exponent in enumerate(EXPONENTS):
        if scale:
            a, b = (i[: len(i) // 2 * 2, : len(i) // 2 * 2] for i in (a, b))
            a, b = ((i[::2, ::2] + i[1::2, ::2] + i[::2, 1::2] + i[1::2, 1::2]) / 4 for i in (a, b))
        spread = [mean(i * i) - mean(i) ** 2 for i in (a, b)]
        similarity = (2 * (mean(a * b) - mean(a) * mean(b)) + 9e-4) / (sum(spread) + 9e-4)
        if scale == len(EXPONENTS) - 1:
            similarity = similarity * (2 * mean(a) * mean(b) + 1e-4) / (mean(a) ** 2 + mean(b) ** 2 + 1e-4)
        product *= similarity.mean() ** exponent
    return product


class TestFeatureMatching:
    class Layers(nn.Module):
        """A D with two scales: features y and 2 y; and y / 2."""

        def features(self, x, y):
            return [[y, 2 * y], [y / 2]]

    def test_layers_are_summed_and_scales_averaged(self):
        _, y, y_hat = images()
        distance = F.l1_loss(y_hat, y).item()
        value = FeatureMatching()(step_outputs(y, y_hat, self.Layers())).item()
        assert value == pytest.approx(((1 + 2) + 0.5) / 2 * distance, rel=1e-5)

    def test_d_gets_x_with_both_images(self):
        calls = []

        class OperationRecorder(self.Layers):
            def features(self, x, y):
                calls.append((x, y))
                return super().features(x, y)

        x, y, y_hat = images()
        FeatureMatching()(StepOutputs(Batch(x, y, ("a", "b")), y_hat, OperationRecorder()).for_generator())
        assert {id(image) for _, image in calls} == {id(y), id(y_hat)}
        assert all(first is x for first, _ in calls)

    def test_a_recipe_without_a_discriminator_is_an_error(self):
        _, y, y_hat = images()
        with pytest.raises(UserError, match=r"needs a discriminator: add \[discriminator\] and \[gan_loss\]"):
            FeatureMatching()(step_outputs(y, y_hat))
