"""Checkpoints: all that training needs to resume. And the losses on their way to the log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p2pzoo.compute.distributed import all_reduce_mean, on_rank0
from p2pzoo.compute.engine import Engine
from p2pzoo.models import safetensors_io
from p2pzoo.models.checkpoint_model import list_checkpoints, load_continued, replaced_tensors
from p2pzoo.models.external_weights import HEADER_KEY, ExternalDigests
from p2pzoo.plugin.protocols import Process
from p2pzoo.runs.monitor import Diverged
from p2pzoo.runs.progress import Progress
from p2pzoo.runs.run_folder import Run
from p2pzoo.training.gan_step import Pool, Trainable
from p2pzoo.training.kept_average import KeptAverage
from p2pzoo.utils.errors import DamagedFile

KEPT_CHECKPOINTS = 2  # the newest, and the one before it if the newest is damaged


@dataclass
class LossLogger:
    """Losses on their way from the device to metrics.jsonl, as means over windows of `log_every` images.

    >>> losses = LossLogger()
    >>> losses.waiting.append((1, 4, {"G.l1": torch.tensor(0.5)}))
    >>> losses.read()
    [(4, {'G.l1': 0.5})]
    >>> losses.mean()
    {'G.l1': 0.5}
    """

    waiting: list[tuple[int, int, dict[str, Tensor]]] = field(default_factory=list)  # step, images, losses
    window: list[dict[str, float]] = field(default_factory=list)

    def read(self) -> list[tuple[int, dict[str, float]]]:
        """The losses that came in since the last call, as means over the processes: [(images, {name: loss})].

        Raises Diverged at the first number that is not finite.
        """
        losses_read = []
        numbers = iter(all_reduce_mean(_numbers([loss for _, _, losses in self.waiting for loss in losses.values()])))
        for step, images, losses in self.waiting:
            values = {name: next(numbers) for name in losses}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise Diverged(f"{name} became {value} at step {step} (image {images})")
            losses_read.append((images, values))
        self.waiting = []
        self.window += [values for _, values in losses_read]
        return losses_read

    def mean(self) -> dict[str, float]:
        """The means of this window. Begins the next one."""
        names = self.window[-1] if self.window else {}
        means = {name: math.fsum(w[name] for w in self.window) / len(self.window) for name in names}
        self.window = []
        return means


@dataclass
class State:
    """All that training needs to resume: networks, optimizers, G's averages, losses and augmentations with state, the
    image pool, the window of the log.

    average       the one of [train] ema
    stateful_modules  {name: a loss or an augmentation that is a module}
    model_header  header of the run's model file; with it a checkpoint is a model too
    target        images at the end of the training
    process       of the recipe, which turns G into a sampler; None without one
    """

    engine: Engine
    G: Trainable
    D: Trainable | None
    average: nn.Module | None
    pool: Pool | None
    losses: LossLogger
    stateful_modules: Mapping[str, nn.Module] = field(default_factory=dict)
    model_header: Mapping[str, Any] = field(default_factory=dict)
    target: int = 0
    kept_average: KeptAverage | None = None
    process: Process | None = None

    def trainables(self) -> dict[str, Trainable]:
        return {"G": self.G, "D": self.D} if self.D else {"G": self.G}

    @property
    def final(self) -> nn.Module:
        """What is saved in the end: the average of G, else G."""
        return self.engine.unwrap(self.G.network if self.average is None else self.average)

    @property
    def translator(self) -> nn.Module:
        """What translates x: `final`, or the sampler of the process around it."""
        return self.process.sampler(self.final) if self.process else self.final

    def __post_init__(self) -> None:
        networks = {name: self.engine.unwrap(each.network) for name, each in self.trainables().items()}
        self.external = ExternalDigests(networks)

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the window of the log."""
        tensors: dict[str, Tensor] = {}
        for name, trainable in self.trainables().items():
            tensors |= safetensors_io.module_tensors(name, self.engine.unwrap(trainable.network))
            tensors |= safetensors_io.optimizer_tensors(f"{name}_adam", trainable.optimizer)
        if self.average is not None:
            tensors |= safetensors_io.module_tensors("average", self.engine.unwrap(self.average))
        if self.kept_average:
            tensors |= {f"kept_average.{name}": tensor for name, tensor in self.kept_average.tensors().items()}
        tensors |= replaced_tensors(self.final)
        if self.pool:
            tensors |= {f"pool.{name}": tensor for name, tensor in self.pool.tensors().items()}
        for prefix, module in self.stateful_modules.items():
            tensors |= {f"{prefix}.{name}": t for name, t in safetensors_io.loss_tensors(module).items()}
        return tensors

    def save(self, run: Run, images: int) -> None:
        """Write a checkpoint, then delete all but the newest two. Raises Diverged if a tensor has nan or inf, UserError
        if external weights have changed."""
        self.external.check_unchanged()
        tensors = self.tensors()
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise Diverged(f"{name} has values that are nan or inf at image {images}")
        path = run.checkpoints / f"images-{images:010d}.safetensors"
        header: dict[str, Any] = {"format": 1, "images": images, "window": self.losses.window}
        header |= {"target": self.target, "model": self.model_header}
        header |= {HEADER_KEY: self.external.by_name} if self.external.by_name else {}
        if (scaler := self.engine.accelerator.scaler) is not None:  # the loss scale of fp16
            header["scaler"] = scaler.state_dict()
        safetensors_io.save_tensors(path, tensors, header)
        for old in list_checkpoints(run.folder)[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def restore(self, run: Run, progress: Progress, start_from: Path | None) -> int:
        """Load the newest intact checkpoint; damaged ones are reported. Returns the images seen, 0 without any.

        start_from  a checkpoint of another run, loaded if this run has none
        """
        checkpoint = on_rank0(self._read_newest, run, progress, start_from)
        if checkpoint is None:
            return 0
        tensors, header, path = checkpoint
        self.external.check_stored(header.get(HEADER_KEY, {}), path)
        self.load(tensors, path)
        self.losses.window = list(header["window"])
        if "scaler" in header and self.engine.accelerator.scaler is not None:
            self.engine.accelerator.scaler.load_state_dict(header["scaler"])
        return int(header["images"])

    @staticmethod
    def _read_newest(
        run: Run, progress: Progress, start_from: Path | None
    ) -> tuple[dict[str, Tensor], dict[str, Any], Path] | None:
        for path in reversed(list_checkpoints(run.folder)):
            try:
                return *safetensors_io.load_tensors(path), path
            except DamagedFile as error:
                progress.note(f"{error}; trying the checkpoint before it")
        return (*load_continued(start_from, run.recipe, progress.note), start_from) if start_from else None

    def load(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Restore what `tensors` returned. path: the file that they come from, for messages."""
        for name, trainable in self.trainables().items():
            network = self.engine.unwrap(trainable.network)
            safetensors_io.load_into(network, safetensors_io.strip_prefix(name, tensors), str(path))
            safetensors_io.restore_optimizer(trainable.optimizer, safetensors_io.strip_prefix(f"{name}_adam", tensors))
        if self.average is not None:
            # a continued run may have had none: then it begins with G
            average = safetensors_io.strip_prefix("average", tensors) or safetensors_io.strip_prefix("G", tensors)
            safetensors_io.load_into(self.engine.unwrap(self.average), average, str(path))
        if self.kept_average:
            self.kept_average.load(safetensors_io.strip_prefix("kept_average", tensors), str(path))
        if self.pool:
            self.pool.restore(safetensors_io.strip_prefix("pool", tensors), self.engine.device)
        for prefix, module in self.stateful_modules.items():
            own = safetensors_io.loss_tensors(module)
            safetensors_io.copy_into(own, safetensors_io.strip_prefix(prefix, tensors), str(path))


def _numbers(scalars: Sequence[Tensor]) -> list[float]:
    """The values of scalars on the device. Waits for the device once."""
    if not scalars:
        return []
    device = scalars[0].device
    values: list[float] = torch.stack([scalar.to(device) for scalar in scalars]).tolist()
    return values
