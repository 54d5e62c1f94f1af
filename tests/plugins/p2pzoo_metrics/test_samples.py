"""crps, coverage and diversity: against their definitions, closed forms, and what must not change a number."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from p2pzoo_metrics import samples as module
from p2pzoo_metrics.features import KID, Diversity
from p2pzoo_metrics.images import L1
from p2pzoo_metrics.samples import CRPS, Coverage
from safetensors.torch import save_file

from p2pzoo.plugin import schema
from p2pzoo.plugin.batch import Batch
from p2pzoo.utils.errors import UserError

LEVEL = 1 / 127.5
PHOTOS = SimpleNamespace(y_range=(0, 255))


def batch_of(y):
    return Batch(x=torch.zeros_like(y), y=y, ids=tuple(map(str, range(len(y)))))


def measure(metric, y, y_hats):
    return metric.measure(batch_of(y), y_hats)


def score(metric, y, y_hats):
    return metric.reduce(measure(metric, y, y_hats))


def random_images(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, shape)).float()


def crps_by_definition(y, samples):
    """The double loop over pairs, in float64: samples (M, C, H, W)."""
    y, samples = y.double(), samples.double()
    count = len(samples)
    error = sum((sample - y).abs() for sample in samples) / count
    pairs = sum((a - b).abs() for a, b in itertools.combinations(samples, 2))
    return (error - pairs / (count * (count - 1))).mean().item()


@st.composite
def images_with_samples(draw):
    """y (1, C, H, W) and samples (1, M, C, H, W); few different values, so that many are equal."""
    count, values = draw(st.integers(2, 7)), draw(st.integers(1, 4))
    level = st.integers(-127, 127).map(lambda value: value / 127)
    y = draw(st.lists(level, min_size=values, max_size=values))
    rows = draw(st.lists(st.lists(level, min_size=values, max_size=values), min_size=count, max_size=count))
    return torch.tensor(y).reshape(1, 1, 1, values), torch.tensor(rows).reshape(1, count, 1, 1, values)


class TestCRPS:
    @pytest.mark.parametrize("count", [2, 3, 8, 19])
    def test_the_sorted_form_is_the_double_loop(self, count):
        y, y_hats = random_images(2, 3, 5, 7), random_images(2, count, 3, 5, 7, seed=1)
        expected = np.mean([crps_by_definition(*each) for each in zip(y, y_hats, strict=True)])
        assert score(CRPS(None, samples=count), y, y_hats)["value"] == pytest.approx(expected, rel=1e-6)

    def test_parts_change_nothing(self, monkeypatch):
        y, y_hats = random_images(2, 3, 5, 7), random_images(2, 5, 3, 5, 7, seed=1)
        expected = [score(metric(PHOTOS, samples=5), y, y_hats) for metric in (CRPS, Coverage)]
        monkeypatch.setattr(module, "PART", 4)  # the last part has one value
        for metric, numbers in zip((CRPS, Coverage), expected, strict=True):
            assert score(metric(PHOTOS, samples=5), y, y_hats) == pytest.approx(numbers, rel=1e-6)

    @pytest.mark.parametrize(("mean", "deviation", "y"), [(0.0, 0.3, 0.0), (0.1, 0.2, -0.4), (-0.2, 0.05, 0.7)])
    def test_of_a_gaussian_it_is_the_closed_form(self, mean, deviation, y):
        """Gneiting and Raftery 2007 (doi:10.1198/016214506000001437), Eq. 21."""
        z = (y - mean) / deviation
        density, share = math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi), (1 + math.erf(z / math.sqrt(2))) / 2
        expected = deviation * (z * (2 * share - 1) + 2 * density - 1 / math.sqrt(math.pi))
        generator = torch.Generator().manual_seed(0)
        y_hats = mean + deviation * torch.randn(1, 19, 1, 200, 200, generator=generator)
        assert score(CRPS(None), torch.full((1, 1, 200, 200), y), y_hats)["value"] == pytest.approx(expected, abs=1e-3)

    @pytest.mark.parametrize("count", [2, 19])
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_of_equal_samples_it_has_the_bits_of_l1(self, count, memory_format):
        y, y_hat = (
            random_images(3, 3, 9, 11),
            random_images(3, 3, 9, 11, seed=1).contiguous(memory_format=memory_format),
        )
        y_hats = y_hat[:, None].expand(-1, count, -1, -1, -1)
        assert score(CRPS(None, samples=count), y, y_hats)["value"] == score(L1(None), y, y_hat)["value"]
        assert measure(CRPS(None, samples=count), y, y_hats)["spread"].tolist() == [0, 0, 0]
        assert score(CRPS(None, samples=count), y, y[:, None].expand(-1, count, -1, -1, -1))["value"] == 0

    @given(images_with_samples())
    def test_it_is_never_negative_and_at_most_the_error(self, example):
        y, y_hats = example
        statistics = measure(CRPS(None, samples=y_hats.shape[1]), y, y_hats)
        value = (statistics["error"] - statistics["spread"]).item()
        assert -1e-6 <= value <= statistics["error"].item() + 1e-6

    @given(images_with_samples(), st.randoms(use_true_random=False))
    def test_the_order_of_samples_changes_nothing(self, example, random):
        y, y_hats = example
        order = list(range(y_hats.shape[1]))
        random.shuffle(order)
        for metric in (CRPS(None, samples=len(order)), Coverage(PHOTOS, samples=len(order))):
            assert score(metric, y, y_hats[:, order]) == pytest.approx(score(metric, y, y_hats), abs=1e-6)

    @given(images_with_samples(), st.floats(-1, 1), st.floats(0.1, 2))
    def test_a_shift_of_all_changes_nothing_and_a_factor_is_one_of_the_score(self, example, shift, factor):
        y, y_hats = example
        metric = CRPS(None, samples=y_hats.shape[1])
        before = score(metric, y, y_hats)
        assert score(metric, y + shift, y_hats + shift) == pytest.approx(before, abs=1e-5)
        scaled = {name: factor * value for name, value in before.items()}
        assert score(metric, factor * y, factor * y_hats) == pytest.approx(scaled, abs=1e-5)

    @given(images_with_samples())
    def test_it_is_the_double_loop_of_any_values(self, example):
        y, y_hats = example
        expected = crps_by_definition(y[0], y_hats[0])
        assert score(CRPS(None, samples=y_hats.shape[1]), y, y_hats)["value"] == pytest.approx(expected, abs=1e-6)

    def test_the_distribution_of_y_scores_better_than_a_narrower_a_wider_and_a_shifted_one(self):
        generator = torch.Generator().manual_seed(0)
        y, z = (
            0.3 * torch.randn(1, 1, 100, 100, generator=generator),
            torch.randn(1, 19, 1, 100, 100, generator=generator),
        )
        right, narrow, wide, shifted = (
            score(CRPS(None), y, shift + deviation * z)["value"]
            for deviation, shift in ((0.3, 0), (0.1, 0), (0.6, 0), (0.3, 0.2))
        )
        assert right < min(narrow, wide, shifted)

    def test_nan_is_not_hidden(self):
        y, y_hats = random_images(2, 1, 4, 4), random_images(2, 3, 1, 4, 4, seed=1)
        y_hats[1, 0, 0, 0, 0] = float("nan")
        for metric in (CRPS(None, samples=3), Coverage(PHOTOS, samples=3)):
            for values in measure(metric, y, y_hats).values():
                assert values.isnan().tolist() == [False, True]


class TestCoverage:
    @pytest.mark.parametrize(
        ("count", "level", "share"), [(19, None, 0.9), (19, 0.5, 0.5), (9, None, 0.8), (2, None, 1 / 3)]
    )
    def test_of_samples_with_the_distribution_of_y_it_is_nominal(self, count, level, share):
        drawn = random_images(1, count + 1, 1, 200, 200)
        metric = Coverage(PHOTOS, samples=count, level=level)
        assert metric.protocol["nominal"] == pytest.approx(share, abs=1e-6)
        assert score(metric, drawn[:, 0], drawn[:, 1:])["value"] == pytest.approx(share, abs=0.015)  # levels: 0.004

    def test_the_ends_of_the_interval_belong_to_it(self):
        y_hats = torch.tensor([0.2, 0.0, 0.1]).reshape(1, 3, 1, 1, 1).expand(-1, -1, -1, 1, 4)
        y = torch.tensor([0.0, 0.2, 0.2 + 2 * LEVEL, -2 * LEVEL]).reshape(1, 1, 1, 4)
        numbers = score(Coverage(PHOTOS, samples=3), y, y_hats)
        assert numbers == {"value": 0.5, "width": pytest.approx(0.2, abs=LEVEL)}

    def test_values_are_rounded_as_in_a_file(self):
        """A G that ends in tanh never reaches white, which is 1."""
        y_hats = torch.tensor([0.998, 0.997]).reshape(1, 2, 1, 1, 1)
        assert score(Coverage(PHOTOS, samples=2), torch.ones(1, 1, 1, 1), y_hats) == {"value": 1, "width": 0}

    @pytest.mark.parametrize("limits", [(-1000, 2000), (0, 65535), (0.0, 1.0), (-40.0, 60.0), (0, 1)])
    @pytest.mark.parametrize("deviation", [0.003, 0.0005, 0.0])
    def test_measured_values_are_not_rounded(self, limits, deviation):
        """Of 16 bit, floats and physical units: steps of 8 bit hide that a model is too sure."""
        generator = torch.Generator().manual_seed(0)
        mean = torch.rand(1, 1, 64, 64, generator=generator) * 1.6 - 0.8
        y = mean + 0.002 * torch.randn(mean.shape, generator=generator)
        y_hats = mean[:, None] + deviation * torch.randn(1, 19, 1, 64, 64, generator=generator)
        metric = Coverage(SimpleNamespace(y_range=limits))
        smallest, largest = y_hats.amin(1), y_hats.amax(1)
        numbers = score(metric, y, y_hats)
        assert numbers["value"] == pytest.approx(((smallest <= y) & (y <= largest)).double().mean().item(), abs=1e-6)
        assert numbers["width"] == pytest.approx((largest - smallest).double().mean().item(), abs=1e-6)
        assert metric.protocol == {"nominal": 0.9}

    def test_measured_values_are_clipped_to_their_range_as_y_is(self):
        y_hats = torch.tensor([1.1, 1.2]).reshape(1, 2, 1, 1, 1)
        metric = Coverage(SimpleNamespace(y_range=(-1000, 2000)), samples=2)
        assert score(metric, torch.ones(1, 1, 1, 1), y_hats) == {"value": 1, "width": 0}

    @pytest.mark.parametrize(
        "dataset",
        [
            SimpleNamespace(y_range=(0, 255)),
            SimpleNamespace(y_range=(0.0, 255.0)),
            SimpleNamespace(y_range=(0, 65534), y_encoding="ab"),  # metrics see the photo
            SimpleNamespace(y_range=(0.0, 1.0), y_encoding="one-hot"),  # metrics see the colours of the classes
        ],
    )
    def test_images_of_8_bit_are_measured_as_before(self, dataset):
        y, y_hats = random_images(1, 3, 20, 20), random_images(1, 19, 3, 20, 20, seed=1)
        for level in (None, 0.5):
            metric = Coverage(dataset, level=level)
            assert metric.protocol["levels"] == 256
            before = {"value": 0.9058333039283752, "width": 1.7979999780654907}
            before = before if level is None else {"value": 0.5016666650772095, "width": 1.00247061252594}
            assert score(metric, y, y_hats) == before

    def test_of_y_itself_it_is_everything_with_no_width(self):
        y = random_images(2, 3, 8, 8)
        assert score(Coverage(PHOTOS), y, y[:, None].expand(-1, 19, -1, -1, -1)) == {"value": 1, "width": 0}

    def test_a_wider_level_has_a_wider_interval_that_covers_more(self):
        y, y_hats = random_images(1, 3, 20, 20), random_images(1, 19, 3, 20, 20, seed=1)
        numbers = [score(Coverage(PHOTOS, level=level), y, y_hats) for level in (0.1, 0.5, 0.9)]
        for name in ("value", "width"):
            values = [each[name] for each in numbers]
            assert values == sorted(values)
        assert numbers[-1] == score(Coverage(PHOTOS), y, y_hats)

    @pytest.mark.parametrize(("count", "level"), [(19, 0.85), (3, 0.9), (2, 0.01), (5, 0.99)])
    def test_a_level_that_so_many_samples_do_not_have_is_refused_with_those_that_they_have(self, count, level):
        with pytest.raises(
            UserError, match=f"coverage: {count} samples have no interval of level {level:g}: set level"
        ):
            Coverage(PHOTOS, samples=count, level=level)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(timm.create_model("test_efficientnet", pretrained=False).state_dict(), path)
    return {"network": "test_efficientnet", "weights": str(path)}


class TestDiversity:
    def test_it_is_the_mean_distance_of_the_features_that_kid_compares(self, network):
        y, y_hats = random_images(2, 3, 16, 16), random_images(2, 4, 3, 16, 16, seed=1)
        features = [measure(KID(None, **network), samples, samples)["y_hat"].double() for samples in y_hats]
        expected = [np.mean([(a - b).norm() for a, b in itertools.combinations(rows, 2)]) for rows in features]
        distances = measure(Diversity(None, samples=4, **network), y, y_hats)["distance"]
        np.testing.assert_allclose(distances, expected, rtol=0.01)  # kid keeps its features in half precision
        assert score(Diversity(None, samples=4, **network), y, y_hats)["value"] == pytest.approx(
            distances.mean().item()
        )

    def test_it_has_the_network_of_kid_in_its_protocol(self, network):
        assert Diversity(None, **network).protocol == KID(None, **network).protocol

    def test_equal_samples_are_not_passed_through_the_network(self, network, monkeypatch):
        metric = Diversity(None, samples=4, **network)
        monkeypatch.setattr(metric, "_prepare", lambda images: pytest.fail("the network is used"))
        y = random_images(2, 3, 16, 16)
        assert score(metric, y, y[:, None].expand(-1, 4, -1, -1, -1)) == {"value": 0}

    def test_samples_that_are_further_from_each_other_score_higher(self, network):
        y, noise = random_images(1, 3, 16, 16), random_images(1, 4, 3, 16, 16, seed=1)
        near, far = (
            score(Diversity(None, samples=4, **network), y, y[:, None] + w * noise)["value"] for w in (0.1, 0.5)
        )
        assert 0 < near < far


@pytest.mark.parametrize("metric", [CRPS, Coverage, Diversity])
def test_fewer_than_two_samples_are_refused(metric):
    with pytest.raises(schema.InvalidParameters, match="samples"):
        schema.check_params(metric, {"samples": 1})
    assert schema.check_params(metric, {})["samples"] == 19
