"""Build a network from its component, and count its parameters and operations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

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
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build_network(component, channels, size).eval()
        x, y = (torch.zeros(1, count, *size) for count in channels)
        output = network(x) if component.entry.kind == "generator" else network(x, y)[0]
    return NetworkSummary(
        parameters=sum(p.numel() for p in network.parameters()),
        macs=counter.get_total_flops() // 2,
        output_size=(output.shape[-2], output.shape[-1]),
        receptive_field=getattr(network, "receptive_field", None),
    )
