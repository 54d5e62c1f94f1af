"""Read files that torch.save wrote, as tensors and plain values only: a pickle that would run code is refused."""

from __future__ import annotations

import pickletools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from p2pzoo.models.pickled_tensors import UnpackedTooLarge, load_pickle
from p2pzoo.models.safetensors_io import METADATA_KEY
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import refuse_pipe

NESTED = "state_dict"  # key of the tensors in checkpoints that hold more
NESTED_IN = (NESTED, "params_ema", "params")  # and in those of BasicSR, which may hold an average too: it comes first
COUNTER = "num_batches_tracked"  # of batch norms; files of torch before 0.4.1 do not have it
EXACT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # float32 represents all their values exactly


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a network by name, without wrappers. Raises UserError if the file holds something else."""
    return _extract_state_dict(read_pickle(path), path)


def read_pickle(path: Path) -> Any:
    """Read what torch.save wrote; run no code of it. Raises UserError if it is more than tensors and plain values."""
    if not path.exists():
        raise UserError(f"{path}: no such file")
    refuse_pipe(path)
    if path.is_dir():
        raise UserError(f"{path}: a folder; give the file with the weights in it, such as latest_net_G.pth")
    if (is_ours := _is_p2pzoo_model(path)) is not None:
        kind = "already a model of p2pzoo: use it as it is" if is_ours else "a safetensors file"
        raise UserError(f"{path}: {kind}; import reads files that torch.save wrote (.pth)")
    try:
        return load_pickle(path)
    except PermissionError:
        raise
    except UnpackedTooLarge as error:
        raise UserError(
            f"{path}: {error}: it is no file of torch.save; download it again from a place you trust"
        ) from None
    except Exception as error:  # the parsers raise errors of any type at files that are not theirs
        if name := _find_called_name(path, str(error)):
            raise UserError(
                f"{path}: refused: it holds more than tensors, and would run the code of '{name}'. If you trust it, "
                "save its weights alone: torch.save(network.state_dict(), FILE)"
            ) from None
        raise UserError(f"{path}: not a complete file of torch.save; copy or download it again") from None


def _find_called_name(path: Path, message: str) -> str | None:
    """Return what a pickle would call: from the message of torch.load, else from the opcodes of the pickle."""
    if match := re.search(r"GLOBAL ([\w.]+)", message):
        return match[1]
    strings: list[str] = []
    try:
        with path.open("rb") as file:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in ("GLOBAL", "INST"):
                    return str(argument).replace(" ", ".")
                if opcode.name == "STACK_GLOBAL":
                    return ".".join(strings[-2:])
                if isinstance(argument, str):
                    strings.append(argument)
    except Exception:  # not a pickle
        return None
    return None


def _is_p2pzoo_model(path: Path) -> bool | None:
    """Whether a safetensors file is a model of p2pzoo; None if the file is not a safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return None


def _extract_state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in NESTED_IN if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path}: holds a {type(loaded).__name__}, not the state dict of a network")
    tensors = {name: tensor for name, tensor in loaded.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
    if len(tensors) < len(loaded) or not tensors:
        others = [str(name) for name in loaded if name not in tensors]
        content = f"; it has {', '.join(others[:5])}" if others else ""
        raise UserError(f"{path}: not the state dict of a network{content}")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UserError(f"{path}: tensor '{name}' is stored as {tensor.layout} on {tensor.device}")
        if tensor.dtype not in EXACT_DTYPES and not name.endswith(COUNTER):
            raise UserError(f"{path}: tensor '{name}' has dtype {tensor.dtype}, which float32 does not hold exactly")
    return strip_module_prefix(tensors)


def strip_module_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix `module.` of DataParallel."""
    tensors = dict(tensors)
    while tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors
