"""`translate-stack`: values, metadata that tifffile and ome-types read back, memory, refusals that write nothing."""

import json
import warnings
from dataclasses import replace

import numpy as np
import ome_types
import pytest
import tifffile
import torch
from p2pzoo_geo.bands import Bands
from p2pzoo_microscopy import translate as translate_module
from p2pzoo_microscopy.planes import Planes, describe_stack
from p2pzoo_microscopy.stack_files import open_stack
from p2pzoo_microscopy.translate import translate_stack
from stack_pairs import MICROMETRES, cells, damage_page, write_pairs, write_stack
from torch import nn

import p2pzoo
from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader
from p2pzoo.utils.errors import UserError

TABLES = """
[dataset]
use = "stacks"
inputs = "inputs"
targets = "targets"
x_channels = ["BF"]
size = 32
z = "channels"
fractions = [0.5, 0.25, 0.25]
split_seed = 3
y_scale = [0, 5000]
[metrics.mae]
use = "mae"
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train_on):
    """The folder of a run on stacks, and a stack that was not trained on."""
    folder = tmp_path_factory.mktemp("trained")
    write_pairs(folder, z=3)
    result, run = train_on(folder, TABLES)
    assert result.exit_code == 0, result.output
    assert "next             p2pzoo translate-stack " in result.output
    stack = write_stack(folder / "new.ome.tif", cells(t=2, z=4, c=2, height=100, width=300, seed=7), ("PH", "BF"))
    return run, stack


class Blur(nn.Module):
    """(B, C, H, W) -> `channels` blurred copies of the mean over C, so that seams would show."""

    def __init__(self, channels=1):
        super().__init__()
        self.channels = channels
        self.blur = nn.Conv2d(1, 1, 9, padding=4, padding_mode="reflect")
        with torch.no_grad():
            self.blur.weight.fill_(1 / 81)
            self.blur.bias.zero_()

    def forward(self, x):
        return self.blur(x.mean(1, keepdim=True)).clamp(-1, 1).repeat(1, self.channels, 1, 1)


def bands(*names, scale=(0.0, 8000.0), dtype="uint16"):
    return Bands((*range(1, len(names) + 1),), names, (scale,) * len(names), dtype)


def model_of(x=None, y=None, z="planes", window=None, G=None):
    """A model with a known function, as if trained on the dataset `stacks` with these channels."""
    x, y, planes = x or bands("BF"), y or bands("DAPI"), Planes.of(z, window)
    layout = {"stack": describe_stack(x, y, planes, dict(MICROMETRES))}
    header = ModelHeader(
        "generator", "mine", {}, len(x) * planes.window, len(y), (64, 64), run="r", size_divisor=4, test_mode="paper",
        x_range=x.stored_range, y_range=y.stored_range, x_dtype=x.stored_dtype, y_dtype=y.stored_dtype,
        as_json={"file_layout": layout},
    )  # fmt: skip
    return Model(G or Blur(len(y)), header, torch.device("cpu"))


def test_the_metadata_are_read_back(trained, run_cli, tmp_path):
    run, stack = trained
    result = run_cli("translate-stack", run, stack, "-o", tmp_path / "out.ome.tif", "--tile", "64", "--json")
    assert result.exit_code == 0, result.output
    warning, document = result.output.split("\n", 1)  # the new stack is brighter
    assert "channel BF: 61% of its values lie outside of the range" in warning
    assert json.loads(document)["sizes"] == {"T": 2, "Z": 4, "C": 1, "Y": 100, "X": 300}
    with tifffile.TiffFile(tmp_path / "out.ome.tif") as tiff:
        assert tiff.is_ome
        assert (tiff.series[0].axes, tiff.series[0].shape) == ("TZYX", (2, 4, 100, 300))
        assert (tiff.pages[0].tilewidth, tiff.pages[0].compression) == (256, 8)
        values, xml = tiff.asarray(), tiff.ome_metadata
    read = ome_types.from_xml(xml).images[0]
    made = ome_types.from_xml(tifffile.TiffFile(stack).ome_metadata).images[0].pixels
    for axis in "xyz":
        for end in ("", "_unit"):
            name = f"physical_size_{axis}{end}"
            assert getattr(read.pixels, name) == getattr(made, name)
    assert [channel.name for channel in read.pixels.channels] == ["DAPI"]
    assert read.pixels.type.value == "uint16" == values.dtype.name
    assert read.name == "new.ome.tif"
    assert json.loads(read.description)["tile"] == 64
    assert 0 <= values.min() < values.max() <= 5000
    assert [*tmp_path.iterdir()] == [tmp_path / "out.ome.tif"]


def test_the_run_stores_channels_planes_and_scales_and_measures_in_units(trained):
    run, _ = trained
    stored = p2pzoo.load(run, device="cpu").header.as_json["file_layout"]["stack"]
    assert (stored["x"]["names"], stored["y"]["scales"], stored["z"]) == (["BF"] * 3, [[0, 5000]], "channels")
    assert stored["pixel"] == MICROMETRES
    metrics = json.loads((run / "results.json").read_text())["metrics"]
    assert 10 < metrics["mae"]["value"] < 5000


@pytest.mark.parametrize("shape", [(30, 50), (64, 64), (150, 300), (300, 90)])
def test_tiles_give_the_values_of_the_whole_plane(tmp_path, shape):
    values = cells(t=2, z=2, c=1, height=shape[0], width=shape[1])
    stack = write_stack(tmp_path / "x.tif", values, ("BF",))
    translate_stack(model_of(), stack, tmp_path / "y.ome.tif", tile=64, overlap=32)
    written = tifffile.imread(tmp_path / "y.ome.tif")
    for t in range(2):
        for z in range(2):
            x = torch.from_numpy(values[t, z].astype(np.float32)) / 4000 - 1
            whole = model_of().translate(x, test_mode="eval").numpy()
            assert np.abs(written[t, z] - (whole[0] + 1) * 4000).max() <= 0.51


def test_channels_are_written_one_after_the_other(tmp_path):
    values = cells(z=2, c=1, height=300, width=280)
    y = Bands((1, 2), ("DAPI", None), ((0.0, 8000.0), (0.0, 4000.0)), "uint16")
    stack = write_stack(tmp_path / "x.tif", values, ("BF",))
    translate_stack(model_of(y=y), stack, tmp_path / "y.ome.tif")
    with tifffile.TiffFile(tmp_path / "y.ome.tif") as tiff:
        assert (tiff.series[0].axes, tiff.series[0].shape) == ("ZCYX", (2, 2, 300, 280))
        written = tiff.asarray().astype(float)
        names = [channel.name for channel in ome_types.from_xml(tiff.ome_metadata).images[0].pixels.channels]
    assert names == ["DAPI", "2"]
    assert np.abs(written[:, 0] / 2 - written[:, 1]).max() <= 1.01
    assert written[0, 0].std() > 100


@pytest.mark.parametrize("z", ["max", "mean", 2])
def test_a_model_of_one_plane_writes_one_plane(tmp_path, z):
    values = cells(t=2, z=3, c=1)
    stack = write_stack(tmp_path / "x.tif", values, ("BF",))
    translate_stack(model_of(z=z, G=nn.Identity()), stack, tmp_path / "y.ome.tif")
    project = {"max": lambda v: v.max(1), "mean": lambda v: np.rint(v.mean(1)), 2: lambda v: v[:, 1]}[z]
    assert np.array_equal(tifffile.imread(tmp_path / "y.ome.tif"), project(values)[:, 0])
    pixels = ome_types.from_tiff(tmp_path / "y.ome.tif").images[0].pixels
    assert (pixels.size_z, pixels.physical_size_z) == (1, None)


def test_neighbouring_planes_are_channels_as_in_training(tmp_path):
    values = cells(z=4, c=1)
    stack = write_stack(tmp_path / "x.tif", values, ("BF",))

    class Last(nn.Module):
        def forward(self, x):
            return x[:, 2:]

    translate_stack(model_of(z="channels", G=Last()), stack, tmp_path / "y.ome.tif")
    assert np.array_equal(tifffile.imread(tmp_path / "y.ome.tif"), values[0, [1, 2, 3, 3], 0])


def test_channels_are_found_by_name_in_another_order_or_chosen(tmp_path):
    values = cells(c=2)
    path = tmp_path / "y.ome.tif"
    same = {"G": nn.Identity()}
    translate_stack(model_of(**same), write_stack(tmp_path / "a.tif", values, ("PH", "BF")), path)
    assert np.array_equal(tifffile.imread(path), values[0, 0, 1])
    other = write_stack(tmp_path / "b.tif", values, ("PH", "TL"))
    with pytest.raises(UserError, match="has the channels PH, TL; the model takes BF: choose with --channel"):
        translate_stack(model_of(**same), other, path)
    translate_stack(model_of(**same), other, path, channels=["TL"])
    assert np.array_equal(tifffile.imread(path), values[0, 0, 1])
    with pytest.raises(
        UserError, match=r"--channel: 2 for the 1 channel of the model, BF; .*b\.tif has the channels PH, TL"
    ):
        translate_stack(model_of(**same), other, path, channels=[1, 2])
    translate_stack(model_of(**same), write_stack(tmp_path / "c.tif", values, None), path)
    assert np.array_equal(tifffile.imread(path), values[0, 0, 0])


@pytest.mark.parametrize(
    ("trained_on", "there", "numbers"),
    [
        (bands("BF", "BF"), ("BF", "BF", "DAPI"), (1, 2)),
        (bands("BF", "PH"), ("BF", "PH", "BF"), (1, 2)),
        (bands("BF", "PH"), ("PH", "other", "other", "BF"), (4, 1)),
        (replace(bands("BF", "BF"), numbers=(2, 3)), ("BF", "BF"), (1, 2)),  # without the channels that were not used
        (bands("BF", "PH"), ("PH", "BF", "BF"), None),
        (bands("BF", "BF"), ("DAPI", "BF", "BF"), None),
    ],
)
def test_channels_are_found_by_their_numbers_where_a_name_is_not_unique(tmp_path, trained_on, there, numbers):
    stack = open_stack(write_stack(tmp_path / "x.tif", cells(c=len(there)), there))
    model = model_of(trained_on)
    if numbers:
        assert translate_module._match_channels(model, stack, None)[0].numbers == numbers
    else:
        with pytest.raises(UserError, match="choose with --channel"):
            translate_module._match_channels(model, stack, None)


def test_times_and_sizes_of_imagej_are_kept(tmp_path):
    metadata = {"axes": "TYX", "unit": "nm", "finterval": 30.0}
    values = cells(t=3, c=1)[:, 0, 0]
    tifffile.imwrite(tmp_path / "x.tif", values, imagej=True, metadata=metadata, resolution=(1 / 325, 1 / 325))
    translate_stack(model_of(), tmp_path / "x.tif", tmp_path / "y.ome.tif")
    pixels = ome_types.from_tiff(tmp_path / "y.ome.tif").images[0].pixels
    assert (round(pixels.physical_size_x, 3), pixels.physical_size_x_unit.value) == (325, "nm")
    assert (pixels.time_increment, pixels.time_increment_unit.value) == (30, "s")


def test_float_targets_stay_float(tmp_path):
    y = bands("conc", scale=(-1.0, 3.0), dtype="float32")
    translate_stack(model_of(y=y), write_stack(tmp_path / "x.tif", cells(c=1), ("BF",)), tmp_path / "y.ome.tif")
    written = tifffile.imread(tmp_path / "y.ome.tif")
    assert written.dtype == np.float32
    assert -1 <= written.min() < written.max() <= 3


def test_large_results_are_big_tiffs(tmp_path, monkeypatch):
    monkeypatch.setattr(translate_module, "BIG_TIFF", 1000)
    translate_stack(model_of(), write_stack(tmp_path / "x.tif", cells(c=1), ("BF",)), tmp_path / "y.ome.tif")
    with tifffile.TiffFile(tmp_path / "y.ome.tif") as tiff:
        assert tiff.is_bigtiff


def test_no_more_than_a_row_of_tiles_is_read_at_once(tmp_path, monkeypatch):
    stack = write_stack(tmp_path / "x.tif", cells(c=1, height=300, width=200), ("BF",))
    heights, original = [], Planes.read_x
    monkeypatch.setattr(
        Planes, "read_x", lambda self, *args: heights.append(args[-1].bottom - args[-1].top) or original(self, *args)
    )
    translate_stack(model_of(), stack, tmp_path / "y.ome.tif", tile=64)
    assert max(heights) == 64


def test_faults_are_one_line_and_write_nothing(trained, assert_refused, tmp_path):
    run, stack = trained
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "text.tif").write_text("no TIFF")
    other = write_stack(tmp_path / "other.tif", cells(z=3), ("PH", "DIC"))
    shallow = write_stack(tmp_path / "shallow.tif", cells(z=2), ("BF", "DIC"))
    floats = write_stack(tmp_path / "floats.tif", cells(z=3).astype("float32"), ("BF", "DIC"))
    existing = write_stack(tmp_path / "existing.ome.tif", cells())
    target = out / "y.ome.tif"
    for arguments, message in (
        ((other, "-o", target), "has the channels PH, DIC; the model takes BF"),
        ((shallow, "-o", target), "has 2 planes, and z_window = 3 needs 3"),
        ((floats, "-o", target), "has values of float32, and the model was trained on uint16"),
        ((tmp_path / "text.tif", "-o", target), "cannot be read as a TIFF"),
        ((tmp_path / "none.tif", "-o", target), "no such file"),
        ((stack, "-o", out / "y.tif"), "give a name that ends with .ome.tif"),
        ((stack, "-o", out / "missing" / "y.ome.tif"), "no such folder"),
        ((stack, "-o", stack), "the stack itself"),
        ((stack, "-o", existing), "--force overwrites it"),
        ((stack, "-o", target, "--tile", "33"), "does not fit this generator"),
        ((stack, "-o", target, "--channel", "GFP"), "--channel: no channel is named 'GFP'; it has the channels PH, BF"),
    ):
        assert_refused(message, "translate-stack", run, *arguments)
    assert not list(out.iterdir())


def test_an_interruption_or_a_damaged_plane_leaves_nothing(tmp_path, monkeypatch):
    path = write_stack(tmp_path / "x.tif", cells(t=3, c=1), ("BF",))
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "y.ome.tif"

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        translate_stack(model_of(), path, target, progress=stop)
    damage_page(path, 2)
    with pytest.raises(UserError, match="cannot be read at channel 1, frame 3, plane 1"):
        translate_stack(model_of(), path, target)
    assert not list(target.parent.iterdir())


def test_a_stack_with_other_pixels_is_warned_of(tmp_path):
    stack = write_stack(tmp_path / "x.tif", cells(c=1), ("BF",), {"X": 0.65, "Y": 0.325})
    with pytest.warns(UserWarning, match=r"its pixels are 0\.65 µm along X, those of the training 0\.325"):
        translate_stack(model_of(), stack, tmp_path / "y.ome.tif")


@pytest.mark.parametrize("z", ["planes", "channels", "max"])
def test_a_stack_whose_values_lie_outside_of_the_training_is_warned_of(tmp_path, z):
    values = cells(t=2, z=3, c=2, height=300)
    values[:, :, 0] += 9000
    stack = write_stack(tmp_path / "x.tif", values, ("BF", "PH"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in ("PH", "BF"):
            translate_stack(model_of(z=z), stack, tmp_path / "y.ome.tif", channels=[name])
    [warning] = [each for each in caught if each.category is UserWarning]
    message = (
        "x.tif: channel BF: 100% of its values lie outside of the range that the model was trained on, [0, 8000]: "
    )
    assert str(warning.message).startswith(message)


def test_damaged_descriptions_and_other_models_are_refused(tmp_path):
    stack = write_stack(tmp_path / "x.tif", cells(c=1), ("BF",))
    for value in ({"x": 3}, [], "text", {**model_of().header.as_json["file_layout"]["stack"], "z_window": 2}):
        model = model_of()
        model.header.as_json["file_layout"]["stack"] = value
        with pytest.raises(UserError, match="description of its channels is damaged"):
            translate_stack(model, stack, tmp_path / "y.ome.tif")
    model = model_of()
    del model.header.as_json["file_layout"]["stack"]
    with pytest.raises(UserError, match="was not trained on the dataset 'stacks'"):
        translate_stack(model, stack, tmp_path / "y.ome.tif")


def test_a_written_stack_can_be_read_as_a_target(tmp_path):
    stack = write_stack(tmp_path / "x.tif", cells(t=2, z=2, c=1), ("BF",))
    translate_stack(model_of(), stack, tmp_path / "y.ome.tif")
    read = open_stack(tmp_path / "y.ome.tif")
    assert (read.sizes, read.metadata.names) == ({"T": 2, "Z": 2, "C": 1, "Y": 64, "X": 80}, ("DAPI",))
    assert read.metadata.pixel == open_stack(stack).metadata.pixel
