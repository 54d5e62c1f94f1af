"""Image files of every depth and any number of channels: read again to the bit, or refused by name."""

import json
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from p2pzoo.cli import main
from p2pzoo.images.io import can_hold, inspect_image, read_image, write_image
from p2pzoo.images.label_maps import inspect_map, read_map
from p2pzoo.images.rows import open_rows
from p2pzoo.utils.errors import UserError

WIDTH, HEIGHT, UNKNOWN = 256, 257, 999  # tags of a TIFF
SEEN = st.tuples(
    st.sampled_from([".png", ".tif", ".npy"]),
    st.sampled_from(["uint8", "uint16", "float32"]),
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 7)),
    st.integers(0, 99),
)


def noise(shape, dtype, seed=0):
    values = np.random.default_rng(seed).random(shape)
    return (values * (1 if dtype == "float32" else np.iinfo(dtype).max)).astype(dtype)


@settings(max_examples=80, deadline=None)
@given(SEEN)
def test_a_written_image_is_read_back_unchanged_and_its_header_matches(tmp_path_factory, example):
    suffix, dtype, shape, seed = example
    path = tmp_path_factory.mktemp("one") / f"image{suffix}"
    image = noise(shape, dtype, seed)
    if not can_hold(suffix, dtype, shape[2]):
        with pytest.raises(UserError, match="cannot hold"):
            write_image(path, image)
        assert not path.exists()
        return
    write_image(path, image, {"p2pzoo": "é"})
    again, header = read_image(path), inspect_image(path)
    assert (again.dtype, again.shape) == (image.dtype, image.shape)
    assert (header.dtype, header.shape) == (dtype, shape)
    np.testing.assert_array_equal(again, image)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colours_of_a_png_are_not_reduced(tmp_path, channels):
    image = noise((5, 6, channels), "uint16")
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(image))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    assert inspect_image(tmp_path / "a.png")[:3] == ((5, 6, channels), "uint16", channels != 3)


def test_all_bands_of_a_tiff_are_read_in_either_memory_order(tmp_path):
    image = noise((8, 9, 4), "uint8")
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", planarconfig="contig", extrasamples=["unspecified"])
    tifffile.imwrite(tmp_path / "b.tif", np.moveaxis(image, -1, 0), photometric="minisblack", planarconfig="separate")
    for name in ("a.tif", "b.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), image)


def test_unsupported_dtypes_are_refused_by_name(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4)))
    np.savez(tmp_path / "b.npz", np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8))
    for read in (read_image, inspect_image):
        with pytest.raises(UserError, match=r"a\.npy: its values are float64; supported are uint8, uint16, float32"):
            read(tmp_path / "a.npy")
        with pytest.raises(UserError, match=r"b\.npz: has 2 arrays \(arr_0, arr_1\); one is expected"):
            read(tmp_path / "b.npz")


def test_an_array_with_a_truncated_header_is_refused_by_name(tmp_path):
    file = tmp_path / "a.npy"
    np.save(file, np.zeros((4, 4), np.uint8))
    whole = file.read_bytes()
    for place, becomes in (
        (b"{", b" "),
        (b"}", b" "),
        (b"(4, 4)", b"(4, 4 "),
        (b"'descr'", b"'descr "),
        (b"{'", b'"""'),
    ):
        file.write_bytes(whole.replace(place, becomes, 1))
        for read in (read_image, inspect_image, read_map, inspect_map):
            with pytest.raises(UserError, match=r"a\.npy: "):
                read(file)


@pytest.mark.parametrize(
    ("tag", "becomes", "value"),
    [(WIDTH, WIDTH, 0), (HEIGHT, HEIGHT, 0), (WIDTH, UNKNOWN, 5)],
    ids=["no width", "no height", "width missing"],
)
def test_a_tiff_without_pixels_is_refused_by_name(tag, becomes, value, tmp_path):
    file = tmp_path / "a.tif"
    Image.new("L", (5, 6)).save(file)
    content = file.read_bytes()
    at = content.index(struct.pack("<HH", tag, 4))
    file.write_bytes(content[:at] + struct.pack("<HHLL", becomes, 4, 1, value) + content[at + 12 :])
    for read in (read_image, inspect_image, read_map, inspect_map):
        with pytest.raises(UserError, match=r"a\.tif: is an array of \(.*\); \(height, width\) or"):
            read(file)


def test_a_tiff_with_a_damaged_second_page_is_refused_by_name(tmp_path):
    file = tmp_path / "a.tif"
    Image.new("L", (5, 6)).save(file, save_all=True, append_images=[Image.new("L", (5, 6))])
    content = file.read_bytes()
    at = content.rindex(struct.pack("<HH", WIDTH, 4))
    file.write_bytes(content[:at] + struct.pack("<HHLL", UNKNOWN, 4, 1, 5) + content[at + 12 :])
    for read in (read_image, inspect_image, read_map, inspect_map):
        with pytest.raises(UserError, match=r"a\.tif: "):
            read(file)


def test_16_bit_tiffs_of_four_channels_train_and_translate_without_loss_of_depth(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 2), ("val", 1)):
        for number in range(count):
            for folder in ("a", "b"):
                path = tmp_path / folder / split / f"{number}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_image(path, noise((32, 32, 4), "uint16", number + 10 * (folder == "b")) // 16)
    (tmp_path / "mine.toml").write_text(
        'extends = "zoo:base.toml"\ndrop = ["metrics.ssim"]\n[generator]\nwidth = 4\n[discriminator]\nwidth = 4\n'
        '[dataset]\nuse = "folders"\ninputs = "a"\ntargets = "b"\ninput_range = [0, 4095]\ntarget_range = [0, 4095]\n'
        '[train]\nimages = 2\n[compute]\ndevice = "cpu"\nthreads = 1\n'
    )
    calls = CliRunner()
    ran = calls.invoke(main, ["run", "mine.toml", "--json"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    model = next(tmp_path.glob("runs/**/model.safetensors"))
    made = calls.invoke(main, ["translate", str(model), "a/val", "-o", "out"], catch_exceptions=False)
    assert made.exit_code == 0, made.output
    written = read_image(tmp_path / "out/0.tif")
    assert (written.dtype, written.shape) == (np.uint16, (32, 32, 4))
    assert written.max() <= 4095
    assert len(np.unique(written)) > 256, "more levels than 8 bits have"
    assert json.loads(tifffile.TiffFile(tmp_path / "out/0.tif").pages[0].description.partition(": ")[2])["seed"] == 0

    Image.new("RGBA", (32, 32)).save(tmp_path / "shallow.png")
    refused = calls.invoke(main, ["translate", str(model), "shallow.png", "-o", "more"])
    assert refused.exit_code == 2
    assert "shallow.png: expected (H, W) or (H, W, C) of uint16" in refused.output


class TestTransparentColour:
    """A PNG without an alpha channel can name one colour that is transparent (tRNS)."""

    GREY = np.array([[200, 200], [0, 85]], np.uint8)

    def write(self, path, mode, **options):
        Image.fromarray(self.GREY).convert(mode).save(path, **options)
        return path

    @pytest.mark.parametrize(("mode", "colour"), [("L", 0), ("RGB", (0, 0, 0)), ("P", 0)])
    def test_it_is_opacity_as_in_an_rgba_file(self, mode, colour, tmp_path):
        file = self.write(tmp_path / "a.png", mode, transparency=colour)
        image, header = read_image(file), inspect_image(file)
        assert (header.shape, header.has_alpha) == (image.shape, True)
        assert image[..., -1].tolist() == [[255, 255], [0, 255]]
        assert (image[..., :-1] == self.GREY[..., None]).all()
        with open_rows(file) as rows:
            np.testing.assert_array_equal(rows.read(1, 2), image[1:])

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_its_value_is_one_of_the_file_also_below_8_bits(self, bits, tmp_path):
        brightest = 2**bits - 1
        rows = [bytes([0, brightest << 8 - bits]), bytes([0, 0])]
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", 1, 2, bits, 0, 0, 0, 0)), (b"tRNS", struct.pack(">H", brightest)),
            (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""),
        ]  # fmt: skip
        packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
        assert read_image(tmp_path / "a.png").tolist() == [[[255, 0]], [[0, 255]]]

    def test_it_is_refused_for_16_bits(self, tmp_path):
        Image.fromarray(self.GREY.astype(np.uint16) * 257).save(tmp_path / "a.png", transparency=0)
        for read in (read_image, inspect_image, lambda path: open_rows(path).__enter__()):
            with pytest.raises(UserError, match=r"a\.png: has a transparent colour \(tRNS\), which is not read"):
                read(tmp_path / "a.png")

    @pytest.mark.parametrize(("mode", "colour"), [("L", 0), ("RGB", (0, 0, 0))])
    def test_a_label_map_keeps_its_values(self, mode, colour, tmp_path):
        file = self.write(tmp_path / "a.png", mode, transparency=colour)
        plain = self.write(tmp_path / "b.png", mode)
        np.testing.assert_array_equal(read_map(file), read_map(plain))
        assert inspect_map(file) == inspect_map(plain)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_an_animation_is_refused_as_a_tiff_of_several_pages_is(suffix, tmp_path):
    first, second = (Image.fromarray(noise((8, 8, 3), "uint8", seed)) for seed in (0, 1))
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=[second])
    for read in (read_image, inspect_image):
        with pytest.raises(UserError, match=f"a{suffix}: is an animation of 2 pictures; one is expected"):
            read(tmp_path / f"a{suffix}")
