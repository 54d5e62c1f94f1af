"""Experiment: a checked recipe, with every component loaded and every parameter filled in. Its run id, too.

Loading components imports their modules, because their signatures are the schema; so it imports torch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from p2pzoo.config.combinations import find_conflicts
from p2pzoo.config.provenance import source_hashes
from p2pzoo.config.recipe import COMPONENTS, ZOO_KEYS, Key, Recipe
from p2pzoo.config.settings import AT_USE_KINDS, Compute, Evaluate, Init, Optimizer, Train, Translations
from p2pzoo.plugin import schema
from p2pzoo.plugin.model_source import locate_weights
from p2pzoo.plugin.registry import Entry
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.file_digests import hash_files
from p2pzoo.utils.folds import Fold

FOLD_KEYS = ("folds", "fold")  # of [dataset]
COLLECTION_KINDS = {"losses": "loss", "augmentations": "augmentation", "metrics": "metric", "callbacks": "callback"}
WEIGHTED_TABLES = ("gan_loss", "losses")
RECIPE_ORDER = (
    "generator", "discriminator", "process", "gan_loss", "losses", "augmentations", "dataset", "metrics", "callbacks"
)  # fmt: skip
# keys of [compute] that change results by rounding only, or say where to run: a run keeps its id when they change
NOT_IN_RUN_ID = (
    "device", "threads", "keep_memory", "checkpointing", "cuda_graphs", "prefetch", "kernels", "store",
    "store_megabytes", "store_disk_megabytes", "readers",
)  # fmt: skip


@dataclass(frozen=True)
class Component:
    """A registered component with all its parameters, from the recipe or by default.

    where     file:line of its table; "" if it comes from no recipe
    places    {parameter: file:line of the table that set it}: one of a profile, or of an extended file
    evaluate  of a metric: the keys of [metrics.NAME.evaluate]
    fold      of a dataset without folds of its own: which fold is tested (utils/folds.py)
    """

    entry: Entry
    factory: Callable[..., Any]
    values: Mapping[str, Any]
    weight: float = 1.0
    where: str = ""
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    fold: Fold | None = None
    places: Mapping[str, str] = field(default_factory=dict)

    def build(self, **offered: Any) -> Any:
        """Call the factory. Its errors become UserErrors that name the component and its place in the recipe.

        offered  positional arguments, by name: `in_channels=3`
        """
        with self.locate_errors():
            if self.fold:
                return self.fold.open(lambda split: self._call({**offered, "split": split}), offered["split"])
            return self._call(offered)

    def _call(self, offered: Mapping[str, Any]) -> Any:
        return schema.call_factory(self.factory, offered, self.values)

    @property
    def fold_table(self) -> dict[str, int]:
        """The keys of a recipe that name the fold; {} without one."""
        return self.fold.table if self.fold else {}

    @contextlib.contextmanager
    def locate_errors(self) -> Iterator[None]:
        """Errors inside become UserErrors that name this component and its place in the recipe."""
        try:
            yield
        except (ValueError, TypeError) as error:
            raise UserError(f"{self._place(str(error))}{self.entry.kind} '{self.entry.name}': {error}") from error
        except UserError as error:
            raise UserError(*(f"{self._place(fault)}{fault}" for fault in error.faults)) from error

    def _place(self, fault: str) -> str:
        """The beginning of a line: the table of the parameter whose path the fault begins with, or that it names."""
        paths = {len(str(path)): name for name, path in self.values.items()
                 if isinstance(path, Path) and fault.startswith(str(path))}  # fmt: skip
        named = [paths[max(paths)]] if paths else re.findall(r"\b(\w+)(?: =|:)", fault)
        places = [self.places[name] for name in named if name in self.places]
        place = self.where if self.where in places or not places else places[0]
        return f"{place}  " if place else ""

    def identity(self) -> dict[str, Any]:
        """What the run id holds of the component."""
        values = schema.omit_added_later(self.factory, self.values)
        if self.entry.kind in ("generator", "discriminator"):  # their files hold weights, which count by content
            values = hash_files(values)
        return {"use": self.entry.full_name, "weight": self.weight, **schema.to_jsonable(values), **self.fold_table}


@dataclass(frozen=True)
class Measurement:
    """A metric, and the translations that it measures."""

    metric: Component
    translations: Translations


@dataclass(frozen=True)
class Experiment:
    """Everything that a run depends on. `discriminator` and `gan_loss` are both present or both None."""

    recipe: Recipe
    seed: int
    generator: Component
    discriminator: Component | None
    gan_loss: Component | None
    losses: Mapping[str, Component]
    augmentations: Mapping[str, Component]  # in the order in which they are applied
    dataset: Component
    metrics: Mapping[str, Component]
    callbacks: Mapping[str, Component]
    train: Train
    optimizer: Optimizer
    init: Init
    compute: Compute
    evaluate: Evaluate
    process: Component | None = None  # how y is reached; without one G(x) is the translation
    continued_from: str | None = None  # id of the run whose final weights this run starts from

    @property
    def title(self) -> str:
        """The recipe's own title, else the name of its file."""
        return str(self.recipe.values.get("title", self.recipe.name))

    def components(self) -> list[Component]:
        """The components that training uses: no metrics, no callbacks."""
        single = (self.generator, self.discriminator, self.process, self.gan_loss, self.dataset)
        return [component for component in (*single, *self.losses.values(), *self.augmentations.values()) if component]

    @property
    def translations(self) -> Translations:
        """Those that [evaluate] names."""
        names = ("test_mode", "test_batch", "weights", *AT_USE_KINDS)
        return Translations(**{name: getattr(self.evaluate, name) for name in names})

    @functools.cached_property
    def measurements(self) -> Mapping[str, Measurement]:
        """What to measure, by name: each metric as METRIC, and as METRIC@IMAGES and METRIC@NAME for the translations of
        `evaluate.at` and `evaluate.also`. A key of the metric's own goes before one of those."""
        further = {"": {}, **{f"@{n}": {"at": n} for n in self.evaluate.at}}
        further |= {f"@{name}": table for name, table in self.evaluate.also.items()}
        return {
            f"{name}{suffix}": Measurement(metric, self.translations.changed(changes).changed(metric.evaluate))
            for suffix, changes in further.items()
            for name, metric in self.metrics.items()
            if not changes.keys() & metric.evaluate.keys() - {*AT_USE_KINDS}
        }

    @functools.cached_property
    def sources(self) -> Mapping[str, str]:
        """Version and source hash of the core and of each component. A resumed run is compared with these.

        They are read once, so that all files of a run name the sources that it began with.
        """
        return source_hashes(self)

    def identity(self) -> dict[str, Any]:
        """What the run id is made of: all that training depends on.

        It holds no title, file name, profile name, device, metrics or callbacks. Raises UserError for an experiment of
        `config.load_without_data` with `train.epochs`: runs are equal if their numbers of images are.
        """
        if self.train.images is None:
            raise UserError(f"{self._epochs_fault()}: needs the number of training pairs")
        tree: dict[str, Any] = {
            "seed": self.seed,
            "losses": {name: loss.identity() for name, loss in self.losses.items()},
            "train": _settings_identity(self.train),
            "optimizer": _settings_identity(self.optimizer, self.optimizer.table),
            "init": _settings_identity(self.init),
            "compute": {k: v for k, v in _settings_identity(self.compute).items() if k not in NOT_IN_RUN_ID},
        }
        for name in COMPONENTS:
            component = getattr(self, name)
            if component or name != "process":  # runs from before there were processes keep their ids
                tree[name] = component.identity() if component else None
        if self.augmentations:  # a list, because their order matters
            items = self.augmentations.items()
            tree["augmentations"] = [{"name": name, **component.identity()} for name, component in items]
        for name in ("generator", "discriminator"):
            if file := getattr(self.init, name):
                tree["init"][name] = hashlib.sha256(locate_weights(file).read_bytes()).hexdigest()
        if self.continued_from:
            tree["continued_from"] = self.continued_from
        return tree

    @functools.cached_property
    def id(self) -> str:
        """The run id: 10 hexadecimal digits of a hash of `identity()`. Computed once, as it reads files of weights."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def resolved(self) -> dict[str, Any]:
        """A recipe with every value, defaults included. It resolves to this experiment again."""
        tree: dict[str, Any] = {"title": self.title, "profile": self.recipe.profile, "seed": self.seed}
        if self.continued_from:
            tree["continued_from"] = self.continued_from
        for name in RECIPE_ORDER:
            part = getattr(self, name)
            if isinstance(part, Component):
                tree[name] = _component_table(part, weighted=name in WEIGHTED_TABLES)
            elif part:
                tree[name] = {n: _component_table(c, weighted=name in WEIGHTED_TABLES) for n, c in part.items()}
        for name in ("train", "optimizer", "init", "compute", "evaluate"):
            part = getattr(self, name)
            tree[name] = _without_none(schema.to_jsonable(part.table if name == "optimizer" else vars(part)))
        return tree

    def resolve_epochs(self) -> Experiment:
        """The experiment with `train.images` in place of `train.epochs`.

        Raises UserError if the data is missing, and for settings that do not fit this number of images.
        """
        epochs = self.train.epochs
        if epochs is None:
            return self
        dataset = self.dataset.build(split="train")
        if not hasattr(dataset, "__len__"):
            name = self.dataset.entry.full_name
            raise UserError(f"{self._epochs_fault()}: the dataset '{name}' has no length: give images")
        if len(dataset) == 0:
            raise UserError(f"{self._epochs_fault()}: the dataset has no training pairs")
        images = math.ceil(epochs * len(dataset) - 1e-6)  # 0.1 × 30 is a little more than 3
        resolved = replace(self, train=replace(self.train, images=images, epochs=None))
        if conflicts := [*find_conflicts(self.recipe.values, vars(resolved))]:
            raise UserError(*(self.recipe.describe_fault(*conflict) for conflict in conflicts))
        return resolved

    def _epochs_fault(self) -> str:
        return f"{self.recipe.where(('train', 'epochs'))}  [train] epochs = {self.train.epochs:g}"

    def origin(self, key: Key) -> str:
        """The origin of a value of `resolved()`: file:line, an option, or the default of a component or of the core."""
        if key == ("train", "images") and ("train", "epochs") in self.recipe.origins:
            epochs = self.recipe.values["train"]["epochs"]
            return f"{self.recipe.origins['train', 'epochs']}: {epochs} epochs of the training pairs"
        if key in self.recipe.origins:
            return str(self.recipe.origins[key])
        component: Any = self
        for part in key[:-1]:
            component = component[part] if isinstance(component, Mapping) else getattr(component, part)
        if isinstance(component, Component) and key[-1] not in ZOO_KEYS:
            return f"default of {component.entry.full_name}"
        return "default"


def _settings_identity(settings: Any, table: Mapping[str, Any] | None = None) -> dict[str, Any]:
    values = vars(settings) if table is None else table
    return schema.to_jsonable(schema.omit_added_later(type(settings), values))  # type: ignore[no-any-return]


def _component_table(component: Component, *, weighted: bool) -> dict[str, Any]:
    table: dict[str, Any] = {"use": component.entry.full_name}
    if weighted:
        table["weight"] = component.weight
    table |= _without_none(schema.to_jsonable(component.values)) | component.fold_table
    return table | ({"evaluate": schema.to_jsonable(component.evaluate)} if component.evaluate else {})


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None and value != {}}
