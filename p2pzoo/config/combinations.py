"""Settings that are valid alone and not together: each function yields (key, message) for what it finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from p2pzoo.config.recipe import Key
from p2pzoo.config.settings import Compute, Evaluate, Init, Optimizer, Train
from p2pzoo.plugin.model_source import locate_weights
from p2pzoo.plugin.schema import format_value
from p2pzoo.utils.plurals import format_count

Conflicts = Iterator[tuple[Key, str]]

# keys that only a discriminator uses, with the values that change nothing without one; None never does
KEYS_OF_DISCRIMINATOR: dict[Key, tuple[Any, ...]] = {
    ("train", "d_steps"): (1,),
    ("train", "spectral_norm"): ("none", "generator"),
    ("train", "pool_size"): (0,),
    ("optimizer", "lr_discriminator"): (),
    ("init", "discriminator"): (),
}
SCHEDULE_OF = {"schedule_gamma": "step", "schedule_every": "step", "schedule_power": "polynomial"}


def find_conflicts(values: Mapping[str, Any], settings: Mapping[str, Any]) -> Conflicts:
    """All conflicts of a recipe.

    values    the recipe's tables as written
    settings  {table: its checked settings, None if they have faults of their own}
    """
    train, optimizer, init, compute = (settings[name] for name in ("train", "optimizer", "init", "compute"))
    yield from _missing_partner(values)
    if init:
        yield from _initial_weights(init)
    if "discriminator" not in values:
        yield from _without_discriminator(settings)
    if train:
        if train.images is None and train.epochs is None:
            yield ("train",), "needs images (the length of the training) or epochs"
        yield from _accumulation(train)
        yield from _lua_order(train)
    if optimizer:
        yield from _unused_schedule_keys(optimizer)
    if compute:
        yield from _kernels(compute)
    if train and compute:
        yield from _checkpointing(train, compute)
    if settings["evaluate"]:
        yield from _evaluate(values, settings["evaluate"], train)


def _evaluate(values: Mapping[str, Any], evaluate: Evaluate, train: Train | None) -> Conflicts:
    """Conflicts of [evaluate], and of the tables [evaluate.also.NAME] and [metrics.NAME.evaluate] that change it."""
    tables: dict[Key, Mapping[str, Any]] = {("evaluate",): values.get("evaluate", {})}
    metrics = values.get("metrics")
    for name, metric in metrics.items() if isinstance(metrics, dict) else ():
        if isinstance(metric, dict) and isinstance(metric.get("evaluate"), dict):
            tables["metrics", name, "evaluate"] = metric["evaluate"]
    tables |= {("evaluate", "also", name): further for name, further in evaluate.also.items()}
    for key, table in tables.items():
        test_mode = table.get("test_mode", evaluate.test_mode)
        if (
            table.get("test_batch", evaluate.test_batch) != 1
            and test_mode == "eval"
            and {"test_mode", "test_batch"} & {*table}
        ):
            yield (
                (*key, "test_batch" if "test_batch" in table else "test_mode"),
                'test mode "eval" uses running statistics, so a test_batch changes nothing: remove one of the two',
            )
        if train and train.ema and table.get("weights") == "average":
            yield (
                (*key, "weights"),
                'weights = "average": with [train] ema the last weights are an average already; remove one of the two',
            )
        at = table.get("at", ())
        numbers = [n for n in (at if isinstance(at, (list, tuple)) else [at]) if isinstance(n, int)]
        if numbers != sorted(set(numbers)):
            yield (*key, "at"), f"at = {numbers}: give each number of images once, in increasing order"
        if train and train.images is not None and numbers and max(numbers) >= train.images:
            end = f"the training ends at {format_count(train.images, 'image')}, where G is measured anyway"
            yield (*key, "at"), f"at = {max(numbers)}: {end}; remove it, or train for longer"


def _missing_partner(values: Mapping[str, Any]) -> Conflicts:
    for name, partner in (("discriminator", "gan_loss"), ("gan_loss", "discriminator")):
        if name in values and partner not in values:
            yield (name,), f"needs a [{partner}]: add one, or drop the {name}"


def _initial_weights(init: Init) -> Conflicts:
    if init.gain != Init.gain and init.weights in ("kaiming", "own"):
        yield ("init", "gain"), f'gain = {init.gain}: weights = "{init.weights}" has no gain; remove it'
    for name in ("generator", "discriminator"):
        file = getattr(init, name)
        if file and not locate_weights(file).is_file():
            yield ("init", name), f'{name} = "{file}": no such file'


def _without_discriminator(settings: Mapping[str, Any]) -> Conflicts:
    for (table, name), without_effect in KEYS_OF_DISCRIMINATOR.items():
        value = getattr(settings[table], name, None)  # None too if the table has faults of its own
        if value not in (None, *without_effect):
            yield (table, name), f"{name} = {format_value(value)}: this recipe has no discriminator; remove {name}"


def _accumulation(train: Train) -> Conflicts:
    if train.batch_size % train.accumulate:
        message = f"accumulate = {train.accumulate}: batch_size = {train.batch_size} is not a multiple of it"
        yield ("train", "accumulate"), message
    if train.zero_biases and train.accumulate > 1:
        message = "zero_biases = true changes G between its two translations of an image; set only one of them"
        yield ("train", "accumulate"), f"accumulate = {train.accumulate}: {message}"


def _lua_order(train: Train) -> Conflicts:
    if train.order != "lua":
        return
    for name in ("d_steps", "accumulate"):
        if getattr(train, name) > 1:
            rule = f'order = "lua" takes one step of D and one of G, over the whole batch; set {name} = 1'
            yield ("train", name), f"{name} = {getattr(train, name)}: {rule}"
    if train.spectral_norm in ("discriminator", "both"):
        rule = 'order = "lua" needs a discriminator whose layers hold their weights directly; use "generator" or "none"'
        yield ("train", "spectral_norm"), f'spectral_norm = "{train.spectral_norm}": {rule}'


def _unused_schedule_keys(optimizer: Optimizer) -> Conflicts:
    for name, schedule in SCHEDULE_OF.items():
        value = getattr(optimizer, name)
        if value != getattr(Optimizer, name) and optimizer.schedule != schedule:
            rule = f'schedule = "{optimizer.schedule}" does not use it; remove it, or set schedule = "{schedule}"'
            yield ("optimizer", name), f"{name} = {value}: {rule}"


def _kernels(compute: Compute) -> Conflicts:
    if not compute.kernels:
        return
    if not compute.lowering:
        yield ("compute", "kernels"), f'kernels = "{compute.kernels}": lowering = false does not use it; remove one'
    if not compute.kernels.is_file():  # its content is read by the Engine: config may not import compute
        yield ("compute", "kernels"), f'kernels = "{compute.kernels}": no such file'


def _checkpointing(train: Train, compute: Compute) -> Conflicts:
    if compute.checkpointing and (train.order == "lua" or train.zero_biases):
        setting = 'order = "lua"' if train.order == "lua" else "zero_biases = true"
        reason = "changes weights before the backward pass, which would recompute activations with the changed weights"
        yield ("compute", "checkpointing"), f"checkpointing = true: [train] {setting} {reason}; remove one of them"
