"""Callbacks during a run: built from the recipe, with errors that name the callback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2pzoo.config.experiment import Experiment
from p2pzoo.plugin.protocols import Callback
from p2pzoo.utils.errors import UserError


def build_callbacks(experiment: Experiment) -> list[Callback]:
    """The recipe's callbacks. An error inside one ends the run, since nobody would notice it otherwise."""
    return [_NamedCallback(name, component.build()) for name, component in experiment.callbacks.items()]


def call_each(callbacks: Sequence[Callback], method: str, *arguments: Any) -> None:
    """Call `start`, `log`, `samples` or `finish` of each callback."""
    for callback in callbacks:
        getattr(callback, method)(*arguments)


class _NamedCallback(Callback):
    """Calls a callback. Its errors become UserErrors that name its table in the recipe."""

    def __init__(self, name: str, callback: Callback) -> None:
        self._name, self._callback = name, callback

    def start(self, *arguments: Any) -> None:
        self._call("start", *arguments)

    def log(self, *arguments: Any) -> None:
        self._call("log", *arguments)

    def samples(self, *arguments: Any) -> None:
        self._call("samples", *arguments)

    def finish(self, *arguments: Any) -> None:
        self._call("finish", *arguments)

    def _call(self, method: str, *arguments: Any) -> None:
        try:
            getattr(self._callback, method)(*arguments)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            line = f"{type(error).__name__}: {error}".strip(": ").partition("\n")[0]
            raise UserError(
                f"[callbacks.{self._name}] failed at {method}: {line}. The same command resumes from what was saved; "
                "it also resumes if you remove the callback from the recipe"
            ) from error
