"""`p2pzoo translate-volume`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from p2pzoo.cli.large_files import model_options, progress_bar, tile_options
from p2pzoo.cli.options import print_json, stop
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.signals import exit_code
from p2pzoo.utils.terminal import escape


@click.command("translate-volume")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("volume", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="OUT",
              help="Write this .nii.gz or .nii file; for a DICOM series also a new folder, for a derived series.",
              )  # fmt: skip
@click.option("--axes", type=click.Choice(["1", "3"]), default="1", show_default=True,
              help="3: average the translations along three axes, against steps from slice to slice.")  # fmt: skip
@click.option("--body-only", "outside", type=float, metavar="VALUE", help="Write VALUE outside of the body.")
@click.option("--mask", type=click.Path(path_type=Path), metavar="FILE", help="For --body-only: a body mask of VOLUME.")
@click.option("--body-above", type=float, metavar="VALUE",
              help="For --body-only: the body is the largest part of VOLUME above VALUE [default: as in training, if "
                   "its mask was made of x].")  # fmt: skip
@tile_options("whole slices up to 512 px")
@click.option("--test-mode", type=click.Choice(["paper", "eval"]), help="See p2pzoo translate [default: the model's].")
@click.option("--modality", type=click.Choice(["CT", "MR"]),
              help="What a derived series is [default: as the training targets, else as VOLUME].")  # fmt: skip
@model_options
def translate_volume_command(
    model: Path,
    volume: Path,
    output: Path,
    axes: str,
    at_use: Mapping[str, Mapping[str, Any]],
    weights: str | None,
    force: bool,
    device: str,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Translate VOLUME, a NIfTI file or the folder of a DICOM series, with MODEL: a run folder, a model.safetensors,
    zoo:NAME or hf:OWNER/NAME.

    MODEL was trained on the dataset `volumes`: slices along its axis are translated one by one. A NIfTI file has the
    affine and the units of VOLUME, and the values and dtype of the training targets. A derived series has new UIDs in
    the same study, and is marked as derived. It keeps the patient's name and id, as it must, in that folder only.

    p2pzoo is not a medical device: its translations are for research, not for diagnosis or treatment.
    """
    if options["outside"] is None and (options["mask"] is not None or options["body_above"] is not None):
        raise UserError("--mask and --body-above say where the body is for --body-only VALUE: add it, or remove them")
    _check_files(volume, output, force)
    from p2pzoo.compute.engine import keep_freed_memory
    from p2pzoo.models.load import load_model
    from p2pzoo_medical.translate import Options, translate_volume
    from p2pzoo_medical.volume import require

    require("nibabel", "translate-volume")
    loaded = load_model(model, device=device, weights=weights, at_use=at_use)
    if loaded.device.type == "cpu":
        keep_freed_memory()
    try:
        with progress_bar(quiet) as show:
            shape = translate_volume(
                loaded, volume, output, Options(axes=int(axes), **options), functools.partial(show, "slices")
            )
    except KeyboardInterrupt as interrupt:
        stop("stopped; nothing was written", exit_code(interrupt))
    except OSError as error:
        raise UserError(f"{error.filename or output}: {error.strerror or error}") from None
    if as_json:
        print_json({"file": str(output), "shape": [*shape]})
    else:
        click.echo(escape(str(output)))


def _check_files(volume: Path, output: Path, force: bool) -> None:
    """Raises UserError for names that cannot be read or written."""
    if not volume.exists():
        raise UserError(f"{volume}: no such file or folder")
    is_file = output.name.lower().endswith((".nii", ".nii.gz"))
    if not is_file and not volume.is_dir():
        raise UserError(f"{output}: a NIfTI volume is translated to NIfTI: give a name that ends with .nii.gz")
    if not output.parent.is_dir():
        raise UserError(f"{output.parent}: no such folder; create it, or write {output.name} elsewhere")
    if not output.exists():
        return
    if output.samefile(volume):
        raise UserError(f"{output}: is the volume itself; give another name")
    if output.is_dir() and (is_file or any(output.iterdir())):
        raise UserError(f"{output}: is a folder that exists; give {'a file name' if is_file else 'a new folder'}")
    if not output.is_dir() and not is_file:
        raise UserError(f"{output}: is a file; give a new folder for the series, or a name that ends with .nii.gz")
    if is_file and not force:
        raise UserError(f"{output}: already exists; --force overwrites it")
