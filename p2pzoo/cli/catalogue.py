"""`p2pzoo list`, `show` and `plugins`: what is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from p2pzoo.cli.options import json_option, parse_parameters, print_json
from p2pzoo.plugin.registry import KINDS
from p2pzoo.utils.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from p2pzoo.plugin.registry import Entry

NARROW, PIPE_WIDTH = 20, 240

kind_type = click.Choice(KINDS)


def _complete_name(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from p2pzoo.plugin.loader import registry

    names = [entry.name for entry in registry().of(ctx.params.get("kind") or "")]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.command("list")
@click.argument("kind", type=kind_type, required=False)
@json_option
def list_command(kind: str | None, as_json: bool) -> None:
    """List the components that recipes can name, and trained models; of one KIND or of all."""
    from p2pzoo.plugin.loader import plugins, registry

    entries = [entry for one in KINDS if kind in (None, one) for entry in registry().of(one)]
    if as_json:
        print_json([{key: getattr(e, key) for key in ("kind", "name", "plugin", "summary", "paper")} for e in entries])
    else:
        for one in dict.fromkeys(entry.kind for entry in entries):
            rows = [[e.name, e.plugin, e.summary, e.paper] for e in entries if e.kind == one]
            _print_table([one, "plugin", "summary", "source"], rows)
            click.echo()
    for plugin in plugins():
        if plugin.error:
            click.echo(f"plugin '{plugin.name}' did not load; see `p2pzoo plugins`", err=True)


@click.command("plugins")
@json_option
def plugins_command(as_json: bool) -> None:
    """List plugins, what each registers, and why one does not load."""
    from p2pzoo.plugin.loader import plugins

    found = plugins()
    if as_json:
        rows = [
            {
                "name": p.name, "module": p.module, "distribution": p.distribution, "error": p.error,
                "components": [{"kind": e.kind, "name": e.name} for e in p.entries],
            }
            for p in found
        ]  # fmt: skip
        print_json(rows)
        return
    _print_table(
        ["plugin", "module", "from", "components"],
        [[p.name, p.module, p.distribution, p.error or ", ".join(e.name for e in p.entries)] for p in found],
    )


@click.command("show")
@click.argument("kind", type=kind_type)
@click.argument("name", shell_complete=_complete_name)
@click.option("-s", "--set", "overrides", multiple=True, metavar="PARAM=VALUE", help="With this value: -s width=32.")
@json_option
def show_command(kind: str, name: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show one component: its parameters and, for networks, counts and sizes at 3 -> 3 channels and 256 px."""
    import inspect

    from p2pzoo.plugin import schema
    from p2pzoo.plugin.loader import registry

    entry = registry().get(kind, name)
    factory = entry.load()
    table = parse_parameters(overrides)
    values: dict[str, Any] | None = None
    try:
        values = schema.check(factory, table)
    except schema.Faults as error:
        if wrong := [message for parameter, message in error.faults if parameter]:
            raise UserError(*(f"{kind} '{name}': {message}" for message in wrong)) from None
        # else it only lacks parameters without a default, which a recipe will give
    except TypeError as error:
        raise UserError(f"{kind} '{name}' {error}") from None

    shown: dict[str, Any] = {
        **{key: getattr(entry, key) for key in ("kind", "name", "plugin", "distribution", "summary", "paper")},
        "needs": list(entry.needs),
        "parameters": [
            {
                "name": p.name, "type": p.type_name, "required": p.required,
                "default": None if p.required else schema.to_jsonable(p.default),
            }
            for p in schema.params_of(factory).values()
        ],
    }  # fmt: skip
    if kind in ("generator", "discriminator") and values is not None:
        shown |= _measured(entry, factory, values)
    if kind == "model":
        shown |= _told_by_its_file(factory())
    if as_json:
        print_json(shown)
        return
    click.echo(f"{kind} {entry.full_name}: {entry.summary}\n{entry.paper}  ({entry.distribution})\n")
    if doc := inspect.getdoc(factory):
        click.echo(doc + "\n")
    if shown["parameters"]:
        rows = [
            [p["name"], p["type"], "required" if p["required"] else _default(p["default"])] for p in shown["parameters"]
        ]
        _print_table(["parameter", "type", "default"], rows)
    for key in (
        "generator",
        "parameter_count",
        "multiply_adds",
        "output_size",
        "receptive_field",
        "test_mode",
        "folder",
    ):
        if shown.get(key) is not None:
            value = f"{shown[key]:,}" if isinstance(shown[key], int) else str(shown[key])
            click.echo(f"{key.replace('_', ' '):<16} {value}")


def _measured(entry: Entry, factory: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """What is told of a network, at 3 -> 3 channels and 256 px."""
    from p2pzoo.config.experiment import Component
    from p2pzoo.models.build import measures

    found = measures(Component(entry, factory, values), (3, 3), (256, 256))
    told = {"parameter_count": found.parameters, "multiply_adds": found.macs, "output_size": list(found.output)}
    return told | ({"receptive_field": found.receptive_field} if entry.kind == "discriminator" else {})


def _told_by_its_file(folder: Path) -> dict[str, Any]:
    from p2pzoo.models.safetensors_io import load_tensors

    _, header = load_tensors(folder / "model.safetensors")
    return {
        "generator": header["generator"]["use"],
        "output_size": [header["out_channels"], *header["size"]],
        "test_mode": header["test_mode"],
        "folder": str(folder),
    }


def _default(value: Any) -> str:
    from p2pzoo.plugin.schema import show

    return "unset" if value is None else show(value)


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column, title in enumerate(header):
        widest = max((len(row[column]) for row in rows), default=0)
        table.add_column(title, no_wrap=widest <= NARROW)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH  # whoever reads a pipe wants one line a row
    console.print(table)
