"""What stands beside a component while it is checked: the least that can play the game, and data to play it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.config.recipe import Recipe, Source
from p2pzoo.config.settings import Compute, Evaluate, Init, Optimizer, Train
from p2pzoo.data import Store
from p2pzoo.data.loader import collate
from p2pzoo.plugin.batch import Batch, Pair, Split
from p2pzoo.plugin.registry import Entry
from p2pzoo.plugin.step_outputs import StepOutputs
from p2pzoo.testing.kit import SIDE

PALETTE = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))


class Drawings:
    """x: noise; y: rectangles of four classes in the colours of a palette. Ten pairs in a split, in two blocks."""

    x_range = (0.0, 255.0)
    y_range = (0.0, 255.0)
    classes: Sequence[str] | None = ("ground", "red", "green", "blue")
    palette: Sequence[tuple[int, int, int]] | None = PALETTE

    def __init__(self, split: Split, *, side: int = SIDE) -> None:
        self.split, self.side = split, side

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(index)
        draw = np.random.default_rng([("train", "val", "test").index(self.split), index])
        labels = np.zeros((self.side, self.side), np.uint8)
        for number in (1, 2, 3):
            top, left = draw.integers(self.side // 2, size=2)
            labels[top : top + self.side // 3, left : left + self.side // 2] = number
        x = draw.integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
        y = np.array(PALETTE, np.uint8)[labels]
        return Pair(f"{self.split}-{index}", x, y, labels, block=str(index % 2))


class Translator(nn.Module):
    """A generator of two layers."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 4, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(4, out_channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layers(x))


class Judge(nn.Module):
    """A discriminator of two layers, and of two scales: the images, and the images at half their size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels + out_channels, 4, 3, stride=2, padding=1)
        self.last = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        return [self.last(hidden) for [hidden] in self.features(x, y)]

    def features(self, x: Tensor, y: Tensor) -> list[list[Tensor]]:
        shown = torch.cat([x, y], dim=1)
        return [[F.leaky_relu(self.first(each), 0.2)] for each in (shown, F.avg_pool2d(shown, 2))]


class Squares:
    """Least squares: real logits to 1, fake ones to 0."""

    def discriminator_loss(self, out: StepOutputs) -> Tensor:
        return _mean((m - 1).square() for m in out.real) + _mean(m.square() for m in out.fake)

    def generator_loss(self, out: StepOutputs) -> Tensor:
        return _mean((m - 1).square() for m in out.fake)


def _mean(each: Any) -> Tensor:
    return torch.stack([m.mean() for m in each]).mean()


PARTNERS = {"generator": Translator, "discriminator": Judge, "gan_loss": Squares, "dataset": Drawings}


def partner(kind: str, values: Mapping[str, Any] | None = None) -> Component:
    factory = PARTNERS[kind]
    return Component(Entry(kind, f"{kind} of the kit", factory, "kit", "p2pzoo"), factory, values or {})


def experiment(component: Component, side: int) -> Experiment:
    """The smallest game that this component takes part in, on images of this side where it is no dataset itself."""
    kind = component.entry.kind
    parts = {name: partner(name) for name in ("generator", "discriminator", "gan_loss")}
    parts["dataset"] = partner("dataset", {"side": side})
    playing: dict[str, Any] = {**parts, **({kind: component} if kind in parts else {})}
    return Experiment(
        recipe=Recipe("kit", "plain", {}, {}, Source("kit")), seed=0, **playing,
        losses={"under_test": component} if kind == "loss" else {}, metrics={}, callbacks={},
        augmentations={"under_test": component} if kind == "augmentation" else {},
        train=Train(images=3 * 2, batch_size=2), optimizer=Optimizer(), init=Init(weights="own"),
        compute=compute(), evaluate=Evaluate(),
    )  # fmt: skip


def compute(**changes: Any) -> Compute:
    """On the CPU, leaving the process as it is."""
    settings = Compute(device="cpu", threads=torch.get_num_threads(), keep_memory=False)
    return replace(settings, **changes)


def batch(side: int = SIDE, count: int = 2, split: Split = "train") -> Batch:
    """So many pairs of drawings, with labels and blocks."""
    store = Store(Drawings(split, side=side))
    return collate([store[index] for index in range(count)], store)


def picture(path: Path) -> Path:
    from PIL import Image

    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    return path
