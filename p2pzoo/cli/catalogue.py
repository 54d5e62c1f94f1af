"""`p2pzoo list` and `p2pzoo plugins`: what is installed."""

from __future__ import annotations

import click

from p2pzoo.cli.options import json_option, print_json
from p2pzoo.cli.tables import print_table
from p2pzoo.plugin.registry import KINDS

RECIPES = "recipes"


@click.command("list")
@click.argument("kind", type=click.Choice([*KINDS, RECIPES]), metavar="[KIND]", required=False)
@json_option
def list_command(kind: str | None, as_json: bool) -> None:
    """List the components that recipes can name after `use =`, trained models, or the recipes that ship with p2pzoo.

    KIND is generator, discriminator, process, gan_loss, loss, augmentation, dataset, metric, callback or model
    [default: all of these], or recipes.
    """
    if kind == RECIPES:
        _list_recipes(as_json)
        return
    from p2pzoo.plugin.loader import plugins, registry

    kinds = [kind] if kind else KINDS
    entries = [entry for each_kind in kinds for entry in registry().of(each_kind)]
    if as_json:
        print_json([{key: getattr(e, key) for key in ("kind", "name", "plugin", "summary", "paper")} for e in entries])
    else:
        for title in dict.fromkeys(entry.kind for entry in entries):
            rows = [[e.name, e.plugin, e.summary, e.paper] for e in entries if e.kind == title]
            print_table([title, "plugin", "summary", "source"], rows)
            click.echo()
    for plugin in plugins():
        if plugin.error:
            click.echo(f"plugin '{plugin.name}' did not load; see `p2pzoo plugins`", err=True)


def _list_recipes(as_json: bool) -> None:
    from p2pzoo.utils.files import parse_toml
    from p2pzoo.utils.paths import shipped_dir

    folder = shipped_dir("recipes")
    rows = []
    for file in sorted(folder.rglob("*.toml"), key=lambda file: (len(file.parts), file)):
        name = f"zoo:{file.relative_to(folder).as_posix()}"
        rows.append({"recipe": name, "title": str(parse_toml(file.read_text("utf-8")).get("title", ""))})
    if as_json:
        print_json(rows)
    else:
        print_table(["recipe", "what it trains"], [[row["recipe"], row["title"]] for row in rows])
        click.echo("\np2pzoo run zoo:NAME trains one; folder and .toml may be left out where the name is unique")


@click.command("plugins")
@json_option
def plugins_command(as_json: bool) -> None:
    """List the installed plugins: their components, or the error of one that does not load."""
    from p2pzoo.plugin.loader import plugins

    if as_json:
        rows = [
            {
                "name": p.name, "module": p.module, "distribution": p.distribution, "error": p.error,
                "components": [{"kind": e.kind, "name": e.name} for e in p.entries],
            }
            for p in plugins()
        ]  # fmt: skip
        print_json(rows)
        return
    print_table(
        ["plugin", "module", "from", "components"],
        [[p.name, p.module, p.distribution, p.error or ", ".join(e.name for e in p.entries)] for p in plugins()],
    )
