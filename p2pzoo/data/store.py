"""Each pair is decoded, checked and enlarged once, then kept in memory in its stored dtype."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from p2pzoo.contracts import Dataset, Pair
from p2pzoo.errors import UserError


class Store:
    """The pairs of a dataset, enlarged to `load_size` for the jitter; filled as pairs are asked for.

    enlarge    the jitter's factor, for training: labels too come to `load_size`. None: pairs as they are, for
               evaluation; where labels have more pixels than images they are not kept: large, and read once

    size       (H, W) of the images as the networks see them
    load_size  (H, W) of what `[i]` gives; equal to `size` where `enlarge` is 1 or None
    channels   (C of x, C of y)
    """

    def __init__(self, dataset: Dataset, *, enlarge: float | None = None, kernel: str = "bicubic") -> None:
        if len(dataset) == 0:
            raise UserError("the dataset has no pairs in this split")
        self.dataset = dataset
        self.kernel, self.for_training = kernel, enlarge is not None
        first = dataset[0]
        self.size: tuple[int, int] = (first.x.shape[0], first.x.shape[1])
        self.channels: tuple[int, int] = (first.x.shape[2], first.y.shape[2])
        self.load_size = tuple(round(side * (enlarge or 1.0)) for side in self.size)
        self._kept: dict[int, Pair] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Pair:
        if index in self._kept:
            return self._kept[index]
        pair = self._checked(self.dataset[index])
        if self.for_training:
            pair = self._enlarged(self._original(index, pair))
        elif pair.labels is not None and pair.labels.shape != self.size:
            return pair
        self._kept[index] = pair
        return pair

    def _checked(self, pair: Pair) -> Pair:
        for name, image, channels in (("x", pair.x, self.channels[0]), ("y", pair.y, self.channels[1])):
            expected = (*self.size, channels)
            if image.shape != expected:
                raise UserError(
                    f"pair '{pair.id}': {name} is {_shape(image.shape)}, the first pair's is {_shape(expected)} "
                    "(height × width × channels); all pairs of a dataset must be alike"
                )
        if pair.labels is not None and not _cover_images(pair.labels.shape, self.size):
            told = f"labels are {_shape(pair.labels.shape)}, x is {_shape(self.size)}"
            raise UserError(f"pair '{pair.id}': {told}; they may have more pixels, not fewer")
        return pair

    def _original(self, index: int, pair: Pair) -> Pair:
        """What is enlarged: the pair, or where its dataset made it smaller, as it was before."""
        original = getattr(self.dataset, "original", None)
        return original(index) if original and self.load_size != self.size else pair

    def _enlarged(self, pair: Pair) -> Pair:
        labels = pair.labels
        if labels is not None and labels.shape != self.load_size:  # class numbers do not mix: nearest
            sides = zip(self.load_size, labels.shape, strict=True)
            rows, columns = ((2 * np.arange(n) + 1) * side // (2 * n) for n, side in sides)
            labels = np.ascontiguousarray(labels[rows[:, None], columns])
        if pair.x.shape[:2] == self.load_size:
            return Pair(pair.id, pair.x, pair.y, labels, pair.block)
        x = resize(pair.x, self.load_size, self.kernel, self.dataset.x_range)
        y = resize(pair.y, self.load_size, self.kernel, self.dataset.y_range)
        return Pair(pair.id, x, y, labels, pair.block)


def resize(image: np.ndarray, size: tuple[int, ...], kernel: str, limits: tuple[float, float]) -> np.ndarray:
    """(H, W, C) -> (*size, C) in the same dtype; overshoot cut to `limits`.

    kernel: "bicubic" and "bilinear", antialiased as Pillow has them; "bilinear-corners", between the centres of the
    corners' pixels, and "area" where that makes an image smaller; "area", the mean of what each new pixel covers.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    if kernel == "bilinear-corners" and (size[0] < image.shape[0] or size[1] < image.shape[1]):
        kernel = "area"  # Torch7's image.scale
    plain = kernel in ("bicubic", "bilinear")
    if image.dtype != np.uint8 or not plain:  # torch resamples uint8 with Pillow's rounding between the two directions
        tensor = tensor.float()
    if kernel == "area":
        down, across = (_cover(n, side) for n, side in zip(size, image.shape, strict=False))
        out = down @ tensor @ across.t()
    elif kernel == "bilinear-corners":
        out = F.interpolate(tensor, size=size, mode="bilinear", align_corners=True)
    else:
        out = F.interpolate(tensor, size=size, mode=kernel, align_corners=False, antialias=True)
    out = out.clamp(*limits)
    if np.issubdtype(image.dtype, np.integer):
        out = out.round()
    return np.ascontiguousarray(out[0].permute(1, 2, 0).numpy().astype(image.dtype))


def _cover(n: int, side: int) -> torch.Tensor:
    """(n, side): the share that each of `side` pixels has in each of n that cover the same length."""
    edges, pixels = np.arange(n + 1)[:, None] * (side / n), np.arange(side)
    shared = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return torch.from_numpy(shared.clip(0) * (n / side)).float()


def _cover_images(labels: tuple[int, ...], size: tuple[int, int]) -> bool:
    return len(labels) == 2 and all(own >= side for own, side in zip(labels, size, strict=True))


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
