"""D judges real and fake images in one pass exactly where that is the same game, which is found by trying it."""

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


class Judge(nn.Module):
    """A D of a convolution, something, and a convolution."""

    def __init__(self, *between):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(6, 8, 4, 2, 1), *between, nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4, 1, 1))

    def forward(self, x, y):
        return [self.layers(torch.cat([x, y], 1))]


class BatchDeviation(nn.Module):
    """Minibatch standard deviation (Karras et al. 2018), through a gain that begins at `gain`."""

    def __init__(self, gain=1.0, group=None):
        super().__init__()
        self.gain, self.group = nn.Parameter(torch.tensor(gain)), group

    def forward(self, h):
        groups = h.split(self.group or len(h))
        return torch.cat([g + self.gain * g.std(0, unbiased=False).mean() for g in groups])


class Remembering(nn.Module):
    """Moves a running mean with every forward, for later."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, h):
        self.mean.lerp_(h.detach().mean().to(self.mean), 0.1)
        return h if self.training else h - self.mean


class Numbered(nn.Module):
    """What NumPy draws; no torch generator knows of it."""

    def forward(self, h):
        import numpy as np

        return h + np.random.default_rng().random()


def test_a_discriminator_with_statistics_per_image_or_per_call_is_found_to_judge_each_part_alone():
    for norm in ("batch", "instance", "none"):
        for kind in (PatchDiscriminator, PixelDiscriminator):
            assert is_batch_independent(kind(3, 3, SIZE, width=4, norm=norm), (3, 3), SIZE, 1), (kind, norm)
    for norm in (nn.GroupNorm(2, 8), nn.BatchNorm2d(8), nn.BatchNorm2d(8, track_running_stats=False)):
        assert is_batch_independent(Judge(norm), (3, 3), SIZE, 3), norm


class OwnNorm(nn.Module):
    """Batch norm written by hand, which does not know of parts."""

    def forward(self, h):
        return (h - h.mean((0, 2, 3), keepdim=True)) / (h.std((0, 2, 3), keepdim=True) + 1e-5)


@pytest.mark.parametrize(
    "between",
    [
        (OwnNorm(),),
        (BatchDeviation(),),
        (BatchDeviation(gain=0.0),),  # it has no effect yet, and will have
        (nn.utils.spectral_norm(nn.Conv2d(8, 8, 1)),),
        (nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)),),
        (nn.Dropout(0.5),),
        (Remembering(),),
        (Numbered(),),
    ],
    ids=["a batch norm of its own", "minibatch deviation", "minibatch deviation with a gain of 0",
         "spectral norm", "spectral norm as a parametrization", "dropout", "a running mean", "numpy's randomness"],
)  # fmt: skip
@pytest.mark.parametrize("batch", [1, 2])
def test_others_are_judged_apart(between, batch):
    assert not is_batch_independent(Judge(*between), (3, 3), SIZE, batch)


def test_it_is_found_for_the_batch_that_will_be_judged():
    D = Judge(BatchDeviation(group=2))  # of each two images that follow one another
    assert is_batch_independent(D, (3, 3), SIZE, 2)
    assert not is_batch_independent(D, (3, 3), SIZE, 1)


def test_finding_out_leaves_no_trace():
    D = Judge(nn.BatchNorm2d(8), nn.Dropout(0.5)).eval()
    before, drawn = copy.deepcopy(D.state_dict()), torch.get_rng_state()
    is_batch_independent(D, (3, 3), SIZE, 2)
    assert all(torch.equal(before[name], tensor) for name, tensor in D.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state())
    assert not D.training
    assert D.layers[0].weight.dtype == torch.float32


def play(gan, norm, *, one_pass, steps=2):
    """The losses and gradients of steps in float64, and what they leave in D's buffers."""
    torch.manual_seed(0)
    G, D = nn.Conv2d(3, 3, 3, padding=1).double(), PatchDiscriminator(3, 3, SIZE, width=4, norm=norm).double()
    both = BatchedDiscriminator(D) if one_pass else None
    players = [Trainable(network, torch.optim.SGD(network.parameters(), lr=0.1)) for network in (G, D)]
    gradients = []

    def descend(loss, optimizer):
        optimizer.zero_grad()
        loss.backward()
        gradients.extend(p.grad.clone() for group in optimizer.param_groups for p in group["params"])
        optimizer.step()

    objective = Objective(*players, gan, [Term("l1", L1(), 100.0)], descend, both=both)
    batch = Batch(*(torch.rand(3, 3, *SIZE, dtype=torch.float64) * 2 - 1 for _ in range(2)), ("a", "b", "c"))
    told = [value for i in range(steps) for value in objective.step(batch, i).values()]
    return told, gradients, [*D.buffers()]


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("gan", [Vanilla(), LeastSquares()], ids=["vanilla", "lsgan"])
def test_one_pass_gives_the_losses_gradients_and_buffers_of_two(gan, norm):
    for one, two in zip(play(gan, norm, one_pass=True), play(gan, norm, one_pass=False), strict=True):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_d_is_asked_once_in_its_own_move_and_of_the_fake_alone_in_gs():
    asked = []

    def D(x, y):
        asked.append(len(y))
        return [y.mean((1, 2, 3))]

    out = StepOutputs(
        Batch(*torch.rand(2, 2, 3, 8, 8), ("a", "b")),
        torch.rand(2, 3, 8, 8),
        D,
        both=BatchedDiscriminator(nn.Identity()),
    )
    _ = out.fake, out.real, out.fake
    assert asked == [4]
    assert torch.equal(out.real[0], out.y.mean((1, 2, 3)))
    assert torch.equal(out.fake[0], out.y_hat.mean((1, 2, 3)))
    _ = out.for_generator().fake
    assert asked == [4, 2]


def test_the_pools_x_goes_with_its_fake():
    seen = []

    def D(x, y):
        seen.append((x, y))
        return [y]

    batch, y_hat = Batch(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), ("a",)), torch.full((1, 1, 2, 2), 2.0)
    pooled = (torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), 4.0))
    _ = StepOutputs(batch, y_hat, D, pooled=pooled, both=BatchedDiscriminator(nn.Identity())).real
    [(x, y)] = seen
    assert (x[:, 0, 0, 0].tolist(), y[:, 0, 0, 0].tolist()) == ([0, 3], [1, 4])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [((), True), (('discriminator.norm="instance"',), True),
     (("compute.one_pass=false",), False)],
    ids=["batch norm", "instance norm", "switched off"],
)  # fmt: skip
def test_a_recipe_says_whether_it_may_and_the_run_whether_it_is(overrides, expected, tiny):
    made = config.load(str(tiny), "smoke", [*overrides])
    engine = Engine(made.compute)
    objective = build_objective(made, engine, (3, 3), (64, 64))
    assert isinstance(objective.both, BatchedDiscriminator) is expected
    assert ("one_pass" in engine.describe()["on"]) is expected


@pytest.mark.parametrize(("batch", "expected"), [(16, True), (17, False)])
def test_on_a_cpu_large_batches_are_judged_in_two_passes(batch, expected, tiny):
    """16 images of 64 px are the pixels of one of 256: above, both verdicts' activations at once only cost memory."""
    made = config.load(str(tiny), "smoke", [f"train.batch_size={batch}"])
    engine = Engine(made.compute)
    objective = build_objective(made, engine, (3, 3), (64, 64))
    assert (objective.both is not None) is expected
    assert engine.on["one_pass"] is expected


def test_a_gpu_judges_large_batches_in_one_pass():
    assert is_faster("cuda", 64, (512, 512))
