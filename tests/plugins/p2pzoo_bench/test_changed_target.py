"""Rows of a table that measure y blurred, or its classes painted flat: how a metric responds."""

import json

import numpy as np
import pytest
import torch
from noise_pairs import draw_pairs
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.changed_target import Blurred, Flat, changed_target
from p2pzoo_bench.table_file import Row, read_table
from p2pzoo_earth.dataset import Earth
from PIL import Image

from p2pzoo import config
from p2pzoo.data import Store, single_batches
from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError

TABLE = """
baseline = "l1"
[columns]
l1 = "L1"
[rows.l1]
recipe = "l1.toml"
[rows.photos]
target = true
[rows.blurred]
target = true
blur = 1.5
[rows.flat]
target = true
flat = true
"""


@pytest.fixture(scope="module")
def experiment():
    return config.load("zoo:ablation_patch70.toml", "smoke", ["dataset.size=64", "dataset.stride=256"])


@pytest.fixture(scope="module")
def batches(experiment):
    return list(single_batches(Store(experiment.dataset.build(split="test"))))


@pytest.fixture
def files(tmp_path, tiny):
    (tmp_path / "l1.toml").write_text(
        f'extends = "{tiny}"\ndrop = ["discriminator", "gan_loss"]\n[train]\nimages = 2\n'
    )
    (tmp_path / "table.toml").write_text(TABLE)
    return tmp_path


def test_a_blur_keeps_the_mean_of_a_photo_and_takes_its_detail(batches):
    photo = batches[0].y
    blurred = Blurred(2.0)(batches[0])
    assert blurred.shape == photo.shape
    assert blurred.mean().item() == pytest.approx(photo.mean().item(), abs=0.02)
    assert blurred.diff(dim=-1).abs().mean() < 0.5 * photo.diff(dim=-1).abs().mean()


def test_each_class_gets_its_mean_colour_in_the_training_split(experiment, batches):
    flat = Flat(experiment)
    photos = list(experiment.dataset.build(split="train"))
    pixels = np.concatenate([pair.y.reshape(-1, 3) for pair in photos]) / 127.5 - 1
    labels = np.concatenate([pair.labels.ravel() for pair in photos])
    for batch in batches[:3]:
        painted = flat(batch)
        assert painted.shape == batch.y.shape
        for number in batch.labels.unique().tolist():
            colours = painted[0][:, batch.labels[0] == number]
            assert torch.allclose(colours, torch.tensor(pixels[labels == number].mean(0)).float()[:, None], atol=1e-4)


def test_pixels_outside_the_classes_get_the_mean_colour_of_all(experiment, batches):
    flat, batch = Flat(experiment), batches[0]
    labels = torch.full_like(batch.labels, 255)
    painted = flat(type(batch)(x=batch.x, y=batch.y, ids=batch.ids, labels=labels, blocks=batch.blocks))
    assert torch.equal(painted[0], painted[0, :, :1, :1].expand_as(painted[0]))
    assert painted.abs().max() < 1


def test_labels_of_more_pixels_than_the_photo_are_reduced(experiment, batches):
    flat, batch = Flat(experiment), batches[0]
    finer = batch.labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    painted = flat(type(batch)(x=batch.x, y=batch.y, ids=batch.ids, labels=finer, blocks=batch.blocks))
    assert torch.equal(painted, flat(batch))


def test_data_without_labels_is_refused(tmp_path, batches):
    for number in range(20):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / f"{number}.png")
    experiment = config.load("zoo:base.toml", "smoke", [f'dataset={{use = "photos:edges", root = "{tmp_path}"}}'])
    with pytest.raises(UserError, match="flat = true needs labels with classes"):
        Flat(experiment)(batches[0])


def test_another_fold_gives_photos_of_other_regions_and_begins_again(batches):
    experiment = config.load(
        "zoo:ablation_patch70.toml", "smoke", ["dataset.size=64", "dataset.stride=256", "dataset.fold=2"]
    )
    row = Row("floor", "floor", None, (), {}, other_fold=True)
    shown = changed_target(row, experiment, folds=3)  # the fold after the last is the first
    others = [batch.y for batch in single_batches(Store(Earth("test", size=64, stride=256, fold=0)))]
    for index in range(len(others) + 1):
        assert torch.equal(shown(batches[0]), others[index % len(others)])
    assert shown.identity == {"other_fold": 0}


FOLDERS = """
extends = "zoo:base.toml"
drop = ["discriminator", "gan_loss", "metrics.ssim", "metrics.psnr"]
[generator]
width = 4
depth = 3
[dataset]
use = "folders"
inputs = "a"
targets = "b"
size = [32, 32]
"""
FLOOR = """
folds = {folds}
set = ["dataset.folds=3"]
[columns]
l1 = "L1"
[rows.l1]
recipe = "mine.toml"
[rows.floor]
target = true
other_fold = true
"""


@pytest.fixture
def floor_of(tmp_path):
    """floor_of(folds, seeds) -> (a Bench of folds that p2pzoo makes, the row of photos of another fold)."""
    draw_pairs(tmp_path, 12, 32)
    (tmp_path / "mine.toml").write_text(FOLDERS)

    def floor_of(folds, seeds=None):
        (tmp_path / "table.toml").write_text(FLOOR.format(folds=folds))
        table = read_table(str(tmp_path / "table.toml"))
        bench = Bench(table, registry(), tmp_path / "runs", profile="smoke", seeds=seeds)
        return bench, bench.compare({}).rows[-1]

    return floor_of


def images_of(experiment):
    return [batch.y for batch in single_batches(Store(experiment.dataset.build(split="test")))]


@pytest.mark.parametrize("folds", [3, 2])
def test_another_fold_of_a_dataset_without_folds_of_its_own(floor_of, folds):
    bench, floor = floor_of(folds)
    assert floor.failed is None
    shown = [images_of(cell.experiment) for cell in bench.cells]
    for fold, run in enumerate(floor.runs):
        other = shown[(fold + 1) % folds]
        expected = [(shown[fold][i] - other[i % len(other)]).abs().mean().item() for i in range(len(shown[fold]))]
        assert run.results["metrics"]["l1"]["value"] == pytest.approx(np.mean(expected), rel=1e-4)


def test_the_other_fold_is_that_of_the_whole_table_if_fewer_folds_are_trained(floor_of):
    whole = [run.folder for run in floor_of(3)[1].runs]
    assert [run.folder for run in floor_of(3, seeds=1)[1].runs] == whole[:1]
    assert [run.folder for run in floor_of(3, seeds=2)[1].runs] == whole[:2]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('recipe = "l1.toml"\nblur = 1', r"\[rows.blurred\] blur is for the ground truth: add target = true"),
        ('recipe = "l1.toml"\nflat = true', r"\[rows.blurred\] flat is for the ground truth: add target = true"),
        ("target = true\nblur = 0", "blur = 0: must be a standard deviation in px, more than 0"),
        ("target = true\nblur = true", "blur = True: must be a standard deviation in px, more than 0"),
        ("target = true\nblur = inf", "blur = inf: must be"),
        ("target = true\nflat = false", "flat = False: write flat = true, or remove it"),
        ("target = true\nflat = true\nblur = 1", r"\[rows.blurred\] has blur and flat: write a row for each"),
        ("target = true\nother_fold = true", r"\[rows.blurred\] other_fold needs a table with two folds or more"),
        ("target = true\nother_fold = 3", "other_fold = 3: write other_fold = true, or remove it"),
    ],
)
def test_what_a_row_cannot_show_is_refused_with_its_line(lines, message, files):
    text = TABLE.replace("target = true\nblur = 1.5", lines)
    (files / "table.toml").write_text(text)
    with pytest.raises(UserError, match=rf"table\.toml:\d+  .*{message}"):
        read_table(str(files / "table.toml"))


def test_each_row_of_a_table_is_measured_for_itself(files, run_cli):
    arguments = ("--profile", "smoke", "--runs", files / "runs", "-o", files / "table.json")
    result = run_cli("bench", files / "table.toml", *arguments)
    assert result.exit_code == 0, result.output
    doc = json.loads((files / "table.json").read_text())
    l1 = {row["name"]: row["cells"]["l1"]["mean"] for row in doc["rows"]}
    assert l1["photos"] == 0 < l1["blurred"] < l1["flat"]
    assert len({run["id"] for row in doc["rows"] for run in row["runs"]}) == 4


def test_y_has_no_learning_curve(files):
    (files / "table.toml").write_text('set = ["evaluate.at=[1]"]' + TABLE)
    table = read_table(str(files / "table.toml"))
    rows = Bench(table, registry(), files / "runs", profile="smoke").compare({}).rows
    [photos] = [row for row in rows if row.name == "photos"]
    assert "l1" in photos.runs[0].results["metrics"]
    assert not [name for name in photos.runs[0].results["metrics"] if "@" in name]
