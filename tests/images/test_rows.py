"""Images that are read a band of rows at a time: the same pixels as `read_image`, in the memory of a band."""

import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from p2pzoo.images import io
from p2pzoo.images.io import inspect_image, read_image, write_image
from p2pzoo.images.label_maps import inspect_map, read_map
from p2pzoo.images.rows import open_rows, write_rows
from p2pzoo.utils import memory
from p2pzoo.utils.errors import UserError


def noise(shape, dtype="uint8", seed=0):
    values = np.random.default_rng(seed).random(shape)
    return (values * (1 if dtype == "float32" else np.iinfo(dtype).max)).astype(dtype)


TIFFS = {  # name: (shape, dtype, options of tifffile.imwrite)
    "tiles": ((130, 150, 3), "uint8", {"tile": (32, 48), "compression": "zlib", "photometric": "rgb"}),
    "tiles-lzw": ((130, 150, 3), "uint8", {"tile": (32, 48), "compression": "lzw", "predictor": True}),
    "tiles-jpeg": ((130, 150, 3), "uint8", {"tile": (32, 48), "compression": "jpeg", "photometric": "rgb"}),
    "tiles-big": ((130, 150, 3), "uint8", {"tile": (32, 48), "bigtiff": True, "photometric": "rgb"}),
    "strips": ((130, 150, 3), "uint8", {"rowsperstrip": 7, "compression": "zlib", "photometric": "rgb"}),
    "plain": ((130, 150, 3), "uint8", {"photometric": "rgb"}),
    "plain-big-endian": ((130, 150), "uint16", {"byteorder": ">"}),
    "planes": ((5, 130, 150), "uint16", {"planarconfig": "separate", "photometric": "minisblack"}),
    "plane-tiles": (
        (5, 130, 150), "float32",
        {"planarconfig": "separate", "photometric": "minisblack", "tile": (32, 48), "compression": "zlib"},
    ),
    "bands": ((130, 150, 6), "uint16", {"planarconfig": "contig", "photometric": "minisblack", "tile": (64, 64)}),
    "grey": ((130, 150), "uint8", {"tile": (64, 64), "photometric": "minisblack"}),
    "white-is-0": ((130, 150), "uint8", {"tile": (64, 64), "photometric": "miniswhite"}),
}  # fmt: skip


def bands_of(rows, step):
    """The image, read in overlapping bands."""
    height = rows.shape[0]
    return np.concatenate([rows.read(at, min(at + step + 5, height))[:step] for at in range(0, height, step)])


@pytest.mark.parametrize("name", TIFFS)
@pytest.mark.parametrize("step", [9, 64])
def test_bands_of_a_tiff_are_those_of_the_whole_image(name, step, tmp_path):
    shape, dtype, options = TIFFS[name]
    tifffile.imwrite(tmp_path / "a.tif", noise(shape, dtype), metadata=None, **options)
    whole = read_image(tmp_path / "a.tif")
    with open_rows(tmp_path / "a.tif") as rows:
        assert rows.shape == whole.shape
        again = bands_of(rows, step)
    assert again.dtype == whole.dtype
    np.testing.assert_array_equal(again, whole)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.png", "RGB"), ("a.png", "L"), ("a.png", "RGBA"), ("a.png", "P"), ("a.png", "1"), ("a.png", "I;16"),
     ("a.jpg", "RGB"), ("a.tif", "CMYK"), ("a.tif", "P"), ("a.tif", "F")],
)  # fmt: skip
def test_bands_of_other_pictures_are_those_of_the_whole_image(name, mode, tmp_path):
    if mode == "I;16":
        Image.fromarray(noise((60, 40), "uint16")).save(tmp_path / name)
    else:
        Image.fromarray(noise((60, 40, 3))).convert(mode).save(tmp_path / name)
    with open_rows(tmp_path / name) as rows:
        np.testing.assert_array_equal(bands_of(rows, 9), read_image(tmp_path / name))


def test_a_rotated_photo_and_an_array_are_read_in_bands(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise((60, 40, 3))).save(tmp_path / "a.jpg", exif=exif)
    np.save(tmp_path / "a.npy", noise((60, 40, 7), "float32"))
    for name in ("a.jpg", "a.npy"):
        with open_rows(tmp_path / name) as rows:
            np.testing.assert_array_equal(bands_of(rows, 9), read_image(tmp_path / name))


def test_bands_of_tiles_are_decoded_without_the_others(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", noise((640, 64, 3)), tile=(64, 64), photometric="rgb", compression="zlib")
    decoded = []
    read = tifffile.TiffFile(tmp_path / "a.tif").filehandle.__class__.read
    monkeypatch.setattr(tifffile.FileHandle, "read", lambda self, n=-1, /: decoded.append(n) or read(self, n))
    with open_rows(tmp_path / "a.tif") as rows:
        decoded.clear()
        rows.read(0, 100)
        assert len(decoded) == 2
        rows.read(70, 130)
        assert len(decoded) == 3, "the rows of tiles that the last band had are kept"


def test_a_damaged_tile_is_refused_by_name(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise((64, 64, 3)), tile=(32, 32), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        at = tiff.pages[0].dataoffsets[3]
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[at : at + 200] = bytes(200)
    (tmp_path / "a.tif").write_bytes(content)
    with open_rows(tmp_path / "a.tif") as rows:
        rows.read(0, 32)
        with pytest.raises(UserError, match=r"a\.tif: cannot be read as a TIFF"):
            rows.read(32, 64)


def test_errors_while_an_image_is_open_are_not_those_of_its_file(tmp_path):
    Image.fromarray(noise((60, 40, 3))).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="of the caller"), open_rows(tmp_path / "a.png"):
        raise ValueError("of the caller")


def test_a_picture_that_ends_early_is_refused_by_name(tmp_path):
    Image.fromarray(noise((60, 40, 3))).save(tmp_path / "whole.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    with pytest.raises(UserError, match=r"a\.png: cannot be read as an image"), open_rows(tmp_path / "a.png"):
        pass


# --- writing ---


@pytest.mark.parametrize(
    ("suffix", "dtype", "channels"),
    [(".tif", "uint8", 3), (".tif", "uint16", 1), (".tif", "float32", 5), (".npy", "float32", 2), (".png", "uint8", 4)],
)
def test_rows_are_written_as_the_whole_image_is(suffix, dtype, channels, tmp_path):
    image = noise((530, 300, channels), dtype)
    file = tmp_path / f"a{suffix}"
    write_rows(file, (image[at : at + 37] for at in range(0, 530, 37)), image.shape, dtype, {"p2pzoo": "{}"})
    write_image(tmp_path / f"b{suffix}", image, {"p2pzoo": "{}"})
    np.testing.assert_array_equal(read_image(file), image)
    assert read_image(file).dtype == dtype
    if suffix == ".tif":
        with tifffile.TiffFile(file) as tiff, tifffile.TiffFile(tmp_path / "b.tif") as whole:
            assert tiff.pages[0].is_tiled
            assert tiff.pages[0].description == whole.pages[0].description == "p2pzoo: {}"
            assert tiff.pages[0].photometric == whole.pages[0].photometric


def test_an_error_between_two_rows_leaves_no_file(tmp_path):
    def rows():
        yield noise((300, 300, 3))
        raise ValueError("no more")

    for suffix in (".tif", ".npy", ".png"):
        with pytest.raises(ValueError, match="no more"):
            write_rows(tmp_path / f"a{suffix}", rows(), (600, 300, 3), "uint8")
    assert not [*tmp_path.iterdir()]


# --- very large images ---


@pytest.fixture
def huge_png(tmp_path):
    """A PNG of 14,000 × 14,000 px (196 million), more than Pillow opens."""
    Image.new("1", (14_000, 14_000)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_the_header_of_an_image_beyond_pillows_limit_is_read_and_the_limit_stays(huge_png):
    assert io.read_header(huge_png) == (14_000, 14_000, 1)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(huge_png)


def test_an_image_that_the_memory_cannot_hold_is_refused_with_what_it_needs(huge_png, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 100_000_000)
    monkeypatch.setattr(memory, "ALWAYS_FREE", 0)
    for read in (read_image, lambda path: open_rows(path).__enter__()):
        with pytest.raises(UserError, match=r"a\.png: 14,000 × 14,000 px need 0\.\d GB of memory, and 0\.1 GB is free"):
            read(huge_png)


def test_an_image_whose_file_is_too_small_for_its_pixels_is_refused(tmp_path):
    Image.new("RGB", (14_000, 14_000)).save(tmp_path / "whole.png", compress_type=3)
    (tmp_path / "a.png").write_bytes((tmp_path / "whole.png").read_bytes()[:9_999])
    with pytest.raises(UserError, match=r"a\.png: its header says 14,000 × 14,000 px, more than its 9,999 bytes can"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("height", [2**31 - 1, 2**31, 2**32 - 1])
def test_a_header_with_sides_beyond_all_pictures_is_refused(tmp_path, height):
    """One bit a pixel and one pixel a row: less than a byte, if the byte that names a row's filter is not counted."""
    Image.new("1", (1, 1)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[20:24] = height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(content)
    for read in (read_image, inspect_image, lambda path: open_rows(path).__enter__()):
        with pytest.raises(UserError, match=rf"a\.png: its header says {height:,} × 1 px, more than its \d+ bytes can"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("read", [read_image, inspect_image, read_map, inspect_map], ids=lambda read: read.__name__)
def test_a_bitmap_of_few_bytes_and_many_pixels_is_refused(tmp_path, read):
    Image.new("P", (9, 7)).save(tmp_path / "a.bmp")
    content = bytearray((tmp_path / "a.bmp").read_bytes())
    content[21] = 0x16
    (tmp_path / "a.bmp").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.bmp: its header says 7 × 369,098,761 px, more than its [\d,]+ bytes can"):
        read(tmp_path / "a.bmp")


@pytest.mark.parametrize("read", [read_image, read_map], ids=lambda read: read.__name__)
def test_an_image_that_pillow_finds_no_memory_for_is_refused(tmp_path, read, monkeypatch):
    Image.new("P", (9, 7)).save(tmp_path / "a.png")

    def load(_):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(UserError, match=r"a\.png: cannot be read as an image \(too little memory\)"):
        read(tmp_path / "a.png")


def test_a_tiff_of_one_large_strip_is_refused_with_what_it_needs(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", noise((64, 64, 5)), compression="zlib", rowsperstrip=64, planarconfig="contig")
    monkeypatch.setattr(memory, "available_bytes", lambda: 10_000)
    monkeypatch.setattr(memory, "ALWAYS_FREE", 0)
    for read in (read_image, lambda path: open_rows(path).__enter__()):
        with pytest.raises(UserError, match=r"a\.tif: 64 × 64 px need 0\.\d+ GB of memory"):
            read(tmp_path / "a.tif")
