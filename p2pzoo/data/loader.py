"""Pairs -> batches. Which pairs, which crop and which flip are functions of (seed, global sample index) alone."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from p2pzoo.compute import distributed
from p2pzoo.config.settings import Train
from p2pzoo.data.store import Store
from p2pzoo.plugin.batch import Batch, Pair
from p2pzoo.utils import rng


class TrainBatches:
    """`[step]` is the batch of that step: every epoch a new order, x and y cropped and flipped together.

    batch_size                      of the whole batch; where several processes share it, `[step]` is this one's part
    moves                           batches of a step, one after the other
    mirror, crop_from, replacement  as in settings.Train
    end                             the step after the last one; no pairs are read ahead for it. None: there is none
    """

    def __init__(
        self,
        store: Store,
        *,
        batch_size: int,
        mirror: bool,
        seed: int,
        moves: int = 1,
        crop_from: int = 0,
        replacement: bool = False,
        end: int | None = None,
    ) -> None:
        self.store, self.batch_size, self.mirror, self.seed, self.moves = store, batch_size, mirror, seed, moves
        self.crop_from, self.replacement, self.end = crop_from, replacement, end

    def __getitem__(self, step: int) -> Batch:
        samples = samples_of(step, self.batch_size, self.moves)
        if not self.store.fully_cached:
            self.store.expect(map(self._drawn, [*samples, *self._next_samples(step)]))
        pairs, flipped = zip(*map(self._augmented, samples), strict=True)
        return collate(pairs, self.store, flipped)

    def _augmented(self, sample: int) -> tuple[Pair, bool]:
        """The pair, cropped, and whether it is to be flipped."""
        pair = self.store[self._drawn(sample)]
        draw = rng.numpy_rng(self.seed, "augment", sample)
        (height, width), (load_height, load_width) = self.store.size, self.store.load_size
        spare = (load_height - height, load_width - width)
        top, left = (int(draw.integers(min(self.crop_from, most), most + 1)) for most in spare)
        window = slice(top, top + height), slice(left, left + width)
        labels = None if pair.labels is None else pair.labels[window]
        cropped = Pair(pair.id, pair.x[window], pair.y[window], labels, pair.block)
        return cropped, self.mirror and draw.random() < 0.5

    def _next_samples(self, step: int) -> list[int]:
        """Those of the next steps, as many as the store reads ahead."""
        found: list[int] = []
        for later in itertools.count(step + 1) if self.end is None else range(step + 1, self.end):
            if len(found) >= self.store.read_ahead:
                break
            found += samples_of(later, self.batch_size, self.moves)
        return found

    def _drawn(self, sample: int) -> int:
        """Which pair this sample shows."""
        pairs = len(self.store)
        if self.replacement:
            return _any_of(pairs, self.seed, sample)
        epoch, position = divmod(sample, pairs)
        return int(_order(pairs, self.seed, epoch)[position])


@functools.lru_cache(4)  # a step near the end of an epoch reads ahead into the next
def _order(pairs: int, seed: int, epoch: int) -> np.ndarray:
    return rng.numpy_rng(seed, "order", epoch).permutation(pairs)


@functools.lru_cache(1024)  # asked for ahead, and again when its turn comes
def _any_of(pairs: int, seed: int, sample: int) -> int:
    return int(rng.numpy_rng(seed, "order", "sample", sample).integers(pairs))


def samples_of(step: int, batch_size: int, moves: int) -> list[int]:
    """The global numbers of a step's samples, move after move: of each whole batch, this process's share."""
    batches = [range(at * batch_size, (at + 1) * batch_size) for at in range(step * moves, (step + 1) * moves)]
    return [sample for batch in batches for sample in distributed.shard(batch)]


def train_batches(store: Store, train: Train, seed: int) -> TrainBatches:
    """The batches that a recipe's [train] asks for."""
    return TrainBatches(
        store,
        batch_size=train.batch_size,
        moves=train.d_steps,
        mirror=train.mirror,
        seed=seed,
        crop_from=train.crop_from,
        replacement=train.replacement,
        end=train.steps,
    )


def single_batches(store: Store, indices: range | None = None) -> Iterator[Batch]:
    """Pairs as they are, one at a time, for samples and evaluation."""
    wanted = range(len(store)) if indices is None else indices
    for at, index in enumerate(wanted):
        store.expect(wanted[at : at + 1 + store.read_ahead])
        yield collate([store[index]], store)


def collate(pairs: Sequence[Pair], store: Store, flipped: Sequence[bool] | None = None) -> Batch:
    """Stack pairs and scale them to [-1, 1], on the CPU. Images are channels-last in memory.

    flipped  which pairs are to be turned left to right
    """
    dataset, flipped = store.dataset, flipped or [False] * len(pairs)
    labels = [pair.labels for pair in pairs if pair.labels is not None]
    return Batch(
        x=_scaled([pair.x for pair in pairs], flipped, dataset.x_range),
        y=_scaled([pair.y for pair in pairs], flipped, dataset.y_range),
        ids=tuple(pair.id for pair in pairs),
        labels=_stacked(labels, flipped, torch.int64) if len(labels) == len(pairs) else None,
        blocks=tuple(pair.block for pair in pairs),
    )


def _scaled(images: Sequence[np.ndarray], flipped: Sequence[bool], limits: tuple[float, float]) -> torch.Tensor:
    low, high = limits
    stacked = _stacked(images, flipped, torch.float32)
    values = stacked.numpy()  # NumPy's thread is done before torch's threads would have agreed on their parts
    if low:
        values -= low
    values *= 2 / (high - low)
    values -= 1
    return stacked.permute(0, 3, 1, 2)


def _stacked(images: Sequence[np.ndarray], flipped: Sequence[bool], dtype: torch.dtype) -> torch.Tensor:
    """(B, H, W, ...): pixels are copied once, and become numbers of that type on the way; flips are made before."""
    stacked = torch.empty((len(images), *images[0].shape), dtype=dtype)
    for place, image, flip in zip(stacked, images, flipped, strict=True):
        if not (image.flags.writeable and image.dtype.isnative and min(image.strides) >= 0):  # torch takes no other
            image = image.astype(image.dtype.newbyteorder("="), order="C")
        pixels = torch.from_numpy(image)
        place.copy_(pixels.flip(1) if flip else pixels)
    return stacked
