"""Line drawings of photos: luminance, and the edges that Canny (1986, doi:10.1109/TPAMI.1986.4767851) finds in it.

The pictures of `edges-to-photo` are training data, so the same photo must give the same lines everywhere. Library
detectors compute in floating point, whose last bits (and, from version to version, whose rules for ties) decide pixels
at the thresholds; here all arithmetic is in integers.
"""

from __future__ import annotations

import numpy as np

# Slope of the blurred luminance in grey levels per px. A line starts where it reaches HIGH and goes on down to LOW. In
# the units of libraries that do not divide Sobel's sums by 8: 24 and 48 of 255.
LOW, HIGH = 3, 6

BLUR = (1, 4, 6, 4, 1)  # of 16, in each direction: a Gaussian with a standard deviation of 1 px
UNIT = 16  # the blurred luminance is kept in sixteenths of a grey level: squared slopes still fit int32


def luminance(photo: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W, 1) uint8: Rec. 601 luma, rounded half up."""
    red, green, blue = np.moveaxis(photo.astype(np.int32), -1, 0)
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(np.uint8)[..., None]


def canny(grey: np.ndarray, low: int = LOW, high: int = HIGH) -> np.ndarray:
    """Where the edges are: (H, W) uint8 -> (H, W) bool, lines one pixel wide.

    low, high  thresholds of the slope, in grey levels per px (LOW, HIGH)
    """
    dy, dx = _slopes(_blurred(grey))
    steepness = dy**2 + dx**2
    ridge = _is_ridge(steepness, dy, dx)
    unit = 8 * UNIT  # Sobel's sums are 8 times the slope
    return _connected(ridge & (steepness > (high * unit) ** 2), ridge & (steepness > (low * unit) ** 2))


def _blurred(grey: np.ndarray) -> np.ndarray:
    """(H, W) int32, in UNITs; the picture's border is repeated outwards."""
    once = _weighted(np.pad(grey.astype(np.int32), 2, mode="edge"), BLUR, axis=0)
    return _weighted(once, BLUR, axis=1) // (256 // UNIT)


def _slopes(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sobel's sums, downwards and to the right: 8 times the slope."""
    padded = np.pad(image, 1, mode="edge")
    return (
        _weighted(_weighted(padded, (-1, 0, 1), axis=0), (1, 2, 1), axis=1),
        _weighted(_weighted(padded, (1, 2, 1), axis=0), (-1, 0, 1), axis=1),
    )


def _weighted(image: np.ndarray, weights: tuple[int, ...], axis: int) -> np.ndarray:
    """Sum of neighbours along `axis`, which gets len(weights) - 1 shorter."""
    length = image.shape[axis] - len(weights) + 1
    if axis == 1:
        return sum(weight * image[:, start : start + length] for start, weight in enumerate(weights))
    return sum(weight * image[start : start + length] for start, weight in enumerate(weights))


def _is_ridge(steepness: np.ndarray, dy: np.ndarray, dx: np.ndarray) -> np.ndarray:
    """Where the slope is the steepest along its own direction, that direction rounded to 45 degrees."""
    padded = np.pad(steepness, 1)
    height, width = steepness.shape

    def beats_neighbours(down: int, right: int) -> np.ndarray:
        before = padded[1 - down : 1 - down + height, 1 - right : 1 - right + width]
        after = padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
        return (steepness > before) & (steepness >= after)  # of two equal ones, the first

    # 12/29 is the tangent of 22.5 degrees to three digits.
    level, upright = 29 * abs(dy) <= 12 * abs(dx), 29 * abs(dx) <= 12 * abs(dy)
    return np.select(
        [level, upright, (dy > 0) == (dx > 0)],
        [beats_neighbours(0, 1), beats_neighbours(1, 0), beats_neighbours(1, 1)],
        beats_neighbours(1, -1),
    )


def _connected(seeds: np.ndarray, paths: np.ndarray) -> np.ndarray:
    """The pixels of `paths` that can be reached from `seeds` through neighbours, diagonal ones too."""
    free = np.pad(paths, 1).ravel()  # one row and column more, so that no step leaves the array
    reached = np.zeros_like(free)
    width = paths.shape[1] + 2
    steps = np.array([dy * width + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)])
    front = np.flatnonzero(np.pad(seeds, 1))
    while front.size:
        reached[front] = True
        free[front] = False
        around = (front[:, None] + steps).ravel()
        front = np.unique(around[free[around]])
    return reached.reshape(-1, width)[1:-1, 1:-1]
