"""Tensors on disk: safetensors files that carry a digest and describe themselves. No pickle is written or read.

A model file holds G's weights and, under one metadata key, what is needed to build G again. A checkpoint holds all that
training needs to go on. Neither holds a time, a path or a host, so equal runs give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from p2pzoo.models.spectral_norm import plain_state
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write, parse_json
from p2pzoo.utils.version import __version__

KEY = "p2pzoo"  # one key: safetensors writes several in random order


class DamagedFile(UserError):
    """A file that is cut short, altered or not ours."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header with a digest of both. Raises OSError when the disk is full or read-only."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({**header, "digest": _digest(stored, header)}, sort_keys=True)
    with atomic_write(path) as temporary:
        try:
            save_file(stored, temporary, metadata={KEY: text})
        except SafetensorError as error:
            number = int((re.search(r"os error (\d+)", str(error)) or [0, 0])[1])
            raise OSError(number, os.strerror(number) if number else str(error), str(path)) from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors in memory of their own, and the header. Raises Damaged if anything is missing or altered."""
    try:
        with safe_open(path, "pt") as file:
            header = parse_json((file.metadata() or {})[KEY])
            # a copy: memory-mapped tensors are unaligned, and alignment can choose the kernel and so the bits
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        expected = header.pop("digest")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedFile(f"{path}: not a whole p2pzoo file ({type(error).__name__}: {error})") from None
    if _digest(tensors, header) != expected:
        raise DamagedFile(f"{path}: its contents were altered since they were written (the digest differs)")
    return tensors, header


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# --- model files -----------------------------------------------------------------------------------------------


def save_model(path: Path, G: nn.Module, header: Mapping[str, Any]) -> None:
    """G's weights, with a header that says how to build it (see `networks.model_header`)."""
    save_tensors(path, plain_state(G), {"format": 1, "p2pzoo": __version__, **header})


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into the model's own memory. Raises UserError that names keys and shapes that do not fit."""
    own = model.state_dict()
    refuse_unfitting(own, tensors, where)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def refuse_unfitting(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises UserError that names keys and shapes of `tensors` that are not those of a network's `own`."""
    faults = [f"{where}: no tensor '{name}'" for name in own.keys() - tensors.keys()]
    faults += [f"{where}: tensor '{name}' has no place in this network" for name in tensors.keys() - own.keys()]
    for name in own.keys() & tensors.keys():
        if own[name].shape != tensors[name].shape:
            shapes = f"{list(tensors[name].shape)}, the network's is {list(own[name].shape)}"
            faults.append(f"{where}: tensor '{name}' is {shapes}")
    if faults:
        raise UserError(*sorted(faults)[:5], *([f"… and {len(faults) - 5} more"] if len(faults) > 5 else []))


# --- training state --------------------------------------------------------------------------------------------


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state by parameter index and name; every value is a tensor (Adam's `step` too)."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{i}.{name}": torch.as_tensor(v) for i, part in state.items() for name, v in part.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put saved state back. Moments take each parameter's own memory layout, which fused Adam relies on."""
    owners = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    for key, tensor in tensors.items():
        index, name = key.split(".")
        parameter, group = owners[int(index)]
        if tensor.shape == parameter.shape and tensor.dim():
            own = torch.empty_like(parameter, requires_grad=False)
            own.copy_(tensor)
        else:  # torch counts steps on the CPU, but for kernels that read them where they compute
            counted = name == "step" and not (group.get("fused") or group.get("capturable"))
            own = tensor.clone() if counted else tensor.to(parameter.device, copy=True)
        optimizer.state[parameter][name] = own


def strip_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix.`, without it."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")}
