"""`p2pzoo import` and `p2pzoo export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from p2pzoo.utils.errors import UserError


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
    from p2pzoo.cli.options import parse_parameters
    from p2pzoo.plugin.loader import registry
    from p2pzoo_export.weights import import_weights

    _check_output(output, force)
    if output.suffix != ".safetensors":
        raise UserError(f"{output}: a model file ends in .safetensors")
    sides = None if size is None else (size, size)
    imported = import_weights(file, registry(), parse_parameters(overrides), part=part, size=sides, test_mode=test_mode)
    imported.save(output)
    click.echo(f"read     {imported.use}, {_spelled(imported.header)}")
    for note in imported.notes:
        click.echo(f"assumed  {note}")
    click.echo(f"written  {output}")


@click.command("export")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--to", required=True, metavar="FORMAT",
              help="onnx or torch-export: the generator as a graph; web: a page that runs it in the browser; junyanz, "
                   "mmagic or pix2pixhd: weights as that code stores them.")  # fmt: skip
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="OUT",
              help="The file to write, such as model.onnx, model.pt2 or latest_net_G.pth; of web a folder or one "
                   ".html file.")  # fmt: skip
@click.option("--test-mode", type=click.Choice(["paper", "eval"]),
              help="Of a graph. paper: the image's own statistics, no dropout, one image at a time; eval: running "
                   "statistics [default: the model's].")  # fmt: skip
@click.option("--fp16", is_flag=True, help="Of onnx and web: compute in float16, half the size.")
@click.option("--int8", is_flag=True, help="Of onnx and web: weights in 8 bits, a quarter of the size.")
@click.option("--ort-dir", type=click.Path(path_type=Path, exists=True), metavar="DIR",
              help="Of web: a folder or .tgz with onnxruntime-web [default: cached, else by `npm pack`].")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite OUT.")
def export_command(
    model: Path,
    to: str,
    output: Path,
    test_mode: str | None,
    fp16: bool,
    int8: bool,
    ort_dir: Path | None,
    force: bool,
) -> None:
    """Write MODEL, a run folder, a model.safetensors or zoo:NAME, for other code to use.

    A graph is compared with torch before it is kept, on images of the run's test split where they can be had. What is
    not the same there is said.

    \b
    p2pzoo export runs/... --to onnx -o model.onnx
    p2pzoo export runs/... --to web -o page.html
    """
    from p2pzoo_export.graphs import FORMATS, WEB

    graph = to in (*FORMATS, WEB)
    if fp16 and int8:
        raise UserError("--fp16 and --int8: a file has one of them")
    precision = "fp16" if fp16 else "int8" if int8 else "fp32"
    if not graph and (test_mode or fp16 or int8):
        raise UserError(f"--to {to}: weights have neither --test-mode nor --fp16 or --int8; those are for graphs")
    if ort_dir and to != WEB:
        raise UserError(f"--to {to}: --ort-dir is for web alone")
    if to == WEB and output.suffix != ".html":
        _check_parent(output)
    else:
        _check_output(output, force)
    notes = _graph(model, to, output, test_mode, precision, ort_dir) if graph else _weights(model, to, output)
    for note in notes:
        click.echo(f"note     {note}")
    files = [*output.iterdir()] if output.is_dir() else [output]
    click.echo(f"written  {output}, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB")


def _weights(model: Path, to: str, output: Path) -> list[str]:
    from p2pzoo.models.model import model_file
    from p2pzoo.plugin.loader import registry
    from p2pzoo_export.weights import export_weights

    return export_weights(model_file(model), to, output, registry())


def _graph(
    model: Path, to: str, output: Path, test_mode: str | None, precision: str, ort_dir: Path | None
) -> Sequence[str]:
    """Writes it, says what it takes and how near it comes to torch. What is to be noted besides."""
    from p2pzoo.models.model import load, model_file
    from p2pzoo_export.graphs import FORMATS, data_of, export
    from p2pzoo_export.web import export_web, title_of

    loaded = load(model, device="cpu")
    folder = model_file(model).parent
    data, without = data_of(folder, loaded)
    if to in FORMATS:
        exported = export(loaded, output, to, test_mode=test_mode, precision=precision, data=data)
    else:
        title = title_of(folder)
        exported = export_web(
            loaded, output, title=title, test_mode=test_mode, precision=precision, data=data, ort_dir=ort_dir
        )
    click.echo(f"takes    x in [-1, 1]: {exported.sides}, {loaded.in_channels} channels; gives {loaded.out_channels}")
    told = f"differs by at most {exported.difference:.1e} in [-1, 1], {exported.psnr:.0f} dB"
    click.echo(f"checked  on {exported.shown}: {told}")
    if precision != "fp32" and exported.psnr_loss is not None:
        click.echo(f"costs    {exported.psnr_loss:.3f} dB of PSNR to the real images")
    return [*exported.notes, *([f"no real images to check it on: {without}"] if without else [])]


def _check_output(output: Path, force: bool) -> None:
    if output.is_dir():
        raise UserError(f"{output}: a folder; name the file to write")
    if output.exists() and not force:
        raise UserError(f"{output}: already there; --force overwrites it")
    _check_parent(output)


def _check_parent(output: Path) -> None:
    if not output.absolute().parent.is_dir():
        raise UserError(f"{output.parent}: no such folder")


def _spelled(header: object) -> str:
    from collections.abc import Mapping

    from p2pzoo.plugin.schema import show

    assert isinstance(header, Mapping)
    [part] = [header[kind] for kind in ("generator", "discriminator") if kind in header]
    channels = f"{header['in_channels']} -> {header['out_channels']} channels"
    values = (f"{name} = {show(value)}" for name, value in part["params"].items() if value is not None)
    return ", ".join([channels, *values])
