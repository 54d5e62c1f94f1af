"""Label maps: class files, maps as networks see them, and translating from and to them."""

import json
import shutil
import zlib

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from p2pzoo_datasets.folders import Folders
from PIL import Image

from p2pzoo.cli import main
from p2pzoo.data import Store
from p2pzoo.images.io import read_image, write_image
from p2pzoo.images.label_maps import Classes, Labels, inspect_map, picture_map, read_map
from p2pzoo.models.load import load_model
from p2pzoo.utils.errors import UserError

CLASS_FILE = """
ignore = [255]

[[classes]]
name = "sky"
colour = [70, 130, 180]
value = 23

[[classes]]
name = "road"
colour = [128, 64, 128]
value = 7

[[classes]]
name = "tree"
colour = [107, 142, 35]
value = 21
"""
COLOURS = np.array([[70, 130, 180], [128, 64, 128], [107, 142, 35]])
VALUES = np.array([23, 7, 21], np.uint8)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classes.toml").write_text(CLASS_FILE)
    return tmp_path


def random_classes(seed=0, side=32):
    """(side, side) classes in blocks of 4 pixels."""
    return np.random.default_rng(seed).integers(0, 3, (side // 4, side // 4)).repeat(4, 0).repeat(4, 1)


def save_indexed(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values.astype(np.uint8))
    picture.putpalette(bytes(range(256)) * 3)  # colours that say nothing
    picture.save(path)


def write_chunks(path, header, rows):
    """A PNG of these bytes. header: width, height, bits, color type."""
    chunks = [(b"IHDR", np.array(header[:2], ">u4").tobytes() + bytes([*header[2:], 0, 0, 0]))]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(len(d).to_bytes(4, "big") + n + d + zlib.crc32(n + d).to_bytes(4, "big") for n, d in chunks)
    )


@pytest.fixture
def pairs(home):
    """maps/ (indexed PNG) and photos/ (RGB), three training pairs and one in val."""
    for split, count in (("train", 3), ("val", 1)):
        for number in range(count):
            classes = random_classes(number + 10 * (split == "val"))
            save_indexed(home / f"maps/{split}/{number}.png", VALUES[classes])
            photo = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            (home / f"photos/{split}").mkdir(parents=True, exist_ok=True)
            write_image(home / f"photos/{split}/{number}.png", photo)
    return home


def folders(split="train", **parameters):
    given = {"inputs": "maps", "targets": "photos", "input_labels": "classes.toml", **parameters}
    return Folders(split, **given)


def error_of(make):
    with pytest.raises(UserError) as caught:
        make()
    return str(caught.value)


class TestClassFiles:
    def test_json_and_toml_class_files_are_equivalent(self, home):
        classes = Classes.read(home / "classes.toml")
        assert (classes.names, classes.values, classes.ignore) == (("sky", "road", "tree"), (23, 7, 21), (255,))
        (home / "classes.json").write_text(json.dumps(classes.to_dict()))
        assert Classes.read(home / "classes.json") == classes

    def test_the_default_value_of_a_class_is_its_position(self, home):
        (home / "c.json").write_text(
            '{"classes": [{"name": "a", "colour": [0, 0, 0]}, {"name": "b", "colour": [1, 1, 1]}]}'
        )
        assert Classes.read(home / "c.json").values == (0, 1)

    def test_all_faults_are_reported_at_once(self, home):
        (home / "c.toml").write_text(
            'ingore = [255]\n[[classes]]\nname = "a"\ncolor = [0, 0, 0]\n'
            '[[classes]]\nname = "b"\ncolour = [0, 0, 256]\nvalue = 3\n'
            '[[classes]]\nname = "c"\ncolour = [1, 1, 1]\n[[classes]]\nname = "c"\ncolour = [2, 2, 2]\nvalue = 2\n'
        )
        assert error_of(lambda: Classes.read(home / "c.toml")).splitlines() == [
            f"{home}/c.toml  ingore: no such key: did you mean 'ignore'?",
            f"{home}/c.toml  classes[0].color: no such key: did you mean 'colour'?",
            f"{home}/c.toml  classes[0].colour: expected three whole numbers from 0 to 255, not nothing",
            f"{home}/c.toml  classes[1].colour: expected three whole numbers from 0 to 255, not [0, 0, 256]",
            f'{home}/c.toml  classes: the name "c" occurs 2 times: each must be unique',
            f"{home}/c.toml  classes: the value 2 occurs 2 times (with ignore): each must be unique",
        ]

    @settings(max_examples=150, deadline=None)
    @given(
        st.one_of(
            st.binary(max_size=60),
            st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass")),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["classes", "name"]),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["classes", "ignore", "name", "colour", "value"]), inner)
                ),
                max_leaves=12,
            ).map(lambda value: json.dumps(value).encode()),
            st.just(b"[" * 100_000),
        ),
        st.sampled_from([".toml", ".json"]),
    )
    def test_any_bytes_are_read_or_refused(self, tmp_path_factory, content, suffix):
        path = tmp_path_factory.mktemp("any") / f"classes{suffix}"
        path.write_bytes(content)
        try:
            message = f"{path}" if Classes.read(path).names else ""
        except UserError as error:
            message = str(error)
        assert message.startswith(str(path))
        assert message.encode(), "every terminal can print the message"


class TestMaps:
    @pytest.mark.parametrize("bits", [1, 2, 4, 8])
    @pytest.mark.parametrize("mode", ["P", "L"])
    def test_maps_of_few_bits_keep_their_values(self, tmp_path, bits, mode):
        values = np.random.default_rng(0).integers(0, 2**bits, (5, 9), dtype=np.uint8)
        path = tmp_path / "map.png"
        if mode == "P":
            picture = Image.fromarray(values)
            picture.putpalette(bytes(range(3 * 2**bits % 256)) or bytes(range(256)) * 3)
            picture.save(path, bits=bits)
        else:
            packed = b"".join(
                b"\0" + np.packbits(np.unpackbits(line[:, None], axis=1)[:, -bits:].ravel()).tobytes()
                for line in values
            )
            write_chunks(path, [9, 5, bits, 0], packed)
        np.testing.assert_array_equal(read_map(path), values)
        assert inspect_map(path).shape == (5, 9, 1)

    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64"])
    def test_maps_may_be_arrays_of_any_integer_dtype(self, tmp_path, dtype):
        np.save(tmp_path / "m.npy", random_classes().astype(dtype))
        np.testing.assert_array_equal(read_map(tmp_path / "m.npy"), random_classes())

    def test_maps_of_16_bits_are_read(self, tmp_path):
        write_image(tmp_path / "m.png", (random_classes()[..., None] * 1000).astype(np.uint16))
        np.testing.assert_array_equal(read_map(tmp_path / "m.png"), random_classes() * 1000)

    def test_files_that_are_no_label_maps_are_refused(self, tmp_path):
        np.save(tmp_path / "bands.npy", np.zeros((4, 5, 2), np.uint8))
        np.save(tmp_path / "deep.npy", np.zeros((4, 5, 3), np.uint16))
        np.save(tmp_path / "f.npy", np.zeros((4, 5), np.float32))
        Image.new("L", (5, 4)).save(tmp_path / "m.jpg")
        for look in (read_map, inspect_map):
            assert error_of(lambda look=look: look(tmp_path / "bands.npy")).endswith(
                "bands.npy: is 4×5×2 of uint8; a label map has one channel of integers, or 8-bit RGB of class colours"
            )
            assert "deep.npy: is 4×5×3 of uint16" in error_of(lambda look=look: look(tmp_path / "deep.npy"))
            assert "f.npy: is 4×5 of float32" in error_of(lambda look=look: look(tmp_path / "f.npy"))
            assert "m.jpg: JPG is lossy and changes labels" in error_of(lambda look=look: look(tmp_path / "m.jpg"))


def save_optimised(path, colours):
    """An indexed PNG with only the colours that occur, as optimisers of PNG files write it."""
    used, indices = np.unique(colours.reshape(-1, 3), axis=0, return_inverse=True)
    picture = Image.fromarray(indices.reshape(colours.shape[:2]).astype(np.uint8))
    picture.putpalette(used.astype(np.uint8).tobytes())
    picture.save(path)


class TestColours:
    """Label maps that have the colours of the class file."""

    @pytest.mark.parametrize("name", ["map.png", "map.bmp", "map.tif", "map.npy", "opaque.png", "indexed.png"])
    def test_are_looked_up_exactly(self, home, name):
        colours = COLOURS[random_classes()].astype(np.uint8)
        if name == "opaque.png":
            Image.fromarray(colours).convert("RGBA").save(home / name)
        elif name == "indexed.png":
            save_optimised(home / name, colours)
        elif name == "map.npy":
            np.save(home / name, colours)
        else:
            Image.fromarray(colours).save(home / name)
        np.testing.assert_array_equal(Classes.read(home / "classes.toml").read_map(home / name), random_classes())
        assert inspect_map(home / name)[:2] == ((32, 32, 1), "uint8")

    def test_values_with_opaque_alpha_are_values(self, home):
        Image.fromarray(VALUES[random_classes()]).convert("LA").save(home / "map.png")
        np.testing.assert_array_equal(Classes.read(home / "classes.toml").read_map(home / "map.png"), random_classes())

    def test_a_colour_without_a_class_is_named_with_its_place(self, home):
        colours = COLOURS[random_classes()].astype(np.uint8)
        colours[5, 9:] = 70, 130, 181
        colours[6, 2] = 1, 2, 3
        for name, save in (("map.png", lambda path: Image.fromarray(colours).save(path)), ("p.png", save_optimised)):
            save(home / name, colours) if save is save_optimised else save(home / name)
            assert error_of(lambda name=name: Classes.read(home / "classes.toml").read_map(home / name)) == (
                f"{home / name}: it has the colours [70, 130, 181], [1, 2, 3] (first in row 5, column 9, from 0) "
                f"without a class: add a class of this colour to {home / 'classes.toml'}, or list it under "
                "`ignore_colours`"
            )

    def test_transparent_pixels_are_refused(self, home):
        colours = np.dstack([COLOURS[random_classes()], np.full((32, 32), 254)]).astype(np.uint8)
        Image.fromarray(colours).save(home / "map.png")
        message = error_of(lambda: Classes.read(home / "classes.toml").read_map(home / "map.png"))
        assert message.startswith(f"{home / 'map.png'}: has transparent pixels; a label map must be opaque")

    def test_an_indexed_picture_without_colours_has_its_indices(self, home):
        classes = Classes.read(home / "classes.toml")
        picture = Image.new("P", (2, 1))
        picture.putdata([7, 23])
        for colours in (None, [1, 2, 3]):
            if colours:
                picture.putpalette(colours)
            np.testing.assert_array_equal(picture_map(picture, classes), [[7, 23]])
        write_chunks(home / "map.png", [2, 1, 8, 3], bytes([0, 7, 23]))  # an indexed PNG that lacks its palette
        np.testing.assert_array_equal(classes.read_map(home / "map.png"), [[1, 0]])

    def test_an_indexed_picture_without_pixels_is_no_label_map(self, home):
        classes = Classes.read(home / "classes.toml")
        with pytest.raises(ValueError, match="expected a label map"):
            classes.from_array(picture_map(Image.new("P", (0, 3)), classes))

    def test_that_are_ignored_have_no_class(self, home):
        (home / "classes.toml").write_text("ignore_colours = [[0, 0, 0]]\n" + CLASS_FILE)
        classes = Classes.read(home / "classes.toml")
        colours = COLOURS[random_classes()].astype(np.uint8)
        colours[0] = 0
        expected = random_classes()
        expected[0] = 255
        np.testing.assert_array_equal(classes.from_array(colours), expected)
        assert Labels.from_header(json.loads(json.dumps(Labels(classes, "palette").header()))).classes == classes

    def test_that_are_ignored_and_those_of_classes_differ(self, home):
        (home / "classes.toml").write_text("ignore_colours = [[70, 130, 180], 3]\n" + CLASS_FILE)
        assert "ignore_colours: expected a list of colours" in error_of(lambda: Classes.read(home / "classes.toml"))
        (home / "classes.toml").write_text("ignore_colours = [[70, 130, 180]]\n" + CLASS_FILE)
        message = error_of(lambda: Classes.read(home / "classes.toml"))
        assert "the colour [70, 130, 180] occurs 2 times (with ignore_colours)" in message

    def test_an_index_and_its_colour_of_two_classes_are_refused(self, home):
        palette = np.zeros((256, 3), np.uint8)
        palette[VALUES] = COLOURS[[1, 0, 2]]
        picture = Image.fromarray(VALUES[random_classes()])
        picture.putpalette(palette.tobytes())
        picture.save(home / "map.png")
        message = error_of(lambda: Classes.read(home / "classes.toml").read_map(home / "map.png"))
        assert message.startswith(f"{home / 'map.png'}: its index 7 is the value of one class, and the colour ")

    def test_values_as_the_grey_levels_of_a_palette_are_refused(self, home):
        save_optimised(home / "map.png", VALUES[random_classes()][..., None].repeat(3, 2))
        message = error_of(lambda: Classes.read(home / "classes.toml").read_map(home / "map.png"))
        assert message.endswith("not its indices, are the values of classes: save it as greyscale")

    def test_pairs_and_counts_are_those_of_the_maps_of_values(self, pairs):
        for file in sorted((pairs / "maps").rglob("*.png")):
            (pairs / "rgb" / file.parent.name).mkdir(parents=True, exist_ok=True)
            classes = Classes.read(pairs / "classes.toml").read_map(file)
            write_image(pairs / "rgb" / file.parent.name / file.name, COLOURS[classes].astype(np.uint8))
        data, expected = folders(inputs="rgb"), folders()
        assert data.file_shapes == expected.file_shapes
        for pair, same in zip(data, expected, strict=True):
            np.testing.assert_array_equal(pair.x, same.x)
            np.testing.assert_array_equal(pair.labels, same.labels)
        reports = []
        for inputs in ("rgb", "maps"):
            (pairs / "mine.toml").write_text(
                RECIPE + f'inputs = "{inputs}"\ntargets = "photos"\ninput_labels = "classes.toml"\n'
            )
            checked = CliRunner().invoke(main, ["data", "check", "mine.toml", "--json"])
            reports.append(json.loads(checked.stdout))
        assert reports[0]["splits"] == reports[1]["splits"]
        assert reports[0]["runs"]


class TestPairs:
    def test_one_hot_x_has_a_channel_for_each_class(self, pairs):
        data = folders()
        assert (data.x_range, data.y_range) == ((0, 1), (0, 255))
        assert (data.classes, data.palette) == (("sky", "road", "tree"), tuple(map(tuple, COLOURS.tolist())))
        np.testing.assert_array_equal(data[1].x, np.eye(3, dtype=np.uint8)[random_classes(1)])
        np.testing.assert_array_equal(data[1].labels, random_classes(1))

    def test_palette_x_has_the_colours_of_the_class_file(self, pairs):
        pair = folders(input_encoding="palette")[1]
        np.testing.assert_array_equal(pair.x, COLOURS[random_classes(1)])

    def test_y_may_be_the_label_map(self, pairs):
        data = folders(direction="BtoA", input_labels=None, target_labels="classes.toml", target_encoding="palette")
        np.testing.assert_array_equal(data[2].y, COLOURS[random_classes(2)])
        np.testing.assert_array_equal(data[2].labels, random_classes(2))

    def test_a_third_folder_gives_the_labels_for_scoring(self, pairs):
        shutil.copytree(pairs / "photos", pairs / "drawings")
        data = folders(inputs="photos", targets="drawings", input_labels=None, labels="maps", classes="classes.toml")
        np.testing.assert_array_equal(data[0].labels, random_classes(0))
        assert data[0].x.shape == (32, 32, 3)
        assert data.classes == ("sky", "road", "tree")
        assert len(data.files[0]) == 3

    def test_ignored_values_have_no_class(self, pairs):
        values = VALUES[random_classes(0)]
        values[:4] = 255
        save_indexed(pairs / "maps/train/0.png", values)
        pair = folders()[0]
        assert not pair.x[:4].any()
        assert (pair.labels[:4] == 255).all()
        assert (pair.x[4:].sum(2) == 1).all()

    def test_a_value_without_a_class_is_refused_by_file_name(self, pairs):
        values = VALUES[random_classes(0)]
        values[3, 3] = 99
        save_indexed(pairs / "maps/train/0.png", values)
        assert error_of(lambda: folders()[0]) == (
            "maps/train/0.png: it has the value 99 without a class: "
            "add a class to classes.toml, or list it under `ignore`"
        )

    @pytest.mark.parametrize("resize", ["stretch", "fit", "crop"])
    @pytest.mark.parametrize("encoding", ["one-hot", "palette"])
    def test_resizing_does_not_mix_classes(self, pairs, resize, encoding):
        codes = np.eye(3) if encoding == "one-hot" else COLOURS
        data = folders(size=(20, 24), resize=resize, input_encoding=encoding)
        store = Store(data, enlarge=1.3)
        for pair in (data[0], store[0]):
            np.testing.assert_array_equal(pair.x, codes[pair.labels])

    def test_data_without_label_maps_is_enlarged_with_the_recipes_kernel(self, pairs):
        data = folders(input_labels=None)
        plain = Store(data, enlarge=1.25)
        assert plain.kernels == ["bicubic", "bicubic"]

    def test_a_changed_class_file_changes_the_fingerprint(self, pairs):
        before = folders().fingerprint
        (pairs / "classes.toml").write_text(CLASS_FILE.replace("70, 130", "71, 130"))
        assert folders().fingerprint != before

    def test_parameters_without_effect_are_refused(self, pairs):
        for parameters, message in (
            ({"input_labels": None, "input_encoding": "palette"}, "input_encoding: needs label maps"),
            ({"classes": "classes.toml"}, "classes: is the class file of `labels`"),
            ({"input_channels": 3}, "input_channels and input_range: remove both, label maps"),
            ({"input_labels": None, "labels": "maps"}, "labels: they need a class file"),
        ):
            with pytest.raises(ValueError, match=message):
                folders(**parameters)


RECIPE = (
    'extends = "zoo:base.toml"\ndrop = ["metrics.ssim"]\n[generator]\nwidth = 2\n[discriminator]\nwidth = 2\n'
    "[train]\nimages = 2\njitter = 1.25\n[compute]\ndevice = 'cpu'\nthreads = 1\n[dataset]\nuse = 'folders'\n"
)


class TestTranslations:
    def call(self, *arguments):
        return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)

    def trained(self, home, dataset):
        (home / "mine.toml").write_text(RECIPE + dataset)
        ran = self.call("run", "mine.toml", "--json")
        assert ran.exit_code == 0, ran.output
        return next(home.glob("runs/**/model.safetensors"))

    @pytest.mark.parametrize("encoding", ["one-hot", "palette"])
    def test_a_class_map_is_read_and_encoded_as_in_training(self, pairs, encoding):
        path = self.trained(
            pairs,
            f'inputs = "maps"\ntargets = "photos"\ninput_labels = "classes.toml"\ninput_encoding = "{encoding}"\n',
        )
        made = self.call("translate", path, "maps/val", "-o", "out", "--test-mode", "eval")
        assert made.exit_code == 0, made.output
        written = read_image(pairs / "out/0.png")
        model, codes = load_model(path), (np.eye(3) if encoding == "one-hot" else COLOURS / 255)
        x = torch.from_numpy(codes[random_classes(10)] * 2 - 1).permute(2, 0, 1).float()
        y = model.translate(x, test_mode="eval")
        np.testing.assert_allclose(written, ((y + 1) * 127.5).permute(1, 2, 0), atol=1)
        picture = Image.open(pairs / "maps/val/0.png")
        np.testing.assert_array_equal(model.translate(picture, test_mode="eval"), written)

        values = VALUES[random_classes(10)]
        values[0] = 9
        save_indexed(pairs / "strange.png", values)
        write_image(pairs / "photo.png", np.zeros((32, 32, 3), np.uint8))
        colours = COLOURS[random_classes(10)].astype(np.uint8)
        (pairs / "rgb").mkdir()
        write_image(pairs / "rgb/0.png", colours)
        assert self.call("translate", path, "rgb", "-o", "out-rgb", "--test-mode", "eval").exit_code == 0
        np.testing.assert_array_equal(read_image(pairs / "out-rgb/0.png"), written)
        for picture in (colours, Image.fromarray(colours), Image.fromarray(colours).convert("RGBA")):
            np.testing.assert_array_equal(model.translate(picture, test_mode="eval"), written)
        results = [
            json.loads(self.call("evaluate", path, maps, "photos/val", "--metric", "l1", "--json").stdout)["metrics"]
            for maps in ("maps/val", "rgb")
        ]
        assert results[0] == results[1]

        refused = self.call("translate", path, "strange.png", "photo.png", "-o", "more")
        assert refused.exit_code == 2
        assert (
            "strange.png: it has the value 9 without a class: those of the model are 7, 21, 23, 255" in refused.output
        )
        assert "photo.png: it has the colour [0, 0, 0] (first in row 0, column 0, from 0) without a" in refused.output

    def test_palette_targets_are_written_as_rgb(self, pairs):
        path = self.trained(
            pairs,
            'inputs = "photos"\ntargets = "maps"\ntarget_labels = "classes.toml"\ntarget_encoding = "palette"\n'
            '[metrics.labels]\nuse = "label_accuracy"\n',
        )
        assert self.call("translate", path, "photos/val", "-o", "out").exit_code == 0
        assert read_image(pairs / "out/0.png").shape == (32, 32, 3)

    @pytest.mark.parametrize("tile", [[], ["--tile", "32", "--overlap", "0"]])
    def test_one_hot_targets_are_written_as_label_maps(self, pairs, tile):
        path = self.trained(
            pairs,
            'inputs = "photos"\ntargets = "maps"\ntarget_labels = "classes.toml"\n'
            '[metrics.labels]\nuse = "label_accuracy"\n',
        )
        write_image(pairs / "wide.png", np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8))
        made = self.call("translate", path, "wide.png", "-o", "out", "--test-mode", "eval", *tile)
        assert made.exit_code == 0, made.output
        values = read_map(pairs / "out/wide.png")
        assert values.shape == (32, 64)
        assert set(np.unique(values)) <= set(VALUES.tolist())
        colours = Classes.read(pairs / "classes.toml").colours
        classes = Classes.read(pairs / "classes.toml").from_array(values)
        np.testing.assert_array_equal(read_image(pairs / "out/wide.png"), np.array(colours)[classes])

    def test_classes_survive_a_round_trip_through_a_model_header(self, home):
        labels = Labels(Classes.read(home / "classes.toml"), "palette")
        assert Labels.from_header(json.loads(json.dumps(labels.header()))) == labels

    def test_data_check_counts_the_pixels_of_each_class(self, pairs):
        (pairs / "mine.toml").write_text(
            RECIPE + 'inputs = "maps"\ntargets = "photos"\ninput_labels = "classes.toml"\n'
        )
        checked = self.call("data", "check", "mine.toml", "--json")
        shares = json.loads(checked.stdout)["splits"]["train"]["classes"]
        counts = [(np.stack([random_classes(n) for n in range(3)]) == c).mean() for c in range(3)]
        assert list(shares.values()) == pytest.approx(counts)
