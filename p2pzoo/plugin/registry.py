"""The registry of components and commands: kind -> name -> Entry. A component is imported only when it is needed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.migration import explain_import_error, find_old_methods
from p2pzoo.utils.paths import shipped_dir
from p2pzoo.utils.suggest import did_you_mean

# Kinds of components: what a recipe, `p2pzoo list` and `p2pzoo.list_components` can name.
KINDS = (
    "generator", "discriminator", "process", "gan_loss", "loss", "augmentation", "dataset", "metric", "callback",
    "model",
)  # fmt: skip
# Kinds of entries that are no components: no recipe, list or check names them. Commands of `p2pzoo`, and functions that
# find models by an address
COMMAND, MODEL_SOURCE = "command", "model_source"
NO_COMPONENTS = (COMMAND, MODEL_SOURCE)


@dataclass(frozen=True)
class Entry:
    """One registered component, or one command. `p2pzoo.plugin.hookspecs` explains the fields of `register`.

    kind          one of KINDS or NO_COMPONENTS
    plugin        name of its entry point
    distribution  name and version of the installed package, for messages
    """

    kind: str
    name: str
    factory: str | Callable[..., Any]
    plugin: str
    distribution: str
    summary: str = ""
    paper: str = ""
    needs: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """ "plugin:name", which is unique within a kind."""
        return f"{self.plugin}:{self.name}"

    def ships(self, file: Path) -> bool:
        """Whether the file belongs to the entry's distribution: it is in its package, or a recipe of p2pzoo."""
        if self.distribution.partition(" ")[0] == "p2pzoo" and file.resolve().is_relative_to(
            shipped_dir("recipes").resolve()
        ):
            return True
        module = self.factory if isinstance(self.factory, str) else self.factory.__module__
        spec = importlib.util.find_spec(module.partition(":")[0].partition(".")[0])
        folders = spec.submodule_search_locations or () if spec else ()
        return any(file.resolve().is_relative_to(Path(folder).resolve()) for folder in folders)

    def load(self) -> Callable[..., Any]:
        """Return the factory, imported if needed; of a command, this is the click command.

        Raises UserError if its module cannot be imported, if the module has no such attribute or it is not callable,
        or if its class has methods of 0.1.0.
        """
        factory = self._import(self.factory) if isinstance(self.factory, str) else self.factory
        advice = find_old_methods(self.kind, factory)
        if self.kind not in (*NO_COMPONENTS, "model"):
            advice = advice or _find_bad_parameter(self.kind, factory)
        if advice:
            raise UserError(f"plugin '{self.plugin}': {self.kind} '{self.name}': {advice}")
        return factory

    def _import(self, path: str) -> Callable[..., Any]:
        module, _, attribute = path.partition(":")
        try:
            value: Any = importlib.import_module(module)
            for name in attribute.split("."):
                value = getattr(value, name)
        except Exception as error:
            if advice := explain_import_error(error):
                raise UserError(f"plugin '{self.plugin}': {advice}") from error
            raise UserError(
                f"{self.kind} '{self.name}' of plugin '{self.plugin}' ({self.distribution}) does not load "
                f"from {path}: {type(error).__name__}: {error}"
            ) from error
        if not callable(value):
            raise UserError(f"{self.kind} '{self.full_name}': {path} is not callable")
        return value  # type: ignore[no-any-return]


@functools.cache
def _find_bad_parameter(kind: str, factory: Callable[..., Any]) -> str | None:
    """Why a recipe could not set a parameter, or could not read back its default; None if all is well."""
    from p2pzoo.plugin import schema  # pydantic takes a tenth of a second, and `p2pzoo --help` needs none of it

    try:
        params = schema.get_params(factory)
    except (TypeError, ValueError):
        return None  # reported where the parameters are needed
    for name, param in params.items():
        if name in ("use", "weight"):
            return f"its parameter '{name}' cannot be set, because recipes use that key themselves: rename it"
        if not param.required:
            try:
                param.check(schema.to_jsonable(param.default))
            except ValueError as error:
                return f"the default {name} = {schema.format_value(param.default)} is none of its own type: {error}"
    return None


class Registry:
    """The components and commands of all plugins that load. Iterating gives all entries, in order of registration.

    broken  names of the plugins that did not load, for messages
    """

    def __init__(self, entries: Iterable[Entry] = (), broken: Iterable[str] = ()) -> None:
        self._entries = tuple(entries)
        self._broken = tuple(broken)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def of(self, kind: str) -> list[Entry]:
        """The entries of one kind, sorted by name."""
        return sorted((e for e in self._entries if e.kind == kind), key=lambda e: (e.name, e.plugin))

    def get(self, kind: str, use: str, *, named_in: Path | None = None) -> Entry:
        """The component that a recipe names with `use`: a name, or "plugin:name" if several plugins have that name.

        named_in  the recipe's file; if it ships with a distribution, the name alone means that distribution's own, so
                  that installing another plugin changes no shipped recipe

        Raises UserError with similar names if there is none, and with all claims if there are several.
        """
        plugin, _, name = use.rpartition(":")
        entries = self.of(kind)
        matches = [e for e in entries if e.name == name and plugin in ("", e.plugin)]
        if len(matches) > 1 and named_in is not None:
            own = [e for e in matches if e.ships(named_in)]
            matches = own if len(own) == 1 else matches
        if len(matches) == 1:
            return matches[0]
        if matches:
            claims = " and ".join(f"'{e.full_name}' ({e.distribution})" for e in matches)
            raise UserError(f"{kind} '{use}' is registered by several plugins, {claims}: write one of these names")
        names = [e.name for e in entries]
        if plugin and (others := [e for e in entries if e.name == name]):
            found = " and ".join(f"'{e.full_name}'" for e in others)
            raise UserError(f"no {kind} '{use}': plugin '{plugin}' has no {name}; {found} is installed")
        suggestion = did_you_mean(use, [*names, *(e.full_name for e in entries)], names_to_list=names)
        raise UserError(f"no {kind} '{use}'{suggestion}{self.describe_missing()}")

    def describe_missing(self) -> str:
        """Why a plugin's components and commands may be missing, to end a message with; "" if all plugins loaded."""
        hint = f" (plugins that did not load: {', '.join(self._broken)}; see `p2pzoo plugins`)" if self._broken else ""
        if (selected := os.environ.get("P2PZOO_PLUGINS")) is not None:
            hint += f" (P2PZOO_PLUGINS allows only these plugins: {selected or 'none'})"
        return hint
