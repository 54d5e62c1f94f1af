"""Why a generator cannot be trained with a process: batch norm, and norms that remove the time."""

from __future__ import annotations

import torch
from torch import nn

from p2pzoo.config.experiment import Experiment
from p2pzoo.models.initialization import make_generator
from p2pzoo.models.process import make_process
from p2pzoo.plugin import schema

_NUM_TIMES = 16  # random numbers u on a grid, to find an early and a late time
# Of the largest value of ŷ. Generators that see the time change by 0.06 and more between t = 0 and 1 with their initial
# weights; behind an instance norm the change is 1e-5 or less, the rounding of float32.
_LEAST_CHANGE = 1e-3


def find_batch_norm_fault(experiment: Experiment, G: nn.Module) -> list[str]:
    """Why G cannot be trained with the recipe's process; empty if it can.

    Batch norm mixes the times of a batch in training, and not at use, where all images have one time.
    """
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in G.modules()):
        return []
    return [_describe(experiment, "has batch norm, which mixes times in training")]


def find_unseen_time_fault(experiment: Experiment, channels: tuple[int, int], size: tuple[int, int]) -> list[str]:
    """Why G, with its initial weights, gives one image at all times; empty if it does not.

    G gets random values plus what the process makes of black images at an early and at a late time. A constant plane
    with the time does not pass an instance norm after the first convolution.
    """
    process = make_process(experiment, channels, size)
    assert process
    x, y = (torch.zeros(_NUM_TIMES, count, *size) for count in channels)
    seen, t = process.noised(x, y, torch.arange(_NUM_TIMES) / _NUM_TIMES, y)
    if t.min() == t.max():
        return []
    noise = torch.randn(1, *seen.shape[1:], generator=torch.Generator().manual_seed(0))
    G = make_generator(experiment, channels, size).eval()
    with torch.no_grad():
        first, second = (G(noise + seen[i]) for i in (t.argmin(), t.argmax()))
    if (first - second).abs().max() > _LEAST_CHANGE * first.abs().max():
        return []
    return [_describe(experiment, "gives one image at all times, because its norms remove the plane with the time")]


def _describe(experiment: Experiment, problem: str) -> str:
    """The fault with the line that set the norm, else the process, and with what to do."""
    assert experiment.process
    generator, recipe = experiment.generator, experiment.recipe
    norm = schema.get_params(generator.factory).get("norm")
    has_group = norm is not None and _accepts(norm, "group")
    advice = 'generator.norm = "group"' if has_group else 'another generator, such as "unet" with norm = "group"'
    key = ("generator", "norm") if ("generator", "norm") in recipe.origins else ("process", "use")
    process = f'[process] use = "{experiment.process.entry.name}"'
    return f"{recipe.where(key)}  {process}: generator '{generator.entry.name}' {problem}: set {advice}"


def _accepts(param: schema.Param, value: str) -> bool:
    try:
        param.check(value)
    except ValueError:
        return False
    return True
