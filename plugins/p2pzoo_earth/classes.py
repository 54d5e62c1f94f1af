"""The nine classes of the label map: their names, their colours, and the rule that computes them.

Land cover is MODIS MCD12C1 with its 17 IGBP codes. Coast and lakes come from GSHHG. The depth of the sea comes from
the colours of ETOPO1.
"""

from __future__ import annotations

import numpy as np

from p2pzoo_earth.geometry import box_sums

CLASSES = (
    "deep sea",
    "shelf sea",
    "inland water",
    "forest",
    "savanna and wetland",
    "grass and shrub",
    "cropland and urban",
    "barren",
    "snow and ice",
)
DEEP_SEA, SHELF_SEA, SNOW_AND_ICE = 0, 1, 8
UNSCORED = (CLASSES[SNOW_AND_ICE],)  # 0.1% of the pixels: omitted from means over classes

PALETTE = (
    (12, 32, 96),
    (66, 133, 214),
    (120, 200, 240),
    (18, 94, 32),
    (122, 160, 62),
    (206, 206, 120),
    (236, 164, 60),
    (226, 200, 170),
    (250, 250, 255),
)

# Index: IGBP code. 0 is water: inland water, unless the mask marks it as sea.
CLASS_OF_IGBP = np.array([2, 3, 3, 3, 3, 3, 5, 5, 4, 4, 5, 4, 6, 6, 6, 8, 7], np.uint8)

SHELF_RED = 140  # ETOPO1 draws shallow water pale: its red channel crosses this value at the edge of the shelf
SHELF_WINDOW = 9  # px; larger than the 8 × 8 blocks that JPEG leaves in etopo1.jpg


def classify(igbp: np.ndarray, sea: np.ndarray, etopo_red: np.ndarray) -> np.ndarray:
    """(H, W) uint8 class map.

    igbp       (H, W) land-cover codes 0..16
    sea        (H, W) bool; overrides the land cover, because the coasts of the two sources differ slightly
    etopo_red  (H, W) uint8 red channel of ETOPO1, averaged over the sea pixels of a window around each pixel
    """
    red = _window_sum(etopo_red * sea)
    count = _window_sum(sea)
    return np.where(sea, np.where(red > SHELF_RED * count, SHELF_SEA, DEEP_SEA), CLASS_OF_IGBP[igbp]).astype(np.uint8)


def _window_sum(values: np.ndarray) -> np.ndarray:
    """Sum over the SHELF_WINDOW × SHELF_WINDOW window around each pixel, cut off at the borders."""
    n = SHELF_WINDOW
    table = box_sums(np.pad(values, n // 2))
    return table[n:, n:] - table[:-n, n:] - table[n:, :-n] + table[:-n, :-n]
