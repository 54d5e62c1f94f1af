"""Numbers and the protocol each of them depends on. Metrics measure image by image, so comparisons can be paired."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from p2pzoo.compute.distributed import all_gather_object, on_rank0, shard, sync_errors
from p2pzoo.compute.engine import Engine
from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.data import Store, single_batches
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.models import safetensors_io
from p2pzoo.models.test_modes import translate
from p2pzoo.plugin import schema
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.protocols import Dataset
from p2pzoo.runs.results import read_results, write_results
from p2pzoo.runs.run_folder import Run
from p2pzoo.utils.errors import UserError


def protocol(experiment: Experiment, name: str, store: Store, metric: Any = None) -> dict[str, Any]:
    """Everything the number depends on besides the weights. `metric`: the component itself, made here if not given.

    test_batch  in the paper's mode batch norm sees the images that are translated together: here one alone
    """
    mode = experiment.evaluate.test_mode
    metric = metric or experiment.metrics[name].build(dataset=store.dataset)
    return {
        "metric": {**_described(experiment.metrics[name]), **schema.to_jsonable(getattr(metric, "protocol", {}))},
        "dataset": _described(experiment.dataset),
        "split": experiment.evaluate.split,
        "images": len(store),
        "size": list(store.size),
        "test_mode": mode,
        **({"test_batch": 1} if mode == "paper" else {}),
    }


def protocol_hash(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]


def missing(experiment: Experiment, run: Run, store: Store) -> list[str]:
    """The recipe's metrics that the run's results lack, or have under another protocol."""
    results = read_results(run.results) or {"measured": {}}
    return [
        name
        for name in experiment.metrics
        if results["measured"].get(name) != protocol_hash(protocol(experiment, name, store))
    ]


def check_needs(experiment: Experiment, store: Store) -> None:
    """Refuse before training what cannot be measured or minimised afterwards. Raises UserError."""
    pair, faults = store[0], []
    offered = {"labels": pair.labels is not None, "blocks": pair.block is not None}
    named = {f"metrics.{name}": component for name, component in experiment.metrics.items()}
    named |= {f"losses.{name}": component for name, component in experiment.losses.items()}
    named |= {f"augmentations.{name}": component for name, component in experiment.augmentations.items()}
    named |= {"gan_loss": experiment.gan_loss} if experiment.gan_loss else {}
    for table, component in named.items():
        for need in component.entry.needs:
            if not offered.get(need, False):
                dataset = experiment.dataset.entry.full_name
                faults.append(f"[{table}] needs {need}, which the dataset '{dataset}' does not have")
    if faults:
        raise UserError(*faults)


def metrics_of(experiment: Experiment, store: Store, names: Iterable[str]) -> dict[str, Any]:
    """The recipe's metrics of these names, made. Raises UserError with all that cannot be had here, as for want of a
    network's weights."""
    made: dict[str, Any] = {}
    faults: list[str] = []
    for name in names:
        try:
            made[name] = experiment.metrics[name].build(dataset=store.dataset)
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(*faults)
    return made


def check_trust(metrics: Mapping[str, Any], device: torch.device) -> None:
    """Refuse metrics whose numbers would mean nothing on this data. Raises UserError."""
    for metric in metrics.values():
        if hasattr(metric, "trust"):
            metric.trust(device)


def evaluate(
    experiment: Experiment, run: Run, engine: Engine, G: nn.Module, store: Store, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure these metrics, write them into results.json and stats.safetensors, and return the results."""
    statistics = _statistics(metrics, experiment.evaluate.test_mode, engine, G, store)
    return on_rank0(_write, experiment, run, metrics, statistics, store)


def evaluate_target(experiment: Experiment, run: Run, store: Store, digest: str) -> dict[str, Any]:
    """The same with y in the place of a translation: what the metrics say of the real thing. `digest`: its id."""
    metrics = metrics_of(experiment, store, missing(experiment, run, store))
    batches = single_batches(store, range(len(store)))
    rows = [_measured(metrics, batch, batch.y, store.dataset) for batch in batches]
    statistics = {key: torch.cat([row[key] for row in rows]) for key in (rows[0] if rows else {})}
    results = _write(experiment, run, metrics, statistics, store)
    results |= {"id": digest, "recipe": "target", "seed": None, "images": 0}
    write_results(run.results, results)
    return results


def _statistics(
    metrics: Mapping[str, Any], test_mode: str, engine: Engine, G: nn.Module, store: Store
) -> dict[str, Tensor]:
    """{metric.statistic: (N, ...)}, one row per image in the dataset's order; each process measures its share."""
    rows: list[dict[str, Tensor]] = []
    with sync_errors():
        for batch in map(engine.move, single_batches(store, shard(range(len(store))) if metrics else range(0))):
            rows.append(_measured(metrics, batch, translate(G, batch.x, test_mode), store.dataset))
    rows = [row for part in all_gather_object(rows) for row in part]
    return {key: torch.cat([row[key] for row in rows]) for key in (rows[0] if rows else {})}


def _write(
    experiment: Experiment, run: Run, metrics: Mapping[str, Any], statistics: Mapping[str, Tensor], store: Store
) -> dict[str, Any]:
    results = read_results(run.results) or {}
    numbers: dict[str, dict[str, Any]] = results.get("metrics", {})
    protocols: dict[str, Any] = results.get("protocols", {})
    measured: dict[str, str] = results.get("measured", {})
    for name, metric in metrics.items():
        described = protocol(experiment, name, store, metric)
        digest = protocol_hash(described)
        protocols[digest] = described
        measured[name] = digest
        for key in [key for key in numbers if key == name or key.startswith(f"{name}.")]:
            del numbers[key]
        reduced = metric.reduce(safetensors_io.strip_prefix(name, statistics))
        for key, value in reduced.items():
            label = name if key == "value" else f"{name}.{key}"
            numbers[label] = {"value": float(value), "protocol": digest}

    used = set(measured.values())
    results = {
        "id": experiment.id,
        "recipe": experiment.recipe.name,
        "profile": experiment.recipe.profile,
        "seed": experiment.seed,
        "images": experiment.train.images_seen,
        "metrics": numbers,
        "measured": measured,
        "protocols": {digest: described for digest, described in protocols.items() if digest in used},
    }
    if statistics:
        _keep_statistics(run, statistics, list(metrics), store)
    write_results(run.results, results)
    return results


def ranking(experiment: Experiment, run: Run, store: Store) -> tuple[str, list[tuple[int, float]]] | None:
    """(name, [(index of the image, its value), …] best first) by the recipe's first metric that can rank images.

    A metric cannot if neither direction is better, or if a single image gives no number (a distance between sets). None
    if the recipe has none that can.
    """
    for name, component in experiment.metrics.items():
        metric = component.build(dataset=store.dataset)
        if metric.better is None:
            continue
        statistics = safetensors_io.strip_prefix(name, safetensors_io.load_tensors(run.stats)[0])
        each = [metric.reduce({key: rows[i : i + 1] for key, rows in statistics.items()}) for i in range(len(store))]
        values = [(i, float(reduced["value"])) for i, reduced in enumerate(each)]
        if not any(math.isnan(value) for _, value in values):
            return name, sorted(values, key=lambda pair: pair[1], reverse=metric.better == "higher")
    return None


def _measured(metrics: Mapping[str, Any], batch: Batch, y_hat: Tensor, dataset: Dataset) -> dict[str, Tensor]:
    """{metric.statistic: (B, ...)} on the CPU, of images as people see them."""
    x, y, y_hat = Encodings.of(dataset).to_rgb(batch.x, batch.y, y_hat)
    batch, found = replace(batch, x=x, y=y), {}
    for name, metric in metrics.items():
        for statistic, value in metric.measure(batch, y_hat).items():
            found[f"{name}.{statistic}"] = value.detach().cpu()
    return found


def _keep_statistics(run: Run, new: Mapping[str, Tensor], names: list[str], store: Store) -> None:
    """stats.safetensors: one row per image, with ids and blocks in the header, for paired comparisons."""
    kept: dict[str, Tensor] = {}
    pairs = [store[i] for i in range(len(store))]
    if run.stats.exists():
        old, header = safetensors_io.load_tensors(run.stats)
        if header["ids"] == [pair.id for pair in pairs]:  # else they are of other images
            kept = {key: value for key, value in old.items() if key.split(".")[0] not in names}
    header = {"ids": [pair.id for pair in pairs], "blocks": [pair.block for pair in pairs]}
    safetensors_io.save_tensors(run.stats, {**kept, **new}, header)


def _described(component: Component) -> dict[str, Any]:
    version = str(getattr(component.factory, "version", "1"))
    return {"use": component.entry.full_name, "version": version, **schema.to_jsonable(component.values)}
