"""Check a recipe against the installed components: every fault at once, each with file:line."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from p2pzoo.config import optimizers
from p2pzoo.config.combinations import find_conflicts
from p2pzoo.config.experiment import COLLECTION_KINDS, FOLD_KEYS, WEIGHTED_TABLES, Component, Experiment
from p2pzoo.config.frozen_table import FrozenTable
from p2pzoo.config.paths import locate_paths
from p2pzoo.config.recipe import COLLECTIONS, COMPONENTS, ZOO_KEYS, Key, Recipe
from p2pzoo.config.settings import ADAM_KEYS, AT_USE_KINDS, Compute, Evaluate, EvaluateMetric, Init, Optimizer, Train
from p2pzoo.plugin import schema
from p2pzoo.plugin.model_source import pin_model
from p2pzoo.plugin.registry import Registry
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.folds import Fold


def check_recipe(recipe: Recipe, registry: Registry, *, continued_from: str | None = None) -> Experiment:
    """The experiment that a recipe describes. Raises UserError with every fault, each with file:line.

    `p2pzoo.config.load` is the way to call this.
    """
    return _Checker(recipe, registry).build_experiment(continued_from)


# what other codes call settings, and how a recipe says it
OTHER_WORDS = {
    "n_epochs": "set epochs",
    "num_epochs": "set epochs",
    "max_epochs": "set epochs",
    "steps": "set images = steps × batch_size",
    "iterations": "set images = steps × batch_size",
    "lr": "set optimizer.lr",
    "learning_rate": "set optimizer.lr",
    "beta1": "set optimizer.betas = [0.5, 0.999]",
    "weight_decay": "set optimizer.weight_decay",
    "lambda_L1": "set losses.l1.weight",
    "ngf": "set generator.width",
    "ndf": "set discriminator.width",
    "seed": "seed is no key of a table: write it above all tables",
}


class _Checker:
    """Checks table after table and collects the faults."""

    def __init__(self, recipe: Recipe, registry: Registry) -> None:
        self.recipe, self.registry = recipe, registry
        self.faults = list(recipe.faults)

    def add_fault(self, key: Key, message: str) -> None:
        self.faults.append(self.recipe.describe_fault(key, message))

    def build_experiment(self, continued_from: str | None) -> Experiment:
        values = self.recipe.values
        seed = self.check_seed(values.get("seed", 0))
        single: dict[str, Any] = dict.fromkeys(COMPONENTS)
        single |= {name: self.check_component((name,), name) for name in COMPONENTS if name in values}
        collections: dict[str, Any] = {name: self.check_collection(name) for name in COLLECTIONS}
        classes = {"train": Train, "init": Init, "compute": Compute, "evaluate": Evaluate}
        settings: dict[str, Any] = {name: self.check_settings(name, cls) for name, cls in classes.items()}
        settings["init"] = self.pin_initial_weights(settings["init"])
        settings["optimizer"] = self.check_optimizer()
        settings["evaluate"] = self.check_further_translations(settings["evaluate"], single)
        collections["metrics"] = self.check_metrics_at_use(collections["metrics"], single)
        self.check_required_tables()
        for key, message in find_conflicts(values, settings):
            self.add_fault(key, message)
        if self.faults:
            raise UserError(*self.faults)
        return Experiment(
            recipe=self.recipe,
            seed=seed,
            continued_from=continued_from or values.get("continued_from"),
            **single,
            **collections,
            **settings,
        )

    def check_seed(self, seed: Any) -> int:
        if isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63:
            return seed
        where = self.recipe.where(("seed",))
        self.faults.append(f"{where}  seed = {schema.format_value(seed)}: give an integer from 0 to 2**63 - 1")
        return 0

    def check_required_tables(self) -> None:
        values, home = self.recipe.values, self.recipe.home.name
        for name in ("generator", "dataset"):
            if name not in values:
                self.faults.append(f'{home}  a recipe needs a [{name}]: extend "zoo:base.toml" or add one')
        if "gan_loss" not in values and not values.get("losses"):
            self.faults.append(f"{home}  nothing to minimise: add [losses.NAME], or [discriminator] and [gan_loss]")

    def check_collection(self, name: str) -> dict[str, Any]:
        table = self.recipe.values.get(name, {})
        if not isinstance(table, dict):
            self.add_fault((name,), f"must hold tables, as in [{name}.NAME]")
            return {}
        for item in table:
            if not item or not item.isprintable() or "@" in item:
                self.add_fault((name, item), f"{name}.{schema.format_value(item)}: give a name, without @")
        return {item: self.check_component((name, item), COLLECTION_KINDS[name]) for item in table}

    def check_component(self, key: Key, kind: str) -> Component | None:
        """The component of one table; None if it has a fault that leaves nothing to build."""
        table: Any = self.recipe.values
        for part in key:
            table = table[part]
        if not isinstance(table, dict):
            self.add_fault(key, f'must be a table with `use = "..."`, not {schema.format_value(table)}')
            return None
        use = table.get("use")
        if not isinstance(use, str):
            self.add_fault(key, 'names no component: add `use = "NAME"` (`p2pzoo list` shows them)')
            return None
        try:
            entry = self.registry.get(kind, use, named_in=self.recipe.file_of((*key, "use")))
            factory = entry.load()
        except UserError as error:
            self.add_fault((*key, "use"), f'use = "{use}": {error}')
            return None
        takes_weight = key[0] in WEIGHTED_TABLES or "weight" not in table
        weight = self.check_weight(key, table.get("weight", 1.0), allowed=takes_weight)
        keys = ZOO_KEYS if takes_weight and kind in ("gan_loss", "loss") else ("use",)
        own_keys, evaluate, fold = {*ZOO_KEYS}, {}, None
        if kind == "metric":
            evaluate = self.check_evaluate_metric(key, table.get("evaluate", {}))
            own_keys |= {"evaluate"}
        if kind == "dataset" and "fold" not in schema.get_params(factory):
            fold = self.check_fold(key, table)
            own_keys |= {*FOLD_KEYS}
        table = {name: value for name, value in table.items() if name not in own_keys}
        values = self.check_values(key, factory, table, functools.partial(schema.check_params, other_keys=keys))
        # of several layers with this table in one file, the one that names the component
        used, last = (self.recipe.origins.get(each) for each in ((*key, "use"), key))
        in_one_file = used is not None and last is not None and used.source is last.source
        where = self.recipe.where_table((*key, "use")) if in_one_file else self.recipe.where(key)
        places = {name: self.recipe.where_table((*key, name)) for name in table}
        return Component(entry, factory, values or {}, weight, where, evaluate, fold, places)

    def check_fold(self, key: Key, table: Mapping[str, Any]) -> Fold | None:
        """The fold that [dataset] names; None if it names none."""
        folds, fold = table.get("folds"), table.get("fold", 0)
        if folds is None:
            if "fold" in table:
                self.add_fault((*key, "fold"), "fold: of how many? Add folds = 3, or remove it")
            return None
        for name, value, low, high in (("folds", folds, 2, 1000), ("fold", fold, 0, None)):
            top = folds - 1 if high is None and isinstance(folds, int) else high or 0
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= top:
                shown = schema.format_value(value)
                self.add_fault((*key, name), f"{name} = {shown}: give a number from {low} to {max(top, low)}")
                return None
        return Fold(fold, folds)

    def check_evaluate_metric(self, key: Key, table: Any) -> dict[str, Any]:
        """The keys of [metrics.NAME.evaluate] that are set."""
        key = (*key, "evaluate")
        if not isinstance(table, dict):
            self.add_fault(key, f"evaluate must be a table, not {schema.format_value(table)}")
            return {}
        values = self.check_values(key, EvaluateMetric, table) or {}
        return {name: value for name, value in values.items() if value is not None}

    def check_further_translations(self, evaluate: Evaluate | None, single: Mapping[str, Any]) -> Evaluate | None:
        """[evaluate] with its tables of other parameters and other translations checked."""
        if evaluate is None:
            return None
        key: Key = ("evaluate",)
        also = {}
        for name, table in evaluate.also.items():
            place = (*key, "also", name)
            if not re.fullmatch(r"[A-Za-z][\w-]*", name):
                self.add_fault(place, f"also.{name}: the name must be letters, digits, - and _, a letter first")
            elif not isinstance(table, dict):
                self.add_fault(place, f"also.{name} must be a table, not {schema.format_value(table)}")
            elif values := self.check_values(place, EvaluateMetric, table):
                set_values = {name: value for name, value in values.items() if value is not None}
                also[name] = FrozenTable(self.check_at_use(place, set_values, single))
        return replace(evaluate, **self.check_at_use(key, vars(evaluate), single), also=FrozenTable(also))

    def check_metrics_at_use(self, metrics: Mapping[str, Any], single: Mapping[str, Any]) -> dict[str, Any]:
        """The metrics with the tables `process` and `generator` of [metrics.NAME.evaluate] checked."""
        return {
            name: metric
            and replace(metric, evaluate=self.check_at_use(("metrics", name, "evaluate"), metric.evaluate, single))
            for name, metric in metrics.items()
        }

    def check_at_use(self, key: Key, table: Mapping[str, Any], single: Mapping[str, Any]) -> dict[str, Any]:
        """The table without `also`, its parameters of the process and of the generator checked."""
        values = {name: value for name, value in table.items() if name != "also"}
        for kind in AT_USE_KINDS:
            if not values.get(kind):
                continue
            component = single.get(kind)
            if kind not in self.recipe.values:
                self.add_fault((*key, kind), f"{kind}: this recipe has no [{kind}] whose parameters could differ")
            elif component:  # else its table has faults of its own
                checked = self.check_values((*key, kind), component.factory, values[kind], schema.check_at_use)
                values[kind] = FrozenTable(checked or {})
        return values

    def check_weight(self, key: Key, weight: Any, *, allowed: bool) -> float:
        if not allowed:
            self.add_fault((*key, "weight"), "has no weight: only losses have one")
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not is_number or not 0 <= weight < float("inf"):
            self.add_fault((*key, "weight"), f"weight = {schema.format_value(weight)}: give a number of at least 0")
            return 1.0
        return float(weight)

    def check_settings(self, name: str, cls: type[Any]) -> Any:
        """The settings of one of the core's own tables; None if they have faults."""
        table = self.recipe.values.get(name, {})
        if not isinstance(table, dict):
            self.add_fault((name,), f"must be a table, not {schema.format_value(table)}")
            return None
        known = schema.get_params(cls)
        for key in table.keys() & OTHER_WORDS.keys() - known.keys():
            self.add_fault((name, key), f"has no parameter '{key}': {OTHER_WORDS[key]}")
        values = self.check_values((name,), cls, {k: v for k, v in table.items() if k in known or k not in OTHER_WORDS})
        return None if values is None else cls(**values)

    def pin_initial_weights(self, init: Init | None) -> Init | None:
        """[init] with exact addresses: the run's recipe.toml then names the version that it started from."""
        for name in ("generator", "discriminator"):
            try:
                if file := getattr(init, name, None):
                    init = replace(init, **{name: pin_model(file)})  # type: ignore[type-var]
            except UserError as error:
                self.add_fault(("init", name), f'{name} = "{file}": {error}')
                return None
        return init

    def check_optimizer(self) -> Any:
        """[optimizer] has keys of the zoo, and parameters of the class of torch.optim that it names."""
        key: Key = ("optimizer",)
        table = self.recipe.values.get("optimizer", {})
        use = table.get("use", Optimizer.use) if isinstance(table, dict) else Optimizer.use
        if not isinstance(table, dict) or not isinstance(use, str):
            return self.check_settings("optimizer", Optimizer)
        try:
            betas = {"betas": Optimizer.betas} if optimizers.has_betas(use) else {}
        except ValueError as error:
            return self.add_fault((*key, "use"), f'use = "{use}": {error}')
        is_adam = use == Optimizer.use
        zoo_keys = schema.get_params(Optimizer).keys() - {"options", *(() if is_adam else ADAM_KEYS)}
        values = self.check_values(key, Optimizer, {name: value for name, value in table.items() if name in zoo_keys})
        others = {name: value for name, value in table.items() if name not in zoo_keys}
        options = self.check_values(key, use, others, lambda use, table: optimizers.check_options(use, table, zoo_keys))
        if values is None or options is None:
            return None
        options = options if is_adam else betas | options
        settings = Optimizer(**{**values, "options": tuple(options.items())})
        try:
            optimizers.try_step(use, settings.lr, settings.arguments)
        except ValueError as error:
            return self.add_fault((*key, "use"), f'use = "{use}": {error}')
        return settings

    def check_values(
        self,
        key: Key,
        factory: Any,
        table: Mapping[str, Any],
        check: Callable[..., dict[str, Any]] = schema.check_params,
    ) -> dict[str, Any] | None:
        """All parameters of a factory with their values; None after adding a fault."""
        try:
            return locate_paths(self.recipe, key, check(factory, table))
        except schema.InvalidParameters as error:
            for name, message in error.faults:
                self.add_fault((*key, name) if name else key, message)
        except TypeError as error:
            self.add_fault(key, str(error))
        return None
