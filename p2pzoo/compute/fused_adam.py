"""The optimizers as torch has them, by their names; Adam sees channels-last weights as the dense memory that they are.

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

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class _Dense:
    """State and parameters keep their shapes and memory formats; only the kernel sees them permuted."""

    def _init_group(self: Any, group: Any, params: Any, grads: Any, *lists: Any) -> Any:
        has_complex = super()._init_group(group, params, grads, *lists)  # type: ignore[misc]
        moments = dict(zip(MOMENTS if group["amsgrad"] else MOMENTS[:2], lists, strict=False))
        for i, parameter in enumerate(params):
            grads[i] = _laid_as(parameter, grads[i])
            for name, each in moments.items():
                each[i] = self.state[parameter][name] = _laid_as(parameter, each[i])
            if _channels_last(parameter):
                for tensors in (params, grads, *moments.values()):
                    tensors[i] = tensors[i].permute(0, 2, 3, 1)
        return has_complex


class DenseAdam(_Dense, torch.optim.Adam): ...


class DenseAdamW(_Dense, torch.optim.AdamW): ...


DENSE = {"Adam": DenseAdam, "AdamW": DenseAdamW}  # whose kernels are fused


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
