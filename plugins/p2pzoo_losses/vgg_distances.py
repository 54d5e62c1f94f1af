"""LPIPS and DISTS as losses of G: the distances of `p2pzoo_metrics.vgg_distances` between ŷ and y."""

from pathlib import Path

from p2pzoo_metrics.vgg_distances import SMALLEST_SIDE, DISTSDistance, LPIPSDistance
from torch import Tensor, nn

from p2pzoo.plugin import StepOutputs


class _DistanceLoss(nn.Module):
    """The mean of a distance over the images of a batch. Its network is frozen, and not saved with a run."""

    side = "generator"
    minimum = 0.0

    def __init__(self, name: str, distance: nn.Module, out_channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        if out_channels not in (1, 3):
            raise ValueError(f"{name} needs grey or RGB images, 1 or 3 channels, not {out_channels}")
        if min(size) < SMALLEST_SIDE:
            raise ValueError(f"{name} needs sides of at least {SMALLEST_SIDE} px, not {size[0]}×{size[1]}")
        self.distance = distance

    def forward(self, out: StepOutputs) -> Tensor:
        distances: Tensor = self.distance(out.y_hat, out.y)
        return distances.mean()


class LPIPS(_DistanceLoss):
    """Zhang et al. 2018 (arXiv:1801.03924, Eq. 1) with VGG-16 and learned weights, v0.1: ≥ 0, and 0 if ŷ = y.

    Images keep their size; grey images are converted to RGB. The numbers are those of the package lpips, with
    lpips.LPIPS(net="vgg"). The metric `lpips` rounds images to 8 bit first.

    weights   a copy of lpips/weights/v0.1/vgg.pth; unset: that of the installed package (pip install --no-deps lpips)
    vgg16     VGG-16's weights, as torchvision's or timm's state dict; unset: vgg16-397923af.pth in torch hub's folder
    download  let timm download VGG-16's weights if no file is given

    Raises UserError if weights are missing or do not fit, and ValueError for images of other channels or of less than
    16 px.
    """

    def __init__(
        self,
        out_channels: int,
        size: tuple[int, int],
        *,
        weights: Path | None = None,
        vgg16: Path | None = None,
        download: bool = False,
    ) -> None:
        super().__init__("lpips", LPIPSDistance(weights, vgg16, download=download), out_channels, size)


class DISTS(_DistanceLoss):
    """Ding et al. 2020 (arXiv:2004.07728, §3): texture and structure in the features of VGG-16; 0 if ŷ = y.

    It tolerates another instance of a texture, as grass for grass. Images keep their size; grey images are converted to
    RGB. The numbers are those of the package DISTS_pytorch.

    weights   a copy of DISTS_pytorch/weights.pt; unset: that of the installed package (pip install --no-deps
              dists-pytorch)
    vgg16     VGG-16's weights, as torchvision's or timm's state dict; unset: vgg16-397923af.pth in torch hub's folder
    download  let timm download VGG-16's weights if no file is given

    Raises UserError if weights are missing or do not fit, and ValueError for images of other channels or of less than
    16 px.
    """

    def __init__(
        self,
        out_channels: int,
        size: tuple[int, int],
        *,
        weights: Path | None = None,
        vgg16: Path | None = None,
        download: bool = False,
    ) -> None:
        super().__init__("dists", DISTSDistance(weights, vgg16, download=download), out_channels, size)
