"""Errors inside a component become one line that names it: kind, name, distribution and method.

The traceback says which component it was. So nothing is wrapped, and a training step costs nothing more.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from p2pzoo.config.experiment import Component
from p2pzoo.utils.errors import ComponentError, Error

# errors that have explanations of their own (files, memory)
NOT_OF_A_COMPONENT = (Error, OSError, MemoryError)


@contextlib.contextmanager
def naming_components(components: Iterable[Component]) -> Iterator[None]:
    """An exception that passed through one of these components becomes a ComponentError.

    >>> with naming_components([]):
    ...     print("no component, no error")
    no component, no error
    """
    try:
        yield
    except NOT_OF_A_COMPONENT:
        raise
    except Exception as error:
        found = _find_component(list(components), _frames(error))
        if found is None:
            raise
        component, method = found
        lines = str(error).strip().splitlines() or [""]
        entry = component.entry
        place = f"{component.where}  " if component.where else ""
        raise ComponentError(
            f"{place}{entry.kind} '{entry.full_name}' ({entry.distribution}) failed in {method}: "
            f"{type(error).__name__}: {lines[0]}"
        ) from error


def _frames(error: BaseException) -> list[FrameType]:
    """The frames of the traceback, outermost first."""
    frames, traceback = [], error.__traceback__
    while traceback:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    return frames


def _find_component(components: list[Component], frames: list[FrameType]) -> tuple[Component, str] | None:
    """The component whose code was entered last, and its method: an outer one called it."""
    for frame in reversed(frames):
        if _module(frame).partition(".")[0] in ("torch", "p2pzoo"):
            continue
        owner: Any = frame.f_locals.get("self")
        of_module = [component for component in components if component.factory.__module__ == _module(frame)]
        matches = [c for c in components if inspect.isclass(c.factory) and isinstance(owner, c.factory)] or of_module
        if matches:
            entered = [f for f in frames if _is_entry(f, matches[0], owner)]
            return matches[0], (entered[0] if entered else frame).f_code.co_name
    return None


def _is_entry(frame: FrameType, component: Component, owner: Any) -> bool:
    """Whether this frame is code of the component, on the same object if it has one."""
    is_same = owner is None or frame.f_locals.get("self") is owner
    return is_same and _module(frame).partition(".")[0] == component.factory.__module__.partition(".")[0]


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
