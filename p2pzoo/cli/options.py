"""Options, arguments and output that several commands share, also those of plugins. Imports click only."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem

from p2pzoo.cli.time_limit import Duration, max_time_option, with_parent_option
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.launcher import is_follower
from p2pzoo.utils.terminal import escape_json

__all__ = [
    "JSON_REQUESTED",
    "Duration",
    "FiniteRange",
    "at_use_options",
    "json_option",
    "max_time_option",
    "override_option",
    "parse_parameters",
    "print_error",
    "print_json",
    "process_options",
    "profile_option",
    "recipe_argument",
    "refuse_given_twice",
    "resume_command",
    "stop",
    "weights_option",
    "with_parent_option",
    "without_nan",
]

F = TypeVar("F", bound=Callable[..., Any])

JSON_REQUESTED, JSON_PRINTED = "p2pzoo.json requested", "p2pzoo.json printed"  # keys of click's ctx.meta

# gives the command a parameter as_json; errors of a command with --json are printed as {"error": …} by p2pzoo itself
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
weights_option = click.option(
    "--weights",
    type=click.Choice(["last", "average"]),
    help="Of a run: the weights after the last step, or their average over the training [default: those that its "
    "numbers measured].",
)
profile_option = click.option(
    "--profile",
    metavar="NAME",
    help="Use this profile of the recipe: smoke, laptop, gpu or paper [default: gpu with CUDA, else laptop].",
)
override_option = click.option(
    "-s",
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value of the recipe: -s losses.l1.weight=50.",
)


class FiniteRange(click.FloatRange):
    """click's FloatRange takes nan, which is in no range, and where it has no bound, infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number", param, ctx)
        return number


def refuse_given_twice(overrides: Sequence[str], options: Mapping[str, tuple[str, Any]]) -> None:
    """Raise UserError where -s and an option set the same value. options: {option: (its key, value or None)}"""
    keys = {text.partition("=")[0].strip() for text in overrides}
    for option, (key, value) in options.items():
        if value is not None and key in keys:
            raise UserError(f"{option} and -s {key} set the same value: give one of them")


def process_options(command: F) -> F:
    """Options for how a process is asked; the command's `process` gets them, such as {"steps": 4}."""

    @functools.wraps(command)
    def with_process(*, steps: int | None, eta: float | None, **others: Any) -> Any:
        given = {"steps": steps, "eta": eta}
        return command(process={name: value for name, value in given.items() if value is not None}, **others)

    options = (
        click.option("--steps", type=click.IntRange(min=1), metavar="N",
                     help="Of a process: ask the generator N times for each image [default: as trained]."),
        click.option("--eta", type=FiniteRange(0, 1), metavar="ETA",
                     help="Of a process: new noise in each step, 0 (none) to 1 [default: as trained]."),
    )  # fmt: skip
    for option in reversed(options):
        with_process = option(with_process)
    return with_process  # type: ignore[return-value]


def at_use_options(command: F) -> F:
    """Options for parameters of a model that may differ from its training.

    The command's `at_use` gets them, such as {"process": {"steps": 4}, "generator": {}}.
    """

    @process_options
    @functools.wraps(command)
    def with_at_use(*, process: Mapping[str, Any], overrides: tuple[str, ...], **others: Any) -> Any:
        from p2pzoo.config.settings import AT_USE_KINDS

        refuse_given_twice(overrides, {f"--{name}": (f"process.{name}", value) for name, value in process.items()})
        at_use: dict[str, dict[str, Any]] = {kind: {} for kind in AT_USE_KINDS}
        for text in overrides:
            kind, dot, rest = text.strip().partition(".")
            if kind not in AT_USE_KINDS or not dot:
                raise UserError(f"-s {text}: a trained model takes -s process.PARAM=VALUE and -s generator.PARAM=VALUE")
            at_use[kind] |= parse_parameters((rest,))
        at_use["process"] |= process
        return command(at_use=at_use, **others)

    return click.option(
        "-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE",
        help="Set a parameter that training does not depend on: -s process.steps=4.",
    )(with_at_use)  # type: ignore[return-value]  # fmt: skip


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
    """Print one JSON document on standard output. nan and infinite numbers become null: JSON has none."""
    import json

    if context := click.get_current_context(silent=True):
        context.meta[JSON_PRINTED] = True
    is_unicode = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    text = json.dumps(without_nan(value), indent=2, ensure_ascii=not is_unicode, allow_nan=False)
    sys.stdout.write(escape_json(text) + "\n")


def without_nan(value: Any) -> Any:
    """Plain values, with None in place of nan and infinite numbers, which JSON does not have.

    >>> without_nan({"l1": [0.5, float("nan")]})
    {'l1': [0.5, None]}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, (list, tuple)) else value


def print_error(message: str, exit_code: int, faults: Sequence[str] = ()) -> None:
    """Print why a command fails: with --json as {"error", "faults", "exit_code"} on standard output, else as a line.

    After a document was printed it is a line, since there is one document.
    """
    context = click.get_current_context(silent=True)
    if context and context.meta.get(JSON_REQUESTED) and not context.meta.get(JSON_PRINTED):
        print_json({"error": message, "faults": [*faults] or [message], "exit_code": exit_code})
    else:
        click.echo(message, err=True)


def stop(message: str, exit_code: int, note: Callable[[str], None] | None = None) -> NoReturn:
    """End a command that a signal stopped, after printing why. note: prints a line; default: on standard error."""
    context = click.get_current_context(silent=True)
    if note and not (context and context.meta.get(JSON_REQUESTED)):
        note(message)
    elif not is_follower():
        print_error(message, exit_code)
    sys.exit(exit_code)


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
