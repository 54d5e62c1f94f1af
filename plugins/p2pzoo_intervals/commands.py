"""`p2pzoo calibrate`. Imports click only: torch is imported when the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pzoo.cli.options import FiniteRange, json_option, print_json, stop
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count
from p2pzoo.utils.signals import exit_code

if TYPE_CHECKING:
    from p2pzoo.config.experiment import Experiment
    from p2pzoo_intervals.calibrate import Outcome


@click.command("calibrate")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--level", type=FiniteRange(0, 1, min_open=True, max_open=True), default=0.8, show_default=True,
              help="Share of a new block's values that the intervals cover at least, in expectation.")  # fmt: skip
@click.option("--split", "splits", type=click.Choice(["val", "test"]), multiple=True, default=["val"],
              show_default=True, help="Calibrate on the blocks of this split. May be repeated.")  # fmt: skip
@click.option("--samples", type=click.IntRange(2, 1000), metavar="M",
              help="Take the smallest and the largest of M translations as bounds [default: the generator's own "
                   "bounds if it has them, else 19].")  # fmt: skip
@click.option("--recipe", metavar="RECIPE",
              help="Calibrate on the data of this recipe [default: the recipe of MODEL].")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]),
              help="Compute on this device [default: the recipe's].")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="OUT.safetensors",
              help="Write the calibrated model to this file [default: into the file of MODEL].")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite OUT if it exists.")
@json_option
def calibrate_command(
    model: Path,
    level: float,
    splits: tuple[str, ...],
    samples: int | None,
    recipe: str | None,
    device: str | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Calibrate the intervals of MODEL: a run folder, a model.safetensors, zoo:NAME or hf:OWNER/NAME.

    The bounds of a value are those of the generator (`quantile-head`), or the smallest and the largest of M
    translations (dropout in test mode paper, the noise of a process). They are widened by the least factor that keeps
    the promise: over calibration and a new exchangeable block, the expected uncovered share is at most 1 - LEVEL; not
    per pixel, image, class, or on another continent.

    A level of .8 needs 4 blocks, .9 needs 9, .95 needs 19. Blocks that calibrate must not have chosen checkpoints or
    settings: if validation images did, calibrate on others.

    \b
    p2pzoo calibrate runs/mine/RUN --level 0.8
    p2pzoo translate runs/mine/RUN photo.png -o out/ --interval 0.8
    p2pzoo evaluate runs/mine/RUN
    """
    from p2pzoo.plugin.model_source import is_address, pin_model

    if output is not None:
        _check_output(output, force)
    elif is_address(model):
        raise UserError(
            f"{model}: stays as it was published: write the calibrated model elsewhere with -o OUT.safetensors"
        )
    model = pin_model(model)
    from p2pzoo import config
    from p2pzoo.models.load import load_model
    from p2pzoo.runs.evaluate_model import find_recipe_beside
    from p2pzoo_intervals.calibrate import calibrate, file_state, write_calibration

    if (used := recipe or find_recipe_beside(model)) is None:
        raise UserError(f"{model}: has no recipe.toml beside it, so nothing says on which images to calibrate it: give "
                        "--recipe FILE")  # fmt: skip
    experiment = config.load(used, None, [f"compute.device={device}"] if device else [])
    state, loaded = file_state(model), load_model(model, device="cpu")
    if doubt := _find_doubt(model, experiment, loaded.run):
        click.echo(f"{doubt}: the promise holds only if none of these images trained it", err=True)
    try:
        outcome = calibrate(
            loaded, experiment, level=level, splits=tuple(dict.fromkeys(splits)),
            samples=samples, note=lambda line: click.echo(line, err=True),
        )  # fmt: skip
        file = write_calibration(model, output, outcome.calibration, state)
    except KeyboardInterrupt as interrupt:
        stop("stopped before all blocks were measured; nothing is written", exit_code(interrupt))
    _print(outcome, file, as_json)


def _find_doubt(model: Path, experiment: Experiment, run: str | None) -> str | None:
    """Why images of this recipe may have trained the model; None if they did not."""
    from p2pzoo.runs.changed_data import describe_changed_train_data

    if experiment.id == run:
        return describe_changed_train_data(model, experiment)
    return f"{experiment.recipe.name} is not the recipe of the model's run {run}"


def _print(outcome: Outcome, file: Path, as_json: bool) -> None:
    calibration = outcome.calibration
    if as_json:
        values = calibration.as_json()
        print_json({"file": str(file), **values, "uncovered": outcome.uncovered})
        return
    source = "bounds of the generator" if calibration.samples == 1 else f"{calibration.samples} samples"
    click.echo(f"intervals        {source}, widened by {calibration.factor:.4f}")
    click.echo(f"uncovered        {outcome.uncovered:.4f} of the values of {format_count(calibration.blocks, 'block')}")
    click.echo(
        "promise          over calibration and a new exchangeable block, the expected uncovered share is at most"
    )
    click.echo(f"                 {1 - calibration.level:g}; not per pixel, image, class, or on another continent")
    click.echo(f"written          {file}")


def _check_output(output: Path, force: bool) -> None:
    if output.suffix != ".safetensors":
        raise UserError(f"-o {output}: a model file needs a name that ends in .safetensors")
    if output.exists() and not force:
        raise UserError(f"{output}: already exists; --force overwrites it")
    if not output.absolute().parent.is_dir():
        raise UserError(f"{output.parent}: no such folder; create it, or write {output.name} elsewhere")
