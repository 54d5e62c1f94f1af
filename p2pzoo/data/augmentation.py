"""Applies a recipe's augmentations, in the recipe's order.

The random numbers of an image depend only on (seed, name of the augmentation, global sample index). They are sampled
before the step and are part of the batch, so that a step is a function of its batch, with or without CUDA graphs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from torch import Tensor, nn

from p2pzoo.data.loader import step_samples
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.protocols import Augmentation, AugmentationTarget
from p2pzoo.plugin.step_outputs import DiscriminatorPass
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError

if TYPE_CHECKING:
    from p2pzoo.config.experiment import Experiment

DISCRIMINATOR_PASSES: tuple[DiscriminatorPass, ...] = get_args(DiscriminatorPass)


class Augmentations:
    """The augmentations of one recipe, by name. `Batch.random` holds the numbers of all of them: of pairs, then of D.

    batch_size        images of the whole batch, which several processes may share
    batches_per_step  batches of a training step ([train] d_steps)
    """

    def __init__(
        self, named: Mapping[str, Augmentation], *, batch_size: int, seed: int, batches_per_step: int = 1
    ) -> None:
        self.pair_augmentations = {name: each for name, each in named.items() if each.where == "pairs"}
        self.discriminator_augmentations = {name: each for name, each in named.items() if each.where == "discriminator"}
        self.batch_size, self.seed, self.batches_per_step = batch_size, seed, batches_per_step
        self.modules = {f"augmentations[{name}]": each for name, each in named.items() if isinstance(each, nn.Module)}

    def __call__(self, batch: Batch, step: int) -> Batch:
        """The batch of this step with augmented pairs, and with its random numbers."""
        return self.augment_pairs(replace(batch, random=self.sample(step)))

    def sample(self, step: int) -> Tensor:
        """The random numbers in [0, 1) of this step's images, (B, N) on the CPU."""
        samples = step_samples(step, self.batch_size, self.batches_per_step)
        counts = {name: each.num_random for name, each in self.pair_augmentations.items()}
        counts |= {
            name: len(DISCRIMINATOR_PASSES) * each.num_random for name, each in self.discriminator_augmentations.items()
        }
        return torch.cat([self._sample_one(name, samples, count) for name, count in counts.items()], 1)

    def augment_pairs(self, batch: Batch) -> Batch:
        """The batch with augmented pairs. Makes no decision in Python that depends on values, so it can be recorded."""
        x, y, labels, random = batch.x, batch.y, batch.labels, _random_numbers(batch.random)
        column = 0
        for name, augmentation in self.pair_augmentations.items():
            # contiguous: kernels for other strides can round differently
            u = random[:, column : column + augmentation.num_random].contiguous()
            x, y, labels = _apply(name, augmentation, x, y, labels, u)
            column += augmentation.num_random
        return replace(batch, x=x, y=y, labels=labels)

    def for_d(self, random: Tensor | None) -> Callable[..., tuple[Tensor, ...]] | None:
        """`augment_for_d` with these random numbers, or None if no augmentation changes what D gets."""
        return functools.partial(self.augment_for_d, random) if self.discriminator_augmentations else None

    def augment_for_d(
        self,
        random: Tensor | None,
        discriminator_pass: DiscriminatorPass,
        x: Tensor,
        y: Tensor,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """(x, y) as D sees them in this pass, and labels if they are given.

        random  `Batch.random`, (B, N)
        x, y    (k · B, C, H, W): one batch, or several concatenated ones
        labels  (k · B, H, W), for a D that needs them
        """
        random = _random_numbers(random)
        random = random.repeat(len(y) // len(random), 1)
        # Sums over an image depend on the memory format, and images of the pool lose theirs in a checkpoint.
        x, y = x.contiguous(), y.contiguous()
        column = sum(each.num_random for each in self.pair_augmentations.values())
        for name, augmentation in self.discriminator_augmentations.items():
            begin = column + DISCRIMINATOR_PASSES.index(discriminator_pass) * augmentation.num_random
            u = random[:, begin : begin + augmentation.num_random]
            x, y, labels = _apply(name, augmentation, x, y, labels, u)
            column += len(DISCRIMINATOR_PASSES) * augmentation.num_random
        return (x, y) if labels is None else (x, y, labels)

    @torch.no_grad()
    def observe(self, real: Sequence[Tensor]) -> None:
        """Pass D's logits of real images to the augmentations that have `observe`, after an update of D.

        real  one (B, 1, h, w) map per scale
        """
        for augmentation in self.discriminator_augmentations.values():
            if observe := getattr(augmentation, "observe", None):
                observe([logits.detach() for logits in real])

    def _sample_one(self, name: str, samples: Sequence[int], count: int) -> Tensor:
        """(len(samples), count) random numbers in [0, 1), on the CPU."""
        rows = [rng.numpy_rng(self.seed, "augmentation", name, i).random(count, np.float32) for i in samples]
        return torch.from_numpy(np.stack(rows))


def make_augmentations(
    experiment: Experiment, channels: tuple[int, int], size: tuple[int, int], device: torch.device | str = "cpu"
) -> Augmentations | None:
    """The recipe's augmentations for x and y with these channels and this (H, W); None if the recipe has none.

    device  for the state of those that are modules

    Raises UserError with everything that is wrong with them.
    """
    named: dict[str, Augmentation] = {}
    faults: list[str] = []
    for name, component in experiment.augmentations.items():
        try:
            named[name] = component.build(in_channels=channels[0], out_channels=channels[1], size=size)
        except UserError as error:
            faults += error.faults
            continue
        if isinstance(module := named[name], nn.Module):
            module.to(device)
            if trained := [key for key, parameter in module.named_parameters() if parameter.requires_grad]:
                faults.append(
                    f"[augmentations.{name}] has a parameter '{trained[0]}', which nothing trains: use a buffer"
                )
        where = named[name].where
        if where not in get_args(AugmentationTarget):
            targets = get_args(AugmentationTarget)
            faults.append(f"[augmentations.{name}] has where {where!r}: it must be one of {targets}")
        if where == "discriminator" and experiment.discriminator is None:
            faults.append(f"[augmentations.{name}] augments what the discriminator sees, and this recipe has none")
    if faults:
        raise UserError(*faults)
    if not named:
        return None
    train = experiment.train
    return Augmentations(named, batch_size=train.batch_size, seed=experiment.seed, batches_per_step=train.d_steps)


def _random_numbers(random: Tensor | None) -> Tensor:
    assert random is not None, "the batch has no random numbers: Augmentations.sample makes them"
    return random


def _apply(
    name: str, augmentation: Augmentation, x: Tensor, y: Tensor, labels: Tensor | None, u: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    changed = augmentation(x, y, labels, u)
    before, after = ([None if t is None else tuple(t.shape) for t in each] for each in ((x, y, labels), changed))
    if after != before:
        raise UserError(
            f"[augmentations.{name}] changed the shapes {before} to {after}: x, y and labels must keep their shapes"
        )
    return changed
