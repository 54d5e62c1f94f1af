"""Adam and AdamW whose fused CPU kernel gets channels-last weights as contiguous views.

torch's fused kernels on a CPU need contiguous tensors, and copy all others before and after each step: for the
54 million weights of a U-Net in channels-last memory this takes seven times as long as the step itself. A permuted view
of the same memory is contiguous, and Adam does not depend on the order of the weights.

The kernels also accept weights, gradients and moments with different strides, and silently combine the wrong elements
(torch 2.14). Here all of them get the strides of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from p2pzoo.utils.light_optimizers import without_dynamo

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
MANY_STEPS = 2.0**40  # 1 - beta ** MANY_STEPS is 1 for every beta


class _Dense:
    """Mixin: state and parameters keep their shapes and memory formats; only the kernel gets permuted views.

    torch's step collects the tensors of all parameters anew in each step, and counts the steps of each parameter in a
    tensor of its own: 5 calls of torch per parameter. Here both are done once (`_Plan`). The first step is torch's: it
    creates the state.
    """

    decoupled_weight_decay = False  # of the class, also where torch has no such option

    def step(self: Any, closure: Any = None) -> Any:
        plans = [self._plan(index, group) for index, group in enumerate(self.param_groups)]
        is_scaled = getattr(self, "found_inf", None) is not None  # by the loss scaler, which torch's step obeys
        if closure is not None or None in plans or is_scaled:
            return super().step(closure)  # type: ignore[misc]
        for plan, group in zip(plans, self.param_groups, strict=True):
            self._take_step(plan, group)
        return None

    @torch.no_grad()
    def _take_step(self, plan: _Plan, group: dict[str, Any]) -> None:
        grads = [_match_strides(p, p.grad) for p in plan.parameters if p.grad is not None]
        plan.counts.add_(1)
        kernel: Any = torch._fused_adamw_ if self.decoupled_weight_decay else torch._fused_adam_
        beta1, beta2 = group["betas"]
        kernel(
            plan.weights, _permute(grads, plan.is_permuted), *plan.moments, plan.steps,
            amsgrad=group["amsgrad"], lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"],
            eps=group["eps"], maximize=group["maximize"], grad_scale=None, found_inf=None,
        )  # fmt: skip

    def _plan(self: Any, index: int, group: dict[str, Any]) -> _Plan | None:
        """The plan of the parameters that have gradients now; None if one of them has no state yet."""
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        plans = self.__dict__.setdefault("_plans", {})
        plan: _Plan | None = plans.get(index)
        if plan is None or not plan.fits(parameters, self.state):
            plan = plans[index] = _make_plan(parameters, self.state, group["amsgrad"])
        return plan

    def _init_group(self: Any, group: Any, params: Any, grads: Any, *lists: Any) -> Any:
        has_complex = super()._init_group(group, params, grads, *lists)  # type: ignore[misc]
        moments = dict(zip(_MOMENTS if group["amsgrad"] else _MOMENTS[:2], lists, strict=False))
        is_permuted = [_is_channels_last(parameter) for parameter in params]
        for i, parameter in enumerate(params):
            grads[i] = _match_strides(parameter, grads[i])
            for name, tensors in moments.items():
                tensors[i] = self.state[parameter][name] = _match_strides(parameter, tensors[i])
        for tensors in (params, grads, *moments.values()):
            tensors[:] = _permute(tensors, is_permuted)
        return has_complex


class DenseAdam(_Dense, without_dynamo(torch.optim.Adam)): ...  # type: ignore[misc]


class DenseAdamW(_Dense, without_dynamo(torch.optim.AdamW)):  # type: ignore[misc]
    decoupled_weight_decay = True


DENSE_OPTIMIZERS = {
    "Adam": DenseAdam,
    "AdamW": DenseAdamW,
}  # the optimizers of torch with a fused CPU kernel that p2pzoo uses


class RecordableEpsAdam(without_dynamo(torch.optim.Adam)):  # type: ignore[misc]
    """Fused Adam that adds eps before the bias correction (arXiv:1412.6980 §2, as Torch7 does), for CUDA graphs.

        w ← w - lr · √(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / (√v + eps)

    torch's kernel adds eps after the correction, so eps would have to change in each step, and a graph repeats the
    numbers of Python. Here the kernel gets so large a count of steps that its own correction is 1, and a learning rate
    that holds the correction: both are tensors. The state has the true count.

    >>> weight = torch.nn.Parameter(torch.ones(()))
    >>> optimizer = RecordableEpsAdam([weight], lr=torch.tensor(0.1), fused=True)
    """

    def step(self, closure: Any = None) -> Any:
        rates = [group["lr"] for group in self.param_groups]
        try:
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate

    def _init_group(self, group: Any, params: Any, grads: Any, *lists: Any) -> Any:
        has_complex = super()._init_group(group, params, grads, *lists)
        *_, counts = lists
        if counts:
            torch._foreach_add_(counts, 1)
            beta1, beta2 = group["betas"]
            t = counts[0].double()  # in float32 1 - 0.999 has an error of 1e-5
            group["lr"] = (group["lr"] * ((1 - beta2**t).sqrt() / (1 - beta1**t))).float()
            skips = getattr(self, "found_inf", None)  # 1 if the loss scaler skips this step, else 0
            if skips is not None:
                torch._foreach_sub_(counts, [skips] * len(counts))
            counts[:] = self._many_steps(len(counts), counts[0].device)
        return has_complex

    def _many_steps(self, length: int, device: torch.device) -> list[Tensor]:
        """Counts for the kernel, which adds 1 to each: float32 rounds that away."""
        kept: dict[int, list[Tensor]] = self.__dict__.setdefault("_kept_many_steps", {})
        if length not in kept:
            kept[length] = list(torch.full((length,), MANY_STEPS, device=device).unbind())
        return kept[length]


@dataclass(frozen=True)
class _Plan:
    """What the kernel gets in every step, for the parameters of one group that have gradients.

    weights, moments  views with the strides that the kernel needs. `moments` are the lists of the two or three moments,
                      the third is empty without amsgrad
    counts            number of steps of each parameter; `steps` are its elements, and the state refers to them
    states            (first moment, number of steps) in the optimizer's state, from which this was made
    """

    parameters: list[Tensor]
    is_permuted: list[bool]
    weights: list[Tensor]
    moments: list[list[Tensor]]
    counts: Tensor
    steps: list[Tensor]
    states: list[tuple[Tensor, Tensor]]

    def fits(self, parameters: list[Tensor], state: Mapping[Tensor, Any]) -> bool:
        """Whether these are its parameters, in the same memory, with the same state."""
        return len(parameters) == len(self.parameters) and all(
            now is parameter
            and now.data_ptr() == weight.data_ptr()
            and state[now].get("exp_avg") is moment
            and state[now].get("step") is step
            for now, parameter, weight, (moment, step) in zip(
                parameters, self.parameters, self.weights, self.states, strict=True
            )
        )


def _make_plan(parameters: list[Tensor], state: Mapping[Tensor, Any], amsgrad: bool) -> _Plan | None:
    names = _MOMENTS if amsgrad else _MOMENTS[:2]
    kinds = {(parameter.dtype, parameter.device.type) for parameter in parameters}
    if len(kinds) != 1 or not all(name in state[parameter] for parameter in parameters for name in names):
        return None
    is_permuted = [_is_channels_last(parameter) for parameter in parameters]
    for parameter in parameters:
        for name in names:
            state[parameter][name] = _match_strides(parameter, state[parameter][name])
    counts = torch.stack([state[parameter]["step"] for parameter in parameters])
    steps = list(counts.unbind())
    for parameter, step in zip(parameters, steps, strict=True):
        state[parameter]["step"] = step
    moments = [[state[parameter][name] for parameter in parameters] for name in names]
    views = [_permute(tensors, is_permuted) for tensors in moments]
    states = list(zip(moments[0], steps, strict=True))
    weights = _permute([parameter.detach() for parameter in parameters], is_permuted)
    return _Plan(parameters, is_permuted, weights, [*views, *([] if amsgrad else [[]])], counts, steps, states)


def _permute(tensors: list[Tensor], is_permuted: list[bool]) -> list[Tensor]:
    """Views of the channels-last ones that are contiguous."""
    both = zip(tensors, is_permuted, strict=True)
    return [tensor.permute(0, 2, 3, 1) if permuted else tensor for tensor, permuted in both]


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
