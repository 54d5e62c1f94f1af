"""Measure metrics and store each number with its protocol. Metrics measure each image, so comparisons can be paired."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from p2pzoo.compute.distributed import all_gather_object, on_rank0, shard, sync_errors
from p2pzoo.compute.engine import Engine
from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.config.settings import Translations
from p2pzoo.data import Store, single_batches
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.models import safetensors_io
from p2pzoo.models.test_modes import translate
from p2pzoo.plugin import schema
from p2pzoo.plugin.batch import Batch
from p2pzoo.runs.results import read_results, write_results
from p2pzoo.runs.run_folder import Run
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError

TRIED_IMAGES = 2  # that metrics measure before a training


def build_protocol(experiment: Experiment, name: str, store: Store, metric: Any = None) -> dict[str, Any]:
    """Everything that a number depends on besides the weights.

    metric  the metric `name`, if it is already built

    "test_batch" is in it because batch norm, in test mode "paper", uses the statistics of the images that are
    translated together.
    """
    component, translations = experiment.measurements[name].metric, experiment.measurements[name].translations
    metric = metric or component.build(dataset=store.dataset)
    return {
        "metric": {
            **describe_component(component),
            **schema.to_jsonable(getattr(metric, "protocol", {})),
        },
        "dataset": describe_component(experiment.dataset),
        "split": experiment.evaluate.split,
        "images": len(store),
        "size": list(store.size),
        **translations.protocol(),
    }


def hash_protocol(protocol: Mapping[str, Any]) -> str:
    """12 hex digits.

    >>> hash_protocol({"split": "test"})
    '0546ad4807dd'
    """
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]


def find_missing_metrics(
    experiment: Experiment,
    run: Run,
    store: Store,
    protocol_of: Callable[[Experiment, str, Store], Mapping[str, Any]] = build_protocol,
) -> list[str]:
    """The recipe's metrics that are not in the run's results, or are there under another protocol.

    protocol_of  replaces `build_protocol`, which builds the metric: for callers that keep protocols
    """
    measured = (read_results(run.results) or {"measured": {}})["measured"]
    return [
        name
        for name in experiment.measurements
        if name not in measured or measured[name] != hash_protocol(protocol_of(experiment, name, store))
    ]


def check_needs(experiment: Experiment, store: Store) -> None:
    """Raises UserError if a metric, loss or augmentation needs a field of the batch that the dataset does not have."""
    faults: list[str] = []
    available = {"labels": store.has_labels, "blocks": store.has_blocks}
    components = {f"metrics.{name}": component for name, component in experiment.metrics.items()}
    components |= {f"losses.{name}": component for name, component in experiment.losses.items()}
    components |= {f"augmentations.{name}": component for name, component in experiment.augmentations.items()}
    components |= {"gan_loss": experiment.gan_loss} if experiment.gan_loss else {}
    for table, component in components.items():
        for need in component.entry.needs:
            if not available.get(need, False):
                dataset = experiment.dataset.entry.full_name
                is_in_file = component.where and not component.where.startswith("-s ")  # tables add their metrics by -s
                place = f"{component.where}  " if is_in_file else ""
                faults.append(f"{place}[{table}] needs {need}, which the dataset '{dataset}' does not have: remove it")
    if faults:
        raise UserError(*faults)


def build_metrics(experiment: Experiment, store: Store, names: Iterable[str]) -> dict[str, Any]:
    """The recipe's metrics of these names. Raises UserError with all that cannot be built, such as those whose network
    weights are missing."""
    metrics: dict[str, Any] = {}
    faults: list[str] = []
    for name in names:
        try:
            metrics[name] = experiment.measurements[name].metric.build(dataset=store.dataset)
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(*faults)
    return metrics


def check_trust(metrics: Mapping[str, Any], device: torch.device) -> None:
    """Raises UserError if the numbers of a metric would mean nothing on this data (see `Metric`)."""
    for metric in metrics.values():
        if hasattr(metric, "trust"):
            metric.trust(device)


def try_metrics(metrics: Mapping[str, Any], store: Store) -> None:
    """Measure a few images on the CPU, so that an error inside a metric ends a run before its training.

    ŷ is y mirrored. The metrics should not be used afterwards; torch's random state is as before.
    """
    with rng.torch_seed(0):
        batches = list(single_batches(store, range(min(TRIED_IMAGES, len(store)))))
        statistics = join_rows([measure(metrics, batch, batch.y.flip(-1), store.dataset) for batch in batches])
        for name, metric in metrics.items():
            metric.reduce(safetensors_io.strip_prefix(name, statistics))


def evaluate(
    experiment: Experiment,
    run: Run,
    engine: Engine,
    load_G: Callable[[Translations], nn.Module],
    store: Store,
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """Measure these metrics, add them to results.json and stats.safetensors, and return the results.

    load_G  returns G as it makes these translations
    """
    statistics: dict[str, Tensor] = {}
    for translations, group in group_by_translations(experiment, metrics).items():
        translate_x = _translator(load_G(translations), translations)
        statistics |= measure_all(group, engine, store, translate_x, translations.test_batch)
    return on_rank0(_write_results, experiment, run, metrics, statistics, store)


def group_by_translations(experiment: Experiment, metrics: Mapping[str, Any]) -> dict[Translations, dict[str, Any]]:
    """The metrics by the translations that they measure, so that each image is translated once for all of a group."""
    groups: dict[Translations, dict[str, Any]] = {}
    for name, metric in metrics.items():
        groups.setdefault(experiment.measurements[name].translations, {})[name] = metric
    return groups


def _translator(G: nn.Module, translations: Translations) -> Callable[[Tensor], Tensor]:
    return lambda x: translate(G, x, translations.test_mode, together=translations.test_batch)


def evaluate_target(
    experiment: Experiment,
    run: Run,
    store: Store,
    digest: str,
    *,
    seed: int | None = None,
    change: Callable[[Batch], Tensor] | None = None,
) -> dict[str, Any]:
    """The same for the ground truth row: measures y in place of ŷ.

    digest  its id in the results
    seed    of the runs that are tested on the same data, if other seeds have other data
    change  returns what is measured instead of y, (B, C, H, W) in [-1, 1]
    """
    metrics = build_metrics(experiment, store, find_missing_metrics(experiment, run, store))
    batches = single_batches(store, range(len(store)))
    shown = [(batch, change(batch) if change else batch.y) for batch in batches]
    statistics = join_rows([measure(metrics, batch, image, store.dataset) for batch, image in shown])
    results = _write_results(experiment, run, metrics, statistics, store)
    results |= {"id": digest, "recipe": "target", "seed": seed, "images": 0}
    write_results(run.results, results)
    return results


def measure_all(
    metrics: Mapping[str, Any],
    engine: Engine,
    store: Store,
    translate_x: Callable[[Tensor], Tensor],
    together: int = 1,
) -> dict[str, Tensor]:
    """{metric.statistic: (N, ...)}, one row per image in the dataset's order. Each process measures its shard.

    together  images, neighbours in the dataset, that `translate_x` gets at a time
    """
    rows: list[dict[str, Tensor]] = []
    with sync_errors():
        for start in shard(range(0, len(store) if metrics else 0, together)):
            singles = single_batches(store, range(start, min(start + together, len(store))))
            batches = [engine.to_device(batch) for batch in singles]
            y_hats = translate_x(torch.cat([batch.x for batch in batches]))
            for batch, y_hat in zip(batches, y_hats.split(1), strict=True):
                rows.append(measure(metrics, batch, y_hat, store.dataset))
    return join_rows([row for part in all_gather_object(rows) for row in part])


def measure(metrics: Mapping[str, Any], batch: Batch, y_hat: Tensor, dataset: Any) -> dict[str, Tensor]:
    """{metric.statistic: (B, ...)} on the CPU. Metrics see RGB images, whatever color space the networks use.

    dataset  has the encodings of x and y, as a `Dataset` does
    """
    x, y, y_hat = Encodings.of(dataset).to_rgb(batch.x, batch.y, y_hat)
    batch, statistics = replace(batch, x=x, y=y), {}
    for name, metric in metrics.items():
        for statistic, value in metric.measure(batch, y_hat).items():
            statistics[f"{name}.{statistic}"] = value.detach().cpu()
    return statistics


def join_rows(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The statistics of all images, {metric.statistic: (N, ...)}, from those of each."""
    return {key: torch.cat([row[key] for row in rows]) for key in (rows[0] if rows else {})}


def add_numbers(
    before: Mapping[str, Any],
    metrics: Mapping[str, Any],
    protocols: Mapping[str, Mapping[str, Any]],
    statistics: Mapping[str, Tensor],
) -> dict[str, Any]:
    """The entries "metrics", "measured" and "protocols" of results.json, with these metrics added or measured again.

    before      the results so far; {} if there are none
    protocols   {name of a metric: its protocol}
    statistics  as `measure_all` returns them
    """
    numbers: dict[str, dict[str, Any]] = dict(before.get("metrics", {}))
    measured: dict[str, str] = dict(before.get("measured", {}))
    by_digest: dict[str, Mapping[str, Any]] = dict(before.get("protocols", {}))
    for name, metric in metrics.items():
        measured[name] = digest = hash_protocol(protocols[name])
        by_digest[digest] = protocols[name]
        for key in [key for key in numbers if key == name or key.startswith(f"{name}.")]:
            del numbers[key]
        for key, value in metric.reduce(safetensors_io.strip_prefix(name, statistics)).items():
            number = {"value": float(value), "protocol": digest, **_minimum_images(metric, protocols[name]["images"])}
            numbers[name if key == "value" else f"{name}.{key}"] = number
    used = set(measured.values())
    kept = {digest: protocol for digest, protocol in by_digest.items() if digest in used}
    return {"metrics": numbers, "measured": measured, "protocols": kept}


def _minimum_images(metric: Any, images: int) -> dict[str, int]:
    """What results.json says of a number that was measured on too few images for it."""
    minimum = getattr(metric, "minimum_images", 0)
    return {"minimum_images": minimum} if images < minimum else {}


def _write_results(
    experiment: Experiment, run: Run, metrics: Mapping[str, Any], statistics: Mapping[str, Tensor], store: Store
) -> dict[str, Any]:
    protocols = {name: build_protocol(experiment, name, store, metric) for name, metric in metrics.items()}
    results = {
        "id": experiment.id,
        "recipe": experiment.recipe.name,
        "profile": experiment.recipe.profile,
        "seed": experiment.seed,
        "images": experiment.train.images_seen,
        **add_numbers(read_results(run.results) or {}, metrics, protocols, statistics),
    }
    if statistics:
        _write_statistics(run, statistics, list(metrics), store)
    write_results(run.results, results)
    return results


def rank_images(experiment: Experiment, run: Run, store: Store) -> tuple[str, list[tuple[int, float]]] | None:
    """(metric, [(index of the image, its value), …] best first) by the first metric of the recipe that can rank images.

    A metric cannot rank if no direction is better, or if a single image gives no number (a distance between sets).
    Returns None if no metric can.
    """
    for name, component in experiment.metrics.items():
        metric = component.build(dataset=store.dataset)
        if metric.better is None or component.evaluate:  # it may measure other translations than those that are shown
            continue
        statistics = safetensors_io.strip_prefix(name, safetensors_io.load_tensors(run.stats)[0])
        numbers = [metric.reduce({key: rows[i : i + 1] for key, rows in statistics.items()}) for i in range(len(store))]
        values = [(i, float(reduced["value"])) for i, reduced in enumerate(numbers)]
        if not any(math.isnan(value) for _, value in values):
            return name, sorted(values, key=lambda pair: pair[1], reverse=metric.better == "higher")
    return None


def _write_statistics(run: Run, new: Mapping[str, Tensor], names: list[str], store: Store) -> None:
    """Write stats.safetensors: one row per image, with ids and blocks in the header, for paired comparisons."""
    kept: dict[str, Tensor] = {}
    pairs = [store[i] for i in range(len(store))]
    if run.stats.exists():
        old, header = safetensors_io.load_tensors(run.stats)
        if header["ids"] == [pair.id for pair in pairs]:  # else the old rows belong to other images
            kept = {key: value for key, value in old.items() if key.split(".")[0] not in names}
    header = {"ids": [pair.id for pair in pairs], "blocks": [pair.block for pair in pairs]}
    safetensors_io.save_tensors(run.stats, {**kept, **new}, header)


def describe_component(component: Component) -> dict[str, Any]:
    """{"use", "version", parameters}, as JSON values. Defaults of parameters that were added later are left out."""
    version = str(getattr(component.factory, "version", "1"))
    values = schema.omit_added_later(component.factory, component.values)
    return {"use": component.entry.full_name, "version": version, **schema.to_jsonable(values), **component.fold_table}
