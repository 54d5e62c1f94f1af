"""Losses that are modules: their parameters train with their side, and their state survives a resume."""

import pytest
import torch
from fault_injection import STEP, SimulatedKill, after, only, outcome, simulate_kill
from torch import nn

from p2pzoo.models.safetensors_io import load_tensors, loss_tensors

PLUGIN = """
import torch
from torch import nn
import p2pzoo

class LeCam(nn.Module):
    \"\"\"Regularises D towards running means of its logits (arXiv:2104.03310).\"\"\"

    side = "discriminator"

    def __init__(self):
        super().__init__()
        self.register_buffer("means", torch.zeros(2))

    def forward(self, out):
        real, fake = out.real[0].mean(), out.fake[0].mean()
        with torch.no_grad():
            self.means.lerp_(torch.stack([real, fake]), 0.1)
        return (real - self.means[1].clone()).square() + (fake - self.means[0].clone()).square()

class Uncertainty(nn.Module):
    \"\"\"L1 with a learned weight (arXiv:1705.07115), and a small network with random initial weights.\"\"\"

    side = "generator"

    def __init__(self):
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(()))
        self.project = nn.Conv2d(3, 2, 1)

    def forward(self, out):
        distance = (self.project(out.y_hat) - self.project(out.y)).abs().mean()
        return distance * torch.exp(-self.log_variance) + self.log_variance

class TrainedGan(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def discriminator_loss(self, out):
        return out.fake[0].mean() * self.scale

    def generator_loss(self, out):
        return -out.fake[0].mean() * self.scale

@p2pzoo.hookimpl
def register_losses(register):
    register("lecam", LeCam)
    register("uncertainty", Uncertainty)

@p2pzoo.hookimpl
def register_gan_losses(register):
    register("trained", TrainedGan)
"""
BOTH = ("losses.lecam.use=stateful:lecam", "losses.sure.use=uncertainty")


@pytest.fixture(autouse=True)
def plugin(install):
    install("stateful", PLUGIN)


def newest(runs):
    return load_tensors(max(only(runs).glob("checkpoints/*.safetensors")))[0]


def test_a_killed_run_resumes_with_bit_identical_results(run, tmp_path):
    overrides = ("train.accumulate=2", "train.batch_size=2", "train.ema=0.9")
    assert run(tmp_path / "whole", *BOTH, *overrides).exit_code == 0
    with after(STEP, simulate_kill, call=8), pytest.raises(SimulatedKill):
        run(tmp_path / "killed", *BOTH, *overrides)
    result = run(tmp_path / "killed", *BOTH, *overrides)
    assert result.exit_code == 0, result.output
    assert "resuming" in result.output
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    whole, killed = newest(tmp_path / "whole"), newest(tmp_path / "killed")
    assert {"losses[lecam].means", "losses[sure].log_variance", "losses[sure].project.weight"} <= whole.keys()
    assert all(torch.equal(tensor, killed[name]) for name, tensor in whole.items())


def test_parameters_learn_and_their_initial_weights_follow_from_the_seed(run, tmp_path):
    for name, overrides in {"a": (), "b": (), "c": ("seed=1",)}.items():
        assert run(tmp_path / name, *BOTH, "train.images=4", *overrides).exit_code == 0
    a, b, c = (newest(tmp_path / name) for name in "abc")
    assert a["losses[sure].log_variance"] != 0
    assert torch.equal(a["losses[sure].project.weight"], b["losses[sure].project.weight"])
    assert not torch.equal(a["losses[sure].project.weight"], c["losses[sure].project.weight"])
    assert a["losses[lecam].means"].all()


def test_the_optimizer_of_its_side_trains_it(run, tmp_path):
    """At another learning rate of D, parameters of G's losses move as far as before."""
    for name, overrides in {"slow": ("optimizer.lr=1e-5",), "fast": ()}.items():
        assert run(tmp_path / name, *BOTH, "train.images=10", *overrides).exit_code == 0
    slow, fast = (newest(tmp_path / name)["losses[sure].log_variance"].abs() for name in ("slow", "fast"))
    assert 0 < slow < fast / 5


def test_parameters_of_a_gan_loss_are_refused(run, tmp_path):
    result = run(tmp_path, "gan_loss.use=trained")
    assert result.exit_code == 2
    message = "gan_loss 'stateful:trained' has parameters to train, and belongs to neither side"
    assert message in result.output.splitlines()[-1]


def test_a_pretrained_network_in_a_loss_is_not_kept():
    class WithNetwork(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).requires_grad_(False)
            self.head = nn.Conv2d(3, 1, 1)
            self.norm = nn.BatchNorm2d(1)
            self.register_buffer("count", torch.zeros(()))

    assert loss_tensors(WithNetwork()).keys() == {
        "head.weight", "head.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var",
        "norm.num_batches_tracked", "count",
    }  # fmt: skip
