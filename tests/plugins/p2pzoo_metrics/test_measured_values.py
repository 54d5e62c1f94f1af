"""mae and pearson against numpy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from p2pzoo_metrics.measured_values import MAE, Pearson
from p2pzoo_photos.colorize import AB_RANGE

from p2pzoo.images.color_spaces import Encodings
from p2pzoo.plugin.batch import Batch
from p2pzoo.runs.evaluate import measure
from p2pzoo.utils.errors import UserError

COLOURS_OF_LAB = SimpleNamespace(y_range=AB_RANGE, x_encoding="L", y_encoding="ab", classes=None, palette=None)
LABELS = SimpleNamespace(classes=SimpleNamespace(colours=((0, 0, 0), (90, 30, 60))))
ONE_HOT = SimpleNamespace(y_range=(0.0, 1.0), y_encoding="one-hot", y_labels=LABELS, classes=("a", "b"))
DATA = SimpleNamespace(y_range=(-1000.0, 2000.0), classes=("air", "soft", "bone"))


def images(seed, shape=(3, 1, 6, 5)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def batch(y, labels=None):
    return Batch(x=y, y=y, ids=[str(i) for i in range(len(y))], labels=labels, blocks=())


def number(metric, y, y_hat, labels=None, key="value"):
    return metric.reduce(metric.measure(batch(y, labels), y_hat))[key]


class TestMAE:
    def test_it_has_the_units_of_the_data(self):
        y, y_hat = images(0), images(1)
        assert number(MAE(DATA), y, y_hat) == pytest.approx(1500 * (y - y_hat).abs().mean().item(), rel=1e-6)
        assert MAE(DATA).protocol == {"range": [-1000.0, 2000.0]}

    @pytest.mark.parametrize("dataset", [COLOURS_OF_LAB, ONE_HOT])
    def test_of_an_encoded_y_it_has_levels_of_the_rgb_image_that_metrics_see(self, dataset):
        """Colours of Lab are stored from 0 to 65534, and one-hot classes from 0 to 1."""
        x, y, y_hat = images(0), images(1, (3, 2, 6, 5)), images(2, (3, 2, 6, 5))
        metric, stored = MAE(dataset), Batch(x=x, y=y, ids=("0", "1", "2"), labels=None, blocks=())
        rgb = Encodings.of(dataset).to_rgb(x, y, y_hat)
        levels = [(image + 1) * 127.5 for image in rgb[1:]]
        statistics = measure({"mae": metric}, stored, [y_hat], dataset)
        value = metric.reduce({name.removeprefix("mae."): rows for name, rows in statistics.items()})["value"]
        assert value == pytest.approx((levels[0] - levels[1]).abs().mean().item(), rel=1e-5)
        assert metric.protocol == {"range": [0.0, 255.0]}

    def test_only_pixels_of_the_classes_count(self):
        y, y_hat, labels = images(0), images(1), torch.randint(0, 3, (3, 6, 5))
        labels[0] = 0  # no pixel of this image counts
        mask = ((labels == 1) | (labels == 2)).numpy()
        errors = 1500 * (y - y_hat).abs().numpy()[:, 0]
        metric = MAE(DATA, classes=["soft", "bone"])
        assert number(metric, y, y_hat, labels) == pytest.approx(errors[mask].mean(), rel=1e-6)
        assert np.isnan(number(metric, y[:1], y_hat[:1], labels[:1]))

    def test_unknown_classes_and_missing_labels_are_refused(self):
        with pytest.raises(UserError, match="mae: classes: the dataset has no class 'bones': did you mean 'bone'"):
            MAE(DATA, classes=["bones"])
        with pytest.raises(UserError, match="it has no classes; remove the key"):
            MAE(SimpleNamespace(y_range=(0, 1), classes=None), classes=["bone"])
        with pytest.raises(UserError, match="an image has no labels"):
            number(MAE(DATA, classes=["bone"]), images(0), images(1))

    def test_nan_stays(self):
        y_hat = images(1)
        y_hat[0, 0, 0, 0] = float("nan")
        assert np.isnan(number(MAE(DATA), images(0), y_hat))


class TestPearson:
    def test_it_is_that_of_numpy(self):
        y = images(0, (4, 3, 6, 5))
        y_hat = 0.3 * y + 0.1 * images(1, y.shape)
        each = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(y.double(), y_hat.double(), strict=True)]
        assert number(Pearson(None), y, y_hat) == pytest.approx(np.mean(each), rel=1e-9)
        pooled = np.corrcoef(y.double().flatten(), y_hat.double().flatten())[0, 1]
        assert number(Pearson(None), y, y_hat, key="pooled") == pytest.approx(pooled, rel=1e-9)

    def test_brightness_and_contrast_do_not_matter(self):
        y = images(0)
        assert number(Pearson(None), y, 0.2 * y + 0.5) == pytest.approx(1.0)
        assert number(Pearson(None), y, -y) == pytest.approx(-1.0)

    def test_images_with_a_constant_y_are_left_out(self):
        y, y_hat = images(0), images(1)
        expected = number(Pearson(None), y[1:], y_hat[1:])
        y[0] = 0.7
        assert number(Pearson(None), y, y_hat) == pytest.approx(expected)
        assert np.isnan(number(Pearson(None), y[:1], y_hat[:1]))

    def test_a_constant_translation_counts_as_none(self):
        y = images(0)
        y_hat = y.clone()
        y_hat[0] = 0.7
        assert number(Pearson(None), y, y_hat) == pytest.approx(2 / 3)

    def test_nan_stays(self):
        y_hat = images(1)
        y_hat[2, 0, 0, 0] = float("nan")
        assert np.isnan(number(Pearson(None), images(0), y_hat))
