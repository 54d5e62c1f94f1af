"""Pairs -> batches. Which pair, crop and flip a sample has depends only on (seed, global sample index)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from torch import Tensor

from p2pzoo.compute import distributed
from p2pzoo.config.settings import Train
from p2pzoo.data.collate import StoredBatch, collate, collate_stored
from p2pzoo.data.store import Store
from p2pzoo.plugin.batch import Batch, Pair
from p2pzoo.utils import rng

_B = TypeVar("_B", bound=Batch)


class TrainBatches:
    """`[step]` is the batch of that step. Every epoch has a new order; x and y are cropped and flipped together.

    Threads make a batch in two parts: one thread calls `read`, in the order of the steps; several call `make_stored`.

    batch_size                      images of the whole batch; with several processes, `[step]` is this one's shard
    batches_per_step                batches of a training step, concatenated ([train] d_steps)
    mirror, crop_from, replacement  as in settings.Train
    end                             the step after the last one: no pairs are read ahead for it. None: no last step
    sample_random                   returns `Batch.random` of a step; None without augmentations
    sample_process                  returns `Batch.u` and `Batch.z` of a step; None without a process
    """

    def __init__(
        self,
        store: Store,
        *,
        batch_size: int,
        mirror: bool,
        seed: int,
        batches_per_step: int = 1,
        crop_from: int = 0,
        replacement: bool = False,
        end: int | None = None,
        sample_random: Callable[[int], Tensor] | None = None,
        sample_process: Callable[[int], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.store, self.batch_size, self.mirror, self.seed, self.batches_per_step = (
            store,
            batch_size,
            mirror,
            seed,
            batches_per_step,
        )
        self.crop_from, self.replacement, self.end = crop_from, replacement, end
        self.sample_random, self.sample_process = sample_random, sample_process

    def __getitem__(self, step: int) -> Batch:
        pairs, flips = self._crop_all(step, self.read(step))
        return self._with_random(step, collate(pairs, self.store.dataset, flips))

    def read(self, step: int) -> list[Pair]:
        """The pairs of a step, from the store, which then reads those of the next steps ahead."""
        samples = self._samples(step)
        if not self.store.fully_cached:
            self.store.expect(map(self._pair_index, [*samples, *self._next_samples(step)]))
        return [self.store[self._pair_index(sample)] for sample in samples]

    def make_stored(self, step: int, pairs: Sequence[Pair]) -> StoredBatch:
        """The batch of a step, to be scaled on the device. pairs: what `read` returned for it."""
        pairs, flips = self._crop_all(step, pairs)
        return self._with_random(step, collate_stored(pairs, self.store.dataset, flips))

    def _samples(self, step: int) -> list[int]:
        return step_samples(step, self.batch_size, self.batches_per_step)

    def _with_random(self, step: int, batch: _B) -> _B:
        if self.sample_process:
            u, z = self.sample_process(step)
            batch = replace(batch, u=u, z=z)
        return replace(batch, random=self.sample_random(step)) if self.sample_random else batch

    def _crop_all(self, step: int, pairs: Sequence[Pair]) -> tuple[Sequence[Pair], Sequence[bool]]:
        """The cropped pairs, and which of them to flip."""
        cropped, flips = zip(*map(self._crop, self._samples(step), pairs), strict=True)
        return cropped, flips

    def _crop(self, sample: int, pair: Pair) -> tuple[Pair, bool]:
        """The cropped pair, and whether to flip it."""
        random = rng.numpy_rng(self.seed, "augment", sample)
        (height, width), (load_height, load_width) = self.store.size, self.store.load_size
        spare = (load_height - height, load_width - width)
        top, left = (int(random.integers(min(self.crop_from, largest), largest + 1)) for largest in spare)
        window = slice(top, top + height), slice(left, left + width)
        labels = None if pair.labels is None else pair.labels[window]
        cropped = Pair(pair.id, pair.x[window], pair.y[window], labels, pair.block)
        return cropped, self.mirror and random.random() < 0.5

    def _next_samples(self, step: int) -> list[int]:
        """The samples of the next steps, about as many as the store reads ahead."""
        samples: list[int] = []
        for later in itertools.count(step + 1) if self.end is None else range(step + 1, self.end):
            if len(samples) >= self.store.read_ahead:
                break
            samples += step_samples(later, self.batch_size, self.batches_per_step)
        return samples

    def _pair_index(self, sample: int) -> int:
        """Which pair this sample shows."""
        num_pairs = len(self.store)
        if self.replacement:
            return _draw_pair(num_pairs, self.seed, sample)
        epoch, position = divmod(sample, num_pairs)
        return int(_epoch_order(num_pairs, self.seed, epoch)[position])


@functools.lru_cache(4)  # near the end of an epoch pairs of the next ones are read ahead
def _epoch_order(num_pairs: int, seed: int, epoch: int) -> np.ndarray:
    return rng.numpy_rng(seed, "order", epoch).permutation(num_pairs)


@functools.lru_cache(1024)  # needed when pairs are read ahead, and again at their step
def _draw_pair(num_pairs: int, seed: int, sample: int) -> int:
    return int(rng.numpy_rng(seed, "order", "sample", sample).integers(num_pairs))


def step_samples(step: int, batch_size: int, batches_per_step: int) -> list[int]:
    """The global indices of a step's samples, batch after batch: of each whole batch, this process's shard.

    >>> step_samples(step=2, batch_size=2, batches_per_step=2)
    [8, 9, 10, 11]
    """
    batches = [
        range(at * batch_size, (at + 1) * batch_size)
        for at in range(step * batches_per_step, (step + 1) * batches_per_step)
    ]
    return [sample for batch in batches for sample in distributed.shard(batch)]


def train_batches(
    store: Store,
    train: Train,
    seed: int,
    sample_random: Callable[[int], Tensor] | None = None,
    sample_process: Callable[[int], tuple[Tensor, Tensor]] | None = None,
) -> TrainBatches:
    """The training batches of a recipe's [train] settings. sample_random, sample_process: as in `TrainBatches`."""
    return TrainBatches(
        store,
        batch_size=train.batch_size,
        batches_per_step=train.d_steps,
        mirror=train.mirror,
        seed=seed,
        crop_from=train.crop_from,
        replacement=train.replacement,
        end=train.steps,
        sample_random=sample_random,
        sample_process=sample_process,
    )


def single_batches(store: Store, indices: range | None = None) -> Iterator[Batch]:
    """Batches of one pair each, neither cropped nor flipped, for samples and evaluation. Default: all pairs."""
    indices = range(len(store)) if indices is None else indices
    for position, index in enumerate(indices):
        store.expect(indices[position : position + 1 + store.read_ahead])
        yield collate([store[index]], store.dataset)
