"""The minimax game (paper §3.1) and nothing else:

G* = arg min_G max_D  L_cGAN(G, D) + λ L_L1(G)

One step is D's move and then G's, which sees the D that has just moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from p2pzoo.compute import frozen
from p2pzoo.contracts import Batch, GanLoss, Loss, Scene, Side


class Descend(Protocol):
    def __call__(self, loss: Tensor, optimizer: Any) -> None: ...


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
class Player:
    """A network (an nn.Module that is a Generator or Discriminator) with the optimizer that moves it."""

    network: Any
    optimizer: Any


class Objective:
    """Plays the game on one batch after another.

    gan, D  both None where G is trained on its losses alone
    pool    what D is shown in place of G's newest translations, or None
    both    how D is asked of real and fake images at once (see Scene), or None
    """

    def __init__(
        self,
        G: Player,
        D: Player | None,
        gan: GanLoss | None,
        terms: Sequence[Term],
        descend: Descend,
        *,
        gan_weight: float = 1.0,
        pool: Pool | None = None,
        both: Any = None,
    ) -> None:
        self.G, self.D, self.gan, self.terms, self.descend = G, D, gan, terms, descend
        self.gan_weight, self.pool, self.both = gan_weight, pool, both

    @property
    def players(self) -> tuple[Player, ...]:
        return (self.G, self.D) if self.D else (self.G,)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One move of each side. Returns every loss, unweighted and detached, and D's mean logits on real and fake."""
        y_hat = self.G.network(batch.x)
        told: dict[str, Tensor] = {}
        if self.D is None or self.gan is None:
            scene = Scene(batch, y_hat).anew()
            self.descend(self._sum(told, self._terms("generator", scene)), self.G.optimizer)
            return told

        pooled = self.pool(batch.x, y_hat.detach(), step) if self.pool else None
        scene = Scene(batch, y_hat, self.D.network, pooled=pooled, both=self.both)
        judged = {"D.gan": (self.gan.judge(scene), self.gan_weight)}
        self.descend(self._sum(told, judged | self._terms("discriminator", scene)), self.D.optimizer)
        told["D.real"], told["D.fake"] = _mean(scene.real), _mean(scene.fake)

        with frozen(self.D.network):
            scene = scene.anew()
            fooled = {"G.gan": (self.gan.fool(scene), self.gan_weight)}
            self.descend(self._sum(told, fooled | self._terms("generator", scene)), self.G.optimizer)
        return told

    def _terms(self, side: Side, scene: Scene) -> dict[str, tuple[Tensor, float]]:
        letter = "G" if side == "generator" else "D"
        return {f"{letter}.{t.name}": (t.loss(scene), t.weight) for t in self.terms if t.loss.side == side}

    @staticmethod
    def _sum(told: dict[str, Tensor], losses: Mapping[str, tuple[Tensor, float]]) -> Tensor:
        told.update({name: value.detach() for name, (value, _) in losses.items()})
        total, *rest = (value * weight if weight != 1 else value for value, weight in losses.values())
        for value in rest:
            total = total + value
        return total


def _mean(maps: Sequence[Tensor]) -> Tensor:
    return sum((m.detach().float().mean() for m in maps[1:]), maps[0].detach().float().mean()) / len(maps)
