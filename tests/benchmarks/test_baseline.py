"""p2pzoo's step, with everything on that makes it fast, is the classic step of `benchmarks/baseline.py`.

Every generator and discriminator of the first-party plugins is held to it, so a new one is too.
"""

import copy
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from p2pzoo import config
from p2pzoo.compute.engine import Engine
from p2pzoo.models.build import build
from p2pzoo.models.initialization import make_discriminator, make_generator
from p2pzoo.plugin import schema
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.loader import plugins, registry
from p2pzoo.training.setup import build_objective
from p2pzoo.utils.errors import UserError

ROOT = Path(__file__).parents[2]
CHANNELS = (3, 3)
STEPS = 20
SIDES = (64, 96, 128, 256)
ROOM = 4  # values a side
UNMOVED = 1e-7  # a ten-thousandth of what weights move by
FIRST_PARTY = sorted(path.parent.name for path in ROOT.glob("plugins/*/__init__.py"))


def load_baseline():
    spec = importlib.util.spec_from_file_location("baseline", ROOT / "benchmarks" / "baseline.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Classic(load_baseline().Classic):
    """The baseline, with the mean over the maps where D has several."""

    def __init__(self, G, D):
        super().__init__(G, D, discriminator_loss=D)

    def gan(self, maps, real):
        return torch.stack([super(Classic, self).gan(logits, real) for logits in maps]).mean()


def first_party(kind):
    ours = {plugin.name for plugin in plugins() if plugin.module in FIRST_PARTY}
    return [entry for entry in registry().of(kind) if entry.plugin in ours]


def variants():
    """(kind, component, {parameter: value}): each component as it is by default, and with each other norm and bias."""
    for kind in ("generator", "discriminator"):
        for entry in first_party(kind):
            yield kind, entry.full_name, {}
            for name, param in schema.params_of(entry.load()).items():
                if name in ("norm", "bias"):
                    for value in get_args(param.annotation):
                        if value != param.default:
                            yield kind, entry.full_name, {name: value}


VARIANTS = list(variants())
NAMES = [" ".join((use.partition(":")[2], *given.values())) for _, use, given in VARIANTS]


def marked(slow):
    """The variants, of which those that `slow(use, given)` names are left to the slow tests."""
    return [
        pytest.param(variant, id=name, marks=pytest.mark.slow if slow(*variant[1:]) else ())
        for variant, name in zip(VARIANTS, NAMES, strict=True)
    ]


MARKED = marked(lambda _, given: given)
OF_THE_PAPER = marked(lambda use, given: given or not use.startswith("pix2pix:"))


def experiment(kind, use, given, width):
    """base.toml with this component, G without noise, on the CPU."""
    overrides = [
        f"{kind}.use={use}",
        *(f"{kind}.{name}={value}" for name, value in given.items()),
        "compute.device=cpu",
    ]
    for each, name in (("generator", use if kind == "generator" else "unet"), ("discriminator", "patch")):
        entry = registry().get(each, use if each == kind else name)
        known = schema.params_of(entry.load())
        overrides += [f"{each}.width={width}"] if "width" in known else []
        overrides += [f"{each}.noise=none"] if "noise" in known else []
    return config.load("zoo:base.toml", "smoke", overrides)


def smallest(made):
    """The least side of SIDES that both networks take; with room in their coarsest maps, where one of SIDES leaves it.

    A norm of few values magnifies rounding.
    """
    taken = {}
    for side in SIDES:
        try:
            with torch.device("meta"):
                both = [build(component, CHANNELS, (side, side)) for component in (made.generator, made.discriminator)]
        except UserError:
            continue
        taken[side] = side // max(getattr(network, "size_divisor", 1) for network in both)
    return next((side for side, room in taken.items() if room >= ROOM), min(taken))


def contestants(made, side):
    """Ours, as a run has it, with its engine; and the classic step, from the same weights."""
    engine = Engine(made.compute)
    objective = build_objective(made, engine, CHANNELS, (side, side))
    D = make_discriminator(made, CHANNELS, (side, side))
    classic = Classic(make_generator(made, CHANNELS, (side, side)), D)
    if any(isinstance(part, ParametrizationList) for part in D.modules()):
        pytest.skip(
            "its power iterations tell that the classic step judges fake images first (p2pzoo.testing checks it)"
        )
    networks = (objective.G.network, objective.D.network, classic.G, classic.D)
    for part in (part for network in networks for part in network.modules()):
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
    return engine, objective, classic


def batch(side, number):
    generator = torch.Generator().manual_seed(number)
    x, y = torch.rand(2, 1, 3, side, side, generator=generator, dtype=torch.float64) * 2 - 1
    dtype = torch.get_default_dtype()
    return Batch(x.to(dtype), y.to(dtype), ("a",))


def assert_same_losses(told, classic, tolerance):
    assert told["D.gan"].item() == pytest.approx((classic["D.real"] + classic["D.fake"]) / 2, rel=0, abs=tolerance)
    for name in ("G.gan", "G.l1"):
        assert told[name].item() == pytest.approx(classic[name], rel=0, abs=tolerance)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_there_are_components_to_hold_to_it():
    assert {entry.name for entry in first_party("generator")} >= {"unet", "encoder-decoder"}
    assert {entry.name for entry in first_party("discriminator")} >= {"pixel", "patch", "image"}


def weights(classic):
    """Of both networks, named as `expected` names them."""
    return [*classic.G.named_parameters(), *((f"D.{name}", weight) for name, weight in classic.D.named_parameters())]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("variant", OF_THE_PAPER)
def test_in_float64_losses_and_weights_agree_over_many_steps(variant):
    """D's running statistics are left out: what it was shown last differs, and nothing reads them."""
    made = experiment(*variant, width=4)
    side = smallest(made)
    engine, ours, classic = contestants(made, side)
    begun = {name: weight.clone() for name, weight in weights(classic)}
    for number in range(STEPS):
        pair = batch(side, number)
        told = ours.step(engine.move(pair), number)
        assert_same_losses(told, classic.step(pair.x, pair.y), 1e-9)
    expected = classic.G.state_dict() | {f"D.{name}": weight for name, weight in classic.D.named_parameters()}
    found = ours.G.network.state_dict() | {f"D.{name}": weight for name, weight in ours.D.network.named_parameters()}
    for name, tensor in expected.items():
        # a bias that an instance norm takes away has no gradient but rounding: neither may move by it
        still = name in begun and (tensor - begun[name]).abs().max() < UNMOVED
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=UNMOVED if still else 1e-9)
    assert any((weight - expected[name]).abs().max() > 1e-3 for name, weight in begun.items()), "G has learnt"


@pytest.mark.parametrize("variant", MARKED)
def test_in_float32_one_step_gives_the_same_pictures_losses_and_gradients(variant):
    """With rounded corners: a value within rounding of a ReLU's kink has two gradients, and rounding chooses."""
    made = experiment(*variant, width=32)
    engine, ours, classic = contestants(made, 128)
    exact = contestants(made, 128)[2]
    for network in (ours.G.network, ours.D.network, classic.G, classic.D, exact.G, exact.D):
        smooth(network)
    optimizers = [player.optimizer for player in ours.players]
    for each in (classic, exact):
        optimizers += [each.optimizer_G, each.optimizer_D]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = 0.0  # G meets the D that judged, and gradients stay to be looked at
    pictures = []
    for network in (ours.G.network, classic.G):
        network.register_forward_hook(lambda _module, _x, y_hat: pictures.append(y_hat.detach()))

    gradients = {}  # ours are freed after the step

    def keep(parameter):
        gradients[parameter] = parameter.grad.clone()

    for parameter in (*ours.G.network.parameters(), *ours.D.network.parameters()):
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(keep)

    pair = off_the_corner_of_l1(copy.deepcopy(classic.G), batch(128, 0))
    told = ours.step(engine.move(pair), 0)
    assert_same_losses(told, classic.step(pair.x, pair.y), 1e-4)
    torch.testing.assert_close(*pictures, rtol=0, atol=1e-4)

    exact.G.double()
    exact.D.double()
    exact.step(pair.x.double(), pair.y.double())
    compared = 0
    for network, its, exacts in ((ours.G.network, classic.G, exact.G), (ours.D.network, classic.D, exact.D)):
        parameters = zip(network.named_parameters(), its.parameters(), exacts.parameters(), strict=True)
        parameters = [each for each in parameters if each[2].grad is not None]
        norms = [true.grad.norm().item() for _, _, true in parameters]
        rounding = 1e-6 * max(norms)  # of sums that nearly cancel, as before a norm of few values
        for ((name, mine), classics, _), norm in zip(parameters, norms, strict=True):
            if norm > 1e-9:  # else it is zero but for rounding: a bias before a norm
                compared += 1
                assert (gradients[mine] - classics.grad).norm().item() <= 1e-3 * norm + rounding, name
    assert compared > len(optimizers) * 4


@torch.no_grad()
def off_the_corner_of_l1(G, pair):
    """The pair, no value of y within a thousandth of ŷ: one sign of 49 152 that rounding turns is 1% of a gradient."""
    G._forward_hooks.clear()
    y_hat = G(pair.x)
    return replace(pair, y=torch.where((pair.y - y_hat).abs() < 1e-3, y_hat + 1e-2, pair.y))


def smooth(network):
    """ReLUs round their corners at a hundredth: far above rounding, near enough to behave as they do."""
    for module in network.modules():
        for name, part in module.named_children():
            if isinstance(part, nn.ReLU | nn.ReLU6 | nn.LeakyReLU):
                setattr(module, name, nn.Softplus(beta=100))
