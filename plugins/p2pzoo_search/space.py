"""The table [search] of a recipe file: which settings are searched, and by which metric.

    [search]
    metric = "ssim"                                          # of the validation images; or --metric
    share = 0.25                                             # length of a trial: of the recipe's images [default: 1]
    generator.width = [32, 64]                               # one of these
    losses.l1.weight = { low = 10, high = 200, log = true }  # a number of this range

The other commands skip the table. It is read from the file itself, not from those that it extends.

Knows neither Optuna nor torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from p2pzoo.config.recipe import IN_PROFILES, Origin, Source, read_recipe
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import parse_toml
from p2pzoo.utils.suggest import did_you_mean

DIGITS = 4  # significant digits of a number from a range: a recipe stays readable
OWN_KEYS = ("metric", "share")  # as in [search] of a table of `p2pzoo bench`
RANGE_KEYS = ("low", "high", "log")
EXAMPLE = "generator.width = [32, 64] or losses.l1.weight = { low = 10, high = 200, log = true }"
# a trial with another one of these could not be compared with the others, or would train for another time
FIXED = ("seed", "title", "drop", "dataset", "metrics", "callbacks", "evaluate", "train.images", "train.epochs")
At = Callable[..., str]  # at("search", "metric") -> "mine.toml:12"


@dataclass(frozen=True)
class Choices:
    """One of these values, of any type that TOML has."""

    values: tuple[Any, ...]

    def ends(self) -> tuple[Any, ...]:
        """The values to check before anything is trained."""
        return self.values


@dataclass(frozen=True)
class Range:
    """A number from low to high, both included; integers if both are.

    log  whether factors are equally likely, and not differences
    """

    low: float
    high: float
    log: bool = False

    @property
    def is_integer(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def ends(self) -> tuple[Any, ...]:
        return self.low, self.high

    def round(self, number: float) -> float:
        """The number with DIGITS significant digits, inside the range.

        >>> Range(10.0, 200.0).round(56.12345)
        56.12
        """
        return number if self.is_integer else min(max(float(f"{number:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Space:
    """The table [search].

    settings  {dotted name: what it may be}, those that end in `.use` first: another component drops the parameters of
              the one before it
    metric    None: --metric names it
    share     length of a trial, of the recipe's images; None: not given
    source    the recipe file
    """

    settings: Mapping[str, Choices | Range]
    metric: str | None
    share: float | None
    source: Source

    def where(self, *key: str) -> str:
        """file:line of a key of [search]."""
        return str(Origin(self.source, ("search", *key)))

    def describe(self) -> dict[str, Any]:
        """The settings as plain values: two searches with equal ones can be one study."""
        return {
            name: list(choice.values) if isinstance(choice, Choices) else [choice.low, choice.high, choice.log]
            for name, choice in self.settings.items()
        }


def read_space(recipe: str) -> Space:
    """The table [search] of a recipe file.

    Raises UserError with every fault of the table, each with file:line; and, as `read_recipe` does, for a file that is
    no recipe.
    """
    source = read_recipe(recipe).home
    tree = parse_toml(source.text)
    search = tree.get("search")
    if not isinstance(search, dict):
        raise UserError(f"{recipe}: has no table [search]: add it, with settings such as {EXAMPLE}")

    def at(*key: str) -> str:
        return str(Origin(source, ("search", *key)))

    if faults := [*_own_faults(at, search), *_setting_faults(at, search)]:
        raise UserError(*faults)
    settings = {".".join(key): _build(value) for key, value in _iter_settings(search)}
    ordered = dict(sorted(settings.items(), key=lambda item: not item[0].endswith(".use")))
    return Space(ordered, search.get("metric"), search.get("share"), source)


def is_fixed(name: str) -> bool:
    """Whether a search must not change this setting.

    >>> is_fixed("train.images"), is_fixed("dataset.size"), is_fixed("train.batch_size")
    (True, True, False)
    """
    return any(f"{name}.".startswith(f"{each}.") for each in FIXED)


def _iter_settings(table: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(key, value) of everything but the own keys: a table with `low` or `high` is a range, another one holds more."""
    for name, value in table.items():
        key = (*prefix, name)
        if isinstance(value, dict) and not value.keys() & {*RANGE_KEYS}:
            yield from _iter_settings(value, key)
            if not value:
                yield key, value
        elif prefix or name not in OWN_KEYS:
            yield key, value


def _build(value: Any) -> Choices | Range:
    return Choices(tuple(value)) if isinstance(value, list) else Range(**value)


def _own_faults(at: At, search: Mapping[str, Any]) -> Iterator[str]:
    metric, share = search.get("metric", "l1"), search.get("share", 1)
    if not isinstance(metric, str):
        yield f"{at('metric')}  [search] metric = {json.dumps(metric, default=str)}: give the name of a metric"
    if type(share) not in (int, float) or not 0 < share <= 1:
        yield f"{at('share')}  [search] share = {json.dumps(share, default=str)}: must be above 0 and at most 1"


def _setting_faults(at: At, search: Mapping[str, Any]) -> Iterator[str]:
    found = False
    for key, value in _iter_settings(search):
        found = True
        name, where = ".".join(key), at(*key)
        if key[0] not in IN_PROFILES:
            yield f"{where}  [search] {name}: a recipe has no '{key[0]}'{did_you_mean(key[0], IN_PROFILES)}"
        elif is_fixed(name):
            yield f"{where}  [search] {name}: a search cannot change it, since all trials are measured alike; remove it"
        elif fault := _value_fault(value):
            yield f"{where}  [search] {name}: {fault}"
    if not found:
        yield f"{at()}  [search] names no setting: add one, such as {EXAMPLE}"


def _value_fault(value: Any) -> str | None:
    if isinstance(value, list):
        shown = [json.dumps(item, default=str, sort_keys=True) for item in value]
        if len(set(shown)) < 2 or len(set(shown)) < len(shown):
            return f"[{', '.join(shown)}] gives no choice: name two values or more, each once"
        return None
    if not isinstance(value, dict):
        return f"{json.dumps(value, default=str)} is one value: give choices or a range, such as {EXAMPLE}"
    if value.keys() - {*RANGE_KEYS} or not {"low", "high"} <= value.keys():
        return f"a range has low, high and, if factors count, log: {EXAMPLE}"
    low, high, log = value["low"], value["high"], value.get("log", False)
    if not all(type(number) in (int, float) and math.isfinite(number) for number in (low, high)):
        return f"low = {low!r}, high = {high!r}: both must be numbers"
    if not low < high:
        return f"the range from {low} to {high} is empty: low must be less than high"
    if not isinstance(log, bool):
        return f"log = {log!r}: write log = true, or remove it"
    return f"low = {low}: with log = true it must be above 0" if log and low <= 0 else None
