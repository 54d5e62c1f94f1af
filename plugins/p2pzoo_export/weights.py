"""Convert weights of other code to a model file of p2pzoo, and back.

The components know how other code names their tensors (`p2pzoo.plugin.StateDictFormat`); here all of them are tried.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p2pzoo.config.experiment import Component
from p2pzoo.models.build import build_network, build_on_meta
from p2pzoo.models.load import read_model
from p2pzoo.models.model_file import ModelHeader, restore_network
from p2pzoo.models.safetensors_io import load_into, save_model
from p2pzoo.plugin import FileLayout, InferredConfig, StateDictFormat, schema
from p2pzoo.plugin.registry import Entry, Registry
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write
from p2pzoo.utils.suggest import did_you_mean
from p2pzoo_export.graphs import FORMATS, WEB
from p2pzoo_export.torch_files import COUNTER, NESTED, read_state_dict, strip_module_prefix

PARTS = ("generator", "discriminator")
STATISTICS = ("running_mean", "running_var", COUNTER)  # of instance norms, in files of torch before 0.4
MAX_NAMED_TENSORS, MAX_NAMED_FAULTS = 5, 8  # in an error message


@dataclass(frozen=True)
class ImportedWeights:
    """A network of other code.

    header  of the model file
    notes   what was guessed or left out, one line each
    """

    network: nn.Module
    header: Mapping[str, Any]
    notes: Sequence[str]

    @property
    def part(self) -> str:
        """ "generator" or "discriminator"."""
        return next(part for part in PARTS if part in self.header)

    @property
    def use(self) -> str:
        return str(self.header[self.part]["use"])

    def save(self, path: Path) -> None:
        save_model(path, self.network, self.header)


# --- import ------------------------------------------------------------------------------------------------------


def import_weights(
    path: Path,
    registry: Registry,
    params: Mapping[str, Any],
    *,
    part: str | None = None,
    size: tuple[int, int] | None = None,
    test_mode: str = "paper",
    layout: FileLayout | None = None,
) -> ImportedWeights:
    """Infer the network from the names and shapes of the tensors in a file of other code.

    params     parameters of the component; they replace inferred and guessed ones
    part       "generator" or "discriminator", if a file holds both; None: the generator
    size       (H, W) of the training images; None: the usual size of such weights
    test_mode  default of the model file
    layout     how the training images of a generator came from their files; None: unknown

    Raises UserError if the file is incomplete, would run code, or has an unknown format.
    """
    tensors = read_state_dict(path)
    attempts = list(_iter_attempts(tensors, registry, params, size, part))
    matches = [attempt for attempt in attempts if not attempt.faults]
    if not matches:
        raise _make_unknown_error(path, tensors, attempts, registry)
    best = matches[0]  # generators come first, and plugins in their order
    inferred = best.inferred
    with rng.torch_seed(0):
        network = build_network(best.component, (inferred.in_channels, inferred.out_channels), best.size)
    load_into(network, best.tensors, str(path))
    notes = [*inferred.notes]
    if size is None:
        notes.append(f"trained at {best.size[0]}×{best.size[1]}; for another size, --size SIDE")
    notes += best.notes
    kind = best.entry.kind
    if layout and kind != "generator":
        raise UserError(f"{path}: holds a {kind}, which translates no images: remove --scale")
    header = {
        "run": f"imported-{_digest(best.tensors)}",
        kind: {"use": best.entry.full_name, "params": schema.to_jsonable(best.component.values)},
        "in_channels": inferred.in_channels,
        "out_channels": inferred.out_channels,
        "size": list(best.size),
        "size_divisor": getattr(network, "size_divisor", 1),
        "x_range": [0, 255],
        "y_range": [0, 255],
        "test_mode": test_mode,
        "imported": {"layout": best.format.name},
        **({"file_layout": schema.to_jsonable(vars(layout))} if layout else {}),
    }
    return ImportedWeights(network, header, notes)


@dataclass(frozen=True)
class _Attempt:
    """A format that the file may have.

    component  the network that the file would hold
    tensors    by our names
    faults     tensors that do not fit, one line each; empty if the format matches
    """

    entry: Entry
    format: StateDictFormat
    inferred: InferredConfig
    component: Component
    size: tuple[int, int]
    tensors: Mapping[str, Tensor]
    faults: Sequence[str]
    notes: Sequence[str]


def _iter_formats(registry: Registry, part: str | None = None) -> Iterator[tuple[Entry, Any, StateDictFormat]]:
    """Yield the formats of all networks whose plugins load."""
    for kind in PARTS if part is None else (part,):
        for entry in registry.of(kind):
            try:
                factory = entry.load()
            except UserError:
                continue
            for format in getattr(factory, "state_dict_formats", ()):
                yield entry, factory, format


def _iter_attempts(
    tensors: Mapping[str, Tensor],
    registry: Registry,
    params: Mapping[str, Any],
    requested_size: tuple[int, int] | None,
    part: str | None,
) -> Iterator[_Attempt]:
    """Yield one attempt per format that recognises the tensors. Raises UserError if the parameters fit none of them."""
    errors: list[UserError] = []
    any_built = False
    for entry, factory, format in _iter_formats(registry, part):
        own = tensors
        if format.prefix:
            own = {n.removeprefix(format.prefix): t for n, t in tensors.items() if n.startswith(format.prefix)}
        own = strip_module_prefix(own)
        inferred = format.read(own, params)
        if inferred is None:
            continue
        size = requested_size or inferred.size
        try:
            component = Component(entry, factory, schema.check_params(factory, inferred.params))
            network = build_on_meta(component, (inferred.in_channels, inferred.out_channels), size, own)
            renamed, notes = _rename_to_ours(own, network, format)
        except schema.InvalidParameters as error:
            errors.append(UserError(f"{entry.kind} '{entry.name}' {error}"))
        except (
            ValueError,
            RuntimeError,
            TypeError,
            ArithmeticError,
        ) as error:  # these parameters do not fit the format
            errors.append(UserError(f"{entry.kind} '{entry.name}' in the format '{format.name}': {error}"))
        except UserError as error:
            errors.append(error)
        else:
            any_built = True
            faults = _find_faults(renamed, network, format)
            yield _Attempt(entry, format, inferred, component, size, renamed, faults, notes)
    if errors and not any_built:
        raise errors[0]


def _their_names(network: nn.Module, format: StateDictFormat) -> dict[str, str]:
    """Return {our tensor name: theirs}, without the format's prefix."""
    modules = format.names(network)
    return {name: f"{modules[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}" for name in network.state_dict()}


def _rename_to_ours(
    tensors: Mapping[str, Tensor], network: nn.Module, format: StateDictFormat
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors by our names, and notes. A tensor without a counterpart keeps its name, in angle brackets."""
    our_names = {theirs: ours for ours, theirs in _their_names(network, format).items()}
    instance_norms = {
        theirs
        for ours, theirs in format.names(network).items()
        if isinstance(network.get_submodule(ours), nn.InstanceNorm2d)
    }
    renamed: dict[str, Tensor] = {}
    notes, num_left_out = [], 0
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module in instance_norms and leaf in STATISTICS:
            num_left_out += 1
            continue
        renamed[our_names.get(name, f"<{name}>")] = tensor
    if num_left_out:
        notes.append(
            "running statistics of instance norms are left out: torch before 0.4 stored them, nothing uses them"
        )
    for name, tensor in network.state_dict().items():
        if name.endswith(COUNTER):
            renamed.setdefault(name, torch.zeros(tensor.shape, dtype=tensor.dtype))
    return renamed, notes


def _find_faults(renamed: Mapping[str, Tensor], network: nn.Module, format: StateDictFormat) -> list[str]:
    """Return what does not fit, one line per tensor, by the names in the file."""
    expected, theirs = network.state_dict(), _their_names(network, format)
    faults = [f"'{format.prefix}{theirs[name]}' is missing" for name in expected if name not in renamed]
    faults += [f"'{format.prefix}{name[1:-1]}' has no counterpart" for name in renamed if name not in expected]
    for name in expected:
        if name in renamed and expected[name].shape != renamed[name].shape:
            shapes = f"{list(renamed[name].shape)}, not {list(expected[name].shape)}"
            faults.append(f"'{format.prefix}{theirs[name]}' has shape {shapes}")
    return faults


def _make_unknown_error(
    path: Path, tensors: Mapping[str, Tensor], attempts: Sequence[_Attempt], registry: Registry
) -> UserError:
    if not attempts:
        known = dict.fromkeys(f"{entry.name} ({format.name})" for entry, _, format in _iter_formats(registry))
        names = ", ".join(f"'{name}'" for name in list(tensors)[:MAX_NAMED_TENSORS])
        more = f" and {len(tensors) - MAX_NAMED_TENSORS} more" if len(tensors) > MAX_NAMED_TENSORS else ""
        return UserError(f"{path}: unknown format, with tensors {names}{more}", f"known formats: {', '.join(known)}")
    nearest = min(attempts, key=lambda attempt: len(attempt.faults))
    faults = nearest.faults
    return UserError(
        f"{path}: unknown format; the nearest is {nearest.entry.kind} '{nearest.entry.name}' of {nearest.format.name}, "
        f"but {len(faults)} tensor{'s do' if len(faults) > 1 else ' does'} not fit:",
        *(f"  {fault}" for fault in faults[:MAX_NAMED_FAULTS]),
        *([f"  … and {len(faults) - MAX_NAMED_FAULTS} more"] if len(faults) > MAX_NAMED_FAULTS else []),
    )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:10]


# --- export ------------------------------------------------------------------------------------------------------


def list_formats(registry: Registry) -> list[str]:
    """Return the names of the weight formats of all networks."""
    return sorted({format.name for _, _, format in _iter_formats(registry)})


def check_format(to: str, registry: Registry) -> None:
    """Raises UserError if there is no format of this name."""
    names = [*FORMATS, WEB, *list_formats(registry)]
    if to not in names:
        raise UserError(f"--to: no format '{to}'{did_you_mean(to, names)}")


def export_weights(model: Path, to: str, output: Path, registry: Registry, *, weights: str | None = None) -> list[str]:
    """Write a network in the weight format `to`; return notes about differences.

    model    a run folder, a model.safetensors, or an address, as `p2pzoo.load` takes it
    weights  of a run: "last" or "average"; None: those that its numbers measured

    Raises UserError if there is no such format, or if the other code has no such network.
    """
    tensors, json_header, path = read_model(model, weights)
    kind = next((part for part in PARTS if part in json_header), PARTS[0])
    header = ModelHeader.parse(json_header, path, kind)
    if header.process:
        raise UserError(
            f"{path}: the format '{to}' holds a generator alone, and this one belongs to the process "
            f"'{header.process.use}': use the file itself, which p2pzoo.load takes"
        )
    network = restore_network(tensors, header, path, registry)
    formats = {format.name: format for format in getattr(type(network), "state_dict_formats", ())}
    if to not in formats:
        check_format(to, registry)
        supported = f"; {', '.join(formats)} can" if formats else ""
        raise UserError(f"{path}: the format '{to}' cannot hold {kind} '{header.use}'{supported}")
    format = formats[to]
    try:
        their_names = _their_names(network, format)
    except ValueError as error:
        raise UserError(f"{path}: {kind} '{header.use}' in the format '{to}': {error}") from None
    state_dict, notes = format.written(network) if format.written else (network.state_dict(), [])
    renamed: dict[str, Any] = {f"{format.prefix}{their_names[name]}": t.contiguous() for name, t in state_dict.items()}
    file = io.BytesIO()  # on a full disk torch raises a RuntimeError without a cause
    torch.save({NESTED: renamed} if format.prefix else renamed, file)
    with atomic_write(output) as temporary:
        temporary.write_bytes(file.getbuffer())
    return list(notes)
