"""Estimate the cost of jobs that need more than one machine.

    python benchmarks/plan.py

Each figure is computed from measurements in `results/`, from a recipe, and from published facts about data sets and
devices (PUBLISHED, with sources). None of these jobs was run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from grid import grid

from p2pzoo import config

HERE = Path(__file__).parent
RESULTS = HERE / "results"

PUBLISHED = {
    "ImageNet, JPEG bytes": 147_897_477_120,  # ILSVRC2012_img_train.tar
    "ImageNet, photos": 1_281_167,
    "H100 SXM, bf16 FLOP/s": 989e12,  # dense; NVIDIA's data sheet
}
SHARES = (
    0.01,
    0.10,
)  # share of a GPU's peak that such steps reach: assumed until benchmarks/gpu_window.py has measured it
SHARE = f"{SHARES[1]:.0%} to {SHARES[0]:.0%} of its peak, assumed"
STORAGE = 1e9  # bytes per second of a shared file system for one run: assumed
FLOAT = 4  # bytes
RUNS, GPUS = 1000, 64


def colorization() -> str:
    """Return the plan of colorization: ImageNet with the epochs of §6.2."""
    train, weights, saved = _recipe("zoo:tasks/colorize.toml", "paper", (1, 2), 256)
    step, loading = _speed("train_step-256-64-4-fp32"), _speed("data_loading")
    gflop, seconds = step["gflop"] / step["batch"], step["milliseconds"]["ours"] / step["batch"] / 1e3
    a_thread = loading["contestants"]["stream"]["pairs_per_second"]["median"] / loading["environment"]["threads"]
    photos, jpegs = PUBLISHED["ImageNet, photos"], PUBLISHED["ImageNet, JPEG bytes"]
    photo, pair = jpegs / photos, 256 * 256 * 3 * 2
    slow, fast = (share * PUBLISHED["H100 SXM, bf16 FLOP/s"] / (gflop * 1e9) for share in SHARES)
    return _grid(
        "ImageNet, grey to colour",
        ("epochs", f"{train.length / photos:.0f}: {train.length:,} images seen", "§6.2, the recipe"),
        ("photos", f"{jpegs / 1e9:.0f} GB, {photos:,} files", "their archive"),
        ("decoded", f"{photos * pair / 1e9:.0f} GB", "256 × 256, L and ab in 16 bits"),
        ("arithmetic", f"{gflop:.0f} GFLOP an image", "counted, train_step-256-64-4-fp32"),
        ("on two cores", f"{train.length * seconds / 86400:.0f} days", f"{1e3 * seconds:.0f} ms an image, measured"),
        ("on one H100", f"{train.length / fast / 3600:.1f} to {train.length / slow / 3600:.0f} h", SHARE),
        ("which reads", f"{slow:,.0f} to {fast:,.0f} photos a second", "the same"),
        (
            "... with",
            f"{slow / a_thread:.1f} to {fast / a_thread:.1f} threads",
            f"{a_thread:.0f} a second each, measured",
        ),
        ("... from storage", f"{slow * photo / 1e6:.0f} to {fast * photo / 1e6:.0f} MB a second", "a mean JPEG"),
        (
            "a checkpoint",
            f"{saved / 1e6:.0f} MB, two are kept",
            f"{sum(weights):,} weights, Adam's two moments, G's average",
        ),
        ("saving", f"{train.length // train.checkpoint_every} × {saved / STORAGE:.1f} s", "at 1 GB a second, assumed"),
    )


def ablation() -> str:
    """Return the plan of an ablation: RUNS runs of profile gpu on GPUS GPUs."""
    train, (G, _), saved = _recipe("zoo:ablation_patch70.toml", "gpu", (3, 3), 128)
    step = _speed("train_step-256-64-1-fp32")
    gflop, seconds = step["gflop"] / 4, step["milliseconds"]["ours"] / 4 / 1e3  # a quarter of the pixels
    model = 2 * FLOAT * G  # the last weights and their average
    kept = sum(file.stat().st_size for file in next(RESULTS.glob("ablation_l1_cgan-laptop-seed0-*")).iterdir())
    slow, fast = (share * PUBLISHED["H100 SXM, bf16 FLOP/s"] / (gflop * 1e9) for share in SHARES)
    quick, long, cores = train.length / fast, train.length / slow, train.length * seconds
    waves, every = -(-RUNS // GPUS), train.checkpoint_every / fast
    left, parts = (
        model + saved + kept,
        f"G and its average {model / 1e6:.0f}, checkpoint {saved / 1e6:.0f}, results {kept / 1e6:.1f}",
    )
    return _grid(
        f"{RUNS:,} runs, {GPUS} GPUs",
        ("images of a run", f"{train.length:,} of 128 px", "profile gpu"),
        ("a run on two cores", f"{cores / 3600:.1f} h", "a quarter of 256 px at batch 1, measured"),
        ("a run on one H100", f"{quick / 60:.0f} to {long / 60:.0f} min", f"{SHARE}; at batch 1 rather the latter"),
        ("all runs", f"{waves * quick / 3600:.1f} to {waves * long / 3600:.1f} h", f"{waves} in turn on each"),
        ("... on as many pairs of cores", f"{waves * cores / 86400:.1f} days", "the same"),
        ("a run leaves", f"{left / 1e6:,.0f} MB", parts),
        ("all leave", f"{RUNS * left / 1e9:,.0f} GB", f"{RUNS * kept / 1e9:.1f} GB without weights, enough for tables"),
        ("saving", f"up to {GPUS * saved / every / 1e9:.1f} GB a second", f"{GPUS} checkpoints every {every:.0f} s"),
    )  # fmt: skip


def _grid(title: str, *rows: tuple[str, str, str]) -> str:
    return grid([title, "", "from"], [list(row) for row in rows])


def _recipe(name: str, profile: str, channels: tuple[int, int], side: int) -> tuple[Any, tuple[int, int], int]:
    """Return the [train] table of a recipe, the weights of G and of D, and the bytes of a checkpoint.

    It holds each weight with the two moments of Adam, and the average of G's weights.
    """
    from p2pzoo.models.build import summarize_network

    made = config.load(name, profile)
    assert made.discriminator
    G, D = (summarize_network(part, channels, (side, side)).parameters for part in (made.generator, made.discriminator))
    return made.train, (G, D), FLOAT * (3 * (G + D) + G)


def _speed(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / "speed" / f"{name}.json").read_text("utf-8"))
    return result


@click.command()
def main() -> None:
    """Print both plans."""
    click.echo(f"{colorization()}\n\n{ablation()}")


if __name__ == "__main__":
    main()
