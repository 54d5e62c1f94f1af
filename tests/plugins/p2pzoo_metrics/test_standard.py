"""fid and lpips: what they refuse, and their numbers with fake networks in place of torch-fidelity's."""

import inspect
import sys

import fake_fidelity
import numpy as np
import pytest
import torch
from p2pzoo_metrics import standard
from p2pzoo_metrics.distances import frechet_distance
from p2pzoo_metrics.standard import FID, LPIPS

from p2pzoo.plugin.batch import Batch
from p2pzoo.utils.errors import UserError

both = pytest.mark.parametrize(("metric", "name"), [(FID, "fid"), (LPIPS, "lpips")])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty folder in place of torch hub's."""
    return fake_fidelity.replace_hub(monkeypatch, tmp_path)


@pytest.fixture
def package(monkeypatch):
    """A package torch_fidelity with the fake networks."""
    fake_fidelity.install_package(monkeypatch)


@pytest.fixture
def weights(hub, monkeypatch):
    """Weights files in torch hub's folder, {constant: digest}."""
    return fake_fidelity.write_weights(monkeypatch, hub)


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape)).float() / 127.5 - 1


def measure(metric, y_hat, y):
    return metric.measure(Batch(x=y, y=y, ids=tuple(map(str, range(len(y))))), y_hat)


def refusal(metric):
    with pytest.raises(UserError) as caught:
        metric(None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@both
def test_without_torch_fidelity_the_error_says_what_to_install(metric, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert refusal(metric) == f"{name} needs torch-fidelity: pip install 'p2pzoo[fidelity]'"


@both
def test_without_weights_the_error_names_the_url_and_the_folder(metric, name, package, hub):
    message = refusal(metric)
    assert message.startswith(f"{name} needs weights, and p2pzoo does not download them: put https://")
    assert message.endswith(f".pth into {hub}")


@both
def test_damaged_weights_are_refused(metric, name, package, hub, weights):
    for file in hub.iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert "is damaged, or another file" in refusal(metric)


@both
def test_a_pickle_of_more_than_tensors_is_refused(metric, name, package, hub, monkeypatch):
    torch.save({"weight": print}, hub / "unsafe.pth")
    for constant in ("INCEPTION", "VGG16"):
        monkeypatch.setattr(standard, constant, "https://example.org/unsafe.pth")
    assert "cannot be read safely as weights" in refusal(metric)


def test_fid_is_the_frechet_distance_of_the_features_of_8_bit_images(package, weights):
    y_hat, y = noise(6, 3, 8, 8), noise(6, 3, 8, 8, seed=1) / 2
    metric = FID(None)
    statistics = measure(metric, y_hat, y)
    levels = np.rint((y.double().numpy() + 1) * 127.5)
    expected = np.concatenate([levels.mean((2, 3)), levels.std((2, 3), ddof=1)], 1)
    np.testing.assert_allclose(statistics["y"], expected, rtol=1e-5)
    distance = frechet_distance(statistics["y_hat"], statistics["y"])
    assert metric.reduce(statistics) == {"value": distance}
    assert distance > 1
    assert metric.reduce(measure(metric, y, y))["value"] == pytest.approx(0, abs=1e-6)


def resized_features(unit):
    """What the fake network makes of images in [0, 1] that torch resizes."""
    resized = 2 * torch.nn.functional.interpolate(unit, (299, 299), mode="bilinear", align_corners=False) - 1
    return torch.cat([resized.flatten(2).mean(2), resized.flatten(2).std(2)], 1)


def test_fid_of_mmgen_resizes_floats_as_torch_does(package, weights):
    images = (noise(2, 3, 20, 16) + 0.3 / 127.5).clamp(-1, 1)
    seen = measure(FID(None, protocol="mmgen"), images, images)["y"]
    assert torch.allclose(seen, resized_features((images + 1) / 2), atol=1e-6)
    assert "levels" not in FID(None, protocol="mmgen").protocol


def test_fid_of_gan_compression_truncates_as_its_code_does(package, weights):
    """utils/util.py, tensor2im: clip(0, 255), then astype(uint8); of y too, after ToTensor and Normalize in float32."""
    levels = torch.arange(256.0).repeat(3).view(1, 3, 16, 16)
    y_hat = (levels + 0.7) / 127.5 - 1  # 10.7 levels become 10
    metric = FID(None, protocol="gan-compression")
    seen = measure(metric, y_hat, levels / 127.5 - 1)
    y = (levels.numpy() / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    stored = np.clip((y + 1) / np.float32(2) * np.float32(255), 0, 255).astype(np.uint8)
    assert (stored != levels.numpy()).any()
    assert torch.allclose(seen["y_hat"], resized_features(levels / 255), atol=1e-6)
    assert torch.allclose(seen["y"], resized_features(torch.from_numpy(stored).float() / 255), atol=1e-6)
    assert metric.protocol["levels"] == "truncated"


def test_lpips_is_the_mean_of_the_images_distances(package, weights):
    y = noise(3, 3, 8, 8) / 2
    shift = torch.tensor([0.0, 10.0, 20.0])[:, None, None, None] / 127.5
    statistics = measure(LPIPS(None), y + shift, y)
    np.testing.assert_allclose(statistics["distance"], [0, 10, 20], atol=1e-5)
    assert LPIPS(None).reduce(statistics)["value"] == pytest.approx(10)


def test_the_protocols_name_the_weights(package, weights):
    assert FID(None).protocol["weights"] == f"sha256:{weights['INCEPTION']}"
    assert LPIPS(None).protocol["weights"] == [f"sha256:{weights[name]}" for name in ("VGG16", "LPIPS_HEADS")]


@both
def test_nan_in_an_image_gives_nan(metric, name, package, weights):
    broken = noise(3, 3, 8, 8)
    broken[1, 0, 3, 3] = float("nan")
    assert np.isnan(metric(None).reduce(measure(metric(None), broken, noise(3, 3, 8, 8)))["value"])


@both
def test_only_rgb_is_accepted(metric, name, package, weights):
    with pytest.raises(UserError, match=rf"{name} takes RGB \(3 channels\) images, and these have 1"):
        measure(metric(None), torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))


def test_the_real_torch_fidelity_has_what_is_used_of_it():
    """Its networks are downloads: the other tests replace the package."""
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    lpips = pytest.importorskip("torch_fidelity.sample_similarity_lpips")
    extractor, similarity = inception.FeatureExtractorInceptionV3, lpips.SampleSimilarityLPIPS
    inspect.signature(extractor).bind("inception", ["2048"], feature_extractor_weights_path="weights.pth")
    inspect.signature(similarity).bind("lpips")
    assert "self.Conv2d_1a_3x3 =" in inspect.getsource(extractor)
    assert (inception.URL_INCEPTION_V3, lpips.URL_VGG16_LPIPS) == (standard.INCEPTION, standard.LPIPS_HEADS)
