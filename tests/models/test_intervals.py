"""Intervals of a model: what a file may say of its calibration, and the bounds of images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from p2pzoo.models.intervals import BoundsNetwork, Calibration, make_interval
from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader
from p2pzoo.utils.errors import DamagedFile

FILE = Path("model.safetensors")
GOOD = {
    "level": 0.8, "factor": 1.5, "samples": 1, "test_mode": "eval", "blocks": 7, "images": ["a"], "data": {},
    "metric": "intervals:interval-coverage",
}  # fmt: skip


def calibration(**values):
    return Calibration.parse({"calibration": {**GOOD, **values}}, FILE)


class Bounded(nn.Module):
    """Bounds around a convolution of 3 × 3, one of them a constant away."""

    def __init__(self, out_channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, out_channels, 3, padding=1), nn.Dropout(0.5))

    def forward(self, x):
        return self.layers(x).tanh()

    def interval(self, x):
        return self(x) - 0.1, self(x) + 0.2


def build(G=None, calibrated=None, precision="fp32", **header):
    of_file = {
        "in_channels": 3, "out_channels": 3, "size": [8, 8], "test_mode": "eval", "run": "none", "size_divisor": 1,
        "generator": {"use": "small", "params": {}}, **header,
    }  # fmt: skip
    return Model(G or Bounded(), ModelHeader.parse(of_file, FILE), torch.device("cpu"), precision, calibrated)


def photo(height=20, width=30):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_calibration_is_read_as_it_was_written():
    read = calibration()
    assert Calibration.parse({"calibration": json.loads(json.dumps(read.as_json()))}, FILE) == read
    assert read.as_json() == GOOD
    assert Calibration.parse({}, FILE) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("factor", float("nan")), ("factor", float("inf")), ("factor", -1.0), ("factor", 1e9), ("factor", "1"),
        ("level", 0.0), ("level", 1.0), ("level", float("nan")), ("samples", 0), ("samples", 10**9), ("samples", 1.5),
        ("blocks", 0), ("test_mode", "train"), ("images", ["x" * 10**4]), ("images", 3), ("data", []), ("metric", None),
    ],
)  # fmt: skip
def test_a_hostile_calibration_is_refused_by_its_key(key, value):
    with pytest.raises(DamagedFile, match=rf"^model.safetensors: its header is damaged: calibration\.{key}.*: "):
        calibration(**{key: value})


@pytest.mark.parametrize("whole", [None, [], "x", {}, {"level": 0.8}])
def test_what_is_no_calibration_is_refused(whole):
    with pytest.raises(DamagedFile, match="its header is damaged: calibration"):
        Calibration.parse({"calibration": whole}, FILE)


def test_widening_keeps_the_middle_and_is_monotone_and_within_images():
    lower, upper = torch.tensor([-0.5, 0.9]), torch.tensor([0.1, 0.9])
    before = None
    for factor in (0.0, 0.5, 1.0, 3.0, 256.0):
        low, high = calibration(factor=factor).widen(lower, upper)
        assert (low >= -1).all()
        assert (high <= 1).all()
        if before:
            assert (low <= before[0]).all()
            assert (high >= before[1]).all()
        before = low, high
    assert torch.equal(low, torch.tensor([-1.0, -1.0])), "some λ covers everything, whatever the bounds are"
    low, high = calibration(factor=1.0).widen(lower, upper)
    torch.testing.assert_close(low[0], torch.tensor(-0.5 - 2 / 255))
    torch.testing.assert_close((low[0] + high[0]) / 2, torch.tensor(-0.2))


@pytest.mark.parametrize(("dtype", "limits"), [("uint8", (0, 255)), ("uint16", (0, 65535)), ("float32", (-3.0, 5.0))])
def test_stored_bounds_are_rounded_outwards(dtype, limits):
    bounds = np.sort(np.random.default_rng(0).uniform(-1, 1, (4, 5, 2)).astype(np.float32), axis=2)
    interval = make_interval(bounds, calibration(factor=0.3), dtype, limits)
    assert interval.lower.dtype == interval.upper.dtype == dtype
    low, high = (each.double().numpy() for each in calibration(factor=0.3).widen(*torch.from_numpy(bounds).chunk(2, 2)))
    scale = (limits[1] - limits[0]) / 2
    rounding = 0 if dtype != "float32" else 1e-6
    assert (interval.lower <= ((low + 1) * scale + limits[0]).clip(*limits) + rounding).all()
    assert (interval.upper >= ((high + 1) * scale + limits[0]).clip(*limits) - rounding).all()
    assert interval.width.shape == (4, 5)
    np.testing.assert_allclose(interval.width, (high - low)[..., 0], atol=1e-6)


def test_the_interval_of_an_image_is_the_generators_widened():
    model = build(calibrated=calibration(factor=1.0))
    image = photo()
    interval = model.interval(image)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        y_hat = Bounded().eval()(x)[0].permute(1, 2, 0).numpy()
    assert (np.abs(interval.lower - ((y_hat - 0.1 - 2 / 255).clip(-1, 1) + 1) * 127.5) <= 1.01).all()
    assert (np.abs(interval.upper - ((y_hat + 0.2 + 2 / 255).clip(-1, 1) + 1) * 127.5) <= 1.01).all()
    assert (interval.lower <= model.translate(image)).all()


def test_samples_have_no_interval_in_tiles():
    model = build(calibrated=calibration(samples=3))
    with pytest.raises(ValueError, match="those of 3 samples, which differ from tile to tile: leave out the tile"):
        model.interval(photo(40, 50), tile=24)


def test_in_tiles_the_interval_is_that_of_the_whole_image():
    model = build(calibrated=calibration(), y_dtype="float32", y_range=[-1.0, 1.0])
    whole, tiled = model.interval(photo(40, 50)), model.interval(photo(40, 50), tile=24, overlap=8)
    for one, other in zip(whole, tiled, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


class TestSamples:
    def test_the_bounds_are_the_smallest_and_the_largest(self):
        G, x = Bounded().train(), torch.rand(1, 3, 8, 8)
        torch.manual_seed(1)
        lower, upper = BoundsNetwork(G, 5)(x).chunk(2, 1)
        torch.manual_seed(1)
        samples = torch.stack([G(x) for _ in range(5)])
        assert torch.equal(lower, samples.amin(0))
        assert torch.equal(upper, samples.amax(0))

    def test_they_follow_the_image_and_the_seed(self):
        model = build(calibrated=calibration(samples=4, test_mode="paper"), test_mode="paper")
        first, again, other = model.interval(photo()), model.interval(photo()), model.interval(photo(), seed=1)
        assert np.array_equal(first.lower, again.lower)
        assert not np.array_equal(first.lower, other.lower)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: build(), r"no calibration.*`p2pzoo calibrate MODEL --level 0.8`"),
        (lambda: build(calibrated=calibration(test_mode="paper")), "calibrated in test mode paper, not eval"),
        (lambda: build(calibrated=calibration(), precision="bf16"), "calibrated in fp32, not in bf16"),
        (lambda: build(nn.Conv2d(3, 3, 1), calibration()), "for a generator with bounds of its own"),
        (
            lambda: build(Bounded(2), calibration(), in_channels=1, out_channels=2, x_encoding="L", y_encoding="ab"),
            "colours that are joined",
        ),
    ],
)
def test_a_model_without_intervals_says_why(model, message):
    with pytest.raises(ValueError, match=message):
        model().interval(photo())
