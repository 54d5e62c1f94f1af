"""What training writes into the run's folder: `log`, `sample` and `save`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from p2pzoo.compute.engine import Engine
from p2pzoo.compute.memory import current_memory_megabytes
from p2pzoo.compute.prefetch import TimedBatches
from p2pzoo.config.experiment import Experiment
from p2pzoo.config.settings import Train
from p2pzoo.data import Store, single_batches
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.grid import make_grid, save_png
from p2pzoo.models.test_modes import translate
from p2pzoo.plugin.protocols import Callback
from p2pzoo.runs.monitor import TrainingMonitor
from p2pzoo.runs.report import write_report
from p2pzoo.runs.run_folder import Run
from p2pzoo.training.checkpoint import State


class Due(NamedTuple):
    """What is written after a step."""

    log: bool
    sample: bool
    save: bool

    @classmethod
    def after(cls, step: int, settings: Train) -> Due:
        """Everything is due after the last step, else what reached or passed a multiple of its number of images.

        >>> Due.after(2, Train(images=12, batch_size=3, log_every=6, sample_every=8, checkpoint_every=8))
        Due(log=True, sample=False, save=False)
        """
        images, is_last = step * settings.step_images, step == settings.steps

        def is_due(every: int) -> bool:
            return is_last or images // every > (images - settings.step_images) // every

        return cls(is_due(settings.log_every), is_due(settings.sample_every), is_due(settings.checkpoint_every))


REPORT_SHARE = 0.05  # of the time of a run that the report may take while it trains


class RunWriter:
    """Writes the logs, sample grids and checkpoints of one run, and calls the callbacks.

    batches    measures how long training waits for batches

    Every process makes one; only the first process may call `write`.
    """

    def __init__(
        self,
        experiment: Experiment,
        run: Run,
        engine: Engine,
        state: State,
        validation: Store,
        batches: TimedBatches,
        monitor: TrainingMonitor,
        callbacks: Sequence[Callback],
        *,
        step: int,
    ) -> None:
        self.experiment, self.run, self.engine, self.state = experiment, run, engine, state
        self.batches, self.monitor, self.callbacks = batches, monitor, callbacks
        self.samples = list(single_batches(validation, sample_indices(len(validation), experiment.evaluate.samples)))
        self.encodings = Encodings.of(validation.dataset)
        self._window_began, self._first_step, self._reading = time.perf_counter(), step, 0.0
        self._next_report = 0.0

    def read_losses(self) -> list[tuple[int, dict[str, float]]]:
        """The losses since the last call: [(images, {name: mean over the processes})]. Waits for the device.

        Raises Diverged if one of them is nan or inf.
        """
        began = time.perf_counter()
        losses = self.state.losses.read()
        self._reading += time.perf_counter() - began
        return losses

    def write(self, step: int, rate: float, means: dict[str, float] | None, due: Due, signum: int) -> None:
        """means: of the losses, for the log; signum: the signal that ends the run after this step, else 0."""
        images = step * self.experiment.train.step_images
        if means is not None:
            self.log(step, images, rate, means)
        if due.sample:
            self.sample(images)
        if due.save or signum:
            self.save(images)
        if signum:
            self.run.set_status(state="interrupted")
            write_report(self.run, self.experiment)

    def log(self, step: int, images: int, rate: float, means: dict[str, float]) -> None:
        """Append a line to metrics.jsonl and one to timings.jsonl."""
        losses = {"images": images, "lr": rate, **means}
        timing = {
            "images": images,
            "steps": step - self._first_step,
            "seconds": time.perf_counter() - self._window_began,
            "waited": self.batches.pop_seconds(),
            "read": self._reading,
            **current_memory_megabytes(self.engine.device_type),
        }
        self.run.append("metrics.jsonl", [losses])
        self.run.append("timings.jsonl", [timing])
        self.monitor.logged(losses, timing)
        self._window_began, self._first_step, self._reading = time.perf_counter(), step, 0.0
        for callback in self.callbacks:
            callback.log(images, means)

    def sample(self, images: int) -> None:
        """Translate the validation samples, and write them as a grid x | ŷ | y."""
        batches = [self.engine.to_device(batch) for batch in self.samples]
        G = self.state.translator
        y_hats = [translate(G, batch.x, self.experiment.evaluate.test_mode) for batch in batches]
        self.monitor.sampled(images, y_hats, [batch.y for batch in batches])
        rows = [
            _first_images(self.encodings.to_rgb(batch.x, y_hat, batch.y))
            for batch, y_hat in zip(batches, y_hats, strict=True)
        ]
        path = self.run.samples / f"images-{images:08d}.png"
        save_png(path, make_grid(rows))
        self.refresh_report()
        for callback in self.callbacks:
            callback.samples(images, str(path))

    def refresh_report(self) -> None:
        """Write the report, unless it was written so recently that this would take more than REPORT_SHARE of the time.

        The evaluation writes it in any case.
        """
        began = time.perf_counter()
        if began >= self._next_report:
            write_report(self.run, self.experiment)
            seconds = time.perf_counter() - began
            self._next_report = began + seconds / REPORT_SHARE

    def save(self, images: int) -> None:
        """Write a checkpoint."""
        self.state.save(self.run, images)
        self.run.set_status(images=images)
        self.monitor.saved(images, self.state.G.optimizer)


def _first_images(batches: Iterable[Tensor]) -> list[Tensor]:
    return [images[0] for images in batches]


def sample_indices(length: int, count: int) -> range:
    """`count` indices over the whole length, so that samples show different regions."""
    return range(0, length, max(1, length // count))[:count]
