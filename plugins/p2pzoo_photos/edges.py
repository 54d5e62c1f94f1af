"""The dataset `edges`: the edges of a photo, and the photo; like edges→shoes of Isola et al. 2017 (arXiv:1611.07004).

Edges come from kornia's Canny (1986, doi:10.1109/TPAMI.1986.4767851), or from files. The paper uses HED.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from p2pzoo.data.pairing import Files, format_size
from p2pzoo.data.splits import Fractions
from p2pzoo.images.io import read_header
from p2pzoo.images.resize import ResizeMode, keeps_alignment
from p2pzoo.plugin import FileLayout, Split
from p2pzoo.utils.errors import UserError
from p2pzoo_photos.photos import Count, Photos, Size, to_luma

Slope = Annotated[float, Field(gt=0, lt=1)]
Blur = Annotated[float, Field(gt=0)]
LOW, HIGH, SIGMA = 0.1, 0.2, 1.0  # kornia's defaults


class Edges(Photos):
    """Pairs of edges (H, W, 1), black on white, and photo (H, W, 3), uint8.

    edges      folder of edge files: grey, with the names and proportions of the photos. Default: Canny's edges
    low, high  Canny's thresholds for the gradient of lightness from 0 to 1 (0.1, 0.2): a line starts where the gradient
               is above `high`, and continues where it is above `low`
    sigma      standard deviation in px of the blur before Canny's gradient (1.0): larger values give fewer lines

    All other parameters, and more errors: see `Photos`. Raises UserError also for photos without edges and edges
    without a photo, ValueError for Canny's parameters together with `edges`.
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
        resize: ResizeMode = "crop",
        max_pairs: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
    ) -> None:
        for name, value in {"low": low, "high": high, "sigma": sigma}.items():
            if edges and value is not None:
                raise ValueError(
                    f"{name} is a parameter of Canny's edges, and edges = {edges} replaces those: remove one"
                )
        self._low, self._high, self._sigma = low or LOW, high or HIGH, sigma or SIGMA
        if self._low > self._high:
            raise ValueError(f"low = {self._low} must not be above high = {self._high}")
        super().__init__(split, root, size, resize, max_pairs, fractions, split_seed, (Path(edges),) if edges else ())
        self._has_edge_files = edges is not None

    @property
    def file_layout(self) -> FileLayout:
        """That of the edge files: x is resized from them. Canny's edges have the scale of the resized photo."""
        return self.find_layout() if self._has_edge_files else FileLayout()

    def make_pair(self, id: str, photo: np.ndarray, files: Files) -> tuple[np.ndarray, np.ndarray]:
        if len(files) == 1:
            return canny(to_luma(photo), self._low, self._high, self._sigma), photo
        photo_file, edge_file = files
        sizes = [read_header(file)[:2] for file in files]
        if not keeps_alignment(*sizes, self._resize):
            raise UserError(
                f"{edge_file} is {format_size(*sizes[1])}, {photo_file} is {format_size(*sizes[0])}: edges and photo "
                'must have one size; with resize = "crop" or "fit", equal proportions'
            )
        return self.read_photo(edge_file, 1), photo


def canny(grey: np.ndarray, low: float, high: float, sigma: float) -> np.ndarray:
    """(H, W, 1) uint8 -> (H, W, 1) uint8: 0 on edges, else 255."""
    import torch
    from kornia.filters import canny

    side = 2 * int(np.ceil(2 * sigma)) + 1
    image = torch.from_numpy(np.require(grey, requirements=["C", "W"])).permute(2, 0, 1)[None].float() / 255
    _, edges = canny(image, low, high, (side, side), (sigma, sigma))
    return np.where(edges[0].permute(1, 2, 0).numpy() > 0, np.uint8(0), np.uint8(255))
