"""Whether the translations of a row draw noise, so that one of them is one sample of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from p2pzoo.config.experiment import Experiment
from p2pzoo.models.build import build_network, on_meta
from p2pzoo.models.process import build_process, generator_channels, takes_time
from p2pzoo.utils.errors import UserError
from p2pzoo_bench.comparison import Comparison, metric_of
from p2pzoo_bench.stored_results import EvaluatedImages


def draws_noise(
    G: nn.Module, experiment: Experiment, evaluate: Mapping[str, Any], channels: tuple[int, int], size: tuple[int, int]
) -> bool:
    """Whether two translations of one image may differ: the sampler of its process draws noise, G takes z, or G's
    dropout is active at test time (`test_mode = "paper"`).

    G         may be on the meta device
    evaluate  what the row's translations differ in from those of the experiment

    Raises UserError if the process refuses the channels.
    """
    translations = experiment.translations.changed(evaluate)
    if component := experiment.process:
        changed = replace(component, values={**component.values, **translations.process})
        sampler = build_process(changed, channels, size, takes_time=takes_time(experiment.generator)).sampler(G)
        shape = getattr(sampler, "noise_shape", (1, channels[1]))  # of a sampler that does not say: it may draw
        if shape[0] > 0:
            return True
    has_dropout = any(isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0 for part in G.modules())
    return bool(getattr(G, "takes_z", False)) or (translations.test_mode == "paper" and has_dropout)


def add_facts_for_answer(table: Comparison, data: EvaluatedImages) -> None:
    """Add to the document what its answer needs: "use" and "summary" of each column's metric, "noise" of each row."""
    for column in table.doc["columns"]:
        measurements = (row.experiment.measurements.get(metric_of(column["metric"])) for row in table.rows)
        if measurement := next(filter(None, measurements), None):
            entry = measurement.metric.entry
            column |= {"use": entry.full_name, "summary": entry.summary}
    for row, facts in zip(table.rows, table.doc["rows"], strict=True):
        if row.target or data.channels is None:
            continue
        try:
            with on_meta():
                channels = generator_channels(row.experiment, data.channels, data.size)
                G = build_network(row.experiment.generator, channels, data.size)
                facts["noise"] = draws_noise(G, row.experiment, row.evaluate, data.channels, data.size)
        except UserError:  # the row failed, with this reason
            continue
