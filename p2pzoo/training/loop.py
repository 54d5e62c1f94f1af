"""The training loop, readable from top to bottom. What a step does is in `objective`; how, in `compute`."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p2pzoo.compute.cuda_graphs import Step
from p2pzoo.compute.distributed import all_reduce_max, on_rank0, rank, sync_errors
from p2pzoo.compute.engine import Engine
from p2pzoo.compute.memory import held_megabytes
from p2pzoo.compute.prefetch import Batches, Clocked
from p2pzoo.config.experiment import Experiment
from p2pzoo.config.settings import Train
from p2pzoo.data import Store, single_batches, train_batches
from p2pzoo.data.augmentation import Augmentations
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.grid import grid, save_png
from p2pzoo.models import safetensors_io
from p2pzoo.models.initialization import make_generator
from p2pzoo.models.model_file import model_header
from p2pzoo.models.test_modes import translate
from p2pzoo.plugin.protocols import Callback
from p2pzoo.runs.monitor import TrainingMonitor
from p2pzoo.runs.progress import Progress
from p2pzoo.runs.report import write_report
from p2pzoo.runs.run_folder import Run
from p2pzoo.training.checkpoint import LossLogger, State
from p2pzoo.training.setup import build_objective
from p2pzoo.utils import rng

READ_EVERY = {"cpu": 1}  # steps between two readings of the losses; on accelerators each reading stops the device
READ_EVERY_ELSEWHERE = 20


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived; the run was saved at `images` first."""

    def __init__(self, signum: int, images: int) -> None:
        super().__init__(signum, images)
        self.signum, self.images = signum, images


def train(
    experiment: Experiment,
    run: Run,
    engine: Engine,
    store: Store,
    validation: Store,
    progress: Progress,
    callbacks: Sequence[Callback] = (),
    *,
    start_from: Path | None = None,
) -> None:
    """Train to the recipe's end and write model.safetensors; goes on from the run's newest good checkpoint.

    start_from: a checkpoint to begin with where the run has none (--continue-from).
    Over several processes all come here, and the first one alone touches the run's folder.
    Raises Interrupted after saving, Diverged if a loss is not finite; the last good checkpoint stays.
    """
    settings, seed = experiment.train, experiment.seed

    objective = build_objective(experiment, engine, store.channels, store.size)
    G, D, pool = objective.G, objective.D, objective.pool
    average = engine.prepare_model(make_generator(experiment, store.channels, store.size)) if settings.ema else None
    final = engine.unwrap(G.network) if average is None else average
    play = engine.compile_step(objective)

    # what they see
    drawn = train_batches(store, settings, seed)
    shown = list(single_batches(validation, _spread(len(validation), experiment.evaluate.samples)))
    encodings = Encodings.of(validation.dataset)

    # where they left off
    ledger = LossLogger()
    state = State(engine, G, D, average, pool, ledger)
    step = state.restore(run, progress, start_from) // settings.step_images
    for name in ("metrics.jsonl", "timings.jsonl"):
        on_rank0(run.truncate, name, step * settings.step_images)
    read_every = READ_EVERY.get(engine.device_type, READ_EVERY_ELSEWHERE)
    doctor = TrainingMonitor(run, progress, filled=step * settings.step_images + len(store))

    def draw_samples(images: int) -> None:
        batches = [engine.move(batch) for batch in shown]
        translated = [translate(final, batch.x, experiment.evaluate.test_mode) for batch in batches]
        doctor.sampled(images, translated, [batch.y for batch in batches])
        seen = [encodings.to_rgb(batch.x, y_hat, batch.y) for batch, y_hat in zip(batches, translated, strict=True)]
        rows = [[picture[0] for picture in each] for each in seen]
        path = run.samples / f"images-{images:08d}.png"
        save_png(path, grid(rows))
        write_report(run, experiment)
        for callback in callbacks:
            callback.samples(images, str(path))

    clock, clocked, reading = time.perf_counter(), step, 0.0

    def write_down(
        images: int, rate: float, means: dict[str, float] | None, sample: bool, save: bool, stopped: int
    ) -> None:
        nonlocal clock, clocked, reading
        if means is not None:
            losses = {"images": images, "lr": rate, **means}
            timing = {
                "images": images, "steps": step - clocked, "seconds": time.perf_counter() - clock,
                "waited": batches.taken(), "read": reading, **held_megabytes(engine.device_type),
            }  # fmt: skip
            run.append("metrics.jsonl", [losses])
            run.append("timings.jsonl", [timing])
            doctor.logged(losses, timing)
            clock, clocked, reading = time.perf_counter(), step, 0.0
            for callback in callbacks:
                callback.log(images, means)
        if sample:
            draw_samples(images)
        if save or stopped:
            state.save(run, images)
            run.set_status(images=images)
            doctor.saved(images, G.optimizer)
        if stopped:
            run.set_status(state="interrupted")

    with stopping() as stop, engine.prefetch(drawn, settings.steps) as made:
        batches = Clocked(made)
        while step < settings.steps:
            rate = experiment.optimizer.lr_at(step / settings.steps)
            losses = train_step(play, engine, batches, step, rate, seed, objective.augmentations)
            if average is not None:
                _average(engine.unwrap(average), engine.unwrap(G.network), settings.ema)

            step += 1
            images = step * settings.step_images
            ledger.waiting.append((step, images, losses))
            log = _due(settings.log_every, step, settings)
            sample = _due(settings.sample_every, step, settings)
            save = _due(settings.checkpoint_every, step, settings)
            if step % read_every == 0 or log or sample or save:
                stopped = all_reduce_max(
                    stop[0] if stop else 0
                )  # now: a signal that arrives below waits for the next reading
                began = time.perf_counter()
                read = ledger.read()
                reading += time.perf_counter() - began
                for seen, values in read:
                    progress.step(seen, values)
                if log or sample or save or stopped:
                    on_rank0(write_down, images, rate, ledger.mean() if log else None, sample, save, stopped)
                if stopped:
                    raise Interrupted(stopped, images)

        if stopped := all_reduce_max(stop[0] if stop else 0):  # it arrived while the last step was written down
            on_rank0(lambda: run.set_status(state="interrupted"))
            raise Interrupted(stopped, step * settings.step_images)

    trained = engine.unwrap(final)
    header = model_header(experiment, trained, store.dataset, store.channels, store.size)
    on_rank0(safetensors_io.save_model, run.model, trained, header)
    on_rank0(lambda: run.set_status(state="trained"))


def train_step(
    play: Step,
    engine: Engine,
    batches: Batches,
    step: int,
    rate: float,
    seed: int,
    augmentations: Augmentations | None = None,
) -> dict[str, Tensor]:
    """One step of training at this learning rate; all that is random in it follows from (seed, step).

    play           `Objective.step`, or what the engine made of it
    augmentations  the objective's
    """
    engine.set_rate(rate, step)
    with sync_errors():
        batch = engine.move(batches[step])
        if augmentations:
            batch = engine.move(augmentations(batch, step))  # again: the memory format may have got lost
    own = [rank()] if rank() else []  # each image of a batch gets noise of its own
    engine.seed(rng.derive_seed(seed, "noise", step, *own))
    return play(batch, step)


@contextlib.contextmanager
def stopping() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C or SIGTERM arrives; a second signal acts as it always does."""
    received: list[int] = []

    def receive(signum: int, _frame: object) -> None:
        received.append(signum)
        signal.signal(signum, before[signum])

    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not in the main thread: whoever runs us there handles signals
        before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average ← decay · average + (1 - decay) · network; buffers are copied."""
    for own, other in zip(average.parameters(), network.parameters(), strict=True):
        own.lerp_(other, 1 - decay)
    for mine, its in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(its)


def _due(every: int, step: int, settings: Train) -> bool:
    """Whether this step, the last one or not, has reached or passed a multiple of `every` images."""
    images = step * settings.step_images
    return step == settings.steps or images // every > (images - settings.step_images) // every


def _spread(length: int, count: int) -> range:
    """`world_size` indices over the whole length, so that samples show different regions."""
    return range(0, length, max(1, length // count))[:count]
