"""Pairs -> batches. Which pairs, which crop and which flip are functions of (seed, global sample index) alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from p2pzoo import chance, processes
from p2pzoo.contracts import Batch, Pair
from p2pzoo.data.store import Store
from p2pzoo.settings import Train


class TrainBatches:
    """`[step]` is the batch of that step: every epoch a new order, x and y cropped and flipped together.

    batch_size                      of the whole batch; where several processes share it, `[step]` is this one's part
    moves                           batches of a step, one after the other
    mirror, crop_from, replacement  as in settings.Train
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
    ) -> None:
        self.store, self.batch_size, self.mirror, self.seed, self.moves = store, batch_size, mirror, seed, moves
        self.crop_from, self.replacement = crop_from, replacement
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __getitem__(self, step: int) -> Batch:
        samples = samples_of(step, self.batch_size, self.moves)
        return collate([self._augmented(sample) for sample in samples], self.store)

    def _augmented(self, sample: int) -> Pair:
        pair = self.store[self._drawn(sample)]
        draw = chance.generator(self.seed, "augment", sample)
        (height, width), (load_height, load_width) = self.store.size, self.store.load_size
        spare = (load_height - height, load_width - width)
        top, left = (int(draw.integers(min(self.crop_from, most), most + 1)) for most in spare)
        flip = -1 if self.mirror and draw.random() < 0.5 else 1

        def cut(image: np.ndarray) -> np.ndarray:
            return image[top : top + height, left : left + width][:, ::flip]

        labels = None if pair.labels is None else cut(pair.labels)
        return Pair(pair.id, cut(pair.x), cut(pair.y), labels, pair.block)

    def _drawn(self, sample: int) -> int:
        """Which pair this sample shows."""
        pairs = len(self.store)
        if self.replacement:
            return int(chance.generator(self.seed, "order", "sample", sample).integers(pairs))
        epoch, position = divmod(sample, pairs)
        if self._order[0] != epoch:
            self._order = (epoch, chance.generator(self.seed, "order", epoch).permutation(pairs))
        return int(self._order[1][position])


def samples_of(step: int, batch_size: int, moves: int) -> list[int]:
    """The global numbers of a step's samples, move after move: of each whole batch, this process's share."""
    batches = [range(at * batch_size, (at + 1) * batch_size) for at in range(step * moves, (step + 1) * moves)]
    return [sample for batch in batches for sample in processes.share(batch)]


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
    )


def single_batches(store: Store, indices: range | None = None) -> Iterator[Batch]:
    """Pairs as they are, one at a time, for samples and evaluation."""
    for index in range(len(store)) if indices is None else indices:
        yield collate([store[index]], store)


def collate(pairs: list[Pair], store: Store) -> Batch:
    """Stack pairs and scale them to [-1, 1], on the CPU. Images are channels-last in memory."""
    dataset = store.dataset
    labels = [pair.labels for pair in pairs if pair.labels is not None]
    return Batch(
        x=_scaled([pair.x for pair in pairs], dataset.x_range),
        y=_scaled([pair.y for pair in pairs], dataset.y_range),
        ids=tuple(pair.id for pair in pairs),
        labels=torch.from_numpy(np.stack(labels).astype(np.int64)) if len(labels) == len(pairs) else None,
        blocks=tuple(pair.block for pair in pairs),
    )


def _scaled(images: list[np.ndarray], limits: tuple[float, float]) -> torch.Tensor:
    low, high = limits
    stacked = torch.from_numpy(np.stack(images).astype(np.float32))
    return stacked.permute(0, 3, 1, 2).sub_(low).mul_(2 / (high - low)).sub_(1)
