"""`p2pzoo check-plugin`: run the conformance checks of a plugin and print the results."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from p2pzoo.cli.options import json_option, print_json
from p2pzoo.cli.tables import open_console
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.terminal import escape

if TYPE_CHECKING:
    from rich.table import Table

    from p2pzoo.testing import CheckResult, ComponentCheck

    Results = list[tuple[ComponentCheck, CheckResult]]

SIGNS = {"pass": "✓", "fail": "✗", "expected failure": "x", "does not apply": "–"}
STYLES = {"pass": "green", "fail": "bold red", "expected failure": "yellow", "does not apply": "dim"}


def _complete_plugin(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from p2pzoo.plugin.loader import plugins

    return [CompletionItem(plugin.name) for plugin in plugins() if plugin.name.startswith(incomplete)]


@click.command("check-plugin")
@click.argument("name", metavar="NAME", shell_complete=_complete_plugin)
@click.option(
    "-s", "--set", "overrides", multiple=True, metavar="COMPONENT.PARAM=VALUE",
    help="Check a component with this value: -s my-unet.depth=3. Without one, `width` is small.",
)  # fmt: skip
@json_option
def check_plugin_command(name: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check that the components of the plugin NAME satisfy their interface, on the CPU, with tiny images.

    Each finished check is a line on stderr; the table of all results is printed at the end. The exit code is 1 if a
    check fails.
    """
    from p2pzoo.testing import list_component_checks

    results = _run_checks(list_component_checks(name, _parse_overrides(overrides)))
    if as_json:
        print_json(
            [
                {
                    "kind": check.entry.kind, "component": check.entry.name, "check": check.check_name,
                    "status": result.status, "message": result.message,
                }
                for check, result in results
            ]
        )  # fmt: skip
    else:
        _print_results(results)
    if any(result.status == "fail" for _, result in results):
        sys.exit(1)


def _run_checks(checks: list[ComponentCheck]) -> Results:
    """Run all checks and report each on stderr: as a bar on a terminal, else as a line."""
    import time
    import warnings

    results: Results = []
    on_terminal = sys.stderr.isatty()
    with click.progressbar(
        checks, label="checking", item_show_func=lambda check: str(check) if check else "", file=sys.stderr,
        hidden=not on_terminal,
    ) as progress, warnings.catch_warnings():  # fmt: skip
        warnings.simplefilter("ignore")
        for number, check in enumerate(progress, 1):
            started = time.monotonic()
            results.append((check, check.run()))
            if not on_terminal:
                seconds = time.monotonic() - started
                sign = SIGNS[results[-1][1].status]
                click.echo(f"[{number}/{len(checks)}] {check} {sign} {seconds:.1f} s", err=True)
    return results


def _parse_overrides(overrides: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """{component: {parameter: value}} of `-s COMPONENT.PARAM=VALUE`."""
    from p2pzoo.utils.files import parse_toml

    parameters: dict[str, dict[str, Any]] = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        component, dot, parameter = name.strip().rpartition(".")
        if not equals or not dot:
            raise UserError(f"-s {text}: write -s component.param=value, as in -s my-unet.width=8")
        try:
            parsed = parse_toml(f"v = {value}")["v"]
        except ValueError:
            parsed = value
        parameters.setdefault(component, {})[parameter] = parsed
    return parameters


def _print_results(results: Results) -> None:
    """Print a table for each kind, component × check; then the messages of the checks; then the counts."""
    from rich.text import Text

    console = open_console()
    for kind in dict.fromkeys(check.entry.kind for check, _ in results):
        console.print(_build_table(kind, [pair for pair in results if pair[0].entry.kind == kind]))
    messages: dict[tuple[str, str], dict[str, list[str]]] = {}
    for check, result in results:
        if result.message:
            names = messages.setdefault((result.status, result.message), {})
            names.setdefault(check.component, []).append(check.check_name)
    for (status, message), components in messages.items():
        line = Text(f"{SIGNS[status]} ", style=STYLES[status])
        who = "; ".join(f"{component} {', '.join(names)}" for component, names in components.items())
        console.print(line.append(escape(f"{who}: {message}", keep="\n"), style="default"), soft_wrap=True)
    counts = {status: sum(result.status == status for _, result in results) for status in SIGNS}
    words = [f"{count} {_plural(status, count)}" for status, count in counts.items() if count]
    console.print(", ".join(words) or "no components")


def _build_table(kind: str, results: Results) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(kind)
    for name in dict.fromkeys(check.check_name for check, _ in results):
        table.add_column(name, justify="center")
    for component in dict.fromkeys(check.entry.name for check, _ in results):
        statuses = [result.status for check, result in results if check.entry.name == component]
        table.add_row(Text(component), *(Text(SIGNS[status], style=STYLES[status]) for status in statuses))
    return table


def _plural(status: str, count: int) -> str:
    words = {
        "pass": ("passes", "pass"),
        "fail": ("fails", "fail"),
        "does not apply": ("does not apply", "do not apply"),
    }
    one, many = words.get(status, (status, f"{status}s"))
    return one if count == 1 else many
