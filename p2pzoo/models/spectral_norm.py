"""Spectral normalisation (Miyato et al. 2018, arXiv:1802.05957) of any network: weights W / σ(W), of spectral norm 1.

σ(W) is uᵀWv. u and v follow the first singular vectors of W by one power iteration in each forward pass in training,
as in the authors' code. So D judges real and fake images with slightly different weights, and the two cannot share a
forward pass (see compute/batched_discriminator.py). torch computes all this; this module chooses the layers.

u and v are buffers, so a checkpoint holds them. A model file holds the weights that the last u and v give
(`plain_state_dict`), so that it loads like any other.

Imports torch only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

ADDED_TENSORS = "parametrizations.weight."  # in the names of the tensors of a normalised layer
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


class FullPrecisionSpectralNorm(nn.Module):
    """torch's spectral norm, computed in the weight's own precision also under autocast."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of  # the name `of` is part of tensor names in checkpoints: keep it

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            normed: Tensor = self.of(weight)
        return normed

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def apply_spectral_norm(network: nn.Module) -> None:
    """Normalise the weights of convolutions and linear layers from now on, in place.

    Layers with frozen weights, and those with a parametrization of their own (such as a spectral norm), stay as they
    are. u and v are drawn from torch's default generator, followed by 15 power iterations. Raises ValueError for a
    layer whose weights are all 0: no factor brings them to norm 1.

    >>> layer = nn.Linear(4, 3)
    >>> network = nn.Sequential(layer)
    >>> apply_spectral_norm(network)
    >>> round(torch.linalg.matrix_norm(layer.weight, 2).item(), 1)
    1.0
    """
    for name, layer in list(network.named_modules()):
        if not isinstance(layer, _LAYERS) or "weight" not in layer._parameters or not layer.weight.requires_grad:
            continue
        if not layer.weight.any():
            raise ValueError(f"the weights of its layer {name} are all 0: they have no spectral norm to divide by")
        spectral_norm(layer)
        norms: Any = layer.parametrizations.weight  # type: ignore[union-attr]
        norms[0] = FullPrecisionSpectralNorm(norms[0])


def plain_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """The state dict, with normalised weights in place of the tensors that `apply_spectral_norm` added."""
    tensors = dict(network.state_dict())
    for name, layer in network.named_modules():
        if not parametrize.is_parametrized(layer, "weight"):
            continue
        [norm, *_] = layer.parametrizations.weight
        if isinstance(norm, FullPrecisionSpectralNorm):
            prefix = f"{name}." if name else ""
            tensors = {key: value for key, value in tensors.items() if not key.startswith(prefix + ADDED_TENSORS)}
            tensors[f"{prefix}weight"] = _read_weight(layer, norm)
    return tensors


@torch.no_grad()
def _read_weight(layer: Any, norm: FullPrecisionSpectralNorm) -> Tensor:
    """The normalised weight, without a power iteration."""
    was_training = norm.of.training
    norm.of.eval()
    try:
        weight: Tensor = layer.weight
    finally:
        norm.of.train(was_training)
    return weight
