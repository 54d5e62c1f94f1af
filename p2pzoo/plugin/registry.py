"""kind -> name -> Entry. Knows names and where they came from; imports a component only when asked to."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.suggest import nearest

KINDS = ("generator", "discriminator", "gan_loss", "loss", "augmentation", "dataset", "metric", "callback", "model")


@dataclass(frozen=True)
class Entry:
    """One registered component; see `hookspecs` for what its fields mean."""

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
        return f"{self.plugin}:{self.name}"

    def load(self) -> Callable[..., Any]:
        """The factory itself. Raises UserError if the plugin's module cannot be imported or lacks it."""
        if not isinstance(self.factory, str):
            return self.factory
        module, _, attribute = self.factory.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except Exception as error:
            raise UserError(
                f"{self.kind} '{self.name}' of plugin '{self.plugin}' ({self.distribution}) does not load "
                f"from {self.factory}: {type(error).__name__}: {error}"
            ) from error
        if not callable(found):
            raise UserError(f"{self.kind} '{self.full_name}': {self.factory} is not callable")
        return found  # type: ignore[no-any-return]


class Registry:
    """All components of the loaded plugins."""

    def __init__(self, entries: Iterable[Entry] = (), broken: Iterable[str] = ()) -> None:
        self._entries = tuple(entries)
        self._broken = tuple(broken)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def of(self, kind: str) -> list[Entry]:
        """The components of one kind, by name."""
        return sorted((e for e in self._entries if e.kind == kind), key=lambda e: (e.name, e.plugin))

    def get(self, kind: str, use: str) -> Entry:
        """The component a recipe means by `use`: a bare name, or "plugin:name" where two plugins share one.

        Raises UserError with the nearest names if there is none, with both plugins if there are two.
        """
        plugin, _, name = use.rpartition(":")
        found = [e for e in self.of(kind) if e.name == name and plugin in ("", e.plugin)]
        if len(found) == 1:
            return found[0]
        if found:
            who = " and ".join(f"'{e.full_name}' ({e.distribution})" for e in found)
            raise UserError(f"{kind} '{use}' is claimed by {who}: write one of these")
        known = [e.name for e in self.of(kind)] + [e.full_name for e in self.of(kind)]
        hint = f". Plugins that did not load: {', '.join(self._broken)} (see `p2pzoo plugins`)" if self._broken else ""
        raise UserError(f"no {kind} '{use}'{nearest(use, known, bare=[e.name for e in self.of(kind)])}{hint}")
