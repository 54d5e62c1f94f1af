"""Spectral normalisation (Miyato et al. 2018, arXiv:1802.05957) of any network: weights W / σ(W), of spectral norm 1.

σ(W) is uᵀWv. u and v follow W's first singular vectors by one power iteration in each forward pass in training, as in
the authors' code, so D judges real images with slightly other weights than fake ones, and never both in one pass (see
speed/onepass.py). They are buffers: a checkpoint holds them. torch computes all that; this says for which layers.

A model file holds the weights that the last u and v give (`plain_state`), so that it loads as any other does.

Imports torch only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


class FullPrecision(nn.Module):
    """torch's spectral norm, computed in the weight's own precision whatever the layers around it are computed in."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            normed: Tensor = self.of(weight)
        return normed

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def normalise(network: nn.Module) -> None:
    """From now on its convolutions and linear layers have spectrally normalised weights, in place.

    Layers whose weights are frozen, or computed already, as by a spectral norm of the network's own, stay as they are.
    u and v are drawn from torch's generator, and 15 power iterations taken. Raises ValueError for a layer whose weights
    are all 0, which no factor brings to norm 1.
    """
    for name, layer in list(network.named_modules()):
        if not isinstance(layer, LAYERS) or "weight" not in layer._parameters or not layer.weight.requires_grad:
            continue
        if not layer.weight.any():
            raise ValueError(f"its layer {name} begins with weights of 0, which have no spectral norm to divide by")
        spectral_norm(layer)
        norms: Any = layer.parametrizations.weight  # type: ignore[union-attr]
        norms[0] = FullPrecision(norms[0])


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """The state_dict, with the weights as they are where `normalise` left what they are computed from."""
    tensors = dict(network.state_dict())
    for name, layer in network.named_modules():
        if not parametrize.is_parametrized(layer, "weight"):
            continue
        [norm, *_] = layer.parametrizations.weight
        if isinstance(norm, FullPrecision):
            of = f"{name}." if name else ""
            tensors = {
                key: value for key, value in tensors.items() if not key.startswith(f"{of}parametrizations.weight.")
            }
            tensors[f"{of}weight"] = _as_it_is(layer, norm)
    return tensors


@torch.no_grad()
def _as_it_is(layer: Any, norm: FullPrecision) -> Tensor:
    was = norm.of.training
    norm.of.eval()  # no power iteration
    try:
        weight: Tensor = layer.weight
    finally:
        norm.of.train(was)
    return weight
