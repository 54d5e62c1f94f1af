"""The training loop, readable from top to bottom. gan_step.py has the step itself, `compute` the way it is computed."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from p2pzoo.compute.cuda_graphs import TrainStep
from p2pzoo.compute.distributed import all_reduce_max, on_rank0, rank, sync_errors
from p2pzoo.compute.engine import Engine
from p2pzoo.compute.prefetch import BatchSequence, TimedBatches
from p2pzoo.config.experiment import Experiment
from p2pzoo.data import Store, train_batches
from p2pzoo.data.augmentation import Augmentations
from p2pzoo.data.loader import TrainBatches
from p2pzoo.data.process_noise import make_process_noise
from p2pzoo.models.initialization import make_generator
from p2pzoo.models.model_file import build_header
from p2pzoo.plugin.protocols import Callback
from p2pzoo.runs.monitor import TrainingMonitor
from p2pzoo.runs.progress import Progress
from p2pzoo.runs.run_folder import Run
from p2pzoo.training.checkpoint import LossLogger, State
from p2pzoo.training.gan_step import Objective
from p2pzoo.training.kept_average import KeptAverage
from p2pzoo.training.model_writer import ModelWriter
from p2pzoo.training.run_writer import Due, RunWriter
from p2pzoo.training.setup import build_objective
from p2pzoo.training.weight_average import WeightAverage
from p2pzoo.utils import rng
from p2pzoo.utils.external_weights import share_external
from p2pzoo.utils.signals import handling, stop_signals

# Steps between two readings of the losses. A reading waits for an accelerator: 20 steps keep it busy, and a diverged
# loss or Ctrl-C is still noticed within seconds. On a CPU a reading costs nothing.
READ_EVERY = {"cpu": 1}
READ_EVERY_ON_ACCELERATORS = 20


class Interrupted(Exception):
    """Ctrl-C, SIGTERM or SIGHUP arrived; the run was saved at `images` first."""

    def __init__(self, signum: int, images: int) -> None:
        super().__init__(signum, images)
        self.signum, self.images = signum, images


def run_training_loop(
    experiment: Experiment, run: Run, engine: Engine, objective: Objective, state: State, store: Store,
    validation: Store, progress: Progress, callbacks: Sequence[Callback] = (), *, start_from: Path | None = None,
) -> None:  # fmt: skip
    """Train to the recipe's end and write model.safetensors. Resumes from the run's newest intact checkpoint.

    objective, state  those of `build_state`
    start_from        a checkpoint of another run, to begin with if this run has none (--continue-from)

    Every process calls this; only the first one writes to the run's folder.
    Raises Interrupted after saving, and Diverged if a loss is not finite; the last good checkpoint stays.
    """
    settings, seed = experiment.train, experiment.seed

    compiled_step = engine.compile_step(objective, progress.note)
    step = state.restore(run, progress, start_from) // settings.step_images
    for name in ("metrics.jsonl", "timings.jsonl"):
        on_rank0(run.truncate, name, step * settings.step_images)
    monitor = TrainingMonitor(run, progress, filled=step * settings.step_images + len(store))
    read_every = READ_EVERY.get(engine.device_type, READ_EVERY_ON_ACCELERATORS)

    made = make_batches(experiment, store, objective.augmentations)
    with stopping() as signals, engine.prefetch(made, settings.steps) as prefetched:
        batches = TimedBatches(prefetched)
        models = ModelWriter(experiment, run, state, store)
        writer = RunWriter(
            experiment, run, engine, state, validation, batches, monitor, callbacks, step=step
        )  # fmt: skip
        while step < settings.steps:
            rate = experiment.optimizer.lr_at(step / settings.steps)
            logs = train_step(compiled_step, engine, batches, step, rate, seed)
            step += 1
            models.after_step(step)
            state.losses.waiting.append((step, step * settings.step_images, logs))
            due = Due.after(step, settings)
            if step % read_every == 0 or any(due):
                signum = _agree_on_signal(signals)  # now: a signal that arrives below waits for the next reading
                readings = writer.read_losses()
                if readings:
                    progress.step(*readings[-1])  # one of them: the others say nothing about the time between steps
                means = state.losses.mean() if due.log else None
                if any(due) or signum:
                    on_rank0(writer.write, step, rate, means, due, signum)
                if signum:
                    raise Interrupted(signum, step * settings.step_images)

        if signum := _agree_on_signal(signals):  # it arrived while the last step was written
            on_rank0(lambda: run.set_status(state="interrupted"))
            raise Interrupted(signum, step * settings.step_images)

    on_rank0(models.write_final)
    on_rank0(lambda: run.set_status(state="trained"))


def build_state(experiment: Experiment, engine: Engine, store: Store) -> tuple[Objective, State]:
    """The objective on the engine's device, and the state that checkpoints save.

    Raises UserError if a network or loss cannot be built, as where weights that it needs are missing. Writes nothing.
    """
    objective = build_objective(experiment, engine, store.channels, store.size)
    average, G = None, engine.unwrap(objective.G.network)
    if experiment.train.ema:
        average = engine.prepare_model(make_generator(experiment, store.channels, store.size))
        share_external(engine.unwrap(average), G)
        objective.average = WeightAverage(engine.unwrap(average), G, experiment.train.ema)
    header = build_header(experiment, G, store.dataset, store.channels, store.size, store.dtypes)
    kept_average = None if experiment.train.ema else KeptAverage(G, experiment.train.step_images)
    return objective, State(
        engine, objective.G, objective.D, average, objective.pool, LossLogger(), objective.stateful_modules,
        header, experiment.train.images_seen, kept_average, objective.process,
    )  # fmt: skip


def make_batches(experiment: Experiment, store: Store, augmentations: Augmentations | None) -> TrainBatches:
    """The batches of the run with all random numbers that their steps need."""
    noise = make_process_noise(experiment, store.channels, store.size)
    return train_batches(
        store, experiment.train, experiment.seed,
        sample_random=augmentations.sample if augmentations else None,
        sample_process=noise.sample if noise else None,
    )  # fmt: skip


def train_step(
    step_function: TrainStep,
    engine: Engine,
    batches: BatchSequence,
    step: int,
    rate: float,
    seed: int,
    augmentations: Augmentations | None = None,
) -> dict[str, Tensor]:
    """One training step at this learning rate. All random numbers in it depend on (seed, step) alone.

    step_function  `Objective.step`, or what `Engine.compile_step` made of it
    step           counts from 0
    augmentations  those of the objective: they sample the random numbers of a batch that has none

    Returns the logs of `Objective.step`.
    """
    engine.set_lr(rate, step)
    with sync_errors():
        batch = batches[step]
        if augmentations and batch.random is None:
            batch = replace(batch, random=augmentations.sample(step))
        batch = engine.to_device(batch)
    process = [rank()] if rank() else []  # each process draws other noise: its images are others
    engine.seed(rng.derive_seed(seed, "noise", step, *process))
    return step_function(batch, step)


@contextlib.contextmanager
def stopping() -> Iterator[list[int]]:
    """Collect Ctrl-C, SIGTERM and SIGHUP in a list, empty at first. A second signal of a kind acts as usual."""
    received: list[int] = []

    def receive(signum: int, _frame: object) -> None:
        received.append(signum)
        signal.signal(signum, before[signum])

    with handling(receive, stop_signals()) as before:
        yield received


def _agree_on_signal(signals: Sequence[int]) -> int:
    """The signal that any of the processes received, or 0."""
    return all_reduce_max(signals[0] if signals else 0)
