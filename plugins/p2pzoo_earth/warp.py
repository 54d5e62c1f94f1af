"""Known smooth warps of y: pairs that are misaligned on purpose, and by how much. Imports numpy and scipy."""

from __future__ import annotations

import numpy as np

from p2pzoo.utils.rng import numpy_rng

KNOTS = 5  # of the field along a side: at 128 px, neighbouring knots are 32 px apart


def displacement(tile: str, side: int, amount: float) -> np.ndarray:
    """The displacement of a tile's y, (2, side, side) float32: px down and px right at each pixel.

    It depends on the tile's id alone. Its root mean square length is `amount` px; a cubic spline joins KNOTS × KNOTS
    random vectors.

    >>> field = displacement("r0512c3328", 64, 2.0)
    >>> field.shape, round(float(np.sqrt((field**2).sum(0).mean())), 3)
    ((2, 64, 64), 2.0)
    """
    from scipy.ndimage import map_coordinates

    knots = numpy_rng(0, "warp", tile).normal(size=(2, KNOTS, KNOTS))
    at = np.meshgrid(*[np.linspace(0, KNOTS - 1, side)] * 2, indexing="ij")
    field = np.stack([map_coordinates(component, at, order=3, mode="nearest") for component in knots])
    return (amount * field / np.sqrt((field**2).sum(0).mean())).astype(np.float32)


def warp_image(image: np.ndarray, field: np.ndarray, *, smooth: bool) -> np.ndarray:
    """The image (H, W, C) uint8 with the pixel p + field(p) at p; what is beyond the border is mirrored.

    smooth  cubic interpolation; False: the nearest pixel, so that colours of classes do not mix
    """
    from scipy.ndimage import map_coordinates

    at = np.indices(field.shape[1:]) + field
    channels = [
        map_coordinates(image[..., channel].astype(np.float32), at, order=3 if smooth else 0, mode="mirror")
        for channel in range(image.shape[-1])
    ]
    return np.clip(np.rint(np.stack(channels, -1)), 0, 255).astype(np.uint8)
