"""Formats keep positions and bit depths through resizing and models, and errors name a missing package."""

import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from p2pzoo_datasets.folders import Folders
from PIL import Image

from p2pzoo.cli import main
from p2pzoo.images.io import read_image, write_image
from p2pzoo.models.load import load_model
from p2pzoo.utils.errors import UserError

FORMATS = [(".png", "uint8"), (".png", "uint16"), (".tif", "uint16"), (".tif", "float32"), (".npy", "float32")]


def coordinates(height, width, axis, dtype):
    """(height, width, 1): how far down (axis 0) or across (1) a pixel's centre lies, of 0 to 1."""
    side = (height, width)[axis]
    line = (np.arange(side) + 0.5) / side
    image = np.broadcast_to(line[:, None] if axis == 0 else line, (height, width))[..., None]
    return (image if dtype == "float32" else np.rint(image * np.iinfo(dtype).max)).astype(dtype)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.sampled_from(FORMATS),
    st.sampled_from(["stretch", "fit", "crop"]),
    st.tuples(st.integers(2, 5), st.integers(2, 5)),
    st.tuples(st.integers(5, 9), st.integers(5, 9)),
    st.tuples(st.integers(16, 50), st.integers(16, 50)),
    st.sampled_from([0, 1]),
)
def test_x_and_y_stay_aligned_in_every_format_and_size(
    tmp_path_factory, of_x, of_y, resize, proportions, times, size, axis
):
    folder = tmp_path_factory.mktemp("pairs")
    for (suffix, dtype), name, scale in ((of_x, "x", times[0]), (of_y, "y", times[1])):
        for split in ("train", "val"):
            (folder / name / split).mkdir(parents=True)
            sides = (4 * proportions[0] * scale, 4 * proportions[1] * scale)
            write_image(folder / name / split / f"a{suffix}", coordinates(*sides, axis, dtype))
    ranges = [(0.0, 1.0) if dtype == "float32" else None for _, dtype in (of_x, of_y)]
    data = Folders(
        "train", inputs=folder / "x", targets=folder / "y", size=size, resize=resize, input_range=ranges[0],
        target_range=ranges[1],
    )  # fmt: skip
    x, y = data[0].x / data.x_range[1], data[0].y / data.y_range[1]
    assert x.shape == y.shape == (*size, 1)
    assert np.abs(x - y)[2:-2, 2:-2].max() < 1 / size[axis] + 0.01, "aside by more than a pixel"


def model_of(tmp_path, monkeypatch, dtype, scale):
    """A run on images of one channel of that type, with its ranges; the path of its model."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        for folder in ("a", "b"):
            image = (np.random.default_rng(ord(folder)).random((32, 32, 1)) * scale).astype(dtype)
            (tmp_path / folder / split).mkdir(parents=True)
            write_image(tmp_path / folder / split / "0.tif", image)
    (tmp_path / "mine.toml").write_text(
        'extends = "zoo:base.toml"\ndrop = ["metrics.ssim"]\n[generator]\nwidth = 2\n[discriminator]\nwidth = 2\n'
        f'[dataset]\nuse = "folders"\ninputs = "a"\ntargets = "b"\ninput_range = [0, {scale}]\ntarget_range = '
        f'[0, {scale}]\n[train]\nimages = 1\n[compute]\ndevice = "cpu"\nthreads = 1\n'
    )
    called("run", "mine.toml", "--json")
    return next(tmp_path.glob("runs/**/model.safetensors"))


def called(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def expected(path, image, scale):
    """ŷ as it is stored, by way of the tensor."""
    x = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1) / scale * 2 - 1
    y = load_model(path).translate(x, test_mode="eval")
    return ((y + 1) / 2 * scale).permute(1, 2, 0).numpy()


def test_floats_are_written_as_floats_and_as_npy_on_request(tmp_path, monkeypatch):
    path = model_of(tmp_path, monkeypatch, "float32", 2)
    wanted = expected(path, read_image(tmp_path / "a/val/0.tif"), 2)
    for options, name in (((), "0.tif"), (("--format", "npy", "--force"), "0.npy")):
        called("translate", path, "a/val", "-o", "out", "--test-mode", "eval", *options)
        written = read_image(tmp_path / "out" / name)
        assert written.dtype == np.float32
        np.testing.assert_allclose(written, wanted, atol=1e-5)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_16_bits_are_not_written_as_a_lossy_file(suffix, tmp_path, monkeypatch):
    path = model_of(tmp_path, monkeypatch, "uint16", 65535)
    result = CliRunner().invoke(main, ["translate", str(path), "a/val", "-o", "out", "--format", suffix])
    assert result.exit_code == 2
    problem = f"this model gives 1 channel of uint16, which .{suffix} cannot hold: use --format tif or npy"
    assert result.output == f"out: {problem}\n"


def test_16_bits_survive_tiles_and_pil(tmp_path, monkeypatch):
    path = model_of(tmp_path, monkeypatch, "uint16", 65535)
    image = np.random.default_rng(1).integers(0, 65536, (32, 64, 1), dtype=np.uint16)
    model = load_model(path)
    whole = model.translate(image, test_mode="eval")
    np.testing.assert_allclose(whole, expected(path, image, 65535), atol=2)
    by_pil = model.translate(Image.fromarray(image[..., 0]), test_mode="eval")
    np.testing.assert_array_equal(np.asarray(by_pil), whole[..., 0])

    tiled = model.translate(image, test_mode="eval", tile=32, overlap=0)
    assert tiled.dtype == np.uint16
    halves = [model.translate(image[:, at : at + 32], test_mode="eval") for at in (0, 32)]
    np.testing.assert_allclose(tiled.astype(int), np.concatenate(halves, axis=1).astype(int), atol=2)


def test_without_tifffile_the_error_names_the_extra(tmp_path, monkeypatch):
    write_image(tmp_path / "a.tif", np.zeros((4, 4, 5), np.uint16))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for attempt in (
        lambda: read_image(tmp_path / "a.tif"),
        lambda: write_image(tmp_path / "b.tif", np.zeros((4, 4, 5), np.uint16)),
    ):
        with pytest.raises(UserError, match=r"needs tifffile: pip install 'p2pzoo\[tiff\]'"):
            attempt()
