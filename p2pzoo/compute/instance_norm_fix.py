"""Instance norm whose gradient is right whatever the memory format of what arrives there.

torch's nn.InstanceNorm2d on a CPU, given one image, takes a channels-last gradient for a contiguous one and returns
values that have nothing to do with the right ones (seen on torch 2.14). Convolutions return such gradients where
weights are channels-last, and at batch 1, where an activation does not happen to lay them out anew, they arrive.

Imports torch only.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def mend_instance_norms(module: nn.Module) -> None:
    """From now on its instance norms see gradients laid as their outputs are. Parameters and values stay the same."""
    for part in module.modules():
        if isinstance(part, nn.InstanceNorm2d) and _mended not in part._forward_hooks.values():
            part.register_forward_hook(_mended)


def _mended(_norm: nn.Module, _inputs: Any, y: Tensor) -> None:
    if y.requires_grad:
        y.register_hook(Tensor.contiguous)
