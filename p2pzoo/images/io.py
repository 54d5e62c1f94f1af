"""Image files -> arrays, and back, with nothing converted that would lose something.

Imports numpy and Pillow only; what Pillow would shorten to 8 bits or cannot read is read by tifffile and imagecodecs
(the extra `p2pzoo[tiff]`), which are imported where a file asks for them.
"""

from __future__ import annotations

import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".npy", ".npz")
ARRAYS = (".npy", ".npz")
STORED = ("uint8", "uint16", "float32")
AS_STORED = {"L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA", "1": "L", "CMYK": "RGB", "YCbCr": "RGB"}
PNG_MODES = {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}
BITS_PER_SAMPLE, SAMPLES_PER_PIXEL = 258, 277  # tags of a TIFF
UNREADABLE = (  # what Pillow raises at broken files
    OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error, Image.DecompressionBombError
)  # fmt: skip
DAMAGED = (  # what NumPy raises at broken files
    OSError, ValueError, EOFError, SyntaxError, RuntimeError, TypeError, LookupError, ArithmeticError, struct.error,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
MOST_DEFLATED = 1032  # bytes that one can become
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations whose rows are columns
NAMES = {1: "grey", 2: "grey with transparency", 3: "RGB", 4: "RGB with transparency"}


class Header(NamedTuple):
    """What `read_image` will give of a file. opacity: its last channel says how opaque a pixel is."""

    shape: tuple[int, int, int]
    dtype: str
    opacity: bool


def read_image(path: Path) -> np.ndarray:
    """(H, W, C) uint8, uint16 or float32, as the file has it.

    Pictures have C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA); TIFF and NumPy files any number. The camera's EXIF
    rotation is applied and palettes are looked up. Raises UserError, naming the file, if it cannot be read, holds
    another type of numbers, or needs a package that is not there.
    """
    if path.suffix.lower() in ARRAYS:
        return _native(_checked_array(path, read_array(path)))
    try:
        with Image.open(path) as image:
            how = _how(image, path)
            if how == "pillow":
                return _native(pixels_of(image, str(path)))
    except UnidentifiedImageError as error:
        if not _is_tiff(path):
            raise UserError(f"{path}: {reason(error)}") from None
        how = "tifffile"
    except UNREADABLE as error:
        raise UserError(f"{path}: {reason(error)}") from None
    return _native(_from_tiff(path)[0] if how == "tifffile" else _from_png(path))


def pixels_of(image: Image.Image, name: str) -> np.ndarray:
    """(H, W, C) of an open image of 8 bits a channel, or of 16 bits or float32 in one; `name` is for the error."""
    _shape_of(name, (image.height, image.width))
    upright = ImageOps.exif_transpose(image)
    array = np.asarray(upright if _deep(upright) else upright.convert(_mode(name, upright)))
    array = array.astype(np.uint16) if upright.mode == "I" else array  # a PNG of 16 bits, to an older Pillow
    return array.reshape(*array.shape[:2], -1)


def read_header(path: Path) -> tuple[int, int, int]:
    """The shape (H, W, C) that `read_image` gives, from the file's header: no pixel is decoded. Raises as it does."""
    return inspect(path).shape


def inspect(path: Path) -> Header:
    """What `read_image` gives, from the file's header: no pixel is decoded. Raises as it does."""
    if path.suffix.lower() in ARRAYS:
        shape, dtype = inspect_array(path)
        return Header(_shape_of(path, shape), _stored(path, dtype), False)
    try:
        with Image.open(path) as image:
            how = _how(image, path)
            if how != "tifffile":
                return _picture_header(path, image)
    except UnidentifiedImageError as error:
        if not _is_tiff(path):
            raise UserError(f"{path}: {reason(error)}") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: {reason(error)}") from None
    return _from_tiff(path, pixels=False)[1]


def _picture_header(path: Path, image: Image.Image) -> Header:
    deep = image.mode if _deep(image) else ""
    mode, dtype = deep or _mode(path, image), "float32" if deep == "F" else "uint16" if deep else "uint8"
    if not deep and _png_depth(image, path) == 16:
        mode, dtype = PNG_MODES[_png_header(path)[1]], "uint16"
    channels = 1 if deep else len(mode)
    height, width, _ = _shape_of(path, (image.height, image.width))
    exif = Image.Image.getexif(image)  # a PNG's own decodes it all, for what may come after the pixels
    turned = exif.get(ExifTags.Base.Orientation) in SIDEWAYS
    turned = turned and image.format != "TIFF"  # of which Pillow tells the upright size
    return Header((width, height, channels) if turned else (height, width, channels), dtype, mode.endswith("A"))


def _how(image: Image.Image, path: Path) -> str:
    """Which library reads this file as it is stored: Pillow shortens 16 bits of colours, and leaves bands out."""
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        bits, samples = tags.get(BITS_PER_SAMPLE, (1,)), tags.get(SAMPLES_PER_PIXEL, 1)
        single = getattr(image, "n_frames", 1) == 1
        shallow = max(bits) <= 8 and (image.mode == "P" or samples == len(AS_STORED.get(image.mode, "")))
        shallow = shallow or (image.mode == "CMYK" and samples == 4 and max(bits) == 8)
        deep = samples == 1 and (image.mode.startswith("I;16") or (image.mode == "F" and bits == (32,)))
        return "pillow" if single and (shallow or deep) else "tifffile"
    if _png_depth(image, path) == 16 and not _deep(image):
        return "imagecodecs"
    return "pillow"


def _png_depth(image: Image.Image, path: Path) -> int:
    """Bits a channel, as the header of a PNG has them; 8 of other formats."""
    return _png_header(path)[0] if image.format == "PNG" else 8


def _png_header(path: Path) -> tuple[int, int]:
    """Bits a channel, and the kind of pixels (a key of PNG_MODES): to Pillow 16 bits of grey and opacity are RGBA."""
    with path.open("rb") as file:
        bits, kind = file.read(26)[24:26]
    return bits, kind


def _deep(image: Image.Image) -> bool:
    """Whether Pillow holds it in more than 8 bits, all that the file has."""
    sixteen = image.mode.startswith("I;16") and image.mode != "I;16S"
    return sixteen or (image.mode == "I" and image.format == "PNG") or image.mode == "F"


def _from_png(path: Path) -> np.ndarray:
    codecs = _needed("imagecodecs", path)
    with Image.open(path) as image:
        turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    if turned != 1:
        raise UserError(f"{path}: is to be turned (orientation {turned}), and has 16 bits a channel: save it upright")
    try:
        array = codecs.png_decode(path.read_bytes())
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from None
    return array.reshape(*array.shape[:2], -1)  # type: ignore[no-any-return]


def _from_tiff(path: Path, *, pixels: bool = True) -> tuple[np.ndarray, Header]:
    """(H, W, C), and its header; the array is empty where no pixels are asked for."""
    tifffile = _needed("tifffile", path)
    try:
        with tifffile.TiffFile(path) as tiff:
            series = tiff.series[0]
            axes, shape = series.axes, series.shape
            turned = tiff.pages[0].tags.get("Orientation")
            others = len(tiff.series) - 1
            dtype = np.dtype(series.dtype)
            array = series.asarray() if pixels else None
    except Exception as error:  # damaged files end in errors of every kind
        raise UserError(f"{path}: cannot be read as a TIFF ({error})") from None
    if others or axes not in ("YX", "YXS", "SYX", "CYX", "QYX"):
        raise UserError(f"{path}: holds several images ({axes} {shape}); one of (height, width, channels) is expected")
    if turned is not None and turned.value != 1:
        raise UserError(f"{path}: is to be turned (orientation {int(turned.value)}): save it upright")
    first = len(axes) == 3 and axes.endswith("YX")
    shape = (*shape[1:], shape[0]) if first else (*shape, 1) if len(axes) == 2 else shape
    header = Header(_shape_of(path, tuple(map(int, shape))), _stored(path, dtype), False)
    if array is None:
        return np.empty(0), header
    return (np.moveaxis(array, 0, -1) if first else array).reshape(header.shape), header


def _needed(package: str, path: Path) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{path}: to read it without loss {package} is needed: pip install 'p2pzoo[tiff]'") from None


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_array(path: Path) -> np.ndarray:
    """What a .npy holds, or the one array of a .npz, as it is. Raises UserError, naming the file."""
    inspect_array(path)  # np.load makes room for what a header says before it reads any of it
    try:
        loaded: Any = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return np.asarray(loaded[_only(path, loaded.files)])
    except DAMAGED as error:
        raise UserError(f"{path}: {_no_array(error)}") from None


def inspect_array(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of numbers of what `read_array` gives, from the file's header. Raises as it does."""
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return _array_header(file, path.stat().st_size)
        with zipfile.ZipFile(path) as archive:
            name = _only(path, [name.removesuffix(".npy") for name in archive.namelist()])
            member = archive.getinfo(f"{name}.npy")
            if member.file_size > member.compress_size * MOST_DEFLATED:
                raise ValueError("it says that it unpacks to more than it can")
            with archive.open(member) as unpacked:
                return _array_header(unpacked, member.file_size)
    except DAMAGED as error:
        raise UserError(f"{path}: {_no_array(error)}") from None


def _array_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Of a .npy of so many bytes. Raises ValueError where its numbers would not fit into them, or are objects."""
    read: Any = np.lib.format
    old = read.read_magic(file) == (1, 0)
    shape, _, dtype = read.read_array_header_1_0(file) if old else read.read_array_header_2_0(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size - file.tell():
        raise ValueError(f"its header says {shape} of {dtype}, and there are {size:,} bytes")
    return shape, dtype


def _only(path: Path, names: list[str]) -> str:
    if len(names) != 1:
        raise UserError(f"{path}: holds {len(names)} arrays ({', '.join(names[:3])}); one is expected")
    return names[0]


def _no_array(error: Exception) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read as a NumPy file ({error})"


def _checked_array(path: Path, array: np.ndarray) -> np.ndarray:
    _stored(path, array.dtype)
    return array.reshape(_shape_of(path, array.shape))


def _shape_of(path: Path | str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) not in (2, 3) or 0 in shape:
        raise UserError(f"{path}: an array of {shape}; (height, width) or (height, width, channels) is expected")
    return (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)


def _stored(path: Path, dtype: np.dtype[Any]) -> str:
    name = dtype.newbyteorder("=").name
    if name not in STORED:
        raise UserError(f"{path}: its values are {name}; {', '.join(STORED)} are read: save it as one of them")
    return name


def _native(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _mode(path: Path | str, image: Image.Image) -> str:
    """The Pillow mode to convert to: one letter a channel."""
    mode = AS_STORED.get(image.mode)
    if image.mode == "P":
        mode = "RGBA" if "transparency" in image.info else "RGB"
    if mode is None:
        raise UserError(f"{path}: {image.mode} pixels are not read: save it with 8 or 16 bits a channel, or as float32")
    return mode


def reason(error: Exception) -> str:
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
    full = np.iinfo(image.dtype).max if image.dtype != np.float32 else None
    if alpha is not None and full is None:
        raise ValueError(f"it is {_name(image.shape[2])} of float32, and {_name(channels)} was expected")
    if channels not in (2, 4) and alpha is not None and (alpha != full).any():
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
    if alpha is None and full is None:
        raise ValueError("it is float32 without opacity, and opacity was expected")
    return np.concatenate([colors, np.full_like(colors[..., :1], full) if alpha is None else alpha], axis=2)


def _name(channels: int) -> str:
    return NAMES.get(channels, f"an image of {channels} channels")


def write_png(
    path: Path,
    image: np.ndarray,
    text: Mapping[str, str] | None = None,
    *,
    strategy: int = zlib.Z_DEFAULT_STRATEGY,
    palette: bytes | None = None,
) -> None:
    """(H, W, C) uint8 with C from 1 to 4, and lines of text for the file's metadata.

    palette: of an indexed PNG, whose indices the values of the one channel become; 256 times RGB.

    strategy: zlib's. Z_RLE looks for no repetitions but runs: on photos five times as fast for files of the same size;
        flat label maps become twice as large.
    """
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    if palette:
        picture.putpalette(palette)
    with atomic_write(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=info, compress_type=strategy)


def write_image(
    path: Path, image: np.ndarray, text: Mapping[str, str] | None = None, palette: bytes | None = None
) -> None:
    """(H, W, C) uint8, uint16 or float32, without loss, as the suffix says. palette: as of `write_png`, and for PNGs.

    .png has 1 to 4 channels of uint8, or one of uint16. .tif has all, and needs tifffile. .npy has all, and no text.
    Raises UserError where the format cannot hold it.
    """
    suffix = path.suffix.lower()
    if not holds(suffix, image.dtype.name, image.shape[2]):
        raise UserError(f"{path}: cannot hold {image.shape[2]} channels of {image.dtype}; .tif and .npy can")
    if suffix == ".png":
        write_png(path, image, text, strategy=zlib.Z_RLE, palette=palette)
    elif suffix == ".npy":
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.save(file, image, allow_pickle=False)
    else:
        tifffile = _needed("tifffile", path)
        flat = image[..., 0] if image.shape[2] == 1 else image
        kind = "rgb" if image.shape[2] == 3 and image.dtype != np.float32 else "minisblack"
        told = "\n".join(f"{key}: {value}" for key, value in (text or {}).items()).encode() or None
        with atomic_write(path) as temporary:
            options = {"planarconfig": "contig"} if flat.ndim == 3 else {}
            tifffile.imwrite(
                temporary, flat, photometric=kind, metadata=None, compression="zlib", description=told, **options
            )


def holds(suffix: str, dtype: str, channels: int) -> bool:
    """Whether files of this suffix can be written of such images."""
    if suffix == ".png":
        return (dtype == "uint8" and channels <= 4) or (dtype == "uint16" and channels == 1)
    return suffix in (".tif", ".tiff", ".npy")


def find_images(folder: Path, *, nested: bool = False) -> list[Path]:
    """The image files of a folder, by name; not those of folders in it, unless `nested`, nor hidden ones."""
    if not nested:
        return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))

    def refuse(error: OSError) -> None:
        raise error

    found: list[Path] = []
    been = {os.path.realpath(folder)}  # a link may lead back to where one came from
    for at, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        inside = {name: os.path.realpath(os.path.join(at, name)) for name in sorted(folders) if name[0] != "."}
        folders[:] = [name for name, real in inside.items() if real not in been]
        been.update(inside.values())
        found += [Path(at, name) for name in names if name.lower().endswith(SUFFIXES) and name[0] != "."]
    return sorted(found)
