"""Tensors -> pictures that people can see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from p2pzoo.utils.files import atomic_write

TEST_PICTURES = 6  # in a run's grid of test images
GAP, VISIBLE = 4, 256  # pixels between images; a grid's images are enlarged to at least this height


def pictured(count: int) -> range:
    """Which of so many test images a run's grid shows: of one dataset always the same, spread over all of it."""
    return range(0, count, max(1, count // TEST_PICTURES))[:TEST_PICTURES]


def to_rgb(image: Tensor) -> np.ndarray:
    """(C, H, W) in [-1, 1] -> (H, W, 3) uint8. One or two channels show the first as grey, more the first three.

    One-hot classes come here in their colours: `Encodings.to_rgb`.
    """
    image = image if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    scaled = (image[:3].detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 0).numpy()


def grid(rows: Sequence[Sequence[Tensor]]) -> Image.Image:
    """Rows of images of one size, side by side, enlarged by a whole factor so that each pixel stays a square."""
    pictures = [[to_rgb(image) for image in row] for row in rows]
    height, width = pictures[0][0].shape[:2]
    factor = max(1, -(-VISIBLE // height))
    height, width = height * factor, width * factor
    columns = max(len(row) for row in pictures)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for i, row in enumerate(pictures):
        for j, picture in enumerate(row):
            enlarged = Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (j * (width + GAP), i * (height + GAP)))
    return sheet


def save_png(path: Path, image: Image.Image) -> None:
    with atomic_write(path) as temporary:
        image.save(temporary, "PNG")
