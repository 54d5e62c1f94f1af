"""`p2pzoo evaluate`: measure a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from p2pzoo.cli.options import (
    json_option,
    override_option,
    print_json,
    process_options,
    profile_option,
    refuse_given_twice,
)
from p2pzoo.cli.tables import exit_if_nan, print_metrics
from p2pzoo.cli.translate import parse_scale
from p2pzoo.utils.errors import UserError


@click.command("evaluate")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", metavar="[INPUTS TARGETS]", nargs=-1, type=click.Path(path_type=Path))
@click.option("--recipe", metavar="RECIPE",
              help="Measure on the data of this recipe, with its metrics [default: the recipe of MODEL].")  # fmt: skip
@profile_option
@override_option
@click.option("--split", type=click.Choice(["train", "val", "test"]),
              help="Split to measure on [default: the recipe's; of folders: test].")  # fmt: skip
@click.option("--metric", "metrics", multiple=True, metavar="NAME",
              help="Measure this metric only, of the recipe or of `p2pzoo list metric`. May be repeated.")  # fmt: skip
@click.option("--test-mode", type=click.Choice(["paper", "eval"]),
              help="Run the generator as in training (paper) or with running statistics and no dropout (eval) "
                   "[default: the recipe's; of folders: the model's].")  # fmt: skip
@process_options
@click.option("--scale", metavar="FACTOR",
              help="Of folders: let the model see each image at this fraction of its size (native: at its own size) "
                   "[default: the scale of the training images].")  # fmt: skip
@click.option("--size", type=click.IntRange(min=1), nargs=2, metavar="HEIGHT WIDTH",
              help="Of folders: let the model see each image at this size in pixels.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]),
              help="Compute on this device [default: auto].")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="RESULTS.json",
              help="Write the numbers and their protocols to this file, as in the results.json of a run.")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite RESULTS.json if it exists.")
@click.option("--quiet", is_flag=True, help="Only print errors and results.")
@json_option
def evaluate_command(
    model: Path,
    data: tuple[Path, ...],
    recipe: str | None,
    profile: str | None,
    overrides: tuple[str, ...],
    split: str | None,
    metrics: tuple[str, ...],
    test_mode: str | None,
    process: Mapping[str, Any],
    scale: str | None,
    size: tuple[int, int] | None,
    device: str | None,
    output: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure MODEL: a run folder, a model.safetensors, zoo:NAME or hf:OWNER/NAME.

    Without folders, MODEL is measured on the data of a recipe: its own, if it is in the folder of a run, or --recipe.
    The numbers of its own recipe are those that `p2pzoo run` printed.

    INPUTS and TARGETS are two folders of images, matched by file name. MODEL sees the inputs as `p2pzoo translate`
    shows them to it, and its translations are compared with the targets in the size of the files.

    \b
    p2pzoo evaluate runs/mine/RUN --split val
    p2pzoo evaluate model.safetensors --recipe mine.toml
    p2pzoo evaluate model.safetensors photos/ maps/ --metric l1 --metric ssim
    """
    from p2pzoo.runs.evaluate_model import Request, evaluate_model
    from p2pzoo.runs.results import write_results

    if output is not None:
        _check_output(output, force)
    options = {f"--{name}": (f"evaluate.process.{name}", value) for name, value in process.items()}
    options |= {"--split": ("evaluate.split", split), "--test-mode": ("evaluate.test_mode", test_mode)}
    refuse_given_twice(overrides, options | {"--device": ("compute.device", device)})
    try:
        factor = parse_scale(scale)
    except ValueError as error:
        raise UserError(str(error)) from None
    request = Request(
        model, _check_folders(data), recipe, profile, overrides, split, metrics, test_mode, factor, size, device,
        process,
    )  # fmt: skip
    results = evaluate_model(request, (lambda _: None) if quiet else (lambda line: click.echo(line, err=True)))
    if output is not None:
        write_results(output, results)
    _print_results(results, output, as_json)
    exit_if_nan(results)


def _print_results(results: dict[str, Any], output: Path | None, as_json: bool) -> None:
    if as_json:
        print_json(results)
        return
    print_metrics(results)
    if output is not None:
        click.echo(f"written          {output}")


def _check_folders(data: tuple[Path, ...]) -> tuple[Path, Path] | None:
    """Raises UserError if it is not two folders."""
    if not data:
        return None
    if len(data) == 2:
        return data
    if len(data) == 1 and data[0].suffix == ".toml":
        raise UserError(f"{data[0]}: is a recipe: give it with --recipe")
    if len(data) == 1:
        raise UserError(
            f"{data[0]}: give two folders, one of inputs and one of targets (`p2pzoo data split` makes them of images "
            "A|B), or no folder and --recipe"
        )
    raise UserError(f"{' '.join(map(str, data))}: give two folders, one of inputs and one of targets, not {len(data)}")


def _check_output(output: Path, force: bool) -> None:
    if output.suffix != ".json":
        raise UserError(f"-o {output}: the output is JSON; use a name that ends in .json")
    if output.name == "results.json" and (output.parent / "status.json").exists():
        raise UserError(f"-o {output}: this file belongs to the run in its folder; write another one")
    if output.exists() and not force:
        raise UserError(f"{output}: already exists; --force overwrites it")
    if not output.absolute().parent.is_dir():
        raise UserError(f"{output.parent}: no such folder; create it, or write {output.name} elsewhere")
