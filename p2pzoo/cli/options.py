"""Options, arguments and output that several commands share, also those of plugins. Imports click only."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from p2pzoo.cli.time_limit import max_time_option, with_parent_option
from p2pzoo.utils.errors import UserError

__all__ = [
    "json_option",
    "max_time_option",
    "override_option",
    "parse_parameters",
    "print_json",
    "profile_option",
    "recipe_argument",
    "resume_command",
    "with_parent_option",
]

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
profile_option = click.option(
    "--profile",
    metavar="NAME",
    help="Use this profile of the recipe: smoke, laptop, gpu or paper [default: by hardware].",
)
override_option = click.option(
    "-s",
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value of the recipe: -s losses.l1.weight=50.",
)


def recipe_argument(name: str, metavar: str = "RECIPE") -> Callable[[F], F]:
    """A command argument for a recipe. The shell completes shipped recipes and files."""
    return click.argument(name, metavar=metavar, shell_complete=_complete_recipe)


def _complete_recipe(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from p2pzoo.utils.paths import shipped_dir

    folder = shipped_dir("recipes")
    names = [f"zoo:{path.relative_to(folder).as_posix()}" for path in sorted(folder.rglob("*.toml"))]
    matches = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return matches if incomplete.startswith("zoo:") else [*matches, CompletionItem(incomplete, type="file")]


def print_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    import json

    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def resume_command(fresh: bool) -> str:
    """How to resume, for messages. --fresh would start over.

    >>> resume_command(fresh=True)
    'the same command without --fresh'
    """
    return f"the same command{' without --fresh' * fresh}"


def parse_parameters(overrides: tuple[str, ...]) -> dict[str, Any]:
    """{name: value} of `-s PARAM=VALUE`. A value that is not TOML is a string. Raises UserError if "=" is missing.

    >>> parse_parameters(("width=32", "norm=batch"))
    {'width': 32, 'norm': 'batch'}
    """
    from p2pzoo.utils.files import parse_toml

    table = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"-s {text}: write -s param=value, as in -s width=32")
        try:
            table[key.strip()] = parse_toml(f"v = {value}")["v"]
        except ValueError:
            table[key.strip()] = value
    return table
