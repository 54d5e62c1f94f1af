"""Images that are not stored as RGB: lightness and colour of CIE Lab, and one-hot label maps.

A dataset declares this with `x_encoding` and `y_encoding` (see protocols.Dataset). The networks then see the stored
channels; sample images, reports, metrics and the user of a model see RGB.

L        1 channel             L*: 0 to 100 become -1 to 1
ab       2 channels            a* and b*: -110 to 110 become -1 to 1; shown with the L of the x of the same pair
one-hot  1 channel per class   shown in the colours of the classes (`p2pzoo.images.label_maps`)

Lab refers to sRGB with white point D65 and is computed by kornia. The scale is that of the Lua code of pix2pix
(L/50 - 1, ab/110). All sRGB colours fit into it: a* is in [-86.2, 98.3] and b* in [-107.9, 94.5].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from p2pzoo.images.class_files import Colour

Palette = Sequence[Colour]

_L_SCALE, _AB_SCALE = 50.0, 110.0  # as in the Lua code of pix2pix
_ROWS_PER_PART = 256  # converted at a time: kornia needs many times the memory of the image


class Encodings(NamedTuple):
    """How x and y are stored: "L" and "ab", "one-hot", or None (RGB, grey or other bands).

    palettes  of x and y: the colours of the classes, where they are one-hot

    >>> Encodings("L", "ab").lab
    True
    """

    x: str | None = None
    y: str | None = None
    palettes: tuple[Palette | None, Palette | None] = (None, None)

    @property
    def lab(self) -> bool:
        """Whether x is the lightness of a photo, and y its colours."""
        return self.y == "ab"

    @classmethod
    def of(cls, source: object) -> Encodings:
        """The encodings that a dataset declares. Raises ValueError for unknown ones."""
        names = ("x_encoding", "y_encoding", "x_labels", "y_labels")
        x, y, *maps = (getattr(source, name, None) for name in names)
        is_known = (x, y) == ("L", "ab") or {x, y} <= {None, "one-hot"}
        if not is_known:
            raise ValueError(f"x is encoded as {x} and y as {y}; supported are L with ab, else one-hot or None")
        palettes = [
            labels.classes.colours if labels and encoding == "one-hot" else None
            for labels, encoding in zip(maps, (x, y), strict=True)
        ]
        return cls(x, y, (palettes[0], palettes[1]))

    def header(self) -> dict[str, str]:
        """The entries of a model's header; no entry means None."""
        entries = {"x_encoding": self.x, "y_encoding": self.y}
        return {name: encoding for name, encoding in entries.items() if encoding}

    def to_rgb(self, x: Tensor, *ys: Tensor) -> list[Tensor]:
        """x and one or more y or ŷ of the same pairs, (B, C, H, W) in [-1, 1] -> RGB where they are encoded."""
        if not self.lab:
            return [_colour_classes(x, self.palettes[0]), *(_colour_classes(y, self.palettes[1]) for y in ys)]
        return [_lab_to_rgb(x, colours) for colours in (x.new_zeros(len(x), 2, *x.shape[2:]), *ys)]


def split_lab(photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 RGB -> L (H, W, 1) and ab (H, W, 2), float32 in [-1, 1]. `join_lab` is the inverse.

    >>> L, ab = split_lab(np.zeros((2, 2, 3), np.uint8))
    >>> L.shape, ab.shape, float(L.max())
    ((2, 2, 1), (2, 2, 2), -1.0)
    """
    from kornia.color import rgb_to_lab

    pixels = torch.from_numpy(np.require(photo, requirements=["C", "W"])).permute(2, 0, 1).float() / 255
    image = rgb_to_lab(pixels).permute(1, 2, 0)
    L, ab = image[..., :1] / _L_SCALE - 1, image[..., 1:] / _AB_SCALE
    return L.clamp(-1, 1).contiguous().numpy(), ab.clamp(-1, 1).contiguous().numpy()


def join_lab(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """L (H, W, 1) and ab (H, W, 2), in [-1, 1] -> (H, W, 3) uint8 RGB. Colours outside sRGB are clipped."""
    photo = np.empty((*x.shape[:2], 3), np.uint8)
    for top in range(0, len(x), _ROWS_PER_PART):
        L, ab = (torch.from_numpy(part[top : top + _ROWS_PER_PART]).permute(2, 0, 1)[None] for part in (x, y))
        rgb = _lab_to_rgb(L, ab)[0].permute(1, 2, 0)
        photo[top : top + _ROWS_PER_PART] = rgb.add(1).mul(255 / 2).round().to(torch.uint8).numpy()
    return photo


def quantize(values: np.ndarray, limits: tuple[float, float], dtype: Any) -> np.ndarray:
    """[-1, 1] -> stored values: -1 and 1 become `limits`. Values are rounded if `dtype` is an integer type.

    >>> quantize(np.array([-1.0, 0.0, 1.0]), (0, 255), np.uint8).tolist()
    [0, 128, 255]
    """
    low, high = limits
    scaled = (values.astype(np.float64) + 1) * ((high - low) / 2) + low
    return (np.rint(scaled) if np.issubdtype(dtype, np.integer) else scaled).astype(dtype)


def dequantize(image: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Stored values -> float32 in [-1, 1]; `limits` become -1 and 1. The inverse of `quantize`, up to rounding."""
    low, high = limits
    values: np.ndarray = (image.astype(np.float32) - low) * (2 / (high - low)) - 1
    return values


def _colour_classes(image: Tensor, palette: Palette | None) -> Tensor:
    """(B, classes, H, W) -> (B, 3, H, W) in [-1, 1]: the colour of the strongest class; black where all are -1."""
    if palette is None:
        return image
    strength, classes = image.max(dim=1)
    colours = torch.tensor(palette, dtype=torch.float32, device=image.device) / (255 / 2) - 1
    rgb = colours[classes].masked_fill((strength <= -1)[..., None], -1)
    return rgb.permute(0, 3, 1, 2)


def _lab_to_rgb(L: Tensor, ab: Tensor) -> Tensor:
    from kornia.color import lab_to_rgb

    image = torch.cat([(L.float() + 1) * _L_SCALE, ab.float() * _AB_SCALE], dim=1)
    return lab_to_rgb(image, clip=True).mul(2).sub(1)
