"""The minimax game (paper §3.1) and nothing else:

G* = arg min_G max_D  L_cGAN(G, D) + λ L_L1(G)

One step is D's move and then G's, which sees the D that has just moved. By choice D moves several times, the batch is
taken in parts, or the moves are those of train.lua.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    d_steps        moves of D in a step: a batch is then as many batches one after the other (Arjovsky et al. 2017,
                   arXiv:1701.07875, algorithm 1, but that G moves on the last of them)
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
        d_steps: int = 1,
    ) -> None:
        self.G, self.D, self.gan, self.terms, self.descend = G, D, gan, terms, descend
        self.gan_weight, self.pool, self.both, self.augmentations = gan_weight, pool, both, augmentations
        self.d_steps = d_steps
        self.zeroed = [bias for p in self.players for bias in _biases(p.network)] if zero_biases else []

    @property
    def players(self) -> tuple[Player, ...]:
        return (self.G, self.D) if self.D else (self.G,)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The moves of both sides. Returns every loss of their last ones, unweighted and detached, and D's mean logits
        on real and fake.
        """
        told: dict[str, Tensor] = {}
        if self.D is None or self.gan is None:
            scene = Scene(batch, self.G.network(batch.x), step=step).anew()
            self._begin_move()
            self.descend(self._sum(told, self._terms("generator", scene)), self.G.optimizer)
            return told
        *earlier, batch = batch.split(self.d_steps)
        for i, images in enumerate(earlier):
            with torch.no_grad():
                y_hat = self.G.network(images.x)
            self._move_D(self._scene(images, y_hat, self.D, step, i), self.D, self.gan, told)
        y_hat = self.G.network(batch.x)
        self._play(self._scene(batch, y_hat, self.D, step, len(earlier)), self.D, self.gan, told)
        return told

    def _scene(self, batch: Batch, y_hat: Tensor, D: Player, step: int, move: int) -> Scene:
        """What D sees in this of a step's moves."""
        pooled = self.pool(batch.x, y_hat.detach(), step * self.d_steps + move) if self.pool else None
        return self._scene_of(batch, y_hat, D, step, pooled)

    def _scene_of(
        self, batch: Batch, y_hat: Tensor, D: Player, step: int, pooled: tuple[Tensor, Tensor] | None = None
    ) -> Scene:
        of_d = self.augmentations if self.augmentations and self.augmentations.of_d else None
        seen = functools.partial(of_d.show, batch.drawn) if of_d else None
        return Scene(batch, y_hat, D.network, pooled=pooled, both=self.both, seen=seen, step=step)

    def _play(self, scene: Scene, D: Player, gan: GanLoss, told: dict[str, Tensor]) -> None:
        """D's move, then that of G, which meets the D that has moved."""
        self._move_D(scene, D, gan, told)

        self._begin_move()
        with frozen(D.network):
            self.descend(self._sum(told, self._fooled(gan, scene.anew())), self.G.optimizer)

    def _move_D(self, scene: Scene, D: Player, gan: GanLoss, told: dict[str, Tensor]) -> None:
        self._begin_move()
        self.descend(self._sum(told, self._judged(gan, scene)), D.optimizer)
        told["D.real"], told["D.fake"] = _mean(scene.real), _mean(scene.fake)

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


class AccumulatingObjective(Objective):
    """The same moves in less memory: each descends the sum of gradients that are taken over `parts` of its batch.

    Translations are kept from D's move to G's, but not what led to them: G translates again, part by part. Where it
    draws noise, that is new noise, as in most GANs' moves of G.
    """

    def __init__(self, *args: Any, parts: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.parts = parts

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """As of `Objective`; what is told is the mean over the parts."""
        told: list[dict[str, Tensor]] = [{} for _ in range(self.parts)]
        D, gan = self.D, self.gan
        if D is None or gan is None:
            self.descend(self._summed(batch, step, told, functools.partial(self._terms, "generator")), self.G.optimizer)
            return _means(told)
        batches = batch.split(self.d_steps)
        for i, images in enumerate(batches):
            self.descend(self._judged_in_parts(images, step, i, told), D.optimizer)
        with frozen(D.network):
            self.descend(self._summed(batches[-1], step, told, functools.partial(self._fooled, gan)), self.G.optimizer)
        return _means(told)

    def _judged_in_parts(self, batch: Batch, step: int, move: int, told: list[dict[str, Tensor]]) -> Iterator[Tensor]:
        assert self.D
        assert self.gan
        parts = batch.split(self.parts)
        with torch.no_grad():
            y_hat = torch.cat([self.G.network(part.x) for part in parts])
        pooled = self.pool(batch.x, y_hat, step * self.d_steps + move) if self.pool else (batch.x, y_hat)
        shown = zip(*(images.chunk(self.parts) for images in pooled), strict=True)
        for own, part, each, seen in zip(told, parts, y_hat.chunk(self.parts), shown, strict=True):
            scene = self._scene_of(part, each, self.D, step, seen)
            yield self._sum(own, self._judged(self.gan, scene)) / self.parts
            own["D.real"], own["D.fake"] = _mean(scene.real), _mean(scene.fake)

    def _summed(self, batch: Batch, step: int, told: list[dict[str, Tensor]], losses: Any) -> Iterator[Tensor]:
        """The losses of G's move, by parts."""
        for own, part in zip(told, batch.split(self.parts), strict=True):
            y_hat = self.G.network(part.x)
            scene = (self._scene_of(part, y_hat, self.D, step) if self.D else Scene(part, y_hat, step=step)).anew()
            yield self._sum(own, losses(scene)) / self.parts


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
    """Of all convolutions but frozen ones."""
    biases = [m.bias for m in network.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    return [bias for bias in biases if bias is not None and bias.requires_grad]


def _means(told: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([each[name] for each in told]).mean(0) for name in told[0]}


def _mean(maps: Sequence[Tensor]) -> Tensor:
    return sum((m.detach().float().mean() for m in maps[1:]), maps[0].detach().float().mean()) / len(maps)
