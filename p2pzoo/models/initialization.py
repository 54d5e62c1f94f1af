"""Initial weights of G and D: from [init], from the networks' own code, or from a file."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.config.settings import Init
from p2pzoo.models.build import build_network
from p2pzoo.models.external_weights import call_init_own_weights, load_start
from p2pzoo.models.process import generator_channels
from p2pzoo.models.safetensors_io import find_unsaved, load_into
from p2pzoo.models.spectral_norm import apply_spectral_norm
from p2pzoo.plugin.model_source import locate_weights
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.external_weights import external_names, freeze_external, without_external

_WEIGHT_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)

# torch's spectral_norm takes 15 power iterations when it is applied to a weight; a new weight gets as many
_POWER_ITERATIONS = 15


def initialize_weights(network: nn.Module, init: Init, seed: int) -> None:
    """Draw initial weights in place, as settings.Init describes (paper §3.3; `weights_init` of train.lua).

    init.weights = "own" changes nothing, and external weights stay as they are. torch's random state is as before
    afterwards.
    """
    draw = {
        "normal": lambda w: nn.init.normal_(w, 0.0, init.gain),
        "xavier": lambda w: nn.init.xavier_normal_(w, gain=init.gain),
        "kaiming": lambda w: nn.init.kaiming_normal_(w, a=0, mode="fan_in"),
        "orthogonal": lambda w: nn.init.orthogonal_(w, gain=init.gain),
    }.get(init.weights)
    if draw is None:
        return
    external = external_names(network)
    with rng.torch_seed(seed):
        for name, module in network.named_modules():
            if f"{name}.weight".removeprefix(".") in external:
                continue
            if isinstance(module, _WEIGHT_LAYERS):
                if is_parametrized(module, "weight"):  # spectral norm, for one: each read computes a new tensor
                    module.weight = draw(torch.empty_like(module.weight))
                    _run_power_iterations(module)
                else:
                    draw(module.weight)
            elif isinstance(module, _NORMS) and module.weight is not None:
                nn.init.normal_(module.weight, 1.0, 0.02)  # as train.lua does
            else:
                continue
            if module.bias is not None and f"{name}.bias".removeprefix(".") not in external:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def _run_power_iterations(module: nn.Module) -> None:
    """Read the weight repeatedly: a spectral norm updates its vectors at each read, here for the new weight."""
    for _ in range(_POWER_ITERATIONS):
        _ = module.weight


def make_generator(experiment: Experiment, channels: tuple[int, int], size: tuple[int, int]) -> nn.Module:
    """Build G and give it its initial weights, which depend on the experiment's seed alone.

    channels: of x and of y. size: (H, W). With a process, G takes the channels of the process in place of those of x.
    Raises UserError if the component refuses them, or if the weights of [init] generator do not fit.
    """
    channels = generator_channels(experiment, channels, size)
    return _make_network(experiment, experiment.generator, channels, size, experiment.init.generator)


def make_discriminator(experiment: Experiment, channels: tuple[int, int], size: tuple[int, int]) -> nn.Module | None:
    """Build D as `make_generator` builds G. None for a recipe without a discriminator."""
    if experiment.discriminator is None:
        return None
    return _make_network(experiment, experiment.discriminator, channels, size, experiment.init.discriminator)


def _make_network(
    experiment: Experiment, component: Component, channels: tuple[int, int], size: tuple[int, int], start: Path | None
) -> nn.Module:
    """start: the file or the address of the initial weights, or None."""
    kind = component.entry.kind
    seed = functools.partial(rng.derive_seed, experiment.seed, "init", kind)
    with rng.torch_seed(seed()):
        network = build_network(component, channels, size)
    with component.locate_errors():
        freeze_external(network)
    initialize_weights(network, experiment.init, seed())
    if start:
        tensors = load_start(network, component, locate_weights(start))
        load_into(network, _expand_smaller(network, tensors, start), str(start))
    else:
        call_init_own_weights(network, component, seed("own"))
    if experiment.train.spectral_norm in (kind, "both"):
        _normalise(network, component, seed("spectral"))
    _check_is_saved(network, component)
    return network


def _check_is_saved(network: nn.Module, component: Component) -> None:
    """Raises UserError if a file of the network's state dict could not restore it."""
    if unsaved := find_unsaved(network):
        more = f" and {len(unsaved) - 1} more" if len(unsaved) > 1 else ""
        raise UserError(
            f"{component.entry.kind} '{component.entry.full_name}': its state_dict() leaves out '{unsaved[0]}'{more}: "
            "checkpoints and model files could not restore these weights; include them, or register them as buffers "
            "with persistent=False that the constructor computes"
        )


def _expand_smaller(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> Mapping[str, Tensor]:
    """Expand the weights of a smaller network into those of `network`, if it has `load_smaller` (plugin.networks)."""
    load_smaller = getattr(network, "load_smaller", None)
    if load_smaller is None or tensors.keys() == without_external(network, network.state_dict()).keys():
        return tensors
    try:
        return load_smaller(tensors)  # type: ignore[no-any-return]
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _normalise(network: nn.Module, component: Component, seed: int) -> None:
    """Apply spectral norm. Raises UserError that names the recipe's line."""
    try:
        with rng.torch_seed(seed):
            apply_spectral_norm(network)
    except ValueError as error:
        raise UserError(
            f"{component.where}  spectral_norm: {component.entry.kind} '{component.entry.name}': {error}"
        ) from None
