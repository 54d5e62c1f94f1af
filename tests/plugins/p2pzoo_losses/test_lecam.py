"""LeCam: its value and its averages by hand, its gradient, and its state in a resumed run."""

import pytest
import torch
from fault_injection import STEP, SimulatedKill, after, only, outcome, simulate_kill
from p2pzoo_losses.lecam import LeCam
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import StepOutputs


class Scaled(nn.Module):
    """A D with two scales: logits weight · y of one channel, and the same at the upper left pixel only."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x, y):
        logits = self.weight * y
        return [logits, logits[..., :1, :1]]


def step_outputs(real, fake, D=None):
    """real, fake: the 2×2 logits of one image for a weight of 1."""
    y, y_hat = (torch.tensor(values).view(1, 1, 2, 2) for values in (real, fake))
    return StepOutputs(Batch(torch.zeros_like(y), y, ("a",)), y_hat, D or Scaled())


REAL, FAKE = (1.0, 2.0, 3.0, 4.0), (0.0, -1.0, -2.0, 1.0)
REAL_MEAN, FAKE_MEAN = (2.5 + 1) / 2, (-0.5 + 0) / 2  # the mean over both scales


def mean_square(values, anchor, sign):
    """Over both scales, of how far the values are above the anchor, or for a sign of -1 below it."""
    first, *_ = squares = [max(0, sign * (value - anchor)) ** 2 for value in values]
    return (sum(squares) / 4 + first) / 2


def test_the_first_step_compares_with_its_own_means():
    loss = LeCam()
    expected = mean_square(REAL, FAKE_MEAN, 1) + mean_square(FAKE, REAL_MEAN, -1)
    assert loss(step_outputs(REAL, FAKE)).item() == pytest.approx(expected, rel=1e-6)
    assert loss.averages().tolist() == pytest.approx([REAL_MEAN, FAKE_MEAN], rel=1e-6)


def test_later_steps_compare_with_weighted_means_of_all_steps():
    loss = LeCam(decay=0.75)
    loss(step_outputs(REAL, FAKE))
    loss(step_outputs(FAKE, FAKE))
    value = loss(step_outputs(FAKE, REAL)).item()
    weights = [0.75**2, 0.75, 1]
    real = sum(w * m for w, m in zip(weights, (REAL_MEAN, FAKE_MEAN, FAKE_MEAN), strict=True)) / sum(weights)
    fake = sum(w * m for w, m in zip(weights, (FAKE_MEAN, FAKE_MEAN, REAL_MEAN), strict=True)) / sum(weights)
    assert loss.averages().tolist() == pytest.approx([real, fake], rel=1e-5)
    assert value == pytest.approx(mean_square(FAKE, fake, 1) + mean_square(REAL, real, -1), rel=1e-5)


def test_logits_beyond_the_other_average_cost_nothing_as_in_the_authors_code():
    """Real logits below the average of fake ones, and fake logits above that of real ones."""
    assert LeCam()(step_outputs((-1.0,) * 4, (1.0,) * 4)).item() == 0


def test_the_gradient_of_d_is_that_with_fixed_averages():
    D, loss = Scaled(0.5), LeCam(decay=0.0)
    loss(step_outputs(REAL, FAKE, D)).backward()
    real, fake = 0.5 * REAL_MEAN, 0.5 * FAKE_MEAN
    slope = sum(
        (sum(2 * (0.5 * v - anchor) * v for v in values) / 4 + 2 * (0.5 * values[0] - anchor) * values[0]) / 2
        for values, anchor in ((REAL, fake), (FAKE, real))
    )
    assert D.weight.grad.item() == pytest.approx(slope, rel=1e-5)
    assert not list(loss.parameters())


def test_equal_and_constant_logits_are_its_minimum():
    D = Scaled()
    value = LeCam()(step_outputs((0.3,) * 4, (0.3,) * 4, D))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert D.weight.grad.item() == pytest.approx(0, abs=1e-6)


def test_logits_in_half_precision_are_averaged_in_fp32():
    class Half(Scaled):
        def forward(self, x, y):
            return [logits.bfloat16() for logits in super().forward(x, y)]

    plain, half = LeCam(), LeCam()
    value = half(step_outputs(REAL, FAKE, Half()))
    assert value.dtype == half.averages().dtype == torch.float32
    assert value.item() == pytest.approx(plain(step_outputs(REAL, FAKE)).item(), rel=1e-2)


class OperationRecorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations.add(str(function))
        return function(*args, **(kwargs or {}))


def test_no_values_are_copied_between_host_and_device():
    loss, out = LeCam(), step_outputs(REAL, FAKE)
    with OperationRecorder() as watched:
        loss(out).backward()
    assert not [each for each in watched.operations if "lift_fresh" in each or "scalar_dense" in each]


def test_a_killed_run_resumes_with_bit_identical_averages(run, tmp_path):
    overrides = ("losses.lecam.use=lecam", "train.accumulate=2", "train.batch_size=2", "train.d_steps=1")
    assert run(tmp_path / "whole", *overrides).exit_code == 0
    with after(STEP, simulate_kill, call=8), pytest.raises(SimulatedKill):
        run(tmp_path / "killed", *overrides)
    assert "resuming" in run(tmp_path / "killed", *overrides).output
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    whole, killed = (
        load_tensors(max(only(tmp_path / name).glob("checkpoints/*.safetensors")))[0] for name in ("whole", "killed")
    )
    assert {"losses[lecam].weighted_sums", "losses[lecam].total_weight"} <= whole.keys()
    assert all(torch.equal(tensor, killed[name]) for name, tensor in whole.items())
    assert whole["losses[lecam].total_weight"] > 0
