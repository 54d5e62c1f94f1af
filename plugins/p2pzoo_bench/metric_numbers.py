"""The names of the numbers that a metric gives."""

from __future__ import annotations

from p2pzoo.config.experiment import Experiment
from p2pzoo.data import Store, single_batches
from p2pzoo.models import safetensors_io
from p2pzoo.runs.evaluate import TRIED_IMAGES, build_metrics, count_samples, join_rows, measure
from p2pzoo.utils.rng import torch_seed


def list_numbers(experiment: Experiment, name: str, store: Store) -> list[str]:
    """The names under which a metric stores its numbers, tried on two images with y mirrored in place of ŷ.

    Raises what the metric raises, and UserError if it cannot be built.
    """
    metrics = build_metrics(experiment, store, [name])
    with torch_seed(0):
        batches = [*single_batches(store, range(min(TRIED_IMAGES, len(store))))]
        mirrored = [[batch.y.flip(-1)] * count_samples(metrics) for batch in batches]
        rows = [measure(metrics, *pair, store.dataset) for pair in zip(batches, mirrored, strict=True)]
        keys = metrics[name].reduce(safetensors_io.strip_prefix(name, join_rows(rows)))
    return [name if key == "value" else f"{name}.{key}" for key in keys]
