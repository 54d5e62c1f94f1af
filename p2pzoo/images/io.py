"""Image files -> arrays and back, without any lossy conversion.

Imports only NumPy and Pillow. Files that Pillow cannot read, or would reduce to 8 bits, are read by tifffile and
imagecodecs (the extra `p2pzoo[tiff]`), which are imported when a file needs them.
"""

from __future__ import annotations

import contextlib
import functools
import math
import struct
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write
from p2pzoo.utils.memory import check_available

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".npy", ".npz")
ARRAY_SUFFIXES = (".npy", ".npz")
# Pillow's other readers are for 40 more formats, some of which start other programs (EPS: Ghostscript).
PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_OTHER_FORMATS = {  # first bytes of files that people have: only for messages
    b"GIF8": "GIF", b"%!PS": "EPS", b"\xc5\xd0\xd3\xc6": "EPS", b"%PDF": "PDF", b"icns": "ICNS", b"8BPS": "Photoshop",
    b"\0\0\0\x0cjP": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000", b"\0\0\1\0": "ICO", b"<svg": "SVG", b"<?xml": "SVG",
    b"\x1f\x8b": "gzip (NIfTI?)", b"SIMPLE": "FITS", b"\x76\x2f\x31\x01": "OpenEXR", b"#?RADIANCE": "Radiance HDR",
    b"P5": "PGM", b"P6": "PPM", b"DDS ": "DDS", b"{": "JSON", b"PK": "ZIP", b"<html": "HTML", b"<!DOCTYPE": "HTML",
}  # fmt: skip
_LAB_PHOTOMETRICS = (8, 9, 10)  # of TIFF: CIE L*a*b*, ICC L*a*b*, ITU L*a*b*
_DTYPES = ("uint8", "uint16", "float32")  # of images; others are refused
_MODES = {  # Pillow mode of a file -> the mode to convert to, one letter per channel
    "L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA", "1": "L", "CMYK": "RGB", "YCbCr": "RGB",
}  # fmt: skip
_PNG_MODES = {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}  # color type in the header of a PNG -> channels
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLES_PER_PIXEL = 258, 262, 277  # numbers of TIFF tags
PILLOW_ERRORS = (  # raised by Pillow for damaged files; the last three where a header claims a huge picture
    OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error, Image.DecompressionBombError, MemoryError,
    OverflowError,
)  # fmt: skip
_NUMPY_ERRORS = (  # raised by NumPy for damaged files
    OSError, ValueError, EOFError, SyntaxError, RuntimeError, TypeError, LookupError, ArithmeticError, struct.error,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_MAX_PIXELS_IN_A_BYTE = 128  # of a BMP: in a run, two bytes stand for 255 pixels
_MAX_DEFLATE_RATIO = 1032  # deflate cannot compress better (zlib, technical details)
# An array of more bytes than _ALWAYS_UNPACKED may be so many times as large as its compressed file: real images, which
# compress to a half or a tenth, stay far below; a file of 3 MB must not take 3 GB
_ALWAYS_UNPACKED, _MAX_EXPANSION = 1 << 30, 64
_PILLOW_LIMIT = threading.Lock()  # held while Pillow's limit of pixels, a global of it, is lifted
_MAX_PIXELS_AT_ONCE = 64 * 1024**2  # larger pictures become arrays band by band: Pillow makes several copies of a band
_BAND_ROWS = 256
TRANSPOSING = (5, 6, 7, 8)  # EXIF orientations that swap rows and columns
_CHANNEL_NAMES = {1: "grey", 2: "grey with transparency", 3: "RGB", 4: "RGB with transparency"}


TiffTag = tuple[int, int, int, Any, bool]  # code, type, count, value, only in the first page: as tifffile takes them


class ImageHeader(NamedTuple):
    """Shape and dtype of the array that `read_image` returns.

    has_alpha    whether the last channel is alpha
    orientation  how the file says that its pixels must be turned, as in EXIF: 1 (not at all) to 8. `shape` is the one
                 after that
    """

    shape: tuple[int, int, int]
    dtype: str
    has_alpha: bool
    orientation: int = 1


def read_image(path: Path) -> np.ndarray:
    """(H, W, C) uint8, uint16 or float32, as stored in the file.

    C is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA); TIFF and NumPy files may have any C. EXIF rotation is applied,
    palettes are resolved, and a colour that a PNG names as transparent (tRNS) becomes alpha. Raises UserError, naming
    the file, if it cannot be read, has another dtype, or needs a package that is not installed.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "grey.png"
    >>> write_png(file, np.zeros((2, 3, 1), np.uint8))
    >>> read_image(file).shape
    (2, 3, 1)
    """
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return _native(_checked_array(path, read_array(path)))
    try:
        with open_picture(path) as image:
            library = choose_library(image, path)
            if library == "pillow":
                return _native(decode_pixels(image, str(path)))
    except UnidentifiedImageError:
        if not _is_tiff(path):
            raise UserError(f"{path}: {_describe_content(path)}") from None
        library = "tifffile"
    except PILLOW_ERRORS as error:
        raise UserError(f"{path}: {describe_read_error(error)}") from None
    return _native(_read_tiff(path)[0] if library == "tifffile" else _read_deep_png(path))


def open_picture(path: Path) -> Image.Image:
    """Open one of PILLOW_FORMATS, by its content, of any size: its pixels are not decoded yet.

    Raises PILLOW_ERRORS, and UserError for what is no regular file, or claims more pixels than its bytes can give.
    """
    _refuse_pipes(path)
    image: Image.Image
    try:
        image = Image.open(path, formats=PILLOW_FORMATS)
    except Image.DecompressionBombError:
        image = _open_beyond_limit(path)
    if has_transparent_color(image) and image.mode == "L":
        image.info["transparency"] *= 255 // (2 ** _png_depth(image, path) - 1)  # of 2 and 4 bits Pillow scales pixels
    return image


def _open_beyond_limit(path: Path) -> Image.Image:
    """Open a picture with more pixels than Pillow's limit. In its place, bytes are counted: of the file, and free."""
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path, formats=PILLOW_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    size = path.stat().st_size
    if _fewest_bytes(image, path) > size:
        claimed = f"its header says {image.height:,} × {image.width:,} px"
        raise UserError(f"{path}: {claimed}, more than its {size:,} bytes can give: get this file again")
    return image


def _fewest_bytes(image: Image.Image, path: Path) -> float:
    """The bytes that a file with so many pixels has at least; 0 if its format sets no limit."""
    if image.format == "BMP":
        return image.width * image.height / _MAX_PIXELS_IN_A_BYTE
    if image.format != "PNG":
        return 0
    bits, color_type = _png_header(path)
    row = 1 + -(-image.width * bits * len(_PNG_MODES.get(color_type, "L")) // 8)  # the first byte names a filter
    return row * image.height / _MAX_DEFLATE_RATIO


def describe_size(name: Path | str, height: int, width: int) -> str:
    """The subject of a message about memory."""
    return f"{name}: {height:,} × {width:,} px"


def _refuse_pipes(path: Path) -> None:
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe or a device, which may never end"
        raise UserError(f"{path}: is {what}, not an image file")


def decode_pixels(image: Image.Image, name: str) -> np.ndarray:
    """(H, W, C) of an open image: 8 bits per channel, or one channel of 16 bits or float32.

    name  stands in the error where the image has another mode, or memory is too small
    """
    shape, read = picture_bands(image, name, whole=True)
    if shape[0] * shape[1] <= _MAX_PIXELS_AT_ONCE:
        return read(0, shape[0])
    array = np.empty(shape, read(0, 1).dtype)
    for top in range(0, shape[0], _BAND_ROWS):
        array[top : top + _BAND_ROWS] = read(top, min(top + _BAND_ROWS, shape[0]))
    return array


def picture_bands(
    image: Image.Image, name: str, *, whole: bool = False
) -> tuple[tuple[int, int, int], Callable[[int, int], np.ndarray]]:
    """The shape (H, W, C) of an open image, and read(top, bottom) -> a band of its rows. Decodes the image.

    whole: whether all bands are to be kept. Raises UserError if the decoded image does not fit into memory.
    """
    height, width, _ = _shape_3d(name, (image.height, image.width))
    mode = image.mode if _is_deep(image) else _mode(name, image)
    channels = 1 if _is_deep(image) else len(mode)
    in_pillow = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4  # bytes per pixel
    array = {"F": 4, "I": 2}.get(mode, channels) if not mode.startswith("I;16") else 2
    check_available((in_pillow + array * whole) * height * width, describe_size(name, height, width))
    has_exif = "exif" in image.info
    image.load()
    if "exif" in image.info and not has_exif and (orientation := _orientation(image)) != 1:
        raise UserError(
            f"{name}: has EXIF orientation {orientation} behind its pixels, and its header none: save it upright"
        )
    upright = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)

    def read(top: int, bottom: int) -> np.ndarray:
        is_whole = (top, bottom) == (0, upright.height)
        part = upright if is_whole else upright.crop((0, top, upright.width, bottom))
        band = np.asarray(part if _is_deep(part) else part.convert(mode))
        band = band.astype(np.uint16) if part.mode == "I" else band  # older Pillow opens a PNG of 16 bits as "I"
        return band.reshape(*band.shape[:2], -1)

    return (upright.height, upright.width, channels), read


def read_header(path: Path) -> tuple[int, int, int]:
    """The shape (H, W, C) that `read_image` returns, without decoding pixels. Raises UserError as `read_image` does."""
    return inspect_image(path).shape


def inspect_image(path: Path) -> ImageHeader:
    """Shape and dtype that `read_image` returns, without decoding pixels. Raises UserError as `read_image` does."""
    if path.suffix.lower() in ARRAY_SUFFIXES:
        shape, dtype = inspect_array(path)
        return ImageHeader(_shape_3d(path, shape), _dtype_name(path, dtype), False)
    try:
        with open_picture(path) as image:
            library = choose_library(image, path)
            if library != "tifffile":
                return _picture_header(path, image)
    except UnidentifiedImageError:
        if not _is_tiff(path):
            raise UserError(f"{path}: {_describe_content(path)}") from None
    except PILLOW_ERRORS as error:
        raise UserError(f"{path}: {describe_read_error(error)}") from None
    return _read_tiff(path, pixels=False)[1]


def _picture_header(path: Path, image: Image.Image) -> ImageHeader:
    deep = image.mode if _is_deep(image) else ""
    mode, dtype = deep or _mode(path, image), "float32" if deep == "F" else "uint16" if deep else "uint8"
    if not deep and _png_depth(image, path) == 16:
        mode, dtype = _PNG_MODES[_png_header(path)[1]], "uint16"
    channels = 1 if deep else len(mode)
    height, width, _ = _shape_3d(path, (image.height, image.width))
    orientation = _orientation(image)
    is_transposed = orientation in TRANSPOSING and image.format != "TIFF"  # for TIFF, Pillow gives the upright size
    shape = (width, height, channels) if is_transposed else (height, width, channels)
    return ImageHeader(shape, dtype, mode.endswith("A"), orientation)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of an open image, 1 where it has none or no valid one."""
    exif = Image.Image.getexif(image)  # PngImageFile.getexif would decode the pixels to reach later chunks
    value = exif.get(ExifTags.Base.Orientation)
    return value if isinstance(value, int) and value in range(2, 9) else 1


def choose_library(image: Image.Image, path: Path) -> str:
    """The library that reads this file without loss: Pillow reduces colours of 16 bits to 8, and drops bands."""
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        _refuse_lab(path, tags.get(_PHOTOMETRIC))
        bits, samples = tags.get(_BITS_PER_SAMPLE, (1,)), tags.get(_SAMPLES_PER_PIXEL, 1)
        single = getattr(image, "n_frames", 1) == 1
        shallow = max(bits) <= 8 and (image.mode == "P" or samples == len(_MODES.get(image.mode, "")))
        shallow = shallow or (image.mode == "CMYK" and samples == 4 and max(bits) == 8)
        deep = samples == 1 and (image.mode.startswith("I;16") or (image.mode == "F" and bits == (32,)))
        return "pillow" if single and (shallow or deep) else "tifffile"
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
        frames = image.n_frames  # type: ignore[attr-defined]
        raise UserError(f"{path}: is an animation of {frames} pictures; one is expected: save that one alone")
    is_deep = _png_depth(image, path) == 16
    if is_deep and has_transparent_color(image):
        raise UserError(
            f"{path}: has a transparent colour (tRNS), which is not read with 16 bits per channel: save it with an "
            "alpha channel, or without transparency"
        )
    return "imagecodecs" if is_deep and not _is_deep(image) else "pillow"


def _png_depth(image: Image.Image, path: Path) -> int:
    """Bits per channel in the header of a PNG; 8 for other formats."""
    return _png_header(path)[0] if image.format == "PNG" else 8


def _png_header(path: Path) -> tuple[int, int]:
    """Bits per channel and color type (a key of _PNG_MODES). Pillow reports 16-bit grey with alpha as RGBA."""
    with path.open("rb") as file:
        bits, color_type = file.read(26)[24:26]
    return bits, color_type


def has_transparent_color(image: Image.Image) -> bool:
    """Whether a picture without an alpha channel names one colour that is transparent, as a PNG can (tRNS)."""
    return image.mode not in ("P", "LA", "RGBA") and "transparency" in image.info


def _is_deep(image: Image.Image) -> bool:
    """Whether Pillow keeps more than 8 bits per channel, and all bits of the file."""
    sixteen = image.mode.startswith("I;16") and image.mode != "I;16S"
    return sixteen or (image.mode == "I" and image.format == "PNG") or image.mode == "F"


def _read_deep_png(path: Path) -> np.ndarray:
    codecs = _import_optional("imagecodecs", path)
    with open_picture(path) as image:
        orientation = _orientation(image)
    if orientation != 1:
        raise UserError(
            f"{path}: has EXIF orientation {orientation}, which is not applied to 16 bits per channel: save it upright"
        )
    try:
        array = codecs.png_decode(path.read_bytes())
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from None
    return array.reshape(*array.shape[:2], -1)  # type: ignore[no-any-return]


def _read_tiff(path: Path, *, pixels: bool = True) -> tuple[np.ndarray, ImageHeader]:
    """The array (H, W, C) and its header; the array is empty if `pixels` is False."""
    with open_tiff(path) as (tiff, header):
        if not pixels:
            return np.empty(0), header
        height, width, channels = header.shape
        is_channels_first = len(tiff.series[0].shape) == 3 and tiff.series[0].axes.endswith("YX")
        copies = 2 if is_channels_first else 1
        needed = copies * height * width * channels * np.dtype(header.dtype).itemsize
        check_available(needed, describe_size(path, height, width))
        _check_expansion(path, needed)
        try:
            array = tiff.series[0].asarray()
        except Exception as error:  # damaged files raise errors of any type
            raise UserError(f"{path}: cannot be read as a TIFF ({error})") from None
        return (np.moveaxis(array, 0, -1) if is_channels_first else array).reshape(header.shape), header


@contextlib.contextmanager
def open_tiff(path: Path) -> Iterator[tuple[Any, ImageHeader]]:
    """A tifffile.TiffFile of one image, and its header. Raises UserError as `read_image` does."""
    tifffile = _import_optional("tifffile", path)
    with contextlib.ExitStack() as stack:
        try:
            tiff = stack.enter_context(tifffile.TiffFile(path))
            series = tiff.series[0]
            axes, shape = series.axes, series.shape
            orientation = tiff.pages[0].tags.get("Orientation")
            photometric = int(tiff.pages[0].photometric)
            num_others = len(tiff.series) - 1
            dtype = np.dtype(series.dtype)
        except Exception as error:  # damaged files raise errors of any type
            raise UserError(f"{path}: cannot be read as a TIFF ({error})") from None
        _refuse_lab(path, photometric)
        if num_others or axes not in ("YX", "YXS", "SYX", "CYX", "QYX"):
            raise UserError(
                f"{path}: has several images ({axes} {shape}); one of (height, width, channels) is expected"
            )
        if orientation is not None and orientation.value != 1:
            number = int(orientation.value)
            raise UserError(f"{path}: has orientation {number}, which is not applied to such a TIFF: save it upright")
        is_channels_first = len(axes) == 3 and axes.endswith("YX")
        shape = (*shape[1:], shape[0]) if is_channels_first else (*shape, 1) if len(axes) == 2 else shape
        yield tiff, ImageHeader(_shape_3d(path, tuple(map(int, shape))), _dtype_name(path, dtype), False)


def _import_optional(package: str, path: Path) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{path}: reading it without loss needs {package}: pip install 'p2pzoo[tiff]'") from None


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _check_expansion(path: Path, unpacked: int) -> None:
    size = path.stat().st_size
    if unpacked > max(_ALWAYS_UNPACKED, _MAX_EXPANSION * size):
        raise UserError(
            f"{path}: its {size:,} bytes unpack to {unpacked:,}, more than {_MAX_EXPANSION} times as many: "
            "save it without compression, or in parts"
        )


def read_array(path: Path) -> np.ndarray:
    """The array of a .npy, or the only one of a .npz, unchanged. Raises UserError, naming the file."""
    shape, dtype = inspect_array(path)  # np.load allocates what the header says before it reads any data
    _check_expansion(path, math.prod(shape) * dtype.itemsize)
    try:
        loaded: Any = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return np.asarray(loaded[_only_name(path, loaded.files)])
    except _NUMPY_ERRORS as error:
        raise UserError(f"{path}: {_describe_array_error(error)}") from None


def inspect_array(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of the array that `read_array` returns, from its header. Raises as `read_array` does."""
    _refuse_pipes(path)
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return _array_header(file, path.stat().st_size)
        with zipfile.ZipFile(path) as archive:
            name = _only_name(path, [name.removesuffix(".npy") for name in archive.namelist()])
            member = archive.getinfo(f"{name}.npy")
            if member.file_size > member.compress_size * _MAX_DEFLATE_RATIO:
                raise ValueError("its unpacked size in the header is larger than its packed data can give")
            with archive.open(member) as unpacked:
                return _array_header(unpacked, member.file_size)
    except _NUMPY_ERRORS as error:
        raise UserError(f"{path}: {_describe_array_error(error)}") from None


def _array_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of a .npy of `size` bytes. Raises ValueError if that is too few, or the array has objects."""
    npy: Any = np.lib.format
    is_version_1 = npy.read_magic(file) == (1, 0)
    shape, _, dtype = npy.read_array_header_1_0(file) if is_version_1 else npy.read_array_header_2_0(file)
    if dtype.hasobject:
        raise ValueError("it has Python objects")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size - file.tell():
        raise ValueError(f"its header says {shape} of {dtype}, and the file has {size:,} bytes")
    return shape, dtype


def _only_name(path: Path, names: list[str]) -> str:
    if len(names) != 1:
        raise UserError(f"{path}: has {len(names)} arrays ({', '.join(names[:3])}); one is expected")
    return names[0]


def _describe_array_error(error: Exception) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read as a NumPy file ({error})"


def _checked_array(path: Path, array: np.ndarray) -> np.ndarray:
    _dtype_name(path, array.dtype)
    return array.reshape(_shape_3d(path, array.shape))


def _shape_3d(path: Path | str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) not in (2, 3) or 0 in shape:
        raise UserError(f"{path}: is an array of {shape}; (height, width) or (height, width, channels) is expected")
    return (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)


def _dtype_name(path: Path, dtype: np.dtype[Any]) -> str:
    name = dtype.newbyteorder("=").name
    if name not in _DTYPES:
        raise UserError(f"{path}: its values are {name}; supported are {', '.join(_DTYPES)}: save it as one of them")
    return name


def _native(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _mode(path: Path | str, image: Image.Image) -> str:
    """The Pillow mode to convert to: one letter per channel."""
    mode = _MODES.get(image.mode)
    if image.mode == "P":
        mode = "RGBA" if "transparency" in image.info else "RGB"
    elif mode in ("L", "RGB") and has_transparent_color(image):
        mode += "A"
    if mode is None:
        raise UserError(
            f"{path}: pixels of mode {image.mode} are not supported: "
            "save it with 8 or 16 bits per channel, or as float32"
        )
    return mode


def describe_read_error(error: Exception) -> str:
    """The cause of one of PILLOW_ERRORS, to follow a file's name in a message."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    is_unknown = isinstance(error, UnidentifiedImageError)
    cause = "unknown format" if is_unknown else getattr(error, "strerror", None) or str(error) or "too little memory"
    return f"cannot be read as an image ({cause})"


def _describe_content(path: Path) -> str:
    """Why Pillow does not know the file."""
    with path.open("rb") as file:
        start = file.read(160)
    if not start:
        return "cannot be read as an image (the file is empty)"
    name = next((name for magic, name in _OTHER_FORMATS.items() if start.startswith(magic)), None)
    if start[4:8] == b"ftyp":
        name = "HEIC or AVIF"
    elif start[128:132] == b"DICM":
        name = "DICOM"
    known = "p2pzoo reads PNG, JPEG, WebP, BMP, TIFF and NumPy files: convert it"
    return f"cannot be read as an image ({'its content is ' + name if name else 'unknown format'}; {known})"


def _refuse_lab(path: Path, photometric: int | None) -> None:
    if photometric in _LAB_PHOTOMETRICS:
        raise UserError(f"{path}: is a TIFF in CIE L*a*b*, whose channels are no RGB: convert it to RGB")


class TransparentPixels(ValueError):
    """An image with transparent pixels cannot become one without."""


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """The same image with this many channels. Raises ValueError where that would lose something, TransparentPixels for
    one.

    Grey and three equal channels convert into each other; alpha can be added, and removed where every pixel is opaque.

    >>> with_channels(np.zeros((2, 2, 1), np.uint8), 3).shape
    (2, 2, 3)
    """
    if image.shape[2] == channels:
        return image
    colors, alpha = (image[..., :-1], image[..., -1:]) if image.shape[2] in (2, 4) else (image, None)
    full = np.iinfo(image.dtype).max if image.dtype != np.float32 else None
    if alpha is not None and full is None:
        raise ValueError(
            f"it is {_channel_name(image.shape[2])} of float32, and {_channel_name(channels)} was expected"
        )
    if channels not in (2, 4) and alpha is not None and (alpha != full).any():
        raise TransparentPixels(f"it has transparent pixels, and {_channel_name(channels)} was expected")
    wanted = channels - 1 if channels in (2, 4) else channels
    if colors.shape[2] == 1 and wanted == 3:
        colors = np.repeat(colors, 3, axis=2)
    elif colors.shape[2] == 3 and wanted == 1 and (colors == colors[..., :1]).all():
        colors = colors[..., :1]
    if colors.shape[2] != wanted:
        raise ValueError(f"it is {_channel_name(image.shape[2])}, and {_channel_name(channels)} was expected")
    if wanted == channels:
        return colors
    if alpha is None and full is None:
        raise ValueError("it is float32 without alpha, and alpha was expected")
    return np.concatenate([colors, np.full_like(colors[..., :1], full) if alpha is None else alpha], axis=2)


def _channel_name(channels: int) -> str:
    return _CHANNEL_NAMES.get(channels, f"an image of {channels} channels")


def write_png(
    path: Path,
    image: np.ndarray,
    text: Mapping[str, str] | None = None,
    *,
    strategy: int = zlib.Z_DEFAULT_STRATEGY,
    palette: bytes | None = None,
) -> None:
    """Write (H, W, C) uint8 with 1 to 4 channels as a PNG.

    text      entries of the file's metadata
    strategy  of zlib. Z_RLE only looks for runs: photos are written five times as fast with the same size, flat label
              maps become twice as large
    palette   256 RGB triples: writes an indexed PNG, and the values of the single channel become its indices
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
    path: Path,
    image: np.ndarray,
    text: Mapping[str, str] | None = None,
    palette: bytes | None = None,
    tags: Sequence[TiffTag] = (),
) -> None:
    """Write (H, W, C) uint8, uint16 or float32 without loss, in the format of the suffix.

    .png holds 1 to 4 channels of uint8, or one of uint16. .tif holds all and needs tifffile. .npy holds all but `text`.
    text and palette are those of `write_png`; only PNGs use a palette, only TIFFs `tags`. Raises UserError where the
    format cannot hold the image.
    """
    suffix = path.suffix.lower()
    if not can_hold(suffix, image.dtype.name, image.shape[2]):
        raise UserError(f"{path}: cannot hold {image.shape[2]} channels of {image.dtype}; .tif and .npy can")
    if suffix == ".png":
        write_png(path, image, text, strategy=zlib.Z_RLE, palette=palette)
    elif suffix == ".npy":
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.save(file, image, allow_pickle=False)
    else:
        write = tiff_writer(path, image.shape, image.dtype.name, text, tags)
        with atomic_write(path) as temporary:
            write(temporary, image[..., 0] if image.shape[2] == 1 else image)


def tiff_writer(
    path: Path, shape: tuple[int, ...], dtype: str, text: Mapping[str, str] | None, tags: Sequence[TiffTag]
) -> Callable[..., Any]:
    """tifffile's imwrite with the options of an image (H, W, C). Raises UserError without tifffile."""
    write = functools.partial(
        _import_optional("tifffile", path).imwrite,
        photometric="rgb" if shape[2] == 3 and dtype != "float32" else "minisblack",
        metadata=None,
        compression="zlib",
        description="\n".join(f"{key}: {value}" for key, value in (text or {}).items()).encode() or None,
        extratags=tags,
    )
    return functools.partial(write, planarconfig="contig") if shape[2] > 1 else write


def can_hold(suffix: str, dtype: str, channels: int) -> bool:
    """Whether a file with this suffix can hold images of this dtype and number of channels.

    >>> can_hold(".png", "float32", 3)
    False
    """
    if suffix == ".png":
        return (dtype == "uint8" and channels <= 4) or (dtype == "uint16" and channels == 1)
    return suffix in (".tif", ".tiff", ".npy")
