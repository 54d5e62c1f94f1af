"""On a simulated Apple device (`fake_mps`), which has no float64 and computes channels-last convolutions wrongly."""

import numpy as np
import pytest
import timm  # noqa: F401 - before the simulation begins
import torch
from fake_mps import MpsTensor, simulated_mps

import p2pzoo
from p2pzoo.compute.engine import Engine, pick_device
from p2pzoo.config.settings import Compute


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
    names = (
        "ssim",
        "fcn_score",
        "lab_histogram",
        "sharpness",
        "kid_efficientnet_lite0",
        "perceptual_efficientnet_lite0",
        "crps",
        "coverage",
    )
    metrics = [f'metrics.more{number}={{use="{name}"}}' for number, name in enumerate(names)]
    with simulated_mps():
        result = run(runs, "compute.device=mps", "train.images=2", "train.ema=0.9", *metrics)
    assert result.exit_code == 0, result.output
    return next(runs.glob("*/*"))


def test_a_run_trains_samples_and_evaluates(on_mps):
    assert (on_mps / "model.safetensors").is_file()
    assert [*(on_mps / "samples").glob("images-*.png")]
    assert (on_mps / "results.json").is_file()


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
