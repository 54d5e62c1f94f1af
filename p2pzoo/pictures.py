"""Tensors -> pictures that people can see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from p2pzoo.files import replacing

GAP, VISIBLE = 4, 256  # pixels between images; a grid's images are enlarged to at least this height


def to_rgb(image: Tensor) -> np.ndarray:
    """(C, H, W) in [-1, 1] -> (H, W, 3) uint8. One or two channels show the first as grey, more the first three.

    One-hot classes come here in their colours: `Encodings.seen`.
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
    with replacing(path) as temporary:
        image.save(temporary, "PNG")
