"""What the terms of the game promise: GAN losses, and the losses of one side."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any, get_args

import torch
from torch import Tensor, nn

from p2pzoo.compute.engine import frozen
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import Side, StepOutputs
from p2pzoo.testing.kit import SIDE, Case, DoesNotApply
from p2pzoo.testing.partners import Judge, Translator, batch
from p2pzoo.utils import rng

TOLERANCE = 1e-5
VERDICTS = (-50.0, -2.0, -1.0, 0.0, 1.0, 2.0, 50.0)  # logits of real and of fake images
NEAR = 1e-3  # how near to its declared minimum a GAN loss comes at one of them


def check_scalar(case: Case) -> None:
    """A finite scalar."""
    for side, loss in _sides(case):
        value = loss(_Game().scene(side))
        assert isinstance(value, Tensor), f"{_of(side)} is a {type(value).__name__}, not a tensor"
        assert value.shape == (), f"{_of(side)} has the shape {tuple(value.shape)}, and is no scalar"
        assert value.isfinite(), f"{_of(side)} is {value.item()}"


def check_gradients(case: Case) -> None:
    """Its own side gets finite gradients, and not all of them 0."""
    for side, loss in _sides(case):
        game = _Game()
        own = game.network(side)
        with game.turn(side):
            loss(game.scene(side)).backward()
        gradients = [p.grad for p in own.parameters() if p.grad is not None]
        assert gradients, f"{_of(side)} sends the {side} no gradient"
        assert all(each.isfinite().all() for each in gradients), (
            f"{_of(side)} sends the {side} a gradient of nan or inf"
        )
        assert any(each.any() for each in gradients), f"{_of(side)} sends the {side} a gradient of 0"


def check_other_side(case: Case) -> None:
    """The other side gets no gradient, and nobody's weights or images are changed."""
    for side, loss in _sides(case):
        game = _Game()
        [other] = [each for each in get_args(Side) if each != side]
        before = copy.deepcopy(game.state())
        with game.turn(side):
            loss(game.scene(side)).backward()
        graded = [name for name, p in game.network(other).named_parameters() if p.grad is not None]
        assert not graded, f"{_of(side)} sends the {other} a gradient"
        after = game.state()
        changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
        assert not changed, f"{_of(side)} changes {changed[0]}"


def check_minimum(case: Case) -> None:
    """The least value it declares: where ŷ = y, or at D's most favourable verdicts; and never less."""
    declared = getattr(case.term(), "minimum", None)
    if declared is None:
        raise DoesNotApply("declares no `minimum`")
    if case.kind == "gan_loss":
        assert isinstance(declared, tuple), "`minimum` is no pair (of judge, of fool)"
        assert len(declared) == 2, "`minimum` is no pair (of judge, of fool)"
        for (side, loss), least in zip(_sides(case), declared, strict=True):
            if least is not None:
                values = [loss(out).item() for out in _verdicts(side)]
                assert min(values) >= least - TOLERANCE, f"{_of(side)} falls to {min(values):.4g}, below {least}"
                assert min(values) <= least + NEAR, f"{_of(side)} does not fall below {min(values):.4g} to {least}"
        return
    [(side, loss)] = _sides(case)
    perfect = loss(_Game(perfect=True).scene(side)).item()
    assert abs(perfect - declared) <= TOLERANCE, f"is {perfect:.4g} where ŷ = y, and declares {declared}"
    for seed in range(3):
        value = loss(_Game(seed=seed).scene(side)).item()
        assert value >= declared - TOLERANCE, f"falls to {value:.4g}, below {declared}"


# --- what they share -------------------------------------------------------------------------------------------


class _Game:
    """A generator, a discriminator and a batch, as one step of training has them."""

    def __init__(self, *, seed: int = 0, perfect: bool = False, side: int = SIDE) -> None:
        with rng.torch_seed(seed):
            self.G, self.D = Translator(3, 3), Judge(3, 3)
        self.batch: Batch = batch(side)
        self.perfect = perfect

    def network(self, side: Side) -> nn.Module:
        return self.G if side == "generator" else self.D

    def scene(self, side: Side) -> StepOutputs:
        y_hat = self.batch.y.clone().requires_grad_() if self.perfect else self.G(self.batch.x)
        out = StepOutputs(self.batch, y_hat, self.D)
        return out if side == "discriminator" else out.for_generator()

    @contextlib.contextmanager
    def turn(self, side: Side) -> Iterator[None]:
        """D does not learn in the generator's move."""
        with frozen(self.D) if side == "generator" else contextlib.nullcontext():
            yield

    def state(self) -> dict[str, Tensor]:
        networks = {f"{name}.{key}": t for name in ("G", "D") for key, t in getattr(self, name).state_dict().items()}
        return {**networks, "x": self.batch.x, "y": self.batch.y}


class _Says:
    """A discriminator that says one logit of real and another of fake images."""

    def __init__(self, real: float, fake: float, y: Tensor) -> None:
        self.real, self.fake, self.y = real, fake, y

    def __call__(self, x: Tensor, y: Tensor) -> list[Tensor]:
        said = self.real if y is self.y else self.fake
        return [torch.full((len(y), 1, 4, 4), said) + 0 * y.mean()]

    def features(self, x: Tensor, y: Tensor) -> list[list[Tensor]]:
        return [[y]]


def _verdicts(side: Side) -> Iterator[StepOutputs]:
    shown = batch()
    y_hat = Translator(3, 3)(shown.x)
    for real, fake in itertools.product(VERDICTS, repeat=2):
        out = StepOutputs(shown, y_hat, _Says(real, fake, shown.y))
        yield out if side == "discriminator" else out.for_generator()


def _sides(case: Case) -> list[tuple[Side, Callable[[StepOutputs], Tensor]]]:
    loss: Any = case.term()
    if case.kind == "gan_loss":
        return [("discriminator", loss.discriminator_loss), ("generator", loss.generator_loss)]
    side: Any = getattr(loss, "side", None)
    assert side in get_args(Side), f"`side` is {side!r}, not one of {get_args(Side)}"
    return [(side, loss)]


def _of(side: Side) -> str:
    return {"discriminator": "what D minimises", "generator": "what G minimises"}[side]
