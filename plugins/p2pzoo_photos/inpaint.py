"""The dataset `inpaint`: a photo with a hidden part, and the complete photo.

mask = "centre": Isola et al. 2017 (arXiv:1611.07004), §6.2, as in their Lua code (the centre half is set to 1).
mask = "random": the "random block" of Pathak et al. 2016 (arXiv:1604.07379), §3.3.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from p2pzoo.data.pairing import Files
from p2pzoo.data.splits import Fractions
from p2pzoo.images.resize import ResizeMode
from p2pzoo.plugin import FileLayout, Split
from p2pzoo.utils.rng import numpy_rng
from p2pzoo_photos.photos import Count, Photos, Size

WHITE = 255
MIN_SIDE, MAX_SIDE = 8, 4  # divisors: the sides of a random block are an eighth to a quarter of the photo's
MAX_HIDDEN = 0.25  # fraction of the photo, as in Pathak et al., §3.3


class Inpaint(Photos):
    """Pairs of a photo with its hidden part in white, and the complete photo; uint8.

    mask       "centre" hides the middle half of height and width; "random" hides blocks that may overlap, up to a
               quarter of the photo
    mask_seed  seed of the random blocks (0); they depend only on it and on the photo's `id`
    opacity    whether x has a fourth channel: 0 where the photo is hidden, else 255, as in a PNG with transparent holes

    All other parameters, and more errors: see `Photos`. Raises ValueError for `mask_seed` with mask = "centre".
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
        resize: ResizeMode = "crop",
        max_pairs: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
    ) -> None:
        if mask == "centre" and mask_seed is not None:
            raise ValueError('mask_seed has no effect with mask = "centre": remove it, or set mask = "random"')
        super().__init__(split, root, size, resize, max_pairs, fractions, split_seed)
        self._random, self._seed, self._opacity = mask == "random", mask_seed or 0, opacity

    @property
    def file_layout(self) -> FileLayout:
        return replace(super().file_layout, alpha=self._opacity)

    def make_pair(self, id: str, photo: np.ndarray, files: Files) -> tuple[np.ndarray, np.ndarray]:
        height, width = photo.shape[:2]
        hidden = random_blocks_mask(height, width, self._seed, id) if self._random else centre_mask(height, width)
        x = np.where(hidden[..., None], np.uint8(WHITE), photo)
        if self._opacity:
            x = np.dstack([x, np.where(hidden, np.uint8(0), np.uint8(255))])
        return x, photo


def centre_mask(height: int, width: int) -> np.ndarray:
    """(H, W) bool: True in the middle half of height and width.

    >>> centre_mask(4, 4).astype(int).tolist()
    [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    hidden = np.zeros((height, width), bool)
    hidden[height // 4 : height // 4 + height // 2, width // 4 : width // 4 + width // 2] = True
    return hidden


def random_blocks_mask(height: int, width: int, seed: int, id: str) -> np.ndarray:
    """(H, W) bool: True in random blocks, which are added until the next would hide more than a quarter."""
    generator = numpy_rng(seed, "mask", id)
    hidden = np.zeros((height, width), bool)
    while True:
        rows, columns = (
            int(generator.integers(max(1, side // MIN_SIDE), max(1, side // MAX_SIDE) + 1)) for side in (height, width)
        )
        top, left = int(generator.integers(height - rows + 1)), int(generator.integers(width - columns + 1))
        with_block = hidden.copy()
        with_block[top : top + rows, left : left + columns] = True
        if with_block.mean() > MAX_HIDDEN:
            return hidden
        hidden = with_block
