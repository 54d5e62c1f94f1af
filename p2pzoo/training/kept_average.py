"""The average of G's weights over the training, which every run keeps beside G and can be evaluated with.

A last iterate at a constant learning rate is one sample of an oscillation; an average is not (Yazıcı et al. 2019,
arXiv:1806.04498). It changes nothing in training, and is not part of a run's id. `[train] ema` is another average, and
replaces the saved G.

    average ← d · average + (1 - d) · G,  d = min(DECAY ** images since the last update, (1 + n) / (10 + n))

after n images. The second term forgets the initial weights. An update reads and writes all weights, as Adam does,
so there is one for every IMAGES_BETWEEN images. What is read between two of them has one more, which the run does not
keep.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from p2pzoo.models import safetensors_io
from p2pzoo.models.test_modes import buffers_restored
from p2pzoo.utils.external_weights import own_parameters

DECAY = 0.999  # per image
IMAGES_BETWEEN = 8  # between two updates


class KeptAverage:
    """The average of a network's weights.

    network      whose parameters are the same tensors in all steps
    step_images  images of a training step

    >>> network = nn.Linear(1, 1)
    >>> average = KeptAverage(network, step_images=8)
    >>> _ = nn.init.constant_(network.weight, 1.0)
    >>> average.after_step(1)
    >>> with average.in_place(1):
    ...     network(torch.zeros(1, 1)).shape
    torch.Size([1, 1])
    """

    def __init__(self, network: nn.Module, step_images: int) -> None:
        self._network, self._step_images = network, step_images
        self._steps_between = max(1, IMAGES_BETWEEN // step_images)
        self._weights = own_parameters(network)
        self._means = {name: weight.detach().clone() for name, weight in self._weights.items()}

    def after_step(self, step: int) -> None:
        """Update the average, if it is due after this step, counted from 1."""
        if step % self._steps_between == 0:
            self._update(self._means, step, self._steps_between)

    def _update(self, means: Mapping[str, Tensor], step: int, steps: int) -> None:
        """Add the weights after `step` to means that were last updated `steps` before."""
        images, since = step * self._step_images, steps * self._step_images
        decay = min(DECAY**since, (1 + images) / (10 + images))
        with torch.no_grad():
            torch._foreach_lerp_([*means.values()], [*self._weights.values()], 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """The average after the last update, by the names of the network's parameters."""
        return self._means

    def load(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Restore what `tensors` returned. Without any, as in an older checkpoint, begin with the weights of now."""
        safetensors_io.copy_into(self._means, tensors or {n: w.detach() for n, w in self._weights.items()}, where)

    @contextlib.contextmanager
    def in_place(self, step: int) -> Iterator[nn.Module]:
        """The network with the average after this step in place of its weights, also between two updates, which stay
        as they are; afterwards weights and buffers are as before, to the bit and in the same memory."""
        means = self._means
        if steps := step % self._steps_between:
            means = {name: mean.clone() for name, mean in means.items()}
            self._update(means, step, steps)
        with buffers_restored(self._network):
            self._swap(means)
            try:
                yield self._network
            finally:
                self._swap(means)

    def _swap(self, means: dict[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.data, means[name] = means[name], weight.data
