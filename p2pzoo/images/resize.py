"""Images of any size -> one size. Pillow's bicubic, antialiased: 8-bit colours with opacity are weighted by it.

Maps of classes take the nearest pixel instead.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

Resize = Literal["stretch", "fit", "crop", "none"]
Kernel = Literal["bicubic", "nearest"]
Size = tuple[int, int]  # height, width


def resize_to(
    image: np.ndarray,
    size: Size,
    how: Resize,
    limits: tuple[float, float] = (0, 255),
    *,
    bands: bool = False,
    kernel: Kernel = "bicubic",
) -> np.ndarray:
    """(h, w, C) -> (*size, C) of its dtype in memory of its own; as it is where `how` is "none" or the size is right.

    limits  overshoot is cut to them. bands: the channels are equals, none of them is opacity
    kernel  "nearest" mixes no values

    stretch  to the size, proportions lost
    fit      as large as fits, in the middle; the rest continues the picture by reflection at its borders
    crop     the largest middle part with the size's proportions, scaled
    """
    height, width = image.shape[:2]
    if (height, width) == size or how == "none":
        return np.array(image)
    if how == "stretch":
        return _scaled(image, size, limits, bands, kernel)
    if how == "crop":
        scale = min(height / size[0], width / size[1])
        rest_y, rest_x = max(0.0, height - size[0] * scale), max(0.0, width - size[1] * scale)
        box = (rest_x / 2, rest_y / 2, width - rest_x / 2, height - rest_y / 2)
        return _scaled(image, size, limits, bands, kernel, box)
    inner = fit_size(height, width, size)
    before = [(outer - side) // 2 for outer, side in zip(size, inner, strict=True)]
    after = [outer - side - gap for outer, side, gap in zip(size, inner, before, strict=True)]
    return np.pad(
        _scaled(image, inner, limits, bands, kernel), [*zip(before, after, strict=True), (0, 0)], mode="reflect"
    )


def fit_size(height: int, width: int, size: Size) -> Size:
    """The largest size of these proportions that fits into `size`."""
    scale = min(size[0] / height, size[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def keeps_alignment(a: Size, b: Size, how: Resize) -> bool:
    """Whether two aligned images of these sizes stay aligned when each is fitted by itself."""
    if how == "none":
        return a == b
    if how == "stretch":
        return True
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)  # proportions agree but for one pixel of rounding


def _scaled(
    image: np.ndarray,
    size: Size,
    limits: tuple[float, float],
    bands: bool,
    kernel: Kernel,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """The part `box` (left, top, right, bottom) of an image, resampled to `size`."""

    def resized(pixels: np.ndarray) -> np.ndarray:
        return np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling[kernel.upper()], box=box))

    channels = image.shape[2]
    if image.dtype == np.uint8 and channels <= 4 and not bands:
        whole = resized(image[..., 0] if channels == 1 else image).reshape(*size, channels)
    else:
        whole = np.dstack([resized(np.ascontiguousarray(image[..., c], np.float32)) for c in range(channels)])
    whole = np.clip(whole, *limits)
    scaled: np.ndarray = (whole if image.dtype == np.float32 else np.rint(whole)).astype(image.dtype)
    return scaled


def resize(image: np.ndarray, size: tuple[int, ...], kernel: str, limits: tuple[float, float]) -> np.ndarray:
    """(H, W, C) -> (*size, C) in the same dtype; overshoot cut to `limits`.

    kernel: "bicubic" and "bilinear", antialiased as Pillow has them; "bilinear-corners", between the centres of the
    corners' pixels, and "area" where that makes an image smaller; "area", the mean of what each new pixel covers;
    "nearest", by their centres.
    """
    if kernel == "nearest":
        return _nearest(image, size)
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
    if out.dtype != torch.uint8 or limits[0] > 0 or limits[1] < 255:
        out = out.clamp(*limits)
    if np.issubdtype(image.dtype, np.integer) and out.dtype.is_floating_point:
        out = out.round()
    return np.ascontiguousarray(out[0].permute(1, 2, 0).numpy().astype(image.dtype, copy=False))


def _nearest(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """(H, W, ...) -> (*size, ...)."""
    rows, columns = ((2 * np.arange(n) + 1) * side // (2 * n) for n, side in zip(size, image.shape, strict=False))
    return np.ascontiguousarray(image[rows[:, None], columns])


def _cover(n: int, side: int) -> torch.Tensor:
    """(n, side): the share that each of `side` pixels has in each of n that cover the same length."""
    edges, pixels = np.arange(n + 1)[:, None] * (side / n), np.arange(side)
    shared = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return torch.from_numpy(shared.clip(0) * (n / side)).float()
