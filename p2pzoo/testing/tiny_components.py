"""Tiny components that complete an experiment around the component under test, and data to train on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from p2pzoo.data.collate import collate
from p2pzoo.plugin import schema
from p2pzoo.plugin.batch import Batch, Pair, Split
from p2pzoo.plugin.registry import Entry
from p2pzoo.plugin.step_outputs import StepOutputs
from p2pzoo.testing.component_case import IMAGE_SIDE

_PALETTE = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))


class TinyDataset:
    """x: noise; y: rectangles of four classes in the colours of a palette. Each split has ten pairs in two blocks."""

    x_range = (0.0, 255.0)
    y_range = (0.0, 255.0)
    classes: Sequence[str] | None = ("ground", "red", "green", "blue")
    palette: Sequence[tuple[int, int, int]] | None = _PALETTE

    def __init__(self, split: Split, *, side: int = IMAGE_SIDE) -> None:
        self.split, self.side = split, side

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(index)
        generator = np.random.default_rng([("train", "val", "test").index(self.split), index])
        labels = np.zeros((self.side, self.side), np.uint8)
        for number in (1, 2, 3):
            top, left = generator.integers(self.side // 2, size=2)
            labels[top : top + self.side // 3, left : left + self.side // 2] = number
        x = generator.integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
        y = np.array(_PALETTE, np.uint8)[labels]
        return Pair(f"{self.split}-{index}", x, y, labels, block=str(index % 2))


class TinyGenerator(nn.Module):
    """A generator of two layers. Its features are those of the first one.

    >>> TinyGenerator(3, 1)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 4, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(4, out_channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layers(x))

    def features(self, x: Tensor) -> list[Tensor]:
        return [self.layers[1](self.layers[0](x))]


class TinyTimeGenerator(TinyGenerator):
    """A generator that takes the time.

    >>> TinyTimeGenerator(3, 1)(torch.zeros(2, 3, 8, 8), torch.tensor([0.0, 1.0])).shape
    torch.Size([2, 1, 8, 8])
    """

    takes_time = True

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.of_time = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        h = self.layers(x)
        return torch.tanh(h if t is None else h + self.of_time * (1 - t[:, None, None, None]))

    def features(self, x: Tensor, t: Tensor | None = None) -> list[Tensor]:
        return super().features(x)


class TinyNoisyGenerator(TinyGenerator):
    """A generator that adds a z to the output of its last layer.

    >>> G, x = TinyNoisyGenerator(3, 1), torch.zeros(2, 3, 8, 8)
    >>> G(x, z=G.draw_z(x)).shape
    torch.Size([2, 1, 8, 8])
    """

    takes_z = True

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        if z is None and self.training:
            z = self.draw_z(x)
        h = self.layers(x)
        return torch.tanh(h if z is None else h + z)

    def draw_z(self, x: Tensor) -> Tensor:
        return torch.randn_like(x[:, :1])


class TinyDiscriminator(nn.Module):
    """A discriminator of two layers with two scales: the images, and the images at half their size.

    >>> x = y = torch.zeros(2, 3, 8, 8)
    >>> [logits.shape for logits in TinyDiscriminator(3, 3)(x, y)]
    [torch.Size([2, 1, 4, 4]), torch.Size([2, 1, 2, 2])]
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels + out_channels, 4, 3, stride=2, padding=1)
        self.last = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        return [self.last(hidden) for [hidden] in self.features(x, y)]

    def features(self, x: Tensor, y: Tensor) -> list[list[Tensor]]:
        pair = torch.cat([x, y], dim=1)
        return [[F.leaky_relu(self.first(image), 0.2)] for image in (pair, F.avg_pool2d(pair, 2))]


class TinyGanLoss:
    """Least squares: real logits to 1, fake ones to 0."""

    def discriminator_loss(self, out: StepOutputs) -> Tensor:
        return _mean((m - 1).square() for m in out.real) + _mean(m.square() for m in out.fake)

    def generator_loss(self, out: StepOutputs) -> Tensor:
        return _mean((m - 1).square() for m in out.fake)


def _mean(maps: Iterable[Tensor]) -> Tensor:
    return torch.stack([m.mean() for m in maps]).mean()


_TINY = {
    "generator": TinyGenerator, "discriminator": TinyDiscriminator, "gan_loss": TinyGanLoss, "dataset": TinyDataset
}  # fmt: skip


def build_tiny_component(
    kind: str, values: Mapping[str, Any] | None = None, factory: Callable[..., Any] | None = None
) -> Component:
    """factory: None: that of the kind."""
    factory = factory or _TINY[kind]
    return Component(Entry(kind, f"{kind} of the kit", factory, "kit", "p2pzoo"), factory, values or {})


def build_experiment(component: Component, side: int) -> Experiment:
    """The smallest experiment that uses this component. Images are side × side px unless it is a dataset itself.

    A process that can pass the time to G gets a G that takes it, and a loss that needs z one that takes z.
    """
    kind = component.entry.kind
    parts = {name: build_tiny_component(name) for name in ("generator", "discriminator", "gan_loss")}
    parts["dataset"] = build_tiny_component("dataset", {"side": side})
    if kind == "process" and can_pass_time(component):
        parts["generator"] = build_tiny_component("generator", factory=TinyTimeGenerator)
    if "z" in component.entry.needs:
        parts["generator"] = build_tiny_component("generator", factory=TinyNoisyGenerator)
    all_parts: dict[str, Any] = {**parts, **({kind: component} if kind in parts else {})}
    return Experiment(
        recipe=Recipe("kit", "plain", {}, {}, Source("kit")), seed=0, **all_parts,
        losses={"under_test": component} if kind == "loss" else {}, metrics={}, callbacks={},
        augmentations={"under_test": component} if kind == "augmentation" else {},
        process=component if kind == "process" else None,
        train=Train(images=3 * 2, batch_size=2), optimizer=Optimizer(), init=Init(weights="own"),
        compute=cpu_settings(), evaluate=Evaluate(),
    )  # fmt: skip


def can_pass_time(process: Component) -> bool:
    """Whether a process asks if its generator takes the time."""
    return "takes_time" in schema.get_positional_names(process.factory)


def cpu_settings(**changes: Any) -> Compute:
    """[compute] on the CPU that leaves the threads and the allocator of the process as they are."""
    settings = Compute(device="cpu", threads=torch.get_num_threads(), keep_memory=False)
    return replace(settings, **changes)


def example_batch(side: int = IMAGE_SIDE, count: int = 2, split: Split = "train") -> Batch:
    """The first `count` pairs of TinyDataset, with labels and blocks.

    >>> example_batch(side=16).x.shape
    torch.Size([2, 3, 16, 16])
    """
    store = Store(TinyDataset(split, side=side))
    return collate([store[index] for index in range(count)], store.dataset)


def write_sample_grid(path: Path) -> Path:
    from PIL import Image

    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    return path
