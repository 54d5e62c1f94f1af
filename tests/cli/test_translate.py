"""`p2pzoo translate` and `p2pzoo.load`: every type of image, and the errors."""

import functools
import json
import shutil
import warnings
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import p2pzoo
from p2pzoo.cli import main
from p2pzoo.images.io import read_image
from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader
from p2pzoo.models.padding import pad_by_reflection
from p2pzoo.utils.errors import UserError


@pytest.fixture(scope="module")
def run_cli():
    """run_cli(*arguments) -> click's result."""
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(run_cli, arguments, tmp_path_factory):
    """The folder of a trained run: RGB to RGB."""
    runs = tmp_path_factory.mktemp("runs")
    result = run_cli(*arguments(runs, "train.images=4"))
    assert result.exit_code == 0, result.output
    [folder] = runs.glob("*/*")
    return folder


@pytest.fixture(scope="module")
def model(run):
    return p2pzoo.load(run)


@pytest.fixture
def photo():
    """A smooth picture of odd size, (45, 70, 3) uint8."""
    rows, columns = np.mgrid[:45, :70]
    return np.stack([rows * 5, columns * 3, rows + columns], axis=-1).astype(np.uint8)


def test_a_translation_has_the_type_and_size_of_its_input(model, photo):
    array = model.translate(photo)
    assert (array.shape, array.dtype) == (photo.shape, np.uint8)
    picture = model.translate(Image.fromarray(photo))
    assert isinstance(picture, Image.Image)
    assert np.array_equal(np.asarray(picture), array)
    tensor = torch.from_numpy(photo).permute(2, 0, 1).float() / 127.5 - 1
    translated = model.translate(tensor)
    assert (translated.shape, translated.dtype) == (tensor.shape, torch.float32)
    quantized = ((translated + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.abs(quantized.astype(int) - array).max() <= 1, "the same dropout: only rounding differs"
    assert model.translate(torch.stack([tensor, tensor])).shape == (2, 3, 45, 70)


def test_arrays_can_be_read_only_and_have_negative_strides(model, photo):
    mirrored = photo[:, ::-1]
    mirrored.flags.writeable = False
    assert np.array_equal(model.translate(mirrored), model.translate(mirrored.copy()))
    assert model.prepare_input(mirrored).x.flags.writeable, "torch warns of read-only arrays"


@pytest.mark.parametrize("mode", ["paper", "eval"])
def test_an_image_gives_the_same_pixels_alone_and_in_a_batch(model, photo, mode):
    def tensor(array):
        return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 127.5 - 1

    images = torch.stack([tensor(photo), tensor(photo[::-1]), tensor(photo[:, ::-1])])
    together = model.translate(images, test_mode=mode)
    alone = torch.stack([model.translate(image, test_mode=mode) for image in images])
    if mode == "paper":
        assert torch.equal(together, alone)
    assert ((together - alone).abs().max() * 127.5) <= 1


def test_modes_and_seeds_differ_and_the_default_mode_is_the_models(model, photo):
    paper, evaluated = (model.translate(photo, test_mode=mode) for mode in ("paper", "eval"))
    assert not np.array_equal(paper, evaluated)
    assert np.array_equal(model.translate(photo), paper)
    assert not np.array_equal(model.translate(photo, seed=1), paper)
    assert np.array_equal(model.translate(photo, seed=1), model.translate(photo, seed=1))


def test_a_size_that_fits_is_not_padded_and_others_are_padded_by_reflection():
    ramp = torch.arange(6.0).reshape(1, 1, 1, 6).expand(1, 1, 2, 6)
    assert torch.equal(pad_by_reflection(ramp, 2), ramp)
    assert pad_by_reflection(ramp, 4).shape == (1, 1, 4, 8)
    assert pad_by_reflection(ramp, 4)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 4, 3]
    assert pad_by_reflection(torch.tensor([[[[1.0, 2.0, 3.0]]]]), 8)[0, 0, 0].tolist() == [1, 2, 3, 2, 1, 2, 3, 2]
    assert pad_by_reflection(torch.ones(1, 1, 1, 1), 4).shape == (1, 1, 4, 4)


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (64, 64), (129, 65)])
def test_any_size_is_translated(model, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert model.translate(image).shape == (*size, 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), r"expected \(H, W\) or \(H, W, C\) of uint8, not \(8, 8, 3\) of float32"),
        (np.zeros((8, 8, 5), np.uint8), "it is an image of 5 channels, and RGB was expected"),
        (torch.zeros(1, 8, 8), r"with C = 3, not \(1, 8, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "of floats with C = 3"),
        (torch.full((3, 8, 8), 255.0), r"expected values in \[-1, 1\], not 255 to 255"),
        (torch.zeros(3, 0, 8), "an image without pixels"),
        (None, "not a NoneType"),
    ],
)
def test_an_input_that_a_model_cannot_take_is_an_error_that_says_what_it_takes(model, image, message):
    with pytest.raises(ValueError, match=message):
        model.translate(image)
    with pytest.raises(ValueError, match="test_mode must be one of paper, eval, not 'train'"):
        model.translate(np.zeros((8, 8, 3), np.uint8), test_mode="train")


def test_a_path_is_translated_to_a_picture(model, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    for path in (tmp_path / "photo.png", str(tmp_path / "photo.png")):
        picture = model.translate(path, seed=2)
        assert isinstance(picture, Image.Image)
        assert np.array_equal(np.asarray(picture), model.translate(photo, seed=2))
    with pytest.raises(UserError, match=r"absent\.png: no such file"):
        model.translate(tmp_path / "absent.png")


def test_two_runs_before_the_images_are_named_and_a_folder_of_one_run_is_that_run(run_cli, run, photo, tmp_path):
    source = save(photo, tmp_path / "a.png")
    other = shutil.copytree(run, tmp_path / "other")
    result = run_cli("translate", run, other, source, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr == f"{other}: is a run, not images, and the model is {run}: give one model, then images\n"
    assert run_cli("translate", run.parent.parent, source, "-o", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "a.png").is_file()


def test_models_are_loaded_from_a_run_or_a_file_and_damage_is_reported(run, model, tmp_path):
    assert p2pzoo.load(run / "model.safetensors").run == model.run
    assert "pix2pix:unet" in repr(model)
    with pytest.raises(UserError, match="not a run folder"):
        p2pzoo.load(tmp_path)
    with pytest.raises(UserError, match=r"absent.safetensors: no such model"):
        p2pzoo.load(tmp_path / "absent.safetensors")
    whole = (run / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "altered.safetensors").write_bytes(whole[:-9] + b"\x01" + whole[-8:])
    with pytest.raises(UserError, match=r"cut.safetensors: not a complete p2pzoo file"):
        p2pzoo.load(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match=r"altered.safetensors: its contents were altered"):
        p2pzoo.load(tmp_path / "altered.safetensors")


# --- the command ---


def save(image, path, mode=None, **options):
    picture = Image.fromarray(image)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def test_an_output_file_says_how_it_was_made(run_cli, run, model, photo, tmp_path):
    source = save(photo, tmp_path / "a photo.jpg")
    result = run_cli("translate", run, source, "-o", tmp_path / "out", "--test-mode", "eval", "--seed", "3")
    assert result.exit_code == 0, result.output
    target = tmp_path / "out" / "a photo.png"
    assert result.stdout == f"{target}\n"
    expected = model.translate(read_image(source), test_mode="eval", seed=3)
    assert np.array_equal(np.asarray(Image.open(target)), expected)
    text = json.loads(Image.open(target).text["p2pzoo"])
    assert text == {"model": model.run, "test_mode": "eval", "seed": 3, "p2pzoo": p2pzoo.__version__}


def test_a_folder_means_all_its_images_and_a_png_name_means_one_file(run_cli, run, photo, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("b.png", "a.jpeg", ".hidden.png"):
        save(photo, tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    assert run_cli("translate", run, tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    assert run_cli("translate", run, tmp_path / "in" / "b.png", "-o", tmp_path / "one.png", "--quiet").stdout == ""
    assert Image.open(tmp_path / "one.png").size == (70, 45)


def exif_rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright: rotate by 90 degrees clockwise
    return exif


def test_every_type_of_image_is_translated_as_rgb(run_cli, run, model, photo, tmp_path):
    """Images are converted to RGB if that is without loss, and rotated as EXIF says."""
    grey = photo[..., 0]
    opaque = np.dstack([photo, np.full_like(grey, 255)])
    palette = Image.fromarray(photo).quantize(16)
    palette.save(tmp_path / "palette.png")
    expected = {
        save(photo, tmp_path / "rgb.png"): photo,
        save(grey, tmp_path / "grey.png"): np.dstack([grey] * 3),
        save(opaque, tmp_path / "opaque.png"): photo,
        tmp_path / "palette.png": np.asarray(palette.convert("RGB")),
        save(photo, tmp_path / "one_bit.png", "1"): np.asarray(Image.fromarray(photo).convert("1").convert("RGB")),
    }
    rotated = save(photo, tmp_path / "rotated.jpg", exif=exif_rotated())
    expected[rotated] = np.rot90(np.asarray(Image.open(rotated)), -1)

    result = run_cli("translate", run, *expected, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for source, pixels in expected.items():
        written = np.asarray(Image.open(tmp_path / "out" / f"{source.stem}.png"))
        assert np.array_equal(written, model.translate(np.ascontiguousarray(pixels))), source.name


def test_a_pil_image_gives_the_same_pixels_as_its_file(run_cli, run, model, photo, tmp_path):
    rotated = save(photo, tmp_path / "rotated.jpg", exif=exif_rotated())
    bits = save(photo, tmp_path / "bits.png", "1")
    lab = Image.fromarray(photo).convert("LAB")
    for source in (rotated, bits):
        with Image.open(source) as image:
            assert np.array_equal(np.asarray(model.translate(image)), model.translate(read_image(source)))
    with pytest.raises(ValueError, match="LAB"):
        model.translate(lab)


def test_images_that_the_model_cannot_take_are_reported_and_the_others_translated(run_cli, run, photo, tmp_path):
    transparent = np.dstack([photo, photo[..., 0]])
    deep = tmp_path / "deep.png"
    Image.fromarray(photo[..., 0].astype(np.uint16) * 257).save(deep)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but no more")
    sources = [
        save(transparent, tmp_path / "glass.png"),
        deep,
        tmp_path / "broken.png",
        save(photo, tmp_path / "fine.png"),
    ]
    result = run_cli("translate", run, *sources, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fine.png"]
    glass, deep_line, broken = result.stderr.splitlines()
    advice = "put it on a background (`p2pzoo translate --background white`; `Model.background` in Python)"
    assert glass == f"{sources[0]}: it has transparent pixels, and RGB was expected: {advice}"
    assert deep_line == f"{deep}: expected (H, W) or (H, W, C) of uint8, not (45, 70, 1) of uint16"
    assert broken.startswith(f"{sources[2]}: cannot be read as an image")

    assert run_cli("translate", run, sources[0], "-o", tmp_path / "lit", "--background", "10,20,30").exit_code == 0
    opacity = transparent[..., 3:] / 255
    flat = np.rint(photo * opacity + np.array([10, 20, 30]) * (1 - opacity)).astype(np.uint8)
    assert np.array_equal(read_image(tmp_path / "lit/glass.png"), p2pzoo.load(run, device="cpu").translate(flat))
    wrong = run_cli("translate", run, sources[0], "-o", tmp_path / "lit", "--background", "red", "--force")
    assert (wrong.exit_code, "a background is " in wrong.stderr) == (2, True)


def test_a_warning_counts_the_images_in_sub_folders_which_are_not_translated(run_cli, run, photo, tmp_path):
    (tmp_path / "in" / "day2").mkdir(parents=True)
    for name in ("a.png", "day2/b.png", "day2/c.png"):
        save(photo, tmp_path / "in" / name)
    result = run_cli("translate", run, tmp_path / "in", "-o", tmp_path / "in" / "out")
    assert result.exit_code == 0
    assert "warning: " in result.stderr
    assert "in: 2 images in sub-folders are left out (2 in day2): give this folder, too" in result.stderr
    again = run_cli("translate", run, tmp_path / "in", "-o", tmp_path / "in" / "out", "--force")
    assert "(2 in day2): give" in again.stderr


def test_files_are_overwritten_only_with_force_and_inputs_never(run_cli, run, photo, tmp_path):
    source = save(photo, tmp_path / "photo.png")
    before = source.read_bytes()
    assert run_cli("translate", run, source, "-o", tmp_path / "out").exit_code == 0
    first = (tmp_path / "out" / "photo.png").read_bytes()

    again = run_cli("translate", run, source, "-o", tmp_path / "out", "--seed", "1")
    assert (again.exit_code, "already exists; --force overwrites it" in again.stderr) == (2, True)
    assert (tmp_path / "out" / "photo.png").read_bytes() == first
    assert run_cli("translate", run, source, "-o", tmp_path / "out", "--seed", "1", "--force").exit_code == 0
    assert (tmp_path / "out" / "photo.png").read_bytes() != first

    onto = run_cli("translate", run, source, "-o", tmp_path, "--force")
    assert (onto.exit_code, "would overwrite an input" in onto.stderr) == (2, True)
    assert source.read_bytes() == before


def test_jpeg_and_webp_are_written_with_their_quality_and_how_they_were_made(run_cli, run, model, photo, tmp_path):
    source = save(photo, tmp_path / "photo.png")
    expected = model.translate(photo, seed=4).astype(int)
    sizes = {}
    for options in (["-o", "a.jpg"], ["-o", "b.jpg", "--quality", "20"], ["-o", "c", "--format", "webp"]):
        target = tmp_path / options[1]
        result = run_cli("translate", run, source, "-o", target, *options[2:], "--seed", "4")
        assert result.exit_code == 0, result.output
        target = target / "photo.webp" if target.is_dir() else target
        sizes[options[1]] = target.stat().st_size
        if "--quality" not in options:
            assert np.abs(read_image(target) - expected).mean() < 12
        description = Image.open(target).getexif()[0x010E]
        assert json.loads(description.removeprefix("p2pzoo: "))["seed"] == 4
    assert sizes["b.jpg"] < sizes["a.jpg"]


def test_long_names_are_translated_and_too_long_ones_skipped(run_cli, run, photo, tmp_path):
    (tmp_path / "in").mkdir()
    for stem in ("a" * 251, "b" * 200, "c"):
        save(photo, tmp_path / "in" / f"{stem}.png")
    result = run_cli("translate", run, tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (tmp_path / "in" / f"{'d' * 252}.x").symlink_to("c.png")
    assert len([*(tmp_path / "out").iterdir()]) == 3
    too_long = tmp_path / "in" / f"{'d' * 252}.x"
    result = run_cli("translate", run, too_long, tmp_path / "in" / "c.png", "-o", tmp_path / "more")
    assert result.exit_code == 2
    assert "this name is too long for the file system: rename" in result.stderr
    assert [path.name for path in (tmp_path / "more").iterdir()] == ["c.png"]


def test_wrong_arguments_are_reported_before_anything_is_written(run_cli, run, photo, tmp_path):
    a, b = save(photo, tmp_path / "a.png"), save(photo, tmp_path / "a.jpg")
    (tmp_path / "nested" / "inner").mkdir(parents=True)
    (tmp_path / "file").write_text("in the way")
    for arguments, message in [
        ([run, a, b, "-o", tmp_path / "out"], "would both become"),
        ([run, a, b, "-o", tmp_path / "one.png"], "one file cannot hold 2 translations"),
        ([run, a, "-o", tmp_path / "out.gif"], "translations are written as PNG, TIFF, NumPy, JPEG or WebP"),
        ([run, a, "-o", tmp_path / "out", "--quality", "50"], "--quality is for .jpg and .webp files"),
        ([run, tmp_path / "nested", "-o", tmp_path / "out"], "no images in this folder"),
        ([run, tmp_path / "nested", "-o", tmp_path / "out"], "it has the folders inner"),
        ([run, tmp_path / "c.png", "-o", tmp_path / "out"], "c.png: no such file"),
        ([run, a, "-o", tmp_path / "file"], "file: a file is in the place of a folder: choose another place"),
        ([run, a, "-o", tmp_path / "one.png", "--format", "jpg"], "--format jpg: the name one.png asks for another"),
        ([a, b, "-o", tmp_path / "out"], "a.png: not a file of p2pzoo: these end in .safetensors"),
        ([tmp_path / "nested", a, "-o", tmp_path / "out"], "not a run folder"),
    ]:
        result = run_cli("translate", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr, result.stderr
        assert not (tmp_path / "out").exists()


def test_the_command_translates_tiles_as_the_model_does(run_cli, run, model, tmp_path):
    rows, columns = np.mgrid[:150, :200]
    large = np.stack([rows, columns, rows + columns], axis=-1).astype(np.uint8)
    source = save(large, tmp_path / "large.png")
    eval_mode = ["--test-mode", "eval"]
    result = run_cli("translate", run, source, "-o", tmp_path / "out", *eval_mode, "--tile", "64", "--overlap", "20")
    assert result.exit_code == 0, result.output
    picture = Image.open(tmp_path / "out" / "large.png")
    expected = model.translate(large, test_mode="eval", tile=64, overlap=20)
    assert np.array_equal(np.asarray(picture), expected)
    assert not np.array_equal(expected, model.translate(large, test_mode="eval"))
    text = json.loads(picture.text["p2pzoo"])
    assert (text["tile"], text["overlap"], text["test_mode"]) == (64, 20, "eval")
    assert "tile" not in json.loads(Image.open(translate_without_tiles(run_cli, run, source, tmp_path)).text["p2pzoo"])


def test_bf16_differs_by_a_few_levels_and_is_recorded_in_the_file(run_cli, run, photo, tmp_path):
    source = save(photo, tmp_path / "photo.png")
    options = ("--test-mode", "eval", "--precision", "bf16")
    assert run_cli("translate", run, source, "-o", tmp_path / "bf16.png", *options).exit_code == 0
    exact = np.asarray(Image.open(translate_without_tiles(run_cli, run, source, tmp_path)), np.int16)
    rounded = np.asarray(Image.open(tmp_path / "bf16.png"), np.int16)
    difference = np.abs(exact - rounded)
    assert 0 < difference.max() <= 8  # bf16 keeps 8 bits of each number, through a dozen layers
    assert difference.mean() < 1
    assert json.loads(Image.open(tmp_path / "bf16.png").text["p2pzoo"])["precision"] == "bf16"


def translate_without_tiles(run_cli, run, source, tmp_path):
    assert run_cli("translate", run, source, "-o", tmp_path / "one.png", "--test-mode", "eval").exit_code == 0
    return tmp_path / "one.png"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--test-mode eval --tile 100", "a tile of 100 does not fit this generator: multiples of 8 do, 96 or 104"),
        ("--test-mode eval --tile 64 --overlap 33", "an overlap of 33 does not fit tiles of 64: 0 to 32 does"),
        ("--tile 64", "tiles need test mode eval: in paper mode each tile is normalised by its own statistics"),
        ("--overlap 8", "an overlap of 8 needs tiles: give the side of a tile, too"),
        ("--precision bf16", "precision bf16 needs test mode eval: paper mode computes in fp32"),
    ],
)
def test_options_that_exclude_each_other_are_reported_before_anything_is_read(
    run_cli, run, photo, tmp_path, options, message
):
    source = save(photo, tmp_path / "photo.png")
    result = run_cli("translate", run, source, "-o", tmp_path / "out", *options.split())
    assert (result.exit_code, result.stderr) == (2, f"{message}\n")
    assert not (tmp_path / "out").exists()


def test_an_image_that_needs_too_much_memory_is_reported_with_what_to_do(run_cli, run, photo, tmp_path, monkeypatch):
    forward = torch.nn.Tanh.forward

    def forward_with_little_memory(self, x):
        if x.shape[-1] > 144:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Tanh, "forward", forward_with_little_memory)
    wide = save(np.zeros((50, 300, 3), np.uint8), tmp_path / "wide.png")
    sources = [wide, save(photo, tmp_path / "photo.png")]
    result = run_cli("translate", run, *sources, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stdout == f"{tmp_path / 'out' / 'photo.png'}\n"
    advice = "translate it in tiles (--test-mode eval --tile 144)"
    assert result.stderr == f"{wide}: out of memory at 50×300: {advice}\n"
    again = run_cli("translate", run, wide, "-o", tmp_path / "out", "--test-mode", "eval", "--tile", "144")
    assert again.exit_code == 0, again.output


def test_ctrl_c_leaves_complete_files(run_cli, run, photo, tmp_path, monkeypatch):
    sources = [save(photo, tmp_path / f"{number}.png") for number in range(6)]
    echo, printed = click.echo, []

    def echo_then_interrupt(message, **options):
        echo(message, **options)
        printed.append(message)
        if len(printed) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(click, "echo", echo_then_interrupt)
    result = run_cli("translate", run, *sources, "-o", tmp_path / "out")
    message = "stopped; the files that were written are complete, and --force writes them again\n"
    assert (result.exit_code, result.stderr) == (130, message)
    files = list((tmp_path / "out").iterdir())
    assert {path.name for path in files} >= {"0.png", "1.png", "2.png"}
    assert all(Image.open(path).load() for path in files), "no file is temporary or incomplete"


# --- samples -------------------------------------------------------------------------------------------------------


def test_samples_are_translations_with_consecutive_seeds_and_their_mean_and_spread(
    run_cli, run, model, photo, tmp_path
):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    result = run_cli("translate", run, tmp_path / "photo.png", "-o", tmp_path / "out", "--samples", 3, "--seed", 5)
    assert result.exit_code == 0, result.output
    names = ["photo-0.png", "photo-1.png", "photo-2.png", "photo-mean.png", "photo-spread.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    samples = [model.translate(photo, seed=seed) for seed in (5, 6, 7)]
    for number, expected in enumerate(samples):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"out/photo-{number}.png")), expected)
    assert not np.array_equal(samples[0], samples[1])
    mean = np.asarray(Image.open(tmp_path / "out/photo-mean.png")).astype(float)
    assert np.abs(mean - np.mean(samples, axis=0)).max() <= 1
    spread = Image.open(tmp_path / "out/photo-spread.png")
    assert spread.text["spread"] == "grey / 2040 = standard deviation of values in [-1, 1]"
    levels = np.sqrt(np.var(np.stack(samples).astype(float), axis=0, ddof=1).mean(axis=-1))
    assert np.abs(np.asarray(spread) / 16 - levels.clip(max=255 / 16)).max() <= 1
    assert np.asarray(spread).max() > 16


def test_the_spread_is_exact_in_a_format_of_floats(run_cli, run, model, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    result = run_cli(
        "translate", run, tmp_path / "photo.png", "-o", tmp_path / "out", "--samples", 4, "--format", "npy"
    )
    assert result.exit_code == 0, result.output
    tensor = torch.from_numpy(photo).permute(2, 0, 1).float() / 127.5 - 1
    translations = torch.stack([model.translate(tensor, seed=seed) for seed in range(4)])
    expected = translations.double().var(0).mean(0).sqrt().numpy()
    spread = np.load(tmp_path / "out/photo-spread.npy")
    assert (spread.shape, spread.dtype) == ((45, 70, 1), np.float32)
    assert np.abs(spread[..., 0] - expected).max() < 1e-5
    samples = model.samples(photo, 4)
    assert len([*samples]) == 4
    assert np.array_equal(samples.spread, spread[..., 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--test-mode", "eval"], "samples need test mode paper: eval mode uses no random numbers"),
        (["-o", "one.png"], "one.png: one file cannot hold several samples; give a folder"),
    ],
)
def test_samples_need_paper_mode_and_a_folder(run_cli, run, photo, tmp_path, options, message):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    result = run_cli("translate", run, tmp_path / "photo.png", "-o", tmp_path / "out", "--samples", 2, *options)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_samples_of_a_generator_without_random_numbers_are_an_error(run_cli, arguments, photo, tmp_path):
    assert run_cli(*arguments(tmp_path / "runs", "train.images=1", "generator.noise=none")).exit_code == 0
    [folder] = tmp_path.glob("runs/*/*")
    Image.fromarray(photo).save(tmp_path / "photo.png")
    result = run_cli("translate", folder, tmp_path / "photo.png", "-o", tmp_path / "out", "--samples", 2)
    assert result.exit_code == 2
    assert "this generator uses no random numbers: all samples would be equal" in result.output


def test_samples_overwrite_files_only_with_force_and_inputs_never(run_cli, run, photo, tmp_path):
    for name in ("photo.png", "photo-1.png"):
        Image.fromarray(photo).save(tmp_path / name)
    before = (tmp_path / "photo-1.png").read_bytes()
    result = run_cli("translate", run, tmp_path / "photo.png", "-o", tmp_path, "--samples", 2)
    assert result.exit_code == 2
    assert "photo.png: would overwrite an input" in result.output
    (tmp_path / "out").mkdir()
    (tmp_path / "out/photo-mean.png").write_bytes(b"mine")
    result = run_cli("translate", run, tmp_path / "photo.png", "-o", tmp_path / "out", "--samples", 2)
    assert result.exit_code == 2
    assert "photo-mean.png: already exists; --force overwrites it" in result.output
    assert (tmp_path / "photo-1.png").read_bytes() == before


# --- batches ------------------------------------------------------------------------------------------------------


GENERATORS = {
    "unet": {"width": 2, "depth": 3}, "encoder-decoder": {"width": 2, "depth": 3}, "resnet6": {"width": 2},
    "pix2pixhd-global": {"width": 2}, "spade": {"width": 2},
}  # fmt: skip


@functools.cache
def build_model(name):
    torch.manual_seed(0)
    G = p2pzoo.create("generator", name, in_channels=3, out_channels=3, size=(32, 32), **GENERATORS[name])
    header = {
        "run": "none", "generator": {"use": name, "params": {}}, "in_channels": 3, "out_channels": 3, "size": [32, 32],
        "size_divisor": G.size_divisor, "test_mode": "paper",
    }  # fmt: skip
    with torch.no_grad():  # running statistics other than those of one image
        G.train()(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1)
    return Model(G, ModelHeader.parse(header, Path("model.safetensors")), torch.device("cpu"))


@settings(max_examples=8)
@given(
    name=st.sampled_from([*GENERATORS]),
    order=st.permutations(range(5)),
    cuts=st.sets(st.integers(1, 4)),
    tile=st.sampled_from([None, 32]),
)
def test_a_translation_does_not_depend_on_the_rest_of_the_batch(name, order, cuts, tile):
    model, rng = build_model(name), torch.Generator().manual_seed(2)
    images = torch.rand(5, 3, 48, 64, generator=rng) * 2 - 1
    for mode, tolerance in (("eval", 1e-4), ("paper", 0)):
        options = {"test_mode": mode} | ({"tile": tile} if mode == "eval" and tile else {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # norms that use the statistics of a tile
            alone = torch.cat([model.translate(image[None], **options) for image in images])
            batches = np.split(np.array(order), sorted(cuts))
            together = torch.cat([model.translate(images[batch], **options) for batch in map(torch.tensor, batches)])
        assert (together - alone[torch.tensor(order)]).abs().max() <= tolerance
