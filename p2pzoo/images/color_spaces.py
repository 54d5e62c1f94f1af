"""Images that are stored as something else than what people see: lightness and colour of CIE Lab, one-hot label maps.

A dataset may say so (`x_encoding` and `y_encoding` of contracts.Dataset). The networks then see what is stored; sample
pictures, reports, metrics and whoever translates a photo see RGB.

L   1 channel    L*, of which 0 to 100 are -1 to 1
ab  2 channels   a* and b*, of which -110 to 110 are -1 to 1; seen with the L of the x that it belongs to

one-hot label maps have a channel for each class, and are seen in the classes' colours (`p2pzoo.images.label_maps`).

Lab is that of sRGB with the white D65, scaled as the Lua code of pix2pix does (L/50 - 1, ab/110). All of sRGB lies
within: a* from -86.2 to 98.3, b* from -107.9 to 94.5. kornia computes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from p2pzoo.images.label_maps import Colour, Labels

Palette = Sequence[Colour]

HALF_OF_L, MOST_AB = 50.0, 110.0
ROWS = 256  # of an image that are decoded at once


class Encodings(NamedTuple):
    """How x and y are stored: "L" and "ab" by name, "one-hot" label maps; None is as people see them.

    palettes  of x and y: the colours of the classes, where they are one-hot
    """

    x: str | None = None
    y: str | None = None
    palettes: tuple[Palette | None, Palette | None] = (None, None)

    @property
    def lab(self) -> bool:
        """Whether x is the lightness and y the colours of one photo."""
        return self.y == "ab"

    @classmethod
    def of(cls, source: object) -> Encodings:
        """What a dataset, or the header of a model file, says. Raises ValueError for what there is not."""
        names = ("x_encoding", "y_encoding", "x_labels", "y_labels")
        if isinstance(source, Mapping):
            x, y, *maps = (source.get(name) for name in names)
            maps = [Labels.of_header(labels) for labels in maps]
        else:
            x, y, *maps = (getattr(source, name, None) for name in names)
        known = (x, y) == ("L", "ab") or {x, y} <= {None, "one-hot"}
        if not known:
            raise ValueError(f"x is encoded as {x} and y as {y}; what there is: L and ab, else one-hot or None")
        palettes = [
            labels.classes.colours if labels and encoding == "one-hot" else None
            for labels, encoding in zip(maps, (x, y), strict=True)
        ]
        return cls(x, y, (palettes[0], palettes[1]))

    def header(self) -> dict[str, str]:
        """For a model's header, which says nothing of images that are stored as they are seen."""
        said = {"x_encoding": self.x, "y_encoding": self.y}
        return {name: encoding for name, encoding in said.items() if encoding}

    def to_rgb(self, x: Tensor, *ys: Tensor) -> list[Tensor]:
        """x and images like y that belong to it, (B, C, H, W) in [-1, 1], as people see them: RGB where encoded."""
        if not self.lab:
            return [_drawn(x, self.palettes[0]), *(_drawn(y, self.palettes[1]) for y in ys)]
        return [_rgb(x, colours) for colours in (x.new_zeros(len(x), 2, *x.shape[2:]), *ys)]


def lab(photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 RGB -> L (H, W, 1) and ab (H, W, 2), float32 in [-1, 1]."""
    from kornia.color import rgb_to_lab

    pixels = torch.from_numpy(np.require(photo, requirements=["C", "W"])).permute(2, 0, 1).float() / 255
    image = rgb_to_lab(pixels).permute(1, 2, 0)
    L, ab = image[..., :1] / HALF_OF_L - 1, image[..., 1:] / MOST_AB
    return L.clamp(-1, 1).contiguous().numpy(), ab.clamp(-1, 1).contiguous().numpy()


def joined(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """L (H, W, 1) and ab (H, W, 2), in [-1, 1] -> (H, W, 3) uint8 RGB. Colours that sRGB has not are cut to it."""
    photo = np.empty((*x.shape[:2], 3), np.uint8)
    for top in range(0, len(x), ROWS):
        L, ab = (torch.from_numpy(part[top : top + ROWS]).permute(2, 0, 1)[None] for part in (x, y))
        rgb = _rgb(L, ab)[0].permute(1, 2, 0)
        photo[top : top + ROWS] = rgb.add(1).mul(255 / 2).round().to(torch.uint8).numpy()
    return photo


def quantize(values: np.ndarray, limits: tuple[float, float], dtype: Any) -> np.ndarray:
    """[-1, 1] -> what is stored, of which `limits` are -1 and 1; integers are rounded."""
    low, high = limits
    scaled = (values.astype(np.float64) + 1) * ((high - low) / 2) + low
    return (np.rint(scaled) if np.issubdtype(dtype, np.integer) else scaled).astype(dtype)


def from_stored(image: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """What is stored -> float32 in [-1, 1]."""
    low, high = limits
    values: np.ndarray = (image.astype(np.float32) - low) * (2 / (high - low)) - 1
    return values


def _drawn(image: Tensor, palette: Palette | None) -> Tensor:
    """(B, classes, H, W) -> (B, 3, H, W) in [-1, 1], the colour of the strongest class; black where there is none."""
    if palette is None:
        return image
    strength, classes = image.max(dim=1)
    colours = torch.tensor(palette, dtype=torch.float32, device=image.device) / (255 / 2) - 1
    drawn = colours[classes].masked_fill((strength <= -1)[..., None], -1)
    return drawn.permute(0, 3, 1, 2)


def _rgb(L: Tensor, ab: Tensor) -> Tensor:
    from kornia.color import lab_to_rgb

    image = torch.cat([(L.float() + 1) * HALF_OF_L, ab.float() * MOST_AB], dim=1)
    return lab_to_rgb(image, clip=True).mul(2).sub(1)
