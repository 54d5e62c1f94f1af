"""`folders` and `side-by-side`: how files of every kind are read, the splits of pairs, and the error messages."""

import pickle
import re
import shutil
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from p2pzoo_datasets.folders import Folders, SideBySide
from PIL import Image

from p2pzoo.data.partner_names import suggest_names
from p2pzoo.data.splits import assign_splits, split_of
from p2pzoo.images.io import write_png
from p2pzoo.images.resize import resize_to
from p2pzoo.plugin.protocols import Dataset
from p2pzoo.utils.errors import UserError

ignore_fallback = pytest.mark.filterwarnings("ignore:.*is used instead:UserWarning")


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
    """put("photos/001.png", array) writes an image file and the folders it needs; returns its path."""

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
    """The first training pair, after writing x and y (None: not written) and an RGB pair in val."""
    if x is not None:
        put(f"photos/train/{name}.png", x)
    put(f"maps/train/{name}.png", noise() if y is None else y)
    put("photos/val/0.png", noise())
    put("maps/val/0.png", noise())
    return folders(**parameters)[0]


def error_of(make):
    """The message of the UserError that `make()` raises."""
    with pytest.raises(UserError) as caught:
        make()
    return str(caught.value)


class TestPairs:
    def test_are_matched_by_name_in_any_format(self, put):
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

    def test_composed_and_decomposed_accents_match(self, put):
        for split in ("train", "val"):
            put(f"photos/{split}/caf\u00e9.png", noise())
            put(f"maps/{split}/cafe\u0301.png", noise())
        assert [pair.id for pair in folders()] == ["train-caf\u00e9"]

    def test_b_to_a_swaps_x_and_y_and_input_channels_stay_those_of_x(self, splits):
        there, back = folders(), folders(direction="BtoA", input_channels=3, target_channels=3)
        np.testing.assert_array_equal(back[0].y, there[0].x)
        np.testing.assert_array_equal(back[0].x, np.repeat(there[0].y, 3, axis=2))

    def test_the_two_halves_of_an_image_are_a_pair(self, put):
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

    def test_the_constructor_decodes_no_image(self, splits, monkeypatch):
        monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded an image"))
        monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded an image"))
        assert len(folders()) == 4


class TestFormats:
    def test_grey_stays_one_channel(self, put):
        assert one_pair(put, noise(channels=1)).x.shape == (32, 48, 1)

    def test_a_grey_image_becomes_rgb_if_the_first_is_rgb(self, put):
        put("photos/train/0.png", noise())
        put("maps/train/0.png", noise())
        one_pair(put, noise(channels=1), name="1")
        np.testing.assert_array_equal(folders()[1].x, np.repeat(noise(channels=1), 3, axis=2))

    def test_rgb_stays_unchanged(self, put):
        np.testing.assert_array_equal(one_pair(put, noise()).x, noise())

    def test_rgb_with_equal_channels_can_be_read_as_grey(self, put):
        pair = one_pair(put, np.repeat(noise(channels=1), 3, axis=2), input_channels=1)
        np.testing.assert_array_equal(pair.x, noise(channels=1))

    def test_transparency_is_a_fourth_channel(self, put):
        np.testing.assert_array_equal(one_pair(put, noise(channels=4)).x, noise(channels=4))

    def test_opaque_rgba_can_be_read_as_rgb(self, put):
        opaque = np.dstack([noise(), np.full((32, 48), 255, np.uint8)])
        np.testing.assert_array_equal(one_pair(put, opaque, input_channels=3).x, noise())

    def test_transparent_rgba_is_refused_as_rgb(self, put):
        message = error_of(lambda: one_pair(put, noise(channels=4), input_channels=3))
        assert message == (
            "photos/train/0.png: it has transparent pixels, and RGB was expected: "
            'set background = "white", or RGB values, to fill them'
        )

    @pytest.mark.parametrize(("background", "expected"), [("white", [255, 255, 255]), ((9, 0, 200), [9, 0, 200])])
    def test_transparent_pixels_get_the_background(self, put, background, expected):
        image = noise(channels=4)
        image[:4, :, 3], image[4:, :, 3] = 0, 255
        pair = one_pair(put, image, background=background)
        assert pair.x.shape == (32, 48, 3)
        assert (pair.x[:4] == expected).all()
        np.testing.assert_array_equal(pair.x[4:], image[4:, :, :3])
        assert folders(background=background).file_layout.background == tuple(expected)
        put("both/train/0.png", np.concatenate([image, image], axis=1))
        put("both/val/0.png", noise(height=32, width=96))
        [pair] = SideBySide("train", root="both", background=background)
        assert (pair.x.shape, pair.y[0, 0].tolist()) == ((32, 48, 3), expected)

    def test_half_transparent_grey_and_16_bits(self, put, home):
        image = np.full((32, 48, 2), 100, np.uint8)
        image[..., 1] = 51
        assert (one_pair(put, image, background="white").x == 224).all()  # 0.2 × 100 + 0.8 × 255
        assert "the background [9, 0, 200] is not: give a grey one" in error_of(
            lambda: folders(background=(9, 0, 200))[0]
        )

    def test_bands_of_arrays_are_no_opacity(self, home):
        for folder in ("photos", "maps"):
            for split in ("train", "val"):
                (home / folder / split).mkdir(parents=True)
                np.save(home / folder / split / "0.npy", noise(channels=4))
        np.testing.assert_array_equal(folders(background="white")[0].x, noise(channels=4))

    @pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
    @pytest.mark.parametrize(
        ("first", "other", "what"),
        [
            (4, 3, "3 channels"),
            (4, 1, "1 channel"),
            (2, 1, "1 channel"),
            (4, 2, "2 channels, none of them opacity"),
            (2, 4, "4 channels, none of them opacity"),
            (5, 4, "4 channels, none of them opacity"),
        ],
    )
    def test_a_band_that_only_the_first_pair_has_is_not_invented(self, home, put, first, other, what, direction):
        for name, channels in (("train/0", first), ("train/1", other), ("val/0", first)):
            put(f"maps/{name}.png", noise())
            (home / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(home / f"photos/{name}.npy", noise(channels=channels))
        side = "input" if direction == "AtoB" else "target"
        assert error_of(lambda: folders(direction=direction)) == (
            f"photos/train/1.npy: has {what}, and {first} bands were expected ({side}_channels is {first}: set by the "
            "recipe, or by the first training pair): give all files the same bands"
        )
        data, _ = Folders.usable("train", inputs="photos", targets="maps", direction=direction)
        assert data[0].id == "train-0"
        with pytest.raises(UserError, match=f"{first} bands were expected"):
            data[1]

    def test_opacity_and_bands_are_not_mixed(self, home, put):
        """A PNG with opacity and an array of four bands, in both orders."""
        for split in ("train", "val"):
            put(f"photos/{split}/0.png", noise(channels=4))
            np.save(home / f"photos/{split}/1.npy", noise(channels=4))
            for number in "01":
                put(f"maps/{split}/{number}.png", noise())
        assert (
            "photos/train/1.npy: has 4 channels, none of them opacity, and RGB with opacity was expected"
            in error_of(folders)
        )
        for split in ("train", "val"):
            (home / f"photos/{split}/1.npy").rename(home / f"photos/{split}/+.npy")
            (home / f"maps/{split}/1.png").rename(home / f"maps/{split}/+.png")
        assert "photos/train/0.png: has 4 channels, the last of them opacity, and 4 bands were expected" in error_of(
            folders
        )

    @pytest.mark.parametrize("background", [None, "white"])
    def test_a_band_that_the_first_pair_has_not_is_no_transparency(self, home, put, background):
        for name, channels in (("train/0", 3), ("train/1", 4), ("val/0", 3)):
            put(f"maps/{name}.png", noise())
            (home / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(home / f"photos/{name}.npy", noise(channels=channels))
        message = error_of(lambda: folders(background=background))
        assert message.startswith(
            "photos/train/1.npy: has 4 channels, none of them opacity, and RGB was expected (input_channels is 3: "
        )
        assert "background" not in message

    def test_opacity_is_still_added_and_an_opaque_last_channel_left_out(self, home, put):
        opaque = np.dstack([noise(), np.full((32, 48), 255, np.uint8)])
        for name, image in (("train/0", noise()), ("train/1", opaque), ("val/0", noise())):
            put(f"maps/{name}.png", noise())
            (home / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(home / f"photos/{name}.npy", image)
        for pair in folders():
            np.testing.assert_array_equal(pair.x, noise())
        (home / "photos/train/1.npy").unlink()
        put("photos/train/1.png", opaque)
        for pair in folders(input_channels=4):
            np.testing.assert_array_equal(pair.x, opaque)

    @pytest.mark.parametrize("options", [{}, {"transparency": 1}])
    def test_palettes_are_replaced_by_their_colours(self, put, home, options):
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

    def test_the_exif_rotation_is_applied_before_the_size_is_checked(self, put, home):
        exif = Image.Exif()
        exif[0x0112] = 6  # rotate by 90° clockwise
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

    def test_different_dtypes_are_refused(self, put, home):
        (home / "photos/train").mkdir(parents=True)
        Image.fromarray(np.full((32, 48), 40_000, np.uint16)).save(home / "photos/train/0.png")
        put("photos/train/1.png", noise())
        put("maps/train/1.png", noise())
        assert (
            error_of(lambda: one_pair(put, None)).splitlines()
            == [
                "all files of x, and all of y, must have one dtype; values are not converted:",
                "  photos/train/1.png is uint8, the first training pair's is uint16",
                "  photos/val/0.png is uint8, the first training pair's is uint16",
            ][:2]
        )

    def test_floats_need_a_range_and_must_be_inside_it(self, home):
        for split in ("train", "val"):
            for folder, scale in (("photos", 1.0), ("maps", 2.0)):
                (home / folder / split).mkdir(parents=True)
                np.save(home / folder / split / "0.npy", np.linspace(0, scale, 60, dtype=np.float32).reshape(4, 3, 5))
        assert error_of(folders) == (
            "photos/train/0.npy: is float32: set the values that become -1 and 1, as in input_range = [0.0, 1.0]"
        )
        data = folders(input_range=(0.0, 1.0), target_range=(0.0, 1.0))
        assert error_of(lambda: data[0]) == "maps/train/0.npy: has values from 0 to 2, outside target_range = [0, 1]"
        data = folders(input_range=(0.0, 1.0), target_range=(0.0, 2.0))
        assert (data[0].x.shape, data[0].y.dtype, data.y_range) == ((4, 3, 5), np.float32, (0.0, 2.0))


class TestSizes:
    def test_the_first_training_pair_sets_the_size_of_every_split(self, put):
        one_pair(put, noise(16, 24), noise(16, 24))
        assert folders("val", resize="stretch")[0].x.shape == (16, 24, 3)

    def test_stretch_fills_the_size_without_keeping_proportions(self, put):
        pair = one_pair(put, ramp(40, 80), ramp(20, 10), size=(32, 32), resize="stretch")
        for image in (pair.x, pair.y):
            assert np.abs(image.astype(int) - ramp(32, 32)).max() <= 12

    def test_crop_keeps_proportions_and_the_centre(self, put):
        pair = one_pair(put, ramp(40, 80), ramp(40, 80), size=(20, 20), resize="crop")
        np.testing.assert_array_equal(pair.x, pair.y)
        red, green = pair.x[..., 0].astype(int), pair.x[..., 1].astype(int)
        assert (red[0].max() < 10, red[-1].min() > 245) == (True, True), "the full height"
        assert abs(green[:, 0].mean() - 255 / 4) < 6, "from a quarter of the width"
        assert abs(green[:, -1].mean() - 255 * 3 / 4) < 6, "to three quarters"

    def test_fit_keeps_proportions_and_extends_by_reflection(self, put):
        pair = one_pair(put, ramp(20, 40), ramp(20, 40), size=(40, 40), resize="fit")
        np.testing.assert_array_equal(pair.x, pair.y)
        np.testing.assert_array_equal(pair.x[10:30], ramp(20, 40))
        np.testing.assert_array_equal(pair.x[:10], ramp(20, 40)[10:0:-1])
        np.testing.assert_array_equal(pair.x[30:], ramp(20, 40)[-2:-12:-1])

    @pytest.mark.parametrize("how", ["fit", "crop"])
    @given(st.tuples(*[st.integers(1, 40)] * 4), st.sampled_from([1, 2, 3, 4]))
    def test_an_image_of_any_size_gets_the_size_of_the_dataset(self, how, sides, channels):
        height, width, *size = sides
        image = resize_to(np.full((height, width, channels), 255, np.uint8), tuple(size), how)
        assert image.shape == (*size, channels)
        assert (image == 255).all()

    def test_a_pair_of_two_resolutions_gets_one_size(self, put):
        pair = one_pair(put, ramp(100, 150), ramp(200, 300), size=(32, 32), resize="fit")
        assert np.abs(pair.x.astype(int) - pair.y).max() <= 3

    def test_sizes_that_differ_within_pairs_are_named(self, put):
        for number in range(5):
            put(f"photos/train/{number}.png", noise(32, 32))
            put(f"maps/train/{number}.png", noise(32, 64) if number else noise(32, 32))
        message = error_of(lambda: one_pair(put, noise(32, 32), name="0", y=noise(32, 32)))
        assert message.splitlines() == [
            'images of a pair differ in size, and resize = "none":',
            *(f"  photos/train/{n}.png is 32×32 px, maps/train/{n}.png is 64×32 px" for n in (1, 2, 3)),
            "  ... and 1 more",
        ]
        assert "differ in proportions" in error_of(lambda: folders(size=(32, 32), resize="crop"))
        assert len(folders(resize="stretch")) == 5

    def test_sizes_that_differ_between_pairs_are_named(self, put):
        put("photos/train/1.png", noise(30, 30))
        put("maps/train/1.png", noise(30, 30))
        message = error_of(lambda: one_pair(put, noise(), noise()))
        assert message == (
            "the first training pair's size is 48×32 px, and these differ "
            '(resize = "stretch", "fit" or "crop" brings all to one size):\n  photos/train/1.png: 30×30 px'
        )
        assert error_of(lambda: folders(size=(30, 30))).startswith("`size` is 30×30 px, and these differ")

    def test_halves_need_an_even_width(self, put):
        for name, width in (("a", 64), ("b", 63), ("c", 65)):
            put(f"both/train/{name}.png", noise(32, width))
            put(f"both/val/{name}.png", noise(32, 64))
        message = error_of(lambda: SideBySide("train", root="both"))
        assert message.splitlines() == [
            "images with A and B side by side must have an even width:",
            "  both/train/b.png is 63×32 px",
            "  both/train/c.png is 65×32 px",
        ]


class TestOrientation:
    """A file that says that it must be turned, next to one that does not, may turn x against y."""

    @pytest.fixture
    def put_pair(self, put):
        def put_pair(number, x, y, sizes=((32, 32), (32, 32)), suffix="png"):
            for folder, orientation, size in (("photos", x, sizes[0]), ("maps", y, sizes[1])):
                exif = Image.Exif()
                exif[0x0112] = orientation
                options = {"exif": exif} if suffix != "tif" else {"tiffinfo": {0x0112: orientation}}
                for split in ("train", "val"):
                    put(f"{folder}/{split}/{number}.{suffix}", noise(*size), **options)

        return put_pair

    @pytest.mark.parametrize("orientation", range(2, 9))
    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
    def test_on_one_side_of_a_square_pair_is_refused(self, put_pair, orientation, suffix):
        put_pair(0, orientation, 1, suffix=suffix)
        put_pair(1, 1, 1, suffix=suffix)
        [head, case] = error_of(folders).splitlines()
        assert head.startswith("files of a pair have different EXIF orientations")
        assert case == f"  photos/train/0.{suffix} has orientation {orientation}, maps/train/0.{suffix} has none"
        assert error_of(lambda: folders(resize="stretch", size=(16, 16))).startswith(head)

    @pytest.mark.parametrize(("x", "y"), [(6, 8), (3, 6), (1, 2), (5, 7)])
    def test_that_differs_between_the_sides_is_refused(self, put_pair, x, y):
        put_pair(0, x, y)
        assert "have different EXIF orientations" in error_of(folders)

    @pytest.mark.parametrize("orientation", [1, 3, 6, 0, 9, 255])
    def test_that_is_the_same_on_both_sides_or_undefined_is_applied(self, put_pair, orientation):
        put_pair(0, orientation, orientation if orientation < 9 else 1)
        assert len(folders()) == 1

    def test_sizes_show_that_y_was_made_for_the_upright_x(self, put_pair):
        put_pair(0, 6, 1, sizes=((48, 32), (32, 48)))
        assert folders()[0].x.shape == (32, 48, 3)
        put_pair(0, 6, 1, sizes=((48, 32), (48, 32)))
        assert "have different EXIF orientations" in error_of(lambda: folders(resize="stretch", size=(16, 16)))
        put_pair(0, 6, 8, sizes=((48, 32), (48, 32)))
        assert "have different EXIF orientations" in error_of(folders)

    def test_of_label_maps_counts_too(self, put, put_pair, home):
        put_pair(0, 1, 1)
        exif = Image.Exif()
        exif[0x0112] = 3
        for split in ("train", "val"):
            put(f"classes/{split}/0.png", noise(32, 32, 1) % 2, exif=exif)
        (home / "classes.json").write_text(
            '{"classes": [{"name": "a", "colour": [0, 0, 0]}, {"name": "b", "colour": [9, 9, 9]}]}'
        )
        message = error_of(lambda: folders(labels="classes", classes="classes.json"))
        assert "maps/train/0.png has none, classes/train/0.png has orientation 3" in message
        assert "have different" in error_of(lambda: folders(inputs="classes", input_labels="classes.json"))

    @pytest.mark.parametrize("orientation", [2, 3, 6])
    def test_of_images_side_by_side_would_swap_the_halves(self, put, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for split in ("train", "val"):
            put(f"both/{split}/0.png", noise(32, 64), exif=exif)
        message = error_of(lambda: SideBySide("train", root="both"))
        assert message.startswith("images with A and B side by side are turned by their EXIF orientation")

    def test_behind_the_pixels_of_a_png_is_refused_when_it_is_read(self, put):
        exif = Image.Exif()
        exif[0x0112] = 6
        path = put("photos/train/0.png", noise(32, 32), exif=exif)
        content = path.read_bytes()
        at = content.index(b"eXIf") - 4
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        path.write_bytes(content[:at] + content[end:-12] + content[at:end] + content[-12:])
        with pytest.raises(UserError, match=r"0\.png: has EXIF orientation 6 behind its pixels"):
            one_pair(put, None, noise(32, 32))[0]

    def test_data_check_reports_it_and_a_run_refuses_it(self, put_pair, home, run_cli):
        for number in range(12):
            put_pair(number, 6 if number in (3, 4) else 1, 1)
        recipe = home / "mine.toml"
        recipe.write_text(
            'extends = "zoo:base.toml"\n[dataset]\nuse = "folders"\ninputs = "photos"\ntargets = "maps"\n'
        )
        result = run_cli("data", "check", recipe)
        assert result.exit_code == 2
        assert result.output.count("have different EXIF orientations") == 4  # two pairs in train, and in val
        result = run_cli("run", recipe, "--profile", "smoke")
        assert (result.exit_code, result.first_step) == (2, None)
        assert "photos/train/3.png has orientation 6, maps/train/3.png has none" in result.output


class TestEndings:
    """Names that differ by an ending: 001_A.png and 001_B.png."""

    @pytest.fixture
    def put_names(self, put):
        def put_names(x, y, count=20, folder=None):
            for number in range(count):
                put(f"{folder or 'photos'}/{x.format(number)}.png", noise(4, 4, seed=number))
                put(f"{folder or 'maps'}/{y.format(number)}.png", noise(4, 4, seed=99 + number))

        return put_names

    def test_are_removed(self, put_names):
        put_names("{:03}_A", "{:03}_B")
        splits = [folders(s, input_suffix="_A", target_suffix="_B") for s in ("train", "val", "test")]
        assert sorted(pair.id for split in splits for pair in split) == [f"{number:03}" for number in range(20)]
        assert all(y.stem == x.stem.replace("_A", "_B") for split in splits for x, y in split.files)

    @pytest.mark.parametrize(("x", "y"), [("_A", "_B"), ("", "_mask"), ("_mask", "_mask2")])
    def test_divide_one_folder(self, put_names, x, y):
        put_names("{:03}" + x, "{:03}" + y, folder="photos")
        train = folders(targets="photos", input_suffix=x, target_suffix=y)
        assert len(train) == 15
        assert train.files[0][1].name == f"000{y}.png"

    def test_a_file_without_the_ending_is_named(self, put_names, put):
        put_names("{:03}_A", "{:03}_B")
        put("photos/021.png", noise(4, 4))
        parameters = {"input_suffix": "_A", "target_suffix": "_B"}
        assert error_of(lambda: folders(**parameters)) == (
            'photos: 1 of 21 images have a name that does not end in "_A":\n  021.png'
        )
        put_names("{:03}_A", "{:03}_B", folder="both")
        put("both/021.png", noise(4, 4))
        assert error_of(lambda: folders(inputs="both", targets="both", **parameters)) == (
            'both: 1 image with a name that ends neither in "_A" nor in "_B":\n  021.png'
        )

    @pytest.mark.parametrize(
        ("x", "y", "advice"),
        [
            ("{:03}_A", "{:03}_B", 'set input_suffix = "_A", target_suffix = "_B"'),
            ("{:03}", "{:03}_mask", 'set target_suffix = "_mask"'),
            ("img{:02}.rgb", "img{:02}.label", 'set input_suffix = ".rgb", target_suffix = ".label"'),
            ("img{}", "IMG{}", "if upper and lower case are equal"),
            ("{}", "{:04}", "without zeros in front of numbers"),
            ("photo_{}", "map_{}", "without their first letters"),
        ],
    )
    def test_that_nothing_sets_are_proposed_before_anything_else(self, put_names, home, run_cli, x, y, advice):
        put_names(x, y)
        [first, second, *_] = error_of(folders).splitlines()
        assert first.startswith("photos and maps: 20 of 20 names match ")
        assert advice in first
        assert second == "photos: 20 of 20 images without a partner of the same name in maps:"
        recipe = home / "mine.toml"
        recipe.write_text(
            'extends = "zoo:base.toml"\n[dataset]\nuse = "folders"\ninputs = "photos"\ntargets = "maps"\n'
        )
        output = run_cli("data", "check", recipe).output
        assert output.index("photos: without a partner of the same name in maps:") < output.index(advice)
        assert "too few pairs" not in output
        assert "40 errors, 1 warning:" in output

    def test_names_without_anything_in_common_get_no_proposal(self, put_names):
        put_names("cat{}", "{}dog")
        assert error_of(folders).startswith("photos: 20 of 20 images without a partner")

    def test_too_few_pairs_come_after_the_missing_partners(self, put_names, put):
        put_names("a{}", "b{}", count=3)
        put("photos/c.png", noise(4, 4))
        put("maps/c.png", noise(4, 4))
        with pytest.raises(UserError) as caught:
            Folders.usable("train", inputs="photos", targets="maps")
        assert caught.value.faults[-1].endswith(
            "too few pairs: there is 1, and train needs one, and val or test another"
        )
        assert len(caught.value.faults) == 4

    def test_the_search_for_endings_takes_no_time(self, monkeypatch):
        ours, theirs = ([f"{number:06}{end}" for number in range(50_000)] for end in ("_left_8bit", "_labels"))
        assert suggest_names(ours, theirs, takes_suffixes=True).startswith("50000 of 50000 names match")
        start = time.process_time()
        assert suggest_names([f"a{n:06}b" for n in range(50_000)], theirs, takes_suffixes=True) is None
        assert time.process_time() - start < 5


class TestSplits:
    def test_sub_folders_are_the_splits(self, splits):
        assert [len(folders(split)) for split in ("train", "val", "test")] == [4, 2, 1]
        assert [pair.id for pair in folders("val")] == ["val-0", "val-1"]

    @pytest.mark.parametrize(("missing", "there"), [("val", "test"), ("test", "val")])
    def test_if_val_or_test_is_missing_the_other_is_used_with_a_warning(self, splits, home, missing, there):
        for folder in ("photos", "maps"):
            (home / folder / missing).rename(home / f"{folder}-{missing}")
        with pytest.warns(UserWarning, match=f"photos, maps: no pairs in {missing}; {there} is used instead"):
            assert [pair.id for pair in folders(missing)] == [pair.id for pair in folders(there)]

    @given(
        st.lists(st.text(min_size=1), unique=True, max_size=10),
        st.lists(st.text(min_size=1), unique=True, max_size=10),
        st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.7, 0.3, 0.0)]),
        st.integers(0, 5),
    )
    def test_adding_files_does_not_move_others(self, names, added, fractions, seed):
        base = [str(number) for number in range(40)]  # enough for every split

        def assign(names):
            return assign_splits({"": dict.fromkeys(names, ())}, "here", fractions, seed)

        before, after = assign([*base, *names]), assign([*added, *reversed(names), *base])
        for split in ("train", "val", "test"):
            assert before[split].keys() == after[split].keys() & {*base, *names}

    def test_split_sizes_follow_the_fractions(self):
        names = [split_of(f"{number}", (0.8, 0.15, 0.05), 0) for number in range(10_000)]
        assert [names.count(split) / 10_000 for split in ("train", "val", "test")] == pytest.approx(
            [0.8, 0.15, 0.05], abs=0.012
        )

    def test_the_assignment_is_the_same_in_every_version(self):
        split_of_name = {name: split_of(name, (0.8, 0.1, 0.1), 0) for name in ("001", "002", "cat", "dog", "é")}
        assert split_of_name == {"001": "val", "002": "test", "cat": "val", "dog": "train", "é": "train"}

    def test_files_without_sub_folders_are_assigned_by_name(self, put):
        def ids_of_splits():
            return {split: {pair.id for pair in folders(split)} for split in ("train", "val", "test")}

        for number in range(20):
            put(f"photos/{number:03}.png", noise(4, 4))
            put(f"maps/{number:03}.png", noise(4, 4))
        before = ids_of_splits()
        assert [len(ids) for ids in before.values()] == [15, 3, 2]
        assert sorted(set.union(*before.values())) == [f"{number:03}" for number in range(20)]
        for name in ("aaa", "zzz", "015b", "x", "y"):
            put(f"photos/{name}.png", noise(4, 4))
            put(f"maps/{name}.png", noise(4, 4))
        after = ids_of_splits()
        assert all(before[split] <= after[split] for split in before)

    def test_another_seed_changes_the_assignment(self):
        names = [f"{number}" for number in range(50)]
        first, second = ([split_of(name, (0.8, 0.1, 0.1), seed) for name in names] for seed in (0, 1))
        assert first != second

    @ignore_fallback
    @pytest.mark.parametrize("count", [2, 3, 8])
    def test_for_too_few_pairs_the_error_names_a_seed_that_works(self, put, count):
        for number in range(count):
            put(f"photos/{number}.png", noise(4, 4))
            put(f"maps/{number}.png", noise(4, 4))
        fractions = (0.98, 0.01, 0.01)
        message = error_of(lambda: folders(fractions=fractions))
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
    def test_for_fractions_of_0_the_error_names_the_fractions_and_no_seed(self, put, fractions):
        for number in range(4):
            put(f"photos/{number}.png", noise(4, 4))
            put(f"maps/{number}.png", noise(4, 4))
        assert error_of(lambda: folders(fractions=fractions)).endswith(
            ": make sub-folders train/, val/ and test/, or change `fractions`"
        )

    def test_one_pair_is_too_few(self, put):
        put("photos/0.png", noise(4, 4))
        put("maps/0.png", noise(4, 4))
        assert (
            error_of(folders) == "photos, maps: too few pairs: there is 1, and train needs one, and val or test another"
        )

    def test_fractions_must_add_up_to_1(self, splits):
        with pytest.raises(ValueError, match=r"fractions = \[0.5, 0.1, 0.1\]: .* must add up to 1"):
            folders(fractions=(0.5, 0.1, 0.1))


class TestFaults:
    def test_files_without_a_partner_are_named_on_both_sides(self, splits, home):
        for number in range(4):
            (home / f"photos/train/{number}.png").rename(home / f"photos/train/photo{number}.png")
        assert error_of(folders).splitlines()[1:] == [
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

    def test_one_folder_for_both_is_refused(self, splits, home):
        advice = "both the input and the target: give the folder of the other images, or the different endings"
        assert error_of(lambda: folders(targets="photos")).startswith(f"photos/train is {advice}")
        (home / "link").symlink_to(home / "photos")
        for path in ("link", "maps/../photos", home / "photos"):
            message = error_of(lambda path=path: folders(targets=path))
            assert message.startswith("photos/train and ")
            assert f"are one folder, {advice}" in message
        shutil.rmtree(home / "maps/val")
        (home / "maps/val").symlink_to(home / "photos/val")
        assert error_of(folders).startswith("photos/val and maps/val are one folder")

    def test_two_files_with_one_stem_are_refused(self, splits, put):
        put("photos/val/1.jpg", noise())
        assert error_of(folders) == (
            "photos/val: files are paired by their name without suffix, and some have the same:\n  1.jpg and 1.png"
        )

    def test_files_that_are_no_images_are_named_by_the_constructor(self, splits, home):
        (home / "photos/train/1.png").write_text("<html>")
        (home / "maps/train/2.png").write_bytes(b"")
        assert error_of(folders).splitlines() == [
            "2 images cannot be used:",
            "  photos/train/1.png: cannot be read as an image (its content is HTML; p2pzoo reads PNG, JPEG, WebP, BMP, "
            "TIFF and NumPy files: convert it)",
            "  maps/train/2.png: cannot be read as an image (the file is empty)",
        ]

    def test_a_truncated_image_is_named_when_it_is_read(self, splits, home):
        path = home / "maps/train/2.png"
        path.write_bytes(path.read_bytes()[:-200])
        train = folders()
        with pytest.raises(UserError, match=r"^maps/train/2\.png: cannot be read as an image"):
            train[2]

    def test_a_colour_image_after_a_grey_first_one_is_named_by_the_constructor(self, put):
        put("photos/train/1.png", noise())
        put("maps/train/1.png", noise())
        message = error_of(lambda: one_pair(put, noise(channels=1)))
        assert message == (
            "photos/train/1.png: it is RGB, and grey was expected "
            "(input_channels is 1: set by the recipe, or by the first training pair)"
        )
        assert folders(input_channels=3)[0].x.shape == (32, 48, 3)

    def test_missing_folders(self, splits, home):
        assert error_of(lambda: folders(targets="map")) == f"map: no such folder (looked for in {home})"
        assert error_of(lambda: folders(targets=home / "map")) == f"{home / 'map'}: no such folder"
        assert error_of(lambda: folders(inputs="photos/val/0.png")).startswith("photos/val/0.png: is a file; a folder")

    def test_an_empty_folder(self, splits, home):
        (home / "empty").mkdir()
        assert error_of(lambda: SideBySide("train", root="empty")) == (
            "empty: expected images (png, jpg, jpeg, webp, bmp, tif, tiff, npy, npz), it is empty"
        )
        for name in ("a.gif", "b.txt"):
            (home / "empty" / name).touch()
        assert error_of(lambda: SideBySide("train", root="empty")).endswith(", found a.gif, b.txt")

    def test_an_unreadable_folder(self, splits, monkeypatch):
        def refuse(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("p2pzoo.data.pairing.find_images", refuse)
        assert error_of(folders) == "photos: cannot be read (Permission denied)"

    def test_images_one_level_deeper(self, splits, put, home):
        put("deep/a/0.png", noise())
        put("deep/b/0.png", noise())
        put("deep/b/1.png", noise())
        assert error_of(lambda: SideBySide("train", root="deep")) == (
            "deep: expected images, or train/, val/ and test/, in this folder itself, found a/ with 1 image; "
            "b/ with 2 images: give the folder that has them"
        )
        (home / "above").mkdir()
        (home / "photos").rename(home / "above/photos")
        assert "found photos/ with train/, val/, test/: give" in error_of(lambda: SideBySide("train", root="above"))

    def test_sub_folders_in_only_one_of_the_two(self, splits, home):
        (home / "maps/test").rename(home / "test")
        assert error_of(folders) == (
            "photos has train/, val/, test/, maps has train/, val/: "
            "both folders must have the same of train/, val/ and test/, or neither any"
        )

    def test_images_beside_the_sub_folders(self, splits, put):
        put("photos/0.png", noise())
        assert error_of(folders) == (
            "photos: 1 image next to train/, val/, test/ would be in no split: move them in, or away"
        )

    def test_train_alone(self, splits, home):
        for folder in ("photos", "maps"):
            for split in ("val", "test"):
                (home / folder / split).rename(home / f"{folder}-{split}")
        assert error_of(folders).startswith("photos, maps: only train/ found; expected train/ and val/ or test/")


def test_a_run_on_files_that_have_changed_since_is_marked_and_not_resumed(tmp_path, run_cli):
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
    assert run_cli(*run).exit_code == 0
    assert "changed after this run" not in run_cli(*run).output
    for folder in ("inputs", "targets"):
        Image.new("RGB", (32, 32)).save(tmp_path / folder / "one_more.png")
    assert re.search(
        r"the code or data changed after this run \((train|val|test) data.*\): --fresh", run_cli(*run).output
    )
