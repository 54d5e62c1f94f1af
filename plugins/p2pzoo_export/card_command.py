"""`p2pzoo card`."""

from __future__ import annotations

from pathlib import Path

import click

from p2pzoo.cli.options import json_option, print_json


@click.command("card")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder to write.")
@click.option("--licence", metavar="ID",
              help="Licence of the model, as hubs name it (mit, cc-by-4.0, …). You choose it.")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite files that exist in DIR.")
@json_option
def card_command(run: Path, output: Path, licence: str | None, force: bool, as_json: bool) -> None:
    """Write a folder for a model hub from RUN. Nothing is uploaded.

    Of a RUN that is not finished, the model is its newest checkpoint, and the card says so.
    The folder holds README.md (the model card), model.safetensors, recipe.toml and samples.png.
    """
    from p2pzoo.plugin.loader import registry
    from p2pzoo_export.model_card import write_card

    files = [str(file) for file in write_card(run, output, registry(), licence=licence, force=force)]
    if as_json:
        print_json({"folder": str(output), "files": files})
        return
    for file in files:
        click.echo(file)
