"""Checks of GAN losses, and of the losses of one side."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from p2pzoo.compute.engine import frozen
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import Side, StepOutputs
from p2pzoo.testing.component_case import IMAGE_SIDE, ComponentCase, DoesNotApply
from p2pzoo.testing.tiny_components import TinyDiscriminator, TinyGenerator, TinyNoisyGenerator, example_batch
from p2pzoo.utils import rng

_TOLERANCE = 1e-5  # below a declared minimum, for rounding in float32
_LOGITS = (-50.0, -2.0, -1.0, 0.0, 1.0, 2.0, 50.0)  # of real and fake images: the minima of all known GAN losses
_REACH = 1e-3  # how close to its declared minimum a GAN loss must come at one pair of _LOGITS


def check_loss_scalar(case: ComponentCase) -> None:
    """Returns a finite scalar."""
    for side, loss in losses_by_side(case):
        value = loss(Game().outputs(side))
        assert isinstance(value, Tensor), f"{describe_side(side)} is a {type(value).__name__}, not a tensor"
        assert value.shape == (), f"{describe_side(side)} has the shape {tuple(value.shape)}: it must be a scalar"
        assert value.isfinite(), f"{describe_side(side)} is {value.item()}"


def check_loss_gradients(case: ComponentCase) -> None:
    """Gives its own side gradients that are finite and not all 0."""
    for side, loss in losses_by_side(case):
        game = Game()
        own_network = game.network(side)
        with game.turn(side):
            loss(game.outputs(side)).backward()
        gradients = [p.grad for p in own_network.parameters() if p.grad is not None]
        assert gradients, f"{describe_side(side)} gives the {side} no gradient"
        finite = all(gradient.isfinite().all() for gradient in gradients)
        assert finite, f"{describe_side(side)} gives the {side} a gradient of nan or inf"
        nonzero = any(gradient.any() for gradient in gradients)
        assert nonzero, f"{describe_side(side)} gives the {side} a gradient of 0"


def check_loss_other_side(case: ComponentCase) -> None:
    """Gives the other side no gradient, and changes no weights and no images."""
    for side, loss in losses_by_side(case):
        game = Game()
        [other_side] = [each for each in get_args(Side) if each != side]
        before = copy.deepcopy(game.state())
        with game.turn(side):
            loss(game.outputs(side)).backward()
        with_gradient = [name for name, p in game.network(other_side).named_parameters() if p.grad is not None]
        assert not with_gradient, f"{describe_side(side)} gives the {other_side} a gradient"
        after = game.state()
        changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
        assert not changed, f"{describe_side(side)} changes {changed[0]}"


def check_loss_minimum(case: ComponentCase) -> None:
    """Has the declared `minimum` at ŷ = y, or at D's best logits for a GAN loss, and never falls below it."""
    declared = getattr(case.build_loss(), "minimum", None)
    if declared is None:
        raise DoesNotApply("declares no `minimum`")
    if case.kind == "gan_loss":
        _check_gan_minimum(case, declared)
        return
    [(side, loss)] = losses_by_side(case)
    perfect = loss(Game(perfect=True).outputs(side)).item()
    assert abs(perfect - declared) <= _TOLERANCE, f"is {perfect:.4g} at ŷ = y, but declares a minimum of {declared}"
    for seed in range(3):
        value = loss(Game(seed=seed).outputs(side)).item()
        assert value >= declared - _TOLERANCE, f"falls to {value:.4g}, below its declared minimum of {declared}"


def check_loss_sample_weight(case: ComponentCase) -> None:
    """Is linear in the weights of the images if it has `uses_sample_weight`, and does not depend on them otherwise."""
    values = []
    for weights in (None, (2.0, 0.0), (0.0, 2.0)):
        with rng.torch_seed(7):
            [(side, loss)] = losses_by_side(case)  # built again: it may have state
            if side == "discriminator":
                raise DoesNotApply("D's update has no weights of images")
            values.append(loss(Game().outputs(side, weights)).item())
    plain, first, second = values
    if not getattr(case.component.factory, "uses_sample_weight", False):
        assert first == second == plain, "depends on `out.sample_weight`, and has no `uses_sample_weight`"
        return
    assert first != second, "has `uses_sample_weight`, and does not depend on `out.sample_weight`"
    is_mean = abs((first + second) / 2 - plain) <= _TOLERANCE * max(1.0, abs(plain))
    assert is_mean, "is not the mean of its values for the images, weighted: see `StepOutputs.weighted_mean`"


def _check_gan_minimum(case: ComponentCase, declared: Any) -> None:
    is_pair = isinstance(declared, tuple) and len(declared) == 2
    assert is_pair, f"`minimum` is {declared!r}, not a pair (of discriminator_loss, of generator_loss)"
    for (side, loss), minimum in zip(losses_by_side(case), declared, strict=True):
        if minimum is None:
            continue
        lowest = min(loss(out).item() for out in _outputs_for_logits(side))
        assert lowest >= minimum - _TOLERANCE, (
            f"{describe_side(side)} falls to {lowest:.4g}, below its declared minimum of {minimum}"
        )
        assert lowest <= minimum + _REACH, (
            f"{describe_side(side)} does not fall below {lowest:.4g}, but declares a minimum of {minimum}"
        )


# --- shared by the checks --------------------------------------------------------------------------------------


class Game:
    """A generator, a discriminator and a batch, as in one training step.

    perfect  ŷ is y itself
    parts    what losses may use of G besides G(x): "features", "z"
    """

    def __init__(
        self, *, seed: int = 0, perfect: bool = False, device: str = "cpu", parts: Collection[str] = ("features", "z")
    ) -> None:
        with rng.torch_seed(seed):
            self.G, self.D = TinyNoisyGenerator(3, 3).to(device), TinyDiscriminator(3, 3).to(device)
        batch = example_batch(IMAGE_SIDE)
        assert batch.labels is not None
        self.batch: Batch = replace(
            batch, x=batch.x.to(device), y=batch.y.to(device), labels=batch.labels.to(device)
        )  # fmt: skip
        self.perfect, self.parts = perfect, parts

    def network(self, side: Side) -> nn.Module:
        return self.G if side == "generator" else self.D

    def outputs(self, side: Side, weights: Sequence[float] | None = None) -> StepOutputs:
        """weights: of the images, None without any"""
        G: Any = _PartialGenerator(self.G, self.parts)
        y_hat = self.batch.y.clone().requires_grad_() if self.perfect else G(self.batch.x)
        sample_weight = torch.tensor(weights, device=y_hat.device) if weights else None
        out = StepOutputs(self.batch, y_hat, self.D, G=G, sample_weight=sample_weight)
        return out if side == "discriminator" else out.for_generator()

    @contextlib.contextmanager
    def turn(self, side: Side) -> Iterator[None]:
        """D is frozen while the generator learns."""
        with frozen(self.D) if side == "generator" else contextlib.nullcontext():
            yield

    def state(self) -> dict[str, Tensor]:
        networks = {f"{name}.{key}": t for name in ("G", "D") for key, t in getattr(self, name).state_dict().items()}
        return {**networks, "x": self.batch.x, "y": self.batch.y}


class _PartialGenerator:
    """G, with only those of its optional parts that are named."""

    def __init__(self, G: TinyNoisyGenerator, parts: Collection[str]) -> None:
        self._G, self._parts = G, parts

    def __call__(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        if z is not None and "z" not in self._parts:
            raise TypeError("this generator takes no z")
        return self._G(x, z=x.new_zeros(()) if z is None else z)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        if {"features": "features", "draw_z": "z", "takes_z": "z"}.get(name, "other") not in (*self._parts, "other"):
            raise AttributeError(f"this generator has no `{name}`")
        return getattr(self._G, name)


class _ConstantDiscriminator:
    """Gives every real image one logit, and every fake image another. An image is real if it is the tensor `y`."""

    def __init__(self, real: float, fake: float, y: Tensor) -> None:
        self.real, self.fake, self.y = real, fake, y

    def __call__(self, x: Tensor, y: Tensor) -> list[Tensor]:
        logit = self.real if y is self.y else self.fake
        return [torch.full((len(y), 1, 4, 4), logit) + 0 * y.mean()]  # + 0: a loss may ask for the gradient at y

    def features(self, x: Tensor, y: Tensor) -> list[list[Tensor]]:
        return [[y]]


def _outputs_for_logits(side: Side) -> Iterator[StepOutputs]:
    """One training step for each pair of _LOGITS, of real and of fake images."""
    batch = example_batch()
    y_hat = TinyGenerator(3, 3)(batch.x)
    for real, fake in itertools.product(_LOGITS, repeat=2):
        out = StepOutputs(batch, y_hat, _ConstantDiscriminator(real, fake, batch.y))
        yield out if side == "discriminator" else out.for_generator()


def losses_by_side(case: ComponentCase, device: str = "cpu") -> list[tuple[Side, Callable[[StepOutputs], Tensor]]]:
    """(side, what it minimises) of a loss or GAN loss on a device; as in training, only an nn.Module is moved there."""
    loss: Any = case.build_loss()
    loss = loss.to(device) if isinstance(loss, nn.Module) else loss
    if case.kind == "gan_loss":
        return [("discriminator", loss.discriminator_loss), ("generator", loss.generator_loss)]
    side: Any = getattr(loss, "side", None)
    assert side in get_args(Side), f"`side` is {side!r}: it must be one of {get_args(Side)}"
    return [(side, loss)]


def describe_side(side: Side) -> str:
    return {"discriminator": "the loss of D", "generator": "the loss of G"}[side]
