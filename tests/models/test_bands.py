"""A band of an image is not opacity: it is not blended with a background, and none is invented."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.io import write_image
from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader
from p2pzoo.models.tiling import Tiling
from p2pzoo.models.translate_files import translate_files
from p2pzoo.plugin import FileLayout
from p2pzoo.runs.folder_pairs import FolderPairs
from p2pzoo.utils.errors import UserError

WHITE = (255, 255, 255)
SAME_SIDE = {"size_divisor": 1, "test_mode": "eval", "run": "r"}


class FirstChannel(nn.Module):
    def forward(self, x):
        return x[:, :1]


def model_of(channels, dtype="uint16", out=1, background=None, alpha=False, **header):
    full = float(np.iinfo(dtype).max)
    G = FirstChannel() if out == 1 else nn.Identity()
    ranges = {"x_dtype": dtype, "y_dtype": dtype, "x_range": (0, full), "y_range": (0, full)}
    layout = FileLayout(background=background, alpha=alpha)
    values = {**SAME_SIDE, **ranges, "file_layout": layout, **header}
    return Model(G, ModelHeader("generator", "mine", {}, channels, out, (16, 16), **values), torch.device("cpu"))


def image_of(channels, dtype="uint16", last=3000):
    image = np.full((16, 16, channels), 1000 if dtype == "uint16" else 100, dtype)
    image[..., -1] = last if dtype == "uint16" else last // 20
    return image


@pytest.mark.parametrize(("needed", "given"), [(2, 1), (2, 3), (2, 4), (4, 1), (4, 2), (4, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_model_of_bands_takes_its_number_of_them_only(needed, given, dtype):
    model = model_of(needed, dtype)
    channel = "1 channel" if given == 1 else f"{given} channels"
    with pytest.raises(ValueError, match=f"it has {channel}, and {needed} were expected"):
        model.translate(np.full((16, 16, given), 7, dtype))
    assert model.translate(image_of(needed, dtype)).shape == (16, 16, 1)


def test_so_does_its_file_command(tmp_path):
    targets = {}
    for bands in (2, 1):
        write_image(tmp_path / f"{bands}.tif", image_of(bands))
        targets[tmp_path / f"{bands}.tif"] = tmp_path / "out" / f"{bands}.npy"
    good, bad = translate_files(model_of(2), targets, "eval")
    assert not good.faults
    assert bad.faults == (
        f"{bad.source}: it has 1 channel, and 2 were expected: give images with the bands of the training images",
    )


def test_grey_becomes_rgb_and_a_model_of_opacity_gets_it():
    assert model_of(3).prepare_input(image_of(1)).x.shape == (16, 16, 3)
    opaque = model_of(4, alpha=True).prepare_input(image_of(3)).x
    assert (opaque[..., 3] == 65535).all()


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_band_in_a_file_is_not_blended_with_the_background(suffix, dtype, tmp_path):
    file = tmp_path / f"bands{suffix}"
    write_image(file, image_of(4, dtype))
    model = model_of(3, dtype, background=WHITE)
    [outcome] = translate_files(model, {file: tmp_path / "out.npy"}, "eval")
    message = "it has 4 channels, none of which is opacity, and 3 were expected: give images with the bands of"
    assert len(outcome.faults) == 1
    assert f"{file}: {message}" in outcome.faults[0]
    with pytest.raises(ValueError, match=message):
        model.translate(file)


@pytest.mark.parametrize("given", ["path", "files", "picture", "array"])
def test_opacity_that_a_file_has_is_blended(given, tmp_path):
    file = tmp_path / "photo.png"
    Image.fromarray(image_of(4, "uint8", last=0)).save(file)
    model = model_of(3, "uint8", background=WHITE)
    if given == "files":
        [outcome] = translate_files(model, {file: tmp_path / "out.npy"}, "eval")
        assert not outcome.faults
        y_hat = np.load(tmp_path / "out.npy")
    else:
        images = {"path": file, "picture": Image.open(file), "array": np.asarray(Image.open(file))}
        y_hat = np.asarray(model.translate(images[given]))
    assert (y_hat == 255).all()


def test_a_lab_model_does_not_blend_bands_either(tmp_path):
    file = tmp_path / "bands.tif"
    write_image(file, image_of(4, "uint8"))
    model = model_of(1, "uint8", out=2, background=WHITE, encodings=Encodings("L", "ab"))
    with pytest.raises(ValueError, match="it has 4 channels, none of which is opacity, and 3 were expected"):
        model.translate(file)


def test_a_large_file_that_is_read_by_rows_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.setattr("p2pzoo.models.translate_files.MAX_PIXELS_AHEAD", 100)
    translate_tiled = functools.partial(
        translate_files, model_of(3, "uint8", background=WHITE), mode="eval", tiling=Tiling.of(8, None, 1)
    )
    bands, photo = tmp_path / "bands.tif", tmp_path / "photo.png"
    write_image(bands, image_of(4, "uint8"))
    Image.fromarray(image_of(4, "uint8", last=0)).save(photo)
    [refused, blended] = translate_tiled(targets={bands: tmp_path / "a.npy", photo: tmp_path / "b.npy"})
    assert "it has 4 channels, none of which is opacity" in refused.faults[0]
    assert not blended.faults
    assert (np.load(tmp_path / "b.npy") == 255).all()


class TestFolders:
    def pairs_of(self, model, folder, x, y, suffix=".tif"):
        for name, image in (("inputs", x), ("targets", y)):
            (folder / name).mkdir()
            write_image(folder / name / f"a{suffix}", image)
        return list(FolderPairs(model, folder / "inputs", folder / "targets"))

    @pytest.mark.parametrize("channels", [1, 3])
    def test_targets_get_no_band_that_they_lack(self, channels, tmp_path):
        with pytest.raises(
            UserError, match=rf"a\.tif: it has {channels} channels?, and 4 were expected.* .the model gives 4 channels"
        ):
            self.pairs_of(model_of(4, out=4), tmp_path, image_of(4), image_of(channels))

    def test_bands_of_inputs_and_targets_are_not_blended(self, tmp_path):
        model = model_of(3, out=3, background=WHITE)
        for number, (x, y) in enumerate([(4, 3), (3, 4)]):
            (tmp_path / str(number)).mkdir()
            with pytest.raises(UserError, match=r"a\.tif: it has 4 channels, none of which is opacity"):
                self.pairs_of(model, tmp_path / str(number), image_of(x), image_of(y))

    def test_targets_with_opacity_become_those_of_the_model(self, tmp_path):
        model = model_of(3, "uint8", out=3, background=WHITE)
        [pair] = self.pairs_of(model, tmp_path, image_of(3, "uint8"), image_of(4, "uint8", last=0), ".png")
        assert (pair.pair.y == 255).all()

    def test_targets_of_a_model_with_opacity_are_opaque_where_one_of_them_has_it(self, tmp_path):
        for name, channels in (("a", 4), ("b", 3)):
            for folder, image in (("inputs", image_of(4, "uint8")), ("targets", image_of(channels, "uint8"))):
                (tmp_path / folder).mkdir(exist_ok=True)
                write_image(tmp_path / folder / f"{name}.png", image)
        pairs = FolderPairs(model_of(4, "uint8", out=4, alpha=True), tmp_path / "inputs", tmp_path / "targets")
        assert [int(pair.pair.y[0, 0, 3]) for pair in pairs] == [150, 255]
