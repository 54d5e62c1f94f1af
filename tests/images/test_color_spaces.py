"""Lightness and colour instead of RGB: the conversion, and that people and metrics see RGB."""

import base64
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from p2pzoo.cli import main
from p2pzoo.images.color_spaces import Encodings, dequantize, join_lab, quantize, split_lab
from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader

pytestmark = pytest.mark.usefixtures("with_reports")

L_RANGE, AB_RANGE = (0.0, 65535.0), (0.0, 65534.0)


def cie_lab(photo):
    """L*, a*, b* of sRGB by IEC 61966-2-1 and CIE 15, white D65; (H, W, 3) float64."""
    srgb = photo.astype(np.float64) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    ratio = linear @ np.array(to_xyz).T / [0.95047, 1.0, 1.08883]
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def some_photo(height=48, width=40):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_lab_matches_the_cie_formulas_at_the_scale_of_the_lua_code():
    photo = some_photo()
    L, ab = split_lab(photo)
    expected = cie_lab(photo)
    assert np.abs(L[..., 0] - (expected[..., 0] / 50 - 1)).max() < 1e-4
    assert np.abs(ab - expected[..., 1:] / 110).max() < 1e-4


def test_lab_of_red_matches_published_tables():
    L, ab = split_lab(np.full((1, 1, 3), (255, 0, 0), np.uint8))
    assert (L.item() + 1) * 50 == pytest.approx(53.24, abs=0.01)
    assert (ab * 110).ravel() == pytest.approx([80.09, 67.20], abs=0.02)


def test_every_colour_survives_a_round_trip_at_16_bits():
    levels = np.r_[0:256:5, 255].astype(np.uint8)
    photo = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, len(levels), 3)
    L, ab = split_lab(photo)
    kept = quantize(L, L_RANGE, np.uint16), quantize(ab, AB_RANGE, np.uint16)
    assert np.array_equal(join_lab(dequantize(kept[0], L_RANGE), dequantize(kept[1], AB_RANGE)), photo)


def test_colourless_pixels_are_stored_exactly():
    assert dequantize(quantize(np.zeros((1, 1, 2), np.float32), AB_RANGE, np.uint16), AB_RANGE).tolist() == [[[0, 0]]]


def test_colours_outside_srgb_are_clipped():
    L, ab = np.zeros((1, 1, 1), np.float32), np.ones((1, 1, 2), np.float32)
    assert join_lab(L, ab).dtype == np.uint8
    [x, y] = Encodings("L", "ab").to_rgb(torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2, 2))
    assert x.shape == y.shape == (1, 3, 2, 2)
    assert y.abs().max() <= 1


def test_x_is_shown_as_grey():
    [x] = Encodings("L", "ab").to_rgb(torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4))
    assert (x.amax(1) - x.amin(1)).max() < 2 / 255
    assert torch.equal(x[:, 0].flatten().sort().values, x[:, 0].flatten())


def test_images_without_encoding_are_not_changed():
    x, y = torch.rand(1, 5, 2, 2), torch.rand(1, 2, 2, 2)
    assert all(a is b for a, b in zip(Encodings.of(object()).to_rgb(x, y), (x, y), strict=True))


@pytest.mark.parametrize("encodings", [("Lab", None), (None, "ab"), ("L", "AB"), ("L", None)])
def test_unknown_encodings_are_refused(encodings):
    with pytest.raises(ValueError, match="L with ab"):
        Encodings.of(SimpleNamespace(x_encoding=encodings[0], y_encoding=encodings[1]))


# --- a model whose x is L and whose y is ab ----------------------------------------------------------------------


class Colourless(nn.Module):
    """ab = 0 everywhere."""

    def forward(self, x):
        return 0 * torch.cat([x, x], dim=1)


def model_of(G):
    header = {
        "run": "0", "generator": {"use": "none", "params": {}}, "in_channels": 1, "out_channels": 2, "size": [16, 16],
        "size_divisor": 4, "test_mode": "eval", "x_dtype": "uint16", "y_dtype": "uint16", "x_encoding": "L",
        "y_encoding": "ab", "x_range": list(L_RANGE), "y_range": list(AB_RANGE),
    }  # fmt: skip
    return Model(G, ModelHeader.parse(header, Path("model.safetensors")), torch.device("cpu"))


@pytest.mark.parametrize(("mode", "tile"), [("paper", None), ("eval", None), ("eval", 16)])
def test_a_photo_keeps_its_lightness(mode, tile):
    photo = some_photo(30, 50)
    grey = model_of(Colourless()).translate(photo, test_mode=mode, tile=tile)
    assert grey.shape == photo.shape
    assert grey.dtype == np.uint8
    assert np.ptp(grey.astype(int), axis=2).max() <= 1
    assert np.abs(cie_lab(grey)[..., 0] - cie_lab(photo)[..., 0]).max() < 0.5, "half a level"


def test_grey_photos_and_pil_images_are_accepted():
    grey = Image.fromarray(some_photo()[..., 0])
    translated = model_of(Colourless()).translate(grey)
    assert translated.mode == "RGB"
    assert np.abs(np.asarray(translated).astype(int) - np.asarray(grey.convert("RGB"))).max() <= 1


def test_tensors_are_passed_to_the_network_unchanged():
    assert model_of(Colourless()).translate(torch.zeros(1, 8, 8)).shape == (2, 8, 8)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), np.uint16), "uint8"),
        (np.zeros((8, 8, 4), np.uint8), "transparent"),
        (np.zeros((8, 8, 5), np.uint8), "RGB was expected"),
    ],
)
def test_arrays_that_are_no_photos_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        model_of(Colourless()).translate(image)


# --- a run ---------------------------------------------------------------------------------------------------------

RECIPE = """
extends = "zoo:tasks/colorize.toml"
[generator]
width = 2
[discriminator]
width = 2
[dataset]
root = "photos"
size = [32, 32]
[metrics.histograms]
use = "lab_histogram"
[train]
images = 4
sample_every = 4
checkpoint_every = 4
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder with photos and a finished run on them."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        (tmp_path / "photos" / split).mkdir(parents=True)
        for number in range(2):
            small = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            small.resize((32, 32)).save(tmp_path / "photos" / split / f"{number}.png")
    (tmp_path / "tiny.toml").write_text(RECIPE)
    result = CliRunner().invoke(main, ["run", "tiny.toml", "--profile", "laptop"])
    assert result.exit_code == 0, result.output
    [folder] = (tmp_path / "runs").glob("*/*")
    return folder


def test_metrics_measure_rgb_images(run, tmp_path):
    """The L1 of a run is that of the PNGs which its model alone makes of the photos."""
    result = CliRunner().invoke(main, ["translate", str(run), "photos/test", "-o", "out"])
    assert result.exit_code == 0, result.output
    apart = []
    for number in range(2):
        y, y_hat = (np.asarray(Image.open(p)) for p in (f"photos/test/{number}.png", f"out/{number}.png"))
        assert y_hat.shape == (32, 32, 3)
        apart.append(np.abs(y.astype(float) - y_hat).mean() * 2 / 255)
    measured = json.loads((run / "results.json").read_text())["metrics"]
    assert measured["l1"]["value"] == pytest.approx(np.mean(apart), abs=1 / 255)


def test_sample_images_of_a_run_are_in_colour(run):
    for name, photo in (("test", "test/0"), ("images-00000004", "val/0")):
        picture = np.asarray(Image.open(run / "samples" / f"{name}.png").convert("RGB"))[:256].astype(int)
        x, y = picture[:, :256], picture[:, 520:776]
        assert np.ptp(x, axis=2).max() <= 1
        assert np.abs(y[4::8, 4::8] - np.asarray(Image.open(f"photos/{photo}.png"))).max() <= 1


def pictures(page):
    """Those that an HTML page holds, (H, W, 3)."""
    found = re.findall(r"data:image/\w+;base64,([A-Za-z0-9+/=]+)", page.read_text())
    opened = (Image.open(io.BytesIO(base64.b64decode(each))) for each in found)
    return [np.asarray(picture.convert("RGB")).astype(int) for picture in opened]


def test_pages_show_images_in_colour(run):
    """The report's best and worst, and the doctor's suspicious pairs."""
    photo = np.asarray(Image.open("photos/test/0.png")).astype(int)
    shown = [each for each in pictures(run / "report.html") if each.shape == photo.shape]
    assert min(np.abs(each - photo).mean() for each in shown) < 12, "up to what lossy WebP loses"
    Image.open("photos/test/0.png").save("photos/train/leaked.png")
    result = CliRunner().invoke(main, ["data", "check", "tiny.toml", "--profile", "laptop", "-o", "faults.html"])
    assert result.exit_code == 2, result.output
    shown = pictures(Path("faults.html"))
    assert any(np.ptp(each, axis=2).max() > 50 for each in shown)
    assert any(np.ptp(each, axis=2).max() <= 1 for each in shown)


def test_a_study_shows_images_in_colour(run, tmp_path):
    for number in range(2, 50):
        shutil.copy("photos/test/0.png", f"photos/test/{number}.png")
    result = CliRunner().invoke(main, ["study", str(run), "-o", "study"])
    assert result.exit_code == 0, result.output
    shown = [np.asarray(Image.open(file).convert("RGB")).astype(int) for file in Path("study/images").glob("*.png")]
    assert sum(np.ptp(picture, axis=2).max() > 50 for picture in shown) >= 2, "two different photos"


def test_a_preview_shows_grey_and_colour(run, tmp_path):
    arguments = ["data", "preview", "tiny.toml", "--profile", "laptop", "--split", "val", "-o", "pairs.png"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    picture = np.asarray(Image.open("pairs.png")).astype(int)
    assert np.ptp(picture[:256, :256], axis=2).max() <= 1
    assert np.abs(picture[4:256:8, 264::8] - np.asarray(Image.open("photos/val/0.png"))).max() <= 1
