"""What a generator offers besides G(x): features for losses, and losses of its own that see the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.models.build import build_network, on_meta
from p2pzoo.models.process import generator_channels, takes_time
from p2pzoo.utils.errors import UserError


def feature_channels(experiment: Experiment, channels: tuple[int, int], size: tuple[int, int]) -> tuple[int, ...]:
    """The channels of each tensor of `G.features(x)`, of a generator that has features. Nothing is allocated.

    channels: of x and of y. size: (H, W) of the images.
    """
    channels = generator_channels(experiment, channels, size)
    with on_meta(), torch.no_grad():
        G = build_network(experiment.generator, channels, size)
        return count_feature_channels(G, torch.zeros(1, channels[0], *size))


def count_feature_channels(G: nn.Module, x: Tensor) -> tuple[int, ...]:
    """The channels of each tensor of `G.features(x)`, x (B, C, H, W)."""
    features = G.features(x)  # type: ignore[operator]
    return tuple(each.shape[1] for each in features)


def find_feature_faults(experiment: Experiment, G: nn.Module) -> list[str]:
    """One line for each loss that needs features, or a z as an argument, which G does not have."""
    name = experiment.generator.entry.full_name
    lacking = {}
    if not callable(getattr(G, "features", None)):
        lacking["features"] = (
            f"generator '{name}' does not have: remove it, or use a generator with features(x), such as \"unet\""
        )
    if experiment.process:
        lacking["z"] = "no generator with a process has: remove it, or [process]"
    elif not getattr(G, "takes_z", False):
        lacking["z"] = (
            f"generator '{name}' does not take: remove it, or use a generator that does, such as \"unet\" with "
            'noise = "gaussian"'
        )
    return [
        f"{_place(loss)}[{table}] needs {need}, which {lacking[need]}"
        for table, loss in _losses(experiment).items()
        for need in loss.entry.needs
        if need in lacking
    ]


def find_seen_target_faults(experiment: Experiment, G: nn.Module) -> list[str]:
    """Why G, which sees the target in training, cannot be trained with this recipe; empty if it can, or sees none."""
    if not getattr(G, "sees_target", False):
        return []
    generator = experiment.generator
    which = f"{_place(generator)}generator '{generator.entry.full_name}'"
    if experiment.process:
        process = experiment.process.entry.name
        return [f"{which} sees the target in training, and with process '{process}' too: use one of the two"]
    if takes_time(generator):
        return [f"{which} has sees_target = True and takes_time = True: it can have one of the two"]
    weights = getattr(G, "loss_weights", None)
    if not isinstance(weights, Mapping) or not all(isinstance(weight, int | float) for weight in weights.values()):
        return [f"{which} has sees_target = True and loss_weights {weights!r}: it must be {{name of a loss: weight}}"]
    taken = {"gan": "gan_loss"} if experiment.gan_loss else {}
    taken |= {name: f"losses.{name}" for name in experiment.losses}
    return [
        f"{which} has a loss '{name}', which [{taken[name]}] has too: rename one of them"
        for name in weights
        if name in taken
    ]


def unpack_seen_target(G: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
    """ŷ and the losses that a generator with `sees_target` returns for a training batch.

    Raises UserError if it returns something else, or losses without a weight.
    """
    returned = G(x, y)
    if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[1], Mapping):
        raise UserError(
            f"the generator has sees_target = True and returns a {type(returned).__name__} for G(x, y): it must return "
            "(ŷ, {name: loss})"
        )
    y_hat, losses = returned
    if losses.keys() != G.loss_weights.keys():
        raise UserError(
            f"the generator returns the losses {sorted(losses)} for G(x, y), and its loss_weights are for "
            f"{sorted(G.loss_weights)}: the names must be the same"
        )
    return y_hat, losses


def _losses(experiment: Experiment) -> dict[str, Component]:
    losses = {f"losses.{name}": loss for name, loss in experiment.losses.items()}
    return losses | ({"gan_loss": experiment.gan_loss} if experiment.gan_loss else {})


def _place(component: Component) -> str:
    return f"{component.where}  " if component.where else ""
