"""The minimax game (paper §3.1), and nothing else:

G* = arg min_G max_D  L_cGAN(G, D) + λ L_L1(G)

A training step updates D, then G. G's losses use the D that was just updated. A recipe can ask for several updates of D
in a step (`Objective`), for a step in parts (accumulation.py), or for the order of train.lua (lua_order.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from p2pzoo.compute.engine import frozen
from p2pzoo.data.augmentation import Augmentations
from p2pzoo.models.optional_parts import unpack_seen_target
from p2pzoo.models.process import passes_time
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.protocols import GanLoss, Loss, Process
from p2pzoo.plugin.step_outputs import NetworkView, Side, StepOutputs
from p2pzoo.training.weight_average import WeightAverage
from p2pzoo.utils.errors import UserError

WeightedLosses = Mapping[str, tuple[Tensor, float]]  # {name in the log: (loss, weight)}


class BackwardAndStep(Protocol):
    """One optimizer step down the gradient of a loss, or of the sum of several (`Engine.backward_and_step`)."""

    def __call__(self, loss: Tensor | Iterable[Tensor], optimizer: Any) -> None: ...


class Pool(Protocol):
    """Chooses the fake images for D: x and ŷ, (B, C, H, W) each, of this step or of earlier ones (`ImagePool`).

    With labels, it also returns those of the chosen x.
    """

    def __call__(self, x: Tensor, y_hat: Tensor, step: int, labels: Tensor | None = None) -> tuple[Tensor, ...]: ...

    def tensors(self) -> dict[str, Tensor]: ...

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None: ...


@dataclass(frozen=True)
class Term:
    """A loss of the recipe with its weight. `loss.side` says whether it trains G or D."""

    name: str
    loss: Loss
    weight: float


@dataclass
class Trainable:
    """A network (an nn.Module that is a Generator or Discriminator) and its optimizer."""

    network: Any
    optimizer: Any


class Translation(NamedTuple):
    """What G makes of a batch in training.

    y_hat          (B, C, H, W) in [-1, 1]
    losses         {name: loss} of a generator with `sees_target`, else empty
    sample_weight  (B,) weights of the images; None without a process that weights them (`StepOutputs.sample_weight`)
    """

    y_hat: Tensor
    losses: Mapping[str, Tensor] = {}
    sample_weight: Tensor | None = None


class Objective:
    """The losses of G and D, and the training step that minimises them.

    D, gan         None if the recipe trains G on its other losses alone
    pool           chooses the fake images that D trains on, or None
    judge_both     computes D of real and fake images in one pass (see `StepOutputs`), or None
    augmentations  applied to the input of D; each batch holds their random numbers (`Batch.random`). None if unused
    prepare        applied to the batch before the updates; it changes x, y and labels. None: the batch is ready
    zero_biases    set the biases of all convolutions to zero before each update (fDx and fGx of train.lua). G
                   translates before that, with the biases of its last update; D computes all its logits without biases
    process        what G sees; each batch holds the random numbers for it (`Batch.u`, `Batch.z`). None: G sees x
    memory_format  in which G gets its images with a process
    labels_for_D   D is called as D(x, y, labels)
    d_steps        updates of D in a step, each on its own part of the batch. G is updated on the last part (Arjovsky et
                   al. 2017, arXiv:1701.07875, algorithm 1, takes a new batch for G)

    average        moving average of G, updated at the end of each step; None (at first) without one
    """

    def __init__(
        self,
        G: Trainable,
        D: Trainable | None,
        gan: GanLoss | None,
        terms: Sequence[Term],
        backward_and_step: BackwardAndStep,
        *,
        gan_weight: float = 1.0,
        pool: Pool | None = None,
        judge_both: Any = None,
        augmentations: Augmentations | None = None,
        prepare: Callable[[Batch], Batch] | None = None,
        process: Process | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        zero_biases: bool = False,
        labels_for_D: bool = False,
        d_steps: int = 1,
    ) -> None:
        self.G, self.D, self.gan, self.terms, self.backward_and_step = G, D, gan, terms, backward_and_step
        self.gan_weight, self.pool, self.judge_both, self.augmentations = gan_weight, pool, judge_both, augmentations
        self.prepare, self.d_steps = prepare or (lambda batch: batch), d_steps
        self.process, self.memory_format = process, memory_format
        self._passes_time = passes_time(process)
        self.labels_for_D, self.sees_target = labels_for_D, getattr(G.network, "sees_target", False)
        self.average: WeightAverage | None = None
        self._biases_to_zero = [b for t in self.trainables for b in _conv_biases(t.network)] if zero_biases else []

    @property
    def trainables(self) -> tuple[Trainable, ...]:
        return (self.G, self.D) if self.D else (self.G,)

    @property
    def stateful_modules(self) -> dict[str, nn.Module]:
        """The losses and augmentations that are modules: they may have state, which checkpoints keep."""
        parts: dict[str, Any] = {"gan_loss": self.gan, **{f"losses[{term.name}]": term.loss for term in self.terms}}
        modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        return {**modules, **(self.augmentations.modules if self.augmentations else {})}

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The training step: prepare the batch, update D, then G, then the average of G.

        Returns the logs, scalars on the device: each loss of the last update of D and of G, unweighted and detached
        ("D.gan", "G.l1", …), and the mean logits of D ("D.real", "D.fake").
        """
        return self.prepared_step(self.prepare(batch), step)

    def prepared_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The rest of the training step, on a batch that `prepare` returned."""
        logs = self.update(batch, step)
        if self.average is not None:
            self.average.update()
        return logs

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Update D, then G, on a prepared batch."""
        logs: dict[str, Tensor] = {}
        if self.D is None or self.gan is None:
            self._update_G(self._outputs(batch, self._translate(batch), step).for_generator(), logs)
            return logs

        *first_parts, batch = batch.split(self.d_steps)
        for i, part in enumerate(first_parts):
            with torch.no_grad():
                translation = self._translate(part)
            out = self._outputs(part, translation, step, self._pooled(part, translation.y_hat, step, i))
            self._update_D(out, self.D, self.gan, logs)

        translation = self._translate(batch)
        pooled = self._pooled(batch, translation.y_hat, step, len(first_parts))
        self._update_both(self._outputs(batch, translation, step, pooled), self.D, self.gan, logs)
        return logs

    def _translate(self, batch: Batch) -> Translation:
        losses: Mapping[str, Tensor] = {}
        weight = None
        if self.sees_target:
            y_hat, losses = unpack_seen_target(self.G.network, batch.x, batch.y)
        else:
            seen, t = self._noised(batch.x, batch)
            y_hat = self.G.network(*seen)
            weight_of = getattr(self.process, "loss_weight", None)
            weight = weight_of(t) if weight_of else None
        if y_hat.shape != batch.y.shape:
            given, wanted = ("×".join(map(str, images.shape[1:])) for images in (y_hat, batch.y))
            raise UserError(
                f"the generator makes images of {given} (channels × height × width) where the targets have {wanted}: "
                "it must return out_channels channels, in the size of x"
            )
        return Translation(y_hat, losses, weight)

    def _noised(self, x: Tensor, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The arguments of G, and the times: x or, with a process, what that makes of x and of y, u and z of the batch.

        The last argument is the times if the process passes them.
        """
        if not self.process:
            return (x,), None
        assert batch.u is not None
        assert batch.z is not None, "the batch has no random numbers of the process: ProcessNoise.sample makes them"
        noised, t = self.process.noised(x, batch.y, batch.u, batch.z)
        noised = noised.contiguous(memory_format=self.memory_format)
        return (noised, t) if self._passes_time else (noised,), t

    def _update_both(self, out: StepOutputs, D: Trainable, gan: GanLoss, logs: dict[str, Tensor]) -> None:
        self._update_D(out, D, gan, logs)  # max over D
        with frozen(D.network):
            self._update_G(out.for_generator(), logs)  # min over G, with the D that was just updated

    def _update_D(self, out: StepOutputs, D: Trainable, gan: GanLoss, logs: dict[str, Tensor]) -> None:
        self._set_biases_to_zero()
        self.backward_and_step(sum_and_log(self._D_losses(out, gan), logs), D.optimizer)
        self._finish_update_of_D(out, logs)

    def _finish_update_of_D(self, out: StepOutputs, logs: dict[str, Tensor]) -> None:
        logs["D.real"], logs["D.fake"] = mean_logit(out.real), mean_logit(out.fake)
        if self.augmentations:
            self.augmentations.observe(out.real)

    def _update_G(self, out: StepOutputs, logs: dict[str, Tensor]) -> None:
        self._set_biases_to_zero()
        self.backward_and_step(sum_and_log(self._G_losses(out), logs), self.G.optimizer)

    def _D_losses(self, out: StepOutputs, gan: GanLoss) -> WeightedLosses:
        return {"D.gan": (gan.discriminator_loss(out), self.gan_weight), **self._terms("discriminator", out)}

    def _G_losses(self, out: StepOutputs) -> WeightedLosses:
        gan_loss = {"G.gan": (self.gan.generator_loss(out), self.gan_weight)} if self.gan and self.D else {}
        own = {f"G.{name}": (loss, self.G.network.loss_weights[name]) for name, loss in out.G_losses.items()}
        return {**gan_loss, **self._terms("generator", out), **own}

    def _terms(self, side: Side, out: StepOutputs) -> WeightedLosses:
        letter = "G" if side == "generator" else "D"
        return {f"{letter}.{t.name}": (t.loss(out), t.weight) for t in self.terms if t.loss.side == side}

    def _pooled(self, batch: Batch, y_hat: Tensor, step: int, update: int) -> tuple[Tensor, ...] | None:
        """What the pool chooses for the update of D with this number within the step. None without a pool."""
        if not self.pool:
            return None
        labels = (batch.labels,) if self.labels_for_D else ()
        return self.pool(batch.x, y_hat.detach(), step * self.d_steps + update, *labels)

    def _outputs(
        self, batch: Batch, translation: Translation, step: int, fakes: tuple[Tensor, ...] | None = None
    ) -> StepOutputs:
        """fakes: (x, ŷ), with labels_for_D also labels, that D trains on in place of this batch's, or None."""
        augment = self.augmentations.for_d(batch.random) if self.augmentations else None
        return StepOutputs(
            batch, translation.y_hat, self.D.network if self.D else None, G=self._G_of_losses(batch),
            G_losses=translation.losses, pooled=fakes, judge_both=self.judge_both, augment=augment,
            labels_for_D=self.labels_for_D, sample_weight=translation.sample_weight, step=step,
        )  # fmt: skip

    def _G_of_losses(self, batch: Batch) -> Any:
        """G as losses call it: with x. See `StepOutputs.G`."""
        network = self.G.network
        return NetworkView(network, lambda x: self._noised(x, batch)[0]) if self.process else network

    def _set_biases_to_zero(self) -> None:
        if self._biases_to_zero:
            with torch.no_grad():
                torch._foreach_zero_(self._biases_to_zero)


def sum_and_log(losses: WeightedLosses, logs: dict[str, Tensor]) -> Tensor:
    """The weighted sum, a scalar to minimise. Puts each loss into the logs, unweighted and detached."""
    logs.update({name: loss.detach() for name, (loss, _) in losses.items()})
    total, *rest = (loss * weight if weight != 1 else loss for loss, weight in losses.values())
    for loss in rest:
        total = total + loss
    return total


def mean_logit(maps: Sequence[Tensor]) -> Tensor:
    """The mean of D's logits, over the pixels of each map first, so that each scale counts the same. Detached."""
    return sum((m.detach().float().mean() for m in maps[1:]), maps[0].detach().float().mean()) / len(maps)


def _conv_biases(network: nn.Module) -> list[Tensor]:
    """The biases of all convolutions, without frozen ones: those never train, so zeros would stay."""
    biases = [m.bias for m in network.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    return [bias for bias in biases if bias is not None and bias.requires_grad]
