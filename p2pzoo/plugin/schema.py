"""A factory's signature is its schema: positional arguments come from the zoo, keyword-only ones from the recipe.

Values are validated by pydantic in strict JSON mode, which takes TOML's arrays for tuples and strings for paths, and
still refuses "100" and true for numbers.
"""

from __future__ import annotations

import inspect
import json
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from p2pzoo.plugin.protocols import AddedLater
from p2pzoo.utils.suggest import nearest

MISSING = inspect.Parameter.empty


@dataclass(frozen=True)
class Param:
    """One parameter that a recipe may set."""

    name: str
    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is MISSING

    def silent(self, value: Any) -> bool:
        """Whether this value says nothing that was not so before the parameter came (see `contracts.AddedLater`)."""
        return AddedLater in getattr(self.annotation, "__metadata__", ()) and bool(value == self.default)

    @property
    def type_name(self) -> str:
        return describe(self.annotation)

    def check(self, value: Any) -> Any:
        """The value in the parameter's own type. Raises ValueError with one line."""
        if self.annotation is Any:
            return value
        try:
            return TypeAdapter(self.annotation).validate_json(json.dumps(value, default=str), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
            raise ValueError(f"{where} {first['msg'][0].lower()}{first['msg'][1:]}".strip()) from None
        except PydanticSchemaGenerationError:
            raise ValueError(f"its component declares a type a recipe cannot give ({self.type_name})") from None


class Faults(ValueError):
    """Everything that is wrong with one table: (parameter or "", message)."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(message for _, message in faults))
        self.faults = faults


def params_of(factory: Callable[..., Any]) -> dict[str, Param]:
    """What a recipe may set of a factory. Raises TypeError for `**kwargs`, which would swallow misspelt
    names, and for annotations that cannot be read."""
    parameters = inspect.signature(factory).parameters
    swallows = [p for p in parameters.values() if p.kind is p.VAR_KEYWORD]
    if swallows:
        raise TypeError(f"takes **{swallows[0].name}, so a misspelt parameter would be ignored")
    try:
        hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory, include_extras=True)
    except NameError as error:
        raise TypeError(f"has annotations that cannot be read ({error}): import that at run time too") from None
    return {
        name: Param(name, hints.get(name, Any), p.default) for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY
    }


def positional_of(factory: Callable[..., Any]) -> list[str]:
    """The names of what the zoo fills."""
    parameters = inspect.signature(factory).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def check(factory: Callable[..., Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of the factory, from the table or its default. Raises Faults with all that is wrong."""
    params = params_of(factory)
    faults: list[tuple[str, str]] = []
    values: dict[str, Any] = {}
    for name in table.keys() - params.keys():
        faults.append(
            (
                name,
                f"has no parameter '{name}'{nearest(name, params)}"
                if params
                else f"has no parameter '{name}': it takes none",
            )
        )
    for name, param in params.items():
        if name in table:
            try:
                values[name] = param.check(table[name])
            except ValueError as error:
                faults.append((name, f"{name} = {show(table[name])}: {error}"))
        elif param.required:
            faults.append(("", f"lacks its parameter '{name}' ({param.type_name})"))
        else:
            values[name] = param.default
    if faults:
        raise Faults(faults)
    return values


def identifying(factory: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that a run's identity holds: all but parameters marked `AddedLater` that are at their default."""
    params = params_of(factory)
    return {name: value for name, value in values.items() if name not in params or not params[name].silent(value)}


def call_factory(factory: Callable[..., Any], offered: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    """Call the factory: its positional arguments by name from `offered`, the recipe's `values` as keywords.

    Raises TypeError if it asks for something the zoo does not offer to this kind.
    """
    names = positional_of(factory)
    if unknown := [name for name in names if name not in offered]:
        raise TypeError(f"asks the zoo for {', '.join(unknown)}; offered are {', '.join(offered) or 'none'}")
    return factory(**{name: offered[name] for name in names}, **values)


def to_jsonable(value: Any) -> Any:
    """A value as TOML and JSON know it: tuples become lists, paths strings."""
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return str(value)


def describe(annotation: Any) -> str:
    """An annotation as a person would write it: `int ≥ 1`, `"batch" | "none"`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "unset"
    if origin is typing.Annotated:
        return " ".join([describe(args[0]), *_bounds(args[1:])])
    if origin is typing.Literal:
        return " | ".join(json.dumps(arg) for arg in args)
    if origin is typing.Union or type(annotation).__name__ == "UnionType":
        return " | ".join(describe(arg) for arg in args)
    if origin in (tuple, list):
        return "[" + ", ".join("..." if arg is Ellipsis else describe(arg) for arg in args) + "]"
    return getattr(annotation, "__name__", str(annotation))


def _bounds(metadata: tuple[Any, ...]) -> list[str]:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of"}
    constraints = [part for item in metadata for part in getattr(item, "metadata", [item])]
    return [f"{signs[a]} {show(getattr(c, a))}" for c in constraints for a in signs if getattr(c, a, None) is not None]


def show(value: Any) -> str:
    """A value as a recipe would write it, cut to a readable length."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = json.dumps(to_jsonable(value), ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
