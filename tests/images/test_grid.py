"""What people see: grids of images of any channels, enlarged so that each pixel stays a square; lines in a log."""

from types import SimpleNamespace

import pytest
import torch

from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.grid import GRID_GAP, make_grid, to_uint8_rgb
from p2pzoo.images.label_maps import Classes, Labels
from p2pzoo.runs.progress import PlainProgress


def test_values_from_minus_one_to_one_become_0_to_255():
    image = torch.tensor([-1.0, 0.0, 1.0, 7.0]).reshape(1, 2, 2).expand(3, 2, 2)
    assert to_uint8_rgb(image)[..., 0].tolist() == [[0, 128], [255, 255]]


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_any_number_of_channels_is_shown_as_rgb(channels, shown):
    image = torch.stack([torch.full((4, 4), i / 127.5 - 1) for i in range(channels)])
    assert to_uint8_rgb(image)[0, 0].tolist() == shown


def test_one_hot_classes_are_shown_in_their_colours():
    labels = Labels(Classes(("a", "b"), ((10, 20, 30), (255, 0, 0)), (0, 1)), "one-hot")
    dataset = SimpleNamespace(x_encoding="one-hot", x_labels=labels)
    x = torch.tensor([[[1.0, -1, -1]], [[-1, 0.2, -1]]])[None]  # of a, of b, of none
    y = torch.zeros(1, 4, 1, 3)
    drawn, same = Encodings.of(dataset).to_rgb(x, y)
    assert to_uint8_rgb(drawn[0]).tolist() == [[[10, 20, 30], [255, 0, 0], [0, 0, 0]]]
    assert same is y


def test_small_images_are_enlarged_without_blending():
    red, blue = (torch.tensor(rgb).reshape(3, 1, 1).expand(3, 64, 32) for rgb in ([1.0, -1, -1], [-1.0, -1, 1]))
    sheet = make_grid([[red, blue], [blue, red]])
    assert sheet.size == (2 * 128 + GRID_GAP, 2 * 256 + GRID_GAP)
    assert sheet.getpixel((127, 0)) == (255, 0, 0)
    assert sheet.getpixel((128 + GRID_GAP, 255)) == (0, 0, 255)
    assert {color for _, color in sheet.getcolors()} == {(255, 0, 0), (0, 0, 255), (255, 255, 255)}


def test_a_log_gets_a_line_every_few_seconds_and_the_last_one(capsys, monkeypatch):
    clock = iter(range(0, 10_000))
    monkeypatch.setattr("p2pzoo.runs.progress.time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr("p2pzoo.runs.progress.time.perf_counter", lambda: float(next(clock)))
    shown = PlainProgress(images=20, batch_size=2)
    for images in range(2, 21, 2):
        shown.step(images, {"G.l1": 0.25, "D.real": 1.5})
    lines = capsys.readouterr().err.splitlines()
    assert 1 < len(lines) < 10
    assert lines[-1].startswith("20/20 images")
    assert lines[-1].endswith("0:00 left  G.l1 0.250  D on real 1.500")
