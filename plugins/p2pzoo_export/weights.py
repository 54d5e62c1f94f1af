"""Weights of other code: read from its files into a model file of ours, and written back.

What such files call their tensors is known to the components (`contracts.StateDictFormat`); here all of them are asked. A file
is read as tensors alone: a pickle that names anything else is refused.
"""

from __future__ import annotations

import hashlib
import pickletools
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from p2pzoo.config.experiment import Component
from p2pzoo.models.build import build
from p2pzoo.models.model_file import rebuild
from p2pzoo.models.safetensors_io import KEY, load_into, load_tensors, save_model
from p2pzoo.plugin import InferredConfig, StateDictFormat, schema
from p2pzoo.plugin.registry import Entry, Registry
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write
from p2pzoo.utils.suggest import nearest
from p2pzoo_export.graphs import FORMATS, WEB

PARTS = ("generator", "discriminator")
NESTED = "state_dict"
COUNTER = "num_batches_tracked"  # of batch norms; files of torch before 0.4.1 have none
STATISTICS = ("running_mean", "running_var", COUNTER)  # of instance norms, in files of torch before 0.4
EXACT = (torch.float32, torch.float16, torch.bfloat16)  # all numbers that these hold are float32 numbers


@dataclass(frozen=True)
class Imported:
    """A network of other code.

    header  of its model file
    notes   what was assumed or left out, one line each
    """

    network: nn.Module
    header: Mapping[str, Any]
    notes: Sequence[str]

    @property
    def use(self) -> str:
        return next(str(self.header[part]["use"]) for part in PARTS if part in self.header)

    def save(self, path: Path) -> None:
        save_model(path, self.network, self.header)


# --- import ------------------------------------------------------------------------------------------------------


def import_weights(
    path: Path,
    registry: Registry,
    given: Mapping[str, Any],
    *,
    part: str | None = None,
    size: tuple[int, int] | None = None,
    test_mode: str = "paper",
) -> Imported:
    """The network whose tensors a file of other code holds, told by their names and shapes.

    given  parameters of the component, in place of what is inferred or assumed
    part   "generator" or "discriminator", where a file holds both; None takes the generator then
    size   (H, W) that it was trained at; None is what such weights are commonly trained at

    Raises UserError: a file that is not whole, that wants to run code, or in no known layout.
    """
    tensors = _plain(read_pickle(path), path)
    attempts = list(_attempts(tensors, registry, given, size, part))
    fitting = [attempt for attempt in attempts if not attempt.faults]
    if not fitting:
        raise _unknown(path, tensors, attempts, registry)
    best = fitting[0]  # generators first, and plugins in their order
    reading = best.reading
    with rng.torch_seed(0):
        network = build(best.component, (reading.in_channels, reading.out_channels), best.size)
    load_into(network, best.tensors, str(path))
    notes = [*reading.notes]
    if size is None:
        notes.append(f"trained at {best.size[0]}×{best.size[1]}; otherwise: --size SIDE")
    notes += best.notes
    kind = best.entry.kind
    header = {
        "run": f"imported-{_digest(best.tensors)}",
        kind: {"use": best.entry.full_name, "params": schema.to_jsonable(best.component.values)},
        "in_channels": reading.in_channels,
        "out_channels": reading.out_channels,
        "size": list(best.size),
        "size_divisor": getattr(network, "size_divisor", 1),
        "x_range": [0, 255],
        "y_range": [0, 255],
        "test_mode": test_mode,
        "imported": {"layout": best.layout.name},
    }
    return Imported(network, header, notes)


def read_pickle(path: Path) -> Any:
    """What torch.save wrote, if that is tensors and plain values. Raises UserError; runs nothing that the file says."""
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.is_dir():
        raise UserError(f"{path}: a folder; give the file with the weights in it, such as latest_net_G.pth")
    if (ours := _safetensors(path)) is not None:
        what = "a model of p2pzoo already: use it as it is" if ours else "a safetensors file"
        raise UserError(f"{path}: {what}; import reads files that torch.save wrote (.pth)")
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # whatever its parsers raise: the file is not theirs
        if name := _foreign(path, str(error)):
            raise UserError(
                f"{path}: refused: it is more than tensors, and would run code of '{name}'. Where it can be trusted, "
                "save its weights alone: torch.save(network.state_dict(), FILE)"
            ) from None
        raise UserError(f"{path}: not a whole file of torch.save") from None


def _foreign(path: Path, told: str) -> str | None:
    """What a pickle would call: by what torch.load says, or by its opcodes where that does not read it at all."""
    if found := re.search(r"GLOBAL ([\w.]+)", told):
        return found[1]
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
    except Exception:  # no pickle
        return None
    return None


def _safetensors(path: Path) -> bool | None:
    """Whether it is one of ours; None where it is none at all."""
    try:
        with safe_open(path, "pt") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return None


def _plain(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name, without what wraps them."""
    if isinstance(loaded, Mapping) and isinstance(loaded.get(NESTED), Mapping):
        loaded = loaded[NESTED]
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path}: holds a {type(loaded).__name__}, not the tensors of a network by name")
    tensors = {name: tensor for name, tensor in loaded.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
    if len(tensors) < len(loaded) or not tensors:
        others = [str(name) for name in loaded if name not in tensors]
        held = f"; it has {', '.join(others[:5])}" if others else ""
        raise UserError(f"{path}: not the tensors of a network by name{held}")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UserError(f"{path}: tensor '{name}' is stored as {tensor.layout} on {tensor.device}")
        if tensor.dtype not in EXACT and not name.endswith(COUNTER):
            raise UserError(f"{path}: tensor '{name}' is of {tensor.dtype}, which float32 does not hold exactly")
    return _unwrapped(tensors)


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the `module.` of DataParallel."""
    tensors = dict(tensors)
    while tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


@dataclass(frozen=True)
class _Attempt:
    """A layout that may be the file's: the network it would be, its tensors by our names, and what is amiss."""

    entry: Entry
    layout: StateDictFormat
    reading: InferredConfig
    component: Component
    size: tuple[int, int]
    tensors: Mapping[str, Tensor]
    faults: Sequence[str]
    notes: Sequence[str]


def _layouts(registry: Registry, part: str | None = None) -> Iterator[tuple[Entry, Any, StateDictFormat]]:
    """Of all networks whose plugins load."""
    for kind in PARTS if part is None else (part,):
        for entry in registry.of(kind):
            try:
                factory = entry.load()
            except UserError:
                continue
            for layout in getattr(factory, "state_dict_formats", ()):
                yield entry, factory, layout


def _attempts(
    tensors: Mapping[str, Tensor],
    registry: Registry,
    given: Mapping[str, Any],
    asked: tuple[int, int] | None,
    part: str | None,
) -> Iterator[_Attempt]:
    refused: list[UserError] = []
    any_read = False
    for entry, factory, layout in _layouts(registry, part):
        mine = tensors
        if layout.prefix:
            mine = {n.removeprefix(layout.prefix): t for n, t in tensors.items() if n.startswith(layout.prefix)}
        mine = _unwrapped(mine)
        reading = layout.read(mine, given)
        if reading is None:
            continue
        size = asked or reading.size
        try:
            component = Component(entry, factory, schema.check(factory, reading.params))
            with torch.device("meta"):
                network = build(component, (reading.in_channels, reading.out_channels), size)
            own, notes = _by_own_names(mine, network, layout)
        except (schema.Faults, ValueError) as error:
            refused.append(UserError(f"{entry.kind} '{entry.name}' {error}"))
        except UserError as error:
            refused.append(error)
        else:
            any_read = True
            faults = _faults(own, network, layout)
            yield _Attempt(entry, layout, reading, component, size, own, faults, notes)
    if refused and not any_read:
        raise refused[0]


def _their_names(network: nn.Module, layout: StateDictFormat) -> dict[str, str]:
    """{own tensor's name: theirs}, without the layout's prefix."""
    modules = layout.names(network)
    return {name: f"{modules[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}" for name in network.state_dict()}


def _by_own_names(
    tensors: Mapping[str, Tensor], network: nn.Module, layout: StateDictFormat
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the network's names; those without a place keep theirs, in angle brackets."""
    own_names = {theirs: own for own, theirs in _their_names(network, layout).items()}
    instance_norms = {
        theirs
        for own, theirs in layout.names(network).items()
        if isinstance(network.get_submodule(own), nn.InstanceNorm2d)
    }
    found, notes, left_out = {}, [], 0
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module in instance_norms and leaf in STATISTICS:
            left_out += 1
            continue
        found[own_names.get(name, f"<{name}>")] = tensor
    if left_out:
        notes.append("running statistics of instance norms, which old torch kept and nothing uses, are left out")
    for own, tensor in network.state_dict().items():
        if own.endswith(COUNTER):
            found.setdefault(own, torch.zeros(tensor.shape, dtype=tensor.dtype))
    return found, notes


def _faults(found: Mapping[str, Tensor], network: nn.Module, layout: StateDictFormat) -> list[str]:
    """What does not fit, by the names in the file."""
    expected, theirs = network.state_dict(), _their_names(network, layout)
    faults = [f"no '{layout.prefix}{theirs[name]}'" for name in expected if name not in found]
    faults += [f"'{layout.prefix}{name[1:-1]}' has no place" for name in found if name not in expected]
    for name in expected:
        if name in found and expected[name].shape != found[name].shape:
            shapes = f"{list(found[name].shape)}, not {list(expected[name].shape)}"
            faults.append(f"'{layout.prefix}{theirs[name]}' is {shapes}")
    return faults


def _unknown(path: Path, tensors: Mapping[str, Tensor], attempts: Sequence[_Attempt], registry: Registry) -> UserError:
    if not attempts:
        known = dict.fromkeys(f"{entry.name} ({layout.name})" for entry, _, layout in _layouts(registry))
        some = ", ".join(f"'{name}'" for name in list(tensors)[:5])
        more = f" and {len(tensors) - 5} more" if len(tensors) > 5 else ""
        return UserError(f"{path}: an unknown layout, with {some}{more}", f"known are: {', '.join(known)}")
    near = min(attempts, key=lambda attempt: len(attempt.faults))
    faults = near.faults
    return UserError(
        f"{path}: an unknown layout; the nearest is {near.entry.kind} '{near.entry.name}' of {near.layout.name}, "
        f"which {len(faults)} tensor{'s do' if len(faults) > 1 else ' does'} not fit:",
        *(f"  {fault}" for fault in faults[:8]),
        *([f"  … and {len(faults) - 8} more"] if len(faults) > 8 else []),
    )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:10]


# --- export ------------------------------------------------------------------------------------------------------


def layout_names(registry: Registry) -> list[str]:
    """What the layouts of all networks are called."""
    return sorted({layout.name for _, _, layout in _layouts(registry)})


def export_weights(path: Path, to: str, output: Path, registry: Registry) -> list[str]:
    """Write the network of a model file as the code `to` stores it. Notes on what is not the same there.

    Raises UserError where that code has no such network.
    """
    tensors, header = load_tensors(path)
    kind = next((part for part in PARTS if part in header), PARTS[0])
    network = rebuild(tensors, header, path, registry, kind)
    layouts = {layout.name: layout for layout in getattr(type(network), "state_dict_formats", ())}
    use = header[kind]["use"]
    if to not in layouts:
        names = [*FORMATS, WEB, *layout_names(registry)]
        if to not in names:
            raise UserError(f"no format '{to}'{nearest(to, names)}")
        can = f"; it has {', '.join(layouts)}" if layouts else ""
        raise UserError(f"{path}: {kind} '{use}' has no place in the code '{to}'{can}")
    layout = layouts[to]
    try:
        names_there = _their_names(network, layout)
    except ValueError as error:
        raise UserError(f"{path}: {kind} '{use}' in the code '{to}': {error}") from None
    written, notes = layout.written(network) if layout.written else (network.state_dict(), [])
    theirs: dict[str, Any] = {f"{layout.prefix}{names_there[name]}": t.contiguous() for name, t in written.items()}
    with atomic_write(output) as temporary:
        torch.save({NESTED: theirs} if layout.prefix else theirs, temporary)
    return list(notes)
