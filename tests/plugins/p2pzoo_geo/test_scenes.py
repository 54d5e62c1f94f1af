"""The dataset `scenes`: windows, masks, scales, blocks, and refusals in one line."""

import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import p2pzoo_geo
import pytest
import rasterio
import rasterio.shutil
import torch
from landscapes import OTHER_UTM, UTM, landscape, write_pair, write_raster
from p2pzoo_geo.bands import Bands
from p2pzoo_geo.metrics import BandError
from p2pzoo_geo.scenes import Scenes
from p2pzoo_geo.windows import Grid
from p2pzoo_metrics.measured_values import MAE
from rasterio.transform import from_origin

from p2pzoo.data.splits import split_of
from p2pzoo.plugin import Batch
from p2pzoo.utils.errors import SharedFault, UserError
from p2pzoo.utils.folds import Fold

pytestmark = pytest.mark.usefixtures("own_cache")
HOLE = (slice(0, 40), slice(0, 50))
BLOCK = {"tiled": True, "blockxsize": 1024, "blockysize": 1024}


def scenes(folder, split="train", **parameters):
    values = {"size": 16, "block": 32, "fractions": (0.5, 0.25, 0.25), **parameters}
    return Scenes(split, **{"inputs": folder / "inputs", "targets": folder / "targets", **values})


def all_pairs(folder, **parameters):
    return [pair for split in ("train", "val", "test") for pair in scenes(folder, split, **parameters)]


def faults(folder, **parameters):
    with pytest.raises(UserError) as error:
        scenes(folder, **parameters)
    assert all("\n" not in fault for fault in error.value.faults if not isinstance(fault, SharedFault))
    return error.value.faults


def place(pair):
    row, column = (int(part[1:]) for part in pair.id.split("-")[-2:])
    return row, column


def test_windows_have_the_values_of_their_place(tmp_path):
    write_pair(tmp_path)
    with rasterio.open(tmp_path / "inputs" / "a.tif") as source:
        whole = source.read()
    for pair in all_pairs(tmp_path, x_scale=(0, 10000)):
        row, column = place(pair)
        assert pair.x.dtype == np.uint16
        assert np.array_equal(pair.x, whole[:, row : row + 16, column : column + 16].transpose(1, 2, 0))


def test_a_window_is_in_one_block_and_a_pixel_in_one_split(tmp_path):
    write_pair(tmp_path, height=100, width=135)
    owner = np.full((100, 135), "", object)
    for split in ("train", "val", "test"):
        dataset = scenes(tmp_path, split, stride=8)
        assert dataset.blocks == [pair.block for pair in dataset]
        for pair in dataset:
            row, column = place(pair)
            area = owner[row : row + 16, column : column + 16]
            assert set(area.ravel()) <= {"", split}
            area[:] = split
    assert {*owner.ravel()} >= {"train", "val", "test"}


def test_blocks_cover_a_scene_that_is_no_multiple_of_them():
    covered = np.zeros((70, 101), int)
    for box in Grid(16, 16, 32).blocks(70, 101):
        covered[box.top : box.bottom, box.left : box.right] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize(
    ("shape", "parameters", "share"),
    [
        ((128, 160), {}, None),
        ((130, 168), {}, "6%"),  # 128 × 160 of 130 × 168 px
        ((128, 168), {"stride": 8}, None),
        ((128, 160), {"block": 40}, "30%"),  # 32 + 32 + 48 of 128 rows, 4 × 32 of 160 columns
        ((128, 160), {"stride": 32}, None),  # gaps that were asked for
        ((512, 513), {}, None),
    ],
)
def test_the_share_of_pixels_that_no_window_reaches_is_said(tmp_path, shape, parameters, share):
    write_at(tmp_path, "a", shape=shape)
    grid = Grid(16, parameters.get("stride", 16), parameters.get("block", 32))
    reached = np.zeros(shape, bool)
    for block in grid.blocks(*shape):
        for box in grid.windows(block):
            reached[box.top : box.bottom, box.left : box.right] = True
    if grid.stride <= grid.size:
        beyond = sum(grid.unreached(block) for block in grid.blocks(*shape))
        assert beyond == (~reached).sum()
    _, lines = caught_by(scenes, tmp_path, x_scale=(0, 100), y_scale=(0, 100), fractions=(0.5, 0, 0.5), **parameters)
    assert len(lines) == bool(share)
    pattern = (
        f"inputs: {share} of the pixels, at the right and lower edges of blocks, are in no window: choose a `size`"
    )
    assert all(pattern in line for line in lines)


def test_windows_without_data_are_left_out_and_marked(tmp_path):
    write_pair(tmp_path, holes=[HOLE])
    strict, lenient = all_pairs(tmp_path), all_pairs(tmp_path, max_nodata=0.6)
    assert all(pair.labels.all() for pair in strict)
    assert len(strict) < len(lenient) < 8 * 10
    mixed = [pair for pair in lenient if not pair.labels.all()]
    low = scenes(tmp_path, max_nodata=0.6).y_range[0]
    assert mixed
    for pair in mixed:
        row, column = place(pair)
        inside = np.zeros((128, 160), bool)
        inside[HOLE] = True
        assert np.array_equal(pair.labels == 0, inside[row : row + 16, column : column + 16])
        assert (pair.y[pair.labels == 0] == low).all()


def test_nan_is_no_data_without_a_nodata_value(tmp_path):
    x = landscape(64, 96, 1)
    x[:, 3, 5] = np.nan
    write_raster(tmp_path / "inputs" / "a.tif", x, dtype="float32", nodata=None)
    write_raster(tmp_path / "targets" / "a.tif", landscape(64, 96, 1))
    assert len(all_pairs(tmp_path)) == 4 * 6 - 1


def test_bands_are_chosen_by_number_and_by_description(tmp_path):
    write_pair(tmp_path)
    by_name = scenes(tmp_path, x_bands=("red", "blue"), x_scale=(0, 10000))[0]
    by_number = scenes(tmp_path, x_bands=(3, 1), x_scale=(0, 10000))[0]
    assert by_name.x.shape == (16, 16, 2)
    assert np.array_equal(by_name.x, by_number.x)
    [fault] = faults(tmp_path, x_bands=("gren",))
    assert "a.tif: x_bands: no band is described as 'gren'" in fault
    assert "green" in fault
    [fault] = faults(tmp_path, y_bands=(2,))
    assert "there is no band 2" in fault


def test_a_description_that_occurs_twice_does_not_choose_a_band(tmp_path):
    write_pair(tmp_path)
    write_raster(tmp_path / "inputs" / "a.tif", landscape(128, 160, 3), names=("NDVI", "red", "NDVI"))
    [fault] = faults(tmp_path, x_bands=("red", "NDVI"))
    assert "a.tif: x_bands: bands 1 and 3 are described as 'NDVI': give a number" in fault
    assert scenes(tmp_path, x_bands=("red", 3)).x_bands.numbers == (2, 3)


def test_each_band_can_have_its_own_scale(tmp_path):
    write_pair(tmp_path)
    dataset = scenes(tmp_path, x_scale=((0, 10000), (0, 8000), (1000, 5000)))
    pair = dataset[0]
    assert (dataset.x_range, pair.x.dtype) == ((0.0, 1.0), np.float32)
    plain = scenes(tmp_path, x_scale=(0, 10000))[0].x.astype(float)
    assert np.allclose(pair.x[..., 1], plain[..., 1] / 8000, atol=1e-6)
    assert np.allclose(pair.x[..., 2], ((plain[..., 2] - 1000) / 4000).clip(0, 1), atol=1e-6)
    [fault] = faults(tmp_path, x_scale=((0, 1), (0, 2)))
    assert fault.startswith("x_scale has 2 scales for 3 bands")
    [fault] = faults(tmp_path, y_scale=(3, 3))
    assert "y_scale = [3, 3]" in fault


def test_percentiles_are_those_of_training_blocks_in_every_split(tmp_path):
    write_pair(tmp_path, holes=[HOLE])
    train, test = scenes(tmp_path), scenes(tmp_path, "test")
    assert train.y_bands == test.y_bands
    low, high = train.y_range
    raw = np.concatenate([pair.y[pair.labels == 1] for pair in scenes(tmp_path, y_scale=(-100, 100))])
    assert (low, high) == pytest.approx(tuple(np.percentile(raw.astype(float), (0.1, 99.9))), rel=1e-5)
    assert all(limit == int(limit) for scale in train.x_bands.scales for limit in scale)


def test_scales_are_measured_again_when_a_file_changes(tmp_path):
    write_pair(tmp_path)
    before = scenes(tmp_path)
    write_raster(tmp_path / "targets" / "a.tif", landscape(128, 160, 1) * 2, dtype="float32", nodata=-9999)
    after = scenes(tmp_path)
    assert after.y_range[1] > 2 * before.y_range[1]
    assert after.fingerprint != before.fingerprint


def test_files_behind_a_virtual_raster_count_too(tmp_path):
    write_pair(tmp_path)
    (tmp_path / "parts").mkdir()
    target = tmp_path / "targets" / "a.tif"
    part = target.rename(tmp_path / "parts" / "a.tif")
    rasterio.shutil.copy(part, target.with_suffix(".vrt"), driver="VRT")
    files = {"inputs": tmp_path / "inputs" / "a.tif", "targets": target.with_suffix(".vrt")}
    before = scenes(tmp_path, **files)
    write_raster(part, landscape(128, 160, 1) * 2, dtype="float32", nodata=-9999)
    after = scenes(tmp_path, **files)
    assert after.y_range[1] > 2 * before.y_range[1]
    assert after.fingerprint != before.fingerprint


def test_a_scene_stored_in_one_huge_block_is_refused(tmp_path, monkeypatch):
    write_pair(tmp_path)
    monkeypatch.setattr("p2pzoo_geo.rasters.MAX_BLOCK_MEGABYTES", 0.1)
    write_raster(tmp_path / "targets" / "a.tif", landscape(1024, 1024, 1), dtype="float32", **BLOCK)
    assert re.search(r"a\.tif: is stored in blocks of 1024×1024 px, and reading one takes 4 MB", faults(tmp_path)[0])
    write_pair(tmp_path)
    assert scenes(tmp_path)


def test_pairs_must_agree_in_their_tags_of_scale(tmp_path):
    write_pair(tmp_path, "a")
    write_pair(tmp_path, "b", scaling=(1e-4, 0.0))
    assert re.search(r"scale and offset differ, 0\.0001·v - 0\.1, .* and 0\.0001·v \+ 0, ", faults(tmp_path)[0])


def write_bands(folder, name, names, levels, unit="m", targets=("height",), **options):
    """A pair whose x has a constant level in each band."""
    x = np.broadcast_to(np.array(levels, float)[:, None, None], (len(levels), 128, 160))
    options = {"transform": from_origin(399960 + 2000 * ord(name[0]), 5300040, 10, 10), **options}
    write_raster(folder / "inputs" / f"{name}.tif", x, names=[each or "" for each in names], **options)
    y = landscape(128, 160, len(targets))
    write_raster(folder / "targets" / f"{name}.tif", y, dtype="float32", names=targets, unit=unit, **options)


def levels(folder, **parameters):
    """{scene: its levels}, of all splits."""
    pairs = all_pairs(folder, x_scale=(0, 10000), **parameters)
    return {pair.id[0]: pair.x[0, 0].tolist() for pair in pairs}


@pytest.mark.parametrize("numbers", [None, (1, 2, 3)])
def test_bands_in_another_order_are_refused_unless_they_are_chosen_by_name(tmp_path, numbers):
    write_bands(tmp_path, "a", ("B04", "B03", "B02"), (1000, 2000, 3000))
    write_bands(tmp_path, "b", ("B02", "B03", "B04"), (3000, 2000, 1000))
    [fault] = faults(tmp_path, x_bands=numbers)
    assert re.search(
        r"inputs/a\.tif and .*inputs/b\.tif: band 1 of x is 'B04' and 'B02': .* name them in x_bands", fault
    )
    chosen = levels(tmp_path, x_bands=("B04", "B02"))
    assert chosen == {"a": [1000, 3000], "b": [1000, 3000]}


def test_bands_with_names_of_their_own_are_the_same_where_a_recipe_gives_numbers(tmp_path):
    write_bands(tmp_path, "a", ("B04 June", "B03 June"), (1000, 2000))
    write_bands(tmp_path, "b", ("B04 July", "B03 July"), (1100, 2100))
    assert "give their numbers in x_bands" in faults(tmp_path)[0]
    with pytest.warns(UserWarning, match=r"band 1 of x is 'B04 June' and 'B04 July': check that they are the same"):
        assert levels(tmp_path, x_bands=(1, 2)) == {"a": [1000, 2000], "b": [1100, 2100]}


def test_a_band_without_a_name_or_a_unit_fits_all(tmp_path):
    write_bands(tmp_path, "a", (None, None), (1000, 2000), unit=None)
    write_bands(tmp_path, "b", ("B04", None), (1000, 2000))
    assert levels(tmp_path) == {"a": [1000, 2000], "b": [1000, 2000]}
    write_bands(tmp_path, "c", ("B05", "B03"), (1000, 2000))
    assert re.search(r"b\.tif and .*c\.tif: band 1 of x is 'B04' and 'B05'", faults(tmp_path)[0])


def test_pairs_must_agree_in_units(tmp_path):
    write_bands(tmp_path, "a", ("B04",), (1000,))
    write_bands(tmp_path, "b", ("B04",), (1000,), unit="ft")
    [fault] = faults(tmp_path)
    assert re.search(r"targets/a\.tif and .*targets/b\.tif: the units of band 1 of y differ, m and ft: ", fault)


@pytest.mark.parametrize(
    ("crs", "side", "is_warned"),
    [(UTM, 10, False), (UTM, 10.3, False), (UTM, 20, True), (OTHER_UTM, 20, True), ("EPSG:2263", 32.81, False)],
)
def test_scenes_with_pixels_of_another_size_are_warned_of(tmp_path, crs, side, is_warned):
    write_bands(tmp_path, "a", ("B04",), (1000,))
    write_bands(tmp_path, "b", ("B04",), (1000,), crs=crs, transform=from_origin(0, 0, side, side))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scenes(tmp_path)
    found = [str(each.message) for each in caught if "pixels" in str(each.message)]
    assert len(found) == is_warned
    assert all("a.tif and " in line and "differ in size, 10 × 10 and 20 × 20 m" in line for line in found)


def test_rasters_of_another_dtype_are_to_be_converted(tmp_path):
    write_bands(tmp_path, "a", ("B04",), (1000,))
    write_bands(tmp_path, "b", ("B04",), (1000,))
    write_raster(tmp_path / "inputs" / "b.tif", landscape(128, 160, 1), dtype="float32")
    write_raster(tmp_path / "targets" / "b.tif", landscape(128, 160, 1), dtype="float32")
    assert "convert them to one dtype" in faults(tmp_path)[0]


def test_values_are_within_the_range(tmp_path):
    write_pair(tmp_path, holes=[HOLE])
    dataset = scenes(tmp_path, max_nodata=0.9)
    for pair in dataset:
        assert dataset.x_range[0] <= pair.x.min()
        assert pair.x.max() <= dataset.x_range[1]
        assert dataset.y_range[0] <= pair.y.min()
        assert pair.y.max() <= dataset.y_range[1]


@pytest.mark.parametrize("scale", [[-1000, 10000], [0, 70000], [10, 3000]])
def test_pixels_without_data_have_the_lower_end_whatever_the_dtype_holds(tmp_path, scale):
    write_pair(tmp_path, holes=[HOLE])
    dataset = scenes(tmp_path, max_nodata=0.9, x_scale=scale)
    assert dataset.x_range == tuple(scale)
    pairs = [pair for pair in dataset if (pair.labels == 0).any()]
    assert pairs
    for pair in pairs:
        assert set(np.unique(pair.x[pair.labels == 0])) == {scale[0]}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"crs": OTHER_UTM}, "CRS differ, EPSG:32633 and EPSG:32632"),
        ({"crs": None}, "CRS differ, EPSG:32633 and none"),
        ({"transform": from_origin(399965, 5300040, 10, 10)}, "transforms differ, by up to 0.5 px"),
        ({"transform": from_origin(399960, 5300040, 20, 20)}, "transforms differ"),
    ],
)
def test_other_grids_are_refused_in_one_line_that_names_both(tmp_path, other, message):
    write_pair(tmp_path)
    write_raster(tmp_path / "targets" / "a.tif", landscape(128, 160, 1), **other)
    [fault] = faults(tmp_path)
    assert message in fault
    assert str(tmp_path / "inputs" / "a.tif") in fault
    assert str(tmp_path / "targets" / "a.tif") in fault
    assert 'resample = "x"' in fault


def test_all_pairs_with_faults_are_named(tmp_path):
    for name, width in (("a", 160), ("b", 150), ("c", 160)):
        write_pair(tmp_path, name)
        write_raster(tmp_path / "targets" / f"{name}.tif", landscape(128, width, 1))
    write_raster(tmp_path / "targets" / "c.tif", landscape(128, 160, 1), crs=OTHER_UTM)
    found = faults(tmp_path)
    assert len(found) == 2
    assert "sizes differ, 160×128 and 150×128 px" in found[0]
    assert "c.tif" in found[1]


def test_faults_of_all_kinds_are_named_together(tmp_path):
    for name in "abcd":
        write_pair(tmp_path, name)
    (tmp_path / "targets" / "d.tif").unlink()
    for side in ("inputs", "targets"):
        (tmp_path / side / "a.tif").write_text("no raster")
    write_raster(tmp_path / "targets" / "b.tif", landscape(128, 150, 1), crs=OTHER_UTM)
    found = faults(tmp_path, x_bands=("green",), y_bands=("height",))
    for message in (
        "inputs: 1 of 4 images without a partner of the same name in",
        f"{tmp_path / 'inputs' / 'a.tif'}: cannot be read",
        f"{tmp_path / 'targets' / 'a.tif'}: cannot be read",
        "b.tif: y_bands: no band is described as 'height'; it has band 1, without descriptions: give numbers",
    ):
        assert sum(message in str(fault) for fault in found) == 1, message
    assert len(found) == 4


def test_one_raster_is_resampled_to_the_grid_of_the_other_where_asked(tmp_path):
    x = landscape(128, 160, 1)
    write_raster(tmp_path / "inputs" / "a.tif", x)
    coarse = x[:, ::2, ::2]
    write_raster(tmp_path / "targets" / "a.tif", coarse, transform=from_origin(399960, 5300040, 20, 20))
    assert "sizes differ" in faults(tmp_path)[0]
    dataset = scenes(tmp_path, resample="y", resampling="nearest", x_scale=(0, 10000), y_scale=(0, 10000))
    pair = dataset[0]
    assert pair.y.shape == pair.x.shape
    assert np.array_equal(pair.y[::2, ::2], pair.x[::2, ::2])
    assert dataset.file_layout.scene["pixel"] == [10, 10]
    assert scenes(tmp_path, resample="x", split_seed=3).file_layout.scene["pixel"] == [20, 20]
    with pytest.raises(ValueError, match="needs resample"):
        scenes(tmp_path, resampling="nearest")


def test_what_lies_outside_of_a_resampled_raster_is_no_data(tmp_path):
    write_raster(tmp_path / "inputs" / "a.tif", landscape(128, 160, 1), nodata=None)
    shifted = from_origin(399960 + 800, 5300040, 10, 10)
    write_raster(tmp_path / "targets" / "a.tif", landscape(128, 160, 1), nodata=None, transform=shifted)
    columns = {place(pair)[1] for pair in all_pairs(tmp_path, resample="y")}
    assert columns == {80, 96, 112, 128, 144}


def test_a_resampled_raster_can_have_opacity(tmp_path):
    write_raster(tmp_path / "inputs" / "a.tif", landscape(128, 160, 1), nodata=None)
    rgba = np.concatenate([landscape(128, 160, 3, high=255), np.full((1, 128, 160), 255)])
    rgba[3, :, :32] = 0
    shifted = from_origin(399960 - 320, 5300040, 10, 10)
    file = tmp_path / "targets" / "a.tif"
    write_raster(file, rgba, dtype="uint8", nodata=None, transform=shifted, photometric="RGB", alpha="YES")
    pairs = all_pairs(tmp_path, resample="y")
    assert {place(pair)[1] for pair in pairs} == {0, 16, 32, 48, 64, 80, 96, 112}
    assert pairs[0].y.shape[2] == 3


def test_folds_are_made_of_blocks(tmp_path):
    write_pair(tmp_path)
    tested = []
    for fold in range(3):
        parts = {s: Fold(fold, 3).open(lambda split: scenes(tmp_path, split), s) for s in ("train", "val", "test")}
        blocks = {split: {pair.block for pair in part} for split, part in parts.items()}
        assert not blocks["test"] & (blocks["train"] | blocks["val"])
        tested += [pair.id for pair in parts["test"]]
    assert sorted(tested) == sorted(pair.id for pair in all_pairs(tmp_path))


HERE = (399960, 5300040)  # upper left corner


def write_at(folder, name, corner=HERE, side=10, crs=UTM, shape=(128, 160)):
    """A pair of rasters with one level of its own. corner: None: without a georeference."""
    place = {"crs": crs, "transform": from_origin(*corner, side, side)} if corner else {"crs": None, "transform": None}
    for folder_name, subs in (("inputs", name), ("targets", name)):
        values = np.full((1, *shape), 1 + sum(map(ord, name)))
        write_raster(folder / folder_name / f"{subs}.tif", values, **place)


def splits(folder, **parameters):
    """{split: {(scene, corner of the block)}}, and the blocks that pairs name, likewise; checked by the windows."""
    values, named = {}, {}
    for split in ("train", "val", "test"):
        dataset = scenes(folder, split, x_scale=(0, 10000), y_scale=(0, 10000), **parameters)
        pairs = [*dataset]
        assert [*dataset.blocks] == [pair.block for pair in pairs]
        values[split] = {(pair.id.rsplit("-", 2)[0], pair.block.partition("-b")[2]) for pair in pairs}
        named[split] = {pair.block for pair in pairs}
    return values, named


def caught_by(function, *arguments, **parameters):
    """(what the function returns, its warnings)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return function(*arguments, **parameters), [str(each.message) for each in caught]


def test_the_same_ground_is_in_one_split_whatever_the_date(tmp_path):
    for name, corner in (("b-1", HERE), ("b-2", HERE), ("b-3", (HERE[0] + 0.001, HERE[1])), ("c", (0, 0))):
        write_at(tmp_path, name, corner)
    (values, named), lines = caught_by(splits, tmp_path)
    assert lines == []
    for split, of_split in values.items():
        assert of_split
        for scene, corner in of_split:
            first = "c" if scene == "c" else "b-1"
            assert split_of(f"{first}-b{corner}", (0.5, 0.25, 0.25), 0) == split
        assert named[split] == {f"{'c' if scene == 'c' else 'b-1'}-b{corner}" for scene, corner in of_split}
    assert sum(map(len, values.values())) == 4 * 20
    assert sum(map(len, named.values())) == 2 * 20
    before = scenes(tmp_path).fingerprint
    write_at(tmp_path, "b-2", (5000, 5000))
    assert scenes(tmp_path).fingerprint != before


def test_folds_keep_the_same_ground_together(tmp_path):
    for name in ("a-1", "a-2"):
        write_at(tmp_path, name)
    parts = {s: Fold(0, 3).open(lambda split: scenes(tmp_path, split), s) for s in ("train", "val", "test")}
    places = {split: {place(pair) for pair in part} for split, part in parts.items()}
    assert not places["test"] & (places["train"] | places["val"])


@pytest.mark.parametrize("step", [0, 1600])
@pytest.mark.parametrize("corner", [None, (3e5, 0)])
def test_scenes_without_repeated_ground_keep_their_splits(tmp_path, corner, step):
    """Pixels without a georeference have no place, and corners without a coordinate system may be each file's own."""
    for name, east in (("a", 0), ("b", step)):
        write_at(tmp_path, name, corner and (corner[0] + east, 0), crs=None)
    (values, named), lines = caught_by(splits, tmp_path)
    assert lines == []
    for split, of_split in values.items():
        assert named[split] == {f"{scene}-b{corner}" for scene, corner in of_split}
        assert all(split_of(name, (0.5, 0.25, 0.25), 0) == split for name in named[split])


OVERLAPS = {  # (options of the second scene, whether ground is in both)
    "shifted": ({"corner": (HERE[0] + 805, HERE[1])}, True),
    "smaller": ({"shape": (64, 64)}, True),
    "coarser": ({"corner": (HERE[0] - 100, HERE[1] + 100), "side": 20}, True),
    "zone": ({"corner": (845000, 5312000), "crs": OTHER_UTM, "side": 100}, True),
    "beside": ({"corner": (HERE[0] + 1600, HERE[1])}, False),
    "below": ({"corner": (HERE[0], HERE[1] - 1280)}, False),
    "other zone": ({"crs": OTHER_UTM}, False),
    "no CRS": ({"crs": None}, False),
}


@pytest.mark.parametrize(("options", "is_both"), OVERLAPS.values(), ids=OVERLAPS)
def test_scenes_that_overlap_on_other_grids_are_warned_of(tmp_path, options, is_both):
    write_at(tmp_path, "a")
    write_at(tmp_path, "b", **options)
    _, lines = caught_by(scenes, tmp_path)
    lines = [line for line in lines if "pixels" not in line]
    assert len(lines) == is_both
    assert all(re.search(r"a\.tif and .*b\.tif: show the same ground on different grids", line) for line in lines)


@pytest.mark.parametrize("second", ["train/b", "test/b"])
def test_ground_in_two_of_the_folders_is_warned_of(tmp_path, second):
    for name, corner in (("train/a", HERE), (second, HERE), ("val/c", (0, 0)), ("train/d", (HERE[0] + 5, HERE[1]))):
        write_at(tmp_path, name, corner)
    _, lines = caught_by(scenes, tmp_path)
    assert len(lines) == (second == "test/b")
    assert all(
        re.search(r"test/b\.tif and .*train/a\.tif: show the same ground, in test/ and train/, ", e) for e in lines
    )


def test_folders_can_define_the_splits(tmp_path):
    for split in ("train", "test"):
        for side in ("inputs", "targets"):
            write_raster(tmp_path / side / split / "a.tif", landscape(64, 64, 1))
    assert len(scenes(tmp_path)) == len(scenes(tmp_path, "test")) == 16
    assert scenes(tmp_path)[0].id == "train-a-r0-c0"


def test_a_split_without_blocks_is_refused_with_a_seed_that_helps(tmp_path):
    write_pair(tmp_path, height=64, width=64)
    [fault] = faults(tmp_path, split_seed=0)
    seed = int(fault.rpartition("split_seed = ")[2])
    assert all(len(scenes(tmp_path, split, split_seed=seed)) for split in ("train", "val", "test"))
    [fault] = faults(tmp_path, block=64)
    assert "1 block for 3 splits: make `block` smaller" in fault


def test_files_that_are_no_rasters_are_named(tmp_path):
    write_pair(tmp_path)
    (tmp_path / "inputs" / "a.tif").write_bytes(b"no TIFF")
    assert "a.tif: cannot be read as a raster" in faults(tmp_path)[0]


@pytest.mark.parametrize("max_nodata", [0.1, 0.2])  # masks are read at once, or were read before
def test_a_truncated_raster_is_named_when_it_is_read(tmp_path, max_nodata):
    write_pair(tmp_path)
    dataset = scenes(tmp_path, max_nodata=0.1)
    file = tmp_path / "inputs" / "a.tif"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=r"a\.tif: cannot be read"):
        list(dataset) if max_nodata == 0.1 else scenes(tmp_path, max_nodata=max_nodata)


def test_pairs_must_agree_in_bands(tmp_path):
    write_pair(tmp_path, "a")
    write_pair(tmp_path, "b")
    write_raster(tmp_path / "inputs" / "b.tif", landscape(128, 160, 2))
    assert "bands differ, 3 of uint16 with 1 of float32 and 2 of uint16 with 1 of float32" in faults(tmp_path)[0]


def test_bands_come_back_from_the_network_as_they_were():
    bands = Bands((1, 2), (None, "b"), ((0.0, 4000.0), (-50.0, 50.0)), "int16", -9999.0)
    values = np.stack([np.arange(0, 4000, 40).reshape(10, 10), np.arange(-50, 50).reshape(10, 10)]).astype(np.int16)
    seen = bands.to_network(values, np.ones((10, 10), bool))
    assert np.abs(seen).max() <= 1
    assert np.array_equal(np.stack([bands.from_network(seen[i], i) for i in range(2)]), values)
    assert Bands.from_json(bands.as_json()) == bands


def test_nan_as_nodata_survives_json():
    bands = Bands((1,), (None,), ((0.0, 1.0),), "float32", float("nan"))
    assert bands.as_json()["nodata"] == "nan"
    assert np.isnan(Bands.from_json(bands.as_json()).nodata)


def batch_of(dataset, pairs):
    def scaled(images, limits):
        values = torch.from_numpy(np.stack(images).astype(np.float32)).permute(0, 3, 1, 2)
        return (values - limits[0]) * (2 / (limits[1] - limits[0])) - 1

    labels = torch.from_numpy(np.stack([pair.labels for pair in pairs]).astype(np.int64))
    x, y = scaled([p.x for p in pairs], dataset.x_range), scaled([p.y for p in pairs], dataset.y_range)
    return Batch(x, y, tuple(pair.id for pair in pairs), labels)


def test_mae_is_in_the_units_of_the_band_and_can_leave_out_nodata(tmp_path):
    write_pair(tmp_path, holes=[HOLE])
    dataset = scenes(tmp_path, max_nodata=0.6)
    pairs = [pair for pair in dataset if not pair.labels.all()]
    batch = batch_of(dataset, pairs)
    low, high = dataset.y_range
    y_hat = batch.y + 3 / ((high - low) / 2)  # 3 units of the band more
    y_hat = torch.where((batch.labels == 0)[:, None], 1.0, y_hat)
    for metric in (MAE(dataset, classes=["valid"]), BandError(dataset)):
        numbers = metric.reduce(metric.measure(batch, y_hat))
        assert numbers["value"] == pytest.approx(3, rel=1e-4)
    assert numbers["bias_height"] == pytest.approx(3, rel=1e-4)
    assert numbers["rmse_height"] == pytest.approx(3, rel=1e-4)


def test_band_errors_are_in_each_bands_own_units(tmp_path):
    y = np.stack([landscape(128, 160, 1, low=0, high=4000)[0], landscape(128, 160, 1, seed=3, low=0, high=90)[0]])
    write_raster(tmp_path / "inputs" / "a.tif", landscape(128, 160, 1))
    write_raster(tmp_path / "targets" / "a.tif", y, dtype="float32", nodata=None, names=("height", "slope"))
    dataset = scenes(tmp_path, y_scale=((0, 4000), (0, 90)))
    batch = batch_of(dataset, [dataset[0], dataset[1]])
    y_hat = batch.y - torch.tensor([10 / 2000, 2 / 45])[:, None, None]
    metric = BandError(dataset)
    numbers = metric.reduce(metric.measure(batch, y_hat))
    assert (numbers["mae_height"], numbers["mae_slope"]) == pytest.approx((10, 2), rel=1e-3)
    assert (numbers["bias_height"], numbers["bias_slope"]) == pytest.approx((-10, -2), rel=1e-3)


def test_bands_of_an_encoded_y_have_the_levels_of_the_rgb_that_metrics_see():
    dataset = SimpleNamespace(y_range=(0, 65534), y_encoding="ab", classes=None)
    assert BandError(dataset).protocol == {"scales": [[0.0, 255.0]]}


def test_two_rasters_are_a_dataset_too(tmp_path):
    write_pair(tmp_path)
    one = scenes(tmp_path, inputs=tmp_path / "inputs" / "a.tif", targets=tmp_path / "targets" / "a.tif")
    assert [pair.id for pair in one] == [pair.id for pair in scenes(tmp_path)]
    assert one.file_layout.scene["crs"] == UTM


def test_threads_can_read_at_once(tmp_path):
    write_pair(tmp_path)
    dataset = scenes(tmp_path, resample="y")
    with ThreadPoolExecutor(8) as pool:
        read = [*pool.map(dataset.__getitem__, [*range(len(dataset))] * 3)]
    for number, pair in enumerate(read):
        expected = dataset[number % len(dataset)]
        assert pair.id == expected.id
        assert np.array_equal(pair.x, expected.x)


def test_the_readmes_recipe_can_be_used(tmp_path, run_cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(p2pzoo_geo.__file__).with_name("README.md").read_text("utf-8")
    [recipe] = re.findall("```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.toml").write_text(recipe)
    names = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08"]
    write_raster(tmp_path / "sentinel" / "a.tif", landscape(96, 160, 1).repeat(8, axis=0), names=names)
    write_raster(tmp_path / "heights" / "a.tif", landscape(96, 160, 1, low=0, high=60), dtype="float32")
    small = [
        f"dataset.{text}" for text in ("size=16", "block=32", "x_scale=[[0, 9000], [0, 9000], [0, 9000], [0, 8000]]")
    ]
    result = run_cli("data", "stats", "mine.toml", *(part for text in small for part in ("-s", text)))
    assert result.exit_code == 0, result.output
    assert "16×16×4 float32" in result.output
