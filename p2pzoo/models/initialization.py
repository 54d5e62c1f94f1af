"""Initial weights of G and D, from [init], the seed, or a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.config.settings import Init
from p2pzoo.models.build import build
from p2pzoo.models.safetensors_io import load_into, load_tensors
from p2pzoo.models.spectral_norm import normalise
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError

CONVOLUTIONS = (nn.modules.conv._ConvNd, nn.Linear)


READINGS = 15  # as torch's spectral_norm takes of the weights that it is given


NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def initialize_weights(network: nn.Module, init: Init, seed: int) -> None:
    """First weights, in place (see settings.Init; paper §3.3 and `weights_init` of train.lua)."""
    draw = {
        "normal": lambda w: nn.init.normal_(w, 0.0, init.gain),
        "xavier": lambda w: nn.init.xavier_normal_(w, gain=init.gain),
        "kaiming": lambda w: nn.init.kaiming_normal_(w, a=0, mode="fan_in"),
        "orthogonal": lambda w: nn.init.orthogonal_(w, gain=init.gain),
    }.get(init.weights)
    if draw is None:
        return
    with rng.torch_seed(seed):
        for module in network.modules():
            if isinstance(module, CONVOLUTIONS):
                if is_parametrized(module, "weight"):  # by spectral norm, say: computed anew at each reading
                    module.weight = draw(torch.empty_like(module.weight))
                    _settle(module)
                else:
                    draw(module.weight)
            elif isinstance(module, NORMS) and module.weight is not None:
                nn.init.normal_(module.weight, 1.0, 0.02)
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def give_own_weights(network: nn.Module, component: Component, seed: int) -> None:
    """What parts of the network bring themselves (see contracts.Generator), in place. Raises UserError."""
    with rng.torch_seed(seed), component.answerable():
        for module in network.modules():
            if callable(first_weights := getattr(module, "init_own_weights", None)):
                first_weights()


@torch.no_grad()
def _settle(module: nn.Module) -> None:
    """What follows its weights as they are read, as the vectors of spectral norm do, meets the new ones."""
    for _ in range(READINGS):
        _ = module.weight


def make_generator(experiment: Experiment, channels: tuple[int, int], size: tuple[int, int]) -> nn.Module:
    with rng.torch_seed(rng.derive_seed(experiment.seed, "init", "generator")):
        G = build(experiment.generator, channels, size)
    initialize_weights(G, experiment.init, rng.derive_seed(experiment.seed, "init", "generator"))
    if experiment.init.generator:
        tensors, _ = load_tensors(experiment.init.generator)
        load_into(G, _grown(G, tensors, experiment.init.generator), str(experiment.init.generator))
    else:
        give_own_weights(G, experiment.generator, rng.derive_seed(experiment.seed, "init", "generator", "own"))
    if experiment.train.spectral_norm in ("generator", "both"):
        _normalise(G, experiment.generator, rng.derive_seed(experiment.seed, "init", "generator", "spectral"))
    return G


def _grown(G: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> Mapping[str, Tensor]:
    """A file's tensors as G's own, where G can grow from another network's (see contracts.Generator)."""
    grow = getattr(G, "load_smaller", None)
    if grow is None or tensors.keys() == G.state_dict().keys():
        return tensors
    try:
        return grow(tensors)  # type: ignore[no-any-return]
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def make_discriminator(experiment: Experiment, channels: tuple[int, int], size: tuple[int, int]) -> nn.Module | None:
    if experiment.discriminator is None:
        return None
    with rng.torch_seed(rng.derive_seed(experiment.seed, "init", "discriminator")):
        D = build(experiment.discriminator, channels, size)
    initialize_weights(D, experiment.init, rng.derive_seed(experiment.seed, "init", "discriminator"))
    if experiment.init.discriminator:
        tensors, _ = load_tensors(experiment.init.discriminator)
        load_into(D, tensors, str(experiment.init.discriminator))
    else:
        give_own_weights(D, experiment.discriminator, rng.derive_seed(experiment.seed, "init", "discriminator", "own"))
    if experiment.train.spectral_norm in ("discriminator", "both"):
        _normalise(D, experiment.discriminator, rng.derive_seed(experiment.seed, "init", "discriminator", "spectral"))
    return D


def _normalise(network: nn.Module, component: Component, seed: int) -> None:
    try:
        with rng.torch_seed(seed):
            normalise(network)
    except ValueError as error:
        raise UserError(
            f"{component.where}  spectral_norm: {component.entry.kind} '{component.entry.name}': {error}"
        ) from None
