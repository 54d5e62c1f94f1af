"""Tensors on disk: safetensors files with a JSON header and a digest. No pickle is written or read.

A model file holds G's weights and a header that says how to build G. A checkpoint holds everything that training needs
to resume. Neither holds a time, a path or a host, so equal runs write equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from p2pzoo.models.spectral_norm import plain_state_dict
from p2pzoo.utils.errors import DamagedFile, UserError
from p2pzoo.utils.external_weights import without_external
from p2pzoo.utils.files import atomic_write, parse_json, refuse_pipe
from p2pzoo.utils.version import __version__

# One key for the whole header: safetensors writes several keys in random order, and equal runs must write equal bytes
METADATA_KEY = "p2pzoo"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header with a SHA-256 digest of both. The file appears only when it is complete.

    Raises OSError when the disk is full or read-only.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.safetensors"
    ...     save_tensors(path, {"weight": torch.ones(2)}, {"images": 7})
    ...     load_tensors(path)
    ({'weight': tensor([1., 1.])}, {'images': 7})
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({**header, "digest": _digest(stored, header)}, sort_keys=True)
    with atomic_write(path) as temporary:
        try:
            save_file(stored, temporary, metadata={METADATA_KEY: text})
        except SafetensorError as error:
            number = int((re.search(r"os error (\d+)", str(error)) or [0, 0])[1])
            raise OSError(number, os.strerror(number) if number else str(error), str(path)) from error


def load_tensors(
    path: Path, keep: Callable[[Mapping[str, Any], str], bool] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: the tensors, copied out of the file, and the header.

    keep  keep(header, name): whether to return a tensor [default: all]. The others are checked too, one at a time

    Raises DamagedFile if anything is missing or altered, UserError if there is no such file.
    """
    refuse_pipe(path)
    try:
        with safe_open(path, "pt") as file:
            header = parse_json((file.metadata() or {})[METADATA_KEY])
            expected = header.pop("digest")
            tensors, digest = {}, _begin_digest(header)
            for name in sorted(file.keys()):
                # clone: memory-mapped tensors are unaligned, and kernels chosen by alignment give other bits
                tensor = file.get_tensor(name).clone()
                _add_to_digest(digest, name, tensor)
                if keep is None or keep(header, name):
                    tensors[name] = tensor
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        if path.suffix.lower() != ".safetensors":
            raise DamagedFile(f"{path}: not a file of p2pzoo: these end in .safetensors") from None
        raise DamagedFile(f"{path}: not a complete p2pzoo file ({type(error).__name__}: {error})") from None
    if digest.hexdigest() != expected:
        raise DamagedFile(f"{path}: its contents were altered since they were written (the digest differs)")
    return tensors, header


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    digest = _begin_digest(header)
    for name in sorted(tensors):
        _add_to_digest(digest, name, tensors[name])
    return digest.hexdigest()


def _begin_digest(header: Mapping[str, Any]) -> hashlib._Hash:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode())


def _add_to_digest(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)


# --- model files -----------------------------------------------------------------------------------------------


def save_model(path: Path, G: nn.Module, header: Mapping[str, Any]) -> None:
    """Write G's own weights with a header that says how to build it (see `model_file.build_header`)."""
    save_model_tensors(path, without_external(G, plain_state_dict(G)), header)


def save_model_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """The same, for tensors with the names of a model file."""
    save_tensors(path, tensors, {"format": 1, "p2pzoo": __version__, **header})


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into a network, in place, except into its external weights, which `tensors` does not have.

    Raises UserError as `check_tensors_fit` does; then nothing is copied.
    """
    copy_into(without_external(model, model.state_dict()), tensors, where)


def copy_into(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into those of the same names. Raises as `check_tensors_fit` does; then nothing is copied."""
    check_tensors_fit(own, tensors, where)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def find_unsaved(model: nn.Module) -> list[str]:
    """The parameters and persistent buffers that `state_dict()` leaves out, so that no file can restore them."""
    saved = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    buffers = [
        (f"{prefix}.{name}".lstrip("."), buffer)
        for prefix, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if name not in module._non_persistent_buffers_set and buffer is not None
    ]
    tensors = [*model.named_parameters(), *buffers]
    return [name for name, tensor in tensors if tensor.numel() and tensor.untyped_storage().data_ptr() not in saved]


def check_tensors_fit(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Compare names and shapes of `tensors` with those of a network's state dict, `own`.

    where: the file that they come from. Raises UserError that names the first tensors that do not fit.
    """
    faults = [f"{where}: tensor '{name}' is missing" for name in own.keys() - tensors.keys()]
    faults += [f"{where}: tensor '{name}' is not in this network" for name in tensors.keys() - own.keys()]
    for name in own.keys() & tensors.keys():
        if own[name].shape != tensors[name].shape:
            shapes = f"{list(tensors[name].shape)}, the network's is {list(own[name].shape)}"
            faults.append(f"{where}: the shape of tensor '{name}' is {shapes}")
    if faults:
        raise UserError(*sorted(faults)[:5], *([f"… and {len(faults) - 5} more"] if len(faults) > 5 else []))


# --- training state --------------------------------------------------------------------------------------------


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict, without external weights, with `prefix.` before each name."""
    state = without_external(module, module.state_dict())
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def loss_tensors(loss: nn.Module) -> dict[str, Tensor]:
    """The state dict of a loss without pretrained networks, which every run reads again: frozen parameters, and the
    buffers of layers all of whose parameters are frozen."""
    fixed = {name for name, parameter in loss.named_parameters() if not parameter.requires_grad}
    for prefix, module in loss.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            fixed |= {f"{prefix}.{name}".lstrip(".") for name in module._buffers}
    return {name: tensor for name, tensor in loss.state_dict().items() if name not in fixed}


def optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as `prefix.{parameter index}.{name}`. Every value becomes a tensor, Adam's `step` too."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{i}.{name}": torch.as_tensor(v) for i, part in state.items() for name, v in part.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load state that `optimizer_tensors` saved; names come without their prefix.

    Moments get the memory layout of their parameters, since fused Adam needs it.
    """
    owners = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    for key, tensor in tensors.items():
        index, name = key.split(".")
        parameter, group = owners[int(index)]
        if tensor.shape == parameter.shape and tensor.dim():
            own = torch.empty_like(parameter, requires_grad=False)
            own.copy_(tensor)
        else:  # torch keeps Adam's step count on the CPU, except for fused and capturable kernels, which read it
            on_cpu = name == "step" and not (group.get("fused") or group.get("capturable"))
            own = tensor.clone() if on_cpu else tensor.to(parameter.device, copy=True)
        optimizer.state[parameter][name] = own


def strip_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix.`, with that prefix removed."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")}
