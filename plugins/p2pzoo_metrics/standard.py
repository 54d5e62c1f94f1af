"""`fid` and `lpips` with the networks everyone uses, by torch-fidelity (extra p2pzoo[fidelity]). Imports torch.

torch-fidelity downloads missing weights without asking. Here they must lie in torch hub's folder beforehand, where it
looks too: what is missing is an error that says from where to where it is to be copied.
"""

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from p2pzoo.plugin import Batch, Dataset
from p2pzoo.utils.errors import UserError
from p2pzoo_metrics.distances import frechet_distance
from p2pzoo_metrics.levels import levels, refuse_unless

RELEASE = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
INCEPTION = f"{RELEASE}/weights-inception-2015-12-05-6726825d.pth"
LPIPS_HEADS = f"{RELEASE}/weights-vgg16-lpips.pth"
VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"


class FID:
    """Fréchet Inception Distance (Heusel et al. 2017, arXiv:1706.08500): lower is better, from 0 on.

    The original Inception v3 (TensorFlow, 2015-12-05), its 2048 pooled features, images RGB (UserError), rounded to
    8 bit and resized to 299 px as TensorFlow 1 did. Of as few images as a test split of earth has it measures mostly
    how many they are: compare it between runs on the same images, never with a published one.

    Raises UserError where torch-fidelity or the weights are missing, or the weights are others.
    """

    version = "1"
    better = "lower"

    def __init__(self, dataset: Dataset) -> None:
        _refuse_without_torch_fidelity("fid")
        path, digest = _at_hand("fid", INCEPTION)
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self._network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
        self.protocol = {"network": "inception-v3 (2015-12-05), 2048 features", "weights": f"sha256:{digest}"}

    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"y_hat": (B, 2048), "y": (B, 2048)}: features, float32."""
        return {"y_hat": self._features(y_hat), "y": self._features(batch.y)}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """NaN from fewer than two images."""
        return {"value": frechet_distance(statistics["y_hat"], statistics["y"])}

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        refuse_unless((3,), images, "fid")
        self._network.to(images.device)
        rows = [self._network(image)[0] for image in _bytes(images)]
        return _unless_nan(torch.cat(rows), images)


class LPIPS:
    """Learned perceptual distance (Zhang et al. 2018, arXiv:1801.03924, v0.1) of VGG-16: lower is better, 0 is equal.

    Images RGB (UserError), rounded to 8 bit, in their own size. Others report AlexNet's LPIPS, which is another number.

    Raises UserError where torch-fidelity or the weights are missing, or the weights are others.
    """

    version = "1"
    better = "lower"

    def __init__(self, dataset: Dataset) -> None:
        _refuse_without_torch_fidelity("lpips")
        found = [_at_hand("lpips", address) for address in (VGG16, LPIPS_HEADS)]
        from torch_fidelity.sample_similarity_lpips import SampleSimilarityLPIPS

        self._network = SampleSimilarityLPIPS("lpips")
        self.protocol = {"network": "vgg16, LPIPS v0.1", "weights": [f"sha256:{digest}" for _, digest in found]}

    @torch.no_grad()
    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"distance": (B,)}, float32."""
        refuse_unless((3,), y_hat, "lpips")
        self._network.to(y_hat.device)
        pairs = zip(_bytes(y_hat), _bytes(batch.y), strict=True)
        return {"distance": _unless_nan(torch.cat([self._network(*pair).flatten() for pair in pairs]), y_hat)}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`value`: the mean over images."""
        return {"value": statistics["distance"].double().mean().item()}


def _refuse_without_torch_fidelity(metric: str) -> None:
    if importlib.util.find_spec("torch_fidelity") is None:
        raise UserError(f"{metric} needs torch-fidelity: pip install 'p2pzoo[fidelity]'")


def _at_hand(metric: str, address: str) -> tuple[Path, str]:
    """The weights' file where torch hub keeps it, and its SHA-256.

    Raises UserError if it is missing or damaged, or a pickle of more than tensors (torch-fidelity reads it unguarded).
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / address.rpartition("/")[2]
    if not path.is_file():
        raise UserError(f"{metric} needs weights and downloads nothing by itself: put {address} into {path.parent}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    named = re.search(r"-([0-9a-f]{8})\.pth$", path.name)  # torch hub's way: the start of the digest
    if named and not digest.startswith(named[1]):
        raise UserError(f"{path} is damaged, or another file: put {address} there again")
    try:
        torch.load(path, "cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: no weights that can be read safely; put {address} there again") from error
    return path, digest


def _bytes(images: Tensor) -> tuple[Tensor, ...]:
    """(1, 3, H, W) uint8, one image after another."""
    return levels(images).nan_to_num().to(torch.uint8).split(1)


def _unless_nan(rows: Tensor, images: Tensor) -> Tensor:
    """NaN for an image with values that are not numbers, which bytes cannot say."""
    rows[images.isnan().flatten(1).any(1)] = float("nan")
    return rows
