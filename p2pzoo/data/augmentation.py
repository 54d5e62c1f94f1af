"""A recipe's augmentations at work: what they draw, when they act, and in which order (that of the recipe).

Random numbers of an image follow from (seed, name of the augmentation, global sample index) alone. They are drawn
beforehand and travel with the batch, so that a step is a function of its batch, recorded as a CUDA graph or not.
Imports torch and the contracts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from torch import Tensor

from p2pzoo.data.loader import samples_of
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.protocols import Augmentation, Where
from p2pzoo.plugin.step_outputs import Moment
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError

if TYPE_CHECKING:
    from p2pzoo.config.experiment import Experiment

MOMENTS: tuple[Moment, ...] = get_args(Moment)


class Augmentations:
    """Those of one recipe, by name.

    batch_size  of the whole batch, which several processes may share
    moves       batches of a step, one after the other
    """

    def __init__(self, named: Mapping[str, Augmentation], *, batch_size: int, seed: int, moves: int = 1) -> None:
        self.of_pairs = {name: each for name, each in named.items() if each.where == "pairs"}
        self.of_d = {name: each for name, each in named.items() if each.where == "discriminator"}
        self.batch_size, self.seed, self.moves = batch_size, seed, moves

    def __call__(self, batch: Batch, step: int) -> Batch:
        """This step's batch with its pairs augmented, where they lie, and with the numbers for what D will see."""
        samples = samples_of(step, self.batch_size, self.moves)
        x, y, labels = batch.x, batch.y, batch.labels
        for name, augmentation in self.of_pairs.items():
            u = self._drawn(name, samples, augmentation.num_random)
            u = u.to(x.device, non_blocking=x.device.type == "cuda")  # Python need not wait for what it is doing
            x, y, labels = _applied(name, augmentation, x, y, labels, u)
        drawn = [self._drawn(name, samples, len(MOMENTS) * each.num_random) for name, each in self.of_d.items()]
        return replace(batch, x=x, y=y, labels=labels, random=torch.cat(drawn, 1) if drawn else None)

    def show(self, drawn: Tensor | None, moment: Moment, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(x, y) as D sees them at this moment. `random` is the batch's; x and y may be several batches, joined."""
        assert drawn is not None, "the batch has not been prepared: call the augmentations with it first"
        drawn = drawn.repeat(len(y) // len(drawn), 1)
        # sums over an image have other bits in another memory format, which pooled images lose as they are saved
        x, y = x.contiguous(), y.contiguous()
        column = 0
        for name, augmentation in self.of_d.items():
            begin = column + MOMENTS.index(moment) * augmentation.num_random
            u = drawn[:, begin : begin + augmentation.num_random]
            x, y, _ = _applied(name, augmentation, x, y, None, u)
            column += len(MOMENTS) * augmentation.num_random
        return x, y

    def _drawn(self, name: str, samples: Sequence[int], count: int) -> Tensor:
        """(len(samples), count) numbers in [0, 1), on the CPU."""
        rows = [rng.numpy_rng(self.seed, "augmentation", name, i).random(count, np.float32) for i in samples]
        return torch.from_numpy(np.stack(rows))


def make_augmentations(
    experiment: Experiment, channels: tuple[int, int], size: tuple[int, int]
) -> Augmentations | None:
    """What the recipe asks for, for x and y of these channels and this (H, W); None if it asks for none.

    Raises UserError with all that cannot be.
    """
    named: dict[str, Augmentation] = {}
    faults: list[str] = []
    for name, component in experiment.augmentations.items():
        try:
            named[name] = component.build(in_channels=channels[0], out_channels=channels[1], size=size)
        except UserError as error:
            faults += error.faults
            continue
        where = named[name].where
        if where not in get_args(Where):
            faults.append(f"[augmentations.{name}] has where {where!r}: it must be one of {get_args(Where)}")
        if where == "discriminator" and experiment.discriminator is None:
            faults.append(f"[augmentations.{name}] acts on what the discriminator sees, and this recipe has none")
    if faults:
        raise UserError(*faults)
    train = experiment.train
    return (
        Augmentations(named, batch_size=train.batch_size, seed=experiment.seed, moves=train.d_steps) if named else None
    )


def _applied(
    name: str, augmentation: Augmentation, x: Tensor, y: Tensor, labels: Tensor | None, u: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    changed = augmentation(x, y, labels, u)
    shapes, given = ([None if t is None else tuple(t.shape) for t in three] for three in (changed, (x, y, labels)))
    if shapes != given:
        raise UserError(f"[augmentations.{name}] made {shapes} of {given}: x, y and labels must keep their shapes")
    return changed
