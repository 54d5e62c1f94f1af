"""Measure how far p2pzoo's float32 steps drift from those of `baseline.py`, compared with a harmless reordering.

    python benchmarks/drift.py --size 256 --width 64

Another order of summation rounds differently, and GAN training amplifies the difference in each step. The baseline in
channels-last memory, for which torch picks other kernels, shows by how much. Dropout is off, since its masks depend on
the memory order.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import measure
import torch
from baseline import Classic
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo import config
from p2pzoo.compute.engine import Engine
from p2pzoo.models.initialization import make_discriminator, make_generator
from p2pzoo.plugin.batch import Batch
from p2pzoo.training.setup import build_objective

CHANNELS = (3, 3)
COARSE = 8  # pixels between two independent values of the smooth noise


@click.command()
@click.option("--size", default=256, show_default=True, help="Side of the images in pixels.")
@click.option("--width", default=64, show_default=True, help="Channels of the first layers of G and D.")
@click.option("--steps", default=20, show_default=True, help="Training steps.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of a table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this file.")
def main(size: int, width: int, steps: int, as_json: bool, output: Path | None) -> None:
    """Print the largest differences of weights and losses after training from the same weights on the same images."""
    overrides = [f"generator.width={width}", f"discriminator.width={width}", "generator.noise=none"]
    made = config.load("zoo:base.toml", "laptop", [*overrides, "compute.device=cpu"])
    engine = Engine(made.compute)
    objective = build_objective(made, engine, CHANNELS, (size, size))
    D = make_discriminator(made, CHANNELS, (size, size))
    assert D is not None
    classic = Classic(make_generator(made, CHANNELS, (size, size)), D)
    reordered = Classic(*(copy.deepcopy(n).to(memory_format=torch.channels_last) for n in (classic.G, classic.D)))

    def ours(number: int) -> dict[str, float]:
        x, y = pair(number, size)
        losses = objective.step(engine.to_device(Batch(x, y, ("",))), number)
        return {name: losses[name].item() for name in ("D.gan", "G.gan", "G.l1")}

    def classics(step: Classic, memory_format: torch.memory_format) -> Callable[[int], dict[str, float]]:
        def take(number: int) -> dict[str, float]:
            losses = step.step(*(image.contiguous(memory_format=memory_format) for image in pair(number, size)))
            D_gan = (losses["D.real"] + losses["D.fake"]) / 2
            return {"D.gan": D_gan, "G.gan": losses["G.gan"], "G.l1": losses["G.l1"]}

        return take

    losses: dict[str, list[dict[str, float]]] = {"baseline": [], "p2pzoo": [], "channels-last": []}
    for number in range(steps):
        losses["baseline"].append(classics(classic, torch.contiguous_format)(number))
        losses["p2pzoo"].append(ours(number))
        losses["channels-last"].append(classics(reordered, torch.channels_last)(number))
    networks = {
        "p2pzoo": (objective.G.network, objective.trainables[1].network),
        "channels-last": (reordered.G, reordered.D),
    }
    result: dict[str, Any] = {"benchmark": "drift", "size": size, "width": width, "steps": steps}
    for name, both in networks.items():
        result[name] = {
            "weights": max(map(largest_difference, both, (classic.G, classic.D))),
            "losses": max(
                abs(mine[loss] - its[loss])
                for mine, its in zip(losses[name], losses["baseline"], strict=True)
                for loss in its
            ),
        }
    result["last_losses"] = losses["baseline"][-1]
    result["environment"] = measure.environment()
    measure.keep(result, output)
    click.echo(json.dumps(result) if as_json else table(result))


def pair(number: int, size: int) -> list[Tensor]:
    """Return x and y of a step, (1, 3, H, W) in [-1, 1]: smooth noise with the step number as seed."""
    generator = torch.Generator().manual_seed(number)
    coarse = torch.rand(2, 1, 3, size // COARSE, size // COARSE, generator=generator) * 2 - 1
    return [F.interpolate(image, (size, size), mode="bilinear") for image in coarse]


def largest_difference(a: nn.Module, b: nn.Module) -> float:
    return max((p - q).abs().max().item() for p, q in zip(a.parameters(), b.parameters(), strict=True))


def table(result: dict[str, Any]) -> str:
    rows = ["| against the baseline | largest difference of a weight | of a loss |", "|---|---|---|"]
    for name in ("p2pzoo", "channels-last"):
        rows.append(f"| {name} | {result[name]['weights']:.1e} | {result[name]['losses']:.1e} |")
    return "\n".join([*rows, "", f"after {result['steps']} steps at {result['size']} px, width {result['width']}"])


if __name__ == "__main__":
    main()
