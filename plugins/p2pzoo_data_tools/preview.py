"""What is in a dataset: counts, shapes and values as stored; and pairs as the networks see them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from p2pzoo.config.experiment import Experiment
from p2pzoo.data.augmentation import make_augmentations
from p2pzoo.data.loader import single_batches, train_batches
from p2pzoo.data.store import Store
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.grid import grid
from p2pzoo.plugin import Dataset, Split


def stats(dataset: Dataset) -> dict[str, Any]:
    """What one split holds, as JSON has it; every pair is read once and none is kept.

    pairs   how many
    x, y    {range: the stored values that become -1 and 1, shapes: {"H×W×C dtype": count},
            channels: [{min, mean, max}] of stored values, one per channel}
    blocks  how many different ones; None without blocks
    labels  {class: share of the labelled pixels}; None without labels. Values that no class has are "other"
    """
    x, y = _Values(), _Values()
    blocks: set[str] = set()
    labels: Counter[int] = Counter()
    for index in range(len(dataset)):
        pair = dataset[index]
        x.add(pair.x)
        y.add(pair.y)
        if pair.block is not None:
            blocks.add(pair.block)
        if pair.labels is not None:
            values, counts = np.unique(pair.labels, return_counts=True)
            labels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return {
        "pairs": len(dataset),
        "x": {"range": list(dataset.x_range), **x.told()},
        "y": {"range": list(dataset.y_range), **y.told()},
        "blocks": len(blocks) or None,
        "labels": _shares(labels, list(dataset.classes or ())) if labels else None,
    }


def preview(experiment: Experiment, split: Split, count: int) -> Image.Image:
    """x | y of the first `world_size` samples: for train with their augmentation, exactly as the run will draw them."""
    settings = replace(experiment.train, batch_size=1, d_steps=1)
    dataset = experiment.dataset.build(split=split)
    if split == "train":
        store = Store(dataset, enlarge=settings.jitter, kernel=settings.jitter_kernel)
        batches = train_batches(store, settings, experiment.seed)
        shown = [batches[step] for step in range(count)]
        one_by_one = replace(experiment, train=settings)
        if augmentations := make_augmentations(one_by_one, store.channels, store.size):
            shown = [augmentations(batch, step) for step, batch in enumerate(shown)]
    else:
        shown = list(single_batches(Store(dataset), range(min(count, len(dataset)))))
    return grid([[image[0] for image in Encodings.of(dataset).to_rgb(batch.x, batch.y)] for batch in shown])


class _Values:
    """Running shapes, and minimum, sum and maximum per channel."""

    def __init__(self) -> None:
        self.shapes: Counter[str] = Counter()
        self.channels: dict[int, list[float]] = {}  # channel -> [min, sum, max, pixels]

    def add(self, image: np.ndarray) -> None:
        self.shapes[f"{'×'.join(map(str, image.shape))} {image.dtype}"] += 1
        for number in range(image.shape[2]):
            values = image[..., number]
            low, total, high, pixels = self.channels.get(number, [np.inf, 0.0, -np.inf, 0])
            self.channels[number] = [
                min(low, float(values.min())),
                total + float(values.sum(dtype=np.float64)),
                max(high, float(values.max())),
                pixels + values.size,
            ]

    def told(self) -> dict[str, Any]:
        channels = [
            {"min": low, "mean": total / pixels, "max": high} for low, total, high, pixels in self.channels.values()
        ]
        return {"shapes": dict(self.shapes), "channels": channels}


def _shares(labels: Counter[int], classes: list[str]) -> dict[str, float]:
    total = labels.total()
    shares = {name: labels[value] / total for value, name in enumerate(classes)}
    other = sum(count for value, count in labels.items() if not 0 <= value < len(classes))
    return shares | ({"other": other / total} if other else {})
