"""Why a recipe cannot be trained with its process: batch norm, a G that does not see the time, unused weights."""

from __future__ import annotations

import torch
from torch import nn

from p2pzoo.config.experiment import Experiment
from p2pzoo.models.initialization import make_generator
from p2pzoo.models.process import make_process, passes_time
from p2pzoo.plugin import schema
from p2pzoo.plugin.protocols import Process

_NUM_TIMES = 16  # random numbers u on a grid, to find an early and a late time
# Of the largest value of ŷ. Generators that see the time change by 0.06 and more between t = 0 and 1 with their initial
# weights; behind an instance norm the change is 1e-5 or less, the rounding of float32.
_LEAST_CHANGE = 1e-3
# Standard deviation of what is added to the weights of a G that takes the time: layers that begin at 0 hide it at first
_WEIGHT_CHANGE = 0.02


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
    with the time does not pass an instance norm after the first convolution. If G takes the time itself, its weights
    are changed a little before, as a training step does.
    """
    process = make_process(experiment, channels, size)
    assert process
    x, y = (torch.zeros(_NUM_TIMES, count, *size) for count in channels)
    seen, t = process.noised(x, y, torch.arange(_NUM_TIMES) / _NUM_TIMES, y)
    if t.min() == t.max():
        return []
    noise = torch.randn(1, *seen.shape[1:], generator=torch.Generator().manual_seed(0))
    G = make_generator(experiment, channels, size).eval()
    is_passed = passes_time(process)
    with torch.no_grad():
        if is_passed:
            change_weights(G, _WEIGHT_CHANGE)
        inputs = [[noise + seen[i], *([t[i : i + 1]] if is_passed else [])] for i in (int(t.argmin()), int(t.argmax()))]
        first, second = (G(*each) for each in inputs)
    if (first - second).abs().max() > _LEAST_CHANGE * first.abs().max():
        return []
    if is_passed:
        where = experiment.generator.where
        place, name = f"{where}  " if where else "", experiment.generator.entry.name
        return [f"{place}generator '{name}' takes the time, and gives one image at all times: its forward ignores t"]
    return [_describe(experiment, "gives one image at all times, because its norms remove the plane with the time")]


@torch.no_grad()
def change_weights(network: nn.Module, deviation: float) -> None:
    """Add normal numbers of this standard deviation to all trainable weights, the same in each call."""
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=deviation)


def find_unused_weight_fault(experiment: Experiment, process: Process) -> list[str]:
    """Why the weights that the process gives the losses have no effect; empty if they have, or if there are none."""
    if getattr(process, "loss_weight", None) is None:
        return []
    if any(getattr(loss.factory, "uses_sample_weight", False) for loss in experiment.losses.values()):
        return []
    assert experiment.process
    recipe = experiment.recipe
    key = ("process", "loss_weight") if ("process", "loss_weight") in recipe.origins else ("process", "use")
    return [
        f'{recipe.where(key)}  [process] use = "{experiment.process.entry.name}" weights losses of pixels, and this '
        "recipe has none that uses the weights: add a loss such as l2, or set no weights"
    ]


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
