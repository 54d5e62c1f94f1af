"""From Cityscapes' archives to pairs with class maps, on a few frames with Cityscapes' layout, names and sizes."""

import json
import shutil
import time
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from p2pzoo_datasets import cityscapes_prepare
from p2pzoo_datasets.cityscapes import Cityscapes
from p2pzoo_datasets.cityscapes_classes import CLASSES, PALETTE, TRAIN_ID
from PIL import Image, JpegImagePlugin

from p2pzoo import config
from p2pzoo.cli import main
from p2pzoo.data import Store, TrainBatches, single_batches
from p2pzoo.images.io import write_png
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.paths import shipped_dir

pytestmark = pytest.mark.filterwarnings("ignore:.*has . pairs:UserWarning")

FRAMES = {
    "train": ["aachen_000000_000019", "bochum_000000_000313", "bochum_000000_000600"],
    "val": ["frankfurt_000000_000294", "munster_000001_000019"],
}
ROAD, SKY, UNLABELLED = 7, 23, 0  # labelIds
PHOTO = (200, 120, 30)


def file(root, kind, split, frame, suffix):
    path = root / kind / split / frame.partition("_")[0] / f"{frame}_{suffix}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def draw(root):
    """Photos of one colour with a gradient. Labels: road below, unlabelled at the top left, sky at the top right."""
    ramp = np.linspace(0, 50, 2048).astype(np.uint8)
    photo = np.array(PHOTO, np.uint8) + np.tile(ramp[:, None], (1024, 1, 3))
    ids = np.full((1024, 2048), UNLABELLED, np.uint8)
    ids[512:], ids[:512, 1024:] = ROAD, SKY
    colours = np.zeros((1024, 2048, 4), np.uint8)
    colours[..., 3] = 255
    for label, colour in ((ROAD, PALETTE[0]), (SKY, PALETTE[10])):
        colours[ids == label, :3] = colour
    for split, frames in FRAMES.items():
        for number, frame in enumerate(frames):
            ids[0, 0] = 24 + number  # one pixel identifies the frame: person, rider, car
            for kind, suffix, image in (
                ("leftImg8bit", "leftImg8bit", photo),
                ("gtFine", "gtFine_color", colours),
                ("gtFine", "gtFine_labelIds", ids),
            ):
                Image.fromarray(image).save(file(root, kind, split, frame, suffix), compress_level=1)
            file(root, "gtFine", split, frame, "gtFine_polygons").with_suffix(".json").write_text("{}")
    file(root, "leftImg8bit", "test", "berlin_000000_000019", "leftImg8bit").write_bytes(b"not needed")


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    root = tmp_path_factory.mktemp("cityscapes")
    draw(root)
    return root


@pytest.fixture(scope="module")
def prepared(archives, tmp_path_factory):
    out = tmp_path_factory.mktemp("datasets") / "cityscapes"
    result = prepare(archives / "leftImg8bit", archives / "gtFine", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def copied(archives, tmp_path):
    """A copy of the archives that a test may damage."""
    return shutil.copytree(archives, tmp_path / "copied")


def prepare(photos, labels, out):
    options = ["--leftimg8bit", str(photos), "--gtfine", str(labels), "-o", str(out)]
    return CliRunner().invoke(main, ["data", "prepare", "cityscapes", *options])


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestPairs:
    def test_have_the_names_of_their_frames_and_are_sorted(self, prepared):
        for split, folder in (("train", "train"), ("val", "val"), ("test", "val")):
            dataset = Cityscapes(split, root=prepared)
            assert [dataset[i].id for i in range(len(dataset))] == [f"{folder}-{frame}" for frame in FRAMES[folder]]

    def test_are_photo_and_colours_scaled_by_pillow(self, prepared, archives):
        frame = FRAMES["val"][0]
        pair = Cityscapes("val", root=prepared)[0]
        for image, kind, suffix in ((pair.y, "leftImg8bit", "leftImg8bit"), (pair.x, "gtFine", "gtFine_color")):
            original = Image.open(file(archives, kind, "val", frame, suffix)).convert("RGB")
            scaled = np.asarray(original.resize((256, 256), Image.Resampling.BICUBIC)).astype(int)
            assert np.abs(image - scaled).max() <= 3, "equal except for the rounding of JPEG"

    def test_are_jpegs_of_quality_100_without_subsampling(self, prepared):
        with Image.open(prepared / "val" / f"{FRAMES['val'][0]}.jpg") as image:
            assert {step for table in image.quantization.values() for step in table} == {1}
            assert JpegImagePlugin.get_sampling(image) == 0, "4:4:4"

    def test_the_manifest_lists_them(self, prepared):
        manifest = json.loads((prepared / "prepared.json").read_text())
        assert manifest["pairs"] == FRAMES
        assert manifest["labels"]["classes"] == list(CLASSES)
        assert manifest["labels"]["size"] == [1024, 2048]


class TestClassMaps:
    def test_are_those_of_the_frames_at_full_resolution(self, prepared, archives):
        for split, folder in (("train", "train"), ("val", "val"), ("test", "val")):
            dataset = Cityscapes(split, root=prepared)
            for index, frame in enumerate(FRAMES[folder]):
                ids = np.asarray(Image.open(file(archives, "gtFine", folder, frame, "gtFine_labelIds")))
                labels = dataset[index].labels
                assert labels.shape == (1024, 2048)
                np.testing.assert_array_equal(labels, TRAIN_ID[ids])

    def test_have_19_classes_and_ignore_the_others(self, prepared):
        dataset = Cityscapes("val", root=prepared)
        assert len(dataset.classes) == len(dataset.palette) == 19
        labels = dataset[0].labels
        assert (dataset.classes[labels[1023, 0]], dataset.classes[labels[100, 2000]]) == ("road", "sky")
        assert (dataset.classes[labels[0, 0]], labels[100, 100]) == ("person", 255)

    def test_numbers_and_colours_equal_those_of_cityscapes(self):
        """Some rows of labels.py of cityscapesScripts."""
        rows = {"road": (7, 0, (128, 64, 128)), "pole": (17, 5, (153, 153, 153)), "rider": (25, 12, (255, 0, 0)),
                "train": (31, 16, (0, 80, 100)), "bicycle": (33, 18, (119, 11, 32))}  # fmt: skip
        for name, (label, train_id, colour) in rows.items():
            assert (CLASSES[train_id], PALETTE[train_id], TRAIN_ID[label]) == (name, colour, train_id)
        assert (TRAIN_ID == 255).sum() == 256 - 19

    def test_keep_their_size_in_evaluation_and_get_the_images_size_in_training(self, prepared):
        batch = next(iter(single_batches(Store(Cityscapes("val", root=prepared)))))
        assert batch.x.shape == (1, 3, 256, 256)
        assert batch.labels.shape == (1, 1024, 2048)
        assert batch.labels.dtype == torch.int64
        store = Store(Cityscapes("train", root=prepared), enlarge=286 / 256)
        assert TrainBatches(store, batch_size=1, mirror=True, seed=0)[0].labels.shape == (1, 256, 256)

    def test_are_files_of_their_pairs(self, prepared):
        dataset = Cityscapes("val", root=prepared)
        frames = FRAMES["val"]
        assert dataset.files == [
            (prepared / "val" / f"{frame}.jpg", prepared / "labels" / "val" / f"{frame}.png") for frame in frames
        ]

    def test_that_change_change_the_fingerprint(self, prepared, tmp_path):
        root = shutil.copytree(prepared, tmp_path / "copy")
        before = Cityscapes("val", root=root).fingerprint
        write_png(root / "labels" / "val" / f"{FRAMES['val'][0]}.png", np.zeros((1024, 2048, 1), np.uint8))
        assert Cityscapes("val", root=root).fingerprint != before

    def test_a_missing_one_is_reported_by_the_constructor(self, prepared, tmp_path):
        root = shutil.copytree(prepared, tmp_path / "copy")
        (root / "labels" / "val" / f"{FRAMES['val'][1]}.png").unlink()
        message = f"labels/val: 1 of 2 class maps are missing, for example that of {FRAMES['val'][1]}.jpg"
        with pytest.raises(UserError, match=message):
            Cityscapes("val", root=root)
        assert Cityscapes("train", root=root).classes == CLASSES


class TestCommand:
    @pytest.mark.parametrize("layout", ["root", "inside a folder", "zip"])
    def test_finds_the_frames_in_every_usual_layout(self, archives, prepared, tmp_path, layout):
        if layout == "root":
            photos = labels = archives
        if layout == "inside a folder":
            photos, labels = tmp_path / "leftImg8bit_trainvaltest", tmp_path / "gtFine_trainvaltest"
            shutil.copytree(archives / "leftImg8bit", photos / "leftImg8bit")
            shutil.copytree(archives / "gtFine", labels / "gtFine")
            photos = labels = tmp_path
        if layout == "zip":
            photos, labels = (tmp_path / f"{kind}_trainvaltest.zip" for kind in ("leftImg8bit", "gtFine"))
            for zip_path, kind in ((photos, "leftImg8bit"), (labels, "gtFine")):
                with zipfile.ZipFile(zip_path, "w") as archive:
                    archive.writestr("README", "")
                    for path in (archives / kind).rglob("*.*"):
                        archive.write(path, path.relative_to(archives))
        assert prepare(photos, labels, tmp_path / "out").exit_code == 0
        assert files(tmp_path / "out") == files(prepared)

    def test_prints_the_counts_and_a_second_call_changes_nothing(self, archives, tmp_path):
        out = tmp_path / "out"
        lines = prepare(archives, archives, out).stdout.splitlines()
        assert lines == [f"{out / 'train'}: 3 pairs", f"{out / 'val'}: 2 pairs"]
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*.[jp][pn]g")}
        again = prepare(archives, archives, out).stdout.splitlines()
        assert again == [
            f"{out / 'train'}: 3 pairs, 3 of them existed already",
            f"{out / 'val'}: 2 pairs, 2 of them existed already",
        ]
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*.[jp][pn]g")} == before

    def test_replaces_incomplete_files(self, archives, prepared, tmp_path):
        out = shutil.copytree(prepared, tmp_path / "out")
        truncated, without_labels, small = (out / "train" / f"{frame}.jpg" for frame in FRAMES["train"])
        truncated.write_bytes(truncated.read_bytes()[:-100])
        (out / "labels" / "train" / f"{without_labels.stem}.png").unlink()
        Image.new("RGB", (10, 10)).save(small)
        (out / "val" / ".left.jpg.tmp").write_bytes(b"of a process that was killed")
        assert "3 pairs\n" in prepare(archives, archives, out).stdout
        assert files(out) == files(prepared)

    def test_after_an_error_a_second_call_continues(self, copied, prepared, tmp_path, monkeypatch):
        monkeypatch.setattr("os.cpu_count", lambda: 1)
        out, last = tmp_path / "out", FRAMES["val"][1]
        broken = file(copied, "leftImg8bit", "val", last, "leftImg8bit")
        content = broken.read_bytes()
        broken.write_bytes(content[:5000])
        result = prepare(copied, copied, out)
        assert result.exit_code == 2
        [line] = result.stderr.splitlines()
        assert line.startswith(f"{broken}: cannot be read as an image")
        assert line.endswith("download the archive again")
        assert not (out / "val" / f"{last}.jpg").exists()
        assert len(list(out.rglob("*.jpg"))) == 4
        broken.write_bytes(content)
        assert "2 pairs, 1 of them existed already" in prepare(copied, copied, out).stdout
        assert files(out) == files(prepared)

    def test_skips_frames_without_all_files_and_reports_them(self, copied, tmp_path):
        file(copied, "gtFine", "train", FRAMES["train"][0], "gtFine_color").unlink()
        file(copied, "leftImg8bit", "train", FRAMES["train"][1], "leftImg8bit").unlink()
        lines = prepare(copied, copied, tmp_path / "out").stdout.splitlines()
        assert lines[:2] == [
            "train: 1 frame skipped: *_leftImg8bit.png is missing (bochum_000000_000313)",
            "train: 1 frame skipped: *_gtFine_color.png is missing (aachen_000000_000019)",
        ]
        assert lines[2] == f"{tmp_path / 'out' / 'train'}: 1 pair"

    def test_a_single_split_is_prepared_too(self, copied, tmp_path):
        for kind in ("leftImg8bit", "gtFine"):
            shutil.rmtree(copied / kind / "train")
        assert prepare(copied, copied, tmp_path / "out").exit_code == 0
        assert len(Cityscapes("test", root=tmp_path / "out")) == 2

    def test_frames_of_another_size_are_refused(self, copied, tmp_path):
        path = file(copied, "leftImg8bit", "val", FRAMES["val"][0], "leftImg8bit")
        Image.new("RGB", (1024, 512)).save(path)
        result = prepare(copied, copied, tmp_path / "out")
        assert result.exit_code == 2
        assert result.stderr.startswith(f"{path}: is 1024×512 px, frames of Cityscapes are 2048×1024 px")

    def test_a_folder_with_other_jpegs_is_refused(self, archives, tmp_path):
        """Those of the published archive have numbers as names."""
        (tmp_path / "out" / "val").mkdir(parents=True)
        Image.new("RGB", (512, 256)).save(tmp_path / "out" / "val" / "1.jpg")
        result = prepare(archives, archives, tmp_path / "out")
        assert result.exit_code == 2
        assert "out/val: has 1 other JPEG" in result.stderr
        assert "1.jpg" in result.stderr
        assert len(files(tmp_path / "out")) == 1

    @pytest.mark.parametrize(
        ("photos", "labels", "message"),
        [
            ("gtFine", "leftImg8bit", "gtFine: has no {train,val}/CITY/*_leftImg8bit.png: is it another archive?"),
            ("nowhere", "gtFine", "nowhere: no such folder or zip: name leftImg8bit_trainvaltest.zip of Cityscapes"),
            ("a.tar", "gtFine", "a.tar: is no folder and no zip: name leftImg8bit_trainvaltest.zip of Cityscapes"),
        ],
    )
    def test_a_wrong_archive_is_reported_in_one_line(self, copied, photos, labels, message, tmp_path):
        (copied / "a.tar").write_bytes(b"tar")
        result = prepare(copied / photos, copied / labels, tmp_path / "out")
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        assert message in result.stderr
        assert not (tmp_path / "out").exists()

    def test_archives_of_different_frames_are_refused(self, copied, tmp_path):
        for path in (copied / "gtFine").rglob("*.png"):
            path.rename(path.with_name(path.name.replace("_0000", "_1111")))
        result = prepare(copied, copied, tmp_path / "out")
        assert (result.exit_code, "do they belong together?" in result.stderr) == (2, True)

    def test_help_lists_the_options(self):
        help_text = CliRunner().invoke(main, ["data", "prepare", "cityscapes", "--help"]).output
        for part in ("--leftimg8bit PATH", "--gtfine PATH", "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"):
            assert part in help_text
        assert "cityscapes" in CliRunner().invoke(main, ["data", "prepare", "--help"]).output

    def test_a_dataset_without_preparation_is_refused(self):
        result = CliRunner().invoke(main, ["data", "prepare", "folders", "-o", "x"])
        assert result.exit_code == 2
        assert "dataset 'folders' needs no preparation" in result.stderr


class TestRuns:
    """The paper profile, on data that the command has made."""

    ROWS = tuple(sorted(path.name for path in shipped_dir("recipes").glob("ablation_*.toml")))

    @pytest.mark.parametrize("name", ROWS)
    def test_every_recipe_reads_it(self, prepared, name):
        experiment = config.load(f"zoo:{name}", "paper", [f"dataset.root={prepared}"])
        pair = experiment.dataset.build(split="test")[0]
        x, y = (pair.y, pair.x) if "Photo to labels" in experiment.title else (pair.x, pair.y)
        np.testing.assert_allclose(x[200, 128], PALETTE[0], atol=4)
        assert y[128, 0, 0] > y[128, 0, 2] + 100, "the photo is orange"

    def test_a_run_completes(self, prepared, tmp_path):
        tiny = ["generator.width=2", "discriminator.width=2", "train.images=2", "compute.device=cpu"]
        overrides = [part for text in [f"dataset.root={prepared}", *tiny] for part in ("-s", text)]
        arguments = ["run", "zoo:ablation_patch70.toml", "--profile", "paper", "--runs", str(tmp_path), "--json"]
        result = CliRunner().invoke(main, [*arguments, *overrides])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["metrics"].keys() >= {"l1", "psnr", "ssim"}


def test_the_published_archive_needs_no_class_maps(prepared, tmp_path):
    """Its pairs have numbers as names."""
    (tmp_path / "val").mkdir()
    shutil.copy(prepared / "val" / f"{FRAMES['val'][0]}.jpg", tmp_path / "val" / "1.jpg")
    dataset = Cityscapes("test", root=tmp_path)
    assert (dataset[0].id, dataset[0].labels, dataset.classes, dataset.palette) == ("val-1", None, None, None)


def test_the_first_error_stops_the_threads(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    done = []

    def act(item):
        done.append(item)
        time.sleep(0.002)
        if item == "b":
            raise UserError("b is broken")

    with pytest.raises(UserError, match="b is broken"):
        list(cityscapes_prepare._map_in_threads(list("abcdefgh" * 100), act))
    assert len(done) < 100
