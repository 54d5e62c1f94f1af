"""Compare `p2pzoo translate` in eval mode with the loop that most people write, on a folder of images.

    python benchmarks/translate_folder.py -o benchmarks/results/speed/translate_folder.json

The loop: one image at a time, opened with Pillow, NCHW, eager, the network in eval mode without gradients, saved as PNG
with Pillow's defaults. All contestants get the same files and a U-Net with the same weights. These are random, with the
running statistics of the images, so that the outputs have as much contrast as a photo. A turn is the whole folder,
after a warm-up turn; the model is loaded before.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import measure
import numpy as np
import torch
from PIL import Image
from torch import nn

from p2pzoo.utils.errors import UserError

SEED = 0
EXAMPLES = 8  # images for the running statistics of the batch norms
CONTESTANTS = {"baseline": "classic loop", "ours": "p2pzoo", "bf16": "p2pzoo --precision bf16"}


@click.command()
@click.option("--images", type=click.IntRange(1), default=200, show_default=True, help="Number of images.")
@click.option("--size", type=click.IntRange(8), default=256, show_default=True, help="Side of the images in pixels.")
@click.option("--width", type=click.IntRange(1), default=64, show_default=True, help="Channels of the first layer.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns per contestant.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of a table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this file.")
@click.option("--contestant", hidden=True)
@click.option("--folder", hidden=True, type=click.Path(path_type=Path))
def main(
    images: int, size: int, width: int, rounds: int, as_json: bool, output: Path | None,
    contestant: str | None, folder: Path | None,
) -> None:  # fmt: skip
    """Time the translation of a folder."""
    if contestant and folder:
        measure.serve(MAKE[contestant](folder, size, width))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("in", *CONTESTANTS):
            (folder / name).mkdir()
        draw(folder / "in", images, size)
        try:
            write_models(folder, size, width)
        except UserError as error:
            click.echo(error, err=True)
            sys.exit(2)
        arguments = ("--size", size, "--width", width, "--folder", folder)
        contestants = {name: measure.Contestant(__file__, *arguments, "--contestant", name) for name in CONTESTANTS}
        measured = measure.take_turns(contestants, rounds, 1)
        differences = {name: difference(folder / name, folder / "baseline") for name in CONTESTANTS}
        sizes = {name: sum(file.stat().st_size for file in (folder / name).iterdir()) for name in CONTESTANTS}
    result = {
        "benchmark": "translate_folder", "images": images, "size": size, "width": width,
        "contestants": {
            name: {
                "seconds": measure.spread(each["seconds"]),
                "ratio": measure.ratio(measured["baseline"]["seconds"], each["seconds"]),
                "peak_megabytes": round(each["peak_bytes"] / 1e6),
                "png_megabytes": round(sizes[name] / 1e6, 2),
                "difference": differences[name],
            }
            for name, each in measured.items()
        },
        "environment": measure.environment(),
    }  # fmt: skip
    measure.keep(result, output)
    click.echo(json.dumps(result) if as_json else table(result))


# --- inputs ----------------------------------------------------------------------------------------------------


def draw(folder: Path, images: int, size: int) -> None:
    """Write RGB images of smooth noise with detail at every scale, like photos."""
    rng = np.random.default_rng(SEED)
    for number in range(images):
        picture = np.zeros((size, size, 3))
        side = 2
        while side <= size:
            noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            scaled = Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
            picture += (np.asarray(scaled) - 128.0) / side
            side *= 2
        levels = (picture - picture.min()) / np.ptp(picture) * 255
        Image.fromarray(levels.astype(np.uint8)).save(folder / f"{number:04}.png")


def make_generator(size: int, width: int) -> nn.Module:
    from p2pzoo.config.experiment import Component
    from p2pzoo.models.build import build_network
    from p2pzoo.plugin.loader import registry
    from p2pzoo.plugin.schema import check_params

    entry = registry().get("generator", "unet")
    factory = entry.load()
    return build_network(Component(entry, factory, check_params(factory, {"width": width})), (3, 3), (size, size))


def write_models(folder: Path, size: int, width: int) -> None:
    """Write the same generator as model.safetensors of p2pzoo and as model.pth of torch.save."""
    from p2pzoo.models.safetensors_io import save_tensors

    torch.manual_seed(SEED)
    G = make_generator(size, width)
    with torch.no_grad():
        for norm in (module for module in G.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.momentum = None  # the average over all examples
        G.train()(torch.cat([open_image(path) for path in sorted((folder / "in").iterdir())[:EXAMPLES]]))
    header = {
        "run": "random",
        "generator": {"use": "pix2pix:unet", "params": {"width": width}},
        "in_channels": 3,
        "out_channels": 3,
        "size": [size, size],
        "size_divisor": G.size_divisor,
        "test_mode": "eval",
    }
    save_tensors(folder / "model.safetensors", G.state_dict(), header)
    torch.save(G.state_dict(), folder / "model.pth")


# --- the contestants -------------------------------------------------------------------------------------------


def classic(folder: Path, size: int, width: int) -> Callable[[], None]:
    G = make_generator(size, width)
    G.load_state_dict(torch.load(folder / "model.pth", weights_only=True))
    G.eval()

    @torch.no_grad()
    def work() -> None:
        for path in sorted((folder / "in").iterdir()):
            y_hat = G(open_image(path))[0]
            pixels = ((y_hat.permute(1, 2, 0).numpy() + 1) / 2 * 255).clip(0, 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(folder / "baseline" / path.name)

    work()
    return work


def open_image(path: Path) -> torch.Tensor:
    """Return an image as (1, 3, H, W) in [-1, 1]."""
    pixels = np.array(Image.open(path).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div(255).sub(0.5).div(0.5)[None]


def ours(folder: Path, precision: str, out: Path) -> Callable[[], None]:
    from p2pzoo import load
    from p2pzoo.compute.engine import keep_freed_memory
    from p2pzoo.models.translate_files import translate_files

    keep_freed_memory()
    model = load(folder / "model.safetensors", device="cpu", precision=precision)

    def work() -> None:
        targets = {path: out / path.name for path in sorted((folder / "in").iterdir())}
        for outcome in translate_files(model, targets, "eval"):
            if outcome.faults:
                raise UserError(*outcome.faults)

    work()
    return work


MAKE: dict[str, Callable[[Path, int, int], Callable[[], None]]] = {
    "baseline": classic,
    "ours": lambda folder, size, width: ours(folder, "fp32", folder / "ours"),
    "bf16": lambda folder, size, width: ours(folder, "bf16", folder / "bf16"),
}


# --- results ---------------------------------------------------------------------------------------------------


def difference(folder: Path, other: Path) -> dict[str, float]:
    """Return the mean and the largest difference of the pixel levels, 0 to 255."""
    differences = [
        np.abs(np.asarray(Image.open(a), np.int16) - np.asarray(Image.open(other / a.name), np.int16))
        for a in sorted(folder.iterdir())
    ]
    return {
        "mean": round(statistics.fmean(float(each.mean()) for each in differences), 4),
        "largest": max(int(each.max()) for each in differences),
    }


def table(result: dict[str, Any]) -> str:
    rows = ["| | seconds | times as fast (spread) | peak MB | levels off, mean and largest |", "|---|---|---|---|---|"]
    for name in CONTESTANTS:
        each = result["contestants"][name]
        low, high = each["ratio"]["spread"]
        speed = "" if name == "baseline" else f"{each['ratio']['median']:.2f} ({low:.2f} to {high:.2f})"
        off = "" if name == "baseline" else f"{each['difference']['mean']:.3f}, {each['difference']['largest']}"
        rows.append(
            f"| {CONTESTANTS[name]} | {each['seconds']['median']:.2f} | {speed} | {each['peak_megabytes']} | {off} |"
        )
    return "\n".join(
        [*rows, "", f"{result['images']} images of {result['size']} px, a U-Net of width {result['width']}."]
    )


if __name__ == "__main__":
    main()
