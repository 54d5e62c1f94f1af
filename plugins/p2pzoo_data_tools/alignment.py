"""Whether y lies aside of x in many pairs alike: phase correlation of their edges. Imports numpy only.

Edges (magnitudes of gradients) are what a photo and a map of one place share. A pair's phase correlation is a surface
with a peak where y has to be moved to; of one pair it may be noise. The sum of the surfaces of many pairs keeps a shift
that they share and evens out the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CROP = 256  # px of the middle of large images
SMOOTH = 0.12  # cycles a pixel: finer edges count less
WIDEST = 4  # a shift is looked for up to 1/WIDEST of the side
LEAST = 2  # px; less is a matter of resampling
PAIRS = 5  # fewer show nothing
SIGMAS = 8.0  # height of the peak over the surface's own noise
OVER_ZERO = 1.5  # and over what is seen without any shift
SUPPORT = 0.2  # share of the pairs whose own peak is there


@dataclass(frozen=True)
class Shift:
    """y is x moved by `down` and `right` px. pairs: looked at. support: share whose own peak is there."""

    down: int
    right: int
    pairs: int
    support: float
    sigmas: float
    by: tuple[int, ...]  # numbers of those pairs


class Registration:
    """Of pairs of one size, shown one after the other; keeps one surface, whatever their number."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.crop = tuple(slice((side - min(side, CROP)) // 2, (side + min(side, CROP)) // 2) for side in size)
        height, width = (part.stop - part.start for part in self.crop)
        self.reach = height // WIDEST, width // WIDEST
        self.window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1]).astype(np.float32)
        down, right = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
        self.smooth = np.exp(-(down**2 + right**2) / (2 * SMOOTH**2)).astype(np.float32)
        self.total = np.zeros((2 * self.reach[0] + 1, 2 * self.reach[1] + 1))
        self.peaks: list[tuple[int, int, int]] = []  # a pair's number, and where its own peak is

    def add(self, number: int, x: np.ndarray, y: np.ndarray) -> None:
        """One channel of each, (H, W) float. Nothing is seen in a pair of which one has no edges."""
        edges = [_edges(image[self.crop]) for image in (x, y)]
        if not all(each.any() for each in edges):
            return
        of_x, of_y = (np.fft.rfft2((each - each.mean()) * self.window) for each in edges)
        cross = of_y * of_x.conj()
        cross *= self.smooth / np.maximum(np.abs(cross), 1e-12)
        surface = np.fft.irfft2(cross, self.window.shape)
        down, right = self.reach
        surface = np.roll(surface, (down, right), (0, 1))[: 2 * down + 1, : 2 * right + 1]
        self.total += surface / np.abs(surface).max()
        top, left = np.unravel_index(int(surface.argmax()), surface.shape)
        self.peaks.append((number, int(top) - down, int(left) - right))

    def shift(self) -> Shift | None:
        """The shift that many pairs share, or None."""
        if len(self.peaks) < PAIRS:
            return None
        top, left = (int(at) for at in np.unravel_index(int(self.total.argmax()), self.total.shape))
        down, right = top - self.reach[0], left - self.reach[1]
        if max(abs(down), abs(right)) < LEAST:
            return None
        middle, spread = np.median(self.total), 1.4826 * np.median(np.abs(self.total - np.median(self.total)))
        sigmas = float((self.total[top, left] - middle) / max(spread, 1e-12))
        zero = self.total[self.reach]
        by = tuple(at for at, d, r in self.peaks if abs(d - down) <= 1 and abs(r - right) <= 1)
        support = len(by) / len(self.peaks)
        if sigmas < SIGMAS or self.total[top, left] < OVER_ZERO * zero or support < SUPPORT:
            return None
        return Shift(down, right, len(self.peaks), support, sigmas, by)


def _edges(image: np.ndarray) -> np.ndarray:
    """Magnitude of the gradient, (H, W)."""
    down, right = np.gradient(image)
    edges: np.ndarray = np.hypot(down, right)
    return edges
