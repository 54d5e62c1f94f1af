"""Image files -> arrays, and back, with nothing converted that would lose something. Imports numpy and Pillow only."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from p2pzoo.errors import UserError
from p2pzoo.files import replacing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
AS_STORED = {"L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA", "1": "L", "CMYK": "RGB", "YCbCr": "RGB"}
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises at broken files
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations whose rows are columns
NAMES = {1: "grey", 2: "grey with transparency", 3: "RGB", 4: "RGB with transparency"}


def read_image(path: Path) -> np.ndarray:
    """(H, W, C) uint8, C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA), as the file has it.

    The camera's EXIF rotation is applied and palettes are looked up. Raises UserError, naming the file, if it cannot be
    read or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            return pixels_of(image, str(path))
    except UNREADABLE as error:
        raise UserError(f"{path}: {_reason(error)}") from None


def pixels_of(image: Image.Image, name: str) -> np.ndarray:
    """(H, W, C) uint8 of an open image, as `read_image` gives it; `name` is for the error."""
    upright = ImageOps.exif_transpose(image)
    array = np.asarray(upright.convert(_mode(name, upright)))
    return array.reshape(*array.shape[:2], -1)


def read_header(path: Path) -> tuple[int, int, int]:
    """The shape (H, W, C) that `read_image` gives, from the file's header: no pixel is decoded. Raises as it does."""
    try:
        with Image.open(path) as image:
            channels = len(_mode(path, image))
            width, height = image.size
            exif = Image.Image.getexif(image)  # a PNG's own decodes it all, for what may come after the pixels
            turned = exif.get(ExifTags.Base.Orientation) in SIDEWAYS
            turned = turned and image.format != "TIFF"  # of which Pillow tells the upright size
    except UNREADABLE as error:
        raise UserError(f"{path}: {_reason(error)}") from None
    return (width, height, channels) if turned else (height, width, channels)


def _mode(path: Path | str, image: Image.Image) -> str:
    """The Pillow mode to convert to: one letter a channel."""
    mode = AS_STORED.get(image.mode)
    if image.mode == "P":
        mode = "RGBA" if "transparency" in image.info else "RGB"
    if mode is None:
        raise UserError(f"{path}: {image.mode} pixels, more than 8 bits a channel, are not read")
    return mode


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    unknown = isinstance(error, UnidentifiedImageError)
    why = "no format that is known" if unknown else getattr(error, "strerror", None) or error
    return f"cannot be read as an image ({why})"


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """The same picture in this many channels. Raises ValueError where that would lose something.

    Grey can be said in three equal channels, and back; opacity can be added, and left out where everything is opaque.
    """
    if image.shape[2] == channels:
        return image
    colors, alpha = (image[..., :-1], image[..., -1:]) if image.shape[2] in (2, 4) else (image, None)
    if channels not in (2, 4) and alpha is not None and (alpha != 255).any():
        raise ValueError(f"it has transparent pixels, and {_name(channels)} was expected: flatten it first")
    wanted = channels - 1 if channels in (2, 4) else channels
    if colors.shape[2] == 1 and wanted == 3:
        colors = np.repeat(colors, 3, axis=2)
    elif colors.shape[2] == 3 and wanted == 1 and (colors == colors[..., :1]).all():
        colors = colors[..., :1]
    if colors.shape[2] != wanted:
        raise ValueError(f"it is {_name(image.shape[2])}, and {_name(channels)} was expected")
    if wanted == channels:
        return colors
    return np.concatenate([colors, np.full_like(colors[..., :1], 255) if alpha is None else alpha], axis=2)


def _name(channels: int) -> str:
    return NAMES.get(channels, f"an image of {channels} channels")


def write_png(
    path: Path, image: np.ndarray, text: Mapping[str, str] | None = None, *, strategy: int = zlib.Z_DEFAULT_STRATEGY
) -> None:
    """(H, W, C) uint8 with C from 1 to 4, and lines of text for the file's metadata.

    strategy: zlib's. Z_RLE looks for no repetitions but runs: on photos five times as fast for files of the same size;
        flat label maps become twice as large.
    """
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    with replacing(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=info, compress_type=strategy)


def find_images(folder: Path) -> list[Path]:
    """The image files of a folder, by name; not those of folders in it, nor hidden ones."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
