"""Penalties on D's gradient: by hand, lazily, and on the real patch discriminator however it is computed."""

import pytest
import torch
from p2pzoo_losses.gan import Relativistic, WassersteinGP
from p2pzoo_losses.penalties import R1, R2
from p2pzoo_pix2pix.discriminators import PatchDiscriminator
from p2pzoo_pix2pix.generators import UNet
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from p2pzoo.compute.batched_discriminator import BatchedDiscriminator
from p2pzoo.compute.cuda_graphs import WARM_UP, CUDAGraphStep
from p2pzoo.compute.engine import Engine
from p2pzoo.config.settings import Compute, Optimizer
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import StepOutputs
from p2pzoo.training.gan_step import Objective, Term, Trainable
from p2pzoo.training.lua_order import LuaObjective

SIDE = 64


class Quadratic(nn.Module):
    """One logit, (weight · |y|²) / 2 + |x|²: its gradient to y is weight · y."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x, y):
        return [(self.weight * y.square() / 2 + x.square()).sum((1, 2, 3), keepdim=True)]


def scene_of(D, **more):
    x, y, y_hat = torch.rand(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return StepOutputs(Batch(x, y, ("a", "b")), y_hat, D, **more)


def half_square(weight, images):
    return (weight**2 * images.square().sum((1, 2, 3))).mean().item() / 2


def test_r1_is_half_the_squared_gradient_at_real_images_and_r2_at_fake_ones():
    out = scene_of(Quadratic(0.7))
    assert R1()(out).item() == pytest.approx(half_square(0.7, out.y), rel=1e-5)
    assert R2()(out).item() == pytest.approx(half_square(0.7, out.y_hat), rel=1e-5)


@pytest.mark.parametrize("penalty", [R1, R2])
def test_they_reach_the_weights_of_d_through_its_gradient(penalty):
    D = Quadratic(0.7)
    out = scene_of(D)
    value = penalty()(out)
    value.backward()
    assert D.weight.grad.item() == pytest.approx(2 * value.item() / 0.7, rel=1e-5)  # d(w² s / 2)/dw = w s


@pytest.mark.parametrize("penalty", [R1, R2])
def test_where_d_is_flat_they_are_zero_and_that_is_their_minimum(penalty):
    D = Quadratic(0.0)
    value = penalty()(scene_of(D))
    value.backward()
    assert value.item() == 0
    assert D.weight.grad.item() == 0


def test_they_act_on_the_discriminator_and_leave_g_alone():
    y_hat = (torch.rand(2, 3, 4, 4)).requires_grad_()
    x, y = torch.rand(2, 2, 3, 4, 4)
    out = StepOutputs(Batch(x, y, ("a", "b")), y_hat, Quadratic(0.7))
    (R1()(out) + R2()(out)).backward()
    assert R1.side == R2.side == "discriminator"
    assert y_hat.grad is None


def test_r2_asks_of_a_pooled_fake_together_with_the_x_it_was_made_from():
    asked = []

    class Watched(Quadratic):
        def forward(self, x, y):
            asked.append((x, y.detach()))
            return super().forward(x, y)

    pooled = torch.rand(2, 2, 3, 4, 4)
    R2()(scene_of(Watched(0.7), pooled=tuple(pooled)))
    assert all(map(torch.equal, asked[0], pooled))


def test_a_lazy_penalty_acts_in_every_kth_step_k_times_as_strongly():
    D = Quadratic(0.7)
    full = R1()(scene_of(D)).item()
    values = [R1(every=4)(scene_of(D, step=step)).item() for step in range(9)]
    assert values == pytest.approx([4 * full, 0, 0, 0, 4 * full, 0, 0, 0, 4 * full])
    assert sum(values[:8]) / 8 == pytest.approx(full)


def test_it_goes_by_the_number_of_the_step_and_not_by_how_often_it_was_asked():
    penalty, D = R1(every=4), Quadratic(0.7)
    assert [bool(penalty(scene_of(D, step=step))) for step in (5, 8, 8, 6, 4)] == [False, True, True, False, True]


class Recorder:
    """Records by remembering what to do, as a CUDA graph does."""

    def warm_up(self, act):
        return act()

    def watch(self, act):
        return act(), None

    def record(self, act):
        act()
        return act


@pytest.mark.parametrize(("every", "recorded"), [(1, True), (4, False)])
def test_only_a_penalty_of_every_step_is_recorded_as_a_graph(every, recorded):
    torch.manual_seed(0)
    D, given_up = Quadratic(0.7), []
    G = nn.Conv2d(3, 3, 1)
    players = [Trainable(each, torch.optim.SGD(each.parameters(), lr=0.0)) for each in (G, D)]
    objective = Objective(*players, Relativistic(), [Term("r1", R1(every=every), 1.0)], lambda loss, _: loss.backward())
    play = CUDAGraphStep(objective.step, Recorder(), given_up=given_up.append)
    x, y = torch.rand(2, 1, 3, 4, 4)
    told = [play(Batch(x, y, ("a",)), step)["D.r1"].item() for step in range(WARM_UP + 6)]
    assert given_up == ([] if recorded else ["RuntimeError: a loss goes by the number of the step"])
    assert [bool(value) for value in told] == [step % every == 0 for step in range(WARM_UP + 6)]


# --- on the real discriminator -----------------------------------------------------------------------------------


def pair(seed=0):
    x, y, y_hat = torch.rand(3, 2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return x, y, y_hat


def gradients(D, loss, precision=torch.float32):
    """Of the loss to D's weights."""
    x, y, y_hat = (images.to(precision) for images in pair())
    torch.manual_seed(7)
    loss(StepOutputs(Batch(x, y, ("a", "b")), y_hat, D)).backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in D.parameters()]  # R1 knows no last bias
    D.zero_grad()
    return found


LOSSES = {"wgan-gp": WassersteinGP().discriminator_loss, "r1": R1(), "r2": R2()}


def relative(one, other):
    return max(
        ((a - b).norm() / b.norm()).item() if b.norm() > 1e-6 else (a - b).norm().item()
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_patch_discriminator_as_the_engine_computes_it_gets_the_gradients_of_plain_torch(loss, norm):
    """Lowered convolutions, channels-last memory, mended instance norms: differentiated twice."""
    torch.manual_seed(0)
    D = PatchDiscriminator(3, 3, (SIDE, SIDE), width=8, norm=norm)
    plain = gradients(D, loss)
    placed = Engine(Compute(device="cpu", threads=1)).prepare_model(D)
    assert any("forward" in vars(part) for part in placed.modules() if isinstance(part, nn.Conv2d)), "lowering is on"
    assert relative(gradients(placed, loss), plain) < 1e-4


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_those_gradients_are_the_finite_differences_of_the_loss(loss):
    """In float64, along one direction of all weights at once."""
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


class Watched(TorchDispatchMode):
    """Notes what is asked of torch."""

    def __init__(self):
        super().__init__()
        self.asked = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.asked.add(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_nothing_goes_between_python_and_the_device_so_that_a_graph_can_be_recorded(loss):
    D = PatchDiscriminator(3, 3, (SIDE, SIDE), width=4)
    with Watched() as watched:
        gradients(D, loss)
    assert not [each for each in watched.asked if "lift_fresh" in each or "scalar_dense" in each or "nonzero" in each]


def all_of(network):
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def play(steps=3, *, lua=False, one_pass=False, norm="batch", **compute):
    """What three steps of a game with every penalty in it tell, and how far they have moved D's weights."""
    torch.manual_seed(0)
    engine = Engine(Compute(device="cpu", threads=1, **compute))
    networks = (
        UNet(3, 3, (SIDE, SIDE), width=4, noise="none"),
        PatchDiscriminator(3, 3, (SIDE, SIDE), width=4, norm=norm),
    )
    players = [
        Trainable(placed, engine.optimizer(placed, Optimizer())) for placed in map(engine.prepare_model, networks)
    ]
    terms = [Term("r1", R1(every=2), 10.0), Term("r2", R2(), 10.0)]
    begun = all_of(networks[1])
    both = BatchedDiscriminator(players[1].network) if one_pass else None
    made = LuaObjective if lua else Objective
    objective = made(*players, WassersteinGP(), terms, engine.backward_and_step, both=both)
    told = []
    for step in range(steps):
        torch.manual_seed(step)
        x, y, _ = pair(step)
        told.append({k: v.item() for k, v in objective.step(engine.move(Batch(x, y, ("a", "b"))), step).items()})
    return told, all_of(networks[1]) - begun


PLAIN = {"lowering": False, "channels_last": False, "fused_adam": False}


@pytest.mark.parametrize(
    "how",
    [{}, {"one_pass": True}, {"checkpointing": True}, {"fused_adam": False}],
    ids=["as shipped", "one pass", "checkpointing", "torch's Adam"],
)
def test_however_a_step_is_computed_it_is_the_same_step(how):
    told, way = play(**how)
    expected, way_expected = play(**PLAIN)
    for one, other in zip(told, expected, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=1e-4)
    assert ((way - way_expected).norm() / way_expected.norm()).item() < 0.02  # Adam makes steps of rounding, too


@pytest.mark.parametrize("how", [{"precision": "bf16"}, {"lua": True}], ids=["bf16", "order lua"])
def test_in_half_precision_and_in_the_order_of_the_lua_code_all_stays_finite(how):
    told, way = play(**how)
    expected, _ = play(**PLAIN)
    assert all(torch.isfinite(torch.tensor(list(losses.values()))).all() for losses in told)
    assert way.isfinite().all()
    assert told[0]["D.gan"] == pytest.approx(expected[0]["D.gan"], rel=2e-2)
    assert told[0]["D.r2"] == pytest.approx(expected[0]["D.r2"], rel=0.1)
