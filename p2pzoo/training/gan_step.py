"""The minimax game (paper §3.1) and nothing else:

G* = arg min_G max_D  L_cGAN(G, D) + λ L_L1(G)

One step is D's move and then G's, which sees the D that has just moved. By choice D moves several times, the batch is
taken in parts, or the moves are those of train.lua.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from p2pzoo.compute.engine import frozen
from p2pzoo.data.augmentation import Augmentations
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.protocols import GanLoss, Loss
from p2pzoo.plugin.step_outputs import Side, StepOutputs


class Descend(Protocol):
    def __call__(self, loss: Tensor | Iterable[Tensor], optimizer: Any) -> None: ...


class Pool(Protocol):
    def __call__(self, x: Tensor, y_hat: Tensor, step: int) -> tuple[Tensor, Tensor]: ...

    def tensors(self) -> dict[str, Tensor]: ...

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None: ...


@dataclass(frozen=True)
class Term:
    """A weighted loss of one side."""

    name: str
    loss: Loss
    weight: float


@dataclass
class Trainable:
    """A network (an nn.Module that is a Generator or Discriminator) with the optimizer that moves it."""

    network: Any
    optimizer: Any


class Objective:
    """Plays the game on one batch after another.

    gan, D         both None where G is trained on its losses alone
    pool           what D is shown in place of G's newest translations, or None
    both           how D is asked of real and fake images at once (see Scene), or None
    augmentations  of what D sees, for which the batches have been prepared; or None
    zero_biases    of all convolutions, at the start of each move (fDx and fGx of train.lua). G is asked before that, so
                   it translates with the biases of its last step; D judges without any
    d_steps        moves of D in a step: a batch is then as many batches one after the other (Arjovsky et al. 2017,
                   arXiv:1701.07875, algorithm 1, but that G moves on the last of them)
    """

    def __init__(
        self,
        G: Trainable,
        D: Trainable | None,
        gan: GanLoss | None,
        terms: Sequence[Term],
        descend: Descend,
        *,
        gan_weight: float = 1.0,
        pool: Pool | None = None,
        both: Any = None,
        augmentations: Augmentations | None = None,
        zero_biases: bool = False,
        d_steps: int = 1,
    ) -> None:
        self.G, self.D, self.gan, self.terms, self.backward_and_step = G, D, gan, terms, descend
        self.gan_weight, self.pool, self.both, self.augmentations = gan_weight, pool, both, augmentations
        self.d_steps = d_steps
        self.zeroed = [bias for p in self.players for bias in _biases(p.network)] if zero_biases else []

    @property
    def players(self) -> tuple[Trainable, ...]:
        return (self.G, self.D) if self.D else (self.G,)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The moves of both sides. Returns every loss of their last ones, unweighted and detached, and D's mean logits
        on real and fake.
        """
        told: dict[str, Tensor] = {}
        if self.D is None or self.gan is None:
            out = StepOutputs(batch, self.G.network(batch.x), step=step).for_generator()
            self._begin_move()
            self.backward_and_step(self._sum(told, self._terms("generator", out)), self.G.optimizer)
            return told
        *earlier, batch = batch.split(self.d_steps)
        for i, images in enumerate(earlier):
            with torch.no_grad():
                y_hat = self.G.network(images.x)
            self._move_D(self._scene(images, y_hat, self.D, step, i), self.D, self.gan, told)
        y_hat = self.G.network(batch.x)
        self._play(self._scene(batch, y_hat, self.D, step, len(earlier)), self.D, self.gan, told)
        return told

    def _scene(self, batch: Batch, y_hat: Tensor, D: Trainable, step: int, move: int) -> StepOutputs:
        """What D sees in this of a step's moves."""
        pooled = self.pool(batch.x, y_hat.detach(), step * self.d_steps + move) if self.pool else None
        return self._scene_of(batch, y_hat, D, step, pooled)

    def _scene_of(
        self, batch: Batch, y_hat: Tensor, D: Trainable, step: int, pooled: tuple[Tensor, Tensor] | None = None
    ) -> StepOutputs:
        of_d = self.augmentations if self.augmentations and self.augmentations.of_d else None
        seen = functools.partial(of_d.show, batch.random) if of_d else None
        return StepOutputs(batch, y_hat, D.network, pooled=pooled, both=self.both, seen=seen, step=step)

    def _play(self, out: StepOutputs, D: Trainable, gan: GanLoss, told: dict[str, Tensor]) -> None:
        """D's move, then that of G, which meets the D that has moved."""
        self._move_D(out, D, gan, told)

        self._begin_move()
        with frozen(D.network):
            self.backward_and_step(self._sum(told, self._fooled(gan, out.for_generator())), self.G.optimizer)

    def _move_D(self, out: StepOutputs, D: Trainable, gan: GanLoss, told: dict[str, Tensor]) -> None:
        self._begin_move()
        self.backward_and_step(self._sum(told, self._judged(gan, out)), D.optimizer)
        told["D.real"], told["D.fake"] = _mean(out.real), _mean(out.fake)

    def _begin_move(self) -> None:
        if self.zeroed:
            with torch.no_grad():
                torch._foreach_zero_(self.zeroed)

    def _judged(self, gan: GanLoss, out: StepOutputs) -> dict[str, tuple[Tensor, float]]:
        return {"D.gan": (gan.discriminator_loss(out), self.gan_weight)} | self._terms("discriminator", out)

    def _fooled(self, gan: GanLoss, out: StepOutputs) -> dict[str, tuple[Tensor, float]]:
        return {"G.gan": (gan.generator_loss(out), self.gan_weight)} | self._terms("generator", out)

    def _terms(self, side: Side, out: StepOutputs) -> dict[str, tuple[Tensor, float]]:
        letter = "G" if side == "generator" else "D"
        return {f"{letter}.{t.name}": (t.loss(out), t.weight) for t in self.terms if t.loss.side == side}

    @staticmethod
    def _sum(told: dict[str, Tensor], losses: Mapping[str, tuple[Tensor, float]]) -> Tensor:
        told.update({name: value.detach() for name, (value, _) in losses.items()})
        total, *rest = (value * weight if weight != 1 else value for value, weight in losses.values())
        for value in rest:
            total = total + value
        return total


def _biases(network: nn.Module) -> list[Tensor]:
    """Of all convolutions but frozen ones."""
    biases = [m.bias for m in network.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    return [bias for bias in biases if bias is not None and bias.requires_grad]


def _mean(maps: Sequence[Tensor]) -> Tensor:
    return sum((m.detach().float().mean() for m in maps[1:]), maps[0].detach().float().mean()) / len(maps)
