"""`p2pzoo card`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("card")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Where to write.")
@click.option("--licence", metavar="ID", help="Of the model, as hubs name it (mit, cc-by-4.0, …). Yours to choose.")
@click.option("--force", is_flag=True, help="Overwrite the files of that name in DIR.")
def card_command(run: Path, output: Path, licence: str | None, force: bool) -> None:
    """Make a folder of the finished RUN that is fit for a model hub. Nothing is uploaded.

    It holds README.md (the model card), model.safetensors, recipe.toml and samples.png.
    """
    from p2pzoo.plugin.loader import registry
    from p2pzoo_export.model_card import write_card

    for file in write_card(run, output, registry(), licence=licence, force=force):
        click.echo(str(file))
