"""The size at which G sees an image. By default objects keep the size in pixels that they had in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from p2pzoo.plugin.file_layout import FileLayout

MAX_SCALE = 64  # no model was trained on images enlarged more than this, and a file must not ask for gigabytes
MAX_SIDE = 1_000_000  # px
NO_FILE_LAYOUT = (
    "the model file does not say how its training images were resized: images are translated at their own size; "
    "if the training images were reduced, give their scale"
)


@dataclass(frozen=True)
class Scaling:
    """G sees images of (H, W) at (H, W) × factors, or all at `size`. The translation has the size of the image again.

    >>> Scaling((0.125, 0.125)).size_of(512, 768)
    (64, 96)
    """

    factors: tuple[float, float] = (1.0, 1.0)
    size: tuple[int, int] | None = None

    @classmethod
    def resolve(
        cls,
        layout: FileLayout | None,
        scale: float | Literal["native"] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Scaling:
        """For the arguments of `Model.translate`; with neither, as in training. Raises ValueError."""
        if size is not None:
            if scale is not None:
                raise ValueError("give a scale or a size, not both")
            if len(size) != 2 or min(size) < 1 or max(size) > MAX_SIDE:
                raise ValueError(f"a size is a height and a width of 1 to {MAX_SIDE:,} px, not {size}")
            return cls(size=(int(size[0]), int(size[1])))
        if scale is None:
            return cls(layout.scale) if layout else cls()
        factor = 1.0 if scale == "native" else scale
        if isinstance(factor, str) or not 0 < factor <= MAX_SCALE:
            raise ValueError(
                f'a scale is "native" or a number above 0 and up to {MAX_SCALE}, such as 0.5, not {scale!r}'
            )
        return cls((float(factor), float(factor)))

    @property
    def is_native(self) -> bool:
        return self == Scaling()

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """The (H, W) at which G sees an image of this size."""
        return self.size or FileLayout(scale=self.factors).scaled(height, width)

    def as_json(self) -> dict[str, list[float]]:
        return {"size": [*self.size]} if self.size else {"scale": [*self.factors]}

    def __str__(self) -> str:
        if self.size:
            return f"at {self.size[0]}×{self.size[1]} px"
        down, across = (f"{factor:.4g}" for factor in self.factors)
        return (
            f"at {down} of their size" if down == across else f"at {down} of their height and {across} of their width"
        )
