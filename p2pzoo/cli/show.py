"""`p2pzoo show`: the parameters of a component or of one of the core's tables, and the sizes of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from p2pzoo.cli.options import json_option, parse_parameters, print_json
from p2pzoo.cli.tables import print_table
from p2pzoo.config.recipe import SETTINGS
from p2pzoo.plugin.registry import KINDS
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.terminal import escape

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from p2pzoo.plugin.registry import Entry

# at 80 columns these leave 21 or more to the description, next to the longest name, eps_before_correction
MAX_WIDTHS = {"type": 20, "default": 12}
NETWORKS = ("generator", "discriminator")  # the kinds that are measured
MEASURES = ("generator", "parameter_count", "multiply_adds", "output_size", "receptive_field", "test_mode", "folder")


def _complete_name(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from p2pzoo.plugin.loader import registry

    names = [entry.name for entry in registry().of(ctx.params.get("kind") or "")]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.command("show")
@click.argument("kind", type=click.Choice((*KINDS, *SETTINGS)), metavar="KIND")
@click.argument("name", metavar="[NAME]", required=False, shell_complete=_complete_name)
@click.option(
    "-s", "--set", "overrides", multiple=True, metavar="PARAM=VALUE",
    help="Measure the network with this value: -s width=32.",
)  # fmt: skip
@json_option
def show_command(kind: str, name: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show the parameters of a component, or of a settings table of recipes.

    \b
    p2pzoo show generator unet     a component; KIND is generator, discriminator,
                                   process, gan_loss, loss, augmentation, dataset, metric,
                                   callback or model
    p2pzoo show train              a table; KIND is train, optimizer, compute,
                                   init or evaluate

    For networks it also prints the parameter count and sizes, at 3 input and 3 output channels and 256 x 256 px.
    """
    factory: Callable[..., Any]
    if overrides and kind not in NETWORKS:
        raise UserError(f"-s {overrides[0]}: only networks are measured: give it with {' or '.join(NETWORKS)}")
    if kind in SETTINGS:
        if name is not None:
            raise click.UsageError(f"[{kind}] is one table: leave out '{name}'")
        factory = _settings_class(kind)
        description = {"kind": "settings", "name": kind, "parameters": _describe_parameters(factory)}
    else:
        if name is None:
            raise click.UsageError(f"give the NAME of a {kind}; `p2pzoo list {kind}` shows them")
        description, factory = _describe_component(kind, name, overrides)
    if as_json:
        print_json(description)
    else:
        _print_description(description, factory)


def _settings_class(name: str) -> type[Any]:
    from p2pzoo.config import settings

    return getattr(settings, name.capitalize())  # type: ignore[no-any-return]


def _describe_component(kind: str, name: str, overrides: tuple[str, ...]) -> tuple[dict[str, Any], Callable[..., Any]]:
    """(what to print, the factory)"""
    from p2pzoo.plugin.loader import registry

    entry = registry().get(kind, name)
    factory = entry.load()
    values = _check_parameters(f"{kind} '{name}'", factory, overrides)
    description: dict[str, Any] = {
        **{key: getattr(entry, key) for key in ("kind", "name", "plugin", "distribution", "summary", "paper")},
        "needs": list(entry.needs),
        "parameters": _describe_parameters(factory),
        "at_use": list(getattr(factory, "at_use", ())),
    }
    if kind in NETWORKS and values is not None:
        description |= _measure_network(entry, factory, values)
    if kind == "model":
        description |= _describe_model_file(factory())
    return description, factory


def _check_parameters(owner: str, factory: Callable[..., Any], overrides: tuple[str, ...]) -> dict[str, Any] | None:
    """All values; None if the factory has parameters without a default, which a recipe must set."""
    from p2pzoo.plugin import schema

    table = parse_parameters(overrides)
    try:
        return schema.check_params(factory, table)
    except schema.InvalidParameters as error:
        if wrong := [message for parameter, message in error.faults if parameter]:
            raise UserError(*(f"{owner}: {message}" for message in wrong)) from None
        return None
    except TypeError as error:
        raise UserError(f"{owner} {error}") from None


def _describe_parameters(factory: Callable[..., Any]) -> list[dict[str, Any]]:
    from p2pzoo.plugin import schema
    from p2pzoo.plugin.descriptions import describe_parameters

    descriptions = describe_parameters(factory)
    return [
        {
            "name": p.name, "type": p.type_name, "required": p.required,
            "default": None if p.required else schema.to_jsonable(p.default), "description": descriptions[p.name],
        }
        for p in schema.get_params(factory).values()
        if (factory.__name__, p.name) != ("Optimizer", "options")  # not a key of recipes
    ]  # fmt: skip


def _measure_network(entry: Entry, factory: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """Counts and sizes, at 3 -> 3 channels and 256 px."""
    from p2pzoo.config.experiment import Component
    from p2pzoo.models.build import summarize_network

    summary = summarize_network(Component(entry, factory, values), (3, 3), (256, 256))
    sizes: dict[str, Any] = {
        "parameter_count": summary.parameters, "multiply_adds": summary.macs, "output_size": list(summary.output_size)
    }  # fmt: skip
    return sizes | ({"receptive_field": summary.receptive_field} if entry.kind == "discriminator" else {})


def _describe_model_file(folder: Path) -> dict[str, Any]:
    from p2pzoo.models.safetensors_io import load_tensors

    _, header = load_tensors(folder / "model.safetensors")
    return {
        "generator": header["generator"]["use"],
        "output_size": [header["out_channels"], *header["size"]],
        "test_mode": header["test_mode"],
        "folder": str(folder),
    }


def _print_description(description: dict[str, Any], factory: Callable[..., Any]) -> None:
    from p2pzoo.plugin.descriptions import docstring_without

    parameters = description["parameters"]
    if description["kind"] != "settings":
        title = f"{description['kind']} {description['plugin']}:{description['name']}"
        origin = f"{description['paper']}  ({description['distribution']})"
        click.echo(escape(f"{title}: {description['summary']}\n{origin}\n", keep="\n"))
    if text := docstring_without(factory, {p["name"]: p["description"] for p in parameters}):
        click.echo(escape(f"{text}\n", keep="\n"))
    if parameters:
        rows = [[p["name"], p["type"], _format_default(p), p["description"]] for p in parameters]
        print_table(["parameter", "type", "default", "description"], rows, max_widths=MAX_WIDTHS)
    if at_use := description.get("at_use"):
        click.echo(
            f"{', '.join(at_use)}: a trained model can be asked with others, -s {description['kind']}.{at_use[0]}=…"
        )
    for key in MEASURES:
        if description.get(key) is not None:
            value = description[key]
            click.echo(f"{key.replace('_', ' '):<16} {f'{value:,}' if isinstance(value, int) else value}")


def _format_default(parameter: dict[str, Any]) -> str:
    from p2pzoo.plugin.schema import format_value

    if parameter["required"]:
        return "required"
    return "unset" if parameter["default"] is None else format_value(parameter["default"])
