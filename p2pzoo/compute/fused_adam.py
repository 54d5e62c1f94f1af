"""Adam and AdamW whose fused CPU kernel gets channels-last weights as contiguous views.

torch's fused kernels on a CPU need contiguous tensors, and copy all others before and after each step: for the
54 million weights of a U-Net in channels-last memory this takes seven times as long as the step itself. A permuted view
of the same memory is contiguous, and Adam does not depend on the order of the weights.

The kernels also accept weights, gradients and moments with different strides, and silently combine the wrong elements
(torch 2.14). Here all of them get the strides of the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class _Dense:
    """Mixin: state and parameters keep their shapes and memory formats; only the kernel gets permuted views."""

    def _init_group(self: Any, group: Any, params: Any, grads: Any, *lists: Any) -> Any:
        has_complex = super()._init_group(group, params, grads, *lists)  # type: ignore[misc]
        moments = dict(zip(_MOMENTS if group["amsgrad"] else _MOMENTS[:2], lists, strict=False))
        for i, parameter in enumerate(params):
            grads[i] = _match_strides(parameter, grads[i])
            for name, tensors in moments.items():
                tensors[i] = self.state[parameter][name] = _match_strides(parameter, tensors[i])
            if _is_channels_last(parameter):
                for tensors in (params, grads, *moments.values()):
                    tensors[i] = tensors[i].permute(0, 2, 3, 1)
        return has_complex


class DenseAdam(_Dense, torch.optim.Adam): ...


class DenseAdamW(_Dense, torch.optim.AdamW): ...


DENSE_OPTIMIZERS = {
    "Adam": DenseAdam,
    "AdamW": DenseAdamW,
}  # the optimizers of torch with a fused CPU kernel that p2pzoo uses


def _match_strides(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Return the tensor itself if its memory order is that of the parameter, else a copy in that order."""
    if tensor.stride() == parameter.stride():
        return tensor
    strides = zip(parameter.shape, parameter.stride(), tensor.stride(), strict=True)
    if all(wanted == actual for side, wanted, actual in strides if side > 1):
        return tensor
    return torch.empty_like(parameter, requires_grad=False).copy_(tensor)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
