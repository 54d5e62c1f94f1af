"""From the values or colours in label maps to class indices, exactly. Imports only NumPy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np

NO_CLASS = 255  # marks ignored pixels in maps of class indices
_MAX_NAMED = 5  # values or colours without a class in a message, so that it stays short


class LookupTable(NamedTuple):
    """known: in ascending order. classes: the class index of each, or NO_CLASS."""

    known: np.ndarray
    classes: np.ndarray

    @classmethod
    def of(cls, of_classes: Iterable[int], ignored: Iterable[int]) -> Self:
        """of_classes: the value of each class. ignored: values without a class."""
        by_value = {value: index for index, value in enumerate(of_classes)} | dict.fromkeys(ignored, NO_CLASS)
        ordered = sorted(by_value)
        return cls(np.array(ordered, np.int64), np.array([by_value[value] for value in ordered], np.int16))

    def find(self, values: np.ndarray) -> np.ndarray:
        """Integers of any shape -> the class index of each, int16; -1 for unknown ones.

        >>> LookupTable.of([23, 7], [255]).find(np.array([7, 23, 255, 8])).tolist()
        [1, 0, 255, -1]
        """
        positions = np.searchsorted(self.known, values).clip(max=len(self.known) - 1)
        return np.where(self.known[positions] == values, self.classes[positions], np.int16(-1))


def encode_colour(colour: Iterable[int]) -> int:
    """RGB -> one integer.

    >>> encode_colour([1, 0, 2])
    65538
    """
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def encode_colours(colours: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 -> (...) int32, each as `encode_colour`."""
    red, green, blue = (colours[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def decode_colour(code: int) -> list[int]:
    return [code >> 16, code >> 8 & 255, code & 255]


def list_some(names: Iterable[str]) -> str:
    """The first few, and whether there are more."""
    names = list(names)
    return ", ".join(names[:_MAX_NAMED]) + ", ..." * (len(names) > _MAX_NAMED)
