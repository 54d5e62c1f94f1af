"""Puts images with transparent pixels on a background of one colour. Imports only NumPy."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

Byte = Annotated[int, Field(ge=0, le=255)]
Rgb = tuple[Byte, Byte, Byte]
Background = Literal["white", "black"] | Rgb  # of 8 bits a channel, whatever the image has

_NAMES: dict[str, Rgb] = {"white": (255, 255, 255), "black": (0, 0, 0)}


def background_color(background: Background) -> Rgb:
    """The RGB values of a background.

    >>> background_color("white")
    (255, 255, 255)
    """
    return _NAMES[background] if isinstance(background, str) else background


def parse_background(text: str) -> Rgb:
    """From a command line: "white", "black" or "255,128,0". Raises ValueError.

    >>> parse_background("0,0,255")
    (0, 0, 255)
    """
    if text in _NAMES:
        return _NAMES[text]
    match = re.fullmatch(r"(\d{1,3}),(\d{1,3}),(\d{1,3})", text)
    red, green, blue = map(int, match.groups()) if match else (256, 256, 256)
    if max(red, green, blue) > 255:
        raise ValueError(f'a background is "white", "black" or R,G,B, such as 255,128,0, not {text!r}')
    return red, green, blue


def put_on_background(image: np.ndarray, color: Rgb) -> np.ndarray:
    """(H, W, C + 1), the last channel opacity -> (H, W, C) of the same dtype, uint8 or uint16; C is 1 or 3.

    Raises ValueError for a grey image on a colour that is not grey, and for float32, which has no full opacity.

    >>> put_on_background(np.array([[[0, 0], [0, 255]]], np.uint8), (255, 255, 255))[..., 0].tolist()
    [[255, 0]]
    """
    channels = image.shape[2] - 1
    if image.dtype.kind == "f":
        raise ValueError("it is float32 with transparency, which has no value for opaque: flatten it first")
    if channels == 1 and len(set(color)) > 1:
        raise ValueError(f"it is grey, and the background {list(color)} is not: give a grey one")
    full = np.iinfo(image.dtype).max
    behind = np.array(color[:channels], np.float64) * (full / 255)
    opacity = image[..., -1:].astype(np.float64) / full
    return np.rint(image[..., :-1] * opacity + behind * (1 - opacity)).astype(image.dtype)
