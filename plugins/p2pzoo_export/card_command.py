"""`p2pzoo card`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
from p2pzoo_hub.push_options import push_options

from p2pzoo.cli.options import json_option, print_json
from p2pzoo.utils.errors import UserError

if TYPE_CHECKING:
    from p2pzoo_hub.push import Target


@click.command("card")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR",
              help="Folder to write; may be left out with --push.")  # fmt: skip
@click.option("--licence", metavar="ID",
              help="Licence of the model, as hubs name it (mit, cc-by-4.0, …). You choose it.")  # fmt: skip
@push_options("model")
@click.option("--force", is_flag=True, help="Overwrite files that exist in DIR.")
@json_option
def card_command(
    run: Path, output: Path | None, licence: str | None, push: Target | None, force: bool, as_json: bool
) -> None:
    """Write a folder for a model hub from RUN. Nothing is uploaded without --push.

    Of a RUN that is not finished, the model is its newest checkpoint, and the card says so.
    The folder holds README.md (the model card), model.safetensors, recipe.toml and samples.png. With --push there is no
    recipe.toml if it names absolute paths, which are those of your machine.

    \b
    p2pzoo card runs/mine/RUN -o card --licence cc-by-4.0
    p2pzoo card runs/mine/RUN --push OWNER/NAME --private
    p2pzoo translate hf:OWNER/NAME photo.png -o out.png
    """
    if output is None and push is None:
        raise UserError("give -o DIR, a folder to write, or --push OWNER/NAME, a repository of the hub")
    if output is None and force:
        raise UserError("--force is for -o DIR: add it, or remove --force")
    from p2pzoo_hub.push import push_files

    from p2pzoo.plugin.loader import registry
    from p2pzoo_export.model_card import FILES, names_private_paths, write_card

    with tempfile.TemporaryDirectory() as temporary:
        folder = output or Path(temporary) / "card"
        files = write_card(run, folder, registry(), licence=licence, force=force, is_public=push is not None)
        if any(file.name == "recipe.toml" and names_private_paths(file) for file in files):
            click.echo(
                f"{folder}: recipe.toml names absolute paths of this machine: change them before you publish it",
                err=True,
            )
        url = push_files(files, push, "Upload a model with p2pzoo", owned=FILES) if push else None
    names = [file.name if output is None else str(file) for file in files]
    if as_json:
        print_json({"folder": None if output is None else str(output), "files": names, **({"url": url} if url else {})})
        return
    for line in [*names, *([url] if url else [])]:
        click.echo(line)
