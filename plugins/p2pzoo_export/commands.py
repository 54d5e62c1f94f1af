"""`p2pzoo import` and `p2pzoo export`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from p2pzoo_hub.push_options import push_options

from p2pzoo.cli.options import at_use_options, json_option, print_json, weights_option
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count

if TYPE_CHECKING:
    from p2pzoo_hub.push import Target

    from p2pzoo.plugin import FileLayout

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "web": ".html", "bioimageio": ".zip"}  # others are weights
_INPUTS = {"web": "image files", "bioimageio": "x in the units of the training files"}  # others: [-1, 1]


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="OUT.safetensors",
              help="Model file to write.")  # fmt: skip
@click.option("-s", "--set", "overrides", multiple=True, metavar="PARAM=VALUE",
              help="Set a parameter of the network that the tensors do not contain: -s noise=none.")  # fmt: skip
@click.option("--part", type=click.Choice(["generator", "discriminator"]),
              help="Network to take from a file that holds both [default: the generator if there is one].")  # fmt: skip
@click.option("--size", type=click.IntRange(min=1), metavar="SIDE",
              help="Side of the training images, in px [default: the usual one for the network].")  # fmt: skip
@click.option("--scale", metavar="FACTOR",
              help="Side of the training images over the side of their files, such as 0.5; native: they were not "
                   "resized. The default scale of `translate` [default: unknown].")  # fmt: skip
@click.option("--test-mode", type=click.Choice(["paper", "eval"]), default="paper", show_default=True,
              help="Default test mode of `translate`. paper: statistics of the image itself and dropout, as the other "
                   "code tests too, except with its --eval; eval: running statistics, no dropout.")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite OUT if it exists.")
@json_option
def import_command(
    file: Path,
    output: Path,
    overrides: tuple[str, ...],
    part: str | None,
    size: int | None,
    scale: str | None,
    test_mode: str,
    force: bool,
    as_json: bool,
) -> None:
    """Convert FILE, weights that were trained by other code (such as latest_net_G.pth), to a model.safetensors.

    The network and its parameters are inferred from the names and shapes of the tensors; what the file does not contain
    is guessed and printed. Use a generator with `p2pzoo translate` or as `[init] generator` of a recipe, a
    discriminator as `[init] discriminator`. Only tensors are read: a file that would run code is refused.

    \b
    p2pzoo import latest_net_G.pth -o model.safetensors
    p2pzoo translate model.safetensors photo.png -o out.png
    """
    from p2pzoo.cli.options import parse_parameters
    from p2pzoo.plugin.loader import registry
    from p2pzoo_export.weights import import_weights

    _check_output(output, force)
    if output.suffix != ".safetensors":
        raise UserError(f"{output}: a model file needs a name that ends in .safetensors")
    sides = None if size is None else (size, size)
    imported = import_weights(
        file, registry(), parse_parameters(overrides), part=part, size=sides, test_mode=test_mode, layout=_layout(scale)
    )
    imported.save(output)
    if as_json:
        part, header = imported.part, imported.header
        keys = ("in_channels", "out_channels", "size", "test_mode")
        described = {part: header[part], **{key: header[key] for key in keys}, "guessed": [*imported.notes]}
        print_json({"file": str(output), **described})
        return
    click.echo(f"read     {imported.use}, {_format_network(imported.header)}")
    for note in imported.notes:
        click.echo(f"guessed  {note}")
    click.echo(f"written  {output}")


def _layout(scale: str | None) -> FileLayout | None:
    """How images of this --scale relate to their files."""
    from p2pzoo.models.model_file import MAX_SCALE
    from p2pzoo.plugin import FileLayout

    if scale is None:
        return None
    try:
        factor = 1.0 if scale == "native" else float(scale)
    except ValueError:
        factor = math.nan
    if not 0 < factor <= MAX_SCALE:
        raise UserError(f"--scale {scale}: give native, or a number above 0 and up to {MAX_SCALE}, such as 0.5")
    return FileLayout(scale=(factor, factor))


@click.command("export")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--to", required=True, metavar="FORMAT",
              help="Format. onnx or torch-export: the generator as a graph; web: a page that runs it in the browser; "
                   "bioimageio: a model of the BioImage Model Zoo; junyanz, mmagic or pix2pixhd: weights for that "
                   "code.")  # fmt: skip
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="OUT",
              help="File to write, such as model.onnx, model.pt2 or latest_net_G.pth; for web, a folder or a "
                   ".html file; for bioimageio, a folder or a .zip file.")  # fmt: skip
@click.option("--space", is_flag=True, help="Make the folder of a page a static Space of the hub (web).")
@push_options("space")
@click.option("--test-mode", type=click.Choice(["paper", "eval"]),
              help="Test mode of a graph. paper: statistics of the image itself, no dropout, one image at a time; "
                   "eval: running statistics [default: the model's].")  # fmt: skip
@at_use_options
@weights_option
@click.option("--fp16", is_flag=True, help="Compute in float16, half the size (onnx, web).")
@click.option("--int8", is_flag=True, help="Store weights in 8 bits, a quarter of the size (onnx, web).")
@click.option("--ort-dir", type=click.Path(path_type=Path, exists=True), metavar="DIR",
              help="Folder or .tgz with onnxruntime-web, for web [default: the cache, else `npm pack`].")  # fmt: skip
@click.option("--licence", metavar="ID", help="Licence of the model, for bioimageio, as SPDX spells it: CC-BY-4.0.")
@click.option("--author", "authors", multiple=True, metavar="NAME",
              help="Author of the model, for bioimageio: NAME, or 'NAME, AFFILIATION'.")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite OUT if it exists.")
@json_option
def export_command(
    model: Path,
    to: str,
    output: Path,
    space: bool,
    push: Target | None,
    test_mode: str | None,
    at_use: Mapping[str, Mapping[str, Any]],
    weights: str | None,
    fp16: bool,
    int8: bool,
    ort_dir: Path | None,
    licence: str | None,
    authors: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Export MODEL, a run folder, a model.safetensors, zoo:NAME or hf:OWNER/NAME, for other code.

    Of a run that is not finished, MODEL is its newest checkpoint.
    A graph is compared with torch before it is kept, on images of the run's test split if they are available.
    Differences to `p2pzoo translate` are printed.

    \b
    p2pzoo export runs/... --to onnx -o model.onnx
    p2pzoo export runs/... --to web -o page.html
    p2pzoo export runs/... --to web --space -o page/ --push OWNER/NAME
    """
    from p2pzoo.plugin.model_source import pin_model
    from p2pzoo_export.graphs import WEB

    precision = "fp16" if fp16 else "int8" if int8 else "fp32"
    has_graph_options = bool(test_mode or fp16 or int8 or any(at_use.values()))
    is_graph = _check_format(to, has_graph_options=has_graph_options)
    if fp16 and int8:
        raise UserError("--fp16 and --int8: a file has one precision; remove one of them")
    _check_web_options(to, output, space, push, ort_dir)
    package = _check_package(to, licence, authors, precision)
    _check_suffix(output, to)
    if (to == WEB and output.suffix != ".html") or (package and output.suffix != ".zip"):
        _check_folder(output, to, force)
    else:
        _check_output(output, force)
    model = pin_model(model)
    weights, notes = _choose_weights(model, weights)
    if is_graph:
        facts = _write_graph(model, to, output, test_mode, precision, ort_dir, at_use, package, weights)
    else:
        facts = {"notes": [*_write_weights(model, to, output, weights)]}
    facts["notes"] += notes
    if space:
        facts |= _publish_space(model, output, push)
    files = [*output.iterdir()] if output.is_dir() else [output]
    document = {"file": str(output), "format": to, "bytes": sum(file.stat().st_size for file in files), **facts}
    if as_json:
        print_json(document)
    else:
        _print_export(document, precision)


def _choose_weights(model: Path, weights: str | None) -> tuple[str, list[str]]:
    """The weights of a run that are exported, and a note if the user chose none and they are not the last ones."""
    from p2pzoo.models.load import find_measured_weights

    chosen = weights or find_measured_weights(model)
    if chosen == "last" or weights:
        return chosen, []
    return chosen, ["the average of the weights, which the numbers of the run measured (--weights last: others)"]


def _check_format(to: str, *, has_graph_options: bool) -> bool:
    """Whether a format holds a graph. Raises UserError for an unknown one, and for options that are for graphs."""
    from p2pzoo.plugin.loader import registry
    from p2pzoo_export.bioimageio_package import BIOIMAGEIO
    from p2pzoo_export.graphs import FORMATS, WEB
    from p2pzoo_export.weights import check_format

    if to in (*FORMATS, WEB, BIOIMAGEIO):
        return True
    check_format(to, registry())
    if has_graph_options:
        raise UserError(
            f"--to {to}: --test-mode, --fp16, --int8, --steps, --eta and -s are for graphs and pages, not for weights; "
            "remove them"
        )
    return False


def _check_package(to: str, licence: str | None, authors: Sequence[str], precision: str) -> dict[str, Any] | None:
    """The licence and the authors of a package for bioimage.io; None for other formats. Raises UserError."""
    from p2pzoo_export.bioimageio_package import BIOIMAGEIO

    if to != BIOIMAGEIO:
        if licence or authors:
            raise UserError(f"--to {to}: --licence and --author are only for --to {BIOIMAGEIO}; remove them")
        return None
    if precision != "fp32":
        raise UserError(f"--to {to}: --{precision} is for onnx and web; remove it")
    if not licence:
        raise UserError(f"--to {to}: a model there has a licence: choose yours with --licence, such as CC-BY-4.0")
    return {"licence": licence, "authors": authors}


def _print_export(document: Mapping[str, Any], precision: str) -> None:
    if "input" in document:
        difference = f"differs from torch by at most {document['difference']:.1e} in [-1, 1]"
        click.echo(f"input    {_INPUTS.get(document['format'], 'x in [-1, 1]')}: {document['input']}")
        click.echo(f"checked  on {document['checked_on']}: {difference}, PSNR {document['psnr']:.0f} dB")
        if precision != "fp32" and document["psnr_loss"] is not None:
            click.echo(f"costs    {document['psnr_loss']:.3f} dB of PSNR to the real images")
    for note in document["notes"]:
        click.echo(f"note     {note}")
    click.echo(f"written  {document['file']}, {document['bytes'] / 1e6:.1f} MB")
    if "url" in document:
        click.echo(f"uploaded {document['url']}")


def _check_web_options(to: str, output: Path, space: bool, push: Target | None, ort_dir: Path | None) -> None:
    """Raises UserError for options of a page that this export does not use."""
    from p2pzoo_export.graphs import WEB

    for option, is_given in (("--ort-dir", ort_dir), ("--space", space), ("--push", push)):
        if is_given and to != WEB:
            raise UserError(f"--to {to}: {option} is only for --to {WEB}; remove it")
    if push and not space:
        raise UserError("--push uploads a Space: add --space (a model is uploaded by `p2pzoo card RUN --push`)")
    if space and output.suffix == ".html":
        raise UserError(f"-o {output}: a Space is a folder: give a name without .html")


def _publish_space(model: Path, output: Path, push: Target | None) -> dict[str, Any]:
    """Write the README of the Space, and upload it if `push`; return {"url": its page} then."""
    from p2pzoo_hub.push import push_files

    from p2pzoo.models.load import find_model_file, find_run_folder
    from p2pzoo_export.web import PAGE_FILES, read_title, write_space_card

    write_space_card(output, read_title(find_run_folder(find_model_file(model))))
    if push is None:
        return {}
    files = [output / name for name in (*PAGE_FILES, "README.md")]
    return {"url": push_files(files, push, "Upload a page that p2pzoo wrote")}


def _write_weights(model: Path, to: str, output: Path, weights: str) -> Sequence[str]:
    from p2pzoo.plugin.loader import registry
    from p2pzoo_export.weights import export_weights

    return export_weights(model, to, output, registry(), weights=weights)


def _write_graph(
    model: Path,
    to: str,
    output: Path,
    test_mode: str | None,
    precision: str,
    ort_dir: Path | None,
    at_use: Mapping[str, Mapping[str, Any]],
    package: Mapping[str, Any] | None,
    weights: str,
) -> dict[str, Any]:
    """Write a graph, a page or a package; return its input, its difference to torch, and notes."""
    from p2pzoo.models.load import find_model_file, find_run_folder, load_model
    from p2pzoo_export.bioimageio_package import export_bioimageio
    from p2pzoo_export.graph_check import load_run_data
    from p2pzoo_export.graphs import FORMATS, export_graph
    from p2pzoo_export.web import export_web, read_title

    loaded = load_model(model, device="cpu", weights=weights, at_use=at_use)
    folder = find_run_folder(find_model_file(model))
    data, why_none = load_run_data(folder, loaded)
    if to in FORMATS:
        result = export_graph(loaded, output, to, test_mode=test_mode, precision=precision, data=data)
    elif package:
        title = read_title(folder)
        result = export_bioimageio(loaded, output, title=title, test_mode=test_mode, data=data, **package)
    else:
        title = read_title(folder)
        result = export_web(
            loaded, output, title=title, test_mode=test_mode, precision=precision, data=data, ort_dir=ort_dir
        )
    return {
        "input": f"{result.sides}, {format_count(loaded.in_channels, 'channel')}; output "
        f"{format_count(loaded.out_channels, 'channel')}",
        "checked_on": result.checked_on,
        "difference": result.difference,
        "psnr": result.psnr,
        "psnr_loss": result.psnr_loss,
        "notes": [*result.notes, *([f"no real images to check it on: {why_none}"] if why_none else [])],
    }


def _check_suffix(output: Path, to: str) -> None:
    """Raises UserError for a name that other programs would take for another format. No suffix is fine."""
    suffix, own = output.suffix, SUFFIXES.get(to)
    if own and suffix not in ("", own):
        raise UserError(f"-o {output}: --to {to} writes a {own} file; use a name that ends in {own}")
    for other, ending in SUFFIXES.items():
        if not own and suffix == ending:
            raise UserError(f"-o {output}: {ending} is for --to {other}; weights have names that end in .pth")


def _check_folder(output: Path, to: str, force: bool) -> None:
    """Raises UserError for a folder that cannot be written. Folders of pages are checked by what writes them."""
    from p2pzoo_export.bioimageio_package import BIOIMAGEIO, DESCRIPTION

    _check_parent(output)
    if to == BIOIMAGEIO and output.exists():
        if not output.is_dir():
            raise UserError(f"{output}: is a file; give a folder, or a name that ends with .zip")
        if any(output.iterdir()) and not (force and (output / DESCRIPTION).exists()):
            advice = "--force overwrites it" if (output / DESCRIPTION).exists() else "give a new one"
            raise UserError(f"{output}: holds other files; {advice}")


def _check_output(output: Path, force: bool) -> None:
    if output.is_dir():
        raise UserError(f"{output}: is a folder; give the name of a file")
    if output.exists() and not force:
        raise UserError(f"{output}: already exists; --force overwrites it")
    _check_parent(output)


def _check_parent(output: Path) -> None:
    if not output.absolute().parent.is_dir():
        raise UserError(f"{output.parent}: no such folder; create it, or write {output.name} elsewhere")


def _format_network(header: object) -> str:
    from p2pzoo.plugin.schema import format_value

    assert isinstance(header, Mapping)
    [part] = [header[kind] for kind in ("generator", "discriminator") if kind in header]
    channels = f"{header['in_channels']} -> {format_count(header['out_channels'], 'channel')}"
    values = (f"{name} = {format_value(value)}" for name, value in part["params"].items() if value is not None)
    return ", ".join([channels, *values])
