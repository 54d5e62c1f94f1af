"""Pairs -> batches. Which pair, crop and flip a sample has depends only on (seed, global sample index)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from p2pzoo.compute import distributed
from p2pzoo.config.settings import Train
from p2pzoo.data.store import Store
from p2pzoo.plugin.batch import Batch, Pair
from p2pzoo.utils import rng


class TrainBatches:
    """`[step]` is the batch of that step. Every epoch has a new order; x and y are cropped and flipped together.

    batch_size                      images of the whole batch; with several processes, `[step]` is this one's shard
    batches_per_step                batches of a training step, concatenated ([train] d_steps)
    mirror, crop_from, replacement  as in settings.Train
    end                             the step after the last one: no pairs are read ahead for it. None: no last step
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
    ) -> None:
        self.store, self.batch_size, self.mirror, self.seed, self.batches_per_step = (
            store,
            batch_size,
            mirror,
            seed,
            batches_per_step,
        )
        self.crop_from, self.replacement, self.end = crop_from, replacement, end

    def __getitem__(self, step: int) -> Batch:
        samples = step_samples(step, self.batch_size, self.batches_per_step)
        if not self.store.fully_cached:
            self.store.expect(map(self._pair_index, [*samples, *self._next_samples(step)]))
        pairs, flips = zip(*map(self._crop, samples), strict=True)
        return collate(pairs, self.store.dataset, flips)

    def _crop(self, sample: int) -> tuple[Pair, bool]:
        """The cropped pair, and whether to flip it."""
        pair = self.store[self._pair_index(sample)]
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


def train_batches(store: Store, train: Train, seed: int) -> TrainBatches:
    """The training batches of a recipe's [train] settings."""
    return TrainBatches(
        store,
        batch_size=train.batch_size,
        batches_per_step=train.d_steps,
        mirror=train.mirror,
        seed=seed,
        crop_from=train.crop_from,
        replacement=train.replacement,
        end=train.steps,
    )


def single_batches(store: Store, indices: range | None = None) -> Iterator[Batch]:
    """Batches of one pair each, neither cropped nor flipped, for samples and evaluation. Default: all pairs."""
    indices = range(len(store)) if indices is None else indices
    for position, index in enumerate(indices):
        store.expect(indices[position : position + 1 + store.read_ahead])
        yield collate([store[index]], store.dataset)


class _Ranges(Protocol):
    """The stored values that become -1 and 1, of a `Dataset` or of other pairs."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]


def collate(pairs: Sequence[Pair], dataset: _Ranges, flips: Sequence[bool] | None = None) -> Batch:
    """Stack pairs and scale them to [-1, 1], on the CPU. Images are channels-last in memory.

    dataset  the one that the pairs are from
    flips    which pairs to flip left to right; default: none
    """
    flips = flips or [False] * len(pairs)
    labels = [pair.labels for pair in pairs if pair.labels is not None]
    return Batch(
        x=_scale([pair.x for pair in pairs], flips, dataset.x_range),
        y=_scale([pair.y for pair in pairs], flips, dataset.y_range),
        ids=tuple(pair.id for pair in pairs),
        labels=_stack(labels, flips, torch.int64) if len(labels) == len(pairs) else None,
        blocks=tuple(pair.block for pair in pairs),
    )


def _scale(images: Sequence[np.ndarray], flips: Sequence[bool], limits: tuple[float, float]) -> torch.Tensor:
    low, high = limits
    stacked = _stack(images, flips, torch.float32)
    values = stacked.numpy()  # one NumPy thread is faster here than starting torch's threads
    if low:
        values -= low
    values *= 2 / (high - low)
    values -= 1
    return stacked.permute(0, 3, 1, 2)


def _stack(images: Sequence[np.ndarray], flips: Sequence[bool], dtype: torch.dtype) -> torch.Tensor:
    """(B, H, W, ...) of this dtype. Pixels are converted while they are copied, once; flips come before."""
    stacked = torch.empty((len(images), *images[0].shape), dtype=dtype)
    for target, image, flip in zip(stacked, images, flips, strict=True):
        if not (image.flags.writeable and image.dtype.isnative and min(image.strides) >= 0):  # others torch refuses
            image = image.astype(image.dtype.newbyteorder("="), order="C")
        pixels = torch.from_numpy(image)
        target.copy_(pixels.flip(1) if flip else pixels)
    return stacked
