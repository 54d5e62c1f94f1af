"""`p2pzoo translate`."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pzoo.utils.errors import UserError

if TYPE_CHECKING:
    from p2pzoo.models.model import Model

WRITTEN = (".png", ".tif", ".tiff", ".npy")


@click.command("translate")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="OUT",
              help="A folder, or for one image a .png, .tif or .npy file.")  # fmt: skip
@click.option("--test-mode", type=click.Choice(["paper", "eval"]),
              help="paper: dropout on, the image's own statistics; eval: neither [default: the model's].")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of dropout in paper mode.")
@click.option("--samples", type=click.IntRange(min=2), metavar="N",
              help="In paper mode: N translations of each image (with the seeds SEED, SEED + 1, …), their mean and "
                   "their spread.")  # fmt: skip
@click.option("--tile", type=click.IntRange(min=1), metavar="SIDE",
              help="In eval mode: translate larger images in tiles of this side, in bounded memory.")  # fmt: skip
@click.option("--overlap", type=click.IntRange(min=0), metavar="PIXELS",
              help="What neighbouring tiles share [default: about a quarter of SIDE].")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True,
              help="bf16, in eval mode: faster where the machine has it; pixels differ by a level or so.")  # fmt: skip
@click.option("--format", "suffix", type=click.Choice(["png", "tif", "npy"]),
              help="Of files in a folder [default: png where it can hold them, else tif].")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite what is in OUT.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
              help="Where to compute.")  # fmt: skip
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
def translate_command(
    model: Path,
    inputs: tuple[Path, ...],
    output: Path,
    test_mode: str | None,
    seed: int,
    samples: int | None,
    tile: int | None,
    overlap: int | None,
    precision: str,
    suffix: str | None,
    force: bool,
    device: str,
    quiet: bool,
) -> None:
    """Translate images with MODEL, a run folder or a model.safetensors. An INPUT is an image, or a folder of images.

    Images of any size are written under their own names, in the depth, range and channels of the images that MODEL was
    trained to make. They must be stored as those it was trained on. An image that the model cannot take is named and
    left out; the others are translated.

    With --samples, OUT is a folder: photo-0.png and so on, photo-mean.png, and photo-spread.png, an uncertainty map:
    the standard deviation at each pixel (a grey of 16 is one 8-bit level; --format npy or tif keeps it exact).
    """
    from p2pzoo.compute.engine import keep_memory
    from p2pzoo.models.model import load
    from p2pzoo.models.translate_files import sample_files, translate_files
    from p2pzoo.utils.version import __version__

    sources = _images(inputs)
    loaded = load(model, device=device, precision=precision)
    if samples and output.suffix and not output.is_dir():
        raise UserError(f"{output}: one file cannot hold {samples} samples; give a folder")
    targets = _targets(sources, output, _suffix(loaded, output, suffix), force or bool(samples))
    if samples:
        _check_samples([file for target in targets.values() for file in sample_files(target, samples)], sources, force)
    if loaded.device.type == "cpu":
        keep_memory()
    try:
        mode, tiling = loaded.resolve_options(test_mode, tile, overlap)
        if samples:
            loaded.check_draws(mode)
    except ValueError as error:
        raise UserError(str(error)) from None
    made = {"model": loaded.run, "test_mode": mode, "seed": seed, "p2pzoo": __version__}
    if precision != "fp32":
        made["precision"] = precision
    if tiling:
        made |= {"tile": tiling.side, "overlap": tiling.overlap}
    text = {"p2pzoo": json.dumps(made, sort_keys=True)}
    faults: list[str] = []
    try:
        with contextlib.closing(
            translate_files(loaded, targets, mode, seed=seed, tiling=tiling, text=text, samples=samples)
        ) as outcomes:
            for outcome in outcomes:
                faults += outcome.faults
                if not outcome.faults and not quiet:
                    click.echo(str(outcome.target))
    except KeyboardInterrupt:
        click.echo("stopped; the files that were written are whole, and --force writes them again", err=True)
        raise click.exceptions.Exit(128 + signal.SIGINT) from None
    if faults:
        raise UserError(*faults)


def _images(inputs: tuple[Path, ...]) -> list[Path]:
    """The image files meant. Raises UserError for what is not there."""
    from p2pzoo.images.io import SUFFIXES, find_images

    found: list[Path] = []
    for path in inputs:
        if not path.is_dir():
            found.append(path)
        elif images := find_images(path):
            found += images
        else:
            folders = sorted(p.name for p in path.iterdir() if p.is_dir())
            inside = f"; it has the folders {', '.join(folders[:3])}" if folders else ""
            raise UserError(f"{path}: no images in this folder ({', '.join(SUFFIXES)}){inside}")
    if missing := [str(path) for path in found if not path.exists()]:
        raise UserError(*(f"{path}: no such file" for path in missing))
    return list(dict.fromkeys(found))


def _suffix(model: Model, output: Path, asked: str | None) -> str:
    """Of the files to write. Raises UserError where none of them could hold what the model gives."""
    from p2pzoo.images.io import holds

    dtype, channels = given = model.gives
    kind = f"{channels} channels of {dtype}"
    if output.suffix and not output.is_dir():
        suffix = output.suffix.lower()
        if suffix not in WRITTEN:
            raise UserError(f"{output}: translations are written as PNG, TIFF or NumPy; give a folder or a .png")
    else:
        suffix = f".{asked}" if asked else ".png" if holds(".png", *given) else ".tif"
    if not holds(suffix, *given):
        raise UserError(f"{output}: this model gives {kind}, which {suffix} cannot hold: --format tif, or npy")
    return suffix


def _targets(sources: list[Path], output: Path, suffix: str, force: bool) -> dict[Path, Path]:
    """Where each translation goes. Raises UserError before anything would be overwritten."""
    if output.suffix and not output.is_dir():
        if len(sources) > 1:
            raise UserError(f"{output}: one file cannot hold {len(sources)} translations; give a folder")
        targets = {sources[0]: output}
    else:
        targets = {source: output / f"{source.stem}{suffix}" for source in sources}

    faults = []
    taken: dict[Path, Path] = {}
    originals = {source.resolve() for source in sources}
    for source, target in targets.items():
        if target in taken:
            faults.append(f"{source} and {taken[target]} would both become {target}: translate them into two folders")
        elif target.resolve() in originals:
            faults.append(f"{target}: would overwrite an input; give another folder")
        elif target.exists() and not force:
            faults.append(f"{target}: already there; --force overwrites it")
        taken[target] = source
    _tell(faults)
    return targets


def _check_samples(files: list[Path], sources: list[Path], force: bool) -> None:
    originals = {source.resolve() for source in sources}
    _tell([f"{file}: would overwrite an input; give another folder" for file in files if file.resolve() in originals])
    if not force:
        _tell([f"{file}: already there; --force overwrites it" for file in files if file.exists()])


def _tell(faults: list[str]) -> None:
    if faults:
        raise UserError(*faults[:3], *([f"… and {len(faults) - 3} more"] if len(faults) > 3 else []))
