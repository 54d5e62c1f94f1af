"""Weights of a network that came from elsewhere and never learn: which they are. Imports no torch at run time.

A network, or a module inside one, declares them: `external_weights` is a tuple of names of its parameters, buffers or
submodules (see `p2pzoo.plugin.Generator`). They are in no file, no average and no optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import nn

_T = TypeVar("_T")


def external_names(network: nn.Module) -> set[str]:
    """The names of the network's external weights, as in its state dict; empty if it declares none.

    Raises ValueError for a declared name that matches nothing.

    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> network.external_weights = ("0",)
    >>> sorted(external_names(network))
    ['0.bias', '0.weight']
    """
    declared = [
        (f"{prefix}.{name}" if prefix else name)
        for prefix, module in network.named_modules()
        for name in _declared_by(module)
    ]
    if not declared:
        return set()
    found: set[str] = set()
    state = network.state_dict()
    for name in declared:
        matches = {key for key in state if key == name or key.startswith(f"{name}.")}
        if not matches:
            raise ValueError(f"external_weights names '{name}', which is no parameter, buffer or module with some")
        found |= matches
    return found


def _declared_by(module: nn.Module) -> tuple[str, ...]:
    declared = getattr(module, "external_weights", ())
    if isinstance(declared, str):
        raise ValueError(f"external_weights is the text {declared!r}: write a tuple of names, ({declared!r},)")
    return tuple(declared)


def freeze_external(network: nn.Module) -> None:
    """Give the external parameters requires_grad = False. Raises ValueError as `external_names` does.

    Also calls `train()`, where the network may put norms with external statistics into eval mode.
    """
    if not (names := external_names(network)):
        return
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if name in names:
            parameter.requires_grad_(False)
    network.train()


def own_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the network without external ones, by name."""
    return without_external(network, dict(network.named_parameters()))


def without_external(network: nn.Module, tensors: Mapping[str, _T]) -> dict[str, _T]:
    """The tensors, by names of the network's state dict, without external ones."""
    names = external_names(network)
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def share_external(network: nn.Module, other: nn.Module) -> None:
    """Let the external weights of `network` be the memory of those of `other`, a network of the same class."""
    theirs = other.state_dict(keep_vars=True)
    mine = network.state_dict(keep_vars=True)
    for name in external_names(network):
        mine[name].data = theirs[name].data
