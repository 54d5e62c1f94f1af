"""Only the documented formats are opened, by content; everything else is refused by name, and starts nothing."""

import os
import threading

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import EpsImagePlugin, Image

from p2pzoo.cli import main
from p2pzoo.images import io
from p2pzoo.images.io import IMAGE_SUFFIXES, PILLOW_FORMATS, inspect_image, read_image, write_png
from p2pzoo.images.label_maps import inspect_map, read_map
from p2pzoo.utils.errors import UserError

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%pipe%touch executed) (w) file\n%%EOF\n"
READERS = {"read_image": read_image, "inspect_image": inspect_image, "read_map": read_map, "inspect_map": inspect_map}


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_an_eps_file_named_png_starts_no_ghostscript(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    file = tmp_path / "photo.png"
    file.write_bytes(EPS)
    with pytest.raises(UserError, match=r"photo\.png: .*its content is EPS; p2pzoo reads PNG, JPEG, WebP"):
        reader(file)


@pytest.mark.parametrize("form", ["GIF", "ICNS", "ICO", "PPM", "PDF", "JPEG2000", "TGA", "PCX", "SGI", "DDS", "MPO"])
def test_only_documented_formats_are_read(form, picture, tmp_path):
    file = tmp_path / "a.png"
    try:
        picture.resize((16, 16)).save(file, form)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {form}")
    if form == "MPO":  # a JPEG with a second one behind it, as phones write them
        assert read_image(file).shape == (16, 16, 3)
        return
    with pytest.raises(UserError, match=r"a\.png: cannot be read as an image \(.*; p2pzoo reads PNG"):
        read_image(file)


@pytest.mark.parametrize("form", PILLOW_FORMATS)
def test_the_content_decides_not_the_name(form, picture, tmp_path):
    file = tmp_path / "a.jpg"
    picture.save(file, form)
    assert read_image(file).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("content", "name"),
    [(b"", "the file is empty"), (b"\0\0\0\x20ftypheic" + bytes(200), "HEIC or AVIF"), (bytes(128) + b"DICM", "DICOM"),
     (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"), (b"hello", "unknown format")],
)  # fmt: skip
def test_the_message_names_what_the_file_is(content, name, tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(content)
    with pytest.raises(UserError, match=name):
        read_image(file)


def test_a_tiff_in_cielab_is_refused(tmp_path):
    file = tmp_path / "lab.tif"
    Image.new("LAB", (8, 8), (50, 10, 200)).save(file)
    for read in (read_image, inspect_image):
        with pytest.raises(UserError, match=r"lab\.tif: is a TIFF in CIE L\*a\*b\*.*convert it to RGB"):
            read(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_a_pipe_does_not_hang(suffix, tmp_path):
    pipe = tmp_path / f"a{suffix}"
    os.mkfifo(pipe)
    write_png(tmp_path / "b.png", np.zeros((8, 8, 3), np.uint8))
    results = []

    def translate():
        arguments = ["translate", "zoo:earth-small", str(pipe), str(tmp_path / "b.png"), "-o", str(tmp_path / "out")]
        results.append(CliRunner().invoke(main, [*arguments, "--device", "cpu"]))

    thread = threading.Thread(target=translate, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert results[0].exit_code == 2
    assert "a pipe or a device, which may never end" in results[0].output
    assert (tmp_path / "out" / "b.png").is_file(), "the other image is translated"


@pytest.mark.parametrize("suffix", [".npz", ".tif"])
def test_a_small_file_does_not_unpack_to_gigabytes(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(io, "_ALWAYS_UNPACKED", 1 << 20)
    file, zeros = tmp_path / f"a{suffix}", np.zeros((2000, 2000, 2), np.uint16)
    if suffix == ".npz":
        np.savez_compressed(file, zeros)
    else:
        tifffile.imwrite(file, zeros, compression="zlib", bigtiff=True, planarconfig="contig", rowsperstrip=2000)
    with pytest.raises(UserError, match=rf"a\{suffix}: its [0-9,]+ bytes unpack to 16,000,000, more than 64 times"):
        read_image(file)
    monkeypatch.undo()
    assert read_image(file).shape == zeros.shape
