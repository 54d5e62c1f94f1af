"""The component under test: its parameters, the component itself and images for it."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from p2pzoo.config.experiment import Component
from p2pzoo.models.build import build_network, on_meta
from p2pzoo.models.external_weights import bring_external_weights
from p2pzoo.models.process import takes_time
from p2pzoo.plugin import schema
from p2pzoo.plugin.registry import Entry
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError

_Size = tuple[int, int]

_WIDTHS = (4, 8, 16, 32)  # for a component with a parameter `width`: the smallest that it accepts keeps checks fast
_NETWORK_SIDES = (32, 64, 96, 128, 256)  # px, tried in this order; the largest is the side of most recipes
_MIN_COARSE_SIDE = 4  # pixels per side of a network's coarsest map: norms over fewer values amplify rounding
_BATCH_SIZE = 2  # the smallest that shows whether an image depends on the rest of its batch
IMAGE_SIDE = 32  # px of the images for components that are not networks
FEATURE_CHANNELS = (4,)  # of `tiny_components.TinyGenerator.features`
_NUM_CLASSES = 4  # of the labels, as in `tiny_components.TinyDataset`


class DoesNotApply(Exception):
    """The interface asks nothing of this component here, or the component cannot be built here."""


@dataclass
class ComponentCase:
    """One component with the parameters that the checks use.

    component  the component. Parameters that are not given have their defaults; only `width` is small instead
    cache      objects that one check builds and another check of the same component uses again
    """

    component: Component
    cache: dict[str, Any] = field(default_factory=dict)
    known_size: _Size | None = None  # `size`, if it had to be found to choose the width

    @classmethod
    def from_entry(cls, entry: Entry, parameters: Mapping[str, Any] | None = None) -> ComponentCase:
        """Raises UserError for parameters that a recipe could not give, and DoesNotApply if a required one is missing.

        Raises AssertionError if the signature is not one that a recipe can fill.
        """
        factory = entry.load()
        try:
            component, size = _with_small_width(entry, factory, dict(parameters or {}))
        except schema.InvalidParameters as error:
            if all(not name for name, _ in error.faults):
                raise DoesNotApply("; ".join(message for _, message in error.faults)) from None
            raise UserError(*(f"{entry.kind} '{entry.name}' {message}" for _, message in error.faults)) from None
        except TypeError as error:
            raise AssertionError(str(error)) from None
        return cls(component, known_size=size)

    @property
    def kind(self) -> str:
        return self.component.entry.kind

    @property
    def name(self) -> str:
        return self.component.entry.name

    def build(self, **positional: Any) -> Any:
        """The component itself. Raises DoesNotApply if a package, weights or files are missing."""
        with self.skip_if_missing():
            return self.component.build(**positional)

    def build_loss(self) -> Any:
        """A GAN loss or a loss for the images of `tiny_components.example_batch`."""
        offered: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "size": (IMAGE_SIDE, IMAGE_SIDE)}
        if "features" in self.component.entry.needs:
            offered["feature_channels"] = FEATURE_CHANNELS
        return self.build(**offered)

    @staticmethod
    @contextlib.contextmanager
    def skip_if_missing() -> Iterator[None]:
        """Turn a constructor's UserError (a package, weights or files are missing) into DoesNotApply."""
        try:
            yield
        except UserError as error:
            if isinstance(error.__cause__, UserError):
                raise DoesNotApply(error.faults[0]) from None
            raise

    def build_network(self, channels: tuple[int, int] = (3, 3), size: _Size | None = None, seed: int = 0) -> nn.Module:
        """A generator or discriminator with its own initial weights, in training mode. See also `copy_network`."""
        with rng.torch_seed(seed), self.skip_if_missing():
            network = build_network(self.component, channels, size or self.size).train()
            bring_external_weights(network, self.component, seed)
            return network

    def copy_network(self, seed: int = 0) -> nn.Module:
        """A copy of `build_network(seed=seed)`, which takes less time than building it again."""
        key = f"network {seed}"
        if key not in self.cache:
            self.cache[key] = self.build_network(seed=seed)
        return copy.deepcopy(self.cache[key])  # type: ignore[no-any-return]

    @functools.cached_property
    def size(self) -> _Size:
        """(H, W) of the images for a network: the smallest accepted one that leaves its coarsest map enough pixels."""
        return self.known_size or _smallest_size(self.component)

    def example_inputs(
        self, channels: tuple[int, int] = (3, 3), size: _Size | None = None, seed: int = 0
    ) -> tuple[Tensor, ...]:
        """The arguments of the network: (x,) or (x, t) of a generator, (x, y) or (x, y, labels) of a discriminator."""
        counts, size = channels[: 1 if self.kind == "generator" else 2], size or self.size
        images = [random_images(count, size, seed=seed + 1 + i) for i, count in enumerate(counts)]
        times = [torch.linspace(0.25, 0.75, _BATCH_SIZE)] if self.takes_time else []
        labels = [random_labels(size, seed=seed)] if _needs_labels(self.component) else []
        return (*images, *times, *labels)

    @property
    def takes_time(self) -> bool:
        """Whether it is a generator with the time as an argument."""
        return self.kind == "generator" and takes_time(self.component)

    @property
    def known_failures(self) -> Mapping[str, str]:
        """{check: reason}: the checks that the component itself declares as failing."""
        return getattr(self.component.factory, "known_failures", {})


def random_images(channels: int, size: _Size, *, batch: int = _BATCH_SIZE, seed: int = 0) -> Tensor:
    """(batch, channels, *size) in [-1, 1]; the same values for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, *size, generator=generator) * 2 - 1


def random_labels(size: _Size, *, seed: int = 0) -> Tensor:
    """(2, *size) of the classes 0 to 3; the same values for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(_NUM_CLASSES, (_BATCH_SIZE, *size), generator=generator)


def output_maps(output: Any) -> list[Tensor]:
    """The tensors of a network's output: [ŷ], or the maps of logits."""
    return [output] if isinstance(output, Tensor) else list(output)


def random_states() -> dict[str, Any]:
    """The states of all global random number generators, by the words for an error message."""
    numpy: Any = np.random.get_state(legacy=False)
    return {
        "Python's random numbers": random.getstate(),
        "NumPy's random numbers": (numpy["state"]["key"].tobytes(), numpy["state"]["pos"]),
        "torch's random numbers": torch.get_rng_state().numpy().tobytes(),
    }


def _accepted_widths(annotation: Any) -> list[int]:
    param = schema.Param("width", annotation, None)
    accepted = []
    for width in _WIDTHS:
        with contextlib.suppress(ValueError):
            accepted.append(param.check(width))
    return accepted


def _with_small_width(
    entry: Entry, factory: Callable[..., Any], parameters: Mapping[str, Any]
) -> tuple[Component, _Size | None]:
    """The component and, if its width was chosen here, the smallest size for it."""
    component = Component(entry, factory, schema.check_params(factory, parameters))
    width = schema.get_params(factory).get("width")
    if width is None or "width" in parameters or entry.kind not in ("generator", "discriminator"):
        return component, None
    for value in _accepted_widths(width.annotation):
        small = Component(entry, factory, schema.check_params(factory, {**parameters, "width": value}))
        try:
            return small, _smallest_size(small)
        except Exception:  # the network cannot be built this narrow
            continue
    return component, None


def _smallest_size(component: Component) -> _Size:
    first_error: Exception | None = None
    smallest: int | None = None
    wanted = 0
    # on the CPU only if it does not work on the meta device, which takes no memory
    for device, side in itertools.product(("meta", "cpu"), _NETWORK_SIDES):
        if smallest is not None and (device == "cpu" or side < wanted):
            continue
        try:
            with (
                on_meta() if device == "meta" else torch.device(device),
                torch.no_grad(),
                ComponentCase.skip_if_missing(),
            ):
                network = build_network(component, (3, 3), (side, side))
                image = torch.zeros(_BATCH_SIZE, 3, side, side)
                labels = [torch.zeros(_BATCH_SIZE, side, side, dtype=torch.long)] if _needs_labels(component) else []
                network(image) if component.entry.kind == "generator" else network(image, image, *labels)
        except (UserError, ValueError, RuntimeError) as error:
            first_error = first_error or error
            continue
        wanted = _MIN_COARSE_SIDE * getattr(network, "size_divisor", 1)
        if side >= wanted:
            return side, side
        smallest = smallest or side
    if smallest is not None:
        return smallest, smallest
    sides = ", ".join(map(str, _NETWORK_SIDES))
    raise AssertionError(f"accepts no images with sides of {sides} px: {first_line(first_error)}")


def _needs_labels(component: Component) -> bool:
    return component.entry.kind == "discriminator" and "labels" in component.entry.needs


def first_line(error: BaseException | None) -> str:
    """The error as one line for a table cell."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else ""
    return first if isinstance(error, (AssertionError, UserError)) else f"{type(error).__name__}: {first}"
