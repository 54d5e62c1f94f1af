"""Options of commands that upload what they write. Imports click only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from p2pzoo.utils.errors import UserError
from p2pzoo_hub.push import Kind, Target

F = TypeVar("F", bound=Callable[..., Any])


def push_options(kind: Kind) -> Callable[[F], F]:
    """--push, --private and --revision; the command gets `push`, a Target that is checked, or None without --push.

    kind: of the repository, "model" or "space"
    """

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def with_push(*, push: str | None, private: bool, revision: str | None, **others: Any) -> Any:
            if push is None:
                for option, is_given in (("--private", private), ("--revision", revision is not None)):
                    if is_given:
                        raise UserError(f"{option} is for --push OWNER/NAME: add it, or remove {option}")
                return command(push=None, **others)
            target = Target(push, kind, private, revision)
            target.check()
            return command(push=target, **others)

        options = (
            click.option("--push", metavar="OWNER/NAME",
                         help="Upload the folder to this repository of the hub, in one commit, with the token of "
                              "`hf auth login`."),
            click.option("--private", is_flag=True, help="Make the repository private."),
            click.option("--revision", metavar="BRANCH", help="Upload to this branch [default: the main one]."),
        )  # fmt: skip
        for option in reversed(options):
            with_push = option(with_push)
        return with_push  # type: ignore[return-value]

    return decorate
