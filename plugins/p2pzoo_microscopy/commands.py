"""`p2pzoo translate-stack`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from p2pzoo.cli.large_files import check_output, model_options, progress_bar, tile_options
from p2pzoo.cli.options import print_json, stop
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.signals import exit_code
from p2pzoo.utils.terminal import escape

SUFFIXES = (".ome.tif", ".ome.tiff")


@click.command("translate-stack")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("stack", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="OUT.ome.tif",
              help="Write this OME-TIFF.")  # fmt: skip
@click.option("--channel", "channels", multiple=True, metavar="NAME",
              help="Take this channel, by name or number, as the next one of the model [default: those with the names "
                   "of the training].")  # fmt: skip
@click.option("--series", type=click.IntRange(min=1), metavar="N",
              help="Take this series of a file with several.")  # fmt: skip
@click.option("--axes", metavar="AXES", help="Name the axes of a file that does not say them: --axes ZYX.")
@tile_options("about 512")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True,
              help="bf16: faster on hardware that has it, and less exact.")  # fmt: skip
@model_options
def translate_stack_command(
    model: Path,
    stack: Path,
    output: Path,
    channels: tuple[str, ...],
    series: int | None,
    axes: str | None,
    tile: int | None,
    overlap: int | None,
    seed: int,
    at_use: Mapping[str, Mapping[str, Any]],
    weights: str | None,
    precision: str,
    force: bool,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Translate STACK, a TIFF of a microscope, with MODEL: a run folder, a model.safetensors, zoo:NAME or
    hf:OWNER/NAME.

    Each frame and plane is translated in tiles that are blended, in eval mode, with bounded memory. OUT.ome.tif has the
    pixel sizes of STACK, and the channel names, units and dtype of the training targets. It appears when it is whole.
    Channels, planes and scales are those of the dataset `stacks` that MODEL was trained on.
    """
    _check_files(stack, output, force)
    from p2pzoo.compute.engine import keep_freed_memory
    from p2pzoo.models.load import load_model
    from p2pzoo_microscopy.stack_files import require_tifffile
    from p2pzoo_microscopy.translate import translate_stack

    require_tifffile("translate-stack")
    loaded = load_model(model, device=device, precision=precision, weights=weights, at_use=at_use)
    if loaded.device.type == "cpu":
        keep_freed_memory()
    settings = {kind: dict(table) for kind, table in at_use.items() if table}
    try:
        with progress_bar(quiet) as show:
            outcome = translate_stack(
                loaded, stack, output, channels=[int(name) if name.isdecimal() else name for name in channels],
                series=series, axes=axes, tile=tile, overlap=overlap, seed=seed,
                settings={**settings, "weights": loaded.weights}, progress=functools.partial(show, "planes"),
            )  # fmt: skip
    except KeyboardInterrupt as interrupt:
        stop(f"stopped; {output} was not written", exit_code(interrupt))
    except OSError as error:
        raise UserError(f"{error.filename or output}: cannot be written ({error.strerror or error})") from None
    if as_json:
        print_json({"file": str(output), "sizes": dict(outcome.sizes)})
    else:
        click.echo(escape(str(output)))


def _check_files(stack: Path, output: Path, force: bool) -> None:
    """Raises UserError for names that cannot be read or written."""
    if not stack.is_file():
        raise UserError(f"{stack}: no such file")
    if not output.name.lower().endswith(SUFFIXES):
        raise UserError(f"{output}: a stack is written as OME-TIFF: give a name that ends with .ome.tif")
    check_output(output, stack, "stack", force=force)
