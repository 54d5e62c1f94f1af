"""D runs once over real and fake images exactly if that gives the same results, which a trial determines."""

import copy

import pytest
import torch
from p2pzoo_pix2pix.discriminators import PatchDiscriminator, PixelDiscriminator
from p2pzoo_pix2pix.losses import L1, LeastSquares, Vanilla
from torch import nn

from p2pzoo import config
from p2pzoo.compute.batched_discriminator import BatchedDiscriminator, is_batch_independent, is_faster
from p2pzoo.compute.engine import Engine
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import StepOutputs
from p2pzoo.training.gan_step import Objective, Term, Trainable
from p2pzoo.training.setup import build_objective

SIZE = (32, 32)


class SmallD(nn.Module):
    """A D of two convolutions with other layers between them."""

    def __init__(self, *between):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(6, 8, 4, 2, 1), *between, nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4, 1, 1))

    def forward(self, x, y):
        return [self.layers(torch.cat([x, y], 1))]


class BatchDeviation(nn.Module):
    """Minibatch standard deviation (Karras et al. 2018), times a learned gain, initially `gain`."""

    def __init__(self, gain=1.0, group=None):
        super().__init__()
        self.gain, self.group = nn.Parameter(torch.tensor(gain)), group

    def forward(self, h):
        groups = h.split(self.group or len(h))
        return torch.cat([g + self.gain * g.std(0, unbiased=False).mean() for g in groups])


class RunningMean(nn.Module):
    """Update a running mean in every forward pass; use it only in eval mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, h):
        self.mean.lerp_(h.detach().mean().to(self.mean), 0.1)
        return h if self.training else h - self.mean


class NumpyNoise(nn.Module):
    """Add a random number of NumPy, which changes no torch generator."""

    def forward(self, h):
        import numpy as np

        return h + np.random.default_rng().random()


def test_batch_instance_and_group_norm_are_batch_independent():
    for norm in ("batch", "instance", "none"):
        for kind in (PatchDiscriminator, PixelDiscriminator):
            assert is_batch_independent(kind(3, 3, SIZE, width=4, norm=norm), (3, 3), SIZE, 1), (kind, norm)
    for norm in (nn.GroupNorm(2, 8), nn.BatchNorm2d(8), nn.BatchNorm2d(8, track_running_stats=False)):
        assert is_batch_independent(SmallD(norm), (3, 3), SIZE, 3), norm


class CustomBatchNorm(nn.Module):
    """Batch norm that is not a torch layer, so it normalises real and fake images together."""

    def forward(self, h):
        return (h - h.mean((0, 2, 3), keepdim=True)) / (h.std((0, 2, 3), keepdim=True) + 1e-5)


@pytest.mark.parametrize(
    "between",
    [
        (CustomBatchNorm(),),
        (BatchDeviation(),),
        (BatchDeviation(gain=0.0),),  # no effect at initialisation, but later
        (nn.utils.spectral_norm(nn.Conv2d(8, 8, 1)),),
        (nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)),),
        (nn.Dropout(0.5),),
        (RunningMean(),),
        (NumpyNoise(),),
    ],
    ids=["a custom batch norm", "minibatch deviation", "minibatch deviation with a gain of 0",
         "spectral norm", "spectral norm as a parametrization", "dropout", "a running mean", "random numbers of numpy"],
)  # fmt: skip
@pytest.mark.parametrize("batch", [1, 2])
def test_other_layers_are_not_batch_independent(between, batch):
    assert not is_batch_independent(SmallD(*between), (3, 3), SIZE, batch)


def test_the_result_depends_on_the_batch_size():
    D = SmallD(BatchDeviation(group=2))  # statistics over pairs of consecutive images
    assert is_batch_independent(D, (3, 3), SIZE, 2)
    assert not is_batch_independent(D, (3, 3), SIZE, 1)


def test_the_trial_changes_neither_d_nor_the_random_state():
    D = SmallD(nn.BatchNorm2d(8), nn.Dropout(0.5)).eval()
    before, rng_state = copy.deepcopy(D.state_dict()), torch.get_rng_state()
    is_batch_independent(D, (3, 3), SIZE, 2)
    assert all(torch.equal(before[name], tensor) for name, tensor in D.state_dict().items())
    assert torch.equal(rng_state, torch.get_rng_state())
    assert not D.training
    assert D.layers[0].weight.dtype == torch.float32


def train(gan, norm, *, one_pass, steps=2):
    """Return losses and gradients of steps in float64, and D's buffers after them."""
    torch.manual_seed(0)
    G, D = nn.Conv2d(3, 3, 3, padding=1).double(), PatchDiscriminator(3, 3, SIZE, width=4, norm=norm).double()
    both = BatchedDiscriminator(D) if one_pass else None
    trainables = [Trainable(network, torch.optim.SGD(network.parameters(), lr=0.1)) for network in (G, D)]
    gradients = []

    def backward_and_step(loss, optimizer):
        optimizer.zero_grad()
        loss.backward()
        gradients.extend(p.grad.clone() for group in optimizer.param_groups for p in group["params"])
        optimizer.step()

    objective = Objective(*trainables, gan, [Term("l1", L1(), 100.0)], backward_and_step, judge_both=both)
    batch = Batch(*(torch.rand(3, 3, *SIZE, dtype=torch.float64) * 2 - 1 for _ in range(2)), ("a", "b", "c"))
    losses = [value for i in range(steps) for value in objective.step(batch, i).values()]
    return losses, gradients, [*D.buffers()]


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("gan", [Vanilla(), LeastSquares()], ids=["vanilla", "lsgan"])
def test_one_pass_gives_the_losses_gradients_and_buffers_of_two(gan, norm):
    for one, two in zip(train(gan, norm, one_pass=True), train(gan, norm, one_pass=False), strict=True):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_d_runs_once_in_its_own_step_and_only_on_fake_images_in_the_step_of_g():
    batch_sizes = []

    def D(x, y):
        batch_sizes.append(len(y))
        return [y.mean((1, 2, 3))]

    out = StepOutputs(
        Batch(*torch.rand(2, 2, 3, 8, 8), ("a", "b")),
        torch.rand(2, 3, 8, 8),
        D,
        judge_both=BatchedDiscriminator(nn.Identity()),
    )
    _ = out.fake, out.real, out.fake
    assert batch_sizes == [4]
    assert torch.equal(out.real[0], out.y.mean((1, 2, 3)))
    assert torch.equal(out.fake[0], out.y_hat.mean((1, 2, 3)))
    _ = out.for_generator().fake
    assert batch_sizes == [4, 2]


def test_a_fake_image_of_the_pool_comes_with_its_own_x():
    inputs = []

    def D(x, y):
        inputs.append((x, y))
        return [y]

    batch, y_hat = Batch(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), ("a",)), torch.full((1, 1, 2, 2), 2.0)
    pooled = (torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), 4.0))
    _ = StepOutputs(batch, y_hat, D, pooled=pooled, judge_both=BatchedDiscriminator(nn.Identity())).real
    [(x, y)] = inputs
    assert (x[:, 0, 0, 0].tolist(), y[:, 0, 0, 0].tolist()) == ([0, 3], [1, 4])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [((), True), (('discriminator.norm="instance"',), True),
     (("compute.one_pass=false",), False)],
    ids=["batch norm", "instance norm", "switched off"],
)  # fmt: skip
def test_the_recipe_can_disable_one_pass_and_the_run_records_whether_it_is_used(overrides, expected, tiny):
    experiment = config.load(str(tiny), "smoke", [*overrides])
    engine = Engine(experiment.compute)
    objective = build_objective(experiment, engine, (3, 3), (64, 64))
    assert isinstance(objective.judge_both, BatchedDiscriminator) is expected
    assert ("one_pass" in engine.describe()["on"]) is expected


@pytest.mark.parametrize(("batch", "expected"), [(16, True), (17, False)])
def test_on_a_cpu_large_batches_use_two_passes(batch, expected, tiny):
    """16 images of 64 px have as many pixels as one of 256 px. Above this, one pass only needs more memory."""
    experiment = config.load(str(tiny), "smoke", [f"train.batch_size={batch}"])
    engine = Engine(experiment.compute)
    objective = build_objective(experiment, engine, (3, 3), (64, 64))
    assert (objective.judge_both is not None) is expected
    assert engine.enabled["one_pass"] is expected


def test_a_gpu_uses_one_pass_for_large_batches():
    assert is_faster("cuda", 64, (512, 512))
