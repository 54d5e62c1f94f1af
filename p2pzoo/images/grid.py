"""Tensors -> RGB images and grids of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from p2pzoo.utils.files import atomic_write

NUM_TEST_IMAGES = 6  # rows of a run's test grid: they fit on a screen at 256 px
GRID_GAP = 4  # px between images
_MIN_HEIGHT = 256  # px: smaller images of a grid are enlarged to at least this height


def grid_indices(count: int) -> range:
    """Which of `count` test images a run's grid shows: evenly spread, and the same for every run on a dataset.

    >>> list(grid_indices(30))
    [0, 5, 10, 15, 20, 25]
    """
    return range(0, count, max(1, count // NUM_TEST_IMAGES))[:NUM_TEST_IMAGES]


def to_uint8_rgb(image: Tensor) -> np.ndarray:
    """(C, H, W) in [-1, 1] -> (H, W, 3) uint8. Of one or two channels the first is shown as grey, else the first three.

    Lab and one-hot images must be converted by `Encodings.to_rgb` before.

    >>> to_uint8_rgb(torch.ones(1, 2, 2)).tolist()[0]
    [[255, 255, 255], [255, 255, 255]]
    """
    image = image if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    scaled = (image[:3].detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 0).numpy()


def make_grid(rows: Sequence[Sequence[Tensor]]) -> Image.Image:
    """A grid of images of one size, (C, H, W) in [-1, 1]. Small ones are enlarged by an integer factor."""
    arrays = [[to_uint8_rgb(image) for image in row] for row in rows]
    height, width = arrays[0][0].shape[:2]
    factor = max(1, -(-_MIN_HEIGHT // height))
    height, width = height * factor, width * factor
    columns = max(len(row) for row in arrays)
    sheet = Image.new(
        "RGB", (columns * (width + GRID_GAP) - GRID_GAP, len(rows) * (height + GRID_GAP) - GRID_GAP), "white"
    )
    for i, array_row in enumerate(arrays):
        for j, array in enumerate(array_row):
            enlarged = Image.fromarray(array).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (j * (width + GRID_GAP), i * (height + GRID_GAP)))
    return sheet


def save_png(path: Path, image: Image.Image) -> None:
    """Write a PNG atomically."""
    with atomic_write(path) as temporary:
        image.save(temporary, "PNG", compress_level=4)  # two thirds of the time of level 6, files 2% larger
