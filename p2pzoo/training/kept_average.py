"""The average of G's weights over the training, which every run keeps beside G and can be evaluated with.

A last iterate at a constant learning rate is one sample of an oscillation; an average is not (Yazıcı et al. 2019,
arXiv:1806.04498). It changes nothing in training, and is not part of a run's id. `[train] ema` is another average, and
replaces the saved G.

    average ← d · average + (1 - d) · G,  d = min(DECAY ** images since the last update, (1 + n) / (10 + n))

after n images. The second term forgets the initial weights. An update reads and writes all weights, as Adam does,
so there is one for every IMAGES_BETWEEN images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from p2pzoo.models import safetensors_io
from p2pzoo.models.test_modes import in_training_mode
from p2pzoo.utils.external_weights import own_parameters

DECAY = 0.999  # per image
IMAGES_BETWEEN = 8  # between two updates
NORM_IMAGES = 500  # of the training split, from which the statistics of batch norms are estimated again


class KeptAverage:
    """The average of a network's weights.

    network      whose parameters are the same tensors in all steps
    step_images  images of a training step

    >>> network = nn.Linear(1, 1)
    >>> average = KeptAverage(network, step_images=8)
    >>> _ = nn.init.constant_(network.weight, 1.0)
    >>> average.after_step(1)
    >>> with average.in_place():
    ...     network(torch.zeros(1, 1)).shape
    torch.Size([1, 1])
    """

    def __init__(self, network: nn.Module, step_images: int) -> None:
        self._network, self._step_images = network, step_images
        self._steps_between = max(1, IMAGES_BETWEEN // step_images)
        self._weights = own_parameters(network)
        self._means = {name: weight.detach().clone() for name, weight in self._weights.items()}

    def after_step(self, step: int, *, is_read: bool = False) -> None:
        """Update the average, if it is due after this step, counted from 1.

        is_read  whether the average is read now, so that it is due in any case
        """
        steps = step % self._steps_between
        if steps and not is_read:
            return
        images, since = step * self._step_images, (steps or self._steps_between) * self._step_images
        decay = min(DECAY**since, (1 + images) / (10 + images))
        with torch.no_grad():
            torch._foreach_lerp_([*self._means.values()], [*self._weights.values()], 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """The average, by the names of the network's parameters."""
        return self._means

    def load(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Restore what `tensors` returned. Without any, as in an older checkpoint, begin with the weights of now."""
        safetensors_io.copy_into(self._means, tensors or {n: w.detach() for n, w in self._weights.items()}, where)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[nn.Module]:
        """The network with the average in place of its weights; afterwards weights and buffers are as before, to the
        bit and in the same memory."""
        buffers = [(buffer, buffer.clone()) for buffer in self._network.buffers()]
        self._swap()
        try:
            yield self._network
        finally:
            self._swap()
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)

    def _swap(self) -> None:
        for name, weight in self._weights.items():
            weight.data, self._means[name] = self._means[name], weight.data


@torch.no_grad()
def estimate_norms(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of all batch norms to their means over these batches of x, (B, C, H, W) in [-1, 1].

    Those that were running along belong to other weights. Dropout is on, as in training.
    """
    with in_training_mode(network, training=True):  # a network may keep some in eval mode, with fixed statistics
        parts = [part for part in network.modules() if part.training]
    norms = [part for part in parts if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    try:
        with in_training_mode(network, training=True):
            for number, x in enumerate(batches, 1):
                for norm in norms:
                    norm.momentum = 1 / number  # the mean so far. momentum = None would wait for the device
                network(x)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
