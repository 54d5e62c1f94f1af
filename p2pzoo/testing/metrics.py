"""Checks of metrics."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from p2pzoo.data import Store
from p2pzoo.data.collate import collate
from p2pzoo.plugin.batch import Batch, Pair
from p2pzoo.plugin.loader import registry
from p2pzoo.runs.evaluate import stack_samples
from p2pzoo.testing.component_case import ComponentCase, DoesNotApply
from p2pzoo.testing.tiny_components import TinyDataset
from p2pzoo.utils.errors import UserError

_NUM_IMAGES = 3  # a permutation of two would leave half of all order mistakes unseen
_SIDE = 64  # px: pretrained networks of some metrics accept no 32


def check_metric_batches(case: ComponentCase) -> None:
    """`measure` gives one row per image, independent of the rest of the batch."""
    example = build_example(case)
    metric, batch, y_hat = example.metric, example.batch, example.noisy
    in_batch = example.noisy_statistics
    rows = [metric.measure(_slice(batch, i), y_hat[i : i + 1].clone()) for i in range(len(y_hat))]
    for name, statistic in in_batch.items():
        assert len(statistic) == len(y_hat), f"'{name}' has {len(statistic)} rows for {len(y_hat)} images"
        alone = torch.cat([row[name] for row in rows]).double()
        message = f"'{name}' of an image depends on the rest of its batch"
        assert torch.allclose(statistic.double(), alone, rtol=1e-5, atol=1e-6, equal_nan=True), message


def check_metric_order(case: ComponentCase) -> None:
    """`reduce` gives the same finite numbers for any order of the images, and one of them is "value"."""
    example = build_example(case)
    numbers = example.metric.reduce(example.noisy_statistics)
    assert "value" in numbers, f'reduce gives {", ".join(numbers) or "nothing"}, but no "value"'
    order = torch.randperm(_NUM_IMAGES, generator=torch.Generator().manual_seed(1))
    permuted = example.metric.reduce({name: rows[order] for name, rows in example.noisy_statistics.items()})
    for name, number in numbers.items():
        message = f"'{name}' depends on the order of the images: {number:.6g}, {permuted[name]:.6g}"
        assert _is_close(number, permuted[name]), message
    assert math.isfinite(numbers["value"]), f'"value" of {_NUM_IMAGES} images is {numbers["value"]}'


def check_metric_samples(case: ComponentCase) -> None:
    """`samples`, if it has it, is a whole number from 2 on; the order of an image's samples changes no number."""
    example = build_example(case)
    if not hasattr(example.metric, "samples"):
        raise DoesNotApply("it takes one translation of each image")
    order = torch.randperm(example.noisy.shape[1], generator=torch.Generator().manual_seed(1))
    permuted = example.metric.reduce(example.metric.measure(example.batch, example.noisy[:, order]))
    for name, number in example.metric.reduce(example.noisy_statistics).items():
        message = f"'{name}' depends on the order of the samples: {number:.6g}, {permuted[name]:.6g}"
        assert _is_close(number, permuted[name]), message


def check_metric_perfect(case: ComponentCase) -> None:
    """No ŷ scores better than y itself."""
    example = build_example(case)
    metric, batch = example.metric, example.batch
    assert metric.better in ("higher", "lower", None), f'`better` is {metric.better!r}, not "higher", "lower" or None'
    minimum = getattr(metric, "minimum_images", 1)
    is_count = type(minimum) is int and minimum >= 1
    assert is_count, f"`minimum_images` is {minimum!r}, not a number of images"
    if metric.better is None:
        raise DoesNotApply("neither direction is better")
    best = metric.reduce(metric.measure(batch, _repeat(metric, batch.y)))["value"]
    another = metric.measure(batch, _repeat(metric, batch.y.roll(1, 0)))
    others = {"y with noise": example.noisy_statistics, "another image": another}
    for name, statistics in others.items():
        value = metric.reduce(statistics)["value"]
        is_worse = value <= best if metric.better == "higher" else value >= best
        is_worse = is_worse or _is_close(value, best)  # a metric of the whole set does not see a permutation
        assert is_worse, f"{name} scores {value:.6g} and y itself {best:.6g}, although {metric.better} is better"


@dataclass
class _MetricExample:
    """A metric, a few pairs that it accepts, and its statistics of translations that are far from perfect."""

    metric: Any
    batch: Batch

    @functools.cached_property
    def noisy(self) -> Tensor:
        """y with noise, (B, C, H, W); (B, M, C, H, W) for a metric of M samples, each with other noise."""
        count = _count_samples(self.metric)
        y_hats = [_add_noise(self.batch, seed) for seed in range(count or 1)]
        return torch.stack(y_hats, dim=1) if count else y_hats[0]

    @functools.cached_property
    def noisy_statistics(self) -> dict[str, Tensor]:
        return dict(self.metric.measure(self.batch, self.noisy.clone()))


def build_example(case: ComponentCase) -> _MetricExample:
    """The metric with pairs that it accepts. Raises DoesNotApply if there are none, or if a package is missing."""
    if "metric" not in case.cache:
        try:
            case.cache["metric"] = _build_example(case)
        except DoesNotApply as error:
            case.cache["metric"] = error
    example = case.cache["metric"]
    if isinstance(example, DoesNotApply):
        raise example
    return example  # type: ignore[no-any-return]


def _build_example(case: ComponentCase) -> _MetricExample:
    """The metric on the kit's own dataset, or else on the first installed dataset that it accepts."""
    refusals: list[str] = []
    for build_dataset in (lambda: TinyDataset("test", side=_SIDE), *_installed_datasets()):
        try:
            data = _Subset(build_dataset(), _NUM_IMAGES)
            metric = case.build(dataset=data)
            if hasattr(metric, "trust"):
                metric.trust(torch.device("cpu"))
        except (DoesNotApply, UserError) as error:
            refusals.append(str(error).splitlines()[0])
            continue
        store = Store(data)
        return _MetricExample(metric, collate([store[index] for index in range(len(store))], store.dataset))
    raise DoesNotApply(refusals[0])


class _Subset:
    """`count` pairs of a dataset, evenly spread over it."""

    def __init__(self, data: Any, count: int) -> None:
        self._data, self._indices = data, range(0, len(data), max(1, len(data) // count))[:count]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Pair:
        pair: Pair = self._data[self._indices[index]]
        return pair


def _installed_datasets() -> list[Callable[[], Any]]:
    """Functions that build the test split of each installed dataset without required parameters."""
    builders: list[Callable[[], Any]] = []
    for entry in registry().of("dataset"):
        with contextlib.suppress(DoesNotApply, UserError, AssertionError):
            builders.append(functools.partial(ComponentCase.from_entry(entry).build, split="test"))
    return builders


def _count_samples(metric: Any) -> int | None:
    """The samples that a metric takes; None if it takes a single translation."""
    count = getattr(metric, "samples", 2)
    is_count = type(count) is int and count >= 2
    assert is_count, f"`samples` is {count!r}, not a number of translations of each image, from 2 on"
    return count if hasattr(metric, "samples") else None


def _repeat(metric: Any, images: Tensor) -> Tensor:
    """Images (B, C, H, W) as a metric takes them: as all of its samples, if it takes samples."""
    count = _count_samples(metric)
    return stack_samples([images], count) if count else images


def _add_noise(batch: Batch, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (batch.y + 0.8 * torch.randn(batch.y.shape, generator=generator)).clamp(-1, 1)


def _slice(batch: Batch, index: int) -> Batch:
    part = slice(index, index + 1)
    labels = None if batch.labels is None else batch.labels[part]
    return Batch(batch.x[part].clone(), batch.y[part].clone(), batch.ids[part], labels, batch.blocks[part])


def _is_close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-7) or (math.isnan(a) and math.isnan(b))
