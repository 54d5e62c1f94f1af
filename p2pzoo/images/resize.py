"""Resizes images: to the size of a dataset (`resize_to`) and for the jitter of training (`resize`).

The default is Pillow's antialiased bicubic filter; 8-bit colours with an alpha channel are weighted by it.
Label maps use the nearest pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

ResizeMode = Literal["stretch", "fit", "crop", "none"]
ResizeKernel = Literal["bicubic", "nearest"]
ImageSize = tuple[int, int]  # height, width


def resize_to(
    image: np.ndarray,
    size: ImageSize,
    how: ResizeMode,
    limits: tuple[float, float] = (0, 255),
    *,
    bands: bool = False,
    kernel: ResizeKernel = "bicubic",
) -> np.ndarray:
    """(h, w, C) -> (*size, C), a copy of the same dtype. Not resized where `how` is "none" or the size is right.

    how     "stretch": to the size; proportions change
            "fit": as large as fits, centred; the rest is filled by reflection at the borders
            "crop": the largest centred part with the proportions of `size`, scaled
            "none": not at all
    limits  the result is clipped to them, as bicubic overshoots
    bands   whether the channels are equal bands; else the last of 2 or 4 channels is alpha
    kernel  "nearest" does not mix values

    >>> resize_to(np.zeros((10, 20, 3), np.uint8), (8, 8), "crop").shape
    (8, 8, 3)
    """
    height, width = image.shape[:2]
    if (height, width) == size or how == "none":
        return np.array(image)
    if how == "stretch":
        return _scaled(image, size, limits, bands, kernel)
    if how == "crop":
        scale = min(height / size[0], width / size[1])
        cut_y, cut_x = max(0.0, height - size[0] * scale), max(0.0, width - size[1] * scale)
        box = (cut_x / 2, cut_y / 2, width - cut_x / 2, height - cut_y / 2)
        return _scaled(image, size, limits, bands, kernel, box)
    inner = fit_size(height, width, size)
    before = [(outer - side) // 2 for outer, side in zip(size, inner, strict=True)]
    after = [outer - side - gap for outer, side, gap in zip(size, inner, before, strict=True)]
    return np.pad(
        _scaled(image, inner, limits, bands, kernel), [*zip(before, after, strict=True), (0, 0)], mode="reflect"
    )


def fit_size(height: int, width: int, size: ImageSize) -> ImageSize:
    """The largest size with these proportions that fits into `size`.

    >>> fit_size(height=10, width=20, size=(8, 8))
    (4, 8)
    """
    scale = min(size[0] / height, size[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_factors(sizes: Sequence[ImageSize], size: ImageSize, how: ResizeMode) -> tuple[float, float]:
    """New over old height and width when images of `sizes` are brought to `size`; the median over the images.

    >>> resize_factors([(512, 1024), (256, 512)], (64, 64), "crop")
    (0.1875, 0.1875)
    """
    if how == "none" or not sizes:
        return 1.0, 1.0
    down, across = (np.array(size) / np.array(sizes)).T
    if how != "stretch":
        down = across = np.maximum(down, across) if how == "crop" else np.minimum(down, across)
    return float(np.median(down)), float(np.median(across))


def median_size(sizes: Sequence[ImageSize]) -> ImageSize:
    """The median height and width.

    >>> median_size([(512, 1024), (256, 512), (260, 512)])
    (260, 512)
    """
    height, width = np.median(np.array(sizes), axis=0)
    return int(height), int(width)


def keeps_alignment(a: ImageSize, b: ImageSize, how: ResizeMode) -> bool:
    """Whether two aligned images of these sizes stay aligned when each is resized separately."""
    if how == "none":
        return a == b
    if how == "stretch":
        return True
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)  # the proportions are equal up to one pixel of rounding


def _scaled(
    image: np.ndarray,
    size: ImageSize,
    limits: tuple[float, float],
    bands: bool,
    kernel: ResizeKernel,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """The part `box` (left, top, right, bottom) of an image, resampled to `size`."""

    def resized(pixels: np.ndarray) -> np.ndarray:
        return np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling[kernel.upper()], box=box))

    channels = image.shape[2]
    if image.dtype == np.uint8 and channels <= 4 and not bands:
        output = resized(image[..., 0] if channels == 1 else image).reshape(*size, channels)
    else:
        output = np.dstack([resized(np.ascontiguousarray(image[..., c], np.float32)) for c in range(channels)])
    output = np.clip(output, *limits)
    output = output if image.dtype == np.float32 else np.rint(output)
    return output.astype(image.dtype)  # type: ignore[no-any-return]


def resize(image: np.ndarray, size: tuple[int, ...], kernel: str, limits: tuple[float, float]) -> np.ndarray:
    """(H, W, C) -> (*size, C) in the same dtype, clipped to `limits`.

    kernel  "bicubic", "bilinear": antialiased, as in Pillow
            "bilinear-corners": corner pixels stay corner pixels (Torch7's image.scale); "area" if a side shrinks
            "area": the mean of the area that each new pixel covers
            "nearest": the pixel nearest to the centre

    >>> resize(np.array([[[0], [100]]], np.uint8), (1, 4), "nearest", (0, 255))[0, :, 0].tolist()
    [0, 0, 100, 100]
    """
    if kernel == "nearest":
        return resize_nearest(image, size)
    tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    if kernel == "bilinear-corners" and (size[0] < image.shape[0] or size[1] < image.shape[1]):
        kernel = "area"  # as Torch7's image.scale
    is_antialiased = kernel in ("bicubic", "bilinear")
    if (
        image.dtype != np.uint8 or not is_antialiased
    ):  # uint8 stays: torch then rounds between the directions, as Pillow
        tensor = tensor.float()
    if kernel == "area":
        down, across = (_coverage(n, side) for n, side in zip(size, image.shape, strict=False))
        out = down @ tensor @ across.t()
    elif kernel == "bilinear-corners":
        out = F.interpolate(tensor, size=size, mode="bilinear", align_corners=True)
    else:
        out = F.interpolate(tensor, size=size, mode=kernel, align_corners=False, antialias=True)
    if out.dtype != torch.uint8 or limits[0] > 0 or limits[1] < 255:
        out = out.clamp(*limits)
    if np.issubdtype(image.dtype, np.integer) and out.dtype.is_floating_point:
        out = out.round()
    return np.ascontiguousarray(out[0].permute(1, 2, 0).numpy().astype(image.dtype, copy=False))


def resize_nearest(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """(H, W, ...) -> (*size, ...): each new pixel is the one at its centre. No values are mixed."""
    rows, columns = ((2 * np.arange(n) + 1) * side // (2 * n) for n, side in zip(size, image.shape, strict=False))
    return np.ascontiguousarray(image[rows[:, None], columns])


def _coverage(n: int, side: int) -> torch.Tensor:
    """(n, side): the share of each of `side` pixels in each of n new pixels that cover the same length."""
    edges, pixels = np.arange(n + 1)[:, None] * (side / n), np.arange(side)
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return torch.from_numpy(overlap.clip(0) * (n / side)).float()
