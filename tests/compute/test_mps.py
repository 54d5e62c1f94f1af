"""On a simulated Apple device (`fake_mps`), which has no float64 and computes channels-last convolutions wrongly."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import fake_fidelity
import numpy as np
import pytest
import timm
import torch
from fake_mps import MpsTensor, simulated_mps
from safetensors.torch import save_file
from vgg_weights import write_vgg_weights

import p2pzoo
from p2pzoo.compute.engine import Engine, pick_device
from p2pzoo.config.settings import Compute
from p2pzoo.models.intervals import Calibration
from p2pzoo.plugin import Batch
from p2pzoo.plugin.loader import registry

TINY = "test_efficientnet"  # of timm
NEED_FILES = (
    "kid", "frechet", "cmmd", "prdc", "diversity", "perceptual", "fid", "lpips", "dists", "interval-coverage",
)  # fmt: skip
NEED_NO_FILE = sorted({entry.name for entry in registry().of("metric")} - {*NEED_FILES})


def test_the_simulation_refuses_what_the_device_refuses():
    with simulated_mps():
        x = torch.rand(2, 3, 4, 4).to("mps")
        assert (x.device.type, type(x)) == ("mps", MpsTensor)
        for convert in (x.double, lambda: x.to("cpu", torch.float64), lambda: torch.zeros(2, 2).double().to("mps")):
            with pytest.raises(TypeError, match="float64"):
                convert()
        assert x.cpu().double().dtype == torch.float64
        conv = torch.nn.Conv2d(3, 3, 1).to("mps")
        conv(x).sum().backward()
        assert type(conv.weight.grad) is MpsTensor
        with pytest.raises(RuntimeError, match="channels-last"):
            conv(x.contiguous(memory_format=torch.channels_last))
        with pytest.raises(RuntimeError, match="expected all tensors to be on mps, and one is on cpu"):
            conv(x.cpu())
        assert torch.equal((x + torch.tensor(1.0)).cpu(), x.cpu() + 1)  # a number


def test_auto_picks_it_and_keeps_the_usual_memory_format():
    with simulated_mps():
        assert pick_device("auto") == "mps"
        engine = Engine(Compute())
        assert engine.memory_format == torch.contiguous_format
        assert "channels_last" not in engine.describe()["on"]


@pytest.fixture(scope="module")
def on_mps(run, tmp_path_factory):
    """The folder of a run on the device, with every metric that needs no file."""
    runs = tmp_path_factory.mktemp("mps")
    metrics = [f'metrics.more{number}={{use="{name}"}}' for number, name in enumerate(NEED_NO_FILE)]
    with simulated_mps():
        result = run(runs, "compute.device=mps", "train.images=2", "train.ema=0.9", *metrics)
    assert result.exit_code == 0, result.output
    return next(runs.glob("*/*"))


def test_a_run_trains_samples_and_evaluates(on_mps):
    assert (on_mps / "model.safetensors").is_file()
    assert [*(on_mps / "samples").glob("images-*.png")]
    numbers = json.loads((on_mps / "results.json").read_text("utf-8"))["metrics"]
    assert {name for name in numbers if name.startswith("more")} >= {f"more{i}" for i in range(len(NEED_NO_FILE))}
    assert all(math.isfinite(number["value"]) for number in numbers.values())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """{metric: parameters that name its files}"""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(timm.create_model(TINY, pretrained=False).state_dict(), folder / "tiny.safetensors")
    dists = write_vgg_weights(folder)["dists"]
    return {
        "dists": {name: Path(file) for name, file in dists.items()},
        "network": {"network": TINY, "weights": str(folder / "tiny.safetensors")},
    }


def build_metric(name, weights):
    [entry] = [entry for entry in registry().of("metric") if entry.name == name]
    parameters = {"fid": {}, "lpips": {}, "interval-coverage": {}, "dists": weights["dists"]}
    metric = entry.load()(
        SimpleNamespace(y_range=(0, 255), classes=("a", "b")), **parameters.get(name, weights["network"])
    )
    if name == "interval-coverage":
        metric.calibration = Calibration(0.1, 1.0, 1, "eval", 4, (), {}, "intervals:interval-coverage")
    return metric


@pytest.mark.parametrize("name", NEED_FILES)
def test_a_metric_measures_there_what_it_measures_on_a_cpu(name, weights, monkeypatch, tmp_path):
    fake_fidelity.install_package(monkeypatch)
    fake_fidelity.write_weights(monkeypatch, fake_fidelity.replace_hub(monkeypatch, tmp_path))
    y, y_hat = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (0, 1))
    labels = torch.zeros(2, 32, 32, dtype=torch.int64)
    metric = build_metric(name, weights)
    y_hats = torch.stack([y_hat - 0.5, y_hat], 1) if hasattr(metric, "samples") else y_hat
    expected = metric.measure(Batch(y, y, ("0", "1"), labels), y_hats)
    with simulated_mps():
        on_device = [tensor.to("mps") for tensor in (y, labels, y_hats)]
        found = build_metric(name, weights).measure(
            Batch(on_device[0], on_device[0], ("0", "1"), on_device[1]), on_device[2]
        )
        found = {name: values.detach().cpu() for name, values in found.items()}
        assert all(map(math.isfinite, metric.reduce(found).values()))
    assert found.keys() == expected.keys()
    for statistic, values in expected.items():
        torch.testing.assert_close(found[statistic], values, rtol=1e-4, atol=1e-4)


def test_its_results_are_those_of_a_cpu(on_mps, run, tmp_path):
    same = ("compute.lowering=false", "compute.fused_adam=false", "compute.channels_last=false")
    overrides = ("train.images=2", "train.ema=0.9", *same)
    assert run(tmp_path, "compute.device=cpu", *overrides).exit_code == 0
    [folder] = tmp_path.glob("*/*")
    ours, theirs = (p2pzoo.load(each, device="cpu").G.state_dict() for each in (on_mps, folder))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["paper", "eval"])
def test_it_translates_as_a_cpu_does(on_mps, mode):
    photo = np.random.default_rng(0).integers(0, 256, (40, 72, 3), dtype=np.uint8)
    expected = p2pzoo.load(on_mps, device="cpu").translate(photo, test_mode=mode).astype(int)
    with simulated_mps():
        model = p2pzoo.load(on_mps, device="mps")
        assert np.abs(model.translate(photo, test_mode=mode).astype(int) - expected).max() <= 1
        assert model.translate(photo, test_mode="eval", tile=32).shape == photo.shape


def test_it_draws_samples_with_mean_and_spread(on_mps):
    photo = np.zeros((16, 24, 3), np.uint8)
    with simulated_mps():
        samples = p2pzoo.load(on_mps, device="mps").samples(photo, 3)
        assert len(list(samples)) == 3
    assert (samples.mean.shape, samples.spread.shape) == ((16, 24, 3), (16, 24))


@pytest.mark.parametrize("name", ["kid", "perceptual", "diversity"])
def test_a_metric_moves_no_network_that_others_share(name, weights):
    """Networks are read once in a process. The losses copy them, and try them on the CPU when they are built."""
    y = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y_hats = torch.stack([y.flip(-1), y], 1) if name == "diversity" else y.flip(-1)
    with simulated_mps():
        metric, other = build_metric(name, weights), build_metric(name, weights)
        batch = Batch(y.to("mps"), y.to("mps"), ("0", "1"))
        first = metric.measure(batch, y_hats.to("mps"))
        for use, positional in (("perceptual", {}), ("patchnce-network", {"in_channels": 3})):
            loss = p2pzoo.create("loss", use, out_channels=3, size=(64, 64), **positional, **weights["network"])
            assert {tensor.device.type for tensor in loss.state_dict().values()} == {"cpu"}
        on_cpu = other.measure(Batch(y, y, ("0", "1")), y_hats)
        again = metric.measure(batch, y_hats.to("mps"))
    for statistic, values in first.items():
        for others in (on_cpu, again):
            torch.testing.assert_close(values.cpu(), others[statistic].cpu(), rtol=1e-4, atol=1e-4)
