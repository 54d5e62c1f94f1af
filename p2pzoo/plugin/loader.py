"""Find the installed plugins, load each separately, and record where every entry comes from.

Only this module loads plugins; the core imports none by name. A plugin that fails does not stop the others: its error
is kept, and `p2pzoo plugins` prints it.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any, get_args

import pluggy

from p2pzoo.plugin import hookspecs
from p2pzoo.plugin.batch import BatchField
from p2pzoo.plugin.registry import KINDS, NO_COMPONENTS, Entry, Registry
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.migration import explain_import_error
from p2pzoo.utils.suggest import did_you_mean

BATCH_FIELDS = get_args(BatchField)
# What a component of each kind may name in `needs`; other kinds need nothing.
NEEDS = {
    "discriminator": ("labels",),
    "gan_loss": (*BATCH_FIELDS, "features", "z"),
    "loss": (*BATCH_FIELDS, "features", "z"),
    "metric": BATCH_FIELDS,
    "augmentation": BATCH_FIELDS,
}
GROUP = "p2pzoo"  # the entry-point group in a plugin's pyproject.toml


@dataclass(frozen=True)
class Plugin:
    """One entry point of the group, loaded.

    module        the module that it names
    distribution  name and version of the installed package
    entries       the components and commands that it registered; none if it did not load
    error         one line that says why it did not load; None if it did
    """

    name: str
    module: str
    distribution: str
    entries: tuple[Entry, ...] = field(default=(), repr=False)
    error: str | None = None


@functools.cache
def plugins() -> tuple[Plugin, ...]:
    """All installed plugins, or only those named in $P2PZOO_PLUGINS (comma-separated). Loads them at the first call.

    Raises UserError if $P2PZOO_PLUGINS names a plugin that is not installed.
    """
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    setting = os.environ.get("P2PZOO_PLUGINS")
    if setting is not None:
        selected = [name.strip() for name in setting.split(",") if name.strip()]
        installed = [point.name for point in points]
        for name in selected:
            if name not in installed:
                raise UserError(f"P2PZOO_PLUGINS names plugin '{name}'{did_you_mean(name, installed)}")
        points = [point for point in points if point.name in selected]
    return load_entry_points(points)


@functools.cache
def registry() -> Registry:
    """The components and commands of all plugins that load."""
    return build_registry(plugins())


def build_registry(loaded: Iterable[Plugin]) -> Registry:
    """The registry of these plugins."""
    loaded = tuple(loaded)
    return Registry(
        (entry for plugin in loaded for entry in plugin.entries),
        broken=[plugin.name for plugin in loaded if plugin.error],
    )


def load_entry_points(points: Iterable[EntryPoint]) -> tuple[Plugin, ...]:
    """Load entry points one by one. If two have the same name, the second one gets an error."""
    loaded: dict[str, Plugin] = {}
    duplicates: list[Plugin] = []
    describe = functools.cache(_describe_distribution)  # a distribution has many plugins: ours has all of them
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    for point in points:
        plugin = _load(point, describe(point.dist), manager)
        if point.name in loaded:
            first = loaded[point.name].distribution
            error = f"{first} already provides a plugin named '{point.name}'"
            duplicates.append(Plugin(point.name, point.value, plugin.distribution, error=error))
        else:
            loaded[point.name] = plugin
    return (*loaded.values(), *duplicates)


def _describe_distribution(distribution: Distribution | None) -> str:
    metadata = distribution.metadata if distribution else None  # each access parses the file
    return f"{metadata['Name']} {metadata['Version']}" if metadata else "no distribution"


def _load(point: EntryPoint, distribution: str, manager: pluggy.PluginManager) -> Plugin:
    """The plugin of an entry point. `manager` has no plugin before and after: a hook calls this one alone."""
    entries: list[Entry] = []
    try:
        module = point.load()
        _check_hooks(module, point.value, manager)
        manager.register(module, point.name)
        for kind in (*KINDS, *NO_COMPONENTS):
            hook = getattr(manager.hook, hook_name(kind))
            hook(register=_make_register(entries, kind, point.name, distribution))
    except (Exception, SystemExit) as error:  # also sys.exit() in a plugin must not stop the others
        if advice := explain_import_error(error):
            return Plugin(point.name, point.value, distribution, error=f"plugin '{point.name}': {advice}")
        lines = str(error).strip().splitlines() or [""]
        return Plugin(point.name, point.value, distribution, error=f"{type(error).__name__}: {lines[0]}")
    finally:
        if manager.has_plugin(point.name):
            manager.unregister(name=point.name)
    return Plugin(point.name, point.value, distribution, tuple(entries))


def _check_hooks(module: Any, path: str, manager: pluggy.PluginManager) -> None:
    """Raises ValueError if the module `path` has no hook, an unknown one, or one with other arguments."""
    known = [hook_name(kind) for kind in (*KINDS, *NO_COMPONENTS)]
    options = {name: manager.parse_hookimpl_opts(module, name) for name in dir(module)}
    hooks = {name: (each.get("specname") or name) for name, each in options.items() if each is not None}
    for name, hook in hooks.items():
        function = getattr(module, name)
        if hook not in known:
            raise ValueError(f"{_line_of(function)}there is no hook '{hook}'{did_you_mean(hook, known)}")
        arguments = [*inspect.signature(function).parameters]
        if arguments not in ([], ["register"]):
            call = f"{_line_of(function)}{name}({', '.join(arguments)})"
            raise ValueError(f"{call}: the only argument of a hook is `register`")
    if not hooks:
        forgotten = [name for name in known if callable(getattr(module, name, None))]
        where, name = (_line_of(getattr(module, forgotten[0])), forgotten[0]) if forgotten else ("", "")
        advice = (
            f"write @p2pzoo.hookimpl above {name}" if name else f"define {known[0]}, with @p2pzoo.hookimpl above it"
        )
        raise ValueError(f"{where}the module {path} has no hook: {advice}")


def _line_of(function: Any) -> str:
    """file:line of a function, before a message."""
    code = getattr(function, "__code__", None)
    return f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}  " if code else ""


def hook_name(kind: str) -> str:
    """The hook that registers this kind, one of KINDS or NO_COMPONENTS.

    >>> hook_name("loss"), hook_name("command")
    ('register_losses', 'register_commands')
    """
    return f"register_{kind}es" if kind.endswith("s") else f"register_{kind}s"


def _make_register(entries: list[Entry], kind: str, plugin: str, distribution: str) -> Callable[..., None]:
    """The `register` function that a hook of this plugin is called with. It appends to `entries`."""

    def register(
        name: str, factory: str | Callable[..., Any], *, summary: str = "", paper: str = "", needs: tuple[str, ...] = ()
    ) -> None:
        if not name or name != name.lower() or not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"{kind} name {name!r}: use lower-case letters, digits, hyphens and underscores")
        if any(entry.kind == kind and entry.name == name for entry in entries):
            raise ValueError(f"{kind} '{name}' is registered twice")
        if isinstance(needs, str) or not set(needs) <= set(NEEDS.get(kind, ())):
            fields = " or ".join(f'("{field}",)' for field in NEEDS.get(kind, ()))
            advice = (
                f"write {fields}, or several names in one tuple" if fields else f"a {kind} needs nothing: remove it"
            )
            raise ValueError(f"{kind} '{name}' has needs={needs!r}: {advice}")
        for key, text in (("summary", summary), ("paper", paper)):
            if not isinstance(text, str):
                raise ValueError(f"{kind} '{name}' has {key}={text!r}: write a text")
        if isinstance(factory, str) and not all(factory.partition(":")):
            raise ValueError(f"{kind} '{name}': write a lazy factory as 'module:attribute', not {factory!r}")
        entries.append(Entry(kind, name, factory, plugin, distribution, summary, paper, tuple(needs)))

    return register
