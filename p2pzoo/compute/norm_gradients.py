"""The memory order of the gradients that reach norms on a CPU, set by hooks.

nn.InstanceNorm2d at batch 1: torch treats a channels-last output gradient as a contiguous one and returns wrong values
(seen on torch 2.14). Convolutions with channels-last weights return such gradients. At batch 1 they reach the norm,
unless an activation in between happens to make them contiguous.

nn.BatchNorm2d: torch has a fast kernel for channels-last images and gradients. The gradient of a concatenation, such as
a skip connection of a U-Net, is a slice of wider pixels, and goes to a slower kernel.

Imports torch only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def fix_instance_norms(module: nn.Module) -> None:
    """Make the output gradients of all instance norms of `module` contiguous, in place.

    Calling it twice is the same as calling it once. Parameters and outputs do not change.
    """
    _hook_all(module, nn.InstanceNorm2d, _make_gradient_contiguous)


def speed_up_batch_norms(module: nn.Module) -> None:
    """Copy the output gradients of all batch norms of `module` to channels-last memory if the image is in it, in place.

    Calling it twice is the same as calling it once. Parameters and outputs do not change; gradients change in rounding.
    """
    _hook_all(module, nn.BatchNorm2d, _make_gradient_channels_last)


def _hook_all(module: nn.Module, kind: type[nn.Module], hook: Any) -> None:
    for part in module.modules():
        if isinstance(part, kind) and hook not in part._forward_hooks.values():
            part.register_forward_hook(hook)


def _make_gradient_contiguous(_norm: nn.Module, _inputs: Any, y: Tensor) -> None:
    if y.requires_grad:
        y.register_hook(Tensor.contiguous)


def _make_gradient_channels_last(_norm: nn.Module, _inputs: Any, y: Tensor) -> None:
    if y.requires_grad and y.is_contiguous(memory_format=torch.channels_last):
        y.register_hook(_to_channels_last)


def _to_channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)
