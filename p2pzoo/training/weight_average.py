"""The moving average of G's weights over the training steps (EMA), which is evaluated and saved in place of G."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from p2pzoo.utils.external_weights import own_parameters, without_external


class WeightAverage:
    """After each step: average ← decay · average + (1 - decay) · network; buffers are copied.

    All weights are updated in one call: in a loop over a U-Net, Python would take longer than a GPU for the whole step.

    average, network  two networks of the same classes and sizes; their tensors must be the same objects in all steps.
                      External weights, which never change, are left as they are
    decay             0 to 1

    >>> average, network = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> _ = nn.init.constant_(average.weight, 0.0), nn.init.constant_(network.weight, 1.0)
    >>> WeightAverage(average, network, decay=0.75).update()
    >>> average.weight.item()
    0.25
    """

    def __init__(self, average: nn.Module, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self._means: list[Tensor] = [*own_parameters(average).values()]
        self._weights: list[Tensor] = [*own_parameters(network).values()]
        buffers = (without_external(each, dict(each.named_buffers())).values() for each in (average, network))
        pairs = zip(*buffers, strict=True)
        by_dtype = sorted(pairs, key=lambda pair: str(pair[0].dtype))  # one call copies tensors of one dtype
        self._copies: list[tuple[list[Tensor], list[Tensor]]] = [
            ([copy for copy, _ in group], [buffer for _, buffer in group])
            for group in (list(same) for _, same in itertools.groupby(by_dtype, key=lambda pair: pair[0].dtype))
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Add the network's weights of now to the average."""
        torch._foreach_lerp_(self._means, self._weights, 1 - self._decay)
        for copies, buffers in self._copies:
            torch._foreach_copy_(copies, buffers)
