"""The minimax game (paper §3.1) and nothing else:

G* = arg min_G max_D  L_cGAN(G, D) + λ L_L1(G)

One step is D's move and then G's, which sees the D that has just moved; or, by choice, the moves of train.lua.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from p2pzoo.augment import Augmentations
from p2pzoo.compute import frozen
from p2pzoo.contracts import Batch, GanLoss, Loss, Scene, Side
from p2pzoo.errors import UserError


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

    gan, D         both None where G is trained on its losses alone
    pool           what D is shown in place of G's newest translations, or None
    both           how D is asked of real and fake images at once (see Scene), or None
    augmentations  of what D sees, for which the batches have been prepared; or None
    zero_biases    of all convolutions, at the start of each move (fDx and fGx of train.lua). G is asked before that, so
                   it translates with the biases of its last step; D judges without any
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
        augmentations: Augmentations | None = None,
        zero_biases: bool = False,
    ) -> None:
        self.G, self.D, self.gan, self.terms, self.descend = G, D, gan, terms, descend
        self.gan_weight, self.pool, self.both, self.augmentations = gan_weight, pool, both, augmentations
        self.zeroed = [bias for p in self.players for bias in _biases(p.network)] if zero_biases else []

    @property
    def players(self) -> tuple[Player, ...]:
        return (self.G, self.D) if self.D else (self.G,)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One move of each side. Returns every loss, unweighted and detached, and D's mean logits on real and fake."""
        y_hat = self.G.network(batch.x)
        told: dict[str, Tensor] = {}
        if self.D is None or self.gan is None:
            scene = Scene(batch, y_hat).anew()
            self._begin_move()
            self.descend(self._sum(told, self._terms("generator", scene)), self.G.optimizer)
        else:
            pooled = self.pool(batch.x, y_hat.detach(), step) if self.pool else None
            scene = Scene(batch, y_hat, self.D.network, pooled=pooled, both=self.both, seen=self._seen(batch))
            self._play(scene, self.D, self.gan, told)
        return told

    def _play(self, scene: Scene, D: Player, gan: GanLoss, told: dict[str, Tensor]) -> None:
        """D's move, then that of G, which meets the D that has moved."""
        self._begin_move()
        self.descend(self._sum(told, self._judged(gan, scene)), D.optimizer)
        told["D.real"], told["D.fake"] = _mean(scene.real), _mean(scene.fake)

        self._begin_move()
        with frozen(D.network):
            self.descend(self._sum(told, self._fooled(gan, scene.anew())), self.G.optimizer)

    def _seen(self, batch: Batch) -> Any:
        """How images look to D in this step; None: as they are."""
        if self.augmentations is None or not self.augmentations.of_d:
            return None
        return functools.partial(self.augmentations.show, batch.drawn)

    def _begin_move(self) -> None:
        if self.zeroed:
            with torch.no_grad():
                torch._foreach_zero_(self.zeroed)

    def _judged(self, gan: GanLoss, scene: Scene) -> dict[str, tuple[Tensor, float]]:
        return {"D.gan": (gan.judge(scene), self.gan_weight)} | self._terms("discriminator", scene)

    def _fooled(self, gan: GanLoss, scene: Scene) -> dict[str, tuple[Tensor, float]]:
        return {"G.gan": (gan.fool(scene), self.gan_weight)} | self._terms("generator", scene)

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


class LuaObjective(Objective):
    """The moves of train.lua (phillipi/pix2pix): G hears what D said before D moved, and learns by D's new weights.

    fGx takes D's output from fDx "so save computation", and netD:updateGradInput then leads the gradient back through
    weights that D's step has changed in the meantime (dcgan.torch#21). So each layer of D turns a gradient back by the
    input that it had and the weights that it has. The gradient is of no function that anybody wrote down, which is why
    PyTorch refuses it where it notices (its fused Adam does not let it) and the other order forgets all that D said.

    D is a network whose weights all lie in layers without parts, convolutions and norms: UserError otherwise.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.layers = _layers(self.D.network) if self.D else []

    def _play(self, scene: Scene, D: Player, gan: GanLoss, told: dict[str, Tensor]) -> None:
        """D's move, then that of G; what is told of G's is what D said before it moved."""
        self._begin_move()
        with frozen(D.network), _led_back_later(self.layers):
            fooled = self._fooled(gan, scene.anew())
        self.descend(self._sum(told, self._judged(gan, scene)), D.optimizer)
        told["D.real"], told["D.fake"] = _mean(scene.real), _mean(scene.fake)

        self._begin_move()
        with frozen(D.network):
            self.descend(self._sum(told, fooled), self.G.optimizer)


def _layers(network: nn.Module) -> list[nn.Module]:
    """The parts of a network that hold its weights. Raises UserError if one of them has parts itself."""
    layers = [part for part in network.modules() if any(True for _ in part.parameters(recurse=False))]
    if mixed := [type(part).__name__ for part in layers if any(True for _ in part.children())]:
        raise UserError(
            f'[train] order = "lua" takes a discriminator whose weights all lie in its layers; {mixed[0]} has weights '
            "beside parts of its own: leave train.order out"
        )
    return layers


@contextlib.contextmanager
def _led_back_later(layers: Sequence[nn.Module]) -> Iterator[None]:
    """What these layers are asked inside leads gradients back by the weights of the time when it does.

    Each layer is computed again then, from the input that it had: what it needs for its gradient is what it would have
    kept, but for its weights. That holds whatever kernel or precision the layer is computed in.
    """

    def later(forward: Any, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False)
        return y

    own = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = functools.partial(later, layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _biases(network: nn.Module) -> list[Tensor]:
    return [m.bias for m in network.modules() if isinstance(m, nn.modules.conv._ConvNd) and m.bias is not None]


def _mean(maps: Sequence[Tensor]) -> Tensor:
    return sum((m.detach().float().mean() for m in maps[1:]), maps[0].detach().float().mean()) / len(maps)
