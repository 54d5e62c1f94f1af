"""Penalties on D's gradient: by hand, lazy, and of the patch discriminator with all compute settings."""

import pytest
import torch
from p2pzoo_losses.gan import Relativistic, WassersteinGP
from p2pzoo_losses.penalties import R1, R2
from p2pzoo_pix2pix.discriminators import PatchDiscriminator
from p2pzoo_pix2pix.generators import UNet
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from p2pzoo.compute.batched_discriminator import BatchedDiscriminator
from p2pzoo.compute.cuda_graphs import WARMUP_STEPS, CUDAGraphStep
from p2pzoo.compute.engine import Engine
from p2pzoo.config.settings import Compute, Optimizer
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import StepOutputs
from p2pzoo.training.gan_step import Objective, Term, Trainable
from p2pzoo.training.lua_order import LuaObjective

SIDE = 64


class Quadratic(nn.Module):
    """One logit, (weight · |y|²) / 2 + |x|²: its gradient with respect to y is weight · y."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x, y):
        return [(self.weight * y.square() / 2 + x.square()).sum((1, 2, 3), keepdim=True)]


def step_outputs(D, **more):
    x, y, y_hat = torch.rand(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return StepOutputs(Batch(x, y, ("a", "b")), y_hat, D, **more)


def half_square(weight, images):
    return (weight**2 * images.square().sum((1, 2, 3))).mean().item() / 2


def test_r1_is_half_the_squared_gradient_at_real_images_and_r2_at_fake_ones():
    out = step_outputs(Quadratic(0.7))
    assert R1()(out).item() == pytest.approx(half_square(0.7, out.y), rel=1e-5)
    assert R2()(out).item() == pytest.approx(half_square(0.7, out.y_hat), rel=1e-5)


@pytest.mark.parametrize("penalty", [R1, R2])
def test_gradients_reach_the_weights_of_d(penalty):
    D = Quadratic(0.7)
    out = step_outputs(D)
    value = penalty()(out)
    value.backward()
    assert D.weight.grad.item() == pytest.approx(2 * value.item() / 0.7, rel=1e-5)  # d(w² s / 2)/dw = w s


@pytest.mark.parametrize("penalty", [R1, R2])
def test_a_constant_d_has_a_penalty_of_0(penalty):
    D = Quadratic(0.0)
    value = penalty()(step_outputs(D))
    value.backward()
    assert value.item() == 0
    assert D.weight.grad.item() == 0


def test_only_the_discriminator_gets_gradients():
    y_hat = (torch.rand(2, 3, 4, 4)).requires_grad_()
    x, y = torch.rand(2, 2, 3, 4, 4)
    out = StepOutputs(Batch(x, y, ("a", "b")), y_hat, Quadratic(0.7))
    (R1()(out) + R2()(out)).backward()
    assert R1.side == R2.side == "discriminator"
    assert y_hat.grad is None


def test_r2_uses_the_x_of_a_pooled_fake_image():
    calls = []

    class OperationRecorder(Quadratic):
        def forward(self, x, y):
            calls.append((x, y.detach()))
            return super().forward(x, y)

    pooled = torch.rand(2, 2, 3, 4, 4)
    R2()(step_outputs(OperationRecorder(0.7), pooled=tuple(pooled)))
    assert all(map(torch.equal, calls[0], pooled))


def test_a_lazy_penalty_is_k_times_as_large_in_each_kth_step():
    D = Quadratic(0.7)
    full = R1()(step_outputs(D)).item()
    values = [R1(every=4)(step_outputs(D, step=step)).item() for step in range(9)]
    assert values == pytest.approx([4 * full, 0, 0, 0, 4 * full, 0, 0, 0, 4 * full])
    assert sum(values[:8]) / 8 == pytest.approx(full)


def test_a_lazy_penalty_depends_on_the_step_number_and_not_on_a_counter():
    penalty, D = R1(every=4), Quadratic(0.7)
    assert [bool(penalty(step_outputs(D, step=step))) for step in (5, 8, 8, 6, 4)] == [False, True, True, False, True]


class Recorder:
    """A stand-in for a CUDA graph: keeps the function and calls it again."""

    def warm_up(self, act):
        return act()

    def watch(self, act):
        return act(), None

    def record(self, act):
        act()
        return act


@pytest.mark.parametrize(("every", "recorded"), [(1, True), (4, False)])
def test_a_lazy_penalty_is_not_recorded_as_a_cuda_graph(every, recorded):
    torch.manual_seed(0)
    D, failures = Quadratic(0.7), []
    G = nn.Conv2d(3, 3, 1)
    players = [Trainable(each, torch.optim.SGD(each.parameters(), lr=0.0)) for each in (G, D)]
    objective = Objective(*players, Relativistic(), [Term("r1", R1(every=every), 1.0)], lambda loss, _: loss.backward())
    replay = CUDAGraphStep(objective.step, Recorder(), on_failure=failures.append)
    x, y = torch.rand(2, 1, 3, 4, 4)
    penalties = [replay(Batch(x, y, ("a",)), step)["D.r1"].item() for step in range(WARMUP_STEPS + 6)]
    reason = "RuntimeError: a loss reads StepOutputs.step, so this step cannot be recorded as a CUDA graph"
    assert failures == ([] if recorded else [reason])
    assert [bool(value) for value in penalties] == [step % every == 0 for step in range(WARMUP_STEPS + 6)]


# --- on the real discriminator -----------------------------------------------------------------------------------


def pair(seed=0):
    x, y, y_hat = torch.rand(3, 2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return x, y, y_hat


def gradients(D, loss, precision=torch.float32):
    """The gradients of the loss with respect to D's weights."""
    x, y, y_hat = (images.to(precision) for images in pair())
    torch.manual_seed(7)
    loss(StepOutputs(Batch(x, y, ("a", "b")), y_hat, D)).backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in D.parameters()]
    D.zero_grad()
    return gradients


LOSSES = {"wgan-gp": WassersteinGP().discriminator_loss, "r1": R1(), "r2": R2()}


def relative(one, other):
    return max(
        ((a - b).norm() / b.norm()).item() if b.norm() > 1e-6 else (a - b).norm().item()
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_prepared_patch_discriminator_gets_the_gradients_of_plain_torch(loss, norm):
    """Second derivatives of convolutions as matrix products, channels-last memory and replaced instance norms."""
    torch.manual_seed(0)
    D = PatchDiscriminator(3, 3, (SIDE, SIDE), width=8, norm=norm)
    plain = gradients(D, loss)
    placed = Engine(Compute(device="cpu", threads=1)).prepare_model(D)
    assert any("forward" in vars(part) for part in placed.modules() if isinstance(part, nn.Conv2d)), "lowering is on"
    assert relative(gradients(placed, loss), plain) < 1e-4


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_equal_finite_differences(loss):
    """In float64, along one direction in the space of all weights."""
    torch.manual_seed(0)
    D = PatchDiscriminator(3, 3, (SIDE, SIDE), width=4, norm="instance").double()
    direction = [torch.randn_like(p) for p in D.parameters()]
    slope = sum((g * d).sum().item() for g, d in zip(gradients(D, loss, torch.float64), direction, strict=True))

    def at(distance):
        x, y, y_hat = (images.double() for images in pair())
        with torch.no_grad():
            for p, d in zip(D.parameters(), direction, strict=True):
                p.add_(d, alpha=distance)
        torch.manual_seed(7)
        value = loss(StepOutputs(Batch(x, y, ("a", "b")), y_hat, D)).item()
        with torch.no_grad():
            for p, d in zip(D.parameters(), direction, strict=True):
                p.sub_(d, alpha=distance)
        return value

    assert (at(1e-7) - at(-1e-7)) / 2e-7 == pytest.approx(slope, rel=1e-2)


class OperationRecorder(TorchDispatchMode):
    """Record the operations that torch executes."""

    def __init__(self):
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations.add(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_no_values_are_copied_between_host_and_device(loss):
    D = PatchDiscriminator(3, 3, (SIDE, SIDE), width=4)
    with OperationRecorder() as watched:
        gradients(D, loss)
    assert not [
        each for each in watched.operations if "lift_fresh" in each or "scalar_dense" in each or "nonzero" in each
    ]


def flat_parameters(network):
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def train(steps=3, *, lua=False, one_pass=False, norm="batch", **compute):
    """Train for three steps with all penalties: the losses of each step, and the change of D's weights."""
    torch.manual_seed(0)
    engine = Engine(Compute(device="cpu", threads=1, **compute))
    networks = (
        UNet(3, 3, (SIDE, SIDE), width=4, noise="none"),
        PatchDiscriminator(3, 3, (SIDE, SIDE), width=4, norm=norm),
    )
    players = [
        Trainable(placed, engine.build_optimizer(placed, Optimizer())) for placed in map(engine.prepare_model, networks)
    ]
    terms = [Term("r1", R1(every=2), 10.0), Term("r2", R2(), 10.0)]
    initial = flat_parameters(networks[1])
    both = BatchedDiscriminator(players[1].network) if one_pass else None
    kind = LuaObjective if lua else Objective
    objective = kind(*players, WassersteinGP(), terms, engine.backward_and_step, judge_both=both)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        x, y, _ = pair(step)
        batch = engine.to_device(Batch(x, y, ("a", "b")))
        losses.append({name: value.item() for name, value in objective.step(batch, step).items()})
    return losses, flat_parameters(networks[1]) - initial


PLAIN = {"lowering": False, "channels_last": False, "fused_adam": False}


@pytest.mark.parametrize(
    "how",
    [{}, {"one_pass": True}, {"checkpointing": True}, {"fused_adam": False}],
    ids=["as shipped", "one pass", "checkpointing", "torch's Adam"],
)
def test_compute_settings_do_not_change_the_step(how):
    losses, change = train(**how)
    expected, expected_change = train(**PLAIN)
    for one, other in zip(losses, expected, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=1e-4)
    assert ((change - expected_change).norm() / expected_change.norm()).item() < 0.02  # Adam amplifies rounding


@pytest.mark.parametrize("how", [{"precision": "bf16"}, {"lua": True}], ids=["bf16", "order lua"])
def test_losses_stay_finite_in_half_precision_and_in_lua_order(how):
    losses, change = train(**how)
    expected, _ = train(**PLAIN)
    assert all(torch.isfinite(torch.tensor(list(step.values()))).all() for step in losses)
    assert change.isfinite().all()
    assert losses[0]["D.gan"] == pytest.approx(expected[0]["D.gan"], rel=2e-2)
    assert losses[0]["D.r2"] == pytest.approx(expected[0]["D.r2"], rel=0.1)
