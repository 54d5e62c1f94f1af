"""Gradient accumulation: the training step in less memory, with gradients summed over parts of the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from p2pzoo.compute.engine import frozen
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.protocols import GanLoss
from p2pzoo.training.gan_step import Objective, Trainable, Translation, sum_and_log


class AccumulatingObjective(Objective):
    """The same step in less memory: each update sums the gradients of `parts` equal parts of its batch.

    For D's update G translates the batch without gradients; for its own update it translates again, part by part. A G
    with noise draws new noise there, as most GANs do for the update of G. A layer or a loss that mixes images of a
    batch (batch norm, a relativistic average) sees those of its part.
    """

    def __init__(self, *args: Any, parts: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.parts = parts

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The same as in `Objective`; the logs are means over the parts."""
        logs: list[dict[str, Tensor]] = [{} for _ in range(self.parts)]
        D, gan = self.D, self.gan
        if D is None or gan is None:
            self.backward_and_step(self._G_sums(batch, step, logs), self.G.optimizer)
            return _mean_logs(logs)
        batches = batch.split(self.d_steps)
        for i, batch in enumerate(batches):
            self.backward_and_step(self._D_sums(batch, step, i, D, gan, logs), D.optimizer)
        with frozen(D.network):
            self.backward_and_step(self._G_sums(batches[-1], step, logs), self.G.optimizer)
        return _mean_logs(logs)

    def _D_sums(
        self, batch: Batch, step: int, update: int, D: Trainable, gan: GanLoss, logs: list[dict[str, Tensor]]
    ) -> Iterator[Tensor]:
        """The weighted sum of D's losses of each part, divided by the number of parts."""
        parts = batch.split(self.parts)
        with torch.no_grad():
            y_hat = torch.cat([self._translate(part).y_hat for part in parts])
        labels: tuple[Any, ...] = (batch.labels,) if self.labels_for_D else ()
        fakes = self._pooled(batch, y_hat, step, update) or (batch.x, y_hat, *labels)
        fakes_of_parts = zip(*(images.chunk(self.parts) for images in fakes), strict=True)
        y_hats = y_hat.chunk(self.parts)
        for part_logs, part, part_y_hat, part_fakes in zip(logs, parts, y_hats, fakes_of_parts, strict=True):
            out = self._outputs(part, Translation(part_y_hat), step, part_fakes)
            yield sum_and_log(self._D_losses(out, gan), part_logs) / self.parts
            self._finish_update_of_D(out, part_logs)

    def _G_sums(self, batch: Batch, step: int, logs: list[dict[str, Tensor]]) -> Iterator[Tensor]:
        """The weighted sum of G's losses of each part, divided by the number of parts."""
        for part_logs, part in zip(logs, batch.split(self.parts), strict=True):
            out = self._outputs(part, self._translate(part), step)
            yield sum_and_log(self._G_losses(out.for_generator()), part_logs) / self.parts


def _mean_logs(logs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([part_logs[name] for part_logs in logs]).mean(0) for name in logs[0]}
