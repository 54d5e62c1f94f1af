"""Line drawings of photos: luminance, and its edges after Canny (1986, doi:10.1109/TPAMI.1986.4767851).

The images of `edges-to-photo` are training data, so the same photo must give the same lines on every machine. Libraries
compute in floating point: rounding, and rules for ties that change between versions, decide the pixels at the
thresholds. Here all arithmetic is in integers.
"""

from __future__ import annotations

import numpy as np

# Slope of the blurred luminance in grey levels per px. A line starts where the slope is above HIGH, and continues where
# it is above LOW. In the units of libraries that do not divide Sobel's sums by 8: 24 and 48 of 255.
LOW, HIGH = 3, 6

BLUR = (1, 4, 6, 4, 1)  # sixteenths, in each direction: a Gaussian with a standard deviation of 1 px
UNIT = 16  # the blurred luminance is in sixteenths of a grey level: squared slopes still fit into int32


def to_luminance(photo: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W, 1) uint8: luma of Rec. 601, rounded half up.

    >>> to_luminance(np.full((1, 1, 3), [0, 255, 0], np.uint8)).tolist()
    [[[150]]]
    """
    red, green, blue = np.moveaxis(photo.astype(np.int32), -1, 0)
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(np.uint8)[..., None]


def find_edges(grey: np.ndarray, low: int = LOW, high: int = HIGH) -> np.ndarray:
    """The edge pixels: (H, W) uint8 -> (H, W) bool, lines one pixel wide.

    low, high  thresholds of the slope, in grey levels per px (LOW, HIGH)
    """
    dy, dx = _sobel(_blur(grey))
    steepness = dy**2 + dx**2
    ridge = _is_ridge(steepness, dy, dx)
    unit = 8 * UNIT  # Sobel's sums are 8 times the slope
    return _reachable(ridge & (steepness > (high * unit) ** 2), ridge & (steepness > (low * unit) ** 2))


def _blur(grey: np.ndarray) -> np.ndarray:
    """(H, W) int32, in units of 1 / UNIT grey level; border pixels are repeated outwards."""
    vertical = _correlate(np.pad(grey.astype(np.int32), 2, mode="edge"), BLUR, axis=0)
    return _correlate(vertical, BLUR, axis=1) // (256 // UNIT)


def _sobel(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sobel's sums, downwards and to the right: 8 times the slope."""
    padded = np.pad(image, 1, mode="edge")
    return (
        _correlate(_correlate(padded, (-1, 0, 1), axis=0), (1, 2, 1), axis=1),
        _correlate(_correlate(padded, (1, 2, 1), axis=0), (-1, 0, 1), axis=1),
    )


def _correlate(image: np.ndarray, weights: tuple[int, ...], axis: int) -> np.ndarray:
    """Weighted sum of neighbours along `axis`, which becomes len(weights) - 1 shorter."""
    length = image.shape[axis] - len(weights) + 1
    if axis == 1:
        return sum(weight * image[:, start : start + length] for start, weight in enumerate(weights))
    return sum(weight * image[start : start + length] for start, weight in enumerate(weights))


def _is_ridge(steepness: np.ndarray, dy: np.ndarray, dx: np.ndarray) -> np.ndarray:
    """Pixels whose slope is a maximum along the direction of the slope, rounded to 45 degrees."""
    padded = np.pad(steepness, 1)
    height, width = steepness.shape

    def beats_neighbours(down: int, right: int) -> np.ndarray:
        before = padded[1 - down : 1 - down + height, 1 - right : 1 - right + width]
        after = padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
        return (steepness > before) & (steepness >= after)  # of two equal pixels, the first

    # 12/29 is the tangent of 22.5 degrees to three digits.
    level, upright = 29 * abs(dy) <= 12 * abs(dx), 29 * abs(dx) <= 12 * abs(dy)
    return np.select(
        [level, upright, (dy > 0) == (dx > 0)],
        [beats_neighbours(0, 1), beats_neighbours(1, 0), beats_neighbours(1, 1)],
        beats_neighbours(1, -1),
    )


def _reachable(seeds: np.ndarray, paths: np.ndarray) -> np.ndarray:
    """The pixels of `paths` that are connected to `seeds` through neighbours, also diagonal ones."""
    free = np.pad(paths, 1).ravel()  # with a border, so that no step leaves the array
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
