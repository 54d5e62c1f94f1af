"""`p2pzoo data`: what stats and preview show of a dataset; combine and split undo each other and touch nothing else."""

import json

import numpy as np
import pytest
from p2pzoo_data_tools.preview import preview, stats
from PIL import Image

from p2pzoo import config
from p2pzoo.data import Store, TrainBatches
from p2pzoo.images.grid import GAP, to_rgb
from p2pzoo.images.io import read_image, with_channels, write_png
from p2pzoo.plugin.batch import Pair

RECIPE = """
extends = "zoo:base.toml"
drop = ["metrics.ssim"]
[generator]
width = 4
[discriminator]
width = 4
[dataset]
use = "folders"
inputs = "photos"
targets = "maps"
[train]
images = 2
jitter = 1.25
[compute]
device = "cpu"
threads = 1
[profiles.smoke.train]
images = 2
"""
SIDE_BY_SIDE = ["dataset.use=side-by-side", "dataset.root=both", "dataset.target_channels=1"]


def noise(seed, channels=3, height=32, width=64):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def put(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, image)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """photos/ (RGB) and maps/ (grey) with 3 pairs in train/ and 2 in val/, and a recipe for them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(RECIPE)
    for split, count in (("train", 3), ("val", 2)):
        for number in range(count):
            put(tmp_path / "photos" / split / f"{number}.png", noise(number))
            put(tmp_path / "maps" / split / f"{number}.png", noise(9 - number, channels=1))
    return tmp_path


def snapshot(*folders):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for folder in folders
        for path in [folder, *folder.rglob("*")]
    }


stands_in = pytest.mark.filterwarnings("ignore:.*stands in for it:UserWarning")


@stands_in
class TestTraining:
    @pytest.mark.parametrize("layout", ["folders", "side-by-side"])
    def test_a_recipe_trains_on_your_own_folders(self, home, zoo, layout):
        before = snapshot(home / "photos", home / "maps")
        zoo("data", "combine", "photos", "maps", "-o", "both")
        overrides = [a for o in SIDE_BY_SIDE if layout == "side-by-side" for a in ("-s", o)]
        told = zoo("run", "mine.toml", "--profile", "smoke", "--runs", "runs", *overrides)
        assert told.exit_code == 0, told.output
        [model] = (home / "runs").rglob("model.safetensors")
        assert Image.open(next(model.parent.glob("samples/test.png"))).width == 3 * 64 * 8 + 2 * GAP
        assert snapshot(home / "photos", home / "maps") == before

    def test_missing_folders_are_told_before_anything_is_written(self, home, zoo):
        told = zoo("run", "mine.toml", "--profile", "smoke", "-s", "dataset.inputs=photo")
        assert told.exit_code == 2
        assert f"photo: no such folder (looked for in {home})" in told.output
        assert not (home / "runs").exists()


@stands_in
class TestStats:
    def test_counts_and_measures_each_split(self, home, zoo):
        told = zoo("data", "stats", "mine.toml", "--profile", "smoke", "--json")
        found = json.loads(told.output)
        assert found["dataset"] == "datasets:folders"
        assert {split: one["pairs"] for split, one in found["splits"].items()} == {"train": 3, "val": 2, "test": 2}
        train = found["splits"]["train"]
        images = np.stack([noise(number) for number in range(3)]).reshape(-1, 3)
        assert train["x"]["shapes"] == {"32×64×3 uint8": 3}
        assert train["y"]["shapes"] == {"32×64×1 uint8": 3}
        assert [channel["mean"] for channel in train["x"]["channels"]] == pytest.approx(images.mean(axis=0))
        assert [(c["min"], c["max"]) for c in train["x"]["channels"]] == [
            (low, high) for low, high in zip(images.min(axis=0), images.max(axis=0), strict=True)
        ]
        assert (train["x"]["range"], train["blocks"], train["labels"]) == ([0, 255], None, None)

    def test_shows_people_the_same(self, home, zoo):
        shown = zoo("data", "stats", "mine.toml", "--profile", "smoke").output
        assert "datasets:folders" in shown
        assert "32×64×3 uint8 (3)" in shown
        assert "0 / 127." in shown
        assert "labelled" not in shown

    def test_shares_of_classes_and_number_of_blocks(self):
        class Labelled:
            x_range = y_range = (0.0, 1.0)
            classes, palette = ("sea", "land"), ((0, 0, 255), (0, 255, 0))

            def __len__(self):
                return 4

            def __getitem__(self, i):
                image = np.full((2, 2, 1), i / 4, np.float32)
                labels = np.array([[0, 0], [1, 255 if i == 0 else 1]])
                return Pair(str(i), image, image, labels, f"b{i // 2}")

        found = stats(Labelled())
        assert found["labels"] == {"sea": 8 / 16, "land": 7 / 16, "other": 1 / 16}
        assert (found["blocks"], found["x"]["channels"]) == (2, [{"min": 0, "mean": 0.375, "max": 0.75}])

    def test_class_shares_are_shown(self, zoo):
        shown = zoo("data", "stats", "zoo:base.toml", "--profile", "smoke", "-s", "dataset.stride=256").output
        assert "share of labelled pixels" in shown
        assert "forest" in shown

    def test_an_image_cut_short_is_found(self, home, zoo):
        file = home / "maps/val/1.png"
        file.write_bytes(file.read_bytes()[:-300])
        told = zoo("data", "stats", "mine.toml", "--profile", "smoke")
        assert told.exit_code == 2
        assert "maps/val/1.png: cannot be read as an image" in told.output


@stands_in
class TestPreview:
    def test_shows_the_first_samples_as_training_sees_them(self, home, zoo):
        told = zoo("data", "preview", "mine.toml", "--profile", "smoke", "-o", "seen.png", "--count", 3)
        assert (told.exit_code, told.output) == (0, "seen.png\n")
        experiment = config.load("mine.toml", "smoke", ())
        store = Store(experiment.dataset.build(split="train"), enlarge=1.25)
        batches = TrainBatches(store, batch_size=1, mirror=True, seed=0)
        shown = np.asarray(Image.open("seen.png"))
        assert shown.shape == (3 * 256 + 2 * GAP, 2 * 512 + GAP, 3)
        for row in range(3):
            for column, image in enumerate((batches[row].x, batches[row].y)):
                top, left = row * (256 + GAP), column * (512 + GAP)
                np.testing.assert_array_equal(shown[top : top + 256 : 8, left : left + 512 : 8], to_rgb(image[0]))

    def test_shows_validation_pairs_as_they_are_and_no_more_than_there_are(self, home):
        sheet = np.asarray(preview(config.load("mine.toml", "smoke", ()), "val", 8))
        assert sheet.shape[0] == 2 * 256 + GAP
        np.testing.assert_array_equal(sheet[:256:8, :512:8], noise(0))

    def test_two_seeds_are_augmented_differently(self, home):
        one, two = (preview(config.load("mine.toml", "smoke", [f"seed={s}"]), "train", 3) for s in (1, 2))
        assert one.tobytes() != two.tobytes()

    @pytest.mark.parametrize(
        ("out", "message"),
        [
            ("there.png", "there.png: is there already; --force replaces it"),
            ("seen.jpg", "-o seen.jpg: a PNG is written; give a name that ends in .png"),
            ("no/seen.png", "no: no such folder to write seen.png into"),
        ],
    )
    def test_where_it_cannot_write_it_says_so(self, home, zoo, out, message):
        (home / "there.png").write_text("mine")
        told = zoo("data", "preview", "mine.toml", "--profile", "smoke", "-o", out)
        assert (told.exit_code, told.output) == (2, message + "\n")
        assert (home / "there.png").read_text() == "mine"
        assert zoo("data", "preview", "mine.toml", "--profile", "smoke", "-o", "there.png", "--force").exit_code == 0
        assert Image.open("there.png").format == "PNG"


class TestLayouts:
    def test_combining_and_splitting_gives_the_same_pixels(self, home, zoo):
        assert zoo("data", "combine", "photos", "maps", "-o", "both").output == "5 pairs in both\n"
        assert zoo("data", "split", "both", "-o", "back").output == "5 pairs in back/A and back/B\n"
        for original, again in (("photos", "A"), ("maps", "B")):
            files = sorted(path.relative_to(home / original) for path in (home / original).rglob("*.png"))
            assert files == sorted(
                path.relative_to(home / "back" / again) for path in (home / "back" / again).rglob("*.png")
            )
            for file in files:
                expected, found = read_image(home / original / file), read_image(home / "back" / again / file)
                np.testing.assert_array_equal(with_channels(found, expected.shape[2]), expected)

    @pytest.mark.parametrize(("a", "b", "both"), [(1, 1, 1), (1, 3, 3), (3, 4, 4), (2, 1, 2), (2, 3, 4), (1, 4, 4)])
    def test_two_kinds_of_channels_become_one_that_holds_both(self, tmp_path, zoo, a, b, both):
        put(tmp_path / "a/0.png", noise(0, a))
        put(tmp_path / "b/0.png", noise(1, b))
        zoo("data", "combine", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "ab")
        combined = read_image(tmp_path / "ab/0.png")
        assert combined.shape == (32, 128, both)
        np.testing.assert_array_equal(with_channels(combined[:, :64], a), noise(0, a))
        np.testing.assert_array_equal(with_channels(combined[:, 64:], b), noise(1, b))

    def test_what_is_read_is_left_alone(self, home, zoo):
        before = snapshot(home / "photos", home / "maps")
        zoo("data", "combine", "photos", "maps", "-o", "both")
        assert snapshot(home / "photos", home / "maps") == before
        before = snapshot(home / "both")
        zoo("data", "split", "both", "-o", "back")
        assert snapshot(home / "both") == before

    def test_nothing_is_overwritten_without_force(self, home, zoo):
        put(home / "both/train/1.png", noise(50))
        before = snapshot(home / "both")
        told = zoo("data", "combine", "photos", "maps", "-o", "both")
        assert told.exit_code == 2
        assert told.output == "1 image of the same name there already: --force replaces them\n  both/train/1.png\n"
        assert snapshot(home / "both") == before
        assert zoo("data", "combine", "photos", "maps", "-o", "both", "--force").exit_code == 0
        np.testing.assert_array_equal(read_image(home / "both/train/1.png")[:, :64], noise(1))

    def test_force_leaves_no_two_files_for_one_pair(self, home, zoo):
        put(home / "both/train/1.png", noise(50))
        (home / "both/train/1.png").rename(home / "both/train/1.jpg")
        told = zoo("data", "combine", "photos", "maps", "-o", "both", "--force")
        assert (told.exit_code, (home / "both/train/1.png").exists()) == (2, False)
        assert told.output.endswith("come to lie beside these: remove them first\n  both/train/1.jpg\n")

    @pytest.mark.parametrize("out", ["photos", "maps/new", "photos/train", "link"])
    def test_the_result_may_not_lie_inside_what_is_read(self, home, zoo, out):
        (home / "link").symlink_to(home / "maps")
        before = snapshot(home / "photos", home / "maps")
        told = zoo("data", "combine", "photos", "maps", "-o", out, "--force")
        assert told.exit_code == 2
        assert "which is only read: choose another folder with -o" in told.output
        assert snapshot(home / "photos", home / "maps") == before

    def test_nor_where_a_link_in_it_leads(self, home, zoo):
        (home / "maps/train").rename(home / "elsewhere")
        (home / "maps/train").symlink_to(home / "elsewhere")
        (home / "both").mkdir()
        (home / "both/train").symlink_to(home / "elsewhere")
        before = snapshot(home / "elsewhere")
        told = zoo("data", "combine", "photos", "maps", "-o", "both", "--force")
        assert (told.exit_code, snapshot(home / "elsewhere")) == (2, before)

    def test_halves_may_not_go_into_what_is_read(self, home, zoo):
        (home / "photos").rename(home / "A")
        told = zoo("data", "split", "A", "-o", ".", "--force")
        assert (told.exit_code, told.output.startswith("A/train: lies inside A, which is only read")) == (2, True)

    def test_images_of_unlike_size_do_not_combine(self, home, zoo):
        put(home / "maps/val/1.png", noise(0, 1, 32, 60))
        told = zoo("data", "combine", "photos", "maps", "-o", "both")
        assert told.exit_code == 2
        assert told.output.splitlines() == [
            "a pair's images must be of one size to lie side by side:",
            "  photos/val/1.png is 64×32 px, maps/val/1.png is 60×32 px",
        ]
        assert not (home / "both").exists()

    def test_odd_widths_do_not_split(self, tmp_path, zoo, monkeypatch):
        monkeypatch.chdir(tmp_path)
        put(tmp_path / "both/0.png", noise(0, width=63))
        told = zoo("data", "split", "both", "-o", "back")
        assert (told.exit_code, (tmp_path / "back").exists()) == (2, False)
        assert told.output.endswith("must have an even width:\n  both/0.png is 63×32 px\n")

    def test_a_file_where_the_folder_would_be(self, home, zoo):
        (home / "both").write_text("mine")
        told = zoo("data", "combine", "photos", "maps", "-o", "both")
        assert (told.exit_code, (home / "both").read_text()) == (2, "mine")
        assert "cannot be made, a file is in its place" in told.output

    def test_faults_of_folders_are_told_as_for_a_dataset(self, home, zoo):
        (home / "maps/val/1.png").unlink()
        told = zoo("data", "combine", "photos", "maps", "-o", "both")
        assert told.exit_code == 2
        assert told.output == ("photos/val: 1 of 2 images without a partner of the same name in maps/val:\n  1.png\n")
        assert zoo("data", "split", "nowhere", "-o", "x").output.startswith("nowhere: no such folder")


@pytest.mark.parametrize("command", ["stats", "preview", "combine", "split"])
def test_every_command_explains_itself(zoo, command):
    assert command in zoo("data", "--help").output
    told = zoo("data", command, "--help")
    assert told.exit_code == 0
    assert "Usage:" in told.output


def test_converting_does_not_wait_for_torch(start):
    script = "import sys, p2pzoo.data.pairing, p2pzoo_data_tools.commands; print('torch' in sys.modules)"
    assert start("-c", script).communicate()[0] == "False\n"
