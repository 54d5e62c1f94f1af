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

from p2pzoo import params
from p2pzoo.errors import UserError
from p2pzoo.recipe import COLLECTIONS, COMPONENTS, OWN_KEYS, Key, Recipe
from p2pzoo.registry import Entry, Registry
from p2pzoo.settings import ADAMS_OWN, Compute, Evaluate, Init, Optimizer, Train
from p2pzoo.speed import optimizers
from p2pzoo.speed.kernels import read_kernels

KIND_OF = {"losses": "loss", "augmentations": "augmentation", "metrics": "metric", "callbacks": "callback"}
WEIGHTED = ("gan_loss", "losses")
SPELLED = ("generator", "discriminator", "gan_loss", "losses", "augmentations", "dataset", "metrics", "callbacks")
# of [compute]: what changes no number but by rounding, and where it runs
HOW_NOT_WHAT = (
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
            return params.fill(self.factory, offered, self.values)

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
        known = params.identifying(self.factory, self.values)
        if self.entry.kind in (
            "generator",
            "discriminator",
        ):  # whose files hold weights: what counts is what is in them
            known = {name: _content(value) for name, value in known.items()}
        return {"use": self.entry.full_name, "weight": self.weight, **params.plain(known)}


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
            "compute": {k: v for k, v in _identifying(self.compute).items() if k not in HOW_NOT_WHAT},
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
        for name in SPELLED:
            part = getattr(self, name)
            if isinstance(part, Component):
                tree[name] = _spelled(part, weighted=name in WEIGHTED)
            elif part:
                tree[name] = {n: _spelled(c, weighted=name in WEIGHTED) for n, c in part.items()}
        for name in ("train", "optimizer", "init", "compute", "evaluate"):
            part = getattr(self, name)
            tree[name] = _without_none(params.plain(part.table if name == "optimizer" else vars(part)))
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


def check(recipe: Recipe, registry: Registry, *, continued_from: str | None = None) -> Experiment:
    """Hold a recipe against what is installed. Raises UserError with every fault, each with file:line."""
    return _Checker(recipe, registry).experiment(continued_from)


class _Checker:
    def __init__(self, recipe: Recipe, registry: Registry) -> None:
        self.recipe, self.registry = recipe, registry
        self.faults = list(recipe.faults)

    def fault(self, key: Key, message: str) -> None:
        table = ".".join(key[: 2 if key[0] in COLLECTIONS else 1])
        self.faults.append(f"{self.recipe.where(key)}  [{table}] {message}")

    def experiment(self, continued_from: str | None) -> Experiment:
        values = self.recipe.values
        seed = values.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            self.faults.append(f"{self.recipe.where(('seed',))}  seed = {params.show(seed)}: give an integer from 0 on")
        single = {name: self.component((name,), name) for name in COMPONENTS if name in values}
        many: dict[str, Any] = {name: self.collection(name) for name in COLLECTIONS}
        kinds = {"train": Train, "init": Init, "compute": Compute, "evaluate": Evaluate}
        settings: dict[str, Any] = {name: self.settings(name, kind) for name, kind in kinds.items()}
        settings["optimizer"] = self.optimizer()
        self.whole(settings)
        if self.faults:
            raise UserError(*self.faults)
        return Experiment(
            recipe=self.recipe,
            seed=seed,
            generator=single["generator"],
            dataset=single["dataset"],
            discriminator=single.get("discriminator"),
            gan_loss=single.get("gan_loss"),
            continued_from=continued_from or values.get("continued_from"),
            **many,
            **settings,
        )

    def whole(self, settings: Mapping[str, Any]) -> None:
        """Faults of the recipe as a whole rather than of one table."""
        values, home = self.recipe.values, self.recipe.home.name
        for name in ("generator", "dataset"):
            if name not in values:
                self.faults.append(f'{home}  a recipe needs a [{name}]: extend "zoo:base.toml" or add one')
        if "discriminator" in values and "gan_loss" not in values:
            self.fault(("discriminator",), "has no [gan_loss] to play by: add one, or drop the discriminator")
        if "gan_loss" in values and "discriminator" not in values:
            self.fault(("gan_loss",), "has no [discriminator] to play with: add one, or drop the gan_loss")
        if "gan_loss" not in values and not values.get("losses"):
            self.faults.append(f"{home}  nothing to minimise: add [losses.NAME], or [discriminator] and [gan_loss]")
        init = settings["init"]
        if init and init.gain != Init.gain and init.weights in ("kaiming", "own"):
            self.fault(("init", "gain"), f'gain = {init.gain}: weights = "{init.weights}" has none')
        for name in ("generator", "discriminator"):
            file = getattr(init, name, None)
            if file and not file.is_file():
                self.fault(("init", name), f'{name} = "{file}": no such file')

        self.game(settings)
        compute = settings["compute"]
        if compute and compute.kernels:
            if not compute.lowering:
                self.fault(("compute", "kernels"), f'kernels = "{compute.kernels}": lowering = false has none')
            try:
                read_kernels(compute.kernels)
            except UserError as error:
                self.fault(("compute", "kernels"), f"kernels: {error}")

    def game(self, settings: Mapping[str, Any]) -> None:
        """Faults of what [train], [optimizer] and [compute] ask of a step together."""
        train, optimizer, compute = settings["train"], settings["optimizer"], settings["compute"]
        if train and "discriminator" not in self.recipe.values:
            for name, asked in {"d_steps": train.d_steps > 1, "spectral_norm": _normed(train, "discriminator")}.items():
                if asked:
                    told = f"{name} = {params.show(getattr(train, name))}: this recipe has no discriminator"
                    self.fault(("train", name), told)
        if optimizer and optimizer.lr_discriminator and "discriminator" not in self.recipe.values:
            told = f"lr_discriminator = {optimizer.lr_discriminator}: this recipe has no discriminator"
            self.fault(("optimizer", "lr_discriminator"), told)
        if train and train.batch_size % train.accumulate:
            told = f"accumulate = {train.accumulate}: batch_size = {train.batch_size} has no such number of equal parts"
            self.fault(("train", "accumulate"), told)
        if train and train.order == "lua":
            lua = 'order = "lua" is one move of each side, over the whole batch'
            for name in ("d_steps", "accumulate"):
                if getattr(train, name) > 1:
                    self.fault(("train", name), f"{name} = {getattr(train, name)}: {lua}")
            if _normed(train, "discriminator"):
                told = f'spectral_norm = "{train.spectral_norm}": order = "lua" takes a discriminator whose layers hold'
                self.fault(("train", "spectral_norm"), f"{told} their weights themselves")
        if train and train.zero_biases and train.accumulate > 1:
            told = "zero_biases = true changes G between its two translations of an image"
            self.fault(("train", "accumulate"), f"accumulate = {train.accumulate}: {told}")
        of_schedule = {"schedule_gamma": "step", "schedule_every": "step", "schedule_power": "polynomial"}
        for name, schedule in of_schedule.items() if optimizer else ():
            if getattr(optimizer, name) != getattr(Optimizer, name) and optimizer.schedule != schedule:
                told = f'{name} = {getattr(optimizer, name)}: schedule = "{optimizer.schedule}" has none'
                self.fault(("optimizer", name), told)
        if train and compute and compute.checkpointing and (train.order == "lua" or train.zero_biases):
            setting = 'order = "lua"' if train.order == "lua" else "zero_biases = true"
            told = "changes weights between a forward pass and its backward pass, which would be computed again by them"
            self.fault(("compute", "checkpointing"), f"checkpointing = true: [train] {setting} {told}")

    def collection(self, name: str) -> dict[str, Any]:
        table = self.recipe.values.get(name, {})
        if not isinstance(table, dict):
            self.fault((name,), f"must hold tables, as in [{name}.NAME]")
            return {}
        return {item: self.component((name, item), KIND_OF[name]) for item in table}

    def component(self, key: Key, kind: str) -> Any:
        table: Any = self.recipe.values
        for part in key:
            table = table[part]
        if not isinstance(table, dict):
            return self.fault(key, f'must be a table with `use = "..."`, not {params.show(table)}')
        use = table.get("use")
        if not isinstance(use, str):
            return self.fault(key, 'names no component: add `use = "NAME"` (`p2pzoo list` shows them)')
        try:
            entry = self.registry.get(kind, use)
            factory = entry.load()
        except UserError as error:
            return self.fault((*key, "use"), f'use = "{use}": {error}')
        own = {name: value for name, value in table.items() if name in OWN_KEYS}
        weight = self.weight(key, own.get("weight", 1.0), allowed=key[0] in WEIGHTED or "weight" not in own)
        values = self.checked(key, factory, {k: v for k, v in table.items() if k not in OWN_KEYS})
        return Component(entry, factory, values or {}, weight, self.recipe.where(key))

    def weight(self, key: Key, weight: Any, *, allowed: bool) -> float:
        if not allowed:
            self.fault((*key, "weight"), "has no weight: only losses have one")
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not 0 <= weight < float("inf"):
            self.fault((*key, "weight"), f"weight = {params.show(weight)}: give a number from 0 on")
            return 1.0
        return float(weight)

    def settings(self, name: str, kind: type[Any]) -> Any:
        table = self.recipe.values.get(name, {})
        if not isinstance(table, dict):
            return self.fault((name,), f"must be a table, not {params.show(table)}")
        values = self.checked((name,), kind, table)
        return None if values is None else kind(**values)

    def optimizer(self) -> Any:
        """[optimizer]: the zoo's own keys, and parameters of the class of torch.optim that it names."""
        key: Key = ("optimizer",)
        table = self.recipe.values.get("optimizer", {})
        use = table.get("use", Optimizer.use) if isinstance(table, dict) else Optimizer.use
        if not isinstance(table, dict) or not isinstance(use, str):
            return self.settings("optimizer", Optimizer)
        try:
            betas = {"betas": Optimizer.betas} if optimizers.has_betas(use) else {}
        except ValueError as error:
            return self.fault((*key, "use"), f'use = "{use}": {error}')
        adam = use == Optimizer.use
        own = params.params_of(Optimizer).keys() - {"options", *(() if adam else ADAMS_OWN)}
        values = self.checked(key, Optimizer, {name: value for name, value in table.items() if name in own})
        others = {name: value for name, value in table.items() if name not in own}
        options = self.checked(key, use, others, lambda use, table: optimizers.check_options(use, table, own))
        if values is None or options is None:
            return None
        options = options if adam else betas | options
        settings = Optimizer(**{**values, "options": tuple(options.items())})
        try:
            optimizers.try_out(use, settings.lr, settings.arguments)
        except ValueError as error:
            return self.fault((*key, "use"), f'use = "{use}": {error}')
        return settings

    def checked(
        self, key: Key, factory: Any, table: Mapping[str, Any], check: Callable[..., dict[str, Any]] = params.check
    ) -> dict[str, Any] | None:
        try:
            return check(factory, table)
        except params.Faults as error:
            for name, message in error.faults:
                self.fault((*key, name) if name else key, message)
        except TypeError as error:
            self.fault(key, str(error))
        return None


def _identifying(settings: Any, table: Mapping[str, Any] | None = None) -> dict[str, Any]:
    values = vars(settings) if table is None else table
    return params.plain(params.identifying(type(settings), values))  # type: ignore[no-any-return]


def _normed(train: Train, side: str) -> bool:
    return train.spectral_norm in (side, "both")


def _spelled(component: Component, *, weighted: bool) -> dict[str, Any]:
    own: dict[str, Any] = {"use": component.entry.full_name}
    if weighted:
        own["weight"] = component.weight
    return own | _without_none(params.plain(component.values))


def _content(value: Any) -> Any:
    """A file's digest; anything else as it is."""
    return hashlib.sha256(value.read_bytes()).hexdigest() if isinstance(value, Path) and value.is_file() else value


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}
