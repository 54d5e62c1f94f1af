"""The model file: G with a header that describes it, checked before anything is built from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import torch
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from torch import Tensor, nn
from typing_extensions import TypedDict

from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.label_maps import Labels
from p2pzoo.models.build import build
from p2pzoo.models.safetensors_io import DamagedFile, load_into, load_tensors, refuse_unfitting
from p2pzoo.plugin import schema
from p2pzoo.plugin.protocols import Dataset
from p2pzoo.plugin.registry import Registry
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError

LARGE = 1024  # of a parameter: any network may have one as large


Positive = Annotated[int, Field(ge=1, le=1 << 16)]


Finite = Annotated[float, Field(allow_inf_nan=False)]


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] >= bounds[1]:
        raise ValueError("its first number is to be the lower one")
    return bounds


Range = Annotated[tuple[Finite, Finite], AfterValidator(_rising)]


class _Network(TypedDict):
    use: str
    params: dict[str, Any]


class _Header(TypedDict):
    """Of a model file; what `model_header` writes."""

    network: _Network
    in_channels: Positive
    out_channels: Positive
    size: tuple[Positive, Positive]
    run: NotRequired[str]
    size_divisor: NotRequired[Positive]
    test_mode: NotRequired[Literal["paper", "eval"]]
    x_range: NotRequired[Range]
    y_range: NotRequired[Range]
    x_dtype: NotRequired[Literal["uint8", "uint16", "float32"]]
    y_dtype: NotRequired[Literal["uint8", "uint16", "float32"]]
    x_encoding: NotRequired[str]
    y_encoding: NotRequired[str]
    x_labels: NotRequired[dict[str, Any]]
    y_labels: NotRequired[dict[str, Any]]


HEADER = TypeAdapter(_Header)


def model_header(
    experiment: Experiment, G: nn.Module, dataset: Dataset, channels: tuple[int, int], size: tuple[int, int]
) -> dict[str, Any]:
    """What a model file says of itself."""
    component = experiment.generator
    # no paths: the file is to load alone, and holds what was read from others
    values = {name: value for name, value in component.values.items() if not isinstance(value, Path)}
    return {
        "run": experiment.id,
        "generator": {"use": component.entry.full_name, "params": schema.to_jsonable(values)},
        "in_channels": channels[0],
        "out_channels": channels[1],
        "size": list(size),
        "size_divisor": getattr(G, "size_divisor", 1),
        "x_range": list(dataset.x_range),
        "y_range": list(dataset.y_range),
        **_dtypes(dataset),
        **Encodings.of(dataset).header(),
        **_labels(dataset),
        "test_mode": experiment.evaluate.test_mode,
    }


def _dtypes(dataset: Dataset) -> dict[str, str]:
    """How x and y are stored, where that is not the uint8 that headers without these keys mean."""
    first = dataset[0]
    stored = {"x_dtype": first.x.dtype.name, "y_dtype": first.y.dtype.name}
    return {name: dtype for name, dtype in stored.items() if dtype != "uint8"}


def _labels(dataset: Dataset) -> dict[str, Any]:
    """The classes of the sides that are label maps."""
    sides = {name: getattr(dataset, name, None) for name in ("x_labels", "y_labels")}
    return {name: labels.header() for name, labels in sides.items() if labels}


def load_model(path: Path, registry: Registry) -> tuple[nn.Module, dict[str, Any]]:
    """G as its file describes it, on the CPU, and the header. Raises UserError."""
    tensors, header = load_tensors(path)
    return rebuild(tensors, header, path, registry), header


def check_header(header: Mapping[str, Any], kind: str, path: Path) -> None:
    """Raises Damaged where a model file does not say of itself what one says."""
    if not isinstance(header, Mapping) or not isinstance(header.get(kind), Mapping):
        raise DamagedFile(f"{path}: holds no {kind}; give a run's model.safetensors")
    try:
        HEADER.validate_json(json.dumps({**header, "network": header[kind]}), strict=True)
        encodings = Encodings.of(header)
        for side, channels in (("x", header["in_channels"]), ("y", header["out_channels"])):
            labels = Labels.of_header(header.get(f"{side}_labels"))
            if (labels or encodings.lab) and channels != (labels.channels if labels else {"x": 1, "y": 2}[side]):
                raise ValueError(f"{channels} channels are not what its {side} has")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedFile(f"{path}: its header is damaged: {where}: {first['msg'].lower()}") from None
    except ValueError as error:
        raise DamagedFile(f"{path}: its header is damaged: {error}") from None


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _integers(item)
    elif isinstance(value, int):
        yield value


def rebuild(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], path: Path, registry: Registry, kind: str = "generator"
) -> nn.Module:
    """G, or the network of another kind, from what its file at `path` holds. Raises UserError.

    A file may say anything of itself: nothing is made of it that its own tensors could not fill.
    """
    check_header(header, kind, path)
    use, given = header[kind]["use"], header[kind]["params"]
    channels, size = (header["in_channels"], header["out_channels"]), tuple(header["size"])
    entry = registry.get(kind, use)
    factory = entry.load()
    most = max([LARGE, *(side for tensor in tensors.values() for side in tensor.shape)])
    if large := [name for name, value in given.items() if any(number > most for number in _integers(value))]:
        raise DamagedFile(f"{path}: its {kind} '{use}' has a larger {large[0]} than its tensors have sides")
    try:
        values = schema.check(factory, {name: value for name, value in given.items() if value is not None})
    except (schema.Faults, TypeError) as error:
        raise UserError(f"{path}: its {kind} '{use}' {error}") from None
    component = Component(entry, factory, values)
    try:
        with torch.device("meta"):
            G = build(component, channels, size)
    except (RuntimeError, TypeError, ArithmeticError) as error:  # torch's, at sizes that there are not
        told = str(error).partition("\n")[0]
        raise DamagedFile(f"{path}: its {kind} '{use}' cannot be made ({told})") from None
    if header.get("size_divisor", own := getattr(G, "size_divisor", 1)) != own:
        raise DamagedFile(
            f"{path}: says that it halves sides of {header['size_divisor']}, and its {kind} those of {own}"
        )
    refuse_unfitting(G.state_dict(), tensors, str(path))  # before it takes memory
    if {name for name, _ in G.named_buffers()} <= G.state_dict().keys():
        G = G.to_empty(device="cpu")
    else:  # it has tensors that are in no file, and that its constructor computes
        with rng.torch_seed(0):
            G = build(component, channels, size)
    load_into(G, tensors, str(path))
    return G
