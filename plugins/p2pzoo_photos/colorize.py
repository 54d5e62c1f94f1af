"""The dataset `colorize`: what a photo looks like without its colours, and the photo.

Isola et al. 2017 (arXiv:1611.07004), §4.2 and §6.2; in Lab as their Lua code has it (`colorization` of its data
loader: `input_nc=1, output_nc=2`, L/50 - 1 and ab/110).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from p2pzoo.data.pairing import Files
from p2pzoo.data.splits import Fractions
from p2pzoo.images.color_spaces import lab, quantize
from p2pzoo.images.resize import Resize
from p2pzoo.plugin import Split
from p2pzoo_photos.photos import Count, Photos, Size, luma

L_RANGE = (0.0, 65535.0)
AB_RANGE = (0.0, 65534.0)  # an even number of steps: one of them is no colour at all


class Colorize(Photos):
    """Pairs of lightness and colour.

    output  "ab", the paper's: x is L* (H, W, 1) and y is a* and b* (H, W, 2) of CIE Lab, uint16. The networks have 1
            and 2 channels; pictures, metrics and `p2pzoo translate` show y and ŷ in RGB, with the L of x. At 16 bits
            every colour of 8-bit sRGB comes back as it was
            "rgb": x is grey (H, W, 1), the luma of Rec. 601, and y the photo (H, W, 3), uint8. Its lightness may change

    All else, and the errors: see `Photos`.
    """

    def __init__(
        self,
        split: Split,
        *,
        root: Path,
        output: Literal["ab", "rgb"] = "ab",
        size: Size = (256, 256),
        resize: Resize = "crop",
        max_pairs: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
    ) -> None:
        super().__init__(split, root, size, resize, max_pairs, fractions, split_seed)
        self._in_lab = output == "ab"
        if self._in_lab:
            self.x_encoding, self.y_encoding = "L", "ab"
            self.x_range, self.y_range = L_RANGE, AB_RANGE

    def pair_of(self, id: str, photo: np.ndarray, files: Files) -> tuple[np.ndarray, np.ndarray]:
        if not self._in_lab:
            return luma(photo), photo
        L, ab = lab(photo)
        return quantize(L, L_RANGE, np.uint16), quantize(ab, AB_RANGE, np.uint16)
