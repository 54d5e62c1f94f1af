"""Read the description of each parameter of a component, for `p2pzoo show`.

A description is pydantic's `Field(description=...)` in the annotation, or a line of a docstring in this form:

    width          channels of the first layer (64 in the paper)
    low, high      thresholds of the slope; a line starts above `high`
                   and continues down to `low`
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from p2pzoo.plugin.schema import get_params

ENTRY = re.compile(r"( *)([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*) {2,}(\S.*)")


@dataclass(frozen=True)
class _Entry:
    """An entry of a docstring's table: lines[start:stop] describe the parameters `names`."""

    names: list[str]
    text: str
    start: int
    stop: int


def describe_parameters(factory: Callable[..., Any]) -> dict[str, str]:
    """{keyword-only parameter: its description, "" if it has none} of a class, a function or a settings dataclass.

    The annotation comes first, then the docstrings of the class and of its __init__, then those of its base classes.
    Raises TypeError as `schema.get_params` does.

    >>> class UNet:
    ...     '''The generator of the paper.
    ...
    ...     width  channels of the first layer
    ...     '''
    ...     def __init__(self, *, width: int = 64, depth: int = 8): ...
    >>> describe_parameters(UNet)
    {'width': 'channels of the first layer', 'depth': ''}
    """
    tables = [_table(doc) for doc in _docstrings(factory)]
    return {
        name: _annotated_description(param.annotation) or next((t[name] for t in tables if name in t), "")
        for name, param in get_params(factory).items()
    }


def docstring_without(factory: Callable[..., Any], descriptions: Mapping[str, str]) -> str:
    """The docstring of a component without the entries that `descriptions` repeats; "" if there is none."""
    doc = inspect.cleandoc(factory.__doc__ or "")  # not that of a base class, such as nn.Module
    lines = doc.splitlines()
    for entry in reversed(list(_entries(lines))):
        if all(descriptions.get(name) == entry.text for name in entry.names):
            del lines[entry.start : entry.stop]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _docstrings(factory: Callable[..., Any]) -> Iterator[str]:
    """The docstrings of a function, or of a class and of its base classes."""
    for owner in inspect.getmro(factory) if inspect.isclass(factory) else (factory,):
        init = vars(owner).get("__init__") if inspect.isclass(owner) else None
        for doc in (owner.__doc__, getattr(init, "__doc__", None)):
            if doc:
                yield inspect.cleandoc(doc)


def _table(doc: str) -> dict[str, str]:
    """{name: text} of all entries; the first entry of a name wins."""
    table: dict[str, str] = {}
    for entry in _entries(doc.splitlines()):
        for name in entry.names:
            table.setdefault(name, entry.text)
    return table


def _entries(lines: list[str]) -> Iterator[_Entry]:
    start = 0
    while start < len(lines):
        match = ENTRY.fullmatch(lines[start])
        stop = start + 1
        if match:
            indent, names, text = match.groups()
            while stop < len(lines) and lines[stop].strip() and _indent(lines[stop]) > len(indent):
                stop += 1
            words = [text, *lines[start + 1 : stop]]
            yield _Entry(names.split(", "), " ".join(" ".join(words).split()), start, stop)
        start = stop


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _annotated_description(annotation: Any) -> str:
    """`Field(description=...)` of an annotation, or of a member of its union; "" if there is none."""
    for item in getattr(annotation, "__metadata__", ()):
        if isinstance(text := getattr(item, "description", None), str):
            return " ".join(text.split())
    if typing.get_origin(annotation) is typing.Annotated:
        return _annotated_description(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(filter(None, map(_annotated_description, typing.get_args(annotation))), "")
    return ""
