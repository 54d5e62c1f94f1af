"""A resolved recipe held against the registry: every component found, every parameter checked, or every fault named.

Imports the components' modules (their signatures are the schema), and so torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pzoo.config.recipe import COMPONENTS, OWN_KEYS, Key, Recipe
from p2pzoo.config.settings import Compute, Evaluate, Init, Optimizer, Train
from p2pzoo.plugin import schema
from p2pzoo.plugin.registry import Entry
from p2pzoo.utils.errors import UserError

KIND_OF = {"losses": "loss", "augmentations": "augmentation", "metrics": "metric", "callbacks": "callback"}
WEIGHTED = ("gan_loss", "losses")
RECIPE_ORDER = ("generator", "discriminator", "gan_loss", "losses", "augmentations", "dataset", "metrics", "callbacks")
# of [compute]: what changes no number but by rounding, and where it runs
NOT_IN_RUN_ID = (
    "device", "threads", "keep_memory", "checkpointing", "cuda_graphs", "prefetch", "kernels", "store",
    "store_megabytes", "store_disk_megabytes", "readers",
)  # fmt: skip


@dataclass(frozen=True)
class Component:
    """A registered component with the parameters this recipe gives it (defaults filled in)."""

    entry: Entry
    factory: Callable[..., Any]
    values: Mapping[str, Any]
    weight: float = 1.0
    where: str = ""  # file:line of its table

    def build(self, **offered: Any) -> Any:
        """Make it. What its constructor refuses becomes a UserError that names it and its place in the recipe."""
        with self.answerable():
            return schema.call_factory(self.factory, offered, self.values)

    @contextlib.contextmanager
    def answerable(self) -> Iterator[None]:
        """What is refused inside becomes a UserError that names this component and its place in the recipe."""
        at = f"{self.where}  " if self.where else ""
        try:
            yield
        except (ValueError, TypeError) as error:
            raise UserError(f"{at}{self.entry.kind} '{self.entry.name}': {error}") from error
        except UserError as error:
            raise UserError(*(f"{at}{fault}" for fault in error.faults)) from error

    def identity(self) -> dict[str, Any]:
        known = schema.identifying(self.factory, self.values)
        if self.entry.kind in (
            "generator",
            "discriminator",
        ):  # whose files hold weights: what counts is what is in them
            known = {name: _content(value) for name, value in known.items()}
        return {"use": self.entry.full_name, "weight": self.weight, **schema.to_jsonable(known)}


@dataclass(frozen=True)
class Experiment:
    """All that a run needs to know. `discriminator` and `gan_loss` are both there or both None."""

    recipe: Recipe
    seed: int
    generator: Component
    discriminator: Component | None
    gan_loss: Component | None
    losses: Mapping[str, Component]
    augmentations: Mapping[str, Component]  # in the order in which they act
    dataset: Component
    metrics: Mapping[str, Component]
    callbacks: Mapping[str, Component]
    train: Train
    optimizer: Optimizer
    init: Init
    compute: Compute
    evaluate: Evaluate
    continued_from: str | None = None  # the id of the run whose end is this one's start

    @property
    def title(self) -> str:
        return str(self.recipe.values.get("title", self.recipe.name))

    def components(self) -> list[Component]:
        """Everything that takes part in training."""
        single = (self.generator, self.discriminator, self.gan_loss, self.dataset)
        return [component for component in (*single, *self.losses.values(), *self.augmentations.values()) if component]

    def identity(self) -> dict[str, Any]:
        """What training depends on: no title, file name, profile name, device, metrics or callbacks."""
        tree: dict[str, Any] = {
            "seed": self.seed,
            "losses": {name: loss.identity() for name, loss in self.losses.items()},
            "train": _identifying(self.train),
            "optimizer": _identifying(self.optimizer, self.optimizer.table),
            "init": _identifying(self.init),
            "compute": {k: v for k, v in _identifying(self.compute).items() if k not in NOT_IN_RUN_ID},
        }
        for name in COMPONENTS:
            component = getattr(self, name)
            tree[name] = component.identity() if component else None
        if self.augmentations:  # a list, as their order matters
            tree["augmentations"] = [{"name": name, **each.identity()} for name, each in self.augmentations.items()]
        for name in ("generator", "discriminator"):
            if file := getattr(self.init, name):
                tree["init"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
        if self.continued_from:
            tree["continued_from"] = self.continued_from
        return tree

    @property
    def id(self) -> str:
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def resolved(self) -> dict[str, Any]:
        """A recipe with every value spelled out, defaults too, which resolves to this experiment again."""
        tree: dict[str, Any] = {"title": self.title, "profile": self.recipe.profile, "seed": self.seed}
        if self.continued_from:
            tree["continued_from"] = self.continued_from
        for name in RECIPE_ORDER:
            part = getattr(self, name)
            if isinstance(part, Component):
                tree[name] = _spelled(part, weighted=name in WEIGHTED)
            elif part:
                tree[name] = {n: _spelled(c, weighted=name in WEIGHTED) for n, c in part.items()}
        for name in ("train", "optimizer", "init", "compute", "evaluate"):
            part = getattr(self, name)
            tree[name] = _without_none(schema.to_jsonable(part.table if name == "optimizer" else vars(part)))
        return tree

    def origin(self, key: Key) -> str:
        """Where a value of `resolved()` came from: a line of a file, or the default of a component or of the core."""
        if key in self.recipe.origins:
            return str(self.recipe.origins[key])
        component: Any = self
        for part in key[:-1]:
            component = component[part] if isinstance(component, Mapping) else getattr(component, part)
        if isinstance(component, Component) and key[-1] not in OWN_KEYS:
            return f"default of {component.entry.full_name}"
        return "default"


def _identifying(settings: Any, table: Mapping[str, Any] | None = None) -> dict[str, Any]:
    values = vars(settings) if table is None else table
    return schema.to_jsonable(schema.identifying(type(settings), values))  # type: ignore[no-any-return]


def _spelled(component: Component, *, weighted: bool) -> dict[str, Any]:
    own: dict[str, Any] = {"use": component.entry.full_name}
    if weighted:
        own["weight"] = component.weight
    return own | _without_none(schema.to_jsonable(component.values))


def _content(value: Any) -> Any:
    """A file's digest; anything else as it is."""
    return hashlib.sha256(value.read_bytes()).hexdigest() if isinstance(value, Path) and value.is_file() else value


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}
