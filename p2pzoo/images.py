"""Image files -> arrays, and back, with nothing converted that would lose something. Imports numpy and Pillow only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from p2pzoo.errors import UserError
from p2pzoo.files import replacing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
AS_STORED = {"L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA", "1": "L", "CMYK": "RGB", "YCbCr": "RGB"}
NAMES = {1: "grey", 2: "grey with transparency", 3: "RGB", 4: "RGB with transparency"}


def read_image(path: Path) -> np.ndarray:
    """(H, W, C) uint8, C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA), as the file has it.

    The camera's EXIF rotation is applied and palettes are looked up. Raises UserError, naming the file, if it cannot be
    read or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            mode = AS_STORED.get(upright.mode)
            if upright.mode == "P":
                mode = "RGBA" if "transparency" in upright.info else "RGB"
            if mode is None:
                raise UserError(f"{path}: {upright.mode} pixels, more than 8 bits a channel, are not read")
            array = np.asarray(upright.convert(mode))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from None
    return array.reshape(*array.shape[:2], -1)


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """The same picture in this many channels. Raises ValueError where that would lose something.

    Grey can be said in three equal channels, and back; opacity can be left out or added where everything is opaque.
    """
    if image.shape[2] == channels:
        return image
    colors, alpha = (image[..., :-1], image[..., -1:]) if image.shape[2] in (2, 4) else (image, None)
    if alpha is not None and (alpha != 255).any():
        raise ValueError(
            f"it has transparent pixels, and {NAMES.get(channels, channels)} was expected: flatten it first"
        )
    wanted = channels - 1 if channels in (2, 4) else channels
    if colors.shape[2] == 1 and wanted == 3:
        colors = np.repeat(colors, 3, axis=2)
    elif colors.shape[2] == 3 and wanted == 1 and (colors == colors[..., :1]).all():
        colors = colors[..., :1]
    if colors.shape[2] != wanted:
        raise ValueError(
            f"it is {NAMES[image.shape[2]]}, and {NAMES.get(channels, f'{channels} channels')} was expected"
        )
    return np.concatenate([colors, np.full_like(colors[..., :1], 255)], axis=2) if wanted != channels else colors


def write_png(path: Path, image: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """(H, W, C) uint8 with C from 1 to 4, and lines of text for the file's metadata."""
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    with replacing(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=info)


def find_images(folder: Path) -> list[Path]:
    """The image files of a folder, by name; not those of folders in it, nor hidden ones."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
