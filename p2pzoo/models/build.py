"""Networks from components: built for the data's channels and size, given first weights, saved and loaded alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from p2pzoo.config.experiment import Component
from p2pzoo.utils.errors import UserError


def build(component: Component, channels: tuple[int, int], size: tuple[int, int]) -> nn.Module:
    """A generator or discriminator for x and y of these channels and this (H, W). Raises UserError if it refuses."""
    network = component.build(in_channels=channels[0], out_channels=channels[1], size=size)
    if not isinstance(network, nn.Module):
        raise UserError(f"{component.entry.kind} '{component.entry.full_name}' is no torch.nn.Module")
    return network


@dataclass(frozen=True)
class Measures:
    """What a network costs and sees.

    parameters       how many, those that never learn too
    macs             multiplications (each with its addition) of convolutions and matrix products, for one image
    output           (H, W) of ŷ, or of D's first map
    receptive_field  of a discriminator that tells it
    """

    parameters: int
    macs: int
    output: tuple[int, int]
    receptive_field: int | None


def measures(component: Component, channels: tuple[int, int], size: tuple[int, int]) -> Measures:
    """Counted on torch's meta device: nothing is allocated, nothing computed. Raises UserError as `build` does."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build(component, channels, size).eval()
        x, y = (torch.zeros(1, count, *size) for count in channels)
        output = network(x) if component.entry.kind == "generator" else network(x, y)[0]
    return Measures(
        parameters=sum(p.numel() for p in network.parameters()),
        macs=counter.get_total_flops() // 2,
        output=(output.shape[-2], output.shape[-1]),
        receptive_field=getattr(network, "receptive_field", None),
    )
