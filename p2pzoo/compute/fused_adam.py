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
# Of gradients that wait for their update in the backward pass: one call of the kernel for each weight takes longer.
PENDING_BYTES = 16 << 20
MANY_STEPS = 2.0**40  # 1 - beta ** MANY_STEPS is 1 for every beta


class Dense:
    """Mixin: state and parameters keep their shapes and memory formats; only the kernel gets permuted views.

    torch's step collects the tensors of all parameters again in each step. Here it is done once for each (`_Plan`).
    """

    decoupled_weight_decay = False  # of the class, also where torch has no such option

    def allocate_moments(self: Any) -> None:
        """Create the moments of the parameters that learn: among the activations of a step they would leave holes."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    self._plan(parameter, group["amsgrad"])

    def step(self: Any, closure: Any = None) -> None:
        if closure is not None:
            raise ValueError("this optimizer takes no closure")
        for group in self.param_groups:
            self._update([parameter for parameter in group["params"] if parameter.grad is not None], group)

    def step_in_backward(self: Any, loss: Tensor) -> None:
        """Compute the gradients of a loss and take a step: `loss.backward()`, `step()` and `zero_grad()` in one.

        Parameters are updated as soon as PENDING_BYTES of gradients are there, which are freed: all gradients together
        are never in memory. Raises RuntimeError if the backward pass uses a parameter after its update, or gives it a
        second gradient.
        """
        groups = {p: group for group in self.param_groups for p in group["params"] if p.requires_grad}
        pending: dict[Tensor, None] = {}  # in the order of their gradients
        updated: set[Tensor] = set()

        def update_pending() -> None:
            for group in self.param_groups:
                self._update([parameter for parameter in pending if groups[parameter] is group], group)
            for parameter in pending:
                parameter.grad = None
                torch.autograd.graph.increment_version(parameter)  # the kernel does not: torch raises if it is used now
            updated.update(pending)
            pending.clear()

        def receive(parameter: Tensor) -> None:
            if parameter in updated:
                raise RuntimeError(
                    "a weight got two gradients in one backward pass (reentrant activation checkpointing): "
                    "set [compute] fused_adam = false"
                )
            pending[parameter] = None
            if sum(each.nbytes for each in pending) > PENDING_BYTES:
                update_pending()

        hooks = [parameter.register_post_accumulate_grad_hook(receive) for parameter in groups]
        try:
            loss.backward()
        finally:
            for hook in hooks:
                hook.remove()
        update_pending()

    @torch.no_grad()
    def _update(self: Any, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters of a group, which have gradients."""
        if not parameters:
            return
        plans = [self._plan(parameter, group["amsgrad"]) for parameter in parameters]
        grads = []
        for parameter, plan in zip(parameters, plans, strict=True):
            assert parameter.grad is not None
            grad = _match_strides(parameter, parameter.grad)
            grads.append(_permute(grad) if plan.is_permuted else grad)
        counts, found_inf = [plan.count for plan in plans], getattr(self, "found_inf", None)
        torch._foreach_add_(counts, 1)
        kernel: Any = torch._fused_adamw_ if self.decoupled_weight_decay else torch._fused_adam_
        beta1, beta2 = group["betas"]
        moments = [*map(list, zip(*(plan.moments for plan in plans), strict=True))]
        kernel(
            [plan.weight for plan in plans], grads, *moments, *([] if group["amsgrad"] else [[]]), counts,
            amsgrad=group["amsgrad"], lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"],
            eps=group["eps"], maximize=group["maximize"], grad_scale=getattr(self, "grad_scale", None),
            found_inf=found_inf,
        )  # fmt: skip
        if found_inf is not None:  # 1 if the loss scaler skips this step, else 0
            torch._foreach_sub_(counts, [found_inf] * len(counts))

    def _plan(self: Any, parameter: Tensor, amsgrad: bool) -> _Plan:
        plans: dict[Tensor, _Plan] = self.__dict__.setdefault("_plans", {})
        plan = plans.get(parameter)
        if plan is None or not plan.fits(parameter, self.state[parameter]):
            plan = plans[parameter] = _make_plan(parameter, self.state[parameter], amsgrad)
        return plan


class DenseAdam(Dense, without_dynamo(torch.optim.Adam)): ...  # type: ignore[misc]


class DenseAdamW(Dense, without_dynamo(torch.optim.AdamW)):  # type: ignore[misc]
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
    """What the kernel gets in every step for a parameter.

    weight, moments  views with the strides that the kernel needs; two moments, or three with amsgrad
    count            number of steps
    moment           first moment in the optimizer's state, from which this was made
    """

    is_permuted: bool
    weight: Tensor
    moments: list[Tensor]
    count: Tensor
    moment: Tensor

    def fits(self, parameter: Tensor, state: Mapping[str, Any]) -> bool:
        """Whether the parameter is in the same memory and has the same state."""
        return (
            parameter.data_ptr() == self.weight.data_ptr()
            and state.get("exp_avg") is self.moment
            and state.get("step") is self.count
        )


def _make_plan(parameter: Tensor, state: dict[str, Any], amsgrad: bool) -> _Plan:
    """The plan of a parameter. Creates its state as torch's first step does if there is none."""
    names = _MOMENTS if amsgrad else _MOMENTS[:2]
    state.setdefault("step", torch.zeros((), dtype=torch.float32))
    for name in names:
        moment = state.get(name)
        state[name] = torch.zeros_like(parameter) if moment is None else _match_strides(parameter, moment)
    is_permuted = _is_channels_last(parameter)
    tensors = [parameter.detach(), *(state[name] for name in names)]
    weight, *moments = [_permute(tensor) if is_permuted else tensor for tensor in tensors]
    return _Plan(is_permuted, weight, moments, state["step"], state["exp_avg"])


def _permute(channels_last: Tensor) -> Tensor:
    """A view that is contiguous."""
    return channels_last.permute(0, 2, 3, 1)


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
