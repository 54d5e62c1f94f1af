"""Image metrics against values that numpy computes from their definitions."""

import importlib

import numpy as np
import p2pzoo_metrics
import pytest
import torch
from imports import imported_at_once
from p2pzoo_metrics.images import L1, PSNR, SSIM

from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.loader import registry

METRICS = pytest.mark.parametrize("metric", [L1, PSNR, SSIM])


def images(batch=3, channels=3, height=16, width=18, seed=0):
    """Smooth ramps with noise in [-1, 1], each different."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(-1, 1, width) * rng.uniform(-1, 1, (batch, channels, height, 1))
    return torch.from_numpy(np.clip(ramp + rng.normal(0, 0.2, (batch, channels, height, width)), -1, 1)).float()


def batch_of(y):
    return Batch(x=torch.zeros_like(y), y=y, ids=tuple(map(str, range(len(y)))))


def score(metric, y, y_hat):
    metric = metric(None)
    return metric.reduce(metric.measure(batch_of(y), y_hat))


def ssim_by_definition(y, y_hat):
    """Wang et al. 2004, Eq. 13 with Eqs. 14-16: one channel in [0, 1], window by window, in float64."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for top in range(y.shape[0] - 10):
        for left in range(y.shape[1] - 10):
            a, b = (image[top : top + 11, left : left + 11] for image in (y, y_hat))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            cov = (window * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )
    return np.mean(values)


def test_every_registered_metric_can_be_imported():
    factories = {}
    p2pzoo_metrics.register_metrics(lambda name, factory, **_: factories.update({name: factory}))
    assert {"l1", "psnr", "ssim", "fcn_score", "label_accuracy"} <= set(factories)
    for factory in factories.values():
        module, attribute = factory.split(":")
        metric = getattr(importlib.import_module(module), attribute)
        assert metric.version == "1"
        assert metric.better in ("higher", "lower", None)


def test_l1_is_the_mean_distance_in_units_of_the_range_minus_1_to_1():
    y, y_hat = images(seed=1), images(seed=2)
    expected = np.abs(y.numpy().astype(float) - y_hat.numpy()).mean(axis=(1, 2, 3))
    statistics = L1(None).measure(batch_of(y), y_hat)
    np.testing.assert_allclose(statistics["l1"], expected, rtol=1e-6)
    assert score(L1, y, y_hat) == {"value": pytest.approx(expected.mean())}
    black_for_white = score(L1, torch.ones(1, 3, 4, 4), -torch.ones(1, 3, 4, 4))
    assert black_for_white["value"] == 2


def test_psnr_is_relative_to_the_full_range_of_values():
    y, y_hat = images(seed=1), images(seed=2)
    errors = (y.numpy().astype(float) - y_hat.numpy()) / 2
    mse = (errors**2).mean(axis=(1, 2, 3))
    result = score(PSNR, y, y_hat)
    assert result["value"] == pytest.approx((10 * np.log10(1 / mse)).mean(), rel=1e-6)
    assert result["pooled"] == pytest.approx(10 * np.log10(1 / mse.mean()), rel=1e-6)
    assert result["value"] > result["pooled"]


@pytest.mark.parametrize(("shift", "decibels"), [(2.0, 0), (0.2, 20), (0.02, 40)])
def test_psnr_of_a_uniform_error(shift, decibels):
    y = -torch.ones(1, 1, 4, 4)
    assert score(PSNR, y, y + shift)["value"] == pytest.approx(decibels, abs=1e-4)


def test_psnr_of_equal_images_is_100_db():
    y = images()
    assert score(PSNR, y, y) == {"value": pytest.approx(100), "pooled": pytest.approx(100)}


def test_one_equal_image_does_not_make_the_mean_psnr_infinite():
    y = -torch.ones(2, 1, 4, 4)
    y_hat = torch.stack([y[0], y[1] + 0.2])
    assert score(PSNR, y, y_hat)["value"] == pytest.approx((100 + 20) / 2, abs=1e-4)


def test_ssim_follows_its_definition():
    y, y_hat = images(seed=1), images(seed=1) * 0.7 + images(seed=2) * 0.3
    expected = [
        np.mean([ssim_by_definition(a, b) for a, b in zip(one, other, strict=True)])
        for one, other in zip((y.double().numpy() + 1) / 2, (y_hat.double().numpy() + 1) / 2, strict=True)
    ]
    statistics = SSIM(None).measure(batch_of(y), y_hat)
    np.testing.assert_allclose(statistics["ssim"], expected, atol=2e-6)
    assert 0.1 < np.mean(expected) < 0.9
    assert score(SSIM, y, y_hat)["value"] == pytest.approx(np.mean(expected), abs=2e-6)


@pytest.mark.parametrize("y", [images(), -torch.ones(1, 1, 16, 16), torch.ones(1, 3, 16, 16)])
def test_ssim_of_equal_images_is_1(y):
    assert score(SSIM, y, y)["value"] == pytest.approx(1, abs=1e-6)


def test_ssim_names_the_smallest_image_that_it_accepts():
    assert score(SSIM, images(height=11, width=11), images(height=11, width=11))["value"] == pytest.approx(1)
    with pytest.raises(ValueError, match="from 11 px a side up, not 10×16"):
        score(SSIM, images(height=10, width=16), images(height=10, width=16))


@METRICS
def test_statistics_do_not_depend_on_the_batch_size(metric):
    y, y_hat = images(batch=5, seed=1), images(batch=5, seed=2)
    metric = metric(None)
    one_batch = metric.measure(batch_of(y), y_hat)
    for size in (1, 2):
        parts = [metric.measure(batch_of(a), b) for a, b in zip(y.split(size), y_hat.split(size), strict=True)]
        for name, values in one_batch.items():
            assert values.shape == (5,)
            assert torch.equal(torch.cat([part[name] for part in parts]), values)


@METRICS
def test_memory_layout_and_half_precision_do_not_change_the_number(metric):
    y, y_hat = images(seed=1), images(seed=2).half()
    expected = score(metric, y, y_hat.float())
    assert score(metric, y, y_hat) == expected
    assert score(metric, y.contiguous(memory_format=torch.channels_last), y_hat) == expected


@METRICS
def test_results_are_plain_floats(metric):
    assert all(type(value) is float for value in score(metric, images(seed=1), images(seed=2)).values())


def test_reading_the_parameters_of_metrics_imports_no_timm():
    """It takes a second, which every dry run would wait for."""
    modules = {entry.factory.partition(":")[0] for entry in registry().of("metric") if isinstance(entry.factory, str)}
    assert "p2pzoo_metrics.features" in modules
    assert not [module for module in modules if "timm" in imported_at_once(module)]
    assert "timm" in imported_at_once("p2pzoo_metrics.train_scorer")
