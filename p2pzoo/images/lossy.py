"""Writes JPEG and WebP: small files for viewing, whose pixels are not those of the image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write

LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
DEFAULT_QUALITY = 90
_MAX_SIDES = {"JPEG": 65_500, "WEBP": 16_383}  # of the encoders, in pixels


def can_hold_lossy(dtype: str, channels: int) -> bool:
    """Whether a JPEG or a WebP can hold such images: grey or RGB of 8 bits.

    >>> can_hold_lossy("uint16", 1), can_hold_lossy("uint8", 4)
    (False, False)
    """
    return dtype == "uint8" and channels in (1, 3)


def write_lossy(
    path: Path, image: np.ndarray, text: Mapping[str, str] | None = None, quality: int = DEFAULT_QUALITY
) -> None:
    """Write (H, W, C) uint8, grey or RGB, as a JPEG or a WebP, by the suffix. A WebP stores grey as RGB.

    text     "key: value" lines in the EXIF tag ImageDescription; other characters than ASCII are escaped
    quality  1 to 100, as the encoders define it; colours keep their full resolution in a JPEG

    Raises UserError for other images, and for more pixels than the format can have.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.jpg"
    >>> write_lossy(file, np.zeros((8, 8, 3), np.uint8), {"p2pzoo": "{}"})
    >>> Image.open(file).getexif()[ExifTags.Base.ImageDescription]
    'p2pzoo: {}'
    """
    form = "WEBP" if path.suffix.lower() == ".webp" else "JPEG"
    if not can_hold_lossy(image.dtype.name, image.shape[2]):
        raise UserError(
            f"{path}: a {form} cannot hold {image.shape[2]} channels of {image.dtype}; .png, .tif or .npy can"
        )
    if max(image.shape[:2]) > _MAX_SIDES[form]:
        size = f"{image.shape[0]:,} × {image.shape[1]:,} px"
        raise UserError(
            f"{path}: a {form} cannot hold {size}; its sides end at {_MAX_SIDES[form]:,}: write a .png or .tif"
        )
    exif = Image.Exif()
    lines = "\n".join(f"{key}: {value}" for key, value in (text or {}).items())
    if lines:
        exif[ExifTags.Base.ImageDescription] = lines.encode("ascii", "backslashreplace").decode()
    options = {"subsampling": 0} if form == "JPEG" else {}
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    with atomic_write(path) as temporary:
        picture.save(temporary, form, quality=quality, exif=exif, **options)
