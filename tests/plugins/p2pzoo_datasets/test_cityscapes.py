"""Cityscapes' archives -> pairs with class maps, on a small tree in Cityscapes' layout, names and size of frames."""

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
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.paths import shipped

pytestmark = pytest.mark.filterwarnings("ignore:.*holds . pairs:UserWarning")

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
    """Photos of one colour with a gradient; below road, above at the left nothing, at the right sky."""
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
            ids[0, 0] = 24 + number  # one pixel says which frame it is: person, rider, car
            for kind, suffix, image in (
                ("leftImg8bit", "leftImg8bit", photo),
                ("gtFine", "gtFine_color", colours),
                ("gtFine", "gtFine_labelIds", ids),
            ):
                Image.fromarray(image).save(file(root, kind, split, frame, suffix), compress_level=1)
            file(root, "gtFine", split, frame, "gtFine_polygons").with_suffix(".json").write_text("{}")
    file(root, "leftImg8bit", "test", "berlin_000000_000019", "leftImg8bit").write_bytes(b"of no use")


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
def own(archives, tmp_path):
    """The archives, to be spoilt."""
    return shutil.copytree(archives, tmp_path / "own")


def prepare(photos, labels, out):
    options = ["--leftimg8bit", str(photos), "--gtfine", str(labels), "-o", str(out)]
    return CliRunner().invoke(main, ["data", "prepare", "cityscapes", *options])


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestPairs:
    def test_are_named_by_their_frames_and_sorted(self, prepared):
        for split, folder in (("train", "train"), ("val", "val"), ("test", "val")):
            dataset = Cityscapes(split, root=prepared)
            assert [dataset[i].id for i in range(len(dataset))] == [f"{folder}-{frame}" for frame in FRAMES[folder]]

    def test_have_the_photo_left_and_the_colours_right_as_pillow_scales_them(self, prepared, archives):
        frame = FRAMES["val"][0]
        pair = Cityscapes("val", root=prepared)[0]
        for image, kind, suffix in ((pair.y, "leftImg8bit", "leftImg8bit"), (pair.x, "gtFine", "gtFine_color")):
            original = Image.open(file(archives, kind, "val", frame, suffix)).convert("RGB")
            scaled = np.asarray(original.resize((256, 256), Image.Resampling.BICUBIC)).astype(int)
            assert np.abs(image - scaled).max() <= 3, "but for a JPEG's rounding"

    def test_are_jpegs_of_quality_100_without_subsampling(self, prepared):
        with Image.open(prepared / "val" / f"{FRAMES['val'][0]}.jpg") as image:
            assert {step for table in image.quantization.values() for step in table} == {1}
            assert JpegImagePlugin.get_sampling(image) == 0, "4:4:4"

    def test_the_manifest_names_them(self, prepared):
        made = json.loads((prepared / "prepared.json").read_text())
        assert made["pairs"] == FRAMES
        assert made["labels"]["classes"] == list(CLASSES)
        assert made["labels"]["size"] == [1024, 2048]


class TestClassMaps:
    def test_are_the_frames_own_at_full_resolution(self, prepared, archives):
        for split, folder in (("train", "train"), ("val", "val"), ("test", "val")):
            dataset = Cityscapes(split, root=prepared)
            for index, frame in enumerate(FRAMES[folder]):
                ids = np.asarray(Image.open(file(archives, "gtFine", folder, frame, "gtFine_labelIds")))
                labels = dataset[index].labels
                assert labels.shape == (1024, 2048)
                np.testing.assert_array_equal(labels, TRAIN_ID[ids])

    def test_know_19_classes_and_leave_the_rest_out(self, prepared):
        dataset = Cityscapes("val", root=prepared)
        assert len(dataset.classes) == len(dataset.palette) == 19
        labels = dataset[0].labels
        assert (dataset.classes[labels[1023, 0]], dataset.classes[labels[100, 2000]]) == ("road", "sky")
        assert (dataset.classes[labels[0, 0]], labels[100, 100]) == ("person", 255)

    def test_the_numbers_and_colours_are_cityscapes_own(self):
        """labels.py of cityscapesScripts, some rows of it."""
        rows = {"road": (7, 0, (128, 64, 128)), "pole": (17, 5, (153, 153, 153)), "rider": (25, 12, (255, 0, 0)),
                "train": (31, 16, (0, 80, 100)), "bicycle": (33, 18, (119, 11, 32))}  # fmt: skip
        for name, (label, train_id, colour) in rows.items():
            assert (CLASSES[train_id], PALETTE[train_id], TRAIN_ID[label]) == (name, colour, train_id)
        assert (TRAIN_ID == 255).sum() == 256 - 19

    def test_reach_evaluation_as_they_are_and_training_at_the_images_size(self, prepared):
        batch = next(iter(single_batches(Store(Cityscapes("val", root=prepared)))))
        assert batch.x.shape == (1, 3, 256, 256)
        assert batch.labels.shape == (1, 1024, 2048)
        assert batch.labels.dtype == torch.int64
        store = Store(Cityscapes("train", root=prepared), enlarge=286 / 256)
        assert TrainBatches(store, batch_size=1, mirror=True, seed=0)[0].labels.shape == (1, 256, 256)

    def test_one_that_is_missing_is_told_before_training(self, prepared, tmp_path):
        root = shutil.copytree(prepared, tmp_path / "copy")
        (root / "labels" / "val" / f"{FRAMES['val'][1]}.png").unlink()
        with pytest.raises(UserError, match=f"labels/val: lacks 1 of 2 class maps, as that of {FRAMES['val'][1]}.jpg"):
            Cityscapes("val", root=root)
        assert Cityscapes("train", root=root).classes == CLASSES


class TestCommand:
    @pytest.mark.parametrize("how", ["root", "inside a folder", "zip"])
    def test_finds_the_frames_in_the_ways_that_people_have_them(self, archives, prepared, tmp_path, how):
        if how == "root":
            photos = labels = archives
        if how == "inside a folder":
            photos, labels = tmp_path / "leftImg8bit_trainvaltest", tmp_path / "gtFine_trainvaltest"
            shutil.copytree(archives / "leftImg8bit", photos / "leftImg8bit")
            shutil.copytree(archives / "gtFine", labels / "gtFine")
            photos = labels = tmp_path
        if how == "zip":
            photos, labels = (tmp_path / f"{kind}_trainvaltest.zip" for kind in ("leftImg8bit", "gtFine"))
            for path, kind in ((photos, "leftImg8bit"), (labels, "gtFine")):
                with zipfile.ZipFile(path, "w") as archive:
                    archive.writestr("README", "")
                    for each in (archives / kind).rglob("*.*"):
                        archive.write(each, each.relative_to(archives))
        assert prepare(photos, labels, tmp_path / "out").exit_code == 0
        assert files(tmp_path / "out") == files(prepared)

    def test_tells_how_many_and_changes_nothing_when_called_again(self, archives, tmp_path):
        out = tmp_path / "out"
        told = prepare(archives, archives, out).stdout.splitlines()
        assert told == [f"{out / 'train'}: 3 pairs", f"{out / 'val'}: 2 pairs"]
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*.[jp][pn]g")}
        again = prepare(archives, archives, out).stdout.splitlines()
        assert again == [
            f"{out / 'train'}: 3 pairs, 3 of them there already",
            f"{out / 'val'}: 2 pairs, 2 of them there already",
        ]
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*.[jp][pn]g")} == before

    def test_makes_anew_what_is_not_whole(self, archives, prepared, tmp_path):
        out = shutil.copytree(prepared, tmp_path / "out")
        cut, gone, small = (out / "train" / f"{frame}.jpg" for frame in FRAMES["train"])
        cut.write_bytes(cut.read_bytes()[:-100])
        (out / "labels" / "train" / f"{gone.stem}.png").unlink()
        Image.new("RGB", (10, 10)).save(small)
        (out / "val" / ".left.jpg.tmp").write_bytes(b"by a process that was killed")
        assert "3 pairs\n" in prepare(archives, archives, out).stdout
        assert files(out) == files(prepared)

    def test_goes_on_after_an_error_with_what_it_had_done(self, own, prepared, tmp_path, monkeypatch):
        monkeypatch.setattr("os.cpu_count", lambda: 1)
        out, last = tmp_path / "out", FRAMES["val"][1]
        broken = file(own, "leftImg8bit", "val", last, "leftImg8bit")
        whole = broken.read_bytes()
        broken.write_bytes(whole[:5000])
        result = prepare(own, own, out)
        assert result.exit_code == 2
        [line] = result.stderr.splitlines()
        assert line.startswith(f"{broken}: cannot be read as an image")
        assert line.endswith("get the archive again")
        assert not (out / "val" / f"{last}.jpg").exists()
        assert len(list(out.rglob("*.jpg"))) == 4
        broken.write_bytes(whole)
        assert "2 pairs, 1 of them there already" in prepare(own, own, out).stdout
        assert files(out) == files(prepared)

    def test_leaves_out_frames_that_lack_something_and_says_so_in_a_line(self, own, tmp_path):
        file(own, "gtFine", "train", FRAMES["train"][0], "gtFine_color").unlink()
        file(own, "leftImg8bit", "train", FRAMES["train"][1], "leftImg8bit").unlink()
        told = prepare(own, own, tmp_path / "out").stdout.splitlines()
        assert told[:2] == [
            "train: 1 frame left out for want of *_leftImg8bit.png (bochum_000000_000313)",
            "train: 1 frame left out for want of *_gtFine_color.png (aachen_000000_000019)",
        ]
        assert told[2] == f"{tmp_path / 'out' / 'train'}: 1 pair"

    def test_one_split_alone_is_prepared_too(self, own, tmp_path):
        for kind in ("leftImg8bit", "gtFine"):
            shutil.rmtree(own / kind / "train")
        assert prepare(own, own, tmp_path / "out").exit_code == 0
        assert len(Cityscapes("test", root=tmp_path / "out")) == 2

    def test_frames_of_another_size_are_refused(self, own, tmp_path):
        path = file(own, "leftImg8bit", "val", FRAMES["val"][0], "leftImg8bit")
        Image.new("RGB", (1024, 512)).save(path)
        result = prepare(own, own, tmp_path / "out")
        assert result.exit_code == 2
        assert result.stderr.startswith(f"{path}: 1024×512 px, where Cityscapes' frames have 2048×1024")

    def test_pairs_of_another_origin_are_not_mixed_in(self, archives, tmp_path):
        """Those of the published archive are numbered."""
        (tmp_path / "out" / "val").mkdir(parents=True)
        Image.new("RGB", (512, 256)).save(tmp_path / "out" / "val" / "1.jpg")
        result = prepare(archives, archives, tmp_path / "out")
        assert result.exit_code == 2
        assert "out/val: holds 1 other JPEG, as 1.jpg" in result.stderr
        assert len(files(tmp_path / "out")) == 1

    @pytest.mark.parametrize(
        ("photos", "labels", "told"),
        [
            ("gtFine", "leftImg8bit", "gtFine: has no {train,val}/CITY/*_leftImg8bit.png: is it another archive?"),
            ("nowhere", "gtFine", "nowhere: no such folder or zip; give leftImg8bit_trainvaltest.zip of Cityscapes"),
            ("a.tar", "gtFine", "a.tar: is no folder and no zip; give leftImg8bit_trainvaltest.zip of Cityscapes"),
        ],
    )
    def test_what_is_not_an_archive_is_told_in_a_line(self, own, photos, labels, told, tmp_path):
        (own / "a.tar").write_bytes(b"tar")
        result = prepare(own / photos, own / labels, tmp_path / "out")
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        assert told in result.stderr
        assert not (tmp_path / "out").exists()

    def test_archives_of_different_frames_are_told(self, own, tmp_path):
        for path in (own / "gtFine").rglob("*.png"):
            path.rename(path.with_name(path.name.replace("_0000", "_1111")))
        result = prepare(own, own, tmp_path / "out")
        assert (result.exit_code, "do they belong together?" in result.stderr) == (2, True)

    def test_help_says_what_it_takes(self):
        shown = CliRunner().invoke(main, ["data", "prepare", "cityscapes", "--help"]).output
        for part in ("--leftimg8bit PATH", "--gtfine PATH", "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"):
            assert part in shown
        assert "cityscapes" in CliRunner().invoke(main, ["data", "prepare", "--help"]).output

    def test_a_dataset_that_needs_no_preparing_says_so(self):
        result = CliRunner().invoke(main, ["data", "prepare", "folders", "-o", "x"])
        assert result.exit_code == 2
        assert "dataset 'folders' is read as it is" in result.stderr


class TestRuns:
    """The paper profile, on data as the command makes it."""

    ROWS = tuple(sorted(path.name for path in shipped("recipes").glob("ablation_*.toml")))

    @pytest.mark.parametrize("name", ROWS)
    def test_every_row_opens_it(self, prepared, name):
        made = config.load(f"zoo:{name}", "paper", [f"dataset.root={prepared}"])
        pair = made.dataset.build(split="test")[0]
        x, y = (pair.y, pair.x) if "Photo to labels" in made.title else (pair.x, pair.y)
        np.testing.assert_allclose(x[200, 128], PALETTE[0], atol=4)
        assert y[128, 0, 0] > y[128, 0, 2] + 100, "the photo is orange"

    def test_one_runs_to_its_end(self, prepared, tmp_path):
        tiny = ["generator.width=2", "discriminator.width=2", "train.images=2", "compute.device=cpu"]
        overrides = [part for text in [f"dataset.root={prepared}", *tiny] for part in ("-s", text)]
        arguments = ["run", "zoo:ablation_patch70.toml", "--profile", "paper", "--runs", str(tmp_path), "--json"]
        result = CliRunner().invoke(main, [*arguments, *overrides])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["metrics"].keys() >= {"l1", "psnr", "ssim"}


def test_the_published_archive_and_the_prepared_one_can_lie_side_by_side(prepared, tmp_path):
    """Its numbered pairs have no class maps, and nothing of these is asked for."""
    (tmp_path / "val").mkdir()
    shutil.copy(prepared / "val" / f"{FRAMES['val'][0]}.jpg", tmp_path / "val" / "1.jpg")
    dataset = Cityscapes("test", root=tmp_path)
    assert (dataset[0].id, dataset[0].labels, dataset.classes, dataset.palette) == ("val-1", None, None, None)


def test_threads_end_with_the_first_error(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    done = []

    def act(item):
        done.append(item)
        time.sleep(0.002)
        if item == "b":
            raise UserError("b is broken")

    with pytest.raises(UserError, match="b is broken"):
        list(cityscapes_prepare._each(list("abcdefgh" * 100), act))
    assert len(done) < 100
