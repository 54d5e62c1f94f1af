"""Networks from components: built for the data's channels and size, given first weights, saved and loaded alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import torch
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import TypedDict

from p2pzoo import chance, params
from p2pzoo.checkpoint import Damaged, load_into, load_tensors, refuse_unfitting
from p2pzoo.contracts import Dataset
from p2pzoo.encodings import Encodings
from p2pzoo.errors import UserError
from p2pzoo.experiment import Component, Experiment
from p2pzoo.labels import Labels
from p2pzoo.registry import Registry
from p2pzoo.settings import Init
from p2pzoo.spectral import normalise

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
CONVOLUTIONS = (nn.modules.conv._ConvNd, nn.Linear)
READINGS = 15  # as torch's spectral_norm takes of the weights that it is given
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def build(component: Component, channels: tuple[int, int], size: tuple[int, int]) -> nn.Module:
    """A generator or discriminator for x and y of these channels and this (H, W). Raises UserError if it refuses."""
    network = component.build(in_channels=channels[0], out_channels=channels[1], size=size)
    if not isinstance(network, nn.Module):
        raise UserError(f"{component.entry.kind} '{component.entry.full_name}' is no torch.nn.Module")
    return network


@dataclass(frozen=True)
class Measures:
    """What a network costs and sees.

    parameters       how many, those that never learn too
    macs             multiplications (each with its addition) of convolutions and matrix products, for one image
    output           (H, W) of ŷ, or of D's first map
    receptive_field  of a discriminator that tells it
    """

    parameters: int
    macs: int
    output: tuple[int, int]
    receptive_field: int | None


def measures(component: Component, channels: tuple[int, int], size: tuple[int, int]) -> Measures:
    """Counted on torch's meta device: nothing is allocated, nothing computed. Raises UserError as `build` does."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build(component, channels, size).eval()
        x, y = (torch.zeros(1, count, *size) for count in channels)
        output = network(x) if component.entry.kind == "generator" else network(x, y)[0]
    return Measures(
        parameters=sum(p.numel() for p in network.parameters()),
        macs=counter.get_total_flops() // 2,
        output=(output.shape[-2], output.shape[-1]),
        receptive_field=getattr(network, "receptive_field", None),
    )


def initialise(network: nn.Module, init: Init, seed: int) -> None:
    """First weights, in place (see settings.Init; paper §3.3 and `weights_init` of train.lua)."""
    draw = {
        "normal": lambda w: nn.init.normal_(w, 0.0, init.gain),
        "xavier": lambda w: nn.init.xavier_normal_(w, gain=init.gain),
        "kaiming": lambda w: nn.init.kaiming_normal_(w, a=0, mode="fan_in"),
        "orthogonal": lambda w: nn.init.orthogonal_(w, gain=init.gain),
    }.get(init.weights)
    if draw is None:
        return
    with chance.torch_seed(seed):
        for module in network.modules():
            if isinstance(module, CONVOLUTIONS):
                if is_parametrized(module, "weight"):  # by spectral norm, say: computed anew at each reading
                    module.weight = draw(torch.empty_like(module.weight))
                    _settle(module)
                else:
                    draw(module.weight)
            elif isinstance(module, NORMS) and module.weight is not None:
                nn.init.normal_(module.weight, 1.0, 0.02)
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def give_own_weights(network: nn.Module, component: Component, seed: int) -> None:
    """What parts of the network bring themselves (see contracts.Generator), in place. Raises UserError."""
    with chance.torch_seed(seed), component.answerable():
        for module in network.modules():
            if callable(first_weights := getattr(module, "first_weights", None)):
                first_weights()


@torch.no_grad()
def _settle(module: nn.Module) -> None:
    """What follows its weights as they are read, as the vectors of spectral norm do, meets the new ones."""
    for _ in range(READINGS):
        _ = module.weight


def make_generator(experiment: Experiment, channels: tuple[int, int], size: tuple[int, int]) -> nn.Module:
    with chance.torch_seed(chance.key(experiment.seed, "init", "generator")):
        G = build(experiment.generator, channels, size)
    initialise(G, experiment.init, chance.key(experiment.seed, "init", "generator"))
    if experiment.init.generator:
        tensors, _ = load_tensors(experiment.init.generator)
        load_into(G, _grown(G, tensors, experiment.init.generator), str(experiment.init.generator))
    else:
        give_own_weights(G, experiment.generator, chance.key(experiment.seed, "init", "generator", "own"))
    if experiment.train.spectral_norm in ("generator", "both"):
        _normalise(G, experiment.generator, chance.key(experiment.seed, "init", "generator", "spectral"))
    return G


def _grown(G: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> Mapping[str, Tensor]:
    """A file's tensors as G's own, where G can grow from another network's (see contracts.Generator)."""
    grow = getattr(G, "grown_from", None)
    if grow is None or tensors.keys() == G.state_dict().keys():
        return tensors
    try:
        return grow(tensors)  # type: ignore[no-any-return]
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def make_discriminator(experiment: Experiment, channels: tuple[int, int], size: tuple[int, int]) -> nn.Module | None:
    if experiment.discriminator is None:
        return None
    with chance.torch_seed(chance.key(experiment.seed, "init", "discriminator")):
        D = build(experiment.discriminator, channels, size)
    initialise(D, experiment.init, chance.key(experiment.seed, "init", "discriminator"))
    if experiment.init.discriminator:
        tensors, _ = load_tensors(experiment.init.discriminator)
        load_into(D, tensors, str(experiment.init.discriminator))
    else:
        give_own_weights(D, experiment.discriminator, chance.key(experiment.seed, "init", "discriminator", "own"))
    if experiment.train.spectral_norm in ("discriminator", "both"):
        _normalise(D, experiment.discriminator, chance.key(experiment.seed, "init", "discriminator", "spectral"))
    return D


def _normalise(network: nn.Module, component: Component, seed: int) -> None:
    try:
        with chance.torch_seed(seed):
            normalise(network)
    except ValueError as error:
        raise UserError(
            f"{component.where}  spectral_norm: {component.entry.kind} '{component.entry.name}': {error}"
        ) from None


def model_header(
    experiment: Experiment, G: nn.Module, dataset: Dataset, channels: tuple[int, int], size: tuple[int, int]
) -> dict[str, Any]:
    """What a model file says of itself."""
    component = experiment.generator
    # no paths: the file is to load alone, and holds what was read from others
    values = {name: value for name, value in component.values.items() if not isinstance(value, Path)}
    return {
        "run": experiment.id,
        "generator": {"use": component.entry.full_name, "params": params.plain(values)},
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
        raise Damaged(f"{path}: holds no {kind}; give a run's model.safetensors")
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
        raise Damaged(f"{path}: its header is damaged: {where}: {first['msg'].lower()}") from None
    except ValueError as error:
        raise Damaged(f"{path}: its header is damaged: {error}") from None


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
        raise Damaged(f"{path}: its {kind} '{use}' has a larger {large[0]} than its tensors have sides")
    try:
        values = params.check(factory, {name: value for name, value in given.items() if value is not None})
    except (params.Faults, TypeError) as error:
        raise UserError(f"{path}: its {kind} '{use}' {error}") from None
    component = Component(entry, factory, values)
    try:
        with torch.device("meta"):
            G = build(component, channels, size)
    except (RuntimeError, TypeError, ArithmeticError) as error:  # torch's, at sizes that there are not
        told = str(error).partition("\n")[0]
        raise Damaged(f"{path}: its {kind} '{use}' cannot be made ({told})") from None
    if header.get("size_divisor", own := getattr(G, "size_divisor", 1)) != own:
        raise Damaged(f"{path}: says that it halves sides of {header['size_divisor']}, and its {kind} those of {own}")
    refuse_unfitting(G.state_dict(), tensors, str(path))  # before it takes memory
    if {name for name, _ in G.named_buffers()} <= G.state_dict().keys():
        G = G.to_empty(device="cpu")
    else:  # it has tensors that are in no file, and that its constructor computes
        with chance.torch_seed(0):
            G = build(component, channels, size)
    load_into(G, tensors, str(path))
    return G
