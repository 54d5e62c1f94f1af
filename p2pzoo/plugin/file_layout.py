"""How the images of a dataset relate to their files. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Half = Literal["left", "right"]


@dataclass(frozen=True)
class FileLayout:
    """How x came from its files, so that a trained model can treat other files alike.

    size        (H, W) of x in the files, in px, the median; None if x always had the size of its file
    scale       height and width of x, divided by those in its file; the median where files differ
    x_half      "left" or "right": x is this half of a file that holds both images of a pair (A|B); else None
    alpha       whether the last of 2 or 4 channels is opacity, not a band of its own
    background  RGB values of the colour behind transparent pixels; None if images kept their transparency, or had none

    >>> FileLayout(size=(512, 512), scale=(0.125, 0.125)).scaled(1024, 768)
    (128, 96)
    """

    size: tuple[int, int] | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    x_half: Half | None = None
    alpha: bool = False
    background: tuple[int, int, int] | None = None

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """The (H, W) that a file of this size is brought to: at least 1 pixel each."""
        return max(1, round(height * self.scale[0])), max(1, round(width * self.scale[1]))
