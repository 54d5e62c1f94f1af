"""FCN-score and label accuracy against a matrix that is counted pixel by pixel, as in the authors' evaluator."""

import hashlib
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from p2pzoo_metrics.confusion import class_scores, confusion
from p2pzoo_metrics.levels import levels
from p2pzoo_metrics.scorer import FCN8s, Scorer, enlarged, measured, save
from p2pzoo_metrics.segmentation import FCNScore, LabelAccuracy

from p2pzoo import config
from p2pzoo.data import Store
from p2pzoo.models.safetensors_io import load_tensors, save_tensors
from p2pzoo.plugin.batch import Batch, Pair
from p2pzoo.plugin.protocols import Metric
from p2pzoo.runs.evaluate import metrics_of, missing, protocol, protocol_hash
from p2pzoo.runs.results import write_results
from p2pzoo.runs.run_folder import run_for
from p2pzoo.utils.errors import UserError

CLASSES = ("sea", "land", "ice")
PALETTE = ((0, 0, 255), (0, 255, 0), (255, 255, 255))
NETWORK = {"backbone": "tf_efficientnet_lite0", "stages": 6, "channels": 3, "enlarge": 1, "mean": 127.0, "std": 128.0}


class Painted:
    """Photos y that show each class in its colour, beside their labels: what can be read without a fault."""

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
    """Photos whose labels say something else."""

    def __getitem__(self, index):
        pair = super().__getitem__(index)
        return Pair(pair.id, pair.x, pair.y, (pair.labels + 1) % 3)


class BySight:
    """Stands in for a trained scorer: takes each pixel for the class whose colour it has most of."""

    def __init__(self, path=None):
        self.path, self.classes, self.digest = path, list(CLASSES), "sha256:0"
        self.header = {"self_check": {"pixel_accuracy": 0.9, "class_iou": 0.5}}

    def classify(self, photo, size):
        red, green, blue = enlarged(photo, size)[0]
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
    for truth, told in zip(np.ravel(labels), np.ravel(predicted), strict=True):
        if 0 <= truth < classes:
            matrix[truth, told] += 1
    accuracy = sum(matrix[c, c] for c in range(classes)) / matrix.sum()
    per_class = [matrix[c, c] / (matrix[c].sum() + 1e-12) for c in range(classes)]
    iou = [matrix[c, c] / (matrix[c].sum() + matrix[:, c].sum() - matrix[c, c] + 1e-12) for c in range(classes)]
    return matrix, {"value": accuracy, "class_accuracy": np.mean(per_class), "class_iou": np.mean(iou)}


@pytest.fixture
def by_sight(monkeypatch):
    monkeypatch.setattr("p2pzoo_metrics.segmentation.Scorer", BySight)


@pytest.fixture
def untrained(tmp_path):
    """The file of a scorer that has learned nothing: it takes everything for the first class."""
    path = tmp_path / "scorer.safetensors"
    torch.manual_seed(0)
    header = {"network": NETWORK, "classes": list(CLASSES), "trained_on": {}}
    save(path, FCN8s(**NETWORK, classes=3), {**header, "self_check": {"pixel_accuracy": 0.0, "class_iou": 0.0}})
    return path


class TestMatrix:
    def test_by_hand(self):
        labels = torch.tensor([[0, 0, 0], [1, 1, 255]])
        told = torch.tensor([[0, 0, 1], [1, 0, 2]])
        matrix = confusion(labels, told, 3)
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
    def test_as_the_authors_evaluator_counts(self, data, classes):
        size = data.draw(st.integers(1, 30))
        labels = data.draw(st.lists(st.sampled_from([*range(classes), classes, 255, -1]), min_size=size, max_size=size))
        told = data.draw(st.lists(st.integers(0, classes - 1), min_size=size, max_size=size))
        if not any(0 <= label < classes for label in labels):
            labels[0] = 0
        matrix, numbers = by_the_evaluator(labels, told, classes)
        found = confusion(torch.tensor([labels]), torch.tensor([told]), classes)
        assert found.dtype == torch.int64
        np.testing.assert_array_equal(found, matrix)
        assert class_scores(found, scored=range(classes), absent="zero") == pytest.approx(numbers, abs=1e-12)

    def test_a_class_that_is_not_scored_is_left_out_of_the_means_only(self):
        matrix = torch.tensor([[4, 0, 0], [0, 2, 2], [1, 1, 2]])
        found = class_scores(matrix, scored=[0, 1], absent="zero")
        assert found == pytest.approx(
            {"value": 8 / 12, "class_accuracy": (1 + 1 / 2) / 2, "class_iou": (4 / 5 + 2 / 5) / 2}
        )

    def test_without_a_pixel_that_counts_there_is_no_number(self):
        assert math.isnan(class_scores(torch.zeros(3, 3), scored=[0, 1, 2], absent="zero")["value"])


class TestFCNScore:
    @pytest.fixture(autouse=True)
    def _by_sight(self, by_sight):
        pass

    def test_of_real_photos_is_that_of_the_scorer_itself(self):
        dataset = Painted(random_labels())
        metric = FCNScore(dataset, weights="any")
        statistics = metric.measure(batch_of(dataset), batch_of(dataset).y)
        assert isinstance(metric, Metric)
        assert metric.reduce(statistics) == pytest.approx({"value": 1, "class_accuracy": 1, "class_iou": 1})

    def test_is_read_off_one_matrix_of_all_images(self):
        dataset, other = Painted(random_labels(1)), Painted(random_labels(2))
        metric = FCNScore(dataset, weights="any")
        statistics = metric.measure(batch_of(dataset), batch_of(other).y)
        assert statistics["confusion"].shape == (3, 3, 3)
        for matrix, labels, told in zip(statistics["confusion"], dataset.labels, other.labels, strict=True):
            np.testing.assert_array_equal(matrix, by_the_evaluator(labels, told, 3)[0])
        found = metric.reduce(statistics)
        assert found == pytest.approx(by_the_evaluator(dataset.labels, other.labels, 3)[1])
        assert all(type(value) is float for value in found.values())

    def test_pixels_that_are_labelled_as_to_be_ignored_do_not_count(self):
        labels = random_labels()
        labels[:, :4] = 255
        dataset = Painted(labels)
        wrong_there = batch_of(dataset).y.clone()
        wrong_there[:, :, :4] = -1
        assert FCNScore(dataset, weights="any").measure(batch_of(dataset), wrong_there)["confusion"].sum() == 3 * 4 * 8

    @pytest.mark.parametrize(("absent", "accuracy"), [("zero", 2 / 3), ("skip", 1)])
    def test_absent_classes_are_as_the_recipe_says(self, absent, accuracy):
        dataset = Painted(random_labels(classes=2))
        metric = FCNScore(dataset, weights="any", absent=absent)
        found = metric.reduce(metric.measure(batch_of(dataset), batch_of(dataset).y))
        assert found == pytest.approx({"value": 1, "class_accuracy": accuracy, "class_iou": accuracy})

    def test_classes_that_the_dataset_does_not_score_are_told_in_the_protocol(self):
        dataset = Painted(random_labels(), unscored=("ice",))
        metric = FCNScore(dataset, weights="any")
        assert metric.protocol["unscored"] == ["ice"]
        all_sea = torch.full((3, 3, 8, 8), -1.0)
        all_sea[:, 2] = 1
        found = metric.reduce(metric.measure(batch_of(dataset), all_sea))
        assert found["class_accuracy"] == pytest.approx(1 / 2)  # of sea and land, not of three

    def test_labels_are_never_resized_and_small_images_are_enlarged_to_them(self):
        labels = np.kron(random_labels(side=2), np.ones((8, 16), np.uint8))
        labels[:, 0] = 255  # in the labels' own resolution
        dataset = Painted(labels)
        batch = batch_of(dataset)
        small = batch_of(Painted(random_labels(side=2))).y
        found = FCNScore(dataset, weights="any").measure(batch, small)["confusion"]
        assert found.sum() == 3 * 15 * 32
        by_hand = torch.nn.functional.interpolate((small + 1) * 127.5, (16, 32), mode="bilinear", align_corners=False)
        red, green, blue = by_hand.unbind(1)
        told = np.where(red > 127, 2, np.where(green > blue, 1, 0))
        np.testing.assert_array_equal(found.sum(0), by_the_evaluator(labels, told, 3)[0])

    def test_translations_are_judged_as_8_bit_pictures(self):
        values = torch.linspace(-1.2, 1.2, 999)
        stored = np.clip(np.floor((values.double().numpy() + 1) * 127.5 + 0.5), 0, 255)
        assert np.abs(levels(values).numpy() - stored).max() <= 1  # halves may go either way
        assert set(levels(values).tolist()) == set(range(256))

    def test_a_translation_that_is_no_number_is_refused_rather_than_scored(self):
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
        whole = metric.measure(batch, y_hat)["confusion"]
        assert torch.equal(torch.cat([part["confusion"] for part in parts]), whole)


class TestSelfCheck:
    def test_a_scorer_that_misreads_real_photos_gives_no_number(self, by_sight):
        dataset = Mislabelled(random_labels())
        metric = FCNScore(dataset, weights="any")
        for _ in range(2):  # asking again does not help
            with pytest.raises(UserError, match=r"misreads the real photos.*pixel_accuracy 0\.000 \(at least 0\.9\)"):
                metric.measure(batch_of(dataset), batch_of(dataset).y)

    @pytest.mark.parametrize("name", ["pixel_accuracy", "class_iou"])
    def test_each_threshold_is_held_to(self, by_sight, name):
        labels = random_labels()
        dataset = Painted(labels)
        metric = FCNScore(dataset, weights="any")
        metric._scorer.header["self_check"] = {"pixel_accuracy": 0.5, "class_iou": 0.5, name: 1.01}
        with pytest.raises(UserError, match=rf"{name} 1\.000 \(at least 1\.01\)"):
            metric.measure(batch_of(dataset), batch_of(dataset).y)

    def test_it_is_made_once(self, by_sight, monkeypatch):
        asked = []
        monkeypatch.setattr("p2pzoo_metrics.segmentation.measured", lambda *given: asked.append(1) or measured(*given))
        dataset = Painted(random_labels())
        metric = FCNScore(dataset, weights="any")
        assert asked == []  # constructing is cheap
        for _ in range(2):
            metric.measure(batch_of(dataset), batch_of(dataset).y)
        assert asked == [1]

    def test_classes_that_the_split_lacks_are_not_held_against_the_scorer(self):
        found = measured(BySight(), Painted(random_labels(classes=2)))
        assert found == pytest.approx({"pixel_accuracy": 1, "class_accuracy": 1, "class_iou": 1})


class TestScorerFile:
    def test_says_what_it_is_and_holds_half_precision(self, untrained):
        tensors, header = load_tensors(untrained)
        assert header["classes"] == list(CLASSES)
        assert {t.dtype for t in tensors.values()} == {torch.float16, torch.int64}  # int64: counters of batch norms
        assert untrained.stat().st_size < 5_000_000

    def test_judges_as_the_network_that_was_saved(self, tmp_path):
        torch.manual_seed(1)
        network = FCN8s(**NETWORK, classes=3)
        for score in network.scores:
            torch.nn.init.normal_(score.weight)
        with torch.no_grad():
            for tensor in network.state_dict().values():
                tensor.copy_(tensor.half())
        path = tmp_path / "scorer.safetensors"
        save(path, network, {"network": NETWORK, "classes": list(CLASSES), "self_check": {}})
        photo = (torch.rand(3, 40, 48) * 255).round()
        told = Scorer(path).classify(photo, (40, 48))
        assert torch.equal(told, network.eval()(photo[None]).argmax(1)[0])
        assert told.unique().numel() > 1
        enlarged_first = torch.nn.functional.interpolate(photo[None], (80, 96), mode="bilinear")
        assert torch.equal(Scorer(path).classify(photo, (80, 96)), network(enlarged_first).argmax(1)[0])

    def test_loading_draws_no_random_number(self, untrained):
        before = torch.get_rng_state()
        Scorer(untrained).classify(torch.zeros(3, 32, 32), (32, 32))
        assert torch.equal(torch.get_rng_state(), before)

    def test_scores_come_from_strides_8_16_and_32(self):
        network = FCN8s(**NETWORK, classes=3).eval()
        maps = network.maps(torch.zeros(1, 3, 96, 160))
        assert [each.shape[2:] for each in maps] == [(12, 20), (6, 10), (3, 5)]
        with torch.no_grad():  # a constant at one stride alone reaches every pixel, and the three add up
            for share, score in zip((1.0, 2.0, 4.0), network.scores, strict=True):
                score.bias[1] = share
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
        whole = untrained.read_bytes()
        untrained.write_bytes(whole[:-100])
        with pytest.raises(UserError, match="not a whole p2pzoo file"):
            FCNScore(Painted(random_labels()), weights=untrained)

    def test_a_model_of_the_zoo_is_not_taken_for_a_scorer(self, tmp_path):
        save_tensors(tmp_path / "model.safetensors", {"w": torch.zeros(1)}, {"format": 1})
        with pytest.raises(UserError, match=r"not a scorer.*train_scorer"):
            Scorer(tmp_path / "model.safetensors")

    def test_a_scorer_of_other_classes_is_refused(self, untrained):
        with pytest.raises(UserError, match="a scorer of the classes sea, land, ice; the dataset's are a, b, c"):
            FCNScore(Painted(random_labels(), classes=("a", "b", "c")), weights=untrained)

    def test_without_one_the_command_that_makes_it_is_named(self):
        with pytest.raises(UserError, match=r"no scorer.*python -m p2pzoo_metrics\.train_scorer RECIPE -o FILE"):
            FCNScore(Painted(random_labels()))

    def test_a_dataset_may_bring_its_own(self, untrained):
        dataset = Painted(random_labels(side=32), scorer=untrained)
        metric = FCNScore(dataset)
        found = metric.measure(batch_of(dataset), batch_of(dataset).y)["confusion"]
        assert found[:, :, 0].sum() == 3 * 32 * 32

    def test_photos_of_other_channels_are_refused(self, untrained):
        with pytest.raises(UserError, match="judges photos of 3 channels, these have 1"):
            Scorer(untrained).classify(torch.zeros(1, 32, 32), (32, 32))

    def test_without_classes_nothing_is_judged(self):
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
        assert metric.reduce(statistics) == pytest.approx(
            {"value": 2 / 3, "class_accuracy": 2 / 3, "class_iou": (1 / 2 + 1) / 3}
        )

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**32 - 1))
    def test_takes_the_nearest_colour_of_the_palette(self, seed):
        dataset, rng = Painted(random_labels(seed, 2, 5)), np.random.default_rng(seed)
        levels = rng.integers(0, 256, (2, 3, 5, 5))
        told = np.empty((2, 5, 5), int)
        for image, row, column in np.ndindex(2, 5, 5):
            far = [sum((int(levels[image, k, row, column]) - colour[k]) ** 2 for k in range(3)) for colour in PALETTE]
            told[image, row, column] = far.index(min(far))
        metric = LabelAccuracy(dataset)
        statistics = metric.measure(batch_of(dataset), torch.from_numpy(levels).float() / 127.5 - 1)
        matrix, numbers = by_the_evaluator(dataset.labels, told, 3)
        np.testing.assert_array_equal(statistics["confusion"].sum(0), matrix)
        assert metric.reduce(statistics) == pytest.approx(numbers)

    def test_of_the_real_label_maps_is_1(self):
        dataset = Painted(random_labels())
        metric = LabelAccuracy(dataset)
        found = metric.reduce(metric.measure(batch_of(dataset), batch_of(dataset).y))
        assert found == pytest.approx({"value": 1, "class_accuracy": 1, "class_iou": 1})

    def test_finer_labels_take_the_class_of_the_nearest_pixel(self):
        coarse = random_labels(side=2)
        fine = Painted(np.kron(coarse, np.ones((3, 4), np.uint8)))
        metric = LabelAccuracy(fine)
        found = metric.reduce(metric.measure(batch_of(fine), batch_of(Painted(coarse)).y))
        assert found["value"] == 1

    def test_what_it_cannot_compare_is_refused(self):
        dataset = Painted(random_labels())
        with pytest.raises(UserError, match="ŷ has 1 channels"):
            LabelAccuracy(dataset).measure(batch_of(dataset), torch.zeros(3, 1, 8, 8))
        dataset.palette = None
        with pytest.raises(UserError, match="needs a palette"):
            LabelAccuracy(dataset)

    def test_the_protocol_holds_the_palette(self):
        assert LabelAccuracy(Painted(random_labels())).protocol["palette"] == [list(colour) for colour in PALETTE]


class TestProtocol:
    """What the zoo keeps beside each number, and what it refuses before training."""

    STORE = Store(Painted(random_labels()))

    def experiment(self, *overrides):
        overrides = ('metrics.score.use="fcn_score"', *overrides)
        experiment = config.load("zoo:base.toml", "smoke", overrides)
        return replace(experiment, metrics={"score": experiment.metrics["score"]})

    def test_holds_the_weights_by_their_digest_and_not_by_their_place(self, untrained, tmp_path):
        told = protocol(self.experiment(f"metrics.score.weights={untrained}"), "score", self.STORE)
        assert told["metric"]["weights"] == f"sha256:{hashlib.sha256(untrained.read_bytes()).hexdigest()}"
        assert told["metric"]["absent"] == "zero"
        elsewhere = shutil.copy(untrained, tmp_path / "elsewhere.safetensors")
        assert protocol(self.experiment(f"metrics.score.weights={elsewhere}"), "score", self.STORE) == told

    def test_a_number_by_other_weights_is_missing(self, untrained, tmp_path):
        experiment = self.experiment(f"metrics.score.weights={untrained}")
        run = run_for(experiment, tmp_path)
        run.folder.mkdir(parents=True)
        told = protocol(experiment, "score", self.STORE)
        kept = {"measured": {"score": protocol_hash(told)}, "protocols": {protocol_hash(told): told}}
        write_results(run.results, {"id": "1", "recipe": "r", "profile": "p", "seed": 0, "metrics": {}, **kept})
        assert missing(experiment, run, self.STORE) == []
        save(untrained, FCN8s(**NETWORK, classes=3), {"network": NETWORK, "classes": list(CLASSES), "self_check": {}})
        assert missing(experiment, run, self.STORE) == ["score"]

    def test_a_scorer_that_is_not_there_is_refused_before_training(self, untrained):
        metrics_of(self.experiment(f"metrics.score.weights={untrained}"), self.STORE, ["score"])
        with pytest.raises(UserError, match=r"-s metrics\.score.*  none\.safetensors: no such file"):
            metrics_of(self.experiment("metrics.score.weights=none.safetensors"), self.STORE, ["score"])
        with pytest.raises(UserError, match=r"-s metrics\.score.*  no scorer for the y of this dataset"):
            metrics_of(self.experiment(), self.STORE, ["score"])
