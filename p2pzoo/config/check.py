"""Check a recipe against the installed components: every fault at once, each with file:line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from p2pzoo.config import optimizers
from p2pzoo.config.experiment import KIND_OF, WEIGHTED, Component, Experiment
from p2pzoo.config.recipe import COLLECTIONS, COMPONENTS, OWN_KEYS, Key, Recipe
from p2pzoo.config.settings import ADAMS_OWN, Compute, Evaluate, Init, Optimizer, Train
from p2pzoo.plugin import schema
from p2pzoo.plugin.registry import Registry
from p2pzoo.utils.errors import UserError


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
            self.faults.append(f"{self.recipe.where(('seed',))}  seed = {schema.show(seed)}: give an integer from 0 on")
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
        if compute and compute.kernels and not compute.lowering:
            self.fault(("compute", "kernels"), f'kernels = "{compute.kernels}": lowering = false has none')

    def game(self, settings: Mapping[str, Any]) -> None:
        """Faults of what [train], [optimizer] and [compute] ask of a step together."""
        train, optimizer, compute = settings["train"], settings["optimizer"], settings["compute"]
        if train and "discriminator" not in self.recipe.values:
            for name, asked in {"d_steps": train.d_steps > 1, "spectral_norm": _normed(train, "discriminator")}.items():
                if asked:
                    told = f"{name} = {schema.show(getattr(train, name))}: this recipe has no discriminator"
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
            return self.fault(key, f'must be a table with `use = "..."`, not {schema.show(table)}')
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
            self.fault((*key, "weight"), f"weight = {schema.show(weight)}: give a number from 0 on")
            return 1.0
        return float(weight)

    def settings(self, name: str, kind: type[Any]) -> Any:
        table = self.recipe.values.get(name, {})
        if not isinstance(table, dict):
            return self.fault((name,), f"must be a table, not {schema.show(table)}")
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
        own = schema.params_of(Optimizer).keys() - {"options", *(() if adam else ADAMS_OWN)}
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
        self, key: Key, factory: Any, table: Mapping[str, Any], check: Callable[..., dict[str, Any]] = schema.check
    ) -> dict[str, Any] | None:
        try:
            return check(factory, table)
        except schema.Faults as error:
            for name, message in error.faults:
                self.fault((*key, name) if name else key, message)
        except TypeError as error:
            self.fault(key, str(error))
        return None


def _normed(train: Train, side: str) -> bool:
    return train.spectral_norm in (side, "both")
