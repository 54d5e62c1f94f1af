"""Finished runs beside one another: means over seeds, differences over test images, and no two protocols in a column.

What comes out is a document of plain values, the same whether the runs lie in runs/ or are committed; the
forms of `forms.py` show it. Imports no plugin; metrics are asked to `reduce` what was kept of each image.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from p2pzoo import config
from p2pzoo.config.experiment import Experiment
from p2pzoo.config.recipe import leaves
from p2pzoo.data import Store
from p2pzoo.models import safetensors_io
from p2pzoo.models.build import build
from p2pzoo.plugin.registry import Registry
from p2pzoo.runs.results import read_results
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import read_object
from p2pzoo.utils.suggest import nearest
from p2pzoo_bench.intervals import CONFIDENCE, Interval, over_seeds, paired_over_blocks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Finished:
    """A folder with results: a run's, or a committed copy."""

    folder: Path

    @cached_property
    def results(self) -> dict[str, Any]:
        return read_results(self.folder / "results.json") or {}

    @cached_property
    def env(self) -> dict[str, Any]:
        return read_object(self.folder / "env.json") or {}

    @cached_property
    def kept(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What was measured of each image, {metric.statistic: (N, ...)}, and their ids and blocks."""
        file = self.folder / "stats.safetensors"
        tensors, header = safetensors_io.load_tensors(file)
        ids, blocks = header.get("ids"), header.get("blocks")
        if not (isinstance(ids, list) and isinstance(blocks, list) and len(ids) == len(blocks)):
            raise safetensors_io.DamagedFile(f"{file}: does not say what images it is of")
        if any(tensor.shape[:1] != (len(ids),) for tensor in tensors.values()):
            raise safetensors_io.DamagedFile(f"{file}: has not one row for each of its {len(ids)} images")
        return tensors, header

    @property
    def picture(self) -> Path | None:
        """The grid of test images, x | ŷ | y in each row."""
        split = self.results["protocols"][next(iter(self.results["measured"].values()))]["split"]
        found = [self.folder / "samples" / f"{split}.png", self.folder / "samples.webp"]
        return next((file for file in found if file.exists()), None)


@dataclass
class Line:
    """A row of the table: its finished runs, one per seed. `target`: y in the place of a translation.

    experiment  any of its seeds'; what it is made of
    failed      why there are not as many runs as there should be
    """

    name: str
    label: str
    experiment: Experiment
    finished: list[Finished] = field(default_factory=list)
    published: Mapping[str, float] = field(default_factory=dict)
    target: bool = False
    failed: str | None = None

    @property
    def picture(self) -> Path | None:
        """The first run's grid of test images."""
        return next((finished.picture for finished in self.finished if finished.picture), None)


@dataclass(frozen=True)
class Comparison:
    """A table.

    doc      all its numbers, as plain values
    metrics  those that its columns show, by name
    size     (H, W) of the images
    """

    doc: dict[str, Any]
    lines: tuple[Line, ...]
    metrics: Mapping[str, Any]
    size: tuple[int, int]

    @property
    def pictures(self) -> dict[str, Path]:
        """{row's name: its grid of test images}"""
        return {line.name: line.picture for line in self.lines if not line.target and line.picture}

    def drawings(self) -> dict[str, Figure]:
        """{metric: what it draws of all rows}, of the metrics that draw. A row is all its seeds together."""
        found = {}
        for name, metric in self.metrics.items():
            rows = {line.label: _pooled(line, name) for line in self.lines if line.finished and not line.target}
            if hasattr(metric, "draw") and rows and all(rows.values()):
                found[name] = metric.draw(rows)
        return found


def _pooled(line: Line, name: str) -> dict[str, torch.Tensor]:
    """What was kept of a metric, {statistic: (seeds × N, ...)}; empty where one of the seeds lacks it."""
    kept = [safetensors_io.strip_prefix(name, finished.kept[0]) for finished in line.finished]
    return {key: torch.cat([each[key] for each in kept]) for key in kept[0]} if all(kept) else {}


def compare_runs(
    folders: Sequence[Path], registry: Registry, *, baseline: str | None = None, wanted: Sequence[str] = ()
) -> Comparison:
    """Finished runs as a table. Seeds of one experiment are one row.

    baseline  a row's name or label; None: the first. wanted: metrics, as in [metrics.NAME]; empty: all that all rows
    have. Raises UserError for a folder that is no finished run, and where protocols differ.
    """
    lines: dict[str, Line] = {}
    for folder in folders:
        if not all((folder / name).is_file() for name in ("recipe.toml", "results.json", "stats.safetensors")):
            raise UserError(f"{folder}: no finished run (it lacks recipe.toml, results.json or stats.safetensors)")
        finished = Finished(folder)
        if not finished.results:
            raise UserError(f"{folder / 'results.json'}: not a run's results; `p2pzoo run` measures them again")
        experiment = config.load(str(folder / "recipe.toml"), registry=registry)
        row = hashlib.sha256(json.dumps(experiment.identity() | {"seed": None}, sort_keys=True).encode()).hexdigest()[
            :6
        ]
        name = str(finished.results["recipe"])
        line = lines.setdefault(row, Line(name, name, experiment))
        if all(finished.results["id"] != other.results["id"] for other in line.finished):
            line.finished.append(finished)
    _tell_apart(lines)
    found = list(lines.values())
    names = [line.name for line in found]
    if baseline is not None and baseline not in names:
        raise UserError(f"--baseline {baseline}: no such row{nearest(baseline, names)}")
    shared = [c for c in found[0].finished[0].results["metrics"]
              if all(c in f.results["metrics"] for line in found for f in line.finished)]  # fmt: skip
    if unknown := [name for name in wanted if all(metric_of(column) != name for column in shared)]:
        raise UserError(
            f"--metric {unknown[0]}: not every run has it{nearest(unknown[0], {metric_of(c) for c in shared})}"
        )
    columns = {column: column for column in shared if not wanted or metric_of(column) in wanted}
    first = found[0].experiment
    store = Store(first.dataset.build(split=first.evaluate.split), compute=first.compute)
    profiles = sorted({str(f.results["profile"]) for line in found for f in line.finished})
    facts = {"table": "compare", "title": "Comparison", "source": "", "profile": ", ".join(profiles)}
    return compared(found, baseline or names[0], columns, {}, store, facts=facts)


def _tell_apart(lines: Mapping[str, Line]) -> None:
    """Rows of one recipe with other settings get their setup's hash behind the name."""
    names = [line.name for line in lines.values()]
    for row, line in lines.items():
        if names.count(line.name) > 1:
            line.name = line.label = f"{line.name} ({row})"


def compared(
    lines: Sequence[Line],
    baseline: str,
    columns: Mapping[str, str],
    unavailable: Mapping[str, str],
    store: Store,
    *,
    facts: Mapping[str, Any],
) -> Comparison:
    """Put lines beside one another. Raises UserError where a column would mix protocols.

    columns      {metric: heading}, as in a table file
    unavailable  {metric's name: why there is no number}
    store        the evaluated split, that metrics are made for
    facts        what else the document says: title, source, profile, …
    """
    shown = {column: heading for column, heading in columns.items() if metric_of(column) not in unavailable}
    digests = {column: _protocol(lines, column) for column in shown}
    reference = next(line for line in lines if line.name == baseline)
    metrics = {
        name: component.build(dataset=store.dataset)
        for name, component in reference.experiment.metrics.items()
        if name not in unavailable and any(metric_of(column) == name for column in columns)
    }
    reduced = {name: _Reduced(metric, name) for name, metric in metrics.items()}
    doc = {
        **facts,
        "baseline": baseline,
        "resampled": "images" if store[0].block is None else "regions",
        "confidence": CONFIDENCE,
        "columns": [
            {
                "metric": column,
                "heading": heading,
                "better": getattr(metrics.get(metric_of(column)), "better", None),
                "protocol": digests.get(column),
                "unavailable": unavailable.get(metric_of(column)),
            }
            for column, heading in columns.items()
        ],
        "rows": [_row(line, reference, shown, reduced, store) for line in lines],
        "protocols": {
            digest: finished.results["protocols"][digest]
            for line in lines
            for finished in line.finished
            for digest in digests.values()
            if digest in finished.results["protocols"]
        },
    }
    return Comparison(doc, tuple(lines), metrics, store.size)


def metric_of(column: str) -> str:
    """The metric that a column belongs to: `fcn_score.class_iou` is one of fcn_score's numbers."""
    return column.partition(".")[0]


def _protocol(lines: Sequence[Line], column: str) -> str | None:
    """The protocol that all of a column's numbers share. Raises UserError if they do not."""
    first: tuple[str, str, dict[str, Any]] | None = None
    for line in lines:
        for finished in line.finished:
            if column not in finished.results["metrics"]:
                continue
            digest = finished.results["metrics"][column]["protocol"]
            described = finished.results["protocols"][digest]
            if first is None:
                first = (line.label, digest, described)
            elif digest != first[1]:
                told = "; ".join(differences(first[2], described))
                raise UserError(f"{column}: '{line.label}' was measured otherwise than '{first[0]}' ({told})")
    return first[1] if first else None


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What two protocols differ in, `key: b's value against a's`."""
    left, right = dict(leaves(a)), dict(leaves(b))
    return [
        f"{'.'.join(key)}: {right.get(key)} against {left.get(key)}"
        for key in {**left, **right}
        if left.get(key) != right.get(key)
    ]


def _row(
    line: Line, reference: Line, columns: Mapping[str, str], reduced: Mapping[str, _Reduced], store: Store
) -> dict[str, Any]:
    exceeds = _differences_from(line, reference, columns, reduced) if line is not reference else {}
    cells = {}
    for column in columns:
        values = [f.results["metrics"][column]["value"] for f in line.finished if column in f.results["metrics"]]
        if values:
            cells[column] = {"values": values, **_ends(over_seeds(values)), **exceeds.get(column, {})}
    seconds, memory = (_costs(line, what) for what in ("seconds", "peak_megabytes"))
    return {
        "name": line.name,
        "label": line.label,
        "runs": [{"id": f.results["id"], "seed": f.results.get("seed")} for f in line.finished],
        "failed": line.failed,
        "published": dict(line.published),
        **({} if line.target else _size(line.experiment, store)),
        "seconds": round(float(np.median(seconds)), 1) if seconds else None,
        "peak_megabytes": max(memory) if memory else None,
        "cells": cells,
    }


def _costs(line: Line, what: str) -> list[float]:
    """Of its runs, where they tell: nothing of the target, and what a run was kept without."""
    told = [finished.env.get("training") for finished in line.finished]
    costs = [cost.get(what) for cost in told if isinstance(cost, dict)]
    return [cost for cost in costs if isinstance(cost, (int, float)) and math.isfinite(cost)]


def _ends(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.value, "low": interval.low, "high": interval.high}


def _differences_from(
    line: Line, reference: Line, columns: Mapping[str, str], reduced: Mapping[str, _Reduced]
) -> dict[str, dict[str, Any]]:
    """{column: {"difference": …}}: what the line exceeds the reference by, over test blocks and over seeds."""
    pairs = _pairs(line, reference)
    found = {}
    for column in columns:
        name, _, key = column.partition(".")
        usable = [(a, b) for a, b in pairs if column in a.results["metrics"] and column in b.results["metrics"]]
        if name not in reduced or not usable:
            continue
        measured = reduced[name]

        def difference(images: np.ndarray, usable: Any = usable, measured: Any = measured, key: str = key) -> float:
            return float(
                np.mean([measured(a, images)[key or "value"] - measured(b, images)[key or "value"] for a, b in usable])
            )

        header = usable[0][0].kept[1]
        if any(finished.kept[1]["ids"] != header["ids"] for pair in usable for finished in pair):
            raise UserError(f"{column}: '{line.label}' and '{reference.label}' were measured on other images")
        blocks = [
            block if block is not None else image for block, image in zip(header["blocks"], header["ids"], strict=True)
        ]
        each = [_value(a, column) - _value(b, column) for a, b in usable]
        seeds = Interval(float(np.mean(each))) if line.target else over_seeds(each)
        found[column] = {
            "difference": {
                "blocks": vars(paired_over_blocks(difference, blocks)),
                "seeds": vars(seeds),
            }
        }
    return found


def _pairs(line: Line, reference: Line) -> list[tuple[Finished, Finished]]:
    """Runs of a seed that both have; the target, which has none, with each of the reference's."""
    if line.target:
        return [(line.finished[0], b) for b in reference.finished] if line.finished else []
    by_seed = {finished.results["seed"]: finished for finished in reference.finished}
    return [(a, by_seed[a.results["seed"]]) for a in line.finished if a.results["seed"] in by_seed]


def _value(finished: Finished, column: str) -> float:
    return float(finished.results["metrics"][column]["value"])


class _Reduced:
    """A metric's numbers on some of a run's images; what was computed for a column or a row is there for the next."""

    def __init__(self, metric: Any, name: str) -> None:
        self.metric, self.name = metric, name
        self._known: dict[tuple[int, bytes], Mapping[str, float]] = {}

    def __call__(self, finished: Finished, images: np.ndarray) -> Mapping[str, float]:
        key = (id(finished), images.tobytes())
        if key not in self._known:
            rows = torch.from_numpy(images)
            statistics = safetensors_io.strip_prefix(self.name, finished.kept[0])
            self._known[key] = self.metric.reduce({name: values[rows] for name, values in statistics.items()})
        return self._known[key]


def _size(experiment: Experiment, store: Store) -> dict[str, Any]:
    """Parameters of G and D, and D's receptive field, without allocating anything; {} if none can be built."""
    try:
        with torch.device("meta"):
            G = build(experiment.generator, store.channels, store.size)
            D = build(experiment.discriminator, store.channels, store.size) if experiment.discriminator else None
    except UserError:  # the row failed, and says why
        return {}
    field_ = getattr(D, "receptive_field", None)
    return {
        "parameters": sum(p.numel() for p in G.parameters()),
        "discriminator_parameters": sum(p.numel() for p in D.parameters()) if D else None,
        "receptive_field": field_,
        "receptive_field_over_side": round(field_ / min(store.size), 3) if field_ else None,
        "images": experiment.train.images_seen,
    }
