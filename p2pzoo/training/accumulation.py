"""The training step in less memory: gradients summed over parts of the batch."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from p2pzoo.compute.engine import frozen
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import StepOutputs
from p2pzoo.training.gan_step import Objective, _mean


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
            self.backward_and_step(
                self._summed(batch, step, told, functools.partial(self._terms, "generator")), self.G.optimizer
            )
            return _means(told)
        batches = batch.split(self.d_steps)
        for i, images in enumerate(batches):
            self.backward_and_step(self._judged_in_parts(images, step, i, told), D.optimizer)
        with frozen(D.network):
            self.backward_and_step(
                self._summed(batches[-1], step, told, functools.partial(self._fooled, gan)), self.G.optimizer
            )
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
            out = self._scene_of(part, each, self.D, step, seen)
            yield self._sum(own, self._judged(self.gan, out)) / self.parts
            own["D.real"], own["D.fake"] = _mean(out.real), _mean(out.fake)

    def _summed(self, batch: Batch, step: int, told: list[dict[str, Tensor]], losses: Any) -> Iterator[Tensor]:
        """The losses of G's move, by parts."""
        for own, part in zip(told, batch.split(self.parts), strict=True):
            y_hat = self.G.network(part.x)
            out = (
                self._scene_of(part, y_hat, self.D, step) if self.D else StepOutputs(part, y_hat, step=step)
            ).for_generator()
            yield self._sum(own, losses(out)) / self.parts


def _means(told: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([each[name] for each in told]).mean(0) for name in told[0]}
