"""Model files: a network's weights with a JSON header that says how to build it, checked before it is built."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NotRequired

import torch
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from torch import Tensor, nn
from typing_extensions import TypedDict

from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.config.provenance import component_source
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.label_maps import Labels
from p2pzoo.images.transparency import Rgb
from p2pzoo.models.build import build_network, build_on_meta
from p2pzoo.models.checkpoint_model import CheckpointAt, load_model_tensors
from p2pzoo.models.external_weights import HEADER_KEY, build_with_external_weights, digest_external
from p2pzoo.models.process import build_process, takes_time
from p2pzoo.models.safetensors_io import check_tensors_fit, find_unsaved, load_into
from p2pzoo.models.scaling import MAX_SCALE
from p2pzoo.plugin import schema
from p2pzoo.plugin.file_layout import FileLayout, Half
from p2pzoo.plugin.protocols import Dataset, Process
from p2pzoo.plugin.registry import Registry
from p2pzoo.utils import rng
from p2pzoo.utils.errors import DamagedFile, UserError
from p2pzoo.utils.external_weights import without_external
from p2pzoo.utils.paths import without_paths

UINT8_RANGE = (0.0, 255.0)  # headers without x_range and y_range mean this

# Parameters up to this value are accepted from any file. Larger ones must not exceed the file's tensors: a small file
# cannot ask for a huge network. No parameter of a shipped component that is not a tensor side comes near.
_MAX_FREE_PARAMETER = 1024
_MAX_PARAMETER = 1 << 16  # whatever the tensors say: a component may compute 2 to the power of it

_Positive = Annotated[int, Field(ge=1, le=1 << 16)]  # channels and sides: far beyond any image, and safe to multiply
_Finite = Annotated[float, Field(allow_inf_nan=False)]


def _check_order(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] >= bounds[1]:
        raise ValueError("its first number must be the lower one")
    return bounds


_Range = Annotated[tuple[_Finite, _Finite], AfterValidator(_check_order)]


_Scale = Annotated[float, Field(gt=0, le=MAX_SCALE, allow_inf_nan=False)]


class _FileLayoutJson(TypedDict):
    size: tuple[_Positive, _Positive] | None
    scale: tuple[_Scale, _Scale]
    x_half: Half | None
    alpha: bool
    background: NotRequired[Rgb | None]


class _CheckpointJson(TypedDict):
    images: Annotated[int, Field(ge=0)]
    of: Annotated[int, Field(ge=0)]


class _ComponentJson(TypedDict):
    use: str
    params: dict[str, Any]
    source: NotRequired[str]


class _HeaderJson(TypedDict):
    """The keys of a header that are read. `network` stands for the key "generator" or "discriminator"."""

    network: _ComponentJson
    in_channels: _Positive
    out_channels: _Positive
    size: tuple[_Positive, _Positive]
    process: NotRequired[_ComponentJson]
    run: NotRequired[str]
    size_divisor: NotRequired[_Positive]
    test_mode: NotRequired[Literal["paper", "eval"]]
    x_range: NotRequired[_Range]
    y_range: NotRequired[_Range]
    x_dtype: NotRequired[Literal["uint8", "uint16", "float32"]]
    y_dtype: NotRequired[Literal["uint8", "uint16", "float32"]]
    x_encoding: NotRequired[str]
    y_encoding: NotRequired[str]
    x_labels: NotRequired[dict[str, Any]]
    y_labels: NotRequired[dict[str, Any]]
    file_layout: NotRequired[_FileLayoutJson]
    checkpoint: NotRequired[_CheckpointJson]
    weights: NotRequired[Literal["last", "average"]]
    external_weights: NotRequired[str]


_HEADER_JSON = TypeAdapter(_HeaderJson)


@dataclass(frozen=True)
class ComponentHeader:
    """How a model file names a component.

    kind    such as "generator" or "process"
    use     its full name, such as "pix2pix:unet"
    params  its parameters, as JSON values
    source  name, version and source hash of the distribution that it came from; None in old files
    """

    kind: str
    use: str
    params: Mapping[str, Any]
    source: str | None = None


@dataclass(frozen=True)
class ModelHeader:
    """The header of a model file, parsed and checked once by `parse`.

    kind                       "generator" or "discriminator"
    use                        full name of the component, such as "pix2pix:unet"
    params                     its parameters, as JSON values
    source                     name, version and source hash of the distribution that it came from; None in old files
    in_channels, out_channels  channels of x and of y as the network gets them
    size                       (H, W) of the training images
    run                        id of the run that trained it; None if the file does not say
    size_divisor               image sides must be multiples of it; None if the file does not say
    test_mode                  "paper" or "eval", the recipe's choice; None if the file does not say
    x_range, y_range           the stored values that become -1 and 1; 0 and 255 in old files
    x_dtype, y_dtype           how images are stored: "uint8", "uint16" or "float32"; "uint8" in old files
    encodings                  the color spaces of x and y
    x_labels, y_labels         the classes of a side that is a label map, else None
    file_layout                how x was taken from its files; None if the file does not say
    checkpoint                 how far its training was; None if it was finished
    process                    how y is reached from x; None if the generator's output is the translation
    external_weights           the SHA-256 of weights that the file does not hold, because the generator's constructor
                               brings them; None without any
    weights                    "last": those after the last step; "average": their average over the training
    as_json                    the whole header as the file has it, for files that repeat it
    """

    kind: str
    use: str
    params: Mapping[str, Any]
    in_channels: int
    out_channels: int
    size: tuple[int, int]
    source: str | None = None
    run: str | None = None
    size_divisor: int | None = None
    test_mode: str | None = None
    x_range: tuple[float, float] = UINT8_RANGE
    y_range: tuple[float, float] = UINT8_RANGE
    x_dtype: str = "uint8"
    y_dtype: str = "uint8"
    encodings: Encodings = field(default_factory=Encodings)
    x_labels: Labels | None = None
    y_labels: Labels | None = None
    file_layout: FileLayout | None = None
    checkpoint: CheckpointAt | None = None
    process: ComponentHeader | None = None
    weights: Literal["last", "average"] = "last"
    external_weights: str | None = None
    as_json: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, header: Any, path: Path, kind: str = "generator") -> ModelHeader:
        """Check the header that `load_tensors` read from `path`. Raises DamagedFile, naming the path and the key.

        kind: the network that the file must hold, "generator" or "discriminator".

        >>> network = {"use": "pix2pix:unet", "params": {"width": 8}}
        >>> header = {"generator": network, "in_channels": 1, "out_channels": 3, "size": [64, 64]}
        >>> ModelHeader.parse(header, Path("model.safetensors")).x_range
        (0.0, 255.0)
        """
        if not isinstance(header, Mapping) or not isinstance(header.get(kind), Mapping):
            raise DamagedFile(f"{path}: holds no {kind}; give a run's model.safetensors")
        try:
            # strict JSON validation: a list is a tuple, but a string is no number
            checked = _HEADER_JSON.validate_json(json.dumps({**header, "network": header[kind]}), strict=True)
            x_labels, y_labels = (Labels.from_header(header.get(f"{side}_labels")) for side in "xy")
            encodings = Encodings.of(
                SimpleNamespace(
                    x_encoding=checked.get("x_encoding"),
                    y_encoding=checked.get("y_encoding"),
                    x_labels=x_labels,
                    y_labels=y_labels,
                )
            )
            for side, channels, labels in (
                ("x", checked["in_channels"], x_labels),
                ("y", checked["out_channels"], y_labels),
            ):
                _check_channels(side, channels, labels, encodings)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise DamagedFile(f"{path}: its header is damaged: {key}: {first['msg'].lower()}") from None
        except ValueError as error:
            raise DamagedFile(f"{path}: its header is damaged: {error}") from None
        return cls(
            kind=kind,
            use=header[kind]["use"],
            params=header[kind]["params"],
            in_channels=checked["in_channels"],
            out_channels=checked["out_channels"],
            size=checked["size"],
            source=checked["network"].get("source"),
            run=checked.get("run"),
            size_divisor=checked.get("size_divisor"),
            test_mode=checked.get("test_mode"),
            x_range=checked.get("x_range", UINT8_RANGE),
            y_range=checked.get("y_range", UINT8_RANGE),
            x_dtype=checked.get("x_dtype", "uint8"),
            y_dtype=checked.get("y_dtype", "uint8"),
            encodings=encodings,
            x_labels=x_labels,
            y_labels=y_labels,
            file_layout=FileLayout(**checked["file_layout"]) if "file_layout" in checked else None,
            checkpoint=CheckpointAt(**checked["checkpoint"]) if "checkpoint" in checked else None,
            process=ComponentHeader("process", **checked["process"]) if "process" in checked else None,
            weights=checked.get("weights", "last"),
            external_weights=checked.get("external_weights"),
            as_json=header,
        )


def _check_channels(side: str, channels: int, labels: Labels | None, encodings: Encodings) -> None:
    """Raises ValueError if the channels of x or y are not those of its label maps or of its color space."""
    if not labels and not encodings.lab:
        return
    expected = labels.channels if labels else {"x": 1, "y": 2}[side]  # L has one channel, ab two
    if channels != expected:
        source = "classes" if labels else "encoding"
        raise ValueError(f"{side} has {channels} channels, and its {source} {expected}")


# --- write -------------------------------------------------------------------------------------------------------


def build_header(
    experiment: Experiment,
    G: nn.Module,
    dataset: Dataset,
    channels: tuple[int, int],
    size: tuple[int, int],
    dtypes: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """The header of a run's model file, as JSON. It holds no time, path or host.

    dtypes  of x and y, as `Store.dtypes` has them; default: those of the dataset's first pair, which is then decoded
    """
    return {
        "run": experiment.id,
        "generator": _component_json(experiment.generator),
        **({"process": _component_json(experiment.process)} if experiment.process else {}),
        "in_channels": channels[0],
        "out_channels": channels[1],
        "size": list(size),
        "size_divisor": getattr(G, "size_divisor", 1),
        "x_range": list(dataset.x_range),
        "y_range": list(dataset.y_range),
        **_dtypes_json(dtypes or _first_dtypes(dataset)),
        **Encodings.of(dataset).header(),
        **_labels_json(dataset),
        "file_layout": schema.to_jsonable(vars(getattr(dataset, "file_layout", FileLayout()))),
        "test_mode": experiment.evaluate.test_mode,
        **({HEADER_KEY: digest} if (digest := digest_external(G)) else {}),
    }


def _component_json(component: Component) -> dict[str, Any]:
    # parameters that are paths are left out: the file must load alone, and holds what was read from those paths
    values = without_paths(component.values)
    return {
        "use": component.entry.full_name,
        "params": schema.to_jsonable(values),
        "source": component_source(component),
    }


def _dtypes_json(dtypes: tuple[str, str]) -> dict[str, str]:
    """The dtypes of x and y where they are not uint8, which a header without these keys means."""
    named = zip(("x_dtype", "y_dtype"), dtypes, strict=True)
    return {name: dtype for name, dtype in named if dtype != "uint8"}


def _first_dtypes(dataset: Dataset) -> tuple[str, str]:
    first = dataset[0]
    return first.x.dtype.name, first.y.dtype.name


def _labels_json(dataset: Dataset) -> dict[str, Any]:
    """The classes of the sides that are label maps."""
    sides = {name: getattr(dataset, name, None) for name in ("x_labels", "y_labels")}
    return {name: labels.header() for name, labels in sides.items() if labels}


# --- read --------------------------------------------------------------------------------------------------------


def load_network(path: Path, registry: Registry, kind: str = "generator") -> tuple[nn.Module, ModelHeader]:
    """The network of a model file or of a checkpoint, on the CPU, and its header. Raises UserError.

    It takes x and returns ŷ: with a process it is the sampler around G.
    """
    tensors, json_header = load_model_tensors(path)
    header = ModelHeader.parse(json_header, path, kind)
    return restore_network(tensors, header, path, registry), header


def restore_network(tensors: Mapping[str, Tensor], header: ModelHeader, path: Path, registry: Registry) -> nn.Module:
    """Build the network that a header describes, on the CPU, and load its weights. Raises UserError.

    With a process, this is the sampler around G: it takes x as other generators do.

    path: the file that both come from, for messages. A file can claim anything, so nothing larger than its own
    tensors is allocated.
    """
    named = ComponentHeader(header.kind, header.use, header.params, header.source)
    component = _find_component(tensors, named, path, registry)
    process = _restore_process(tensors, header, path, registry, takes_time=takes_time(component))
    channels = (process.channels if process else header.in_channels, header.out_channels)
    try:
        network = build_on_meta(component, channels, header.size, tensors)
    except (RuntimeError, TypeError, ArithmeticError) as error:  # torch raises these for impossible sizes
        reason = str(error).partition("\n")[0]
        raise DamagedFile(f"{path}: its {header.kind} '{header.use}' cannot be built ({reason})") from None
    except UserError as error:
        raise UserError(*(f"{path}: {fault}" for fault in error.faults)) from None
    divisor = getattr(network, "size_divisor", 1)
    if header.size_divisor not in (None, divisor):
        raise DamagedFile(
            f"{path}: its header says size_divisor {header.size_divisor}, and its {header.kind} has {divisor}"
        )
    own = without_external(network, network.state_dict())
    check_tensors_fit(own, tensors, str(path))  # before memory is allocated
    if len(own) < len(network.state_dict()):
        network = build_with_external_weights(component, channels, header.size, header.external_weights, path)
    elif {name for name, _ in network.named_buffers()} <= network.state_dict().keys():
        # as to_empty(device="cpu"), whose empty_like on the meta device imports sympy, which takes a second
        network = network._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))
    else:  # the constructor computes buffers that no file holds
        with rng.torch_seed(0):
            network = build_network(component, channels, header.size)
    load_into(network, tensors, str(path))
    if unsaved := find_unsaved(network):
        raise UserError(
            f"{path}: holds no values of '{unsaved[0]}' ({len(unsaved)} tensors of its {header.kind} '{header.use}', "
            "whose state_dict() leaves them out): train it with a version of the plugin that saves them"
        )
    return process.sampler(network) if process else network


def _restore_process(
    tensors: Mapping[str, Tensor], header: ModelHeader, path: Path, registry: Registry, *, takes_time: bool
) -> Process | None:
    """The process of the header, or None. takes_time: whether the generator of the header does. Raises UserError."""
    if header.process is None:
        return None
    component = _find_component(tensors, header.process, path, registry)
    try:
        channels = (header.in_channels, header.out_channels)
        return build_process(component, channels, header.size, takes_time=takes_time)
    except UserError as error:
        raise UserError(*(f"{path}: {fault}" for fault in error.faults)) from None


def _find_component(
    tensors: Mapping[str, Tensor], header: ComponentHeader, path: Path, registry: Registry
) -> Component:
    """The registered component with the header's parameters, checked. Raises UserError."""
    try:
        entry = registry.get(header.kind, header.use)
    except UserError as error:
        distribution = (header.source or "").rpartition(" ")[0]
        hint = f"; the file was written with the plugin '{distribution}': install it" if distribution else ""
        raise UserError(*(f"{path}: {fault}{hint}" for fault in error.faults)) from None
    factory = entry.load()
    sides = (side for tensor in tensors.values() if tensor.numel() for side in tensor.shape)
    limit = min(max(_MAX_FREE_PARAMETER, *sides, 0), _MAX_PARAMETER)
    for name, value in header.params.items():
        if any(number > limit for number in _find_numbers(value)):
            what = f"{path}: its {header.kind} '{header.use}'"
            raise DamagedFile(f"{what}: parameter {name} is larger than any side of its tensors ({limit} at most)")
    try:
        values = schema.check_params(
            factory, {name: value for name, value in header.params.items() if value is not None}
        )
    except (schema.InvalidParameters, TypeError) as error:
        raise UserError(f"{path}: its {header.kind} '{header.use}' {error}") from None
    component = Component(entry, factory, values)
    _warn_of_other_source(header, component, path)
    return component


def _warn_of_other_source(header: ComponentHeader, component: Component, path: Path) -> None:
    """Warn if another plugin's code has changed since it wrote the file: the same weights may give other images.

    p2pzoo's own networks give the images of earlier versions; tests hold that.
    """
    source = component_source(component)
    if header.source not in (None, source) and component.entry.distribution.partition(" ")[0] != "p2pzoo":
        warnings.warn(
            f"{path}: its {header.kind} '{header.use}' was {header.source} when it was written, and is {source} now: "
            "its images may differ",
            stacklevel=2,
        )


def _find_numbers(value: Any) -> Iterator[float]:
    """All numbers in a JSON value, nested ones too: 1e9 is an integer for some annotations."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _find_numbers(item)
    elif isinstance(value, dict):
        yield from _find_numbers(list(value.values()))
    elif isinstance(value, (int, float)):
        yield value
