"""Finds images that use little of their value range: masks stored as 0 and 1, 12 bits in files of 16. No torch."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

MIN_USED_SHARE = 0.3  # of the range: 14 bits in files of 16 use 0.25 of it
_OVERSHOOT = 1.1  # bicubic resizing can exceed the largest stored value by this factor
_BITS = range(9, 16)  # of cameras and scanners whose values are stored in 16 bits


class UsedValues:
    """The values of all x, or of all y. Images are added until they use much of the range.

    >>> mask = UsedValues("y", (0, 255))
    >>> mask.add(np.array([[[0], [1]]], np.uint8))
    >>> mask.fault(["target_range"])
    'y uses 2 of 256 stored values, 0.4% of its range: set target_range = [0, 1]'
    """

    def __init__(self, name: str, limits: tuple[float, float]) -> None:
        self.name, self.limits = name, limits
        self._low, self._high = np.inf, -np.inf
        self._is_used: np.ndarray | None = None  # by value, for integers of at most 16 bits

    def add(self, image: np.ndarray) -> None:
        if self._share >= MIN_USED_SHARE or image.size == 0:
            return
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            return
        self._low, self._high = min(self._low, float(image.min())), max(self._high, float(image.max()))
        if image.dtype.name in ("uint8", "uint16"):
            if self._is_used is None:
                self._is_used = np.zeros(np.iinfo(image.dtype).max + 1, bool)
            self._is_used[image.ravel()] = True

    def fault(self, parameters: Collection[str]) -> str | None:
        """A line where the images use little of the range, else None. Images of a single value have no fault here.

        parameters  those of the dataset: where the range is one of them, the line says how to set it
        """
        if not 0 < self._share < MIN_USED_SHARE:
            return None
        used = f"{self._low:g} to {self._high:g}"
        if self._is_used is not None:
            used = f"{int(self._is_used.sum()):,} of {len(self._is_used):,} stored values"
        parameter = {"x": "input_range", "y": "target_range"}[self.name]
        advice = "its declared range is {:g} to {:g}".format(*self.limits)
        if parameter in parameters:
            advice = "set {} = [{:g}, {:g}]".format(parameter, *self._suggested_range())
        return f"{self.name} uses {used}, {self._share:.1%} of its range: {advice}"

    @property
    def _share(self) -> float:
        return max(0.0, self._high - self._low) / (self.limits[1] - self.limits[0])

    def _suggested_range(self) -> tuple[float, float]:
        low = 0.0 if 0 <= self._low <= self._high / 2 else self._low
        if self._is_used is not None and self._high > 255:
            return low, next((2.0**bits - 1 for bits in _BITS if (2**bits - 1) * _OVERSHOOT >= self._high), self._high)
        return low, self._high
