"""Rows of a table that show how a metric responds: y blurred, each class of y in its mean colour, y of another fold.

Without them, nobody can read a scorer's number: it says neither what blur costs nor what no texture at all would reach.
A distance between sets has no zero to begin with: photos of other regions show what it is between photos.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.data import Store, single_batches
from p2pzoo.images.blur import blur_images
from p2pzoo.plugin import Batch
from p2pzoo.utils.errors import UserError
from p2pzoo_bench.table_file import Row


@dataclass(frozen=True)
class Blurred:
    """y blurred by a Gaussian with this standard deviation in px."""

    sigma: float

    @property
    def identity(self) -> dict[str, Any]:
        return {"blur": self.sigma}

    def __call__(self, batch: Batch) -> Tensor:
        return blur_images(batch.y, self.sigma)


@dataclass(frozen=True)
class Flat:
    """Each class in the mean colour of its pixels in the training split; pixels without a class in the mean of all.

    Raises UserError if the data has no labels.
    """

    experiment: Experiment

    @property
    def identity(self) -> dict[str, Any]:
        return {"flat": True}

    def __call__(self, batch: Batch) -> Tensor:
        labels = _labels_of(batch, len(self._colours) - 1, batch.y.shape[-2:])
        return self._colours[labels].permute(0, 3, 1, 2)

    @cached_property
    def _colours(self) -> Tensor:
        """(classes + 1, C) in [-1, 1]; the last is the mean of all pixels."""
        dataset = self.experiment.dataset.build(split="train")
        if not dataset.classes:
            raise UserError("flat = true needs labels with classes, which this dataset does not have")
        store, sums, counts = Store(dataset, compute=self.experiment.compute), 0.0, 0.0
        for batch in single_batches(store):
            labels = F.one_hot(_labels_of(batch, len(dataset.classes), batch.y.shape[-2:]), len(dataset.classes) + 1)
            sums = sums + torch.einsum("bhwk,bchw->kc", labels.double(), batch.y.double())
            counts = counts + labels.sum((0, 1, 2))
        overall = sums.sum(0) / counts.sum()
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], overall)
        means[-1] = overall
        return means.float()


@dataclass(frozen=True)
class OtherFold:
    """The images of the fold after this one, in their order, and from the first again when they are used up.

    folds  number of folds in the whole table, of which --seeds may train fewer; 2 or more
    """

    experiment: Experiment
    folds: int

    @property
    def identity(self) -> dict[str, Any]:
        return {"other_fold": self._fold}

    @property
    def _fold(self) -> int:
        component = self.experiment.dataset
        fold = component.fold.fold if component.fold else int(component.values["fold"])
        return (fold + 1) % self.folds

    @property
    def _dataset(self) -> Component:
        component = self.experiment.dataset
        if component.fold:  # p2pzoo makes the folds: they are no parameter of the dataset
            return replace(component, fold=replace(component.fold, fold=self._fold))
        return replace(component, values={**component.values, "fold": self._fold})

    @cached_property
    def _images(self) -> Iterator[Tensor]:
        store = Store(self._dataset.build(split=self.experiment.evaluate.split), compute=self.experiment.compute)
        return itertools.cycle(batch.y for batch in list(single_batches(store)))

    def __call__(self, batch: Batch) -> Tensor:
        return torch.cat([next(self._images) for _ in batch.ids])


def _labels_of(batch: Batch, classes: int, size: torch.Size) -> Tensor:
    """(B, *size) int64: the class of each pixel, or `classes` where it has none."""
    if batch.labels is None:
        raise UserError("flat = true needs labels with classes, which this dataset does not have")
    labels = torch.stack(
        [
            F.interpolate(each[None, None].float(), tuple(size), mode="nearest-exact")[0, 0].long()
            for each in batch.labels
        ]
    )
    return torch.where((labels >= 0) & (labels < classes), labels, classes)


def changed_target(row: Row, experiment: Experiment, folds: int) -> Blurred | Flat | OtherFold | None:
    """What a row shows in place of y; None for y itself. folds: as `OtherFold` takes it."""
    if row.blur:
        return Blurred(row.blur)
    if row.other_fold:
        return OtherFold(experiment, folds)
    return Flat(experiment) if row.flat else None
