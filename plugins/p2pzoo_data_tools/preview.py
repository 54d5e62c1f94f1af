"""Statistics of a dataset as stored, and a preview of its pairs as the networks get them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from p2pzoo.config.experiment import Experiment
from p2pzoo.data.augmentation import make_augmentations
from p2pzoo.data.loader import single_batches, train_batches
from p2pzoo.data.pairing import ImageShape
from p2pzoo.data.store import Store
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.grid import make_grid
from p2pzoo.images.resize import resize_factors
from p2pzoo.plugin import Dataset, Split


def compute_stats(dataset: Dataset) -> dict[str, Any]:
    """Measure one split. Every pair is read once; memory does not grow with the number of pairs. The result is JSON:

    pairs   number of pairs
    x, y    {range: stored values that become -1 and 1, shapes: {"H×W×C dtype": count},
            channels: [{min, mean, max} of the stored values, for each channel],
            file_shapes: {"H×W×C": count} before images were resized; None where the dataset does not say it,
            enlarged: {pairs: how many were enlarged, factor: the largest}}
    blocks  number of blocks; None without blocks
    labels  {class: share of the labelled pixels}; None without labels. Values that are no class count as "other"
    """
    x, y = _ChannelStats(), _ChannelStats()
    blocks: set[str] = set()
    labels: Counter[int] = Counter()
    for index in range(len(dataset)):
        pair = dataset[index]
        x.add(pair.x)
        y.add(pair.y)
        if shapes := find_file_shapes(dataset, index):
            x.add_file(shapes[0], find_enlargement(dataset, shapes[0], pair.x.shape))
            y.add_file(shapes[1], find_enlargement(dataset, shapes[1], pair.y.shape))
        if pair.block is not None:
            blocks.add(pair.block)
        if pair.labels is not None:
            values, counts = np.unique(pair.labels, return_counts=True)
            labels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return {
        "pairs": len(dataset),
        "x": {"range": list(dataset.x_range), **x.to_json()},
        "y": {"range": list(dataset.y_range), **y.to_json()},
        "blocks": len(blocks) or None,
        "labels": _compute_shares(labels, list(dataset.classes or ())) if labels else None,
    }


def draw_preview(experiment: Experiment, split: Split, count: int) -> Image.Image:
    """Draw x | y of the first `count` samples. Those of train are augmented exactly as in the run's first steps."""
    settings = replace(experiment.train, batch_size=1, d_steps=1)
    dataset = experiment.dataset.build(split=split)
    if split == "train":
        store = Store(dataset, enlarge=settings.jitter, kernel=settings.jitter_kernel)
        loader = train_batches(store, settings, experiment.seed)
        batches = [loader[step] for step in range(count)]
        single_sample = replace(experiment, train=settings)
        if augmentations := make_augmentations(single_sample, store.channels, store.size):
            batches = [augmentations(batch, step) for step, batch in enumerate(batches)]
    else:
        batches = list(single_batches(Store(dataset), range(min(count, len(dataset)))))
    encodings = Encodings.of(dataset)
    return make_grid([[image[0] for image in encodings.to_rgb(batch.x, batch.y)] for batch in batches])


def find_enlargement(dataset: Dataset, file_shape: ImageShape, shape: Sequence[int]) -> float:
    """How much larger an image was made than it is in its file, in one direction at least; 1 if it was not."""
    height, width = shape[:2]
    mode = getattr(dataset, "resize_mode", "stretch")
    return max(1.0, *resize_factors([file_shape[:2]], (height, width), mode))


def find_file_shapes(dataset: Dataset, index: int) -> tuple[ImageShape, ImageShape] | None:
    """The shapes of x and y in their files; None where the dataset does not say them."""
    if (shapes := getattr(dataset, "file_shapes", None)) is not None:
        return shapes[index]  # type: ignore[no-any-return]
    if (original := getattr(dataset, "original", None)) is None:
        return None
    pair = original(index)
    return pair.x.shape, pair.y.shape


class _ChannelStats:
    """Running counts of shapes, and minimum, sum and maximum of each channel."""

    def __init__(self) -> None:
        self.shapes: Counter[str] = Counter()
        self.file_shapes: Counter[str] = Counter()
        self.num_enlarged, self.factor = 0, 1.0
        self.channels: dict[int, list[float]] = {}  # channel -> [min, sum, max, pixels]

    def add_file(self, shape: ImageShape, factor: float) -> None:
        self.file_shapes["×".join(map(str, shape))] += 1
        self.num_enlarged += factor > 1
        self.factor = max(self.factor, factor)

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

    def to_json(self) -> dict[str, Any]:
        channels = [
            {"min": low, "mean": total / pixels, "max": high} for low, total, high, pixels in self.channels.values()
        ]
        return {
            "shapes": dict(self.shapes),
            "channels": channels,
            "file_shapes": dict(self.file_shapes.most_common()) or None,
            "enlarged": {"pairs": self.num_enlarged, "factor": round(self.factor, 3)} if self.file_shapes else None,
        }


def _compute_shares(labels: Counter[int], classes: list[str]) -> dict[str, float]:
    total = labels.total()
    shares = {name: labels[value] / total for value, name in enumerate(classes)}
    other = sum(count for value, count in labels.items() if not 0 <= value < len(classes))
    return shares | ({"other": other / total} if other else {})
