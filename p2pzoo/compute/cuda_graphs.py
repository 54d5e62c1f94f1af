"""A training step recorded as one CUDA graph and replayed; the first step of compiled networks. Both have a way back.

At batch 1 a GPU computes a step of pix2pix faster than Python can launch its thousands of kernels. A graph launches
them at once: the same kernels on the same memory, so the same bits. What a step reads from Python it reads once, as it
is recorded; so a step is recorded only if it waited for nothing, drew nothing outside the graph, and left every number
that its parts keep in Python as it was.

Whatever fails here is told in one warning, and the step is taken as it is written. Imports torch and the contracts.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from p2pzoo.plugin.batch import Batch

T = TypeVar("T")
Step = Callable[[Batch, int], dict[str, Tensor]]

WARM_UP = 3  # steps before recording: libraries choose kernels and take memory in their first ones


def warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)


class Recorder(Protocol):
    """How a device's work is recorded."""

    def warm_up(self, act: Callable[[], T]) -> T:
        """`act()`, where it will be recorded."""

    def watch(self, act: Callable[[], T]) -> tuple[T, str | None]:
        """`act()` likewise, and what it did that no recording would repeat, if anything."""

    def record(self, act: Callable[[], T]) -> Callable[[], T]:
        """What `act` asks of the device, without doing it. Each call of the answer does it, and returns what `act` did.

        Where it raises, the device and its random numbers are as before.
        """


class CUDAGraphStep:
    """A step, taken as it is WARM_UP times, then recorded, and replayed from then on.

    parts       networks and losses: what they keep in Python must not change from step to step
    optimizers  torch's, which have to know that they are recorded
    given_up    called with the reason where it cannot be
    """

    def __init__(
        self,
        step: Step,
        recorder: Recorder,
        *,
        parts: Sequence[object] = (),
        optimizers: Sequence[Any] = (),
        given_up: Callable[[str], None] = warn,
    ) -> None:
        self.step, self.parts, self.optimizers, self.given_up = step, parts, optimizers, given_up
        self.recorder: Recorder | None = recorder
        self.warm = 0
        self.names: list[str] = []
        self._given: Batch | None = None
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, batch: Batch, number: int) -> dict[str, Tensor]:
        """The step's losses, on the device; they stay what they are when the next step is taken."""
        if self._replay is None and self.recorder is not None and self.warm == WARM_UP:
            self._record(self.recorder, batch)
        if self._replay is not None:
            return self._replayed(batch)
        if self.recorder is None:
            return self.step(batch, number)
        return self._warmed(self.recorder, batch, number)

    def _warmed(self, recorder: Recorder, batch: Batch, number: int) -> dict[str, Tensor]:
        self.warm += 1
        if self.warm < WARM_UP:
            return recorder.warm_up(lambda: self.step(batch, number))
        before = _kept_in_python(self.parts)
        told, obstacle = recorder.watch(lambda: self.step(batch, number))
        changed = [key for key, value in _kept_in_python(self.parts).items() if before.get(key) != value]
        if changed and not obstacle:
            obstacle = f"{changed[0][1]} changes from step to step"
        if obstacle:
            self._give_up(obstacle)
        return told

    def _record(self, recorder: Recorder, batch: Batch) -> None:
        labels, drawn = (None if each is None else each.clone() for each in (batch.labels, batch.random))
        given = Batch(batch.x.clone(), batch.y.clone(), (), labels, random=drawn)  # no ids: they would stay this step's
        nobodys: Any = None  # and no number: a step that reads it raises

        def act() -> Tensor:
            told = self.step(given, nobodys)
            self.names = list(told)
            return torch.stack([value.detach().float() for value in told.values()])

        self._recordable(True)
        try:
            self._replay, self._given = recorder.record(act), given
        except Exception as error:  # a kernel, a library or a plugin: there is always the step itself
            self._recordable(False)
            self._give_up(_in_a_line(error))

    def _replayed(self, batch: Batch) -> dict[str, Tensor]:
        assert self._given is not None
        assert self._replay is not None
        self._given.x.copy_(batch.x)
        self._given.y.copy_(batch.y)
        for kept, new in ((self._given.labels, batch.labels), (self._given.random, batch.random)):
            if kept is not None and new is not None:
                kept.copy_(new)
        told = self._replay().clone()  # the next replay writes where this one did
        return dict(zip(self.names, told.unbind(), strict=True))

    def _recordable(self, on: bool) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["capturable"] = on  # of a fused Adam this changes nothing but that it may be recorded

    def _give_up(self, reason: str) -> None:
        self.recorder = None
        self.given_up(reason)


def _kept_in_python(parts: Sequence[object]) -> dict[tuple[int, str], object]:
    """Every plain number, word and switch that these objects, and the modules inside them, hold; and which tensors."""
    owners = [o for part in parts for o in (part.modules() if isinstance(part, nn.Module) else (part,))]
    return {
        (i, f"{type(owner).__name__}.{name}"): id(value) if isinstance(value, Tensor) else value
        for i, owner in enumerate(owners)
        for name, value in getattr(owner, "__dict__", {}).items()
        if isinstance(value, bool | int | float | str | Tensor)
    }


class CudaRecorder:
    """Recording on a CUDA device, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.failed: list[torch.cuda.CUDAGraph] = []  # kept: what a broken recording holds is not safe to free

    def warm_up(self, act: Callable[[], T]) -> T:
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            answer = act()
        here.wait_stream(self.stream)
        return answer

    def watch(self, act: Callable[[], T]) -> tuple[T, str | None]:
        before, mode = _drawn_elsewhere(), torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")  # which warns that it is a prototype
            try:
                answer = self.warm_up(act)
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        waits = [each for each in told if "called a synchronizing" in str(each.message)]
        for each in told:
            if each not in waits and "debug mode is a prototype" not in str(each.message):
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        if waits:
            return answer, f"it waits for the device ({waits[0].filename.rpartition('/')[2]}:{waits[0].lineno})"
        return answer, None if before == _drawn_elsewhere() else "it draws random numbers outside the device"

    def record(self, act: Callable[[], T]) -> Callable[[], T]:
        seed, graph = torch.initial_seed(), torch.cuda.CUDAGraph()
        try:
            # thread_local: other threads, which make batches, may ask for pinned memory meanwhile
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                answer = act()
        except BaseException:
            self.failed.append(graph)
            own = torch.cuda.default_generators[self.device.index or 0]  # it may still believe that it is recorded
            own.graphsafe_set_state(torch.Generator(self.device).graphsafe_get_state())
            torch.manual_seed(seed)
            raise

        def replay() -> T:
            graph.replay()
            return answer

        return replay


def _drawn_elsewhere() -> tuple[object, ...]:
    """The states of the random generators that no CUDA graph knows of."""
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


# --- compiled networks -----------------------------------------------------------------------------------------


class WarmupCompile:
    """A step of compiled networks. Its first one is taken twice: once to compile, which leaves no trace.

    Where that fails, for want of a compiler or in a gradient of a gradient, `to_jsonable()` puts the networks back that were
    compiled, and the game goes on with these.
    """

    def __init__(self, objective: Any, *, plain: Callable[[str], None], scaler: Any = None) -> None:
        self.objective, self.plain, self.scaler = objective, plain, scaler
        self.done = False

    def __call__(self, batch: Batch, number: int) -> dict[str, Tensor]:
        if not self.done:
            self.done = True
            try:
                with rollback(self.objective, self.scaler):
                    self.objective.step(batch, 0)  # in which losses act that rest in others
            except Exception as error:  # compilers fail in many ways
                self.plain(_in_a_line(error))
        told: dict[str, Tensor] = self.objective.step(batch, number)
        return told


@contextlib.contextmanager
def rollback(objective: Any, scaler: Any = None) -> Iterator[None]:
    """Steps taken inside leave no trace: not in weights, moments, buffers, the pool or random numbers."""
    players = objective.players
    tensors = [t for p in players for t in (*p.network.parameters(), *p.network.buffers())]
    losses = [objective.gan, *(term.loss for term in objective.terms)]
    tensors += [t for loss in losses if isinstance(loss, nn.Module) for t in (*loss.parameters(), *loss.buffers())]
    moments = [player.optimizer.state for player in players]
    tensors += [t for state in moments for part in state.values() for t in part.values() if isinstance(t, Tensor)]
    kept = [tensor.detach().clone() for tensor in tensors]
    known = [set(state) for state in moments]
    pool = objective.pool.tensors() if objective.pool else {}
    scale = scaler.state_dict() if scaler is not None else None
    device = tensors[0].device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)
        for player, before in zip(players, known, strict=True):
            state = player.optimizer.state
            for parameter in set(state) - before:
                del state[parameter]
            for parameter in player.network.parameters():
                parameter.grad = None
        if objective.pool:
            objective.pool.restore(pool, device)
        if scale is not None:
            scaler.load_state_dict(scale)


def _in_a_line(error: Exception) -> str:
    told = " ".join(str(error).split("\n")[:2])  # compilers put what happened into the second line
    return f"{type(error).__name__}: {told}".rstrip(": ")
