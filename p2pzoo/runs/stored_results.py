"""Whether the results that a run stores answer a recipe, as far as this can be checked without the data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from p2pzoo.config.experiment import Experiment
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
    expected: dict[str, Any] = {
        "dataset": describe_component(experiment.dataset),
        "split": experiment.evaluate.split,
        **experiment.measurements[name].translations.protocol(),
    }
    expected = json.loads(json.dumps(expected))
    metric = json.loads(json.dumps(describe_component(experiment.measurements[name].metric)))
    stored_metric = stored.get("metric", {})
    return all(stored.get(key) == value for key, value in expected.items()) and all(
        key in stored_metric and stored_metric[key] == value for key, value in metric.items()
    )
