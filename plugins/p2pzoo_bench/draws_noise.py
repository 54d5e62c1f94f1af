"""Whether the translations of a row draw noise, so that one of them is one sample of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from p2pzoo.config.experiment import Experiment
from p2pzoo.models.process import build_process, takes_time


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
