"""Whether the results that a run stores answer a recipe, as far as this can be checked without the data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.plugin import schema
from p2pzoo.runs.evaluate import describe_component


def covers_metrics(experiment: Experiment, results: Mapping[str, Any]) -> bool:
    """Whether results.json has each metric of the recipe, measured under the recipe's protocol.

    Checks the component, version and parameters of metric and dataset, the split and the test mode. A metric can put
    facts of the data into its protocol, and the number and size of the images belong to it too: all these are only
    stored.
    """
    return all(
        name in results["measured"] and _matches(experiment, name, results["protocols"][results["measured"][name]])
        for name in experiment.measurements
    )


def _matches(experiment: Experiment, name: str, stored: Mapping[str, Any]) -> bool:
    measurement = experiment.measurements[name]
    translations = {key: stored[key] for key in vars(measurement.translations) if key in stored}
    if (stored.get("split"), translations) != (experiment.evaluate.split, measurement.translations.protocol()):
        return False
    dataset = _without_added_later(experiment.dataset, stored.get("dataset", {}))
    if dataset != _as_json(describe_component(experiment.dataset)):
        return False
    stored_metric, metric = stored.get("metric", {}), _as_json(describe_component(measurement.metric))
    return all(key in stored_metric and stored_metric[key] == value for key, value in metric.items())


def _without_added_later(component: Component, stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored description as `describe_component` writes it now: earlier versions also wrote default values of
    parameters that were added later."""
    params = schema.get_params(component.factory)
    return {
        key: value
        for key, value in stored.items()
        if not (key in params and params[key].omitted_from_id(value) and value == _as_json(params[key].default))
    }


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
