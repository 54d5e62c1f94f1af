"""`folders`, `side-by-side`: what becomes of every kind of file, which pair is in which split, what a user is told."""

import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from p2pzoo_datasets.folders import Folders, SideBySide
from PIL import Image

from p2pzoo.data.splits import assign_splits, split_of
from p2pzoo.images.io import write_png
from p2pzoo.images.resize import resize_to
from p2pzoo.plugin.protocols import Dataset
from p2pzoo.utils.errors import UserError

stands_in = pytest.mark.filterwarnings("ignore:.*stands in for it:UserWarning")


def noise(height=32, width=48, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def ramp(height, width):
    """A smooth picture: red grows downwards, green to the right."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([rows * 255, columns * 255, rows * 0], axis=-1).round().astype(np.uint8)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def put(home):
    """put("photos/001.png", array): an image file, folders made as needed; returns its path."""

    def put(name, image, **options):
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png" and not options:
            write_png(path, image)
        else:
            Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(path, **options)
        return path

    return put


@pytest.fixture
def splits(put):
    """photos/ and maps/ with train/ (4 pairs), val/ (2) and test/ (1); pixels differ everywhere."""
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        for number in range(count):
            put(f"photos/{split}/{number}.png", noise(seed=number))
            put(f"maps/{split}/{number}.png", noise(seed=100 + number, channels=1))


def folders(split="train", **parameters):
    return Folders(split, **{"inputs": "photos", "targets": "maps", **parameters})


def one_pair(put, x, y=None, name="0", **parameters):
    """The first training pair, after x and y have been put there (None: as it is), beside an RGB pair in val."""
    if x is not None:
        put(f"photos/train/{name}.png", x)
    put(f"maps/train/{name}.png", noise() if y is None else y)
    put("photos/val/0.png", noise())
    put("maps/val/0.png", noise())
    return folders(**parameters)[0]


def told(make):
    with pytest.raises(UserError) as caught:
        make()
    return str(caught.value)


class TestPairs:
    def test_are_matched_by_name_whatever_the_format(self, put):
        for number in range(3):
            put(f"photos/train/{number}.webp", noise(seed=number), lossless=True)
            put(f"maps/train/{number}.bmp", noise(seed=9 - number))
        put("photos/val/0.png", noise())
        put("maps/val/0.PNG", noise(), format="PNG")
        train = folders()
        assert isinstance(train, Dataset)
        assert [pair.id for pair in train] == ["train-0", "train-1", "train-2"]
        for number, pair in enumerate(train):
            np.testing.assert_array_equal(pair.x, noise(seed=number))
            np.testing.assert_array_equal(pair.y, noise(seed=9 - number))
            assert (pair.labels, pair.block) == (None, None)
        assert (train.x_range, train.y_range, train.classes, train.palette) == ((0, 255), (0, 255), None, None)

    def test_an_accent_is_the_same_however_the_file_system_writes_it(self, put):
        for split in ("train", "val"):
            put(f"photos/{split}/caf\u00e9.png", noise())
            put(f"maps/{split}/cafe\u0301.png", noise())
        assert [pair.id for pair in folders()] == ["train-caf\u00e9"]

    def test_b_to_a_swaps_x_and_y_and_what_the_channels_are_of(self, splits):
        there, back = folders(), folders(direction="BtoA", input_channels=3, target_channels=3)
        np.testing.assert_array_equal(back[0].y, there[0].x)
        np.testing.assert_array_equal(back[0].x, np.repeat(there[0].y, 3, axis=2))

    def test_a_picture_with_two_halves_is_a_pair(self, put):
        for split in ("train", "val"):
            put(f"both/{split}/a.png", np.concatenate([noise(seed=1), noise(seed=2)], axis=1))
        for direction, x, y in (("AtoB", 1, 2), ("BtoA", 2, 1)):
            [pair] = SideBySide("train", root="both", direction=direction)
            np.testing.assert_array_equal(pair.x, noise(seed=x))
            np.testing.assert_array_equal(pair.y, noise(seed=y))

    def test_can_be_pickled_and_changed_in_memory(self, splits):
        again = pickle.loads(pickle.dumps(folders("val")))
        np.testing.assert_array_equal(again[1].x, folders("val")[1].x)
        again[1].x[:] = 0
        assert again[1].x.any()
        with pytest.raises(IndexError):
            again[2]

    def test_max_pairs_takes_the_first_of_each_split_by_name(self, splits):
        assert [pair.id for pair in folders(max_pairs=2)] == ["train-0", "train-1"]
        assert len(folders("test", max_pairs=2)) == 1

    def test_nothing_in_the_folders_is_changed(self, splits, home):
        def snapshot():
            return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in home.rglob("*")}

        before = snapshot()
        for split in ("train", "val", "test"):
            list(folders(split, size=(16, 16), resize="crop"))
        assert snapshot() == before

    def test_no_pixel_is_decoded_before_it_is_asked_for(self, splits, monkeypatch):
        monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded an image"))
        monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded an image"))
        assert len(folders()) == 4


class TestFormats:
    def test_grey_stays_one_channel(self, put):
        assert one_pair(put, noise(channels=1)).x.shape == (32, 48, 1)

    def test_grey_among_colours_becomes_three_equal_channels(self, put):
        put("photos/train/0.png", noise())
        put("maps/train/0.png", noise())
        one_pair(put, noise(channels=1), name="1")
        np.testing.assert_array_equal(folders()[1].x, np.repeat(noise(channels=1), 3, axis=2))

    def test_rgb_is_taken_as_it_is(self, put):
        np.testing.assert_array_equal(one_pair(put, noise()).x, noise())

    def test_rgb_that_is_grey_throughout_can_be_asked_for_as_grey(self, put):
        pair = one_pair(put, np.repeat(noise(channels=1), 3, axis=2), input_channels=1)
        np.testing.assert_array_equal(pair.x, noise(channels=1))

    def test_transparency_is_a_fourth_channel(self, put):
        np.testing.assert_array_equal(one_pair(put, noise(channels=4)).x, noise(channels=4))

    def test_opaque_rgba_can_be_asked_for_as_rgb(self, put):
        opaque = np.dstack([noise(), np.full((32, 48), 255, np.uint8)])
        np.testing.assert_array_equal(one_pair(put, opaque, input_channels=3).x, noise())

    def test_transparent_rgba_is_not_flattened_on_the_quiet(self, put):
        message = told(lambda: one_pair(put, noise(channels=4), input_channels=3))
        assert message.startswith("photos/train/0.png: it has transparent pixels, and RGB was expected: flatten it")
        assert message.endswith("(input_channels is 3: given, or the first training pair's)")

    @pytest.mark.parametrize("options", [{}, {"transparency": 1}])
    def test_palettes_are_looked_up(self, put, home, options):
        numbers, colours = noise(channels=1)[..., 0] % 3, np.eye(3, dtype=np.uint8) * 255
        drawing = Image.fromarray(numbers, "P")
        drawing.putpalette(colours.tobytes())
        (home / "photos/train").mkdir(parents=True)
        drawing.save(home / "photos/train/0.png", **options)
        x = one_pair(put, None).x
        np.testing.assert_array_equal(x[..., :3], colours[numbers])
        assert x.shape[2] == (4 if options else 3)
        if options:
            np.testing.assert_array_equal(x[..., 3] == 0, numbers == 1)

    def test_a_jpeg_that_the_camera_turned_is_turned_upright_before_it_is_measured(self, put, home):
        exif = Image.Exif()
        exif[0x0112] = 6  # shown turned by 90° clockwise
        put("photos/train/0.jpg", ramp(48, 32), quality=98, exif=exif)
        pair = one_pair(put, None, ramp(32, 48))
        assert pair.x.shape == (32, 48, 3)
        upright = np.rot90(ramp(48, 32), -1)
        assert np.abs(pair.x.astype(int) - upright).mean() < 4

    def test_sixteen_bits_a_channel_stay_sixteen(self, put, home):
        (home / "photos/train").mkdir(parents=True)
        deep = np.random.default_rng(0).integers(0, 65536, (32, 48), dtype=np.uint16)
        Image.fromarray(deep).save(home / "photos/train/0.png")
        for split in ("train", "val"):
            put(f"maps/{split}/0.png", noise())
        (home / "photos/val").mkdir()
        Image.fromarray(deep).save(home / "photos/val/0.png")
        data = folders()
        assert data.x_range == (0, 65535)
        np.testing.assert_array_equal(data[0].x[..., 0], deep)

    def test_depths_are_not_mixed(self, put, home):
        (home / "photos/train").mkdir(parents=True)
        Image.fromarray(np.full((32, 48), 40_000, np.uint16)).save(home / "photos/train/0.png")
        put("photos/train/1.png", noise())
        put("maps/train/1.png", noise())
        assert (
            told(lambda: one_pair(put, None)).splitlines()
            == [
                "images of one side must be stored alike, and nothing is converted:",
                "  photos/train/1.png is uint8, the first training pair's is uint16",
                "  photos/val/0.png is uint8, the first training pair's is uint16",
            ][:2]
        )

    def test_floats_need_a_range_and_keep_within_it(self, home):
        for split in ("train", "val"):
            for folder, scale in (("photos", 1.0), ("maps", 2.0)):
                (home / folder / split).mkdir(parents=True)
                np.save(home / folder / split / "0.npy", np.linspace(0, scale, 60, dtype=np.float32).reshape(4, 3, 5))
        assert told(folders) == (
            "photos/train/0.npy: is float32: declare the values that become -1 and 1, as in input_range = [0.0, 1.0]"
        )
        data = folders(input_range=(0.0, 1.0), target_range=(0.0, 1.0))
        assert told(lambda: data[0]) == ("maps/train/0.npy: its values reach from 0 to 2, and target_range is [0, 1]")
        data = folders(input_range=(0.0, 1.0), target_range=(0.0, 2.0))
        assert (data[0].x.shape, data[0].y.dtype, data.y_range) == ((4, 3, 5), np.float32, (0.0, 2.0))


class TestSizes:
    def test_the_first_training_pair_decides_for_every_split(self, put):
        one_pair(put, noise(16, 24), noise(16, 24))
        assert folders("val", resize="stretch")[0].x.shape == (16, 24, 3)

    def test_stretch_fills_the_size_and_loses_proportions(self, put):
        pair = one_pair(put, ramp(40, 80), ramp(20, 10), size=(32, 32), resize="stretch")
        for image in (pair.x, pair.y):
            assert np.abs(image.astype(int) - ramp(32, 32)).max() <= 12

    def test_crop_keeps_proportions_and_the_middle(self, put):
        pair = one_pair(put, ramp(40, 80), ramp(40, 80), size=(20, 20), resize="crop")
        np.testing.assert_array_equal(pair.x, pair.y)
        red, green = pair.x[..., 0].astype(int), pair.x[..., 1].astype(int)
        assert (red[0].max() < 10, red[-1].min() > 245) == (True, True), "the whole height"
        assert abs(green[:, 0].mean() - 255 / 4) < 6, "from a quarter of the width"
        assert abs(green[:, -1].mean() - 255 * 3 / 4) < 6, "to three quarters"

    def test_fit_keeps_proportions_and_continues_by_reflection(self, put):
        pair = one_pair(put, ramp(20, 40), ramp(20, 40), size=(40, 40), resize="fit")
        np.testing.assert_array_equal(pair.x, pair.y)
        np.testing.assert_array_equal(pair.x[10:30], ramp(20, 40))
        np.testing.assert_array_equal(pair.x[:10], ramp(20, 40)[10:0:-1])
        np.testing.assert_array_equal(pair.x[30:], ramp(20, 40)[-2:-12:-1])

    @pytest.mark.parametrize("how", ["fit", "crop"])
    @given(st.tuples(*[st.integers(1, 40)] * 4), st.sampled_from([1, 2, 3, 4]))
    def test_any_size_becomes_the_size(self, how, sides, channels):
        height, width, *size = sides
        image = resize_to(np.full((height, width, channels), 255, np.uint8), tuple(size), how)
        assert image.shape == (*size, channels)
        assert (image == 255).all()

    def test_a_pair_of_two_resolutions_is_brought_to_one(self, put):
        pair = one_pair(put, ramp(100, 150), ramp(200, 300), size=(32, 32), resize="fit")
        assert np.abs(pair.x.astype(int) - pair.y).max() <= 3

    def test_sizes_that_differ_within_pairs_are_named(self, put):
        for number in range(5):
            put(f"photos/train/{number}.png", noise(32, 32))
            put(f"maps/train/{number}.png", noise(32, 64) if number else noise(32, 32))
        message = told(lambda: one_pair(put, noise(32, 32), name="0", y=noise(32, 32)))
        assert message.splitlines() == [
            'the images of a pair differ in size, and resize = "none":',
            *(f"  photos/train/{n}.png is 32×32 px, maps/train/{n}.png is 64×32 px" for n in (1, 2, 3)),
            "  ... and 1 more",
        ]
        assert "differ in proportions" in told(lambda: folders(size=(32, 32), resize="crop"))
        assert len(folders(resize="stretch")) == 5

    def test_sizes_that_differ_between_pairs_are_named(self, put):
        put("photos/train/1.png", noise(30, 30))
        put("maps/train/1.png", noise(30, 30))
        message = told(lambda: one_pair(put, noise(), noise()))
        assert message == (
            "the first training pair's size is 48×32 px, and these differ "
            '(resize = "stretch", "fit" or "crop" makes all alike):\n  photos/train/1.png: 30×30 px'
        )
        assert told(lambda: folders(size=(30, 30))).startswith("`size` is 30×30 px, and these differ")

    def test_halves_need_an_even_width(self, put):
        for name, width in (("a", 64), ("b", 63), ("c", 65)):
            put(f"both/train/{name}.png", noise(32, width))
            put(f"both/val/{name}.png", noise(32, 64))
        message = told(lambda: SideBySide("train", root="both"))
        assert message.splitlines() == [
            "images with A and B side by side must have an even width:",
            "  both/train/b.png is 63×32 px",
            "  both/train/c.png is 65×32 px",
        ]


class TestSplits:
    def test_sub_folders_are_the_splits(self, splits):
        assert [len(folders(split)) for split in ("train", "val", "test")] == [4, 2, 1]
        assert [pair.id for pair in folders("val")] == ["val-0", "val-1"]

    @pytest.mark.parametrize(("missing", "there"), [("val", "test"), ("test", "val")])
    def test_of_val_and_test_the_one_stands_in_for_the_other_and_says_so(self, splits, home, missing, there):
        for folder in ("photos", "maps"):
            (home / folder / missing).rename(home / f"{folder}-{missing}")
        with pytest.warns(UserWarning, match=f"photos, maps: no pairs in {missing}; {there} stands in for it"):
            assert [pair.id for pair in folders(missing)] == [pair.id for pair in folders(there)]

    @given(
        st.lists(st.text(min_size=1), unique=True, max_size=10),
        st.lists(st.text(min_size=1), unique=True, max_size=10),
        st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.7, 0.3, 0.0)]),
        st.integers(0, 5),
    )
    def test_adding_files_moves_no_others(self, names, added, fractions, seed):
        base = [str(number) for number in range(40)]  # enough for every split

        def dealt(names):
            return assign_splits({"": dict.fromkeys(names, ())}, "here", fractions, seed)

        before, after = dealt([*base, *names]), dealt([*added, *reversed(names), *base])
        for split in ("train", "val", "test"):
            assert before[split].keys() == after[split].keys() & {*base, *names}

    def test_shares_are_those_asked_for(self):
        dealt = [split_of(f"{number}", (0.8, 0.15, 0.05), 0) for number in range(10_000)]
        assert [dealt.count(split) / 10_000 for split in ("train", "val", "test")] == pytest.approx(
            [0.8, 0.15, 0.05], abs=0.012
        )

    def test_the_deal_is_the_same_in_every_version(self):
        dealt = {name: split_of(name, (0.8, 0.1, 0.1), 0) for name in ("001", "002", "cat", "dog", "é")}
        assert dealt == {"001": "val", "002": "test", "cat": "val", "dog": "train", "é": "train"}

    def test_files_without_sub_folders_are_dealt_out(self, put):
        def seen():
            return {split: {pair.id for pair in folders(split)} for split in ("train", "val", "test")}

        for number in range(20):
            put(f"photos/{number:03}.png", noise(4, 4))
            put(f"maps/{number:03}.png", noise(4, 4))
        before = seen()
        assert [len(ids) for ids in before.values()] == [15, 3, 2]
        assert sorted(set.union(*before.values())) == [f"{number:03}" for number in range(20)]
        for name in ("aaa", "zzz", "015b", "x", "y"):
            put(f"photos/{name}.png", noise(4, 4))
            put(f"maps/{name}.png", noise(4, 4))
        after = seen()
        assert all(before[split] <= after[split] for split in before)

    def test_another_seed_deals_anew(self):
        names = [f"{number}" for number in range(50)]
        first, second = ([split_of(name, (0.8, 0.1, 0.1), seed) for name in names] for seed in (0, 1))
        assert first != second

    @stands_in
    @pytest.mark.parametrize("count", [2, 3, 8])
    def test_too_few_pairs_are_told_with_a_seed_that_works(self, put, count):
        for number in range(count):
            put(f"photos/{number}.png", noise(4, 4))
            put(f"maps/{number}.png", noise(4, 4))
        fractions = (0.98, 0.01, 0.01)
        message = told(lambda: folders(fractions=fractions))
        assert message.startswith(f"photos, maps: too few pairs: {count} in train, 0 in val, 0 in test; split_seed = ")
        seed = int(re.search(r"split_seed = (\d+)", message)[1])
        sets = [
            {pair.id for pair in folders(split, fractions=fractions, split_seed=seed)}
            for split in ("train", "val", "test")
        ]
        assert all(sets)
        assert len(set.union(*sets)) == count
        assert not sets[0] & (sets[1] | sets[2])
        assert count == 2 or not sets[1] & sets[2]

    @pytest.mark.parametrize("fractions", [(1.0, 0.0, 0.0), (0.0, 0.5, 0.5)])
    def test_shares_that_leave_a_split_out_are_not_blamed_on_chance(self, put, fractions):
        for number in range(4):
            put(f"photos/{number}.png", noise(4, 4))
            put(f"maps/{number}.png", noise(4, 4))
        assert told(lambda: folders(fractions=fractions)).endswith(
            ": make sub-folders train/, val/ and test/, or change `fractions`"
        )

    def test_one_pair_is_too_few(self, put):
        put("photos/0.png", noise(4, 4))
        put("maps/0.png", noise(4, 4))
        assert told(folders) == "photos, maps: too few pairs: there is one, and train, and val or test, need one each"

    def test_fractions_must_be_the_whole(self, splits):
        with pytest.raises(ValueError, match=r"fractions = \[0.5, 0.1, 0.1\]: .* must add up to 1"):
            folders(fractions=(0.5, 0.1, 0.1))


class TestFaults:
    def test_files_without_a_partner_are_named_on_both_sides(self, splits, home):
        for number in range(4):
            (home / f"photos/train/{number}.png").rename(home / f"photos/train/photo{number}.png")
        assert told(folders).splitlines() == [
            "photos/train: 4 of 4 images without a partner of the same name in maps/train:",
            "  photo0.png",
            "  photo1.png",
            "  photo2.png",
            "  ... and 1 more",
            "maps/train: 4 of 4 images without a partner of the same name in photos/train:",
            "  0.png",
            "  1.png",
            "  2.png",
            "  ... and 1 more",
        ]

    def test_two_files_of_one_stem_are_refused(self, splits, put):
        put("photos/val/1.jpg", noise())
        assert told(folders) == (
            "photos/val: files are paired by name without suffix, and some share one:\n  1.jpg and 1.png"
        )

    def test_files_that_are_no_images_are_named_before_training(self, splits, home):
        (home / "photos/train/1.png").write_text("<html>")
        (home / "maps/train/2.png").write_bytes(b"")
        assert told(folders).splitlines() == [
            "2 images cannot be used:",
            "  photos/train/1.png: cannot be read as an image (no format that is known)",
            "  maps/train/2.png: cannot be read as an image (no format that is known)",
        ]

    def test_an_image_cut_short_is_named_when_it_is_read(self, splits, home):
        path = home / "maps/train/2.png"
        path.write_bytes(path.read_bytes()[:-200])
        train = folders()
        with pytest.raises(UserError, match=r"^maps/train/2\.png: cannot be read as an image"):
            train[2]

    def test_a_colour_image_where_the_first_is_grey_is_named_before_training(self, put):
        put("photos/train/1.png", noise())
        put("maps/train/1.png", noise())
        message = told(lambda: one_pair(put, noise(channels=1)))
        assert message == (
            "photos/train/1.png: it is RGB, and grey was expected "
            "(input_channels is 1: given, or the first training pair's)"
        )
        assert folders(input_channels=3)[0].x.shape == (32, 48, 3)

    def test_folders_that_are_not_there(self, splits, home):
        assert told(lambda: folders(targets="map")) == f"map: no such folder (looked for in {home})"
        assert told(lambda: folders(targets=home / "map")) == f"{home / 'map'}: no such folder"
        assert told(lambda: folders(inputs="photos/val/0.png")).startswith("photos/val/0.png: is a file; a folder")

    def test_an_empty_folder(self, splits, home):
        (home / "empty").mkdir()
        assert told(lambda: SideBySide("train", root="empty")) == (
            "empty: expected images (png, jpg, jpeg, webp, bmp, tif, tiff, npy, npz), it is empty"
        )
        for name in ("a.gif", "b.txt"):
            (home / "empty" / name).touch()
        assert told(lambda: SideBySide("train", root="empty")).endswith(", found a.gif, b.txt")

    def test_an_unreadable_folder(self, splits, monkeypatch):
        def refuse(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("p2pzoo.data.pairing.find_images", refuse)
        assert told(folders) == "photos: cannot be read (Permission denied)"

    def test_images_one_level_deeper(self, splits, put, home):
        put("deep/a/0.png", noise())
        put("deep/b/0.png", noise())
        put("deep/b/1.png", noise())
        assert told(lambda: SideBySide("train", root="deep")) == (
            "deep: expected images, or train/, val/ and test/, in this folder itself, found a/ with 1 image; "
            "b/ with 2 images: name the folder that holds them"
        )
        (home / "above").mkdir()
        (home / "photos").rename(home / "above/photos")
        assert "found photos/ with train/, val/, test/: name" in told(lambda: SideBySide("train", root="above"))

    def test_sub_folders_in_only_one_of_the_two(self, splits, home):
        (home / "maps/test").rename(home / "test")
        assert told(folders) == (
            "photos has train/, val/, test/, maps has train/, val/: "
            "both folders must have the same of train/, val/ and test/, or both none"
        )

    def test_images_beside_the_sub_folders(self, splits, put):
        put("photos/0.png", noise())
        assert told(folders) == (
            "photos: 1 image beside train/, val/, test/ would belong to no split: move them in, or away"
        )

    def test_train_alone(self, splits, home):
        for folder in ("photos", "maps"):
            for split in ("val", "test"):
                (home / folder / split).rename(home / f"{folder}-{split}")
        assert told(folders).startswith("photos, maps: found train/ only; expected train/ and val/ or test/")


def test_a_run_on_files_that_have_changed_since_is_marked_and_not_resumed(tmp_path, zoo):
    for folder in ("inputs", "targets"):
        (tmp_path / folder).mkdir()
        for i in range(10):
            Image.new("RGB", (32, 32), (20 * i, 0, 0)).save(tmp_path / folder / f"{i:03}.png")
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'extends = "zoo:base.toml"\n[generator]\nwidth = 2\n[discriminator]\nwidth = 2\nreceptive_field = 16\n'
        f'[dataset]\nuse = "folders"\ninputs = "{tmp_path}/inputs"\ntargets = "{tmp_path}/targets"\n'
    )
    run = ("run", recipe, "--profile", "smoke", "--runs", tmp_path / "runs", "-s", "train.images=2")
    assert zoo(*run).exit_code == 0
    assert "changed since" not in zoo(*run).output
    for folder in ("inputs", "targets"):
        Image.new("RGB", (32, 32)).save(tmp_path / folder / "one_more.png")
    assert re.search(r"made with other code or data \((train|val|test) data.* changed since\)", zoo(*run).output)
