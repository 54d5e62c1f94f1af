"""Measure metrics and store each number with its protocol. Metrics measure each image, so comparisons can be paired."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
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
from p2pzoo.models.translator import Translator
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
        "metric": describe_metric(component, metric),
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
    """Raises UserError if a metric, loss, augmentation or D needs a field of the batch that the dataset lacks."""
    faults: list[str] = []
    available = {"labels": store.has_labels, "blocks": store.has_blocks}
    components = {f"metrics.{name}": component for name, component in experiment.metrics.items()}
    components |= {f"losses.{name}": component for name, component in experiment.losses.items()}
    components |= {f"augmentations.{name}": component for name, component in experiment.augmentations.items()}
    for table in ("gan_loss", "discriminator"):
        components |= {table: getattr(experiment, table)} if getattr(experiment, table) else {}
    for table, component in components.items():
        for need in component.entry.needs:
            if not available.get(need, need in ("features", "z")):  # of G: `find_network_faults` checks those
                dataset = experiment.dataset.entry.full_name
                is_in_file = component.where and not component.where.startswith("-s ")  # tables add their metrics by -s
                place = f"{component.where}  " if is_in_file else ""
                advice = "use another one" if table == "discriminator" else "remove it"
                faults.append(f"{place}[{table}] needs {need}, which the dataset '{dataset}' does not have: {advice}")
    if faults:
        raise UserError(*faults)


def build_metrics(experiment: Experiment, store: Store, names: Iterable[str]) -> dict[str, Any]:
    """The recipe's metrics of these names. Raises UserError with all that cannot be built, such as those whose network
    weights are missing."""
    metrics: dict[str, Any] = {}
    faults: list[str] = []
    for name in names:
        try:
            metrics[name] = build_metric(experiment.measurements[name].metric, store.dataset)
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(*faults)
    return metrics


def build_metric(component: Component, dataset: Any) -> Any:
    """Raises UserError if it cannot be built, or if its `samples` is not a number of samples (see `Metric`)."""
    metric = component.build(dataset=dataset)
    count = getattr(metric, "samples", 2)
    if type(count) is not int or count < 2:
        raise UserError(
            f"metric '{component.entry.full_name}' has samples = {count!r}, the translations of each image that it "
            "takes: set a whole number from 2 on"
        )
    return metric


def count_samples(metrics: Mapping[str, Any]) -> int:
    """The translations of each image that these metrics take, seeds 0, 1, …: as many as the one that takes most."""
    return max([getattr(metric, "samples", 1) for metric in metrics.values()], default=1)


def check_trust(metrics: Mapping[str, Any], device: torch.device) -> None:
    """Raises UserError if the numbers of a metric would mean nothing on this data (see `Metric`)."""
    for metric in metrics.values():
        if hasattr(metric, "trust"):
            metric.trust(device)


def try_metrics(metrics: Mapping[str, Any], store: Store) -> None:
    """Measure a few images on the CPU, so that an error inside a metric ends a run before its training.

    ŷ is y mirrored, and further samples are y turned. The metrics should not be used afterwards; torch's random state
    is as before.
    """
    with rng.torch_seed(0):
        rows = []
        for batch in single_batches(store, range(min(TRIED_IMAGES, len(store)))):
            y_hats = [batch.y.flip(-1), *[batch.y.flip(-1, -2)] * (count_samples(metrics) - 1)]
            rows.append(measure(metrics, batch, y_hats, store.dataset))
        statistics = join_rows(rows)
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

    The time of a translation is stored too, once for each kind of translations.

    Each group of metrics with the same translations is stored as soon as it is measured.

    load_G  returns G as it makes these translations
    """
    results: dict[str, Any] = {}
    for translations, group in (group_by_translations(experiment, metrics) or {experiment.translations: {}}).items():
        translate_x = Translator(load_G(translations), translations)
        statistics = measure_all(group, engine, store, translate_x, translations.test_batch)
        timings = describe_time(translate_x, engine)
        results = on_rank0(_write_results, experiment, run, group, statistics, store, timings)
    return results


def group_by_translations(experiment: Experiment, metrics: Mapping[str, Any]) -> dict[Translations, dict[str, Any]]:
    """The metrics by the translations that they measure, so that each image is translated once for all of a group."""
    groups: dict[Translations, dict[str, Any]] = {}
    for name, metric in metrics.items():
        groups.setdefault(experiment.measurements[name].translations, {})[name] = metric
    return groups


def describe_time(translate_x: Translator, engine: Engine) -> list[dict[str, Any]]:
    """The entry of these translations in "timings" of results.json; [] if there were too few passes to time one.

    All processes call it. It depends on the machine, and on what else that does: so no protocol has it.
    """
    seconds = [each for part in all_gather_object(translate_x.seconds) for each in part]
    if not seconds:
        return []
    facts = {key: value for key, value in engine.describe().items() if key in ("device", "gpu", "threads", "processes")}
    milliseconds = round(1e3 * median(seconds), 3)
    return [{"translations": translate_x.translations.protocol(), "milliseconds": milliseconds, **facts}]


def evaluate_target(
    experiment: Experiment,
    run: Run,
    store: Store,
    digest: str,
    *,
    seed: int | None = None,
    change: Callable[[Batch], Tensor] | None = None,
) -> dict[str, Any]:
    """The same for the ground truth row: measures y in place of ŷ, and in place of all samples of an image.

    digest  its id in the results
    seed    of the runs that are tested on the same data, if other seeds have other data
    change  returns what is measured instead of y, (B, C, H, W) in [-1, 1]
    """
    metrics = build_metrics(experiment, store, find_missing_metrics(experiment, run, store))
    shown = [(batch, change(batch) if change else batch.y) for batch in single_batches(store)]
    statistics = join_rows([measure(metrics, batch, [image], store.dataset) for batch, image in shown])
    results = _write_results(experiment, run, metrics, statistics, store)
    results |= {"id": digest, "recipe": "target", "seed": seed, "images": 0}
    write_results(run.results, results)
    return results


def measure_all(
    metrics: Mapping[str, Any],
    engine: Engine,
    store: Store,
    translate_x: Callable[[Tensor, int], Sequence[Tensor]],
    together: int = 1,
) -> dict[str, Tensor]:
    """{metric.statistic: (N, ...)}, one row per image in the dataset's order. Each process measures its shard.

    translate_x  returns so many samples of x, as a `Translator` does
    together     images, neighbours in the dataset, that `translate_x` gets at a time. No other images are in memory
    """

    def measure_together(start: int) -> list[dict[str, Tensor]]:  # a function, so that it frees its images
        parts = translate_neighbours(engine, store, translate_x, start, together, count_samples(metrics))
        return [measure(metrics, batch, y_hats, store.dataset) for batch, *y_hats in parts]

    with sync_errors():
        starts = shard(range(0, len(store) if metrics else 0, together))
        rows = [row for start in starts for row in measure_together(start)]
    return join_rows([row for part in all_gather_object(rows) for row in part])


def translate_neighbours(
    engine: Engine, store: Store, translate_x: Callable[[Tensor, int], Sequence[Tensor]], index: int, together: int,
    count: int = 1,
) -> list[tuple[Any, ...]]:  # fmt: skip
    """[(batch of one pair, its ŷ of sample 0, of sample 1, …), …] of the pairs that are measured with pair `index`."""
    start = index - index % together
    indices = range(start, min(start + together, len(store)))
    batches = [engine.to_device(batch) for batch in single_batches(store, indices)]
    samples = translate_x(torch.cat([batch.x for batch in batches]), count)
    return [*zip(batches, *(y_hat.split(1) for y_hat in samples), strict=True)]


def measure(metrics: Mapping[str, Any], batch: Batch, y_hats: Sequence[Tensor], dataset: Any) -> dict[str, Tensor]:
    """{metric.statistic: (B, ...)} on the CPU. Metrics see RGB images, whatever color space the networks use.

    y_hats   samples of ŷ, (B, C, H, W) each: as many as `count_samples`, or one that stands for all. Metrics without
             `samples` see the first
    dataset  has the encodings of x and y, as a `Dataset` does
    """
    x, y, *y_hats = Encodings.of(dataset).to_rgb(batch.x, batch.y, *y_hats)
    batch, statistics = replace(batch, x=x, y=y), {}
    for name, metric in metrics.items():
        y_hat = stack_samples(y_hats, metric.samples) if hasattr(metric, "samples") else y_hats[0]
        for statistic, value in metric.measure(batch, y_hat).items():
            statistics[f"{name}.{statistic}"] = value.detach().cpu()
    return statistics


def stack_samples(y_hats: Sequence[Tensor], count: int) -> Tensor:
    """(B, count, C, H, W): the first `count` of these samples (B, C, H, W), or the only one so many times.

    >>> stack_samples([torch.zeros(2, 3, 8, 8)], 5).shape
    torch.Size([2, 5, 3, 8, 8])
    """
    if len(y_hats) == 1:
        return y_hats[0][:, None].expand(-1, count, -1, -1, -1)
    return torch.stack([*y_hats[:count]], dim=1)


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
    experiment: Experiment,
    run: Run,
    metrics: Mapping[str, Any],
    statistics: Mapping[str, Tensor],
    store: Store,
    timings: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    before = read_results(run.results) or {}
    protocols = {name: build_protocol(experiment, name, store, metric) for name, metric in metrics.items()}
    results = {
        "id": experiment.id,
        "recipe": experiment.recipe.name,
        "profile": experiment.recipe.profile,
        "seed": experiment.seed,
        "images": experiment.train.images_seen,
        **add_numbers(before, metrics, protocols, statistics),
        **_add_timings(before, timings),
    }
    if statistics:
        _write_statistics(run, statistics, list(metrics), store)
    write_results(run.results, results)
    return results


def _add_timings(before: Mapping[str, Any], new: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entry "timings" of results.json. Of equal translations the first measurement stays."""
    timings = list(before.get("timings", []))
    known = [timing["translations"] for timing in timings]
    timings += [timing for timing in new if timing["translations"] not in known]
    return {"timings": timings} if timings else {}


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


def describe_metric(component: Component, metric: Any) -> dict[str, Any]:
    """What the protocol of its numbers says of a metric: its parameters, its samples, and what its `protocol` adds."""
    samples = {"samples": metric.samples} if hasattr(metric, "samples") else {}
    return {**describe_component(component), **samples, **schema.to_jsonable(getattr(metric, "protocol", {}))}


def describe_component(component: Component) -> dict[str, Any]:
    """{"use", "version", parameters}, as JSON values.

    Defaults of parameters that were added later are left out, and a dataset's `training_parameters`.
    """
    version = str(getattr(component.factory, "version", "1"))
    values = schema.omit_added_later(component.factory, component.values)
    values = {k: v for k, v in values.items() if k not in getattr(component.factory, "training_parameters", ())}
    return {"use": component.entry.full_name, "version": version, **schema.to_jsonable(values), **component.fold_table}
