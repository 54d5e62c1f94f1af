"""Running statistics of batch norms, estimated again for weights that the training did not run with."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from p2pzoo.models.test_modes import in_training_mode

NORM_IMAGES = 500  # of the training split, from which the statistics of an average are estimated


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
