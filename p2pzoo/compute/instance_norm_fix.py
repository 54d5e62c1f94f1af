"""Workaround for a wrong gradient of nn.InstanceNorm2d on a CPU at batch 1.

For a single image, torch treats a channels-last output gradient as a contiguous one and returns wrong values (seen on
torch 2.14). Convolutions with channels-last weights return such gradients. At batch 1 they reach the norm, unless an
activation in between happens to make them contiguous.

Imports torch only.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def fix_instance_norms(module: nn.Module) -> None:
    """Make the output gradients of all instance norms of `module` contiguous, in place, by hooks.

    Calling it twice is the same as calling it once. Parameters and outputs do not change.
    """
    for part in module.modules():
        if isinstance(part, nn.InstanceNorm2d) and _make_gradient_contiguous not in part._forward_hooks.values():
            part.register_forward_hook(_make_gradient_contiguous)


def _make_gradient_contiguous(_norm: nn.Module, _inputs: Any, y: Tensor) -> None:
    if y.requires_grad:
        y.register_hook(Tensor.contiguous)
