"""Each pair is decoded, checked and enlarged once, then kept in memory in its stored dtype."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from p2pzoo.contracts import Dataset, Pair
from p2pzoo.errors import UserError


class Store:
    """The pairs of a dataset, enlarged to `load_size` for the jitter; filled as pairs are asked for.

    size       (H, W) of the images as the networks see them
    load_size  (H, W) of what `[i]` gives; equal to `size` where `enlarge` is 1
    channels   (C of x, C of y)
    """

    def __init__(self, dataset: Dataset, *, enlarge: float = 1.0, kernel: str = "bicubic") -> None:
        if len(dataset) == 0:
            raise UserError("the dataset has no pairs in this split")
        self.dataset = dataset
        self.kernel = kernel
        first = dataset[0]
        self.size: tuple[int, int] = (first.x.shape[0], first.x.shape[1])
        self.channels: tuple[int, int] = (first.x.shape[2], first.y.shape[2])
        self.load_size = tuple(round(side * enlarge) for side in self.size)
        self._kept: dict[int, Pair] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Pair:
        if index not in self._kept:
            self._kept[index] = self._enlarged(self._checked(self.dataset[index]))
        return self._kept[index]

    def _checked(self, pair: Pair) -> Pair:
        for name, image, channels in (("x", pair.x, self.channels[0]), ("y", pair.y, self.channels[1])):
            expected = (*self.size, channels)
            if image.shape != expected:
                raise UserError(
                    f"pair '{pair.id}': {name} is {_shape(image.shape)}, the first pair's is {_shape(expected)} "
                    "(height × width × channels); all pairs of a dataset must be alike"
                )
        if pair.labels is not None and pair.labels.shape != self.size:
            raise UserError(f"pair '{pair.id}': labels are {_shape(pair.labels.shape)}, x is {_shape(self.size)}")
        return pair

    def _enlarged(self, pair: Pair) -> Pair:
        if self.load_size == self.size:
            return pair
        labels = pair.labels
        if labels is not None:  # class numbers do not mix: nearest
            rows, columns = (np.arange(n) * s // n for n, s in zip(self.load_size, self.size, strict=True))
            labels = np.ascontiguousarray(labels[rows[:, None], columns])
        x = resize(pair.x, self.load_size, self.kernel, self.dataset.x_range)
        y = resize(pair.y, self.load_size, self.kernel, self.dataset.y_range)
        return Pair(pair.id, x, y, labels, pair.block)


def resize(image: np.ndarray, size: tuple[int, ...], kernel: str, limits: tuple[float, float]) -> np.ndarray:
    """(H, W, C) -> (*size, C) in the same dtype; antialiased as Pillow does it, overshoot cut to `limits`."""
    tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    if image.dtype != np.uint8:  # torch resamples uint8 itself, with Pillow's rounding between the two directions
        tensor = tensor.float()
    out = F.interpolate(tensor, size=size, mode=kernel, align_corners=False, antialias=True).clamp(*limits)
    if np.issubdtype(image.dtype, np.integer):
        out = out.round()
    return np.ascontiguousarray(out[0].permute(1, 2, 0).numpy().astype(image.dtype))


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
