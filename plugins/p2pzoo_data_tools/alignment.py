"""Estimate whether x and y are misaligned by the same shift in many pairs. Imports numpy only.

Phase correlation of edges (gradient magnitudes), because edges are what a photo and a map of one place share. The phase
correlation of a pair is a surface with a peak at the shift of y. The peak of a single pair may be noise. The sum of the
surfaces of many pairs keeps a shift that they share and averages out the rest. Shifts that differ from pair to pair, or
within an image, are seen in those pairs whose own peak is far above the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CROP = 256  # px: a center crop of this side has edges enough, and keeps the FFT fast for large images
SMOOTHING = 0.12  # cycles per pixel: finer edges are mostly noise and count less
REACH_DIVISOR = 4  # shifts are searched up to 1/4 of the side: a larger one leaves too little overlap
MIN_SHIFT = 2  # px: a shift of one pixel may come from resampling
MIN_PAIRS = 5  # fewer pairs do not show a common shift
MIN_SIGMAS = 8.0  # height of the peak above the noise of the surface, in standard deviations
MIN_RATIO_TO_ZERO = 1.5  # height of the peak relative to the height at no shift
MIN_SUPPORT = 0.2  # share of the pairs whose own peak is at the shift


MIN_CLEAR_PAIRS = 5
MIN_CLEAR_SHARE = 0.06  # of the pairs; of unrelated images up to 0.04 have a clear peak
MIN_MOVED_SHARE = 0.3  # of the clear pairs; of aligned ones up to 0.11 seem to be moved


@dataclass(frozen=True)
class Drift:
    """y is moved against x, differently from pair to pair.

    pairs   number of pairs with edges
    clear   number of them whose own peak is far above the noise
    moved   share of the clear ones that are moved by MIN_SHIFT or more
    median  distance in px of the clear ones
    moving  numbers of the pairs that are moved
    """

    pairs: int
    clear: int
    moved: float
    median: float
    moving: tuple[int, ...]


@dataclass(frozen=True)
class Shift:
    """y is x moved down by `down` px and right by `right` px.

    pairs       number of pairs with edges
    support     share of these pairs whose own peak is at the shift
    sigmas      height of the peak above the noise
    supporting  numbers of the pairs whose own peak is at the shift
    """

    down: int
    right: int
    pairs: int
    support: float
    sigmas: float
    supporting: tuple[int, ...]


class ShiftEstimator:
    """Sums the phase correlation of pairs of one size. Memory does not grow with the number of pairs.

    size  (H, W) of the images
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.crop = tuple(slice((side - min(side, CROP)) // 2, (side + min(side, CROP)) // 2) for side in size)
        height, width = (part.stop - part.start for part in self.crop)
        self.reach = height // REACH_DIVISOR, width // REACH_DIVISOR
        self.window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1]).astype(np.float32)
        down, right = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
        self.smooth = np.exp(-(down**2 + right**2) / (2 * SMOOTHING**2)).astype(np.float32)
        self.total = np.zeros((2 * self.reach[0] + 1, 2 * self.reach[1] + 1))
        self.peaks: list[tuple[int, int, int]] = []  # (number of the pair, down, right) of each pair's own peak
        self.clear: list[tuple[int, float]] = []  # (number of the pair, distance of its peak) where it is clear

    def add(self, number: int, x: np.ndarray, y: np.ndarray) -> None:
        """Add one pair; x and y are one channel each, (H, W) float. A pair with an image without edges is ignored."""
        edges = [_edges(image[self.crop]) for image in (x, y)]
        if not all(each.any() for each in edges):
            return
        spectrum_x, spectrum_y = (np.fft.rfft2((each - each.mean()) * self.window) for each in edges)
        cross = spectrum_y * spectrum_x.conj()
        cross *= self.smooth / np.maximum(np.abs(cross), 1e-12)
        surface = np.fft.irfft2(cross, self.window.shape)
        down, right = self.reach
        surface = np.roll(surface, (down, right), (0, 1))[: 2 * down + 1, : 2 * right + 1]
        self.total += surface / np.abs(surface).max()
        top, left = np.unravel_index(int(surface.argmax()), surface.shape)
        self.peaks.append((number, int(top) - down, int(left) - right))
        if _sigmas(surface, surface[top, left]) >= MIN_SIGMAS:
            self.clear.append((number, float(np.hypot(top - down, left - right))))

    def estimate(self) -> Shift | None:
        """Return the shift that many pairs share, or None."""
        if len(self.peaks) < MIN_PAIRS:
            return None
        top, left = (int(at) for at in np.unravel_index(int(self.total.argmax()), self.total.shape))
        down, right = top - self.reach[0], left - self.reach[1]
        if max(abs(down), abs(right)) < MIN_SHIFT:
            return None
        sigmas = _sigmas(self.total, self.total[top, left])
        zero = self.total[self.reach]
        supporting = tuple(at for at, d, r in self.peaks if abs(d - down) <= 1 and abs(r - right) <= 1)
        support = len(supporting) / len(self.peaks)
        if sigmas < MIN_SIGMAS or self.total[top, left] < MIN_RATIO_TO_ZERO * zero or support < MIN_SUPPORT:
            return None
        return Shift(down, right, len(self.peaks), support, sigmas, supporting)

    def estimate_drift(self) -> Drift | None:
        """Return how much y is moved where no shift is shared, or None if it is not moved, or little can be seen."""
        clear = len(self.clear)
        if clear < max(MIN_CLEAR_PAIRS, MIN_CLEAR_SHARE * len(self.peaks)) or self.estimate():
            return None
        moving = tuple(number for number, distance in self.clear if distance >= MIN_SHIFT)
        median = float(np.median([distance for _, distance in self.clear]))
        if len(moving) < MIN_MOVED_SHARE * clear:
            return None
        return Drift(len(self.peaks), clear, len(moving) / clear, median, moving)


def _sigmas(surface: np.ndarray, peak: float) -> float:
    """Height of a peak above the median, in standard deviations of the noise.

    These are the median absolute deviation times 1.4826: those of a normal distribution, whatever the peak.
    """
    middle = np.median(surface)
    return float((peak - middle) / max(1.4826 * np.median(np.abs(surface - middle)), 1e-12))


def _edges(image: np.ndarray) -> np.ndarray:
    """Return the magnitude of the gradient, (H, W)."""
    down, right = np.gradient(image)
    edges: np.ndarray = np.hypot(down, right)
    return edges
