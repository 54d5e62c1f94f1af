"""`p2pzoo data`: stats and preview show a dataset; combine and split are inverse and change no other files."""

import json

import numpy as np
import pytest
from p2pzoo_data_tools.preview import compute_stats, draw_preview
from PIL import Image

from p2pzoo import config
from p2pzoo.data import Store, TrainBatches
from p2pzoo.images.grid import GRID_GAP, to_uint8_rgb
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


def save_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, image)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """photos/ (RGB) and maps/ (grey) with 3 pairs in train/ and 2 in val/, and a recipe for them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(RECIPE)
    for split, count in (("train", 3), ("val", 2)):
        for number in range(count):
            save_image(tmp_path / "photos" / split / f"{number}.png", noise(number))
            save_image(tmp_path / "maps" / split / f"{number}.png", noise(9 - number, channels=1))
    return tmp_path


def snapshot(*folders):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for folder in folders
        for path in [folder, *folder.rglob("*")]
    }


ignore_fallback_warning = pytest.mark.filterwarnings("ignore:.*is used instead:UserWarning")


@ignore_fallback_warning
class TestTraining:
    @pytest.mark.parametrize("layout", ["folders", "side-by-side"])
    def test_a_recipe_trains_on_your_own_folders(self, home, run_cli, layout):
        before = snapshot(home / "photos", home / "maps")
        run_cli("data", "combine", "photos", "maps", "-o", "both")
        overrides = [a for o in SIDE_BY_SIDE if layout == "side-by-side" for a in ("-s", o)]
        result = run_cli("run", "mine.toml", "--profile", "smoke", "--runs", "runs", *overrides)
        assert result.exit_code == 0, result.output
        [model] = (home / "runs").rglob("model.safetensors")
        assert Image.open(next(model.parent.glob("samples/test.png"))).width == 3 * 64 * 8 + 2 * GRID_GAP
        assert snapshot(home / "photos", home / "maps") == before

    def test_a_missing_folder_is_reported_before_anything_is_written(self, home, run_cli):
        result = run_cli("run", "mine.toml", "--profile", "smoke", "-s", "dataset.inputs=photo")
        assert result.exit_code == 2
        assert f"photo: no such folder (looked for in {home})" in result.output
        assert not (home / "runs").exists()


@ignore_fallback_warning
class TestStats:
    def test_counts_and_measures_each_split(self, home, run_cli):
        result = run_cli("data", "stats", "mine.toml", "--profile", "smoke", "--json")
        report = json.loads(result.output)
        assert report["dataset"] == "datasets:folders"
        assert {name: split["pairs"] for name, split in report["splits"].items()} == {"train": 3, "val": 2, "test": 2}
        train = report["splits"]["train"]
        images = np.stack([noise(number) for number in range(3)]).reshape(-1, 3)
        assert train["x"]["shapes"] == {"32×64×3 uint8": 3}
        assert train["y"]["shapes"] == {"32×64×1 uint8": 3}
        assert [channel["mean"] for channel in train["x"]["channels"]] == pytest.approx(images.mean(axis=0))
        assert [(c["min"], c["max"]) for c in train["x"]["channels"]] == [
            (low, high) for low, high in zip(images.min(axis=0), images.max(axis=0), strict=True)
        ]
        assert (train["x"]["range"], train["blocks"], train["labels"]) == ([0, 255], None, None)

    def test_sizes_in_files_and_enlargements(self, home, run_cli):
        save_image(home / "photos/train/1.png", noise(1, height=8, width=16))
        save_image(home / "maps/train/1.png", noise(1, 1, height=64, width=128))
        sizes = ("-s", "dataset.size=[16, 16]", "-s", "dataset.resize=crop")
        report = json.loads(run_cli("data", "stats", "mine.toml", "--profile", "smoke", "--json", *sizes).output)
        x, y = (report["splits"]["train"][name] for name in "xy")
        assert x["shapes"] == {"16×16×3 uint8": 3}
        assert x["file_shapes"] == {"32×64×3": 2, "8×16×3": 1}
        assert (x["enlarged"], y["enlarged"]) == ({"pairs": 1, "factor": 2.0}, {"pairs": 0, "factor": 1.0})
        output = run_cli("data", "stats", "mine.toml", "--profile", "smoke", *sizes).output
        assert "x  32×64×3 (2)   16×16×3 uint8 (3)" in output
        assert "train: 1 of 3 files of x are smaller and are enlarged, up to 2 times" in output
        assert output.count("enlarged") == 1

    def test_prints_the_same_as_a_table(self, home, run_cli):
        output = run_cli("data", "stats", "mine.toml", "--profile", "smoke").output
        assert "datasets:folders" in output
        assert "32×64×3 uint8 (3)" in output
        assert "0 / 127." in output
        assert "labelled" not in output

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

        stats = compute_stats(Labelled())
        assert stats["labels"] == {"sea": 8 / 16, "land": 7 / 16, "other": 1 / 16}
        assert (stats["blocks"], stats["x"]["channels"]) == (2, [{"min": 0, "mean": 0.375, "max": 0.75}])

    def test_class_shares_are_printed(self, run_cli):
        output = run_cli("data", "stats", "zoo:base.toml", "--profile", "smoke", "-s", "dataset.stride=256").output
        assert "share of labelled pixels" in output
        assert "forest" in output

    def test_a_truncated_image_is_reported(self, home, run_cli):
        file = home / "maps/val/1.png"
        file.write_bytes(file.read_bytes()[:-300])
        result = run_cli("data", "stats", "mine.toml", "--profile", "smoke")
        assert result.exit_code == 2
        assert "maps/val/1.png: cannot be read as an image" in result.output


@ignore_fallback_warning
class TestPreview:
    def test_shows_the_first_samples_as_training_gets_them(self, home, run_cli):
        result = run_cli("data", "preview", "mine.toml", "--profile", "smoke", "-o", "preview.png", "--count", 3)
        assert (result.exit_code, result.output) == (0, "preview.png\n")
        experiment = config.load("mine.toml", "smoke", ())
        store = Store(experiment.dataset.build(split="train"), enlarge=1.25)
        batches = TrainBatches(store, batch_size=1, mirror=True, seed=0)
        grid = np.asarray(Image.open("preview.png"))
        assert grid.shape == (3 * 256 + 2 * GRID_GAP, 2 * 512 + GRID_GAP, 3)
        for row in range(3):
            for column, image in enumerate((batches[row].x, batches[row].y)):
                top, left = row * (256 + GRID_GAP), column * (512 + GRID_GAP)
                np.testing.assert_array_equal(grid[top : top + 256 : 8, left : left + 512 : 8], to_uint8_rgb(image[0]))

    def test_shows_validation_pairs_unchanged_and_at_most_all_of_them(self, home):
        sheet = np.asarray(draw_preview(config.load("mine.toml", "smoke", ()), "val", 8))
        assert sheet.shape[0] == 2 * 256 + GRID_GAP
        np.testing.assert_array_equal(sheet[:256:8, :512:8], noise(0))

    def test_two_seeds_are_augmented_differently(self, home):
        one, two = (draw_preview(config.load("mine.toml", "smoke", [f"seed={s}"]), "train", 3) for s in (1, 2))
        assert one.tobytes() != two.tobytes()

    @pytest.mark.parametrize(
        ("out", "message"),
        [
            ("mine.png", "mine.png: already exists; --force overwrites it"),
            ("new.jpg", "-o new.jpg: the output is a PNG; use a name that ends in .png"),
            ("no/new.png", "no: no such folder; create it, or write new.png elsewhere"),
        ],
    )
    def test_an_output_that_cannot_be_written_is_refused(self, home, run_cli, out, message):
        (home / "mine.png").write_text("mine")
        result = run_cli("data", "preview", "mine.toml", "--profile", "smoke", "-o", out)
        assert (result.exit_code, result.output) == (2, message + "\n")
        assert (home / "mine.png").read_text() == "mine"
        assert run_cli("data", "preview", "mine.toml", "--profile", "smoke", "-o", "mine.png", "--force").exit_code == 0
        assert Image.open("mine.png").format == "PNG"


class TestLayouts:
    def test_combining_and_splitting_gives_the_same_pixels(self, home, run_cli):
        assert run_cli("data", "combine", "photos", "maps", "-o", "both").output == "5 pairs in both\n"
        assert run_cli("data", "split", "both", "-o", "back").output == "5 pairs in back/A and back/B\n"
        for original, again in (("photos", "A"), ("maps", "B")):
            files = sorted(path.relative_to(home / original) for path in (home / original).rglob("*.png"))
            assert files == sorted(
                path.relative_to(home / "back" / again) for path in (home / "back" / again).rglob("*.png")
            )
            for file in files:
                expected, found = read_image(home / original / file), read_image(home / "back" / again / file)
                np.testing.assert_array_equal(with_channels(found, expected.shape[2]), expected)

    @pytest.mark.parametrize(("a", "b", "both"), [(1, 1, 1), (1, 3, 3), (3, 4, 4), (2, 1, 2), (2, 3, 4), (1, 4, 4)])
    def test_the_combined_image_has_channels_for_both(self, tmp_path, run_cli, a, b, both):
        save_image(tmp_path / "a/0.png", noise(0, a))
        save_image(tmp_path / "b/0.png", noise(1, b))
        run_cli("data", "combine", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "ab")
        combined = read_image(tmp_path / "ab/0.png")
        assert combined.shape == (32, 128, both)
        np.testing.assert_array_equal(with_channels(combined[:, :64], a), noise(0, a))
        np.testing.assert_array_equal(with_channels(combined[:, 64:], b), noise(1, b))

    def test_inputs_are_not_changed(self, home, run_cli):
        before = snapshot(home / "photos", home / "maps")
        run_cli("data", "combine", "photos", "maps", "-o", "both")
        assert snapshot(home / "photos", home / "maps") == before
        before = snapshot(home / "both")
        run_cli("data", "split", "both", "-o", "back")
        assert snapshot(home / "both") == before

    def test_nothing_is_overwritten_without_force(self, home, run_cli):
        save_image(home / "both/train/1.png", noise(50))
        before = snapshot(home / "both")
        result = run_cli("data", "combine", "photos", "maps", "-o", "both")
        assert result.exit_code == 2
        first, second = result.output.splitlines()
        assert first == "1 image with the same name in the output folder: --force replaces them"
        assert second == "  both/train/1.png"
        assert snapshot(home / "both") == before
        assert run_cli("data", "combine", "photos", "maps", "-o", "both", "--force").exit_code == 0
        np.testing.assert_array_equal(read_image(home / "both/train/1.png")[:, :64], noise(1))

    def test_force_does_not_leave_two_files_for_one_pair(self, home, run_cli):
        save_image(home / "both/train/1.png", noise(50))
        (home / "both/train/1.png").rename(home / "both/train/1.jpg")
        result = run_cli("data", "combine", "photos", "maps", "-o", "both", "--force")
        assert (result.exit_code, (home / "both/train/1.png").exists()) == (2, False)
        assert result.output.endswith("would be written next to these: remove them first\n  both/train/1.jpg\n")

    @pytest.mark.parametrize("out", ["photos", "maps/new", "photos/train", "link"])
    def test_the_output_may_not_be_inside_an_input(self, home, run_cli, out):
        (home / "link").symlink_to(home / "maps")
        before = snapshot(home / "photos", home / "maps")
        result = run_cli("data", "combine", "photos", "maps", "-o", out, "--force")
        assert result.exit_code == 2
        assert "which is only read: choose another folder with -o" in result.output
        assert snapshot(home / "photos", home / "maps") == before

    def test_the_output_may_not_link_to_an_input(self, home, run_cli):
        (home / "maps/train").rename(home / "elsewhere")
        (home / "maps/train").symlink_to(home / "elsewhere")
        (home / "both").mkdir()
        (home / "both/train").symlink_to(home / "elsewhere")
        before = snapshot(home / "elsewhere")
        result = run_cli("data", "combine", "photos", "maps", "-o", "both", "--force")
        assert (result.exit_code, snapshot(home / "elsewhere")) == (2, before)

    def test_split_may_not_write_into_its_input(self, home, run_cli):
        (home / "photos").rename(home / "A")
        result = run_cli("data", "split", "A", "-o", ".", "--force")
        assert (result.exit_code, result.output.startswith("A/train: is inside A, which is only read")) == (2, True)

    def test_images_of_different_sizes_do_not_combine(self, home, run_cli):
        save_image(home / "maps/val/1.png", noise(0, 1, 32, 60))
        result = run_cli("data", "combine", "photos", "maps", "-o", "both")
        assert result.exit_code == 2
        assert result.output.splitlines() == [
            "the two images of a pair must have the same size:",
            "  photos/val/1.png is 64×32 px, maps/val/1.png is 60×32 px",
        ]
        assert not (home / "both").exists()

    def test_odd_widths_do_not_split(self, tmp_path, run_cli, monkeypatch):
        monkeypatch.chdir(tmp_path)
        save_image(tmp_path / "both/0.png", noise(0, width=63))
        result = run_cli("data", "split", "both", "-o", "back")
        assert (result.exit_code, (tmp_path / "back").exists()) == (2, False)
        assert result.output.endswith("must have an even width:\n  both/0.png is 63×32 px\n")

    def test_images_that_are_turned_against_each_other_are_not_converted(self, home, run_cli):
        exif = Image.Exif()
        exif[0x0112] = 3
        Image.open(home / "photos/val/1.png").save(home / "photos/val/1.png", exif=exif)
        result = run_cli("data", "combine", "photos", "maps", "-o", "both")
        assert (result.exit_code, (home / "both").exists()) == (2, False)
        assert result.output.endswith("\n  photos/val/1.png has orientation 3, maps/val/1.png has none\n")
        result = run_cli("data", "split", "photos", "-o", "both")
        assert (result.exit_code, (home / "both").exists()) == (2, False)
        assert result.output.endswith("\n  photos/val/1.png has orientation 3\n")

    def test_a_file_with_the_name_of_the_output_folder_is_refused(self, home, run_cli):
        (home / "both").write_text("mine")
        result = run_cli("data", "combine", "photos", "maps", "-o", "both")
        assert (result.exit_code, (home / "both").read_text()) == (2, "mine")
        assert "cannot be created, because a file has this name" in result.output

    def test_faults_of_folders_are_reported_as_for_a_dataset(self, home, run_cli):
        (home / "maps/val/1.png").unlink()
        result = run_cli("data", "combine", "photos", "maps", "-o", "both")
        assert result.exit_code == 2
        assert result.output == ("photos/val: 1 of 2 images without a partner of the same name in maps/val:\n  1.png\n")
        assert run_cli("data", "split", "nowhere", "-o", "x").output.startswith("nowhere: no such folder")


@pytest.mark.parametrize("command", ["stats", "preview", "combine", "split"])
def test_every_command_has_help(run_cli, command):
    assert command in run_cli("data", "--help").output
    result = run_cli("data", command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_converting_does_not_import_torch(start):
    script = "import sys, p2pzoo.data.convert_layout, p2pzoo_data_tools.commands; print('torch' in sys.modules)"
    assert start("-c", script).communicate()[0] == "False\n"
