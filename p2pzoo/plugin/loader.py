"""Find plugins, load each by itself, and say where everything came from. Core code imports no plugin: only this does.

A plugin that fails stops nothing; its error is kept and shown by `p2pzoo plugins`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from p2pzoo.plugin import hookspecs
from p2pzoo.plugin.registry import KINDS, Entry, Registry
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.suggest import nearest

GROUP = "p2pzoo"


@dataclass(frozen=True)
class Plugin:
    """One entry point of the group: what it registered, or why it did not load."""

    name: str
    module: str
    distribution: str
    entries: tuple[Entry, ...] = field(default=(), repr=False)
    error: str | None = None


@functools.cache
def plugins() -> tuple[Plugin, ...]:
    """Every installed plugin, or those that $P2PZOO_PLUGINS (names, comma-separated) leaves in."""
    found = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    wanted = os.environ.get("P2PZOO_PLUGINS")
    if wanted is not None:
        names = [name.strip() for name in wanted.split(",") if name.strip()]
        installed = [point.name for point in found]
        for name in names:
            if name not in installed:
                raise UserError(f"P2PZOO_PLUGINS names plugin '{name}'{nearest(name, installed)}")
        found = [point for point in found if point.name in names]
    return collect(found)


@functools.cache
def registry() -> Registry:
    """The components of all plugins that load."""
    return registry_of(plugins())


def registry_of(loaded: Iterable[Plugin]) -> Registry:
    loaded = tuple(loaded)
    return Registry(
        (entry for plugin in loaded for entry in plugin.entries),
        broken=[plugin.name for plugin in loaded if plugin.error],
    )


def collect(points: Iterable[EntryPoint]) -> tuple[Plugin, ...]:
    """Load entry points one by one; a second one of the same name is an error of that one."""
    loaded: dict[str, Plugin] = {}
    clashes: list[Plugin] = []
    for point in points:
        distribution = f"{point.dist.name} {point.dist.version}" if point.dist else "no distribution"
        plugin = _load(point, distribution)
        if point.name in loaded:
            other = loaded[point.name].distribution
            error = f"{other} already provides a plugin named '{point.name}'"
            clashes.append(Plugin(point.name, point.value, distribution, error=error))
        else:
            loaded[point.name] = plugin
    return (*loaded.values(), *clashes)


def _load(point: EntryPoint, distribution: str) -> Plugin:
    entries: list[Entry] = []
    try:
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(hookspecs)
        manager.register(point.load(), point.name)
        manager.check_pending()
        for kind in (*KINDS, "command"):
            hook = getattr(manager.hook, hook_name(kind))
            hook(register=_register(entries, kind, point.name, distribution))
    except (Exception, SystemExit) as error:  # whatever a plugin does, the others work
        lines = str(error).strip().splitlines() or [""]
        return Plugin(point.name, point.value, distribution, error=f"{type(error).__name__}: {lines[0]}")
    return Plugin(point.name, point.value, distribution, tuple(entries))


def hook_name(kind: str) -> str:
    """The hook that registers components of this kind: "loss" -> "register_losses"."""
    return f"register_{kind}es" if kind.endswith("s") else f"register_{kind}s"


def _register(entries: list[Entry], kind: str, plugin: str, distribution: str) -> Callable[..., None]:
    def register(
        name: str,
        factory: str | Callable[..., Any],
        *,
        summary: str = "",
        paper: str = "",
        needs: tuple[str, ...] = (),
    ) -> None:
        if not name or name != name.lower() or not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"{kind} name {name!r}: use lower-case letters, digits, hyphens and underscores")
        if any(entry.kind == kind and entry.name == name for entry in entries):
            raise ValueError(f"{kind} '{name}' is registered twice")
        if isinstance(factory, str) and not all(factory.partition(":")):
            raise ValueError(f"{kind} '{name}': a lazy factory is written 'module:attribute', not {factory!r}")
        entries.append(Entry(kind, name, factory, plugin, distribution, summary, paper, tuple(needs)))

    return register
