"""`fid` and `lpips` with the networks that publications use, by torch-fidelity (extra p2pzoo[fidelity]). Imports torch.

torch-fidelity downloads missing weights without asking. Here they must already be in torch hub's folder, where
torch-fidelity looks too. For a missing file the error says what to download, and where to put it.
"""

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from p2pzoo.models.pickled_tensors import load_pickle
from p2pzoo.plugin import AddedLater, Batch, Dataset
from p2pzoo.utils.errors import UserError
from p2pzoo_metrics.distances import frechet_distance
from p2pzoo_metrics.levels import check_channels, to_levels

RELEASE = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
INCEPTION = f"{RELEASE}/weights-inception-2015-12-05-6726825d.pth"
LPIPS_HEADS = f"{RELEASE}/weights-vgg16-lpips.pth"
INCEPTION_SIDE = 299
VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"


class FID:
    """Fréchet Inception Distance (Heusel et al. 2017, arXiv:1706.08500): 0 or more, lower is better.

    The original Inception v3 (TensorFlow, 2015-12-05) with its 2048 pooled features. Images are RGB (UserError),
    rounded to 8 bit and resized to 299 px as TensorFlow 1 did. With as few images as earth's test split has, the number
    depends mostly on how many there are: compare runs on the same images only, never with a published number.

    protocol  how images become the network's input. "torch-fidelity": as above. "gan-compression": truncated to 8 bit,
              as that code does, and resized as torch does, without antialiasing. "mmgen": the same, of floats. The last
              two are those of published FIDs of pix2pix (README.md)

    Raises UserError if torch-fidelity or the weights are missing, or if the weights have another digest.
    """

    version = "1"
    better = "lower"
    minimum_images = 2048  # the number of features: the covariance of fewer images has no full rank

    def __init__(
        self,
        dataset: Dataset,
        *,
        protocol: Annotated[Literal["torch-fidelity", "gan-compression", "mmgen"], AddedLater] = "torch-fidelity",
    ) -> None:
        _require_torch_fidelity("fid")
        self._inputs = protocol
        path, digest = find_weights("fid", INCEPTION)
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self._network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
        self.protocol = {"network": "inception-v3 (2015-12-05), 2048 features", "weights": f"sha256:{digest}"}
        if protocol == "gan-compression":
            self.protocol["levels"] = "truncated"

    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"y_hat": (B, 2048), "y": (B, 2048)}: features, float32."""
        y = batch.y
        if self._inputs == "gan-compression":  # y as torchvision's ToTensor and Normalize give it, to the bit
            y = (to_levels(y) / 255 - 0.5) / 0.5
        return {"y_hat": self._features(y_hat), "y": self._features(y)}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """NaN with fewer than two images."""
        return {"value": frechet_distance(statistics["y_hat"], statistics["y"])}

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        check_channels((3,), images, "fid")
        self._network.to(images.device)
        if self._inputs == "torch-fidelity":
            rows = [self._network(image)[0] for image in _to_bytes(images)]
        else:
            unit = _truncate(images) / 255 if self._inputs == "gan-compression" else (images + 1) / 2
            rows = [self._features_of_input(image) for image in unit.float().split(1)]
        return _restore_nan(torch.cat(rows), images)

    def _features_of_input(self, image: Tensor) -> Tensor:
        """The features of (1, 3, H, W) in [0, 1], resized by torch.

        torch-fidelity takes bytes and resizes them itself. So its first layer gets this input in place of its own.
        """
        resized = F.interpolate(image, (INCEPTION_SIDE, INCEPTION_SIDE), mode="bilinear", align_corners=False)
        hook = self._network.Conv2d_1a_3x3.register_forward_pre_hook(lambda _layer, _inputs: (2 * resized - 1,))
        try:
            black = torch.zeros(1, 3, INCEPTION_SIDE, INCEPTION_SIDE, dtype=torch.uint8, device=image.device)
            features: Tensor = self._network(black)[0]
            return features
        finally:
            hook.remove()


class DISTS:
    """Deep image structure and texture similarity (Ding et al. 2020, arXiv:2004.07728): lower is better, 0 is equal.

    Images are grey or RGB (UserError), rounded to 8 bit, in their own size. See `DISTSDistance`.

    weights   a copy of DISTS_pytorch/weights.pt; unset: that of the installed package dists-pytorch
    vgg16     VGG-16's weights, as torchvision's or timm's state dict; unset: torchvision's in torch hub's folder
    download  let timm download VGG-16's weights if no file is given

    Raises UserError if weights are missing or do not fit.
    """

    version = "1"
    better = "lower"

    def __init__(
        self, dataset: Dataset, *, weights: Path | None = None, vgg16: Path | None = None, download: bool = False
    ) -> None:
        from p2pzoo_metrics.vgg_distances import DISTSDistance

        self._network = DISTSDistance(weights, vgg16, download=download)
        self.protocol = {"weights": self._network.weights_digest, "vgg16": self._network.vgg16_digest}

    @torch.no_grad()
    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"distance": (B,)}, float32."""
        check_channels((1, 3), y_hat, "dists")
        self._network.to(y_hat.device)
        levels = ((to_levels(images) / 127.5 - 1).split(1) for images in (y_hat, batch.y))
        return {"distance": torch.cat([self._network(*pair) for pair in zip(*levels, strict=True)])}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`value`: the mean over images."""
        return {"value": statistics["distance"].double().mean().item()}


class LPIPS:
    """Learned perceptual distance (Zhang et al. 2018, arXiv:1801.03924, v0.1) of VGG-16: lower is better, 0 is equal.

    Images are RGB (UserError), rounded to 8 bit, in their own size. Many publications report AlexNet's LPIPS, which is
    another number.

    Raises UserError if torch-fidelity or the weights are missing, or if the weights have another digest.
    """

    version = "1"
    better = "lower"

    def __init__(self, dataset: Dataset) -> None:
        _require_torch_fidelity("lpips")
        digests = [find_weights("lpips", url)[1] for url in (VGG16, LPIPS_HEADS)]
        from torch_fidelity.sample_similarity_lpips import SampleSimilarityLPIPS

        self._network = SampleSimilarityLPIPS("lpips")
        self.protocol = {"network": "vgg16, LPIPS v0.1", "weights": [f"sha256:{digest}" for digest in digests]}

    @torch.no_grad()
    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"distance": (B,)}, float32."""
        check_channels((3,), y_hat, "lpips")
        self._network.to(y_hat.device)
        pairs = zip(_to_bytes(y_hat), _to_bytes(batch.y), strict=True)
        return {"distance": _restore_nan(torch.cat([self._network(*pair).flatten() for pair in pairs]), y_hat)}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`value`: the mean over images."""
        return {"value": statistics["distance"].double().mean().item()}


def _require_torch_fidelity(metric: str) -> None:
    if importlib.util.find_spec("torch_fidelity") is None:
        raise UserError(f"{metric} needs torch-fidelity: pip install 'p2pzoo[fidelity]'")


def find_weights(metric: str, url: str, otherwise: str = "") -> tuple[Path, str]:
    """The weights file in torch hub's folder, and its SHA-256.

    otherwise  what else to do if there is none, for the message

    Raises UserError if it is missing or damaged, or a pickle of more than tensors: torch-fidelity would load that with
    weights_only=False.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        raise UserError(
            f"{metric} needs weights, and p2pzoo does not download them: put {url} into {path.parent}{otherwise}"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    prefix = re.search(r"-([0-9a-f]{8})\.pth$", path.name)  # torch hub's names end with the start of the digest
    if prefix and not digest.startswith(prefix[1]):
        raise UserError(f"{path} is damaged, or another file: put {url} there again")
    try:
        load_pickle(path)
    except Exception as error:
        raise UserError(f"{path}: cannot be read safely as weights: put {url} there again") from error
    return path, digest


def _to_bytes(images: Tensor) -> tuple[Tensor, ...]:
    """Each image as (1, 3, H, W) uint8."""
    return to_levels(images).nan_to_num().to(torch.uint8).split(1)


def _truncate(images: Tensor) -> Tensor:
    """[-1, 1] -> whole numbers 0 to 255, float32, as utils/util.py of mit-han-lab/gan-compression (tensor2im) has them.

    In float32 this lowers about a quarter of the levels that 8-bit images have, by one.
    """
    return ((images.float() + 1) / 2 * 255).clamp(0, 255).floor()


def _restore_nan(rows: Tensor, images: Tensor) -> Tensor:
    """NaN in the rows of images with a NaN: their bytes cannot show it."""
    rows[images.isnan().flatten(1).any(1)] = float("nan")
    return rows
