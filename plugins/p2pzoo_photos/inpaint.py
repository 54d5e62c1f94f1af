"""The dataset `inpaint`: a photo with a part of it hidden, and the photo.

The centre: Isola et al. 2017 (arXiv:1611.07004), §6.2, as their Lua code has it (the centre half is set to 1).
At random: the "random block" of Pathak et al. 2016 (arXiv:1604.07379), §3.3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from p2pzoo.data.pairing import Files
from p2pzoo.data.splits import Fractions
from p2pzoo.images.resize import Resize
from p2pzoo.plugin import Split
from p2pzoo.utils.rng import numpy_rng
from p2pzoo_photos.photos import Count, Photos, Size

WHITE = 255
LEAST, MOST = 8, 4  # a random block's sides are from an eighth to a quarter of the photo's
HIDDEN = 0.25  # at random at most this share


class Inpaint(Photos):
    """Pairs of a photo that has white where something is hidden, and the whole photo; uint8.

    mask       "centre": the middle half of the height and of the width
               "random": blocks that may overlap, up to a quarter of the photo. They follow from the photo's `id` and
               `mask_seed`, and are always the same
    mask_seed  other random blocks
    opacity    x has a fourth channel: 0 where the photo is hidden, else 255, as in a PNG with transparent holes

    All else, and the errors: see `Photos`.
    """

    def __init__(
        self,
        split: Split,
        *,
        root: Path,
        mask: Literal["centre", "random"] = "centre",
        mask_seed: int | None = None,
        opacity: bool = False,
        size: Size = (256, 256),
        resize: Resize = "crop",
        max_pairs: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
    ) -> None:
        if mask == "centre" and mask_seed is not None:
            raise ValueError('mask_seed goes with mask = "random"')
        super().__init__(split, root, size, resize, max_pairs, fractions, split_seed)
        self._random, self._seed, self._opacity = mask == "random", mask_seed or 0, opacity

    def pair_of(self, id: str, photo: np.ndarray, files: Files) -> tuple[np.ndarray, np.ndarray]:
        height, width = photo.shape[:2]
        hidden = random_blocks(height, width, self._seed, id) if self._random else centre(height, width)
        x = np.where(hidden[..., None], np.uint8(WHITE), photo)
        if self._opacity:
            x = np.dstack([x, np.where(hidden, np.uint8(0), np.uint8(255))])
        return x, photo


def centre(height: int, width: int) -> np.ndarray:
    """(H, W) bool: True in the middle half of both."""
    hidden = np.zeros((height, width), bool)
    hidden[height // 4 : height // 4 + height // 2, width // 4 : width // 4 + width // 2] = True
    return hidden


def random_blocks(height: int, width: int, seed: int, id: str) -> np.ndarray:
    """(H, W) bool: True in blocks, as many as together hide no more than a quarter."""
    draw = numpy_rng(seed, "mask", id)
    hidden = np.zeros((height, width), bool)
    while True:
        down, across = (int(draw.integers(max(1, n // LEAST), max(1, n // MOST) + 1)) for n in (height, width))
        top, left = int(draw.integers(height - down + 1)), int(draw.integers(width - across + 1))
        more = hidden.copy()
        more[top : top + down, left : left + across] = True
        if more.mean() > HIDDEN:
            return hidden
        hidden = more
