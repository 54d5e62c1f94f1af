"""The training loop, readable from top to bottom. What a step does is in `objective`; how, in `compute`."""

from __future__ import annotations

import contextlib
import functools
import math
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, get_args

import torch
from torch import Tensor, nn

from p2pzoo import chance, checkpoint
from p2pzoo.augment import Augmentations, make_augmentations
from p2pzoo.compute import Engine
from p2pzoo.contracts import Callback, Side
from p2pzoo.data import Store, single_batches, train_batches
from p2pzoo.data.ahead import Batches, Clocked
from p2pzoo.encodings import Encodings
from p2pzoo.errors import UserError
from p2pzoo.experiment import Experiment
from p2pzoo.health import Diverged, Doctor
from p2pzoo.networks import make_discriminator, make_generator, model_header
from p2pzoo.objective import AccumulatingObjective, LuaObjective, Objective, Player, Pool, Term
from p2pzoo.pictures import grid, save_png
from p2pzoo.pool import ImagePool
from p2pzoo.processes import first, highest, mean, rank, share, together
from p2pzoo.report import write_report
from p2pzoo.run import Run
from p2pzoo.settings import Train
from p2pzoo.speed.graphs import Step
from p2pzoo.speed.memory import held_megabytes
from p2pzoo.speed.onepass import OnePass, judges_alone, pays
from p2pzoo.translate import translate

READ_EVERY = {"cpu": 1}  # steps between two readings of the losses; on accelerators each reading stops the device
READ_EVERY_ELSEWHERE = 20


class Progress(Protocol):
    """What shows a run to the person at the terminal."""

    def step(self, images: int, losses: dict[str, float]) -> None: ...

    def note(self, text: str) -> None: ...


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived; the run was saved at `images` first."""

    def __init__(self, signum: int, images: int) -> None:
        super().__init__(signum, images)
        self.signum, self.images = signum, images


@dataclass
class Ledger:
    """Losses on their way from the device to metrics.jsonl, as means over windows of `log_every` images."""

    waiting: list[tuple[int, int, dict[str, Tensor]]] = field(default_factory=list)  # step, images, losses
    window: list[dict[str, float]] = field(default_factory=list)

    def read(self) -> list[tuple[int, dict[str, float]]]:
        """What has come in since the last reading, as means over the processes.

        Raises Diverged at the first number that is not finite.
        """
        read = []
        told = iter(mean(_numbers([value for _, _, losses in self.waiting for value in losses.values()])))
        for step, images, losses in self.waiting:
            values = {name: next(told) for name in losses}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise Diverged(f"{name} became {value} at step {step} (image {images})")
            read.append((images, values))
        self.waiting = []
        self.window += [values for _, values in read]
        return read

    def mean(self) -> dict[str, float]:
        """The window's means; begins the next window."""
        names = self.window[-1] if self.window else {}
        means = {name: math.fsum(w[name] for w in self.window) / len(self.window) for name in names}
        self.window = []
        return means


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

    objective = set_up(experiment, engine, store.channels, store.size)
    G, D, pool = objective.G, objective.D, objective.pool
    average = engine.place(make_generator(experiment, store.channels, store.size)) if settings.ema else None
    final = engine.unwrap(G.network) if average is None else average
    play = engine.captured(objective)

    # what they see
    drawn = train_batches(store, settings, seed)
    shown = list(single_batches(validation, _spread(len(validation), experiment.evaluate.samples)))
    encodings = Encodings.of(validation.dataset)

    # where they left off
    ledger = Ledger()
    state = State(engine, G, D, average, pool, ledger)
    step = state.restore(run, progress, start_from) // settings.step_images
    for name in ("metrics.jsonl", "timings.jsonl"):
        first(run.truncate, name, step * settings.step_images)
    read_every = READ_EVERY.get(engine.device_type, READ_EVERY_ELSEWHERE)
    doctor = Doctor(run, progress, filled=step * settings.step_images + len(store))

    def draw_samples(images: int) -> None:
        batches = [engine.move(batch) for batch in shown]
        translated = [translate(final, batch.x, experiment.evaluate.test_mode) for batch in batches]
        doctor.sampled(images, translated, [batch.y for batch in batches])
        seen = [encodings.seen(batch.x, y_hat, batch.y) for batch, y_hat in zip(batches, translated, strict=True)]
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

    with stopping() as stop, engine.ahead(drawn, settings.steps) as made:
        batches = Clocked(made)
        while step < settings.steps:
            rate = experiment.optimizer.lr_at(step / settings.steps)
            losses = advance(play, engine, batches, step, rate, seed, objective.augmentations)
            if average is not None:
                _average(engine.unwrap(average), engine.unwrap(G.network), settings.ema)

            step += 1
            images = step * settings.step_images
            ledger.waiting.append((step, images, losses))
            log = _due(settings.log_every, step, settings)
            sample = _due(settings.sample_every, step, settings)
            save = _due(settings.checkpoint_every, step, settings)
            if step % read_every == 0 or log or sample or save:
                stopped = highest(stop[0] if stop else 0)  # now: a signal that arrives below waits for the next reading
                began = time.perf_counter()
                read = ledger.read()
                reading += time.perf_counter() - began
                for seen, values in read:
                    progress.step(seen, values)
                if log or sample or save or stopped:
                    first(write_down, images, rate, ledger.mean() if log else None, sample, save, stopped)
                if stopped:
                    raise Interrupted(stopped, images)

        if stopped := highest(stop[0] if stop else 0):  # it arrived while the last step was written down
            first(lambda: run.set_status(state="interrupted"))
            raise Interrupted(stopped, step * settings.step_images)

    trained = engine.unwrap(final)
    header = model_header(experiment, trained, store.dataset, store.channels, store.size)
    first(checkpoint.save_model, run.model, trained, header)
    first(lambda: run.set_status(state="trained"))


def set_up(experiment: Experiment, engine: Engine, channels: tuple[int, int], size: tuple[int, int]) -> Objective:
    """The recipe's game on the engine's device, for x and y of these channels and this (H, W). Raises UserError."""
    settings, lua = experiment.train, experiment.train.order == "lua"
    G_net = engine.place(make_generator(experiment, channels, size))
    G = Player(engine.compiled(G_net, settings.steps), engine.optimizer(G_net, experiment.optimizer))
    D, both = None, None
    if (D_made := make_discriminator(experiment, channels, size)) is not None:
        images = len(share(range(settings.batch_size))) // settings.accumulate
        asked = experiment.compute.one_pass and pays(engine.device_type, images, size)
        engine.on["one_pass"] = asked and judges_alone(D_made, channels, size, images)
        D_net = engine.place(D_made)
        both = OnePass(D_net) if engine.on["one_pass"] else None
        moved_by = engine.optimizer(D_net, experiment.optimizer, experiment.optimizer.lr_discriminator)
        D = Player(D_net if lua else engine.compiled(D_net, settings.steps), moved_by)
    offered = {"in_channels": channels[0], "out_channels": channels[1], "size": size}
    gan = _on(engine, experiment.gan_loss.build(**offered)) if experiment.gan_loss else None
    terms = [Term(name, _on(engine, loss.build(**offered)), loss.weight) for name, loss in experiment.losses.items()]
    for term in terms:
        if term.loss.side not in get_args(Side):
            raise UserError(f"[losses.{term.name}] has side {term.loss.side!r}: it must be one of {get_args(Side)}")
        if term.loss.side == "discriminator" and D is None:
            raise UserError(f"[losses.{term.name}] acts on the discriminator, and this recipe has none")
    pool = ImagePool(settings.pool_size, experiment.seed) if settings.pool_size else None
    gan_weight = experiment.gan_loss.weight if experiment.gan_loss else 1.0
    kind: Any = LuaObjective if lua else Objective
    if settings.accumulate > 1:
        kind = functools.partial(AccumulatingObjective, parts=settings.accumulate)
    objective: Objective = kind(
        G, D, gan, terms, engine.descend, gan_weight=gan_weight, pool=pool, both=both,
        augmentations=make_augmentations(experiment, channels, size), zero_biases=settings.zero_biases,
        d_steps=settings.d_steps,
    )  # fmt: skip
    return objective


def advance(
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
    with together():
        batch = engine.move(batches[step])
        if augmentations:
            batch = engine.move(augmentations(batch, step))  # again: the memory format may have got lost
    own = [rank()] if rank() else []  # each image of a batch gets noise of its own
    engine.seed(chance.key(seed, "noise", step, *own))
    return play(batch, step)


@dataclass
class State:
    """All that training needs to go on, and its way to disk and back."""

    engine: Engine
    G: Player
    D: Player | None
    average: nn.Module | None
    pool: Pool | None
    ledger: Ledger

    def players(self) -> dict[str, Player]:
        return {"G": self.G, "D": self.D} if self.D else {"G": self.G}

    def save(self, run: Run, images: int) -> None:
        """Write a checkpoint, then forget all but the newest two."""
        tensors: dict[str, Tensor] = {}
        for name, player in self.players().items():
            tensors |= checkpoint.module_tensors(name, self.engine.unwrap(player.network))
            tensors |= checkpoint.optimizer_tensors(f"{name}_adam", player.optimizer)
        if self.average is not None:
            tensors |= checkpoint.module_tensors("average", self.engine.unwrap(self.average))
        if self.pool:
            tensors |= {f"pool.{name}": tensor for name, tensor in self.pool.tensors().items()}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise Diverged(f"{name} has values that are nan or inf at image {images}")
        path = run.checkpoints / f"images-{images:010d}.safetensors"
        header: dict[str, Any] = {"format": 1, "images": images, "window": self.ledger.window}
        if (scaler := self.engine.accelerator.scaler) is not None:  # of fp16
            header["scaler"] = scaler.state_dict()
        checkpoint.save_tensors(path, tensors, header)
        for old in saved(run)[:-2]:
            old.unlink()

    def restore(self, run: Run, progress: Progress, start_from: Path | None) -> int:
        """Load the newest checkpoint that is whole, damaged ones being reported. Returns images seen, 0 for none."""
        found = first(self._newest, run, progress, start_from)
        if found is None:
            return 0
        tensors, header, path = found
        self._load(tensors, header, path)
        return int(header["images"])

    @staticmethod
    def _newest(
        run: Run, progress: Progress, start_from: Path | None
    ) -> tuple[dict[str, Tensor], dict[str, Any], Path] | None:
        for path in reversed(saved(run)):
            try:
                return *checkpoint.load_tensors(path), path
            except checkpoint.Damaged as error:
                progress.note(f"{error}; trying the checkpoint before it")
        return (*checkpoint.load_tensors(start_from), start_from) if start_from else None

    def _load(self, tensors: dict[str, Tensor], header: dict[str, Any], path: Path) -> None:
        for name, player in self.players().items():
            network = self.engine.unwrap(player.network)
            checkpoint.load_into(network, checkpoint.under(name, tensors), str(path))
            checkpoint.restore_optimizer(player.optimizer, checkpoint.under(f"{name}_adam", tensors))
        if self.average is not None:
            checkpoint.load_into(self.engine.unwrap(self.average), checkpoint.under("average", tensors), str(path))
        if self.pool:
            self.pool.restore(checkpoint.under("pool", tensors), self.engine.device)
        self.ledger.window = list(header["window"])
        if "scaler" in header and self.engine.accelerator.scaler is not None:
            self.engine.accelerator.scaler.load_state_dict(header["scaler"])


def saved(run: Run) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted(run.checkpoints.glob("images-*.safetensors"))


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


def _numbers(scalars: Sequence[Tensor]) -> list[float]:
    """The values, for which the device is waited for once."""
    if not scalars:
        return []
    device = scalars[0].device
    read: list[float] = torch.stack([scalar.to(device) for scalar in scalars]).tolist()
    return read


def _due(every: int, step: int, settings: Train) -> bool:
    """Whether this step, the last one or not, has reached or passed a multiple of `every` images."""
    images = step * settings.step_images
    return step == settings.steps or images // every > (images - settings.step_images) // every


def _on(engine: Engine, loss: Any) -> Any:
    return loss.to(engine.device) if isinstance(loss, nn.Module) else loss


def _spread(length: int, count: int) -> range:
    """`count` indices over the whole length, so that samples show different regions."""
    return range(0, length, max(1, length // count))[:count]
