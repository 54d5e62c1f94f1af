"""A model sees images at the scale of its training images, and says so; layout and scale come from the dataset."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import p2pzoo
from p2pzoo.images.io import write_png
from p2pzoo.images.resize import resize_to
from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader
from p2pzoo.models.safetensors_io import load_tensors, save_model
from p2pzoo.models.scaling import Scaling
from p2pzoo.plugin import FileLayout
from p2pzoo.plugin.loader import registry
from p2pzoo.utils import memory
from p2pzoo.utils.errors import DamagedFile

FEW = ("train.images=2", "generator.width=2", "discriminator.width=2", "generator.noise=none")


def smooth(height, width, seed=0):
    """A smooth (height, width, 3) picture with details of a few pixels."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def write_pairs(folder, sizes):
    for split in ("train", "val", "test"):
        (folder / split).mkdir(parents=True)
        for number, (height, width) in enumerate(sizes):
            write_png(folder / split / f"{number}.png", smooth(height, 2 * width, number))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs A|B of 512×512 px."""
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, [(512, 512)] * 2)
    return folder


@pytest.fixture(scope="module")
def trained(run, pairs, tmp_path_factory):
    """A run on these pairs at size = [64, 64], resize = "crop", with x on the left."""
    runs = tmp_path_factory.mktemp("runs")
    data = f'dataset={{use="side-by-side", root="{pairs}", size=[64, 64], resize="crop"}}'
    result = run(runs, data, *FEW)
    assert result.exit_code == 0, result.output
    return next(runs.glob("*/*"))


@pytest.fixture(scope="module")
def model(trained):
    return p2pzoo.load(trained, device="cpu")


@pytest.fixture
def old_file(trained, tmp_path):
    """The model as a version that stored no layout wrote it."""
    tensors, header = load_tensors(trained / "model.safetensors")
    file = tmp_path / "old.safetensors"
    del header["file_layout"]
    network = nn.Module()
    network.state_dict = lambda *_, **__: tensors
    save_model(file, network, header)
    return file


def make_model(G=None, layout=None, **changes):
    """A model in eval mode, of a network G on 1 or 3 channels."""
    header = {
        "run": "r-1", "generator": {"use": "none", "params": {}}, "in_channels": 3, "out_channels": 3, "size": [8, 8],
        "size_divisor": 1, "test_mode": "eval", **changes,
    }  # fmt: skip
    if layout:
        header["file_layout"] = {"size": None, "scale": [1, 1], "x_half": None, "alpha": False, **layout}
    return Model(G or nn.Identity(), ModelHeader.parse(header, Path("model.safetensors")), torch.device("cpu"))


class TestOfATrainedModel:
    @pytest.mark.parametrize("side", [512, 1024])
    def test_an_image_is_reduced_as_in_training_translated_and_enlarged(self, side, model):
        photo = smooth(side, side, 7)
        reduced = resize_to(photo, (side // 8, side // 8), "crop")
        expected = resize_to(model.translate(reduced, scale="native"), (side, side), "stretch")
        assert np.array_equal(model.translate(photo), expected)
        assert np.array_equal(np.asarray(model.translate(Image.fromarray(photo))), expected)
        assert not np.array_equal(model.translate(photo, scale="native"), expected)

    def test_the_command_does_the_same_says_so_and_stores_it(self, trained, model, run_cli, tmp_path):
        photo = smooth(512, 400, 7)
        write_png(tmp_path / "photo.png", photo)
        result = run_cli("translate", trained, tmp_path / "photo.png", "-o", tmp_path / "out", "--device", "cpu")
        assert result.exit_code == 0, result.output
        assert "sees images at 0.125 of their size, as in its training (most were 512×512 px)" in result.output
        written = Image.open(tmp_path / "out" / "photo.png")
        assert np.array_equal(np.asarray(written), model.translate(photo))
        assert json.loads(written.text["p2pzoo"])["scale"] == [0.125, 0.125]

    @pytest.mark.parametrize(
        ("options", "chosen", "stored"),
        [
            (("--scale", "native"), {"scale": "native"}, {}),
            (("--scale", "0.25"), {"scale": 0.25}, {"scale": [0.25, 0.25]}),
            (("--size", "32", "48"), {"size": (32, 48)}, {"size": [32, 48]}),
        ],
    )
    def test_another_scale_or_size_can_be_chosen(self, options, chosen, stored, trained, model, run_cli, tmp_path):
        photo = smooth(96, 128, 3)
        write_png(tmp_path / "photo.png", photo)
        command = ("translate", trained, tmp_path / "photo.png", "-o", tmp_path / "out.png", "--device", "cpu")
        result = run_cli(*command, *options)
        assert result.exit_code == 0, result.output
        written = Image.open(tmp_path / "out.png")
        assert np.array_equal(np.asarray(written), model.translate(photo, **chosen))
        text = json.loads(written.text["p2pzoo"])
        assert {key: text[key] for key in ("scale", "size") if key in text} == stored

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            *((("--scale", scale), "scale is ") for scale in ("0", "half", "nan", "65", "1e200")),
            (("--scale", "0.5", "--size", "8", "8"), "scale"),
            (("--size", "8", "9" * 400), "a size is a height and a width of 1 to 1,000,000 px"),
        ],
    )
    def test_an_impossible_scale_is_refused(self, options, message, trained, run_cli, tmp_path):
        write_png(tmp_path / "photo.png", smooth(64, 64))
        result = run_cli("translate", trained, tmp_path / "photo.png", "-o", tmp_path / "out.png", *options)
        assert result.exit_code == 2
        assert message in result.output.splitlines()[-1]
        assert not (tmp_path / "out.png").exists()

    @pytest.mark.parametrize("options", [("--scale", "64"), ("--size", "4096", "4096")])
    def test_an_enlarged_image_that_the_memory_cannot_hold_is_refused(
        self, options, trained, run_cli, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(memory, "available_bytes", lambda: 400_000_000)
        file = tmp_path / "photo.png"
        write_png(file, smooth(64, 64))
        result = run_cli("translate", trained, file, "-o", tmp_path / "out.png", *options)
        assert result.exit_code == 2
        pixels, memory_needed = "G sees its 64 × 64 px at 4,096 × 4,096, which", "need 0.4 GB of memory"
        advice = "choose a smaller --scale or --size"
        assert result.output.splitlines()[-1] == f"{file}: {pixels} {memory_needed}, and 0.4 GB is free: {advice}"

    def test_a_tile_is_a_part_of_the_reduced_image(self, trained, run_cli, tmp_path):
        write_png(tmp_path / "photo.png", smooth(512, 1024, 5))
        command = ("translate", trained, tmp_path / "photo.png", "-o", tmp_path / "out.png", "--test-mode", "eval")
        assert run_cli(*command, "--tile", "64").exit_code == 0
        assert Image.open(tmp_path / "out.png").size == (1024, 512)

    def test_a_pair_is_recognised_and_its_half_translated(self, trained, model, pairs, run_cli, tmp_path):
        pair = pairs / "test" / "0.png"
        command = ("translate", trained, pair, pairs / "test" / "1.png", "-o", tmp_path, "--device", "cpu", "--force")
        result = run_cli(*command)
        [warning] = [line for line in result.output.splitlines() if line.startswith("warning")]
        assert "0.png: twice as wide as the training images: if it is a pair A|B, give --side left" in warning
        result = run_cli(*command, "--side", "left")
        assert (result.exit_code, "warning" in result.output) == (0, False)
        half = np.asarray(Image.open(pair))[:, :512]
        assert np.array_equal(np.asarray(Image.open(tmp_path / "0.png")), model.translate(half))

    def test_an_old_file_is_used_at_native_scale_with_one_warning(self, old_file, model, run_cli, tmp_path):
        photo = smooth(512, 512, 7)
        for name in "abc":
            write_png(tmp_path / f"{name}.png", photo)
        command = ("translate", old_file, *(tmp_path / f"{name}.png" for name in "abc"), "-o", tmp_path / "out")
        result = run_cli(*command, "--device", "cpu")
        assert result.exit_code == 0, result.output
        assert result.output.count("warning: the model file does not say how its training images") == 1
        expected = model.translate(photo, scale="native")
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "b.png")), expected)
        assert "warning" not in run_cli(*command, "--device", "cpu", "--force", "--scale", "native").output
        with pytest.warns(UserWarning, match="does not say how its training images"):
            assert np.array_equal(p2pzoo.load(old_file, device="cpu").translate(photo), expected)


class TestEveryKindOfImage:
    def test_label_maps_take_the_nearest_pixel(self):
        classes = [{"name": n, "colour": [c] * 3, "value": c} for n, c in (("a", 0), ("b", 100), ("c", 200))]
        labels = {"classes": classes, "ignore": [], "encoding": "one-hot"}
        sides = {"in_channels": 3, "out_channels": 3, "x_range": [0, 1], "y_range": [0, 1],
                 "x_encoding": "one-hot", "y_encoding": "one-hot", "x_labels": labels, "y_labels": labels}  # fmt: skip
        model = make_model(layout={"scale": [0.5, 0.5]}, **sides)
        image = np.repeat(np.array([[0, 100, 200, 100]], np.uint8), 2, axis=0).repeat(2, axis=1)[..., None]
        assert model.prepare_input(image).x.argmax(-1).tolist() == [[0, 1, 2, 1]]
        assert np.array_equal(model.translate(image), image), "no value is mixed"

    def test_the_colours_of_a_photo_are_joined_with_its_own_lightness(self):
        from p2pzoo.images.color_spaces import dequantize, split_lab

        ranges = {"x_range": [0, 65535], "y_range": [0, 65534], "x_dtype": "uint16", "y_dtype": "uint16"}
        encodings = {"x_encoding": "L", "y_encoding": "ab"}
        G = nn.Conv2d(1, 2, 1)
        nn.init.zeros_(G.weight)
        nn.init.zeros_(G.bias)
        model = make_model(G, {"scale": [0.25, 0.25]}, in_channels=1, out_channels=2, **ranges, **encodings)
        photo = smooth(64, 64, 1)
        grey = model.translate(photo)
        assert grey.shape == photo.shape
        sharp = split_lab(photo)[0]
        assert np.abs(split_lab(grey)[0] - sharp).max() < 0.02, "as sharp as the photo"
        assert dequantize(model.prepare_input(photo).x, (0, 65535)).shape == (16, 16, 1)

    def test_bands_are_resized_one_by_one_and_opacity_weights_colours(self):
        image = np.zeros((8, 8, 4), np.uint8)
        image[:4] = 200
        image[4:, :, 0] = 100  # red where the fourth channel is 0
        options = {"in_channels": 4, "out_channels": 4}
        bands, opacity = (
            make_model(layout={"scale": [0.25, 0.25], "alpha": alpha}, **options).prepare_input(image).x
            for alpha in (False, True)
        )
        assert bands[0, 0, 0] != opacity[0, 0, 0]
        assert np.array_equal(bands, resize_to(image, (2, 2), "stretch", bands=True))
        assert np.array_equal(opacity, resize_to(image, (2, 2), "stretch"))

    def test_floats_stay_in_their_range(self):
        ranges = {"x_range": [0, 1], "y_range": [0, 1], "x_dtype": "float32", "y_dtype": "float32"}
        model = make_model(layout={"scale": [0.5, 0.5]}, **ranges)
        image = np.random.default_rng(0).integers(0, 2, (16, 16, 3)).astype(np.float32)
        translated = model.translate(image)
        assert translated.shape == image.shape
        assert (translated.min() >= 0, translated.max() <= 1) == (True, True)

    def test_each_side_has_its_factor(self):
        model = make_model(layout={"scale": [0.5, 0.25]})
        assert model.prepare_input(np.zeros((10, 20, 3), np.uint8)).x.shape == (5, 5, 3)
        assert model.translate(np.zeros((10, 20, 3), np.uint8)).shape == (10, 20, 3)

    def test_a_tensor_is_what_g_gets(self):
        model = make_model(layout={"scale": [0.5, 0.5]})
        x = torch.rand(3, 8, 8) * 2 - 1
        assert torch.equal(model.translate(x), x)
        with pytest.raises(ValueError, match="a tensor is translated as it is"):
            model.translate(x, scale=0.5)

    def test_samples_have_the_size_of_the_image(self):
        model = make_model(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout()), {"scale": [0.5, 0.5]}, test_mode="paper")
        samples = model.samples(smooth(16, 24), 3)
        assert {sample.shape for sample in samples} == {(16, 24, 3)}
        assert (samples.mean.shape, samples.spread.shape) == ((16, 24, 3), (16, 24))
        assert samples.spread.min() >= 0

    def test_an_image_of_one_pixel_keeps_it(self):
        model = make_model(layout={"scale": [0.01, 0.01]})
        assert model.translate(np.zeros((3, 5, 3), np.uint8)).shape == (3, 5, 3)


class TestHeader:
    @pytest.mark.parametrize(
        "layout",
        [
            {"scale": [0, 1]}, {"scale": [1e9, 1]}, {"scale": [float("nan"), 1]}, {"scale": [1]}, {"scale": "half"},
            {"x_half": "top"}, {"size": [0, 4]}, {"alpha": 1}, {"scale": None},
        ],
    )  # fmt: skip
    def test_a_damaged_layout_is_refused(self, layout):
        with pytest.raises(DamagedFile, match="its header is damaged: file_layout"):
            make_model(layout=layout)

    def test_without_a_layout_it_is_unknown(self):
        assert make_model().file_layout is None
        assert make_model(layout={"scale": [0.5, 0.5]}).file_layout == FileLayout(scale=(0.5, 0.5))


def test_scalings_are_described_in_words():
    assert str(Scaling((0.125, 0.125))) == "at 0.125 of their size"
    assert str(Scaling((0.5, 0.25))) == "at 0.5 of their height and 0.25 of their width"
    assert str(Scaling(size=(32, 48))) == "at 32×48 px"


# --- the layout that a dataset gives ---


def layout_of(use, **parameters):
    dataset = registry().get("dataset", use).load()("train", **parameters)
    return dataset.file_layout


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("crop", FileLayout((100, 200), (0.32, 0.32), "left")),
        ("fit", FileLayout((100, 200), (0.16, 0.16), "left")),
        ("stretch", FileLayout((100, 200), (0.32, 0.16), "left")),
    ],
)
def test_the_scale_is_the_median_over_the_files(how, expected, tmp_path):
    write_pairs(tmp_path, [(96, 192), (100, 200), (104, 208)])
    assert layout_of("side-by-side", root=tmp_path, size=[32, 32], resize=how) == expected
    swapped = layout_of("side-by-side", root=tmp_path, size=[32, 32], resize=how, direction="BtoA")
    assert swapped.x_half == "right"


def test_files_that_are_not_resized_have_scale_one(tmp_path):
    write_pairs(tmp_path, [(32, 32), (32, 32)])
    assert layout_of("side-by-side", root=tmp_path) == FileLayout((32, 32), (1.0, 1.0), "left")


def test_photos_and_folders_give_their_scale(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(12):
            write_png(tmp_path / folder / f"{number}.png", smooth(64, 128, number))
    assert layout_of("colorize", root=tmp_path / "a", size=[32, 32]) == FileLayout((64, 128), (0.5, 0.5))
    folders = {"inputs": tmp_path / "a", "targets": tmp_path / "b", "size": [32, 32], "resize": "stretch"}
    assert layout_of("folders", **folders) == FileLayout((64, 128), (0.5, 0.25))
