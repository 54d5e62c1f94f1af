"""The training of a recipe as objects that a stage can step, read and compare."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from steps import draw_pairs
from torch import Tensor

from p2pzoo import config
from p2pzoo.compute.engine import Engine
from p2pzoo.compute.prefetch import TimedBatches
from p2pzoo.data import Store, train_batches
from p2pzoo.models import safetensors_io
from p2pzoo.training.checkpoint import LossLogger
from p2pzoo.training.gan_step import Term
from p2pzoo.training.loop import READ_EVERY, READ_EVERY_ON_ACCELERATORS, train_step
from p2pzoo.training.setup import build_objective
from window.context import SEED, Context

ENDLESS = 10**8  # images: more than any stage trains


def pairs_folder(context: Context, size: int) -> Path:
    """A folder with pairs of smooth noise of this size, which the first call writes."""
    folder = context.work / f"pairs-{size}"
    if not folder.exists():
        unfinished = context.work / f"pairs-{size}-{time.time_ns()}"
        unfinished.mkdir(parents=True)
        draw_pairs(unfinished, size)
        with contextlib.suppress(OSError):  # another process was faster
            unfinished.rename(folder)
    return folder


def experiment(context: Context, size: int, width: int, batch: int, overrides: Sequence[str] = ()) -> Any:
    """base.toml at this scale, on pairs of noise. torch.compile is off unless an override asks for it."""
    made = [
        f"generator.width={width}", f"discriminator.width={width}", f"train.batch_size={batch}",
        f"train.images={ENDLESS}", "dataset.use=side-by-side", f"dataset.root={pairs_folder(context, size)}",
        f"dataset.size=[{size}, {size}]", f"compute.device={context.device}", "compute.compile=false", f"seed={SEED}",
    ]  # fmt: skip
    return config.load("zoo:base.toml", "gpu", [*made, *overrides])


class Training:
    """A training, step by step, with losses read as rarely as in `p2pzoo run`. Use it in a `with` statement.

    terms  further losses
    store  the training pairs, if another training has decoded them
    """

    def __init__(self, made: Any, terms: Sequence[Term] = (), store: Store | None = None) -> None:
        self.made, self.engine = made, Engine(made.compute)
        settings = made.train
        self.store = store or Store(
            made.dataset.build(split="train"), enlarge=settings.jitter, kernel=settings.jitter_kernel
        )
        self.objective = build_objective(made, self.engine, self.store.channels, self.store.size)
        self.objective.terms = [*self.objective.terms, *terms]
        self.compiled = self.engine.compile_step(self.objective)
        self.logger, self.taken, self.reading = LossLogger(), 0, 0.0
        self.losses: dict[str, float] = {}
        self._closing = contextlib.ExitStack()
        augmentations = self.objective.augmentations
        batches = train_batches(self.store, settings, made.seed, augmentations.sample if augmentations else None)
        self.batches = TimedBatches(self._closing.enter_context(self.engine.prefetch(batches, settings.steps)))

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def step(self) -> None:
        """Take a training step. Raises Diverged if a loss that is read is not finite."""
        rate = self.made.optimizer.lr_at(self.taken / self.made.train.steps)
        logs = train_step(
            self.compiled, self.engine, self.batches, self.taken, rate, self.made.seed, self.objective.augmentations
        )
        self.taken += 1
        self.logger.waiting.append((self.taken, self.taken * self.made.train.step_images, logs))
        if self.taken % READ_EVERY.get(self.engine.device_type, READ_EVERY_ON_ACCELERATORS) == 0:
            self.read()

    def read(self) -> None:
        """Read the losses of the steps since the last reading: waits for the device."""
        began = time.perf_counter()
        for _, values in self.logger.read():
            self.losses = values
        self.reading += time.perf_counter() - began

    def wait(self) -> None:
        if self.engine.device_type == "cuda":
            torch.cuda.synchronize()

    def pop_waiting(self) -> dict[str, float]:
        """Seconds spent waiting since the last call: for batches, and for the device when losses are read."""
        waited = {"batches": self.batches.pop_seconds(), "device": self.reading}
        self.reading = 0.0
        return waited

    def state(self) -> dict[str, Tensor]:
        """Copies of the weights and buffers of both networks and of their optimizers' states, on the CPU."""
        tensors: dict[str, Tensor] = {}
        for name, trainable in zip("GD", self.objective.trainables, strict=False):
            tensors |= safetensors_io.module_tensors(name, self.engine.unwrap(trainable.network))
            tensors |= safetensors_io.optimizer_tensors(f"{name}_adam", trainable.optimizer)
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def difference(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Any]:
    """How two states differ: number of tensors, how many are different, the largest difference, and where it is."""
    largest, where, different = 0.0, "", 0
    for name in sorted(actual.keys() | expected.keys()):
        if name not in actual or name not in expected:
            different, largest, where = different + 1, float("inf"), name
        elif not torch.equal(actual[name], expected[name]):
            different += 1
            distance = (actual[name].double() - expected[name].double()).abs().max().item()
            if not distance <= largest:
                largest, where = distance, name
    return {"tensors": len(expected), "different": different, "largest": largest, "where": where}
