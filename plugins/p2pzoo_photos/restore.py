"""The datasets `super-resolve` and `denoise`: a photo degraded in a known way, and the original photo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from p2pzoo.data.pairing import Files
from p2pzoo.data.splits import Fractions
from p2pzoo.images.resize import ResizeMode
from p2pzoo.plugin import Split
from p2pzoo.utils.rng import numpy_rng
from p2pzoo_photos.photos import Count, Photos, Size

Deviation = Annotated[float, Field(ge=0)]
Light = Annotated[float, Field(gt=0)]


class SuperResolve(Photos):
    """Pairs of a photo reduced and enlarged again to its size, and the original photo; (H, W, 3) uint8.

    factor  factor by which both sides are reduced

    Both steps are Pillow's bicubic resize, antialiased when it reduces; the small photo has 8 bits, like a file. Dong
    et al. 2014 (arXiv:1501.00092), §3, make their pairs like this.

    All other parameters, and more errors: see `Photos`. Raises ValueError for sizes that `factor` does not divide.
    """

    def __init__(
        self,
        split: Split,
        *,
        root: Path,
        factor: Literal[2, 4, 8] = 4,
        size: Size = (256, 256),
        resize: ResizeMode = "crop",
        max_pairs: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
    ) -> None:
        if any(side % factor for side in size):
            fitting = [max(1, round(side / factor)) * factor for side in size]
            raise ValueError(f"size = {list(size)}: both must be multiples of factor = {factor}, for example {fitting}")
        super().__init__(split, root, size, resize, max_pairs, fractions, split_seed)
        self._factor = factor

    def make_pair(self, id: str, photo: np.ndarray, files: Files) -> tuple[np.ndarray, np.ndarray]:
        height, width = photo.shape[:2]
        small = Image.fromarray(photo).resize((width // self._factor, height // self._factor), Image.Resampling.BICUBIC)
        return np.array(small.resize((width, height), Image.Resampling.BICUBIC)), photo


class Denoise(Photos):
    """Pairs of a noisy photo and the original; (H, W, 3) uint8. Shot noise and read noise, as in cameras.

    sigma       standard deviation of the Gaussian read noise, in levels of 255
    photons     number of photons that a white pixel receives: levels follow a Poisson distribution (shot noise).
                Default: no shot noise
    noise_seed  seed of the noise; the noise depends only on it and on the photo's `id`

    The model is that of Foi et al. 2008 (doi:10.1109/TIP.2008.2001399). The noise of the channels is independent;
    results are rounded and clipped to 0 and 255.

    All other parameters, and more errors: see `Photos`. Raises ValueError if both kinds of noise are off.
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
        resize: ResizeMode = "crop",
        max_pairs: Count | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_seed: int = 0,
    ) -> None:
        if not sigma and photons is None:
            raise ValueError("sigma = 0 and no photons: there is no noise to remove: set one of them")
        super().__init__(split, root, size, resize, max_pairs, fractions, split_seed)
        self._sigma, self._photons, self._seed = sigma, photons, noise_seed

    def make_pair(self, id: str, photo: np.ndarray, files: Files) -> tuple[np.ndarray, np.ndarray]:
        generator, noisy = numpy_rng(self._seed, "grain", id), photo.astype(np.float64)
        if self._photons is not None:
            noisy = generator.poisson(noisy * (self._photons / 255)) * (255 / self._photons)
        noisy += generator.standard_normal(noisy.shape) * self._sigma
        return np.rint(noisy.clip(0, 255)).astype(np.uint8), photo
