"""The dataset `colorize`: the lightness of a photo, and its colour.

Isola et al. 2017 (arXiv:1611.07004), §4.2 and §6.2; in Lab as in their Lua code (`colorization` of its data loader:
`input_nc=1, output_nc=2`, L/50 - 1 and ab/110).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from p2pzoo.data.pairing import Files
from p2pzoo.data.splits import Fractions
from p2pzoo.images.color_spaces import quantize, split_lab
from p2pzoo.images.resize import ResizeMode
from p2pzoo.plugin import FileLayout, Split
from p2pzoo_photos.photos import Count, Photos, Size, to_luma

L_RANGE = (0.0, 65535.0)
AB_RANGE = (0.0, 65534.0)  # an even number of steps: the one in the middle is exactly a = b = 0


class Colorize(Photos):
    """Pairs of lightness and colour.

    output  "ab" (the paper's): lightness to colour in CIE Lab; or "rgb": grey to RGB

    With "ab", x is L* (H, W, 1) and y is a* and b* (H, W, 2), uint16. The networks have 1 and 2 channels. Pictures,
    metrics and `p2pzoo translate` show y and ŷ in RGB, with the L of x. With 16 bits every 8-bit sRGB colour is
    restored exactly. With "rgb", x is the luma of Rec. 601 (H, W, 1) and y is the photo (H, W, 3), uint8; the
    lightness of ŷ may differ from x.

    All other parameters, and the errors: see `Photos`.
    """

    def __init__(
        self,
        split: Split,
        *,
        root: Path,
        output: Literal["ab", "rgb"] = "ab",
        size: Size = (256, 256),
        resize: ResizeMode = "crop",
        max_pairs: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
    ) -> None:
        super().__init__(split, root, size, resize, max_pairs, fractions, split_seed)
        self._in_lab = output == "ab"
        if self._in_lab:
            self.x_encoding, self.y_encoding = "L", "ab"
            self.x_range, self.y_range = L_RANGE, AB_RANGE

    @property
    def file_layout(self) -> FileLayout:
        """x is the resized photo in grey, so a model reduces other photos by the same factor."""
        return self.find_layout()

    def make_pair(self, id: str, photo: np.ndarray, files: Files) -> tuple[np.ndarray, np.ndarray]:
        if not self._in_lab:
            return to_luma(photo), photo
        L, ab = split_lab(photo)
        return quantize(L, L_RANGE, np.uint16), quantize(ab, AB_RANGE, np.uint16)
