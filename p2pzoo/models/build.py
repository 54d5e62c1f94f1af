"""Build a network from its component, and count its parameters and operations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils.parametrizations import _SpectralNorm

from p2pzoo.config.experiment import Component
from p2pzoo.utils.errors import UserError


def build_network(component: Component, channels: tuple[int, int], size: tuple[int, int]) -> nn.Module:
    """Build a generator or discriminator with the weights that its constructor draws.

    channels: of x and of y. size: (H, W) of the images. Raises UserError if the component refuses them.
    """
    network = component.build(in_channels=channels[0], out_channels=channels[1], size=size)
    if not isinstance(network, nn.Module):
        returned = type(network).__name__
        raise UserError(
            f"{component.entry.kind} '{component.entry.full_name}' must return a torch.nn.Module, not a {returned}"
        )
    return network


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Inside, new tensors have a shape and no values (torch's meta device): a network takes no memory, and little time.

    torch's spectral norm begins with 15 power iterations. Without values they compute nothing, but took most of the
    time to build a network that has many; so they are left out.

    >>> with on_meta():
    ...     layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))
    >>> layer.weight.shape, layer.weight.is_meta
    (torch.Size([3, 4]), True)
    """
    iterate = _SpectralNorm._power_method

    def iterate_on_values(norm: _SpectralNorm, weight: Tensor, count: int) -> None:
        if not weight.is_meta:
            iterate(norm, weight, count)

    with torch.device("meta"), mock.patch.object(_SpectralNorm, "_power_method", iterate_on_values):
        yield


class TooLarge(RuntimeError):
    """A network has more parts or values than the tensors of its file allow."""


# A constructor may make parts that it does not keep, and buffers that no file holds: so many per tensor, and so many
# more, are allowed. Shipped networks need fewer than 4 modules per tensor.
_MODULES_PER_TENSOR, _MORE_MODULES = 16, 2000
_MORE_BUFFER_BYTES = 64 << 20


def build_on_meta(
    component: Component, channels: tuple[int, int], size: tuple[int, int], tensors: Mapping[str, Tensor]
) -> nn.Module:
    """As `build_network`, on the meta device, for tensors that a file of unknown origin holds.

    Takes time and memory in proportion to the tensors, whatever the component's parameters say. Raises TooLarge for a
    network that has far more modules, parameters or buffers than they, and as `build_network` does.
    """
    modules = _MODULES_PER_TENSOR * len(tensors) + _MORE_MODULES
    with _at_most(modules), on_meta():
        network = build_network(component, channels, size)
    stored = sum(tensor.nbytes for tensor in tensors.values())
    buffers = sum(buffer.nbytes for buffer in network.buffers())
    if buffers > stored + _MORE_BUFFER_BYTES:
        raise TooLarge(f"it computes buffers of {buffers:,} bytes, and its tensors have {stored:,}")
    return network


@contextlib.contextmanager
def _at_most(modules: int) -> Iterator[None]:
    """Inside, raise TooLarge when more modules, or parameters and buffers, are registered in networks."""
    counted = {"modules": 0, "parameters": 0}

    def count(what: str) -> Any:
        def hook(*_: object) -> None:
            counted[what] += 1
            if counted[what] > modules:
                raise TooLarge(f"it has more than {modules:,} {what}, far more than its file has tensors for")

        return hook

    handles = [
        torch_module.register_module_module_registration_hook(count("modules")),
        torch_module.register_module_parameter_registration_hook(count("parameters")),
        torch_module.register_module_buffer_registration_hook(count("parameters")),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class NetworkSummary:
    """Size and cost of a network.

    parameters       number of parameters, frozen ones included
    macs             multiply-adds of convolutions and matrix products for one image
    output_size      (H, W) of ŷ, or of D's first output map
    receptive_field  of a discriminator that has this attribute, in pixels; else None
    """

    parameters: int
    macs: int
    output_size: tuple[int, int]
    receptive_field: int | None


def summarize_network(component: Component, channels: tuple[int, int], size: tuple[int, int]) -> NetworkSummary:
    """Build and run a network on the meta device: nothing is allocated. Raises UserError as `build_network` does."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton

    with on_meta():
        network = build_network(component, channels, size).eval()
        x, *others = (torch.zeros(1, count, *size) for count in channels)
        others += [torch.zeros(1, *size, dtype=torch.long)] if "labels" in component.entry.needs else []
        with FlopCounterMode(display=False) as counter:  # not while building: a backbone tries itself out
            output = network(x) if component.entry.kind == "generator" else network(x, *others)[0]
    return NetworkSummary(
        parameters=sum(p.numel() for p in network.parameters()),
        macs=counter.get_total_flops() // 2,
        output_size=(output.shape[-2], output.shape[-1]),
        receptive_field=getattr(network, "receptive_field", None),
    )
