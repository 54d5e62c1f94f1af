"""`p2pzoo import` and `p2pzoo export`."""

from __future__ import annotations

from pathlib import Path

import click

from p2pzoo.errors import UserError


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="OUT.safetensors",
              help="The model file to write.")  # fmt: skip
@click.option("-s", "--set", "overrides", multiple=True, metavar="PARAM=VALUE",
              help="A parameter of the network that tensors do not tell: -s noise=none.")  # fmt: skip
@click.option("--part", type=click.Choice(["generator", "discriminator"]),
              help="Which to take from a file of both [default: what is in it, the generator first].")  # fmt: skip
@click.option("--size", type=click.IntRange(min=1), metavar="SIDE",
              help="Side of the images it was trained on [default: what is common for the network].")  # fmt: skip
@click.option("--test-mode", type=click.Choice(["paper", "eval"]), default="paper", show_default=True,
              help="Of `translate`: paper is as in training, as that code tests too unless told --eval.")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite OUT.")
def import_command(
    file: Path,
    output: Path,
    overrides: tuple[str, ...],
    part: str | None,
    size: int | None,
    test_mode: str,
    force: bool,
) -> None:
    """Make a model.safetensors of weights that other code trained: FILE, such as its latest_net_G.pth.

    Which network it is, and its parameters, are read from the names and shapes of the tensors; what they do not tell is
    assumed, and said. A generator is then for `p2pzoo translate`, or for `[init] generator` of a recipe, a
    discriminator for `[init] discriminator`. FILE is read as tensors alone: one that would run code is refused.

    \b
    p2pzoo import latest_net_G.pth -o model.safetensors
    p2pzoo translate model.safetensors photo.png -o out.png
    """
    from p2pzoo.cli.catalogue import parameters
    from p2pzoo.exchange import import_weights
    from p2pzoo.plugins import registry

    _check_output(output, force)
    if output.suffix != ".safetensors":
        raise UserError(f"{output}: a model file ends in .safetensors")
    sides = None if size is None else (size, size)
    imported = import_weights(file, registry(), parameters(overrides), part=part, size=sides, test_mode=test_mode)
    imported.save(output)
    click.echo(f"read     {imported.use}, {_spelled(imported.header)}")
    for note in imported.notes:
        click.echo(f"assumed  {note}")
    click.echo(f"written  {output}")


@click.command("export")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--to", required=True, metavar="FORMAT",
              help="What to write: a layout of other code, such as that of junyanz, mmagic or pix2pixhd.")  # fmt: skip
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="OUT",
              help="The file to write, such as latest_net_G.pth.")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite OUT.")
def export_command(model: Path, to: str, output: Path, force: bool) -> None:
    """Write MODEL, a run folder or a model.safetensors, for other code to use.

    What is not the same there is said.
    """
    from p2pzoo.exchange import export_weights
    from p2pzoo.model import model_file
    from p2pzoo.plugins import registry

    _check_output(output, force)
    for note in export_weights(model_file(model), to, output, registry()):
        click.echo(f"note     {note}")
    click.echo(f"written  {output}")


def _check_output(output: Path, force: bool) -> None:
    if output.is_dir():
        raise UserError(f"{output}: a folder; name the file to write")
    if output.exists() and not force:
        raise UserError(f"{output}: already there; --force overwrites it")
    if not output.absolute().parent.is_dir():
        raise UserError(f"{output.parent}: no such folder")


def _spelled(header: object) -> str:
    from collections.abc import Mapping

    from p2pzoo.params import show

    assert isinstance(header, Mapping)
    [part] = [header[kind] for kind in ("generator", "discriminator") if kind in header]
    channels = f"{header['in_channels']} -> {header['out_channels']} channels"
    values = (f"{name} = {show(value)}" for name, value in part["params"].items() if value is not None)
    return ", ".join([channels, *values])
