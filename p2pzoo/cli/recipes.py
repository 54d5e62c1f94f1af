"""`p2pzoo recipe` and `p2pzoo diff`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from p2pzoo import config
from p2pzoo.cli.options import json_option, override_option, print_json, profile_option, recipe_argument
from p2pzoo.config.experiment import Experiment
from p2pzoo.config.recipe import Key, iter_leaves
from p2pzoo.utils.errors import UserError


@click.command("recipe")
@recipe_argument("recipe")
@profile_option
@override_option
@json_option
def recipe_command(recipe: str, profile: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print all values of RECIPE, each with the file and line that set it.

    RECIPE is a file, or zoo:NAME.toml. The output is a recipe that gives the same run.
    """
    experiment, why_no_id = _resolve(config.load_without_data(recipe, profile, overrides))
    tree = experiment.resolved()
    origins = {key: experiment.origin(key) for key, _ in iter_leaves(tree)}
    if as_json:
        places = {".".join(key): origin for key, origin in origins.items()}
        print_json(
            {
                "id": None if why_no_id else experiment.id,
                "recipe": experiment.recipe.name,
                "values": tree,
                "origins": places,
            }
        )
        return
    for line in format_recipe(tree, origins):
        click.echo(line)
    click.echo(f"\n# no id: {why_no_id}" if why_no_id else f"\n# id {experiment.id}", err=True)


def format_recipe(tree: Mapping[str, Any], origins: Mapping[Key, str], table: Key = ()) -> Iterator[str]:
    """The lines of a recipe in TOML, each value with its origin. The values of a table come before the tables in it."""
    values = {name: value for name, value in tree.items() if not isinstance(value, dict)}
    if table and (values or not tree):
        yield f"\n[{'.'.join(map(format_key, table))}]"
    for name, value in values.items():
        yield f"{f'{format_key(name)} = {format_toml(value)}':<40} # {origins[(*table, name)]}"
    for name in [name for name in tree if name not in values]:
        yield from format_recipe(tree[name], origins, (*table, name))


def _resolve(experiment: Experiment) -> tuple[Experiment, str]:
    """The experiment with `images` in place of `epochs`, and ""; without its data, as it is, and why."""
    try:
        return experiment.resolve_epochs(), ""
    except UserError as error:
        return experiment, "; ".join(error.faults)


@click.command("diff")
@recipe_argument("a", metavar="RECIPE_A")
@recipe_argument("b", metavar="RECIPE_B")
@profile_option
@json_option
def diff_command(a: str, b: str, profile: str | None, as_json: bool) -> None:
    """Print the values that differ between two recipes, defaults included."""
    experiments = [_resolve(config.load_without_data(name, profile, ()))[0] for name in (a, b)]
    left, right = (dict(iter_leaves(experiment.resolved())) for experiment in experiments)
    keys = [key for key in {**left, **right} if key != ("title",) and left.get(key) != right.get(key)]
    rows = [{"key": ".".join(key), "a": left.get(key), "b": right.get(key)} for key in keys]
    orders = [list(experiment.augmentations) for experiment in experiments]
    if orders[0] != orders[1] and set(orders[0]) == set(orders[1]):
        rows.append({"key": "augmentations", "a": orders[0], "b": orders[1]})
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo("no difference: the same experiment")
        return
    from rich.console import Console
    from rich.table import Table

    names = [experiment.recipe.name for experiment in experiments]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("", *(names if names[0] != names[1] else (a, b))):
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(row["key"], *("—" if row[side] is None else format_toml(row[side]) for side in ("a", "b")))
    console = Console(soft_wrap=True)
    if not console.is_terminal:  # a file or a pipe: one line per row
        console.width = max(console.width, console.measure(table).maximum)
    console.print(table, markup=False)


def format_toml(value: Any) -> str:
    """The value in TOML, on one line.

    >>> format_toml([0.5, "a"])
    '[0.5, "a"]'
    """
    import tomli_w

    if value == {}:
        return "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(format_toml, value))}]"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").rstrip("\n")


def format_key(name: str) -> str:
    """The key in TOML, with quotes if it needs them."""
    import tomli_w

    return tomli_w.dumps({name: 0}).removesuffix(" = 0\n")
