"""FCN-score and label accuracy against a matrix counted pixel by pixel, as in the authors' evaluator."""

import hashlib
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from p2pzoo_metrics.confusion import class_scores, confusion_matrix
from p2pzoo_metrics.levels import to_levels
from p2pzoo_metrics.scorer import FCN8s, Scorer, enlarge_photo, measure_scorer, save_scorer
from p2pzoo_metrics.segmentation import FCNScore, LabelAccuracy

from p2pzoo import config
from p2pzoo.data import Store
from p2pzoo.models.safetensors_io import load_tensors, save_tensors
from p2pzoo.plugin.batch import Batch, Pair
from p2pzoo.plugin.protocols import Metric
from p2pzoo.runs.evaluate import build_metrics, build_protocol, find_missing_metrics, hash_protocol
from p2pzoo.runs.results import write_results
from p2pzoo.runs.run_folder import locate_run
from p2pzoo.utils.errors import UserError

CLASSES = ("sea", "land", "ice")
PALETTE = ((0, 0, 255), (0, 255, 0), (255, 255, 255))
NETWORK = {"backbone": "tf_efficientnet_lite0", "stages": 6, "channels": 3, "enlarge": 1, "mean": 127.0, "std": 128.0}


class Painted:
    """Photos y that show each class in its palette colour, with their labels: a perfect scorer makes no mistake."""

    x_range = y_range = (0.0, 255.0)
    classes, palette = CLASSES, PALETTE

    def __init__(self, labels, **more):
        self.labels = labels
        vars(self).update(more)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        y = np.array(PALETTE, np.uint8)[np.minimum(self.labels[index], 2)]
        return Pair(str(index), y, y, self.labels[index])


class Mislabelled(Painted):
    """Photos whose labels are wrong everywhere."""

    def __getitem__(self, index):
        pair = super().__getitem__(index)
        return Pair(pair.id, pair.x, pair.y, (pair.labels + 1) % 3)


class ColourScorer:
    """Replaces a trained scorer: predicts the class whose palette colour dominates a pixel."""

    def __init__(self, path=None):
        self.path, self.classes, self.digest = path, list(CLASSES), "sha256:0"
        self.header = {"self_check": {"pixel_accuracy": 0.9, "class_iou": 0.5}}

    def classify(self, photo, size):
        red, green, blue = enlarge_photo(photo, size)[0]
        return torch.where(red > 127, 2, torch.where(green > blue, 1, 0))


def batch_of(dataset):
    pairs = [dataset[i] for i in range(len(dataset))]
    y = torch.from_numpy(np.stack([pair.y for pair in pairs])).permute(0, 3, 1, 2) / 127.5 - 1
    labels = torch.from_numpy(np.stack([pair.labels for pair in pairs]).astype(np.int64))
    return Batch(y, y, tuple(pair.id for pair in pairs), labels)


def random_labels(seed=0, images=3, side=8, classes=3):
    return np.random.default_rng(seed).integers(0, classes, (images, side, side)).astype(np.uint8)


def by_the_evaluator(labels, predicted, classes):
    """fast_hist and get_scores of phillipi/pix2pix, scripts/eval_cityscapes/util.py, pixel by pixel."""
    matrix = np.zeros((classes, classes))
    for true_class, predicted_class in zip(np.ravel(labels), np.ravel(predicted), strict=True):
        if 0 <= true_class < classes:
            matrix[true_class, predicted_class] += 1
    accuracy = sum(matrix[c, c] for c in range(classes)) / matrix.sum()
    per_class = [matrix[c, c] / (matrix[c].sum() + 1e-12) for c in range(classes)]
    iou = [matrix[c, c] / (matrix[c].sum() + matrix[:, c].sum() - matrix[c, c] + 1e-12) for c in range(classes)]
    return matrix, {"value": accuracy, "class_accuracy": np.mean(per_class), "class_iou": np.mean(iou)}


@pytest.fixture
def colour_scorer(monkeypatch):
    monkeypatch.setattr("p2pzoo_metrics.segmentation.Scorer", ColourScorer)


@pytest.fixture
def untrained(tmp_path):
    """The file of an untrained scorer: it predicts the first class everywhere."""
    path = tmp_path / "scorer.safetensors"
    torch.manual_seed(0)
    header = {"network": NETWORK, "classes": list(CLASSES), "trained_on": {}}
    save_scorer(path, FCN8s(**NETWORK, classes=3), {**header, "self_check": {"pixel_accuracy": 0.0, "class_iou": 0.0}})
    return path


def papers_numbers(metric, statistics):
    """The three numbers of the paper, without the one that says what the same answer everywhere reaches."""
    return {name: value for name, value in metric.reduce(statistics).items() if name != "largest_class"}


class TestMatrix:
    def test_by_hand(self):
        labels = torch.tensor([[0, 0, 0], [1, 1, 255]])
        predicted = torch.tensor([[0, 0, 1], [1, 0, 2]])
        matrix = confusion_matrix(labels, predicted, 3)
        assert matrix.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
        zero = class_scores(matrix, scored=[0, 1, 2], absent="zero")
        assert zero == pytest.approx(
            {"value": 3 / 5, "class_accuracy": (2 / 3 + 1 / 2) / 3, "class_iou": (1 / 2 + 1 / 3) / 3}
        )
        skip = class_scores(matrix, scored=[0, 1, 2], absent="skip")
        assert skip == pytest.approx(
            {"value": 3 / 5, "class_accuracy": (2 / 3 + 1 / 2) / 2, "class_iou": (1 / 2 + 1 / 3) / 2}
        )

    @settings(max_examples=60, deadline=None)
    @given(st.data(), st.integers(1, 6))
    def test_counts_equal_those_of_the_authors_evaluator(self, data, classes):
        size = data.draw(st.integers(1, 30))
        labels = data.draw(st.lists(st.sampled_from([*range(classes), classes, 255, -1]), min_size=size, max_size=size))
        predicted = data.draw(st.lists(st.integers(0, classes - 1), min_size=size, max_size=size))
        if not any(0 <= label < classes for label in labels):
            labels[0] = 0
        matrix, numbers = by_the_evaluator(labels, predicted, classes)
        result = confusion_matrix(torch.tensor([labels]), torch.tensor([predicted]), classes)
        assert result.dtype == torch.int64
        np.testing.assert_array_equal(result, matrix)
        assert class_scores(result, scored=range(classes), absent="zero") == pytest.approx(numbers, abs=1e-12)

    def test_an_unscored_class_is_omitted_from_the_means_only(self):
        matrix = torch.tensor([[4, 0, 0], [0, 2, 2], [1, 1, 2]])
        result = class_scores(matrix, scored=[0, 1], absent="zero")
        assert result == pytest.approx(
            {"value": 8 / 12, "class_accuracy": (1 + 1 / 2) / 2, "class_iou": (4 / 5 + 2 / 5) / 2}
        )

    def test_without_a_counted_pixel_the_number_is_nan(self):
        assert math.isnan(class_scores(torch.zeros(3, 3), scored=[0, 1, 2], absent="zero")["value"])


class TestFCNScore:
    @pytest.fixture(autouse=True)
    def _colour_scorer(self, colour_scorer):
        pass

    def test_real_photos_score_1_with_a_perfect_scorer(self):
        dataset = Painted(random_labels())
        metric = FCNScore(dataset, weights="any")
        statistics = metric.measure(batch_of(dataset), batch_of(dataset).y)
        assert isinstance(metric, Metric)
        assert papers_numbers(metric, statistics) == pytest.approx({"value": 1, "class_accuracy": 1, "class_iou": 1})

    def test_numbers_come_from_one_matrix_of_all_images(self):
        dataset, other = Painted(random_labels(1)), Painted(random_labels(2))
        metric = FCNScore(dataset, weights="any")
        statistics = metric.measure(batch_of(dataset), batch_of(other).y)
        assert statistics["confusion"].shape == (3, 3, 3)
        for matrix, labels, predicted in zip(statistics["confusion"], dataset.labels, other.labels, strict=True):
            np.testing.assert_array_equal(matrix, by_the_evaluator(labels, predicted, 3)[0])
        result = papers_numbers(metric, statistics)
        assert result == pytest.approx(by_the_evaluator(dataset.labels, other.labels, 3)[1])
        assert all(type(value) is float for value in result.values())

    def test_pixels_with_an_ignored_label_are_not_counted(self):
        labels = random_labels()
        labels[:, :4] = 255
        dataset = Painted(labels)
        y_hat = batch_of(dataset).y.clone()
        y_hat[:, :, :4] = -1
        assert FCNScore(dataset, weights="any").measure(batch_of(dataset), y_hat)["confusion"].sum() == 3 * 4 * 8

    @pytest.mark.parametrize(("absent", "accuracy"), [("zero", 2 / 3), ("skip", 1)])
    def test_absent_classes_enter_the_means_as_the_recipe_sets(self, absent, accuracy):
        dataset = Painted(random_labels(classes=2))
        metric = FCNScore(dataset, weights="any", absent=absent)
        result = papers_numbers(metric, metric.measure(batch_of(dataset), batch_of(dataset).y))
        assert result == pytest.approx({"value": 1, "class_accuracy": accuracy, "class_iou": accuracy})

    def test_unscored_classes_are_in_the_protocol_and_not_in_the_means(self):
        dataset = Painted(random_labels(), unscored=("ice",))
        metric = FCNScore(dataset, weights="any")
        assert metric.protocol["unscored"] == ["ice"]
        all_sea = torch.full((3, 3, 8, 8), -1.0)
        all_sea[:, 2] = 1
        result = metric.reduce(metric.measure(batch_of(dataset), all_sea))
        assert result["class_accuracy"] == pytest.approx(1 / 2)  # mean of sea and land, not of three classes

    def test_labels_are_never_resized_and_small_images_are_enlarged_to_them(self):
        labels = np.kron(random_labels(side=2), np.ones((8, 16), np.uint8))
        labels[:, 0] = 255  # in the labels' own resolution
        dataset = Painted(labels)
        batch = batch_of(dataset)
        small = batch_of(Painted(random_labels(side=2))).y
        result = FCNScore(dataset, weights="any").measure(batch, small)["confusion"]
        assert result.sum() == 3 * 15 * 32
        by_hand = torch.nn.functional.interpolate((small + 1) * 127.5, (16, 32), mode="bilinear", align_corners=False)
        red, green, blue = by_hand.unbind(1)
        predicted = np.where(red > 127, 2, np.where(green > blue, 1, 0))
        np.testing.assert_array_equal(result.sum(0), by_the_evaluator(labels, predicted, 3)[0])

    def test_translations_are_scored_as_8_bit_images(self):
        values = torch.linspace(-1.2, 1.2, 999)
        stored = np.clip(np.floor((values.double().numpy() + 1) * 127.5 + 0.5), 0, 255)
        assert np.abs(to_levels(values).numpy() - stored).max() <= 1  # halves may round up or down
        assert set(to_levels(values).tolist()) == set(range(256))

    def test_a_translation_with_nan_is_refused(self):
        dataset = Painted(random_labels())
        with pytest.raises(UserError, match="fcn_score: a translation holds values that are nan"):
            FCNScore(dataset, weights="any").measure(batch_of(dataset), torch.full((3, 3, 8, 8), math.nan))

    def test_does_not_depend_on_how_images_are_batched(self):
        dataset, other = Painted(random_labels(1)), Painted(random_labels(2))
        metric, batch, y_hat = FCNScore(dataset, weights="any"), batch_of(dataset), batch_of(other).y
        parts = [
            metric.measure(
                Batch(batch.x[i : i + 1], batch.y[i : i + 1], ("",), batch.labels[i : i + 1]), y_hat[i : i + 1]
            )
            for i in range(3)
        ]
        one_batch = metric.measure(batch, y_hat)["confusion"]
        assert torch.equal(torch.cat([part["confusion"] for part in parts]), one_batch)


class TestSelfCheck:
    def test_a_scorer_that_misreads_real_photos_gives_no_number(self, colour_scorer):
        dataset = Mislabelled(random_labels())
        metric = FCNScore(dataset, weights="any")
        for _ in range(2):  # a second call is refused, too
            with pytest.raises(UserError, match=r"misreads the real photos.*pixel_accuracy 0\.000 \(at least 0\.9\)"):
                metric.measure(batch_of(dataset), batch_of(dataset).y)

    @pytest.mark.parametrize("name", ["pixel_accuracy", "class_iou"])
    def test_each_threshold_is_checked(self, colour_scorer, name):
        labels = random_labels()
        dataset = Painted(labels)
        metric = FCNScore(dataset, weights="any")
        metric._scorer.header["self_check"] = {"pixel_accuracy": 0.5, "class_iou": 0.5, name: 1.01}
        with pytest.raises(UserError, match=rf"{name} 1\.000 \(at least 1\.01\)"):
            metric.measure(batch_of(dataset), batch_of(dataset).y)

    def test_it_runs_once_for_equal_photos(self, colour_scorer, monkeypatch):
        calls = []
        monkeypatch.setattr("p2pzoo_metrics.scorer._measured", {})
        monkeypatch.setattr(
            "p2pzoo_metrics.scorer.measure_scorer", lambda *args: calls.append(1) or measure_scorer(*args)
        )
        metrics = [FCNScore(Painted(random_labels()), weights="any") for _ in range(2)]
        assert calls == []  # construction is cheap
        for metric in metrics * 2:
            metric.measure(batch_of(metric._dataset), batch_of(metric._dataset).y)
        assert calls == [1]
        metric = FCNScore(Painted(random_labels(seed=1)), weights="any")
        metric.measure(batch_of(metric._dataset), batch_of(metric._dataset).y)
        assert calls == [1, 1], "other photos"

    def test_classes_without_pixels_do_not_lower_the_scorers_numbers(self):
        result = measure_scorer(ColourScorer(), Painted(random_labels(classes=2)))
        assert result == pytest.approx({"pixel_accuracy": 1, "class_accuracy": 1, "class_iou": 1})


class TestScorerFile:
    def test_has_a_header_and_weights_in_half_precision(self, untrained):
        tensors, header = load_tensors(untrained)
        assert header["classes"] == list(CLASSES)
        assert {t.dtype for t in tensors.values()} == {torch.float16, torch.int64}  # int64: counters of batch norms
        assert untrained.stat().st_size < 5_000_000

    def test_predicts_as_the_saved_network_does(self, tmp_path):
        torch.manual_seed(1)
        network = FCN8s(**NETWORK, classes=3)
        for score in network.scores:
            torch.nn.init.normal_(score.weight)
        with torch.no_grad():
            for tensor in network.state_dict().values():
                tensor.copy_(tensor.half())
        path = tmp_path / "scorer.safetensors"
        save_scorer(path, network, {"network": NETWORK, "classes": list(CLASSES), "self_check": {}})
        photo = (torch.rand(3, 40, 48) * 255).round()
        predicted = Scorer(path).classify(photo, (40, 48))
        assert torch.equal(predicted, network.eval()(photo[None]).argmax(1)[0])
        assert predicted.unique().numel() > 1
        enlarged_first = torch.nn.functional.interpolate(photo[None], (80, 96), mode="bilinear")
        assert torch.equal(Scorer(path).classify(photo, (80, 96)), network(enlarged_first).argmax(1)[0])

    def test_loading_draws_no_random_numbers(self, untrained):
        before = torch.get_rng_state()
        Scorer(untrained).classify(torch.zeros(3, 32, 32), (32, 32))
        assert torch.equal(torch.get_rng_state(), before)

    def test_scores_come_from_strides_8_16_and_32(self):
        network = FCN8s(**NETWORK, classes=3).eval()
        maps = network.maps(torch.zeros(1, 3, 96, 160))
        assert [features.shape[2:] for features in maps] == [(12, 20), (6, 10), (3, 5)]
        with torch.no_grad():  # a constant at one stride reaches every pixel, and the three are added
            for bias, score in zip((1.0, 2.0, 4.0), network.scores, strict=True):
                score.bias[1] = bias
        assert torch.allclose(network(torch.zeros(1, 3, 96, 160))[0, 1], torch.tensor(7.0))

    @pytest.mark.parametrize("enlarge", [1, 2])
    def test_photos_too_small_for_the_coarsest_stride_are_refused(self, enlarge):
        network = FCN8s(**{**NETWORK, "enlarge": enlarge}, classes=3).eval()
        network(torch.zeros(1, 3, 32 // enlarge, 40))
        with pytest.raises(UserError, match=f"from {32 // enlarge} px a side up"):
            network(torch.zeros(1, 3, 32 // enlarge - 1, 40))

    def test_another_file_is_refused(self, untrained, tmp_path):
        with pytest.raises(UserError, match="no such file"):
            FCNScore(Painted(random_labels()), weights=tmp_path / "none.safetensors")
        content = untrained.read_bytes()
        untrained.write_bytes(content[:-100])
        with pytest.raises(UserError, match="not a complete p2pzoo file"):
            FCNScore(Painted(random_labels()), weights=untrained)

    def test_a_model_of_the_zoo_is_refused_as_a_scorer(self, tmp_path):
        save_tensors(tmp_path / "model.safetensors", {"w": torch.zeros(1)}, {"format": 1})
        with pytest.raises(UserError, match=r"not a scorer.*p2pzoo train-scorer RECIPE -o FILE"):
            Scorer(tmp_path / "model.safetensors")

    def test_a_scorer_of_other_classes_is_refused(self, untrained):
        with pytest.raises(
            UserError, match="scorer's classes are sea, land, ice, the dataset's are a, b, c: train one"
        ):
            FCNScore(Painted(random_labels(), classes=("a", "b", "c")), weights=untrained)

    def test_without_one_the_error_names_the_command_that_trains_it(self):
        with pytest.raises(UserError, match=r"no scorer.*p2pzoo train-scorer RECIPE -o FILE"):
            FCNScore(Painted(random_labels()))

    def test_a_dataset_may_have_its_own(self, untrained):
        dataset = Painted(random_labels(side=32), scorer=untrained)
        metric = FCNScore(dataset)
        result = metric.measure(batch_of(dataset), batch_of(dataset).y)["confusion"]
        assert result[:, :, 0].sum() == 3 * 32 * 32

    def test_a_recipe_may_name_another_scorer_of_the_dataset(self, untrained, tmp_path):
        other = tmp_path / "other.safetensors"
        other.write_bytes(untrained.read_bytes())
        dataset = Painted(random_labels(side=32), scorer=tmp_path / "none.safetensors", scorers={"other": other})
        assert FCNScore(dataset, scorer="other").protocol == FCNScore(dataset, weights=other).protocol

    @pytest.mark.parametrize(
        ("parameters", "scorers", "message"),
        [
            ({"scorer": "robst"}, {"robust": Path("a")}, "the dataset has no scorer 'robst': did you mean 'robust'"),
            (
                {"scorer": "robust"},
                {},
                "the dataset has no scorer 'robust'; none of its scorers has a name: use weights",
            ),
            (
                {"scorer": "a", "weights": Path("b")},
                {},
                'weights = "b" and scorer = "a": each names a scorer; remove one',
            ),
        ],
    )
    def test_a_scorer_that_the_dataset_lacks_is_refused(self, parameters, scorers, message):
        with pytest.raises(UserError, match=re.escape(message)):
            FCNScore(Painted(random_labels(), scorers=scorers), **parameters)

    def test_photos_of_other_channels_are_refused(self, untrained):
        with pytest.raises(UserError, match="takes photos of 3 channels, and these have 1"):
            Scorer(untrained).classify(torch.zeros(1, 32, 32), (32, 32))

    def test_a_dataset_without_classes_is_refused(self):
        dataset = Painted(random_labels(), classes=None)
        with pytest.raises(UserError, match="fcn_score needs classes"):
            FCNScore(dataset)


class TestLabelAccuracy:
    def test_by_hand(self):
        labels = np.array([[[0, 1], [2, 255]]], np.uint8)
        dataset = Painted(labels)
        near = torch.tensor([[[10, 0, 200], [90, 200, 90]], [[100, 120, 255], [0, 0, 0]]]) / 127.5 - 1
        metric = LabelAccuracy(dataset)
        statistics = metric.measure(batch_of(dataset), near.permute(2, 0, 1)[None])
        # the third pixel, (100, 120, 255), is nearer to blue (0, 0, 255) than to white
        assert statistics["confusion"][0].tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
        assert papers_numbers(metric, statistics) == pytest.approx(
            {"value": 2 / 3, "class_accuracy": 2 / 3, "class_iou": (1 / 2 + 1) / 3}
        )
        assert metric.reduce(statistics)["largest_class"] == pytest.approx(1 / 3)  # each class has one of three pixels

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**32 - 1))
    def test_predicts_the_nearest_colour_of_the_palette(self, seed):
        dataset, rng = Painted(random_labels(seed, 2, 5)), np.random.default_rng(seed)
        images = rng.integers(0, 256, (2, 3, 5, 5))
        predicted = np.empty((2, 5, 5), int)
        for image, row, column in np.ndindex(2, 5, 5):
            pixel = images[image, :, row, column].tolist()
            distances = [sum((pixel[k] - colour[k]) ** 2 for k in range(3)) for colour in PALETTE]
            predicted[image, row, column] = distances.index(min(distances))
        metric = LabelAccuracy(dataset)
        statistics = metric.measure(batch_of(dataset), torch.from_numpy(images).float() / 127.5 - 1)
        matrix, numbers = by_the_evaluator(dataset.labels, predicted, 3)
        np.testing.assert_array_equal(statistics["confusion"].sum(0), matrix)
        assert papers_numbers(metric, statistics) == pytest.approx(numbers)
        assert metric.reduce(statistics)["largest_class"] == pytest.approx(matrix.sum(1).max() / matrix.sum())

    def test_real_label_maps_score_1(self):
        dataset = Painted(random_labels())
        metric = LabelAccuracy(dataset)
        result = papers_numbers(metric, metric.measure(batch_of(dataset), batch_of(dataset).y))
        assert result == pytest.approx({"value": 1, "class_accuracy": 1, "class_iou": 1})

    def test_finer_labels_take_the_class_of_the_nearest_pixel(self):
        coarse = random_labels(side=2)
        fine = Painted(np.kron(coarse, np.ones((3, 4), np.uint8)))
        metric = LabelAccuracy(fine)
        result = metric.reduce(metric.measure(batch_of(fine), batch_of(Painted(coarse)).y))
        assert result["value"] == 1

    def test_images_that_are_not_rgb_and_datasets_without_palette_are_refused(self):
        dataset = Painted(random_labels())
        with pytest.raises(UserError, match=r"ŷ has 1 channel$"):
            LabelAccuracy(dataset).measure(batch_of(dataset), torch.zeros(3, 1, 8, 8))
        dataset.palette = None
        with pytest.raises(UserError, match="needs a palette"):
            LabelAccuracy(dataset)

    def test_the_protocol_holds_the_palette(self):
        assert LabelAccuracy(Painted(random_labels())).protocol["palette"] == [list(colour) for colour in PALETTE]


class TestProtocol:
    """The protocol that the zoo stores with each number, and the checks before training."""

    STORE = Store(Painted(random_labels()))

    def experiment(self, *overrides):
        overrides = ('metrics.score.use="fcn_score"', *overrides)
        experiment = config.load("zoo:base.toml", "smoke", overrides)
        return replace(experiment, metrics={"score": experiment.metrics["score"]})

    def test_holds_the_digest_of_the_weights_and_not_their_path(self, untrained, tmp_path):
        result = build_protocol(self.experiment(f"metrics.score.weights={untrained}"), "score", self.STORE)
        assert result["metric"]["weights"] == f"sha256:{hashlib.sha256(untrained.read_bytes()).hexdigest()}"
        assert result["metric"]["absent"] == "zero"
        elsewhere = shutil.copy(untrained, tmp_path / "elsewhere.safetensors")
        assert build_protocol(self.experiment(f"metrics.score.weights={elsewhere}"), "score", self.STORE) == result

    def test_a_number_of_other_weights_counts_as_missing(self, untrained, tmp_path):
        experiment = self.experiment(f"metrics.score.weights={untrained}")
        run = locate_run(experiment, tmp_path)
        run.folder.mkdir(parents=True)
        stored = build_protocol(experiment, "score", self.STORE)
        protocols = {"measured": {"score": hash_protocol(stored)}, "protocols": {hash_protocol(stored): stored}}
        write_results(run.results, {"id": "1", "recipe": "r", "profile": "p", "seed": 0, "metrics": {}, **protocols})
        assert find_missing_metrics(experiment, run, self.STORE) == []
        header = {"network": NETWORK, "classes": list(CLASSES), "self_check": {}}
        save_scorer(untrained, FCN8s(**NETWORK, classes=3), header)
        assert find_missing_metrics(experiment, run, self.STORE) == ["score"]

    def test_a_missing_scorer_is_refused_before_training(self, untrained):
        build_metrics(self.experiment(f"metrics.score.weights={untrained}"), self.STORE, ["score"])
        with pytest.raises(UserError, match=r"-s metrics\.score.*  none\.safetensors: no such file"):
            build_metrics(self.experiment("metrics.score.weights=none.safetensors"), self.STORE, ["score"])
        with pytest.raises(UserError, match=r"-s metrics\.score.*  this dataset has no scorer for its y"):
            build_metrics(self.experiment(), self.STORE, ["score"])
