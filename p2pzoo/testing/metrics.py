"""What metrics promise."""

from __future__ import annotations

import contextlib
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from p2pzoo.data import Store
from p2pzoo.data.loader import collate
from p2pzoo.plugin.batch import Batch, Pair
from p2pzoo.plugin.loader import registry
from p2pzoo.testing.kit import Case, DoesNotApply
from p2pzoo.testing.partners import Drawings
from p2pzoo.utils.errors import UserError

IMAGES = 3
SIDE = 64


def check_batches(case: Case) -> None:
    """What it measures of an image does not depend on the batch, has a row per image, and changes nothing."""
    trial = _trial(case)
    metric, batch, y_hat = trial.metric, trial.batch, _disturbed(trial.batch)
    kept = y_hat.clone(), batch.y.clone()
    together = trial.disturbed
    rows = [metric.measure(_part(batch, i), y_hat[i : i + 1]) for i in range(len(y_hat))]
    assert torch.equal(y_hat, kept[0]), "changes ŷ"
    assert torch.equal(batch.y, kept[1]), "changes y"
    for name, statistic in together.items():
        assert len(statistic) == len(y_hat), f"'{name}' has {len(statistic)} rows of {len(y_hat)} images"
        apart = torch.cat([row[name] for row in rows]).double()
        told = f"'{name}' of an image depends on the rest of its batch"
        assert torch.allclose(statistic.double(), apart, rtol=1e-5, atol=1e-6, equal_nan=True), told


def check_order(case: Case) -> None:
    """The order of the images changes no number, and `reduce` gives finite ones, a "value" among them."""
    trial = _trial(case)
    one = trial.metric.reduce(trial.disturbed)
    assert "value" in one, f'reduce gives {", ".join(one) or "nothing"}, and no "value"'
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))
    other = trial.metric.reduce({name: rows[order] for name, rows in trial.disturbed.items()})
    for name, number in one.items():
        assert _alike(number, other[name]), f"'{name}' depends on the order of images: {number:.6g}, {other[name]:.6g}"
    assert math.isfinite(one["value"]), f'"value" of {IMAGES} images is {one["value"]}'


def check_perfect(case: Case) -> None:
    """No ŷ scores better than y itself."""
    trial = _trial(case)
    metric, batch = trial.metric, trial.batch
    assert metric.better in ("higher", "lower", None), f"`better` is {metric.better!r}"
    if metric.better is None:
        raise DoesNotApply("neither direction is better")
    best = metric.reduce(metric.measure(batch, batch.y))["value"]
    others = {"noise over y": trial.disturbed, "another image": metric.measure(batch, batch.y.roll(1, 0))}
    for name, statistics in others.items():
        value = metric.reduce(statistics)["value"]
        worse = value <= best if metric.better == "higher" else value >= best
        worse = worse or _alike(value, best)  # to rounding, as where a set of images is all that counts
        assert worse, f"{name} scores {value:.6g}, and y itself {best:.6g}, where {metric.better} is better"


@dataclass
class _Trial:
    """A metric, a few pairs that it takes, and its statistics of translations that are far from perfect."""

    metric: Any
    batch: Batch

    @functools.cached_property
    def disturbed(self) -> dict[str, Tensor]:
        return dict(self.metric.measure(self.batch, _disturbed(self.batch)))


def _trial(case: Case) -> _Trial:
    """On the kit's own data, or on the first installed data that the metric takes. Made once for each case."""
    if "metric" not in case.kept:
        case.kept["metric"] = _made(case)
    found: _Trial = case.kept["metric"]
    return found


def _made(case: Case) -> _Trial:
    refused: list[str] = []
    for make in (lambda: Drawings("test", side=SIDE), *_installed()):
        try:
            data = _Few(make(), IMAGES)
            metric = case.make(dataset=data)
            if hasattr(metric, "trust"):
                metric.trust(torch.device("cpu"))
        except (DoesNotApply, UserError) as error:
            refused.append(str(error).splitlines()[0])
            continue
        store = Store(data)
        return _Trial(metric, collate([store[index] for index in range(len(store))], store))
    raise DoesNotApply(refused[0])


class _Few:
    """So many pairs of a dataset, from all over it."""

    def __init__(self, data: Any, count: int) -> None:
        self._data, self._indices = data, range(0, len(data), max(1, len(data) // count))[:count]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Pair:
        pair: Pair = self._data[self._indices[index]]
        return pair


def _installed() -> list[Any]:
    """What makes the test split of each dataset that needs no parameters."""
    found = []
    for entry in registry().of("dataset"):
        with contextlib.suppress(DoesNotApply, UserError, AssertionError):
            found.append(functools.partial(Case.of(entry).make, split="test"))
    return found


def _disturbed(batch: Batch) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return (batch.y + 0.8 * torch.randn(batch.y.shape, generator=draw)).clamp(-1, 1)


def _part(batch: Batch, index: int) -> Batch:
    part = slice(index, index + 1)
    labels = None if batch.labels is None else batch.labels[part]
    return Batch(batch.x[part], batch.y[part], batch.ids[part], labels, batch.blocks[part])


def _alike(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-7) or (math.isnan(one) and math.isnan(other))
