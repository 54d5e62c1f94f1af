"""p2pzoo's step with all its optimizations gives the results of the classic step of `benchmarks/baseline.py`.

The tests run for every generator and discriminator of the first-party plugins, also for new ones.
"""

import copy
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args, get_origin

import pytest
import torch
from p2pzoo_bench.table_file import inline
from small_networks import SMALL_NETWORKS
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from p2pzoo import config
from p2pzoo.compute.engine import Engine
from p2pzoo.models.build import build_network, on_meta
from p2pzoo.models.initialization import make_discriminator, make_generator
from p2pzoo.plugin import schema
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.loader import plugins, registry
from p2pzoo.training.setup import build_objective
from p2pzoo.utils.errors import UserError

ROOT = Path(__file__).parents[2]
CHANNELS = (3, 3)
STEPS = 8  # Adam moves a weight by about 2e-4 in each: enough to leave the initial weights behind
SIDES = (64, 96, 128, 256)
MIN_COARSEST_SIDE = 4  # values per side of the coarsest map
UNMOVED = 1e-7  # 1/10000 of the usual change of a weight
FIRST_PARTY = sorted(path.parent.name for path in ROOT.glob("plugins/*/__init__.py"))


def load_baseline():
    spec = importlib.util.spec_from_file_location("baseline", ROOT / "benchmarks" / "baseline.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Classic(load_baseline().Classic):
    """The baseline; a D with several maps has the mean of their losses."""

    def __init__(self, G, D):
        super().__init__(G, D, call_D=D)

    def gan(self, maps, real):
        return torch.stack([super(Classic, self).gan(logits, real) for logits in maps]).mean()


def first_party(kind):
    names = {plugin.name for plugin in plugins() if plugin.module in FIRST_PARTY}
    return [entry for entry in registry().of(kind) if entry.plugin in names]


def variants():
    """Yield (kind, component, {parameter: value}): each component with defaults, and with each other norm and bias."""
    for kind in ("generator", "discriminator"):
        for entry in first_party(kind):
            yield kind, entry.full_name, {}
            for name, param in schema.get_params(entry.load()).items():
                if name in ("norm", "bias"):
                    annotation = param.annotation
                    if get_origin(annotation) is Annotated:  # with AddedLater
                        annotation = get_args(annotation)[0]
                    for value in get_args(annotation):
                        if value != param.default:
                            yield kind, entry.full_name, {name: value}


VARIANTS = list(variants())
NAMES = [" ".join((use.partition(":")[2], *parameters.values())) for _, use, parameters in VARIANTS]


def mark_slow(is_slow):
    """Return the variants as pytest parameters. Those for which `is_slow(use, parameters)` is true are marked slow."""
    return [
        pytest.param(variant, id=name, marks=pytest.mark.slow if is_slow(*variant[1:]) else ())
        for variant, name in zip(VARIANTS, NAMES, strict=True)
    ]


SLOW_UNLESS_DEFAULT = mark_slow(lambda _, parameters: parameters)
SLOW_UNLESS_PIX2PIX = mark_slow(lambda use, parameters: parameters or not use.startswith("pix2pix:"))


def experiment(kind, use, parameters, width):
    """Return base.toml with this component, small and without noise in G, on the CPU."""
    overrides = [
        f"{kind}.use={use}",
        *(f"{kind}.{name}={value}" for name, value in parameters.items()),
        "compute.device=cpu",
    ]
    for role, name in (("generator", use if kind == "generator" else "unet"), ("discriminator", "patch")):
        entry = registry().get(role, use if role == kind else name)
        known = schema.get_params(entry.load())
        overrides += [f"{role}.width={width}"] if "width" in known else []
        overrides += [f"{role}.noise=none"] if "noise" in known else []
        of_plugin = SMALL_NETWORKS.get(entry.plugin, {})
        small = of_plugin.get(f"{role}.{entry.name}", of_plugin.get(entry.name, {}))
        overrides += [f"{role}.{parameter}={inline(value)}" for parameter, value in small.items()]
    return config.load("zoo:base.toml", "smoke", overrides)


def smallest(made):
    """Return the smallest side of SIDES that both networks support.

    If possible, their coarsest map has at least MIN_COARSEST_SIDE values per side: a norm over few values amplifies
    rounding.
    """
    smallest_accepted = None
    for side in SIDES:
        try:
            with on_meta():
                both = [
                    build_network(component, CHANNELS, (side, side))
                    for component in (made.generator, made.discriminator)
                ]
        except UserError:
            continue
        if side >= MIN_COARSEST_SIDE * max(getattr(network, "size_divisor", 1) for network in both):
            return side
        smallest_accepted = smallest_accepted or side
    return smallest_accepted


def skip_what_the_classic_step_cannot(made, side):
    with on_meta():
        D = build_network(made.discriminator, CHANNELS, (side, side))
        G = build_network(made.generator, CHANNELS, (side, side))
    if getattr(G, "sees_target", False):
        pytest.skip("the classic step has no generator that sees the target")
    if "labels" in made.discriminator.entry.needs:
        pytest.skip("the classic step has no labels")
    if any(isinstance(part, ParametrizationList) for part in D.modules()):
        pytest.skip(
            "the classic step runs D on fake images first, which changes power iterations (p2pzoo.testing checks it)"
        )


def contestants(made, side):
    """Return the engine and objective of a run, and the classic step with the same weights."""
    skip_what_the_classic_step_cannot(made, side)
    engine = Engine(made.compute)
    objective = build_objective(made, engine, CHANNELS, (side, side))
    D = make_discriminator(made, CHANNELS, (side, side))
    classic = Classic(make_generator(made, CHANNELS, (side, side)), D)
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


def assert_same_losses(losses, classic, tolerance):
    assert losses["D.gan"].item() == pytest.approx((classic["D.real"] + classic["D.fake"]) / 2, rel=0, abs=tolerance)
    for name in ("G.gan", "G.l1"):
        assert losses[name].item() == pytest.approx(classic[name], rel=0, abs=tolerance)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_the_components_of_pix2pix_are_tested():
    assert {entry.name for entry in first_party("generator")} >= {"unet", "encoder-decoder"}
    assert {entry.name for entry in first_party("discriminator")} >= {"pixel", "patch", "image"}


def weights(classic):
    """Return the named weights of both networks, those of D with the prefix D."""
    return [*classic.G.named_parameters(), *((f"D.{name}", weight) for name, weight in classic.D.named_parameters())]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("variant", SLOW_UNLESS_PIX2PIX)
def test_in_float64_losses_and_weights_agree_over_many_steps(variant):
    """Running statistics of D are not compared: the order of its last inputs differs, and nothing reads them."""
    made = experiment(*variant, width=4)
    side = smallest(made)
    engine, ours, classic = contestants(made, side)
    initial = {name: weight.clone() for name, weight in weights(classic)}
    for number in range(STEPS):
        pair = batch(side, number)
        losses = ours.step(engine.to_device(pair), number)
        assert_same_losses(losses, classic.step(pair.x, pair.y), 1e-9)
    expected = classic.G.state_dict() | {f"D.{name}": weight for name, weight in classic.D.named_parameters()}
    actual = ours.G.network.state_dict() | {f"D.{name}": weight for name, weight in ours.D.network.named_parameters()}
    for name, tensor in expected.items():
        # the gradient of a bias before an instance norm is only rounding: it must move the bias in neither
        is_unmoved = name in initial and (tensor - initial[name]).abs().max() < UNMOVED
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=UNMOVED if is_unmoved else 1e-9)
    assert any((weight - expected[name]).abs().max() > 1e-3 for name, weight in initial.items()), "G has learnt"


@pytest.mark.parametrize("variant", SLOW_UNLESS_DEFAULT)
def test_in_float32_one_step_gives_the_same_images_losses_and_gradients(variant):
    """ReLUs are smoothed: at a value near zero, rounding decides which of its two gradients a ReLU has."""
    made = experiment(*variant, width=8)
    side = smallest(made)
    engine, ours, classic = contestants(made, side)
    exact = contestants(made, side)[2]
    for network in (ours.G.network, ours.D.network, classic.G, classic.D, exact.G, exact.D):
        smooth_relus(network)
    optimizers = [trainable.optimizer for trainable in ours.trainables]
    for each in (classic, exact):
        optimizers += [each.optimizer_G, each.optimizer_D]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = 0.0  # the weights of D do not change before the step of G
    images = []
    for network in (ours.G.network, classic.G):
        network.register_forward_hook(lambda _module, _x, y_hat: images.append(y_hat.detach()))

    gradients = {}  # p2pzoo frees gradients after the step

    def keep(parameter):
        gradients[parameter] = parameter.grad.clone()

    for parameter in (*ours.G.network.parameters(), *ours.D.network.parameters()):
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(keep)

    pair = move_y_away_from_y_hat(copy.deepcopy(classic.G), batch(side, 0))
    losses = ours.step(engine.to_device(pair), 0)
    assert_same_losses(losses, classic.step(pair.x, pair.y), 1e-4)
    torch.testing.assert_close(*images, rtol=0, atol=1e-4)

    exact.G.double()
    exact.D.double()
    exact.step(pair.x.double(), pair.y.double())
    compared = 0
    for network, its, exacts in ((ours.G.network, classic.G, exact.G), (ours.D.network, classic.D, exact.D)):
        parameters = zip(network.named_parameters(), its.parameters(), exacts.parameters(), strict=True)
        parameters = [each for each in parameters if each[2].grad is not None]
        norms = [true.grad.norm().item() for _, _, true in parameters]
        rounding = 1e-6 * max(norms)  # for sums that nearly cancel, as before a norm over few values
        for ((name, mine), classics, _), norm in zip(parameters, norms, strict=True):
            if norm > 1e-9:  # otherwise the gradient is only rounding: a bias before a norm
                compared += 1
                assert (gradients[mine] - classics.grad).norm().item() <= 1e-3 * norm + rounding, name
    assert compared > 20  # without norms, gradients of the deepest layers vanish


@torch.no_grad()
def move_y_away_from_y_hat(G, pair):
    """Return the pair without values of y within 0.001 of ŷ: if rounding flips one sign of 12 288, a gradient changes
    by 2%.
    """
    G._forward_hooks.clear()
    y_hat = G(pair.x)
    return replace(pair, y=torch.where((pair.y - y_hat).abs() < 1e-3, y_hat + 1e-2, pair.y))


def smooth_relus(network):
    """Replace ReLUs by softplus with a width of 0.01: far above rounding, and close enough to behave like a ReLU."""
    for module in network.modules():
        for name, part in module.named_children():
            if isinstance(part, nn.ReLU | nn.ReLU6 | nn.LeakyReLU):
                setattr(module, name, nn.Softplus(beta=100))
