"""The datasets `super-resolve` and `denoise`: a photo made worse in a known way, and the photo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from p2pzoo.data.pairing import Files
from p2pzoo.data.splits import Fractions
from p2pzoo.images.resize import Resize
from p2pzoo.plugin import Split
from p2pzoo.utils.rng import numpy_rng
from p2pzoo_photos.photos import Count, Photos, Size

Deviation = Annotated[float, Field(ge=0)]
Light = Annotated[float, Field(gt=0)]


class SuperResolve(Photos):
    """Pairs of a photo that was made smaller and brought back to its size, and the photo; (H, W, 3) uint8.

    factor  by which its sides were divided. Both ways bicubic as Pillow has it, downwards antialiased, with the small
            photo in 8 bits as a file has it: as Dong et al. 2014 (arXiv:1501.00092), §3, make theirs

    All else, and the errors: see `Photos`. Besides: ValueError for sizes that `factor` does not divide.
    """

    def __init__(
        self,
        split: Split,
        *,
        root: Path,
        factor: Literal[2, 4, 8] = 4,
        size: Size = (256, 256),
        resize: Resize = "crop",
        max_pairs: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
    ) -> None:
        if any(side % factor for side in size):
            fitting = [max(1, round(side / factor)) * factor for side in size]
            raise ValueError(f"size = {list(size)}: both must be multiples of factor = {factor}, as {fitting} are")
        super().__init__(split, root, size, resize, max_pairs, fractions, split_seed)
        self._factor = factor

    def pair_of(self, id: str, photo: np.ndarray, files: Files) -> tuple[np.ndarray, np.ndarray]:
        height, width = photo.shape[:2]
        small = Image.fromarray(photo).resize((width // self._factor, height // self._factor), Image.Resampling.BICUBIC)
        return np.array(small.resize((width, height), Image.Resampling.BICUBIC)), photo


class Denoise(Photos):
    """Pairs of a noisy photo and the photo; (H, W, 3) uint8. Shot noise and read noise, as cameras have them.

    sigma       standard deviation of Gaussian noise, in levels of 255
    photons     that a white pixel receives: its level follows the Poisson distribution of so many. Left out: none of
                this noise. Foi et al. 2008 (doi:10.1109/TIP.2008.2001399) have both
    noise_seed  other noise

    Channels are independent; results are rounded and cut to 0 and 255. A photo's noise follows from its `id` and
    `noise_seed`, and is always the same.

    All else, and the errors: see `Photos`. Besides: ValueError for no noise at all.
    """

    def __init__(
        self,
        split: Split,
        *,
        root: Path,
        sigma: Deviation = 25.0,
        photons: Light | None = None,
        noise_seed: int = 0,
        size: Size = (256, 256),
        resize: Resize = "crop",
        max_pairs: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
    ) -> None:
        if not sigma and photons is None:
            raise ValueError("sigma = 0 and no photons: there is no noise to take away")
        super().__init__(split, root, size, resize, max_pairs, fractions, split_seed)
        self._sigma, self._photons, self._seed = sigma, photons, noise_seed

    def pair_of(self, id: str, photo: np.ndarray, files: Files) -> tuple[np.ndarray, np.ndarray]:
        draw, light = numpy_rng(self._seed, "grain", id), photo.astype(np.float64)
        if self._photons is not None:
            light = draw.poisson(light * (self._photons / 255)) * (255 / self._photons)
        light += draw.standard_normal(light.shape) * self._sigma
        return np.rint(light.clip(0, 255)).astype(np.uint8), photo
