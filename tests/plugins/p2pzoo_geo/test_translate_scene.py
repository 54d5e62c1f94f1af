"""`p2pzoo translate-scene`: GDAL reads back what was written; resume, blending, refusals, memory."""

import json
import re
import shutil
import warnings

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from landscapes import OTHER_UTM, UTM, landscape, write_pair, write_raster
from p2pzoo_geo import pieces as pieces_module
from p2pzoo_geo import translate as translate_module
from p2pzoo_geo.bands import Bands
from p2pzoo_geo.translate import translate_scene
from rasterio.rpc import RPC
from rasterio.transform import from_origin
from torch import nn

import p2pzoo
from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader
from p2pzoo.utils.errors import UserError

HOLE = (slice(0, 40), slice(0, 50))
TABLES = """
[dataset]
use = "scenes"
inputs = "inputs"
targets = "targets"
size = 32
block = 64
max_nodata = 0.9
fractions = [0.5, 0.25, 0.25]
x_bands = ["red", "blue"]
y_scale = [-40, 40]
[metrics.band]
use = "band-error"
[metrics.mae]
use = "mae"
classes = ["valid"]
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train_on):
    """The folder of a run on a pair of scenes, and a scene that was not trained on."""
    folder = tmp_path_factory.mktemp("trained")
    write_pair(folder, height=192, width=192, holes=[HOLE])
    result, run = train_on(folder, TABLES)
    assert result.exit_code == 0, result.output
    assert "next             p2pzoo translate-scene " in result.output
    write_pair(folder / "new", height=150, width=230, seed=5, holes=[HOLE])
    return run, folder / "new" / "inputs" / "a.tif"


def read(path):
    with rasterio.open(path) as source:
        return source.read()


class Difference(nn.Module):
    """ŷ depends on x and on the sums over a neighbourhood, so that seams would show."""

    def __init__(self, channels=1):
        super().__init__()
        self.blur = nn.Conv2d(channels, 1, 9, padding=4, padding_mode="reflect")
        with torch.no_grad():
            self.blur.weight.fill_(1 / 81 / channels)
            self.blur.bias.zero_()

    def forward(self, x):
        return self.blur(x).clamp(-1, 1)


def model_of(x=None, y=None, G=None):
    """A model with a known function, as if trained on the dataset scenes with these bands."""
    x = x or Bands((1,), (None,), ((0.0, 8000.0),), "uint16", 0.0)
    y = y or Bands((1,), ("height",), ((0.0, 4000.0),), "int16", -9999.0)
    layout = {"scene": {"x": x.as_json(), "y": y.as_json(), "pixel": [10, 10], "crs": UTM}}
    header = ModelHeader(
        "generator", "mine", {}, len(x), len(y), (64, 64), run="r", size_divisor=4, test_mode="paper",
        as_json={"file_layout": layout},
    )  # fmt: skip
    return Model(G or Difference(len(x)), header, torch.device("cpu"))


def test_gdal_reads_back_the_georeference_and_the_bands(trained, run_cli, tmp_path):
    run, scene = trained
    result = run_cli("translate-scene", run, scene, "-o", tmp_path / "out.tif", "--tile", "64")
    assert result.exit_code == 0, result.output
    with rasterio.open(scene) as x, rasterio.open(tmp_path / "out.tif") as y:
        assert (y.crs, y.transform, y.shape) == (x.crs, x.transform, x.shape)
        assert (y.nodata, y.dtypes, y.descriptions) == (-9999, ("float32",), ("height",))
        assert (y.units, y.scales, y.offsets) == (("m",), (1,), (0,))
        assert y.profile["tiled"]
        assert y.profile["compress"] == "deflate"
        assert y.tags()["AREA_OR_POINT"] == x.tags()["AREA_OR_POINT"]
        assert json.loads(y.tags()["p2pzoo"])["tile"] == 64
        assert json.loads(y.tags()["p2pzoo"])["weights"] == "last"
        assert np.array_equal(y.read_masks(1), x.read_masks(1))
        values = y.read(1, masked=True)
    assert values.min() >= -40
    assert values.max() <= 40
    assert list(tmp_path.iterdir()) == [tmp_path / "out.tif"]


def test_the_run_stores_bands_and_scales_and_measures_in_units(trained):
    run, _ = trained
    scene = p2pzoo.load(run, device="cpu").header.as_json["file_layout"]["scene"]
    assert (scene["x"]["names"], scene["y"]["scales"]) == (["red", "blue"], [[-40, 40]])
    assert len(scene["x"]["scales"]) == 2
    metrics = {name: each["value"] for name, each in json.loads((run / "results.json").read_text())["metrics"].items()}
    assert metrics["band.mae_height"] == metrics["band"] == pytest.approx(metrics["mae"])
    assert 1 < metrics["mae"] < 40  # metres


def test_a_cog_has_overviews_and_the_same_pixels(trained, run_cli, tmp_path):
    run, _ = trained
    scene = write_pair(tmp_path / "wide", height=600, width=1100, seed=2)[0] / "a.tif"
    for name, flags in (("plain.tif", ()), ("cog.tif", ("--cog",))):
        assert run_cli("translate-scene", run, scene, "-o", tmp_path / name, *flags).exit_code == 0
    with rasterio.open(tmp_path / "cog.tif") as cog, rasterio.open(tmp_path / "plain.tif") as plain:
        assert cog.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert cog.overviews(1)
        assert (cog.crs, cog.transform, cog.nodata, cog.descriptions) == (
            plain.crs, plain.transform, plain.nodata, plain.descriptions,
        )  # fmt: skip
        assert cog.tags()["p2pzoo"] == plain.tags()["p2pzoo"]
        assert np.array_equal(cog.read(), plain.read())


RPCS = RPC(
    height_off=100.0, height_scale=500.0, lat_off=45.0, lat_scale=0.1, long_off=10.0, long_scale=0.1,
    line_off=256.0, line_scale=256.0, samp_off=256.0, samp_scale=256.0,
    line_num_coeff=[0.0, 0.0, -1.0] + [0.0] * 17, line_den_coeff=[1.0] + [0.0] * 19,
    samp_num_coeff=[0.0, 1.0] + [0.0] * 18, samp_den_coeff=[1.0] + [0.0] * 19, err_bias=0.5, err_rand=0.25,
)  # fmt: skip


@pytest.mark.parametrize("cog", [False, True])
def test_the_rpcs_of_a_raw_scene_are_kept(tmp_path, cog):
    place = {"crs": None, "transform": None}
    scene = write_raster(tmp_path / "x.tif", landscape(96, 600, 1), nodata=None, rpcs=RPCS, **place)
    translate_scene(model_of(), scene, tmp_path / "y.tif", tile=64, cog=cog)
    with rasterio.open(scene) as x, rasterio.open(tmp_path / "y.tif") as y:
        assert x.rpcs is not None
        assert y.rpcs.to_dict() == x.rpcs.to_dict()
        assert bool(y.overviews(1)) == cog


@pytest.mark.parametrize("is_located", [False, True])
def test_a_geolocation_array_that_cannot_be_kept_is_warned_of(tmp_path, is_located):
    scene = write_raster(tmp_path / "x.tif", landscape(64, 64, 1), nodata=None)
    rasterio.shutil.copy(scene, tmp_path / "x.vrt", driver="VRT")
    if is_located:
        with rasterio.open(tmp_path / "x.vrt", "r+") as source:
            source.update_tags(ns="GEOLOCATION", X_DATASET="lon.tif", Y_DATASET="lat.tif", X_BAND="1", Y_BAND="1")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        translate_scene(model_of(), tmp_path / "x.vrt", tmp_path / "y.tif", tile=64)
    assert len(caught) == is_located
    assert all("x.vrt: is placed by a geolocation array, which" in str(each.message) for each in caught)


class Noisy(nn.Module):
    """A sampler that takes noise, as that of most processes."""

    noise_shape = (1, 1)

    def forward(self, x, noise=None):
        return (x + 0.1 * (self.draw_noise(x) if noise is None else noise)[:, 0]).clamp(-1, 1)

    def draw_noise(self, x):
        return torch.randn(len(x), 1, 1, *x.shape[2:])


def test_the_noise_of_a_process_is_one_for_the_whole_scene(tmp_path):
    scene = write_raster(tmp_path / "x.tif", landscape(100, 150, 1), nodata=None)
    values = []
    for tile, seed in ((64, 0), (128, 0), (64, 1)):
        translate_scene(model_of(G=Noisy()), scene, tmp_path / "y.tif", tile=tile, seed=seed)
        values.append(read(tmp_path / "y.tif").astype(float))
    assert np.abs(values[0] - values[1]).max() <= 1
    assert np.abs(values[0] - values[2]).mean() > 100


def test_no_more_than_a_tile_is_read_at_once(tmp_path, monkeypatch):
    scene = write_raster(tmp_path / "x.tif", landscape(300, 420, 1), nodata=None)
    boxes, original = [], translate_module.read_window
    monkeypatch.setattr(
        translate_module, "read_window", lambda source, bands, box: boxes.append(box) or original(source, bands, box)
    )
    translate_scene(model_of(), scene, tmp_path / "y.tif", tile=64)
    assert max(max(box.bottom - box.top, box.right - box.left) for box in boxes) == 64


@pytest.mark.parametrize("shape", [(30, 50), (64, 64), (150, 231), (600, 90)])
def test_tiles_give_the_values_of_the_whole_scene(tmp_path, shape):
    scene = write_raster(tmp_path / "x.tif", landscape(*shape, 1), nodata=None)
    translate_scene(model_of(), scene, tmp_path / "y.tif", tile=64, overlap=32)
    x = torch.from_numpy(read(scene).astype(np.float32)) / 4000 - 1
    whole = model_of().translate(x, test_mode="eval").numpy()
    assert np.abs(read(tmp_path / "y.tif") - (whole + 1) * 2000).max() <= 0.51


def test_integers_keep_apart_from_nodata(tmp_path):
    y = Bands((1,), (None,), ((0.0, 255.0),), "uint8", 0.0)
    scene = write_raster(tmp_path / "x.tif", np.full((1, 64, 64), 1), holes=[HOLE])
    translate_scene(model_of(y=y), scene, tmp_path / "y.tif", tile=64)
    values = read(tmp_path / "y.tif")[0]
    assert (values[HOLE] == 0).all()
    values[HOLE] = 1
    assert (values == 1).all()


@pytest.mark.parametrize(
    ("bands", "expected"),
    [
        (Bands((1,), (None,), ((0.0, 1.0),), "float32"), np.nan),
        (Bands((1,), (None,), ((0.0, 4000.0),), "uint16"), 65535),
        (Bands((1,), (None,), ((100.0, 4000.0),), "uint16"), 0),
        (Bands((1,), (None,), ((0.0, 255.0),), "uint8"), 0),
    ],
)
def test_targets_without_nodata_get_one_where_the_scene_has_holes(tmp_path, bands, expected):
    scene = write_raster(tmp_path / "x.tif", landscape(64, 64, 1), holes=[HOLE])
    translate_scene(model_of(y=bands), scene, tmp_path / "y.tif", tile=64)
    with rasterio.open(tmp_path / "y.tif") as written:
        assert written.nodata == expected or (np.isnan(expected) and np.isnan(written.nodata))
        mask = written.read_masks(1) != 0
    assert not mask[HOLE].any()
    assert mask.sum() == mask.size - 40 * 50


def interrupt_after(monkeypatch, count):
    """Raise KeyboardInterrupt when the piece with this number is to be written."""
    write, done = pieces_module.Pieces._write, []

    def stopping(self, rows):
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(rows)
        write(self, rows)

    monkeypatch.setattr(pieces_module.Pieces, "_write", stopping)


def test_an_interrupted_scene_goes_on_with_the_same_pixels(trained, run_cli, tmp_path, monkeypatch):
    run, scene = trained
    monkeypatch.setattr(pieces_module, "BLOCK", 32)
    command = ("translate-scene", run, scene, "--tile", "64", "-o")
    assert run_cli(*command, tmp_path / "whole.tif").exit_code == 0
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        stopped = run_cli(*command, tmp_path / "out.tif")
    assert stopped.exit_code == 130
    assert "the same command goes on" in stopped.output
    assert not (tmp_path / "out.tif").exists()
    other = run_cli("translate-scene", run, scene, "--tile", "32", "-o", tmp_path / "out.tif")
    assert other.exit_code == 2
    assert "another tile (64, now 32)" in other.output
    moved = shutil.copy(scene, tmp_path / "moved.tif")
    other = run_cli("translate-scene", run, moved, "--tile", "64", "-o", tmp_path / "out.tif")
    assert "unfinished translation of another scene" in other.output
    translated = []
    original = Model.translate
    monkeypatch.setattr(
        Model, "translate", lambda self, x, **rest: translated.append(len(x)) or original(self, x, **rest)
    )
    result = run_cli(*command, tmp_path / "out.tif", "--json")
    assert json.loads(result.output)["resumed"] == 96
    resumed = sum(translated)
    assert np.array_equal(read(tmp_path / "out.tif"), read(tmp_path / "whole.tif"))
    assert run_cli(*command, tmp_path / "again.tif").exit_code == 0
    assert resumed < sum(translated) - resumed
    assert not (tmp_path / "out.tif.parts").exists()


def test_fresh_begins_from_the_start(trained, run_cli, tmp_path, monkeypatch):
    run, scene = trained
    monkeypatch.setattr(pieces_module, "BLOCK", 32)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        run_cli("translate-scene", run, scene, "-o", tmp_path / "out.tif")
    result = run_cli("translate-scene", run, scene, "-o", tmp_path / "out.tif", "--tile", "32", "--fresh", "--json")
    assert json.loads(result.output)["resumed"] == 0


def test_bands_are_found_by_their_names_in_another_order(trained, run_cli, tmp_path):
    run, scene = trained
    values = read(scene)[::-1]
    write_raster(tmp_path / "x.tif", values, names=("red", "green", "blue"))
    for path in (scene, tmp_path / "x.tif"):
        assert run_cli("translate-scene", run, path, "-o", tmp_path / f"y{path.stem}.tif").exit_code == 0
    assert np.array_equal(read(tmp_path / "ya.tif"), read(tmp_path / "yx.tif"))


@pytest.mark.parametrize(
    ("trained_on", "there", "numbers"),
    [
        (("NDVI", "NDVI", "NDVI"), ("NDVI", "NDVI", "NDVI"), (1, 2, 3)),  # dates
        (("red", "NDVI", "NDVI"), ("NDVI", "red", "NDVI"), (1, 2, 3)),
        (("red", "NIR", "SWIR"), ("red", "NIR", "SWIR", "red"), (1, 2, 3)),
        (("red", "NIR", "SWIR"), ("SWIR", "SWIR", "NIR", "red"), (1, 2, 3)),
        (("red", "NIR", "SWIR"), ("NIR", "NIR", "SWIR", "blue", "red"), (1, 2, 3)),
        (("red", "NIR", "SWIR"), ("SWIR", "other", "other", "NIR", "red"), (5, 4, 1)),
        (("red", None, "SWIR"), ("SWIR", "NIR", "red"), (1, 2, 3)),
    ],
)
def test_bands_are_found_by_their_numbers_where_a_name_is_not_unique(tmp_path, trained_on, there, numbers):
    x = Bands((1, 2, 3), trained_on, ((0.0, 8000.0),) * 3, "uint16")
    scene = write_raster(tmp_path / "x.tif", landscape(32, 32, len(there)), names=[name or "" for name in there])
    with rasterio.open(scene) as source, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert translate_module.scene_bands(model_of(x), source)[0].numbers == numbers
    moved = [name for name, number in zip(trained_on, numbers, strict=True) if name not in (None, there[number - 1])]
    assert len(caught) == bool(moved)
    assert all(f"is described as '{moved[0]}' in the training" in str(each.message) for each in caught)


def test_faults_are_one_line_and_write_nothing(trained, assert_refused, tmp_path):
    run, scene = trained
    one_band = write_raster(tmp_path / "one.tif", landscape(64, 64, 1))
    (tmp_path / "text.tif").write_text("no raster")
    names = ("blue", "green", "red")
    other_scale = write_raster(tmp_path / "scale.tif", landscape(64, 64, 3), names=names, scaling=(1e-4, 0.1))
    out = tmp_path / "out"
    out.mkdir()
    for arguments, message in (
        ((one_band, "-o", out / "y.tif"), "has band 1; the model takes the bands red, blue"),
        ((tmp_path / "text.tif", "-o", out / "y.tif"), "cannot be read as a raster"),
        (
            (other_scale, "-o", out / "y.tif"),
            "band red: its tags of scale and offset say 0.0001·v + 0.1, and those of the training",
        ),
        ((tmp_path / "none.tif", "-o", out / "y.tif"), "no such file"),
        ((scene, "-o", out / "y.png"), "a scene is written as GeoTIFF"),
        ((scene, "-o", out / "missing" / "y.tif"), "no such folder"),
        ((scene, "-o", scene), "the scene itself"),
        ((scene, "-o", one_band), "--force overwrites it"),
        ((scene, "-o", out / "y.tif", "--tile", "33"), "does not fit this generator"),
    ):
        assert_refused(message, "translate-scene", run, *arguments)
    assert not list(out.iterdir())


def test_a_pair_on_two_grids_leaves_no_run(train_on, tmp_path):
    write_pair(tmp_path, height=192, width=192)
    write_raster(tmp_path / "targets" / "a.tif", landscape(192, 192, 1), dtype="float32", crs=OTHER_UTM)
    result, _ = train_on(tmp_path, TABLES)
    assert result.exit_code == 2
    [_, line] = result.output.strip().splitlines()  # after the name of the recipe
    assert "CRS differ, EPSG:32633 and EPSG:32632" in line
    assert not (tmp_path / "runs").exists()


def test_a_scene_with_other_pixels_is_warned_of(tmp_path):
    scene = write_raster(tmp_path / "x.tif", landscape(64, 64, 1), transform=from_origin(399960, 5300040, 20, 20))
    with pytest.warns(UserWarning, match="its pixels are 20 × 20"):
        translate_scene(model_of(), scene, tmp_path / "y.tif", tile=64)


def test_a_scene_whose_values_lie_outside_of_the_training_is_warned_of(tmp_path):
    x = Bands((1, 2), ("blue", "red"), ((0.0, 9000.0), (0.0, 60.0)), "uint16", 0, ("", "K"))
    for scale, faults in (
        (1, [r"band red: 100% of its values lie outside of the range .*, \[0, 60\] K: check"]),
        (0.005, []),
    ):
        values = landscape(150, 80, 2) * scale
        scene = write_raster(tmp_path / "x.tif", values, holes=[(slice(0, 60), slice(None))])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            translate_scene(model_of(x), scene, tmp_path / "y.tif", tile=64)
        assert len(caught) == len(faults)
        assert all(re.search(fault, str(each.message)) for fault, each in zip(faults, caught, strict=True))


def test_a_scene_without_a_georeference_is_translated_without_a_warning(tmp_path):
    for nodata in (0, None):
        scene = write_raster(tmp_path / "x.tif", landscape(40, 40, 1), crs=None, transform=None, nodata=nodata)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            translate_scene(model_of(), scene, tmp_path / "y.tif", tile=64, cog=True)
        assert [str(each.message) for each in caught] == []


@pytest.mark.parametrize("name", ["stack", "volume"])
def test_a_model_of_stacks_or_volumes_is_refused_with_the_command_for_it(tmp_path, name):
    scene = write_raster(tmp_path / "x.tif", landscape(40, 40, 1))
    model = model_of()
    model.header.as_json["file_layout"] = {"size": None, "scale": [1, 1], name: {"x": {}}}
    with pytest.raises(
        UserError, match=r"not trained on the dataset 'scenes'.* such as translate-stack or translate-vol"
    ):
        translate_scene(model, scene, tmp_path / "y.tif", tile=64)


def test_a_model_of_images_says_which_bands_the_scene_has(tmp_path):
    header = ModelHeader("generator", "mine", {}, 1, 1, (64, 64), run="r", size_divisor=4, test_mode="eval")
    model = Model(nn.Identity(), header, torch.device("cpu"))
    scene = write_raster(tmp_path / "x.tif", landscape(40, 40, 3), names=("blue", "green", "red"))
    with pytest.raises(UserError, match=r"x\.tif: has the bands blue, green, red; the model takes 1 band$"):
        translate_scene(model, scene, tmp_path / "y.tif", tile=64)


def test_a_scene_without_the_tags_of_scale_of_the_training_is_warned_of(tmp_path):
    scene = write_raster(tmp_path / "x.tif", landscape(32, 32, 1))
    x = Bands((1,), ("red",), ((0.0, 8000.0),), "uint16", scaling=((1e-4, -0.1),))
    with pytest.warns(UserWarning, match=r"band red: its tags .* 1·v \+ 0, and those of the training 0\.0001·v - 0\.1"):
        translate_scene(model_of(x), scene, tmp_path / "y.tif")


def test_units_and_tags_of_scale_are_written(tmp_path):
    scene = write_raster(tmp_path / "x.tif", landscape(32, 32, 1))
    y = Bands((1,), ("height",), ((0.0, 4000.0),), "int16", -9999.0, ("m",), ((0.1, -100.0),))
    translate_scene(model_of(y=y), scene, tmp_path / "y.tif", cog=True)
    with rasterio.open(tmp_path / "y.tif") as written:
        assert (written.units, written.scales, written.offsets) == (("m",), (0.1,), (-100,))


def test_a_damaged_description_of_bands_is_refused(tmp_path):
    scene = write_raster(tmp_path / "x.tif", landscape(64, 64, 1))
    for value in ({"x": 3}, {"x": {"numbers": []}}, [], "text"):
        model = model_of()
        model.header.as_json["file_layout"]["scene"] = value
        with pytest.raises(UserError, match="description of its bands is damaged"):
            translate_scene(model, scene, tmp_path / "y.tif", tile=64)


def test_four_bands_of_8_bits_are_no_opacity(tmp_path):
    scene = write_raster(tmp_path / "x.tif", landscape(64, 64, 1, low=1, high=250), dtype="uint8", nodata=None)
    bands = [Bands((*range(1, count + 1),), (None,) * count, ((0.0, 255.0),) * count, "uint8") for count in (1, 4)]

    class Repeat(nn.Module):
        def forward(self, x):
            return x.repeat(1, 4, 1, 1)

    translate_scene(model_of(*bands, G=Repeat()), scene, tmp_path / "y.tif", tile=64)
    with rasterio.open(tmp_path / "y.tif") as written:
        assert "alpha" not in [colour.name for colour in written.colorinterp]
        assert np.array_equal(written.read(), read(scene).repeat(4, axis=0))
        assert written.read_masks().all()


def test_another_dtype_than_in_training_is_refused(tmp_path):
    scene = write_raster(tmp_path / "x.tif", landscape(64, 64, 1) / 10000, dtype="float32")
    with pytest.raises(UserError, match="has values of float32, and the model was trained on uint16"):
        translate_scene(model_of(), scene, tmp_path / "y.tif", tile=64)
    assert [path.name for path in tmp_path.iterdir()] == ["x.tif"]


def test_a_model_of_another_dataset_takes_all_bands(tmp_path):
    header = ModelHeader("generator", "mine", {}, 1, 1, (64, 64), run="r", size_divisor=4, test_mode="eval",
                         x_range=(0.0, 8000.0), y_range=(0.0, 8000.0), x_dtype="uint16", y_dtype="uint16")  # fmt: skip
    scene = write_raster(tmp_path / "x.tif", landscape(64, 80, 1))
    translate_scene(Model(nn.Identity(), header, torch.device("cpu")), scene, tmp_path / "y.tif", tile=64)
    assert np.array_equal(read(tmp_path / "y.tif"), read(scene))
