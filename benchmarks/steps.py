"""The training step of `p2pzoo run` for the benchmarks that time it, and pairs to train on.

p2pzoo's training is imported only when a step is built, so that a baseline in the same script does not load it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from p2pzoo import config

NUM_DIFFERENT = 16  # drawing more would take longer and not change the time of a step


def draw_pairs(folder: Path, size: int, pairs: int = NUM_DIFFERENT) -> None:
    """Write pairs of smooth noise, side by side, as JPEG. The content does not change the time of a step.

    Sixteen files are different; the others are hard links to them.
    """
    rng = np.random.default_rng(0)
    for i in range(pairs):
        file = folder / f"{i:05d}.jpg"
        if i >= NUM_DIFFERENT:
            os.link(folder / f"{i % NUM_DIFFERENT:05d}.jpg", file)
            continue
        coarse = Image.fromarray(rng.integers(0, 256, (size // 8, size // 4, 3), dtype=np.uint8))
        coarse.resize((2 * size, size), Image.Resampling.BICUBIC).save(file, quality=95)


def experiment(folder: Path, size: int, width: int, batch: int, overrides: Sequence[str] = ()) -> Any:
    """Return base.toml at this scale, with the pairs of `folder` as its dataset."""
    scale = [
        f"generator.width={width}", f"discriminator.width={width}", f"train.batch_size={batch}",
        "dataset.use=side-by-side", f"dataset.root={folder}", f"dataset.size=[{size}, {size}]",
    ]  # fmt: skip
    return config.load("zoo:base.toml", "laptop", [*scale, *overrides])


def training(made: Any) -> Callable[[], object]:
    """Return a function that takes the next training step: batch, transfer to the device, step, reading the losses."""
    from p2pzoo.compute.engine import Engine
    from p2pzoo.data import Store
    from p2pzoo.training.checkpoint import LossLogger
    from p2pzoo.training.loop import make_batches, train_step
    from p2pzoo.training.setup import build_objective

    engine = Engine(made.compute)
    store = Store(made.dataset.build(split="train"), enlarge=made.train.jitter, kernel=made.train.jitter_kernel)
    objective = build_objective(made, engine, store.channels, store.size)
    play = engine.compile_step(objective)
    batch = made.train.batch_size
    pairs = make_batches(made, store, objective.augmentations)
    logger, step = LossLogger(), 0

    def work() -> object:
        nonlocal step
        losses = train_step(play, engine, pairs, step, made.optimizer.lr, made.seed, objective.augmentations)
        step += 1
        logger.waiting.append((step, step * batch, losses))
        return logger.read()

    return work
