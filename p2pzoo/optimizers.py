"""The optimizers as torch has them, seeing channels-last weights as the dense memory that they are.

torch's fused kernels on a CPU take contiguous tensors, and copy every other one before and after each step: for the
54 million weights of a U-Net in channels-last memory, seven times the time of the step itself. A permuted view of the
same memory is contiguous, and Adam does not care about the order of the weights.

They also take weights, gradients and moments that lie in different orders, and mix them up without a word (torch 2.14);
here all of them are in the order of the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class DenseAdam(torch.optim.Adam):
    """Adam. State and parameters keep their shapes and memory formats; only the kernel sees them permuted."""

    def _init_group(self, group: Any, params: Any, grads: Any, *lists: Any) -> Any:
        has_complex = super()._init_group(group, params, grads, *lists)  # type: ignore[no-untyped-call]
        for i, parameter in enumerate(params):
            grads[i] = _laid_as(parameter, grads[i])
            for name, moments in zip(("exp_avg", "exp_avg_sq"), lists, strict=False):
                moments[i] = self.state[parameter][name] = _laid_as(parameter, moments[i])
            if _channels_last(parameter):
                for tensors in (params, grads, *lists[:2]):
                    tensors[i] = tensors[i].permute(0, 2, 3, 1)
        return has_complex


def _laid_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The tensor itself where its values lie in the parameter's order, else a copy where they do."""
    if tensor.stride() == parameter.stride():
        return tensor
    strides = zip(parameter.shape, parameter.stride(), tensor.stride(), strict=True)
    if all(its == own for side, its, own in strides if side > 1):
        return tensor
    return torch.empty_like(parameter, requires_grad=False).copy_(tensor)


def _channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
