"""Whether the networks of a recipe take its images, and which line of the recipe set a size that they refuse."""

from __future__ import annotations

from torch import nn

from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.models.build import build_network, on_meta
from p2pzoo.models.external_weights import find_external_faults
from p2pzoo.models.optional_parts import find_feature_faults, find_seen_target_faults
from p2pzoo.models.process import make_process
from p2pzoo.models.process_faults import (
    find_batch_norm_fault,
    find_unseen_time_fault,
    find_unused_weight_fault,
)
from p2pzoo.utils.errors import UserError

_COMMON_DIVISOR = 256  # of the sides that a network takes, if its parameters are right


def find_network_faults(experiment: Experiment, channels: tuple[int, int], size: tuple[int, int]) -> list[str]:
    """Why process, G and D cannot be built for these images, or G not trained with the process; empty if all is well.

    Nothing is allocated without a process.

    channels: of x and of y. size: (H, W). A fault that is due to the size names the line that set it.
    """
    faults: list[str] = []
    try:
        process = make_process(experiment, channels, size)
    except UserError as error:
        return [*error.faults]
    channels_of_G = (process.channels, channels[1]) if process else channels
    faults += find_unused_weight_fault(experiment, process) if process else []
    for component in filter(None, (experiment.generator, experiment.discriminator)):
        is_G = component is experiment.generator
        own_channels = channels_of_G if is_G else channels
        try:
            network = _build(component, own_channels, size)
        except UserError as error:
            is_size = _takes_other_size(component, own_channels, size)
            faults += [_describe(experiment, component, size, error)] if is_size else error.faults
        else:
            faults += find_batch_norm_fault(experiment, network) if is_G and experiment.process else []
            faults += find_external_faults(component, network) if is_G else []
            faults += find_feature_faults(experiment, network) if is_G else []
            faults += find_seen_target_faults(experiment, network) if is_G else []
    if experiment.process and not faults:
        faults += find_unseen_time_fault(experiment, channels, size)
    return faults


def _build(component: Component, channels: tuple[int, int], size: tuple[int, int]) -> nn.Module:
    with on_meta():
        return build_network(component, channels, size)


def _takes_other_size(component: Component, channels: tuple[int, int], size: tuple[int, int]) -> bool:
    height, width = (-(-side // _COMMON_DIVISOR) * _COMMON_DIVISOR for side in size)
    try:
        _build(component, channels, (height, width))
    except UserError:
        return False
    return True


def _describe(experiment: Experiment, component: Component, size: tuple[int, int], error: UserError) -> str:
    is_set = "size" in experiment.recipe.values.get("dataset", {})
    setting = f"[dataset] size = {list(size)}" if is_set else f"[dataset] has images of {list(size)} px (height, width)"
    cause = error.__cause__ or error
    advice = "" if is_set or "size" not in experiment.dataset.values else "; set size, and resize, in [dataset]"
    place = experiment.recipe.where(("dataset", "size"))
    return f"{place}  {setting}: {component.entry.kind} '{component.entry.name}': {cause}{advice}"
