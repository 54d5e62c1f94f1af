"""What a training step cannot take less than: its arithmetic and its memory traffic, counted on the classic step.

    arithmetic   FLOP of convolutions, divided by the rate of the fastest matrix product
    weights      each call of a layer reads its weights once in each direction; its gradient is written once. In bf16
                 each call also reads the fp32 weights and writes the bf16 copy; the gradient is written in bf16, read,
                 and written in fp32
    optimizer    Adam reads weight, gradient and two moments, and writes weight and moments: 7 × 4 bytes a weight
    activations  outputs of convolutions and norms are written once, read by the next layer and read again in the
                 backward pass; their gradients are written and read once

The bytes are divided by the rate of a copy between buffers that fit in no cache. Everything else (losses, dropout,
concatenations, columns of im2col) is left out, so the floor is low.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

COPY_BYTES = 256 << 20  # more than most last-level caches
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.InstanceNorm2d)
ADAM_TRANSFERS = 7


def count(networks: dict[str, nn.Module], step: Callable[[], object]) -> dict[str, int]:
    """Take one step; return {"flop", "weights", "weight_uses", "activations"}: numbers, not bytes.

    networks     G and D, in the order of their optimizers
    weights      trainable parameters of all networks
    weight_uses  sum over all calls of a layer in a step of its number of weights
    activations  sum over the same calls of the number of outputs
    """
    counted = {"weight_uses": 0, "activations": 0}

    def add(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        counted["weight_uses"] += sum(parameter.numel() for parameter in layer.parameters())
        counted["activations"] += output.numel()

    layers = [layer for network in networks.values() for layer in network.modules() if isinstance(layer, LAYERS)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    with FlopCounterMode(display=False) as counter:
        step()
    for hook in hooks:
        hook.remove()
    weights = sum(parameter.numel() for network in networks.values() for parameter in network.parameters())
    return {"flop": counter.get_total_flops(), "weights": weights, **counted}


def traffic(counted: dict[str, int], precision: str) -> dict[str, int]:
    """Return the bytes that a step moves at least, by what they hold.

    >>> traffic({"flop": 0, "weights": 10, "weight_uses": 20, "activations": 100}, "fp32")
    {'weights': 200, 'optimizer': 280, 'activations': 2000}
    """
    half = precision == "bf16"
    size = 2 if half else 4
    per_use = 2 * size + (4 + size if half else 0)
    per_gradient = size + (size + 4 if half else 0)
    return {
        "weights": counted["weight_uses"] * per_use + counted["weights"] * per_gradient,
        "optimizer": counted["weights"] * ADAM_TRANSFERS * 4,
        "activations": counted["activations"] * 5 * size,
    }


def floor(counted: dict[str, int], precision: str, flop_per_second: float, bytes_per_second: float) -> dict[str, Any]:
    """Return the milliseconds that arithmetic and memory traffic take at these rates, and the megabytes moved.

    >>> counted = {"flop": 10**9, "weights": 0, "weight_uses": 0, "activations": 10**6}
    >>> floor(counted, "fp32", 1e12, 1e10)["milliseconds"]
    {'arithmetic': 1.0, 'memory': 2.0}
    """
    moved = traffic(counted, precision)
    return {
        "megabytes": {name: round(each / 1e6, 1) for name, each in moved.items()},
        "milliseconds": {
            "arithmetic": round(1e3 * counted["flop"] / flop_per_second, 1),
            "memory": round(1e3 * sum(moved.values()) / bytes_per_second, 1),
        },
    }


def copying() -> Callable[[], object]:
    """Return a function that copies COPY_BYTES: reads and writes as many."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
