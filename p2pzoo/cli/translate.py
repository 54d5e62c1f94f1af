"""`p2pzoo translate`: translate image files with a trained model."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from p2pzoo.cli.options import FiniteRange, at_use_options, json_option, print_json, stop, weights_option
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count
from p2pzoo.utils.signals import exit_code
from p2pzoo.utils.terminal import escape

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from p2pzoo.models.model import Model
    from p2pzoo.models.scaling import Scaling
    from p2pzoo.models.tiling import Tiling
    from p2pzoo.models.translate_files import FileOutcome
    from p2pzoo.plugin.file_layout import Half

RATIO_TOLERANCE = 0.04  # of twice the proportions of the training images
OUTPUT_SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".jpg", ".jpeg", ".webp")


@click.command("translate")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="OUT",
              help="Write into this folder; or, for one image, this .png, .tif, .npy, .jpg or .webp file.")  # fmt: skip
@click.option("--test-mode", type=click.Choice(["paper", "eval"]),
              help="Run the generator as in training (paper: dropout, statistics of the image itself) or with neither "
                   "(eval) [default: the model's].")  # fmt: skip
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed dropout in paper mode, and the noise of a process.",
)
@at_use_options
@click.option("--samples", type=click.IntRange(min=2), metavar="N",
              help="In paper mode: write N translations of each image (with the seeds SEED, SEED + 1, …), their mean "
                   "and their spread.")  # fmt: skip
@click.option("--interval", "level", type=FiniteRange(0, 1, min_open=True, max_open=True), metavar="LEVEL",
              help="Write the interval of each value too, at the level for which `p2pzoo calibrate` calibrated MODEL: "
                   "its lower bound, its upper bound and its width.")  # fmt: skip
@click.option("--tile", type=click.IntRange(min=1), metavar="SIDE",
              help="In eval mode: translate larger images in tiles of this side, in bounded memory.")  # fmt: skip
@click.option("--overlap", type=click.IntRange(min=0), metavar="PIXELS",
              help="Let neighbouring tiles overlap by this much [default: about a quarter of SIDE].")  # fmt: skip
@click.option("--scale", metavar="FACTOR",
              help="Let the model see each image at this fraction of its size (native: at its own size) "
                   "[default: the scale of the training images].")  # fmt: skip
@click.option("--size", type=click.IntRange(min=1), nargs=2, metavar="HEIGHT WIDTH",
              help="Let the model see each image at this size in pixels.")  # fmt: skip
@click.option("--side", "half", type=click.Choice(["left", "right"]),
              help="The images are pairs A|B: translate this half.")  # fmt: skip
@click.option("--background", metavar="COLOR",
              help="Put transparent images on this color: white, black or R,G,B (0 to 255) "
                   "[default: that of the training images].")  # fmt: skip
@weights_option
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True,
              help="bf16, in eval mode: faster on hardware that has it; pixels differ by about one level.")  # fmt: skip
@click.option("--format", "suffix", type=click.Choice(["png", "tif", "npy", "jpg", "webp"]),
              help="Format of the files in a folder; jpg and webp change pixels [default: png if it can hold the "
                   "values, else tif].")  # fmt: skip
@click.option("--quality", type=click.IntRange(1, 100), help="Quality of .jpg and .webp files [default: 90].")
@click.option("--force", is_flag=True, help="Overwrite files in OUT.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
              help="Compute on this device.")  # fmt: skip
@click.option("--quiet", is_flag=True, help="Only print errors.")
@json_option
def translate_command(
    model: Path,
    inputs: tuple[Path, ...],
    output: Path,
    test_mode: str | None,
    seed: int,
    at_use: Mapping[str, Mapping[str, Any]],
    samples: int | None,
    level: float | None,
    tile: int | None,
    overlap: int | None,
    scale: str | None,
    size: tuple[int, int] | None,
    half: Half | None,
    background: str | None,
    weights: str | None,
    precision: str,
    suffix: str | None,
    quality: int | None,
    force: bool,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Translate images with MODEL: a run folder, a model.safetensors, zoo:NAME or hf:OWNER/NAME. An INPUT is an image,
    or a folder of images. Of a run that is not finished, MODEL is its newest checkpoint.

    Images can have any size. MODEL sees them at the scale of its training images: if those were reduced to a quarter,
    it sees a quarter of each image's height and width. Translations have the names and the sizes of their images.

    Images must have the channels and bit depth of the inputs that MODEL was trained on; conversions without loss, such
    as grey to RGB, are done. Translations have the channels, bit depth and value range of the targets that MODEL was
    trained on. An image that the model cannot take is reported and skipped.

    With --samples, OUT is a folder: photo-0.png and so on, photo-mean.png, and photo-spread.png, an uncertainty map:
    the standard deviation at each pixel (a grey of 16 is one 8-bit level; --format npy or tif keeps it exact).

    With --interval, photo-lower.png, photo-upper.png and photo-width.png are beside photo.png. The promise: over
    calibration and a new exchangeable block, the expected uncovered share is at most 1 - LEVEL; not per pixel, image,
    class, or on another continent. A grey of 1 in the map of the width is one 8-bit level.
    """
    from p2pzoo.images.georeference import warn_of_losses
    from p2pzoo.models.translate_files import describe_translation, translate_files

    sources = _find_inputs(inputs, model, output)
    loaded = _load(model, device, precision, weights, background, at_use)
    targets, quality = _plan_targets(loaded, sources, output, suffix, samples, level is not None, force, quality)
    mode, tiling, scaling = _resolve_options(loaded, test_mode, tile, overlap, scale, size, samples)
    if level is not None:
        _check_interval(loaded, model, mode, level, samples, scale or size, at_use, tiled=tiling is not None)
    if scale is None and size is None:
        _describe_scale(loaded, scaling, quiet)
    _warn_of_pairs(loaded, sources, half)
    warn_of_losses(targets.items(), is_cut=half is not None)
    text = {"p2pzoo": describe_translation(loaded, mode, seed, precision, tiling, scaling, at_use, level)}
    outcomes = translate_files(
        loaded, targets, mode, seed=seed, tiling=tiling, text=text, samples=samples, scaling=scaling, half=half,
        quality=quality, interval=level is not None,
    )  # fmt: skip
    _report(outcomes, samples, level is not None, quiet, as_json)


def _load(
    path: Path,
    device: str,
    precision: str,
    weights: str | None,
    background: str | None,
    at_use: Mapping[str, Mapping[str, Any]],
) -> Model:
    from p2pzoo.compute.engine import keep_freed_memory
    from p2pzoo.images.transparency import parse_background
    from p2pzoo.models.load import load_model

    model = load_model(path, device=device, precision=precision, weights=weights, at_use=at_use)
    if background is not None:
        try:
            model.background = parse_background(background)
        except ValueError as error:
            raise UserError(f"--background: {error}") from None
    if model.device.type == "cpu":
        keep_freed_memory()
    return model


def _resolve_options(
    model: Model,
    test_mode: str | None,
    tile: int | None,
    overlap: int | None,
    scale: str | None,
    size: tuple[int, int] | None,
    samples: int | None,
) -> tuple[str, Tiling | None, Scaling]:
    """Test mode, tiles, and the size at which the model sees images. Raises UserError if they do not fit the model."""
    from p2pzoo.models.scaling import Scaling

    try:
        mode, tiling = model.resolve_options(test_mode, tile, overlap)
        scaling = Scaling.resolve(model.file_layout, parse_scale(scale), size)
        if samples:
            model.check_can_sample(mode)
    except ValueError as error:
        raise UserError(str(error)) from None
    return mode, tiling, scaling


def _check_interval(
    model: Model,
    path: Path,
    mode: str,
    level: float,
    samples: int | None,
    resized: object,
    at_use: Mapping[str, Mapping[str, Any]],
    *,
    tiled: bool,
) -> None:
    """Raises UserError for a model that is not calibrated for them, and for options that intervals cannot have."""
    if samples:
        raise UserError("--interval and --samples: they write different files; give one of them")
    for options, is_given in (("--scale and --size", resized), ("-s, --steps and --eta", any(at_use.values()))):
        if is_given:
            raise UserError(f"--interval: the model is calibrated as it was trained; leave out {options}")
    try:
        model.check_interval(mode, level, tiled=tiled)
    except ValueError as error:
        raise UserError(f"--interval: {error}".replace("calibrate MODEL", f"calibrate {path}")) from None


def parse_scale(scale: str | None) -> float | Literal["native"] | None:
    """Raises ValueError."""
    if scale is None or scale == "native":
        return scale  # type: ignore[return-value]
    try:
        return float(scale)
    except ValueError:
        raise ValueError(f'--scale is "native" or a number above 0, such as 0.5, not {scale!r}') from None


def _describe_scale(model: Model, scaling: Scaling, quiet: bool) -> None:
    """Print the scale that the model file asks for, or that it does not say it."""
    from p2pzoo.models.scaling import NO_FILE_LAYOUT

    layout = model.file_layout
    if layout is None:
        click.echo(f"warning: {NO_FILE_LAYOUT}, such as --scale 0.5 (--scale native: no warning)", err=True)
    elif not scaling.is_native and not quiet:
        source = f" (most were {layout.size[0]}×{layout.size[1]} px)" if layout.size else ""
        click.echo(
            f"the model sees images {scaling}, as in its training{source}; --scale native: at their own size", err=True
        )


def _warn_of_pairs(model: Model, sources: list[Path], half: Half | None) -> None:
    """Warn if the model was trained on halves, and images have the proportions of both halves together."""
    from p2pzoo.images.io import read_header

    layout = model.file_layout
    if half or layout is None or layout.x_half is None or layout.size is None:
        return
    for source in sources:
        try:
            height, width, _ = read_header(source)
        except UserError:
            continue  # reported when it is read
        ratio = width / height / (layout.size[1] / layout.size[0])
        if abs(ratio - 2) < RATIO_TOLERANCE:
            click.echo(
                f"warning: {source}: twice as wide as the training images: if it is a pair A|B, give --side "
                f"{layout.x_half}, the half that the model was trained on", err=True,
            )  # fmt: skip
            return


def _report(
    outcomes: Generator[FileOutcome, None, None], samples: int | None, interval: bool, quiet: bool, as_json: bool
) -> None:
    """Print each file when it is written, or a document at the end. Raises UserError with the faults of all images."""
    from p2pzoo.models.translate_files import interval_paths, sample_paths

    faults: list[str] = []
    files: list[dict[str, Any]] = []
    try:
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                faults += outcome.faults
                if outcome.faults:
                    continue
                targets = sample_paths(outcome.target, samples) if samples else [outcome.target]
                targets += interval_paths(outcome.target) if interval else []
                files.append({"input": str(outcome.source), "outputs": [str(target) for target in targets]})
                if not quiet and not as_json:
                    click.echo(escape(str(outcome.target)))
    except KeyboardInterrupt as interrupt:
        stop("stopped; the files that were written are complete, and --force writes them again", exit_code(interrupt))
    if as_json and not faults:
        print_json({"files": files})
    elif as_json:
        print_json({"files": files, "error": "\n".join(faults), "faults": faults, "exit_code": 2})
    if faults:
        raise UserError(*faults)


def _is_file_name(output: Path) -> bool:
    """Whether OUT names a file, not a folder."""
    return bool(output.suffix) and not output.is_dir()


def _find_inputs(inputs: tuple[Path, ...], model: Path, output: Path) -> list[Path]:
    """The image files of all inputs. Raises UserError for missing files and for folders without images."""
    from p2pzoo.images.find_images import describe_nested_images, describe_other_files, find_images
    from p2pzoo.images.io import IMAGE_SUFFIXES
    from p2pzoo.utils.find_runs import is_run

    files: list[Path] = []
    for path in inputs:
        if is_run(path):
            raise UserError(f"{path}: is a run, not images, and the model is {model}: give one model, then images")
        if not path.is_dir():
            files.append(path)
        elif images := find_images(path):
            files += images
        else:
            folders = sorted(p.name for p in path.iterdir() if p.is_dir())
            hint = f"; it has the folders {', '.join(folders[:3])}" if folders else ""
            raise UserError(f"{path}: no images in this folder ({', '.join(IMAGE_SUFFIXES)}){hint}")
    given = [path for path in inputs if path.is_dir()]
    for line in (describe_other_files(given), describe_nested_images(given, [output])):
        if line:
            click.echo(f"warning: {line}", err=True)
    if missing := [str(path) for path in files if not path.exists()]:
        raise UserError(*(f"{path}: no such file" for path in missing))
    return list(dict.fromkeys(files))


def _plan_targets(
    model: Model,
    sources: list[Path],
    output: Path,
    file_format: str | None,
    samples: int | None,
    interval: bool,
    force: bool,
    quality: int | None,
) -> tuple[dict[Path, Path], int]:
    """{source: file to write}, and the quality of lossy files.

    Raises UserError if a file cannot hold the output, or would be overwritten.
    """
    from p2pzoo.models.translate_files import sample_paths

    targets = _choose_targets(sources, output, _choose_suffix(model, output, file_format), force or bool(samples))
    if samples:
        files = [file for target in targets.values() for file in sample_paths(target, samples)]
        _check_samples(files, output, sources, force)
    if interval:
        _check_interval_files(targets, sources, force)
    return targets, _check_quality(targets, quality)


def _check_interval_files(targets: dict[Path, Path], sources: list[Path], force: bool) -> None:
    from p2pzoo.images.lossy import LOSSY_SUFFIXES
    from p2pzoo.models.translate_files import interval_paths

    files = [file for target in targets.values() for file in interval_paths(target)]
    if any(file.suffix.lower() in LOSSY_SUFFIXES for file in files):
        raise UserError(f"--interval: {files[0].suffix} changes pixels, so bounds would not hold: use --format png")
    taken = {*targets.values()}
    _raise_first([f"{file}: would be a bound and a translation; rename the image" for file in files if file in taken])
    _check_files(files, sources, force)


def _check_quality(targets: dict[Path, Path], quality: int | None) -> int:
    """The quality of lossy files. Raises UserError if it is given and no such file is written."""
    from p2pzoo.images.lossy import DEFAULT_QUALITY, LOSSY_SUFFIXES

    if quality is not None and not any(target.suffix.lower() in LOSSY_SUFFIXES for target in targets.values()):
        raise UserError("--quality is for .jpg and .webp files: give --format jpg, or leave it out")
    return quality or DEFAULT_QUALITY


def _choose_suffix(model: Model, output: Path, file_format: str | None) -> str:
    """The suffix of the output files. Raises UserError if that format cannot hold the output of the model."""
    from p2pzoo.images.io import can_hold
    from p2pzoo.images.lossy import LOSSY_SUFFIXES, can_hold_lossy

    dtype, channels = model.output_format
    if _is_file_name(output):
        suffix = output.suffix.lower()
        if suffix not in OUTPUT_SUFFIXES:
            formats = "PNG, TIFF, NumPy, JPEG or WebP"
            raise UserError(f"{output}: translations are written as {formats}; give a folder or a .png")
        if file_format and suffix != f".{file_format}":
            raise UserError(
                f"--format {file_format}: the name {output.name} asks for another format: leave out one of them"
            )
    else:
        suffix = f".{file_format}" if file_format else ".png" if can_hold(".png", dtype, channels) else ".tif"
    is_lossy = suffix in LOSSY_SUFFIXES
    if is_lossy and model.y_labels and model.encodings.y == "one-hot":
        raise UserError(f"{output}: this model gives label maps, whose values {suffix} changes: use --format png")
    if not (can_hold_lossy(dtype, channels) if is_lossy else can_hold(suffix, dtype, channels)):
        raise UserError(
            f"{output}: this model gives {format_count(channels, 'channel')} of {dtype}, which {suffix} cannot hold: "
            "use --format tif or npy"
        )
    return suffix


def _choose_targets(sources: list[Path], output: Path, suffix: str, force: bool) -> dict[Path, Path]:
    """{source: file to write}. Raises UserError if that would overwrite a file."""
    if _is_file_name(output):
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
        elif os.path.exists(target) and not force:  # Path.exists raises an error where the name is too long
            faults.append(f"{target}: already exists; --force overwrites it")
        taken[target] = source
    _raise_first(faults)
    return targets


def _check_samples(files: list[Path], output: Path, sources: list[Path], force: bool) -> None:
    if _is_file_name(output):
        raise UserError(f"{output}: one file cannot hold several samples; give a folder")
    _check_files(files, sources, force)


def _check_files(files: list[Path], sources: list[Path], force: bool) -> None:
    originals = {source.resolve() for source in sources}
    _raise_first(
        [f"{file}: would overwrite an input; give another folder" for file in files if file.resolve() in originals]
    )
    if not force:
        _raise_first([f"{file}: already exists; --force overwrites it" for file in files if os.path.exists(file)])


def _raise_first(faults: list[str]) -> None:
    """Raises UserError with the first three faults and the number of the others."""
    if faults:
        raise UserError(*faults[:3], *([f"… and {len(faults) - 3} more"] if len(faults) > 3 else []))
