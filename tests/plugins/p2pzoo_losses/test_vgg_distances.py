"""LPIPS and DISTS: equal to a transcription of the papers, and what missing weights say."""

import importlib.metadata
from pathlib import Path

import pytest
import torch
from p2pzoo_losses.vgg_distances import DISTS, LPIPS
from p2pzoo_metrics import standard
from p2pzoo_metrics.vgg_distances import DISTSDistance, LPIPSDistance
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from vgg_weights import NUMBERS, STAGES, write_vgg_weights

from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import StepOutputs
from p2pzoo.utils.errors import UserError

SIZE = (24, 35)
LOSSES = {"lpips": LPIPS, "dists": DISTS}
names = pytest.mark.parametrize("name", LOSSES)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{component: parameters}"""
    written = write_vgg_weights(tmp_path_factory.mktemp("weights"))
    return {name: {key: Path(file) for key, file in each.items()} for name, each in written.items()}


@pytest.fixture(scope="module")
def losses(files):
    return {name: make(3, SIZE, **files[name]) for name, make in LOSSES.items()}


def images(channels=3, count=2, seed=0):
    noise = torch.rand(2, count, channels, *SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return noise[0], 0.6 * noise[0] + 0.4 * noise[1]


def step_outputs(y, y_hat):
    return StepOutputs(Batch(y, y, ("a",) * len(y)), y_hat).for_generator()


# --- transcriptions of the papers, in float64 --------------------------------------------------------------------


def maps_of_vgg(images, files, pool):
    """The output of the last ReLU before each of the five pools."""
    weights = torch.load(files["vgg16"], weights_only=True)
    h, maps = images, []
    for number in NUMBERS:
        if number in (5, 10, 17, 24):
            maps.append(h)
            h = pool(h)
        weight, bias = (weights[f"features.{number}.{part}"].double() for part in ("weight", "bias"))
        h = F.conv2d(h, weight, bias, padding=1).clamp(min=0)
    return [*maps, h]


def by_lpips(y_hat, y, files):
    """Zhang et al., Eq. 1: Σ_l 1/(H_l W_l) Σ_hw ‖w_l ⊙ (ŷ_hw − y_hw)‖², with w² the weights of the file."""
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    maps = [maps_of_vgg((i.double() - mean) / std, files, lambda h: F.max_pool2d(h, 2)) for i in (y_hat, y)]
    weights, total = torch.load(files["weights"], weights_only=True), torch.zeros(len(y)).double()
    for level, (a, b) in enumerate(zip(*maps, strict=True)):
        a, b = (h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10) for h in (a, b))
        total += ((a - b) ** 2 * weights[f"lin{level}.model.1.weight"].double()).sum(1).mean((1, 2))
    return total


def by_dists(y_hat, y, files):
    """Ding et al., §3: similarities of means and structure, after stages with an L2 pool."""
    hanning = torch.tensor([0.5, 1.0, 0.5]).double()
    window = torch.outer(hanning, hanning) / torch.outer(hanning, hanning).sum()

    def pool(h):
        planes = F.pad(h, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2)
        return ((planes**2 * window).sum((4, 5)) + 1e-12).sqrt()

    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    unit = [(i.double() + 1) / 2 for i in (y_hat, y)]
    maps = [[i, *maps_of_vgg((i - mean) / std, files, pool)] for i in unit]
    weights = torch.load(files["weights"], weights_only=True)
    alpha, beta = ([*weights[name].double().flatten().split([3, *STAGES])] for name in ("alpha", "beta"))
    total = torch.zeros(len(y)).double()
    for a, b, alphas, betas in zip(*maps, alpha, beta, strict=True):
        for channel in range(a.shape[1]):
            p, q = a[:, channel].flatten(1), b[:, channel].flatten(1)
            luminance = (2 * p.mean(1) * q.mean(1) + 1e-6) / (p.mean(1) ** 2 + q.mean(1) ** 2 + 1e-6)
            covariance = (p * q).mean(1) - p.mean(1) * q.mean(1)
            structure = (2 * covariance + 1e-6) / (p.var(1, correction=0) + q.var(1, correction=0) + 1e-6)
            total += alphas[channel] * luminance + betas[channel] * structure
    return 1 - total / sum(each.sum() for each in (*alpha, *beta))


TRANSCRIPTIONS = {"lpips": by_lpips, "dists": by_dists}


@names
def test_it_equals_a_transcription_of_the_paper(name, losses, files):
    y, y_hat = images()
    distances = losses[name].distance(y_hat, y)
    expected = TRANSCRIPTIONS[name](y_hat, y, files[name])
    torch.testing.assert_close(distances.double(), expected, atol=1e-5, rtol=1e-5)
    assert losses[name](step_outputs(y, y_hat)).item() == pytest.approx(expected.mean().item(), abs=1e-5)
    assert distances.min() > 1e-3


@names
def test_it_is_0_at_the_target_with_a_finite_gradient_and_larger_elsewhere(name, losses):
    y, y_hat = images()
    for image, least in ((y, 0.0), (torch.zeros_like(y), 1e-3), (-y, 1e-3), (y_hat, 1e-3)):
        image = image.clone().requires_grad_()
        value = losses[name](step_outputs(y, image))
        value.backward()
        assert image.grad.isfinite().all()
        assert value.item() == pytest.approx(0, abs=1e-6) if least == 0 else value.item() > least


@names
def test_gradient_descent_brings_the_translation_closer(name, losses):
    y, y_hat = images()
    y_hat.requires_grad_()
    value = losses[name](step_outputs(y, y_hat))
    value.backward()
    with torch.no_grad():
        nearer = y_hat - 1e-3 * value * y_hat.grad / y_hat.grad.norm() ** 2
        assert losses[name](step_outputs(y, nearer)).item() == pytest.approx(0.999 * value.item(), rel=3e-4)


@names
def test_it_is_computed_in_fp32_under_autocast(name, losses):
    out = step_outputs(*images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = losses[name](out)
    assert half.item() == losses[name](out).item()


class OperationRecorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations.add(str(function))
        return function(*args, **(kwargs or {}))


@names
def test_no_values_are_copied_between_host_and_device(name, losses):
    y, y_hat = images()
    with OperationRecorder() as watched:
        losses[name](step_outputs(y, y_hat.requires_grad_())).backward()
    assert not [each for each in watched.operations if "lift_fresh" in each or "scalar_dense" in each]


@names
def test_grey_images_are_converted_to_rgb(name, files):
    grey, rgb = LOSSES[name](1, SIZE, **files[name]), LOSSES[name](3, SIZE, **files[name])
    y, y_hat = images(channels=1)
    expected = rgb(step_outputs(y.expand(-1, 3, -1, -1), y_hat.expand(-1, 3, -1, -1))).item()
    assert grey(step_outputs(y, y_hat)).item() == pytest.approx(expected)


@names
def test_its_network_is_frozen_and_is_not_saved(name, losses):
    from p2pzoo.models.safetensors_io import loss_tensors

    loss = losses[name].train()
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert not any(part.training for part in loss.distance.modules())
    assert loss_tensors(loss) == {}


@names
def test_building_it_draws_no_random_numbers(name, files):
    before = torch.get_rng_state()
    LOSSES[name](3, SIZE, **files[name])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("channels", "size", "message"), [(2, SIZE, "1 or 3 channels, not 2"), (3, (15, 64), "16 px")])
@names
def test_images_that_do_not_fit_are_an_error(name, channels, size, message, files):
    with pytest.raises(ValueError, match=message):
        LOSSES[name](channels, size, **files[name])


class TestWeights:
    @pytest.fixture
    def hub(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        return tmp_path / "checkpoints"

    def refusal(self, make, *args, **more):
        with pytest.raises(UserError) as caught:
            make(*args, **more)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @names
    def test_without_vgg16_the_error_names_the_url_the_folder_and_the_parameters(self, name, files, hub):
        message = self.refusal(LOSSES[name], 3, SIZE, weights=files[name]["weights"])
        assert message == (
            f"{name} needs weights, and p2pzoo does not download them: put "
            f"https://download.pytorch.org/models/vgg16-397923af.pth into {hub}, or set download = true or vgg16 = FILE"
        )

    @names
    def test_without_the_package_the_error_says_what_to_install(self, name, files, monkeypatch):
        def missing(package):
            raise importlib.metadata.PackageNotFoundError(package)

        monkeypatch.setattr(importlib.metadata, "distribution", missing)
        package = {"lpips": "lpips", "dists": "dists-pytorch"}[name]
        message = self.refusal(LOSSES[name], 3, SIZE, vgg16=files[name]["vgg16"])
        assert f"pip install --no-deps {package}, or set weights = FILE" in message

    @names
    def test_weights_of_an_installed_package_are_found_without_importing_it(self, name, files, tmp_path, monkeypatch):
        member = {"lpips": "lpips/weights/v0.1/vgg.pth", "dists": "DISTS_pytorch/weights.pt"}[name]
        package = {"lpips": "lpips", "dists": "dists_pytorch"}[name]
        file = tmp_path / member
        file.parent.mkdir(parents=True)
        file.write_bytes(files[name]["weights"].read_bytes())
        info = tmp_path / f"{package}-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 0.1\n")
        (info / "RECORD").write_text(f"{member},,\n")
        monkeypatch.syspath_prepend(tmp_path)
        found = LOSSES[name](3, SIZE, vgg16=files[name]["vgg16"])
        y, y_hat = images()
        assert (
            found(step_outputs(y, y_hat)).item() == LOSSES[name](3, SIZE, **files[name])(step_outputs(y, y_hat)).item()
        )

    @names
    def test_vgg16_is_taken_from_torch_hubs_folder(self, name, files, hub, monkeypatch):
        hub.mkdir()
        monkeypatch.setattr(standard, "VGG16", "https://example.org/vgg.pth")
        (hub / "vgg.pth").write_bytes(files[name]["vgg16"].read_bytes())
        assert LOSSES[name](3, SIZE, weights=files[name]["weights"])(step_outputs(*images())) > 0

    def test_other_weights_are_refused_with_the_tensor_that_is_missing(self, files, tmp_path):
        lpips, dists = files["lpips"], files["dists"]
        message = self.refusal(LPIPS, 3, SIZE, weights=dists["weights"], vgg16=dists["vgg16"])
        assert message == f"{dists['weights']}: these are other weights: tensor 'lin0.model.1.weight' is missing"
        message = self.refusal(DISTS, 3, SIZE, weights=dists["weights"], vgg16=lpips["weights"])
        assert message.endswith("these are other weights: tensor 'features.0.weight' is missing")
        torch.save({"alpha": torch.ones(3), "beta": torch.ones(3)}, tmp_path / "short.pt")
        message = self.refusal(DISTS, 3, SIZE, weights=tmp_path / "short.pt", vgg16=dists["vgg16"])
        assert message.endswith("tensor 'alpha' is 3, not 1×1475×1×1")
        assert "no such file" in self.refusal(DISTS, 3, SIZE, weights=Path("missing.pt"), vgg16=dists["vgg16"])

    def test_a_pickle_of_more_than_tensors_is_refused(self, files, tmp_path):
        torch.save({"alpha": print}, tmp_path / "unsafe.pt")
        message = self.refusal(DISTS, 3, SIZE, weights=tmp_path / "unsafe.pt", vgg16=files["dists"]["vgg16"])
        assert "cannot be read safely as weights" in message

    def test_a_recipe_without_weights_is_refused_before_training(self, run, tmp_path, hub):
        answer = run(tmp_path / "runs", "losses.p.use=dists", "losses.p.weights=missing.pt")
        assert answer.exit_code == 2
        assert "missing.pt: no such file" in answer.output
        assert answer.first_step is None


class TestMetric:
    def test_it_is_the_distance_of_images_of_8_bit(self, files):
        metric = standard.DISTS(None, **files["dists"])
        y, y_hat = images(count=3)
        rounded = [((i + 1) * 127.5).round() / 127.5 - 1 for i in (y_hat, y)]
        statistics = metric.measure(Batch(y, y, ("a", "b", "c")), y_hat)
        expected = by_dists(*rounded, files["dists"])
        torch.testing.assert_close(statistics["distance"].double(), expected, atol=1e-5, rtol=1e-5)
        assert metric.reduce(statistics)["value"] == pytest.approx(expected.mean().item(), abs=1e-5)

    def test_its_protocol_names_the_weights_and_no_paths(self, files):
        protocol = standard.DISTS(None, **files["dists"]).protocol
        assert protocol.keys() == {"weights", "vgg16"}
        assert all(len(digest) == 7 + 64 for digest in protocol.values())

    def test_nan_in_an_image_gives_nan_for_this_image(self, files):
        y, y_hat = images(count=3)
        y_hat[1, 0, 3, 3] = float("nan")
        distance = standard.DISTS(None, **files["dists"]).measure(Batch(y, y, ("a", "b", "c")), y_hat)["distance"]
        assert distance.isnan().tolist() == [False, True, False]

    def test_other_channels_are_refused(self, files):
        four = torch.zeros(1, 4, *SIZE)
        with pytest.raises(UserError, match="dists takes"):
            standard.DISTS(None, **files["dists"]).measure(Batch(four, four, ("a",)), four)


def test_the_distances_have_the_same_vgg16(files):
    one, other = LPIPSDistance(**files["lpips"]), DISTSDistance(**files["dists"])
    assert one.vgg16_digest == other.vgg16_digest
    assert all(map(torch.equal, one.vgg16.state_dict().values(), other.vgg16.state_dict().values()))
