"""Whether data has validation images of its own, which may choose settings: the test images must not."""

from __future__ import annotations

import warnings

from p2pzoo.config.experiment import Experiment


def find_split_fault(experiment: Experiment) -> str | None:
    """A fault if the data has no validation images, or if those are the test images, as of files without val."""
    name = experiment.dataset.entry.full_name
    with warnings.catch_warnings(action="ignore"):  # they say what the fault says
        val, test = (experiment.dataset.build(split=split) for split in ("val", "test"))
    advice = "give it a val split: a search that looked at the test images would make their numbers worthless"
    if len(val) == 0:
        return f"{experiment.dataset.where}  dataset '{name}' has no validation images: {advice}"
    if len(val) == len(test) and val[0].id == test[0].id:
        return f"{experiment.dataset.where}  dataset '{name}' has no val split of its own: {advice}"
    return None
