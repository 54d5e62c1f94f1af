"""The dataset `edges`: the edges of a photo, and the photo; as edges→shoes of Isola et al. 2017 (arXiv:1611.07004).

Edges are those of Canny (1986, doi:10.1109/TPAMI.1986.4767851) as kornia finds them, where the paper has HED; or files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from p2pzoo.data.pairing import Files, pixels
from p2pzoo.data.splits import Fractions
from p2pzoo.images.io import read_header
from p2pzoo.images.resize import Resize, keeps_alignment
from p2pzoo.plugin import Split
from p2pzoo.utils.errors import UserError
from p2pzoo_photos.photos import Count, Photos, Size, luma

Slope = Annotated[float, Field(gt=0, lt=1)]
Blur = Annotated[float, Field(gt=0)]
LOW, HIGH, SIGMA = 0.1, 0.2, 1.0


class Edges(Photos):
    """Pairs of edges (H, W, 1), black on white, and photo (H, W, 3), uint8.

    edges      folder of edge files: grey, named as the photos are, of their proportions. Left out: Canny's
    low, high  Canny's thresholds of the slope, of lightness from 0 to 1 (0.1, 0.2): a line starts where it is above
               `high` and goes on down to `low`
    sigma      px, of the blur before Canny's slopes are taken (1.0): larger for fewer lines

    All else, and the errors: see `Photos`. Besides: UserError for photos without edges, and edges without a photo.
    """

    def __init__(
        self,
        split: Split,
        *,
        root: Path,
        edges: Path | None = None,
        low: Slope | None = None,
        high: Slope | None = None,
        sigma: Blur | None = None,
        size: Size = (256, 256),
        resize: Resize = "crop",
        max_pairs: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
    ) -> None:
        of_canny = {"low": low, "high": high, "sigma": sigma}
        if edges and (given := [name for name, value in of_canny.items() if value is not None]):
            raise ValueError(f"{given[0]} is of Canny's edges, and edges = {edges} gives others")
        self._low, self._high, self._sigma = low or LOW, high or HIGH, sigma or SIGMA
        if self._low > self._high:
            raise ValueError(f"low = {self._low} must not be above high = {self._high}")
        super().__init__(split, root, size, resize, max_pairs, fractions, split_seed, (Path(edges),) if edges else ())

    def pair_of(self, id: str, photo: np.ndarray, files: Files) -> tuple[np.ndarray, np.ndarray]:
        if len(files) == 1:
            return canny(luma(photo), self._low, self._high, self._sigma), photo
        whole, drawn = files
        sizes = [read_header(file)[:2] for file in files]
        if not keeps_alignment(*sizes, self._resize):
            told = f"{drawn} is {pixels(*sizes[1])}, {whole} is {pixels(*sizes[0])}"
            raise UserError(f'{told}: edges and photo must have one size; with resize = "crop" or "fit", proportions')
        return self.image(drawn, 1), photo


def canny(grey: np.ndarray, low: float, high: float, sigma: float) -> np.ndarray:
    """(H, W, 1) uint8 -> (H, W, 1) uint8: 0 on edges, else 255."""
    import torch
    from kornia.filters import canny

    side = 2 * int(np.ceil(2 * sigma)) + 1
    image = torch.from_numpy(np.require(grey, requirements=["C", "W"])).permute(2, 0, 1)[None].float() / 255
    _, edges = canny(image, low, high, (side, side), (sigma, sigma))
    return np.where(edges[0].permute(1, 2, 0).numpy() > 0, np.uint8(0), np.uint8(255))
