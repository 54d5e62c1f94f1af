"""Images that are read, translated and written band by band: the pixels of the plain way, in bounded memory."""

import itertools
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
import torch
from p2pzoo_pix2pix.generators import UNet
from PIL import Image

import p2pzoo
from p2pzoo.images.io import read_image
from p2pzoo.models import model as model_module
from p2pzoo.models import translate_files as translate_files_module
from p2pzoo.models.safetensors_io import save_model
from p2pzoo.models.scaling import Scaling
from p2pzoo.models.translate_files import translate_files


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A U-Net of width 2, RGB to RGB, with untrained weights."""
    torch.manual_seed(0)
    G = UNet(3, 3, (64, 64), width=2)
    with torch.no_grad():  # running statistics other than those of one image
        G.train()(torch.rand(4, 3, 64, 64) * 2 - 1)
    file = tmp_path_factory.mktemp("model") / "model.safetensors"
    layout = {"size": None, "scale": [1, 1], "x_half": None, "alpha": False}
    header = {
        "run": "none", "generator": {"use": "pix2pix:unet", "params": {"width": 2}}, "in_channels": 3,
        "out_channels": 3, "size": [64, 64], "size_divisor": G.size_divisor, "test_mode": "eval", "file_layout": layout,
    }  # fmt: skip
    save_model(file, G, header)
    return file


@pytest.fixture
def model(model_file):
    return p2pzoo.load(model_file, device="cpu")


def translate(model, source, target, **options):
    tiling = model.resolve_options("eval", 128, 64)[1]
    return [fault for outcome in translate_files(model, {source: target}, "eval", tiling=tiling, **options)
            for fault in outcome.faults]  # fmt: skip


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (400, 330, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["tiled.tif", "strips.tif", "picture.png"])
@pytest.mark.parametrize("suffix", [".tif", ".npy", ".png"])
def test_band_by_band_gives_the_pixels_of_the_plain_way(model, noise, name, suffix, tmp_path, monkeypatch):
    source = tmp_path / name
    if name == "picture.png":
        Image.fromarray(noise).save(source)
    else:
        tifffile.imwrite(source, noise, photometric="rgb", tile=(64, 64) if name == "tiled.tif" else None)
    assert not translate(model, source, tmp_path / f"plain{suffix}")
    monkeypatch.setattr(translate_files_module, "MAX_PIXELS_AHEAD", 0)
    monkeypatch.setattr(model_module, "read_image", lambda _: pytest.fail("read as a whole"))
    assert not translate(model, source, tmp_path / f"bands{suffix}")
    plain, bands = (read_image(tmp_path / f"{way}{suffix}") for way in ("plain", "bands"))
    np.testing.assert_array_equal(bands, plain)
    np.testing.assert_array_equal(bands, model.translate(noise, tile=128, overlap=64))
    if suffix == ".tif":
        assert tifffile.TiffFile(tmp_path / "bands.tif").pages[0].is_tiled


def test_a_half_is_cut_and_another_scale_goes_the_plain_way(model, noise, tmp_path, monkeypatch):
    source = tmp_path / "pair.png"
    Image.fromarray(noise).save(source)
    expected = model.translate(noise[:, 165:], tile=128, overlap=64)
    reduced = model.translate(noise, tile=128, overlap=64, scale=0.5)
    monkeypatch.setattr(translate_files_module, "MAX_PIXELS_AHEAD", 0)
    assert not translate(model, source, tmp_path / "half.tif", half="right")
    np.testing.assert_array_equal(read_image(tmp_path / "half.tif"), expected)
    assert not translate(model, source, tmp_path / "reduced.tif", scaling=Scaling((0.5, 0.5)))
    np.testing.assert_array_equal(read_image(tmp_path / "reduced.tif"), reduced)


def test_an_image_that_the_model_cannot_take_is_skipped_and_leaves_no_file(model, noise, tmp_path, monkeypatch):
    monkeypatch.setattr(translate_files_module, "MAX_PIXELS_AHEAD", 0)
    deep = tmp_path / "deep.tif"
    tifffile.imwrite(deep, noise.astype(np.uint16), photometric="rgb")
    [fault] = translate(model, deep, tmp_path / "out" / "deep.tif")
    assert fault.startswith(f"{deep}: expected (H, W) or (H, W, C) of uint8, not")
    assert not [*(tmp_path / "out").iterdir()]


TRANSLATE = """
import re, sys
from pathlib import Path
from p2pzoo.cli import main
try:
    main(sys.argv[1:])
finally:  # not ru_maxrss, which begins with the memory of the parent
    print("peak", 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "limit"),
    # strips and PNGs of 20,000 px would take minutes again; translated as a whole, 5,000 px take 1.25 GB
    [("tiles.tif", 20_000, 2e9), ("strip.tif", 5000, 1.1e9), ("plain.png", 5000, 1.2e9)],
)
def test_large_images_are_translated_in_bounded_memory(model_file, name, side, limit, tmp_path):
    source, target = tmp_path / name, tmp_path / "out.tif"
    pattern = np.kron(np.random.default_rng(0).integers(0, 256, (8, 8, 3)), np.ones((64, 64, 1))).astype(np.uint8)
    repeats = -(-side // 512)
    if name == "plain.png":
        Image.fromarray(np.tile(pattern, (repeats, repeats, 1))[:side, :side]).save(source, compress_level=1)
    elif name == "tiles.tif":
        options = {"photometric": "rgb", "tile": (512, 512), "compression": "zlib"}
        tiles = itertools.repeat(zlib.compress(pattern), repeats**2)
        tifffile.imwrite(source, tiles, shape=(side, side, 3), dtype="u1", **options)
    else:
        tifffile.imwrite(source, np.tile(pattern, (repeats, repeats, 1))[:side, :side], photometric="rgb")
    command = ["translate", model_file, source, "-o", target, "--test-mode", "eval", "--tile", 512, "--device", "cpu"]
    process = subprocess.run(
        [sys.executable, "-c", TRANSLATE, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert int(process.stdout.split()[-1]) < limit
    with tifffile.TiffFile(target) as tiff:
        assert (tiff.is_bigtiff, tiff.pages[0].is_tiled) == (side == 20_000, True)
        assert tiff.pages[0].shape == (side, side, 3)
