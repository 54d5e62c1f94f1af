"""A factory's signature is its schema: p2pzoo fills positional arguments, a recipe sets keyword-only ones (parameters).

pydantic validates values in strict JSON mode: it accepts arrays for tuples and strings for paths, as TOML needs, but
refuses "100" or true for a number.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import math
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from p2pzoo.plugin.protocols import AddedLater
from p2pzoo.utils.suggest import did_you_mean

MISSING = inspect.Parameter.empty
# pydantic's errors for a value that is no array, or one of another length
_ARRAY_ERRORS = ("tuple_type", "list_type", "too_short", "too_long", "missing")
MAX_SHOWN = 60  # characters of a value in a message, so that the message stays one line


@dataclass(frozen=True)
class Param:
    """One parameter that a recipe may set. `default` is MISSING if the recipe must set it."""

    name: str
    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is MISSING

    def omitted_from_id(self, value: Any) -> bool:
        """Whether a run id leaves this value out: the default of a parameter that is marked `AddedLater`."""
        return AddedLater in getattr(self.annotation, "__metadata__", ()) and bool(value == self.default)

    @property
    def type_name(self) -> str:
        """The annotation as text for people; see `describe_type`."""
        return describe_type(self.annotation)

    def check(self, value: Any) -> Any:
        """Convert a value to the parameter's type. Raises ValueError, with one line, if it does not fit."""
        if self.annotation is Any:
            return value
        try:
            return self._adapter.validate_json(json.dumps(value, default=str), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] in _ARRAY_ERRORS:
                raise ValueError(f"give an array, {self.type_name}{self._such_as([value], [value, value])}") from None
            if first["type"] == "dict_type":
                raise ValueError("give a table, { parameter = value }") from None
            where = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
            raise ValueError(f"{where} {first['msg'][0].lower()}{first['msg'][1:]}".strip()) from None
        except PydanticSchemaGenerationError:
            raise ValueError(f"a recipe cannot write the type that its component declares ({self.type_name})") from None

    def _such_as(self, *examples: Any) -> str:
        for example in examples:
            with contextlib.suppress(ValidationError):
                self._adapter.validate_json(json.dumps(example, default=str), strict=True)
                return f", such as {example}"
        return ""

    @functools.cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.annotation)


class InvalidParameters(ValueError):
    """All faults of one table: (parameter, message). The parameter is "" where a required one is missing."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(message for _, message in faults))
        self.faults = faults


def get_params(factory: Callable[..., Any]) -> dict[str, Param]:
    """The parameters of a factory that a recipe may set, its keyword-only arguments, by name.

    Raises TypeError if the factory takes `**kwargs`, which would hide misspelt names, or has unreadable annotations.

    >>> def crop(split: str, *, size: int = 256) -> None: ...
    >>> get_params(crop)
    {'size': Param(name='size', annotation=<class 'int'>, default=256)}
    """
    read = _read_params_once if isinstance(factory, Hashable) else _read_params
    return dict(read(factory))


def _read_params(factory: Callable[..., Any]) -> dict[str, Param]:
    parameters = inspect.signature(factory).parameters
    var_keywords = [p for p in parameters.values() if p.kind is p.VAR_KEYWORD]
    if var_keywords:
        raise TypeError(f"takes **{var_keywords[0].name}, so a misspelt parameter would be ignored")
    try:
        hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory, include_extras=True)
    except NameError as error:
        raise TypeError(f"has unreadable annotations ({error}): import that name at run time too") from None
    return {
        name: Param(name, hints.get(name, Any), p.default) for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY
    }


_read_params_once = functools.lru_cache(maxsize=1000)(_read_params)  # a run needs those of a component a dozen times


def get_positional_names(factory: Callable[..., Any]) -> list[str]:
    """The names of a factory's positional arguments, which p2pzoo fills."""
    parameters = inspect.signature(factory).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def check_params(
    factory: Callable[..., Any], table: Mapping[str, Any], other_keys: Sequence[str] = ()
) -> dict[str, Any]:
    """The values of all parameters of a factory: from the table, else the defaults.

    other_keys  keys that such a table has besides, for suggestions

    Raises InvalidParameters with everything that is wrong with the table.

    >>> def crop(split: str, *, size: int = 256) -> None: ...
    >>> check_params(crop, {"size": 64})
    {'size': 64}
    """
    params = get_params(factory)
    faults: list[tuple[str, str]] = []
    values: dict[str, Any] = {}
    for name in table.keys() - params.keys():
        suggestion = did_you_mean(name, [*params, *other_keys], names_to_list=params)
        if not params and "did you mean" not in suggestion:
            suggestion = ": it takes none"
        faults.append((name, f"has no parameter '{name}'{suggestion}"))
    for name, param in params.items():
        if name in table:
            try:
                values[name] = param.check(table[name])
            except ValueError as error:
                faults.append((name, f"{name} = {format_value(table[name])}: {error}"))
        elif param.required:
            faults.append(("", f"needs the parameter '{name}' ({param.type_name})"))
        else:
            values[name] = param.default
    if faults:
        raise InvalidParameters(faults)
    return values


def check_at_use(factory: Callable[..., Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a table whose parameters may differ at use from the training: those that the factory names.

    Raises InvalidParameters with everything that is wrong with the table.

    >>> def noise(*, steps: int, width: int) -> None: ...
    >>> noise.at_use = ("steps",)
    >>> check_at_use(noise, {"steps": 4})
    {'steps': 4}
    """
    params, known = get_params(factory), tuple(getattr(factory, "at_use", ()))
    faults: list[tuple[str, str]] = []
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            which = f"only {', '.join(known)} can" if known else "it has none that can"
            faults.append((name, f"'{name}' cannot differ from the training: {which}"))
            continue
        try:
            values[name] = params[name].check(value)
        except ValueError as error:
            faults.append((name, f"{name} = {format_value(value)}: {error}"))
    if faults:
        raise InvalidParameters(faults)
    return values


def omit_added_later(factory: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that enter the run id: all but those of parameters marked `AddedLater` that have their default."""
    params = get_params(factory)
    return {
        name: value for name, value in values.items() if name not in params or not params[name].omitted_from_id(value)
    }


def call_factory(factory: Callable[..., Any], offered: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    """Call the factory, with its positional arguments taken by name from `offered`, and `values` as keywords.

    Raises TypeError if it has a positional argument that p2pzoo does not offer to this kind.
    """
    names = get_positional_names(factory)
    if unknown := [name for name in names if name not in offered]:
        raise TypeError(f"takes {', '.join(unknown)} by position, but p2pzoo offers {', '.join(offered) or 'none'}")
    return factory(**{name: offered[name] for name in names}, **values)


def to_jsonable(value: Any) -> Any:
    """A value that TOML and JSON can hold: tuples become lists, paths and other objects strings.

    >>> to_jsonable({"betas": (0.5, 0.999)})
    {'betas': [0.5, 0.999]}
    """
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return str(value)


def describe_type(annotation: Any) -> str:
    """An annotation as text for people: `int ≥ 1`, `"batch" | "none"`. None is "unset", since TOML has no null.

    >>> describe_type(tuple[float, float] | None)
    '[float, float] | unset'
    >>> describe_type(Sequence[str])
    '[str]'
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "unset"
    if origin is typing.Annotated:
        return " ".join([describe_type(args[0]), *_bounds(args[1:])])
    if origin is typing.Literal:
        return " | ".join(json.dumps(arg) for arg in args)
    if origin is typing.Union or type(annotation).__name__ == "UnionType":
        return " | ".join(describe_type(arg) for arg in args)
    if annotation.__class__ is type and issubclass(annotation, dict):
        return "table"
    if origin in (tuple, list, Sequence):
        return "[" + ", ".join("..." if arg is Ellipsis else describe_type(arg) for arg in args) + "]"
    return getattr(annotation, "__name__", str(annotation))


def _bounds(metadata: tuple[Any, ...]) -> list[str]:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of"}
    constraints = [part for item in metadata for part in getattr(item, "metadata", [item])]
    bounds = [(sign, getattr(c, name, None)) for c in constraints for name, sign in signs.items()]
    return [f"{sign} {format_value(bound)}" for sign, bound in bounds if bound is not None]


def format_value(value: Any) -> str:
    """A value as a recipe writes it, shortened to MAX_SHOWN characters."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = json.dumps(to_jsonable(value), ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
