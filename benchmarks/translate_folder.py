"""A folder of images through one generator: `p2pzoo translate` in eval mode against the loop that users run today.

    python benchmarks/translate_folder.py --images 200 --json

The loop: one image at a time, opened by Pillow, NCHW, eager, the network in eval mode without gradients, saved as PNG
with Pillow's defaults. Both get the same files and a U-Net with the same weights: random ones, with running statistics
of the images, so that the translations are as lively as a photo. Rounds alternate between the two, after one of each on
a few images. Times are those after imports: without and with the model being loaded from its file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import nn

import p2pzoo
from p2pzoo.checkpoint import save_tensors
from p2pzoo.errors import UserError
from p2pzoo.experiment import Component
from p2pzoo.model import load
from p2pzoo.networks import build
from p2pzoo.params import check
from p2pzoo.plugins import registry
from p2pzoo.stream import translate_files

SEED = 0


def draw(folder: Path, images: int, size: int) -> None:
    """Smooth pictures with detail at every scale, as photos have it, in RGB."""
    rng = np.random.default_rng(SEED)
    for number in range(images):
        picture = np.zeros((size, size, 3))
        side = 2
        while side <= size:
            noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            picture += (
                np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)) - 128.0
            ) / side
            side *= 2
        levels = (picture - picture.min()) / np.ptp(picture) * 255
        Image.fromarray(levels.astype(np.uint8)).save(folder / f"{number:04}.png")


def make_generator(size: int, width: int) -> nn.Module:
    entry = registry().get("generator", "unet")
    factory = entry.load()
    return build(Component(entry, factory, check(factory, {"width": width})), (3, 3), (size, size))


def write_models(folder: Path, size: int, width: int, examples: list[Path]) -> None:
    """The same generator as p2pzoo keeps it, model.safetensors, and as torch.save does, model.pth."""
    torch.manual_seed(SEED)
    G = make_generator(size, width)
    with torch.no_grad():
        for norm in (module for module in G.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.momentum = None  # the average over all examples
        G.train()(torch.cat([opened(path) for path in examples]))
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


def opened(path: Path) -> torch.Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    pixels = np.array(Image.open(path).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div(255).sub(0.5).div(0.5)[None]


@torch.no_grad()
def classic(G: nn.Module, sources: list[Path], out: Path) -> None:
    for path in sources:
        y_hat = G(opened(path))[0]
        pixels = ((y_hat.permute(1, 2, 0).numpy() + 1) / 2 * 255).clip(0, 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(out / f"{path.stem}.png")


def classic_load(file: Path, size: int, width: int) -> nn.Module:
    G = make_generator(size, width)
    G.load_state_dict(torch.load(file, weights_only=True))
    return G.eval()


def ours(model: p2pzoo.model.Model, sources: list[Path], out: Path) -> None:
    for outcome in translate_files(model, {path: out / f"{path.stem}.png" for path in sources}, "eval"):
        if outcome.faults:
            raise UserError(*outcome.faults)


def timed(load_model: Callable[[], Any], translate: Callable[..., None], sources: list[Path], out: Path) -> list[float]:
    """Seconds [translating, loading and translating]."""
    start = time.perf_counter()
    model = load_model()
    loaded = time.perf_counter()
    translate(model, sources, out)
    end = time.perf_counter()
    return [end - loaded, end - start]


def measure(images: int, size: int, width: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outs = {who: folder / who for who in ("classic", "ours")}
        for path in (folder / "in", *outs.values()):
            path.mkdir()
        draw(folder / "in", images, size)
        sources = sorted((folder / "in").iterdir())
        write_models(folder, size, width, sources[:8])
        contestants: dict[str, tuple[Callable[[], Any], Callable[..., None]]] = {
            "classic": (lambda: classic_load(folder / "model.pth", size, width), classic),
            "ours": (lambda: load(folder / "model.safetensors", device="cpu"), ours),
        }
        for who, (load_model, translate) in contestants.items():
            timed(load_model, translate, sources[:8], outs[who])
        seconds: dict[str, list[list[float]]] = {who: [] for who in contestants}
        for number in range(rounds):
            for who in sorted(contestants, reverse=number % 2 == 1):
                seconds[who].append(timed(*contestants[who], sources, outs[who]))
        levels = [
            np.abs(np.asarray(Image.open(a), np.int16) - np.asarray(Image.open(b), np.int16)).max()
            for a, b in zip(*(sorted(out.iterdir()) for out in outs.values()), strict=True)
        ]
        sizes = {who: sum(file.stat().st_size for file in out.iterdir()) for who, out in outs.items()}
    report: dict[str, Any] = {
        "benchmark": "translate_folder", "images": images, "size": size, "width": width, "rounds": rounds
    }  # fmt: skip
    for column, what in enumerate(("translate", "load_and_translate")):
        each = {who: [row[column] for row in rows] for who, rows in seconds.items()}
        ratios = [a / b for a, b in zip(each["classic"], each["ours"], strict=True)]
        report[what] = {
            **{f"{who}_s": round(median(values), 3) for who, values in each.items()},
            "ratio": round(median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    return report | {
        "megabytes": {who: round(total / 1e6, 3) for who, total in sizes.items()},
        "largest_difference": int(max(levels)),
        "env": {
            "p2pzoo": p2pzoo.__version__,
            "torch": torch.__version__,
            "pillow": PIL.__version__,
            "python": platform.python_version(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def markdown(report: dict[str, Any]) -> str:
    env, rows = report["env"], []
    for what in ("translate", "load_and_translate"):
        times, (low, high) = report[what], report[what]["ratio_range"]
        rows.append(
            f"| {what.replace('_', ' ')} | {times['classic_s']:.2f} | {times['ours_s']:.2f} "
            f"| {times['ratio']:.2f}× ({low:.2f}–{high:.2f}) |"
        )
    return "\n".join(
        [
            f"{report['images']} images of {report['size']} px, U-Net of width {report['width']}; "
            f"medians of {report['rounds']} rounds, range of the ratio.",
            "",
            "| | classic loop, s | p2pzoo, s | ratio |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Files: {report['megabytes']['classic']} MB and {report['megabytes']['ours']} MB; their pixels differ by "
            f"{report['largest_difference']} of 255 at most.",
            "",
            f"{env['processor']}, {env['threads']} threads on {env['cores']} cores; torch {env['torch']}, "
            f"Pillow {env['pillow']}, Python {env['python']}, p2pzoo {env['p2pzoo']}.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=200, help="how many")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--width", type=int, default=64, help="of the U-Net")
    parser.add_argument("--rounds", type=int, default=5, help="counted ones, of each")
    parser.add_argument("--json", action="store_true", help="one line of JSON, not Markdown")
    options = parser.parse_args()
    if min(options.images, options.size, options.width, options.rounds) < 1:
        parser.error("every number must be at least 1")
    try:
        report = measure(options.images, options.size, options.width, options.rounds)
    except (UserError, ValueError) as error:
        parser.error(str(error))
    print(json.dumps(report) if options.json else markdown(report))


if __name__ == "__main__":
    main()
