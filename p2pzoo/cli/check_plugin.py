"""`p2pzoo check-plugin`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from p2pzoo.cli.options import json_option, print_json
from p2pzoo.utils.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from p2pzoo.testing import Finding, Trial

SIGNS = {"pass": "✓", "fail": "✗", "expected failure": "x", "does not apply": "–"}
STYLES = {"pass": "green", "fail": "bold red", "expected failure": "yellow", "does not apply": "dim"}


def _complete_plugin(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from p2pzoo.plugin.loader import plugins

    return [CompletionItem(plugin.name) for plugin in plugins() if plugin.name.startswith(incomplete)]


@click.command("check-plugin")
@click.argument("name", metavar="NAME", shell_complete=_complete_plugin)
@click.option(
    "-s", "--set", "overrides", multiple=True, metavar="COMPONENT.PARAM=VALUE",
    help="Check a component with this value: -s my-unet.depth=3. Widths are small where none is given.",
)  # fmt: skip
@json_option
def check_plugin_command(name: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check that the components of the plugin NAME keep the promises of their kind, on the CPU, with tiny images.

    Exit code 1 if one does not.
    """
    import warnings

    from p2pzoo.testing import trials_of

    made = trials_of(name, _parameters(overrides))
    found: list[tuple[Trial, Finding]] = []
    with click.progressbar(
        made, label=name, item_show_func=lambda t: str(t) if t else "", file=sys.stderr,
        hidden=not sys.stderr.isatty(),
    ) as shown, warnings.catch_warnings():  # fmt: skip
        warnings.simplefilter("ignore")
        for trial in shown:
            found.append((trial, trial.run()))
    if as_json:
        print_json(
            [
                {
                    "kind": trial.entry.kind, "component": trial.entry.name, "check": trial.check_name,
                    "status": finding.status, "told": finding.told,
                }
                for trial, finding in found
            ]
        )  # fmt: skip
    else:
        _show(found)
    if any(finding.status == "fail" for _, finding in found):
        sys.exit(1)


def _parameters(overrides: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    from p2pzoo.utils.files import parse_toml

    given: dict[str, dict[str, Any]] = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        component, dot, parameter = name.strip().rpartition(".")
        if not equals or not dot:
            raise UserError(f"-s {text}: write -s component.param=value, as in -s my-unet.width=8")
        try:
            parsed = parse_toml(f"v = {value}")["v"]
        except ValueError:
            parsed = value
        given.setdefault(component, {})[parameter] = parsed
    return given


def _show(found: list[tuple[Trial, Finding]]) -> None:
    """A table per kind, component × check; below, why something is no pass."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = 1000  # whoever reads a pipe wants one line a row
    for kind in dict.fromkeys(trial.entry.kind for trial, _ in found):
        console.print(_table(kind, [pair for pair in found if pair[0].entry.kind == kind]))
    reasons: dict[tuple[str, str], dict[str, list[str]]] = {}
    for trial, finding in found:
        if finding.told:
            checks = reasons.setdefault((finding.status, finding.told), {})
            checks.setdefault(trial.component, []).append(trial.check_name)
    for (status, told), where in reasons.items():
        line = Text(f"{SIGNS[status]} ", style=STYLES[status])
        names = "; ".join(f"{component} {', '.join(checks)}" for component, checks in where.items())
        console.print(line.append(f"{names}: {told}", style="default"), soft_wrap=True)
    counts = {status: sum(finding.status == status for _, finding in found) for status in SIGNS}
    words = [f"{count} {_plural(status, count)}" for status, count in counts.items() if count]
    console.print(", ".join(words) or "no components")


def _table(kind: str, found: list[tuple[Trial, Finding]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(kind)
    for check in dict.fromkeys(trial.check_name for trial, _ in found):
        table.add_column(check, justify="center")
    for component in dict.fromkeys(trial.entry.name for trial, _ in found):
        signs = [finding.status for trial, finding in found if trial.entry.name == component]
        table.add_row(Text(component), *(Text(SIGNS[status], style=STYLES[status]) for status in signs))
    return table


def _plural(status: str, count: int) -> str:
    words = {
        "pass": ("passes", "pass"),
        "fail": ("fails", "fail"),
        "does not apply": ("does not apply", "do not apply"),
    }
    one, many = words.get(status, (status, f"{status}s"))
    return one if count == 1 else many
