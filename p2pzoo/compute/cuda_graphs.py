"""Record a training step as a CUDA graph and replay it; compile networks in a warm-up step. Both can fall back.

At batch 1 a GPU computes a pix2pix step faster than Python can launch its thousands of kernels. A graph launches them
at once: the same kernels on the same memory, so results are bit-identical. A recorded step reads values from Python
only once, during the recording. So a step is recorded only if it does not wait for the device, draws no random numbers
outside the graph, and changes no number that its networks, losses and augmentations keep in Python.

If recording or compiling fails, one warning gives the reason, and the step runs eagerly.
Imports torch and p2pzoo.plugin.
"""

from __future__ import annotations

import contextlib
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from p2pzoo.compute.python_state import python_state
from p2pzoo.plugin.batch import Batch

_T = TypeVar("_T")
TrainStep = Callable[[Batch, int], dict[str, Tensor]]

WARMUP_STEPS = 3  # steps before recording: in the first ones libraries choose kernels and allocate workspaces


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def _unchanged(batch: Batch) -> Batch:
    return batch


class GraphRecorder(Protocol):
    """Interface of a recorder. `CUDAGraphRecorder` is the real one; tests use one that needs no GPU."""

    def warm_up(self, function: Callable[[], _T]) -> _T:
        """Return `function()`, run on the stream that later records it."""

    def watch(self, function: Callable[[], _T]) -> tuple[_T, str | None]:
        """Run `function` as `warm_up` does. Return its result, and the reason if a graph cannot repeat it."""

    def record(self, function: Callable[[], _T]) -> Callable[[], _T]:
        """Record the kernels of `function` without running them, and return a function that replays them.

        The replay returns the result of `function`: the same tensors each time, with new values. If `function` raises,
        the device and its random state are as before.
        """


class CUDAGraphStep:
    """A training step that runs eagerly WARMUP_STEPS times, is then recorded, and from then on replayed.

    If the preparation of batches cannot be recorded, it runs eagerly before each replay; one warning gives the reason.

    step            takes a prepared batch and the number of the step, returns losses by name
    recorder        records on the device
    prepare         makes a batch ready for the step: scales images, augments pairs. Default: batches are ready
    parts           networks, losses and augmentations of the step: numbers that they keep in Python must not change
                    between steps
    prepare_parts   the same for `prepare`: augmentations of pairs
    optimizers      torch optimizers; "capturable" is set in their parameter groups
    on_failure      called with the reason if the step cannot be recorded
    """

    def __init__(
        self,
        step: TrainStep,
        recorder: GraphRecorder,
        *,
        prepare: Callable[[Batch], Batch] = _unchanged,
        parts: Sequence[object] = (),
        prepare_parts: Sequence[object] = (),
        optimizers: Sequence[Any] = (),
        on_failure: Callable[[str], None] = _warn,
    ) -> None:
        self.step, self.prepare, self.optimizers, self.on_failure = step, prepare, optimizers, on_failure
        self.parts, self.prepare_parts = parts, prepare_parts
        self.recorder: GraphRecorder | None = recorder
        self.num_warmup, self.is_doubtful = 0, False
        self.records_prepare = True
        self.names: list[str] = []
        self._static_batch: Batch | None = None  # the graph reads its inputs from these tensors
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, batch: Batch, number: int) -> dict[str, Tensor]:
        """Return the losses of the step, on the device; the next step does not overwrite them."""
        if self.recorder is not None and self.num_warmup < WARMUP_STEPS:
            return self._warm_up(self.recorder, batch, number)
        if not self.records_prepare:
            batch = self.prepare(batch)
        if self._replay is None and self.recorder is not None:
            self._record(self.recorder, batch)
        if self._replay is not None:
            return self._replay_step(batch)
        return self.step(self.prepare(batch) if self.records_prepare else batch, number)

    def _warm_up(self, recorder: GraphRecorder, batch: Batch, number: int) -> dict[str, Tensor]:
        self.num_warmup += 1
        if self.num_warmup < WARMUP_STEPS:
            return recorder.warm_up(lambda: self.step(self.prepare(batch), number))
        prepared, prepare_obstacle, *certain = _watch(recorder, lambda: self.prepare(batch), self.prepare_parts)
        losses, obstacle, is_certain = _watch(recorder, lambda: self.step(prepared, number), self.parts)
        if (obstacle or prepare_obstacle) and not (self.is_doubtful or is_certain or any(certain)):
            self.is_doubtful = True
            self.num_warmup -= 1  # watch the next step too: another thread may have been seen
            return losses
        if prepare_obstacle and not obstacle:
            self.records_prepare = False
            warnings.warn(f"pairs are augmented outside the CUDA graph: {prepare_obstacle}", stacklevel=2)
        if obstacle:
            self._give_up(obstacle)
        return losses

    def _record(self, recorder: GraphRecorder, batch: Batch) -> None:
        tensors = {name: tensor.clone() for name, tensor in batch.tensors().items()}
        # Without ids and step number, which the graph would repeat in every step: a step that reads them raises.
        static = replace(batch, ids=(), blocks=(), **tensors)
        no_number: Any = None

        def step() -> Tensor:
            losses = self.step(self.prepare(static) if self.records_prepare else static, no_number)
            self.names = list(losses)
            return torch.stack([value.detach().float() for value in losses.values()])

        self._set_capturable(True)
        try:
            self._replay, self._static_batch = recorder.record(step), static
        except Exception as error:  # of a kernel, a library or a plugin: the eager step still works
            self._set_capturable(False)
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)  # recorded gradients have never been computed
            self._give_up(_to_one_line(error))

    def _replay_step(self, batch: Batch) -> dict[str, Tensor]:
        assert self._static_batch is not None
        assert self._replay is not None
        sources = batch.tensors()
        for name, target in self._static_batch.tensors().items():
            if name in sources:
                target.copy_(sources[name])
        losses = self._replay().clone()  # the next replay overwrites this memory
        return dict(zip(self.names, losses.unbind(), strict=True))

    def _set_capturable(self, capturable: bool) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["capturable"] = capturable  # a fused Adam computes the same with it; torch only permits recording

    def _give_up(self, reason: str) -> None:
        self.recorder = None
        self.on_failure(reason)


def _watch(recorder: GraphRecorder, function: Callable[[], _T], parts: Sequence[object]) -> tuple[_T, str | None, bool]:
    """Watch `function`. Return its result, the reason if a graph cannot repeat it, and whether that is certain.

    parts  what it uses: no other thread changes it
    """
    before = python_state(parts)
    result, obstacle = recorder.watch(function)
    changed = [key for key, value in python_state(parts).items() if before.get(key) != value]
    if changed:
        return result, f"{changed[0][1]} changes from step to step", True
    return result, obstacle, False


class CUDAGraphRecorder:
    """Record on a CUDA device, on a separate stream.

    pause  called before a step is watched: waits until no thread of the run works, whose random numbers would be seen
    """

    def __init__(self, device: torch.device, pause: Callable[[], None] = lambda: None) -> None:
        self.device, self.pause = device, pause
        self.stream = torch.cuda.Stream(device)

    def warm_up(self, function: Callable[[], _T]) -> _T:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = function()
        current.wait_stream(self.stream)
        return result

    def watch(self, function: Callable[[], _T]) -> tuple[_T, str | None]:
        self.pause()
        before, mode = _cpu_rng_states(), torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")  # this mode also warns that it is a prototype
            try:
                result = self.warm_up(function)
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        syncs = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
        for warning in caught:
            if warning not in syncs and "debug mode is a prototype" not in str(warning.message):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if syncs:
            return result, f"the step waits for the device ({syncs[0].filename.rpartition('/')[2]}:{syncs[0].lineno})"
        return result, None if before == _cpu_rng_states() else "the step draws random numbers outside the device"

    def record(self, function: Callable[[], _T]) -> Callable[[], _T]:
        stream, seed = torch.cuda.current_stream(self.device), torch.initial_seed()
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        first_error: BaseException | None = None  # torch raises a second one if the first has invalidated the capture
        try:
            # thread_local: the prefetch thread may allocate pinned memory during the recording
            with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
                try:
                    result = function()
                except BaseException as error:
                    first_error = error
                    raise
        except BaseException as error:
            torch.cuda.set_stream(stream)
            self._recover(graph, pool, seed)
            error.__traceback__ = None  # without tracebacks, which hold the tensors of the step: errors hold each other
            raise (first_error or error).with_traceback(None) from None

        def replay() -> _T:
            graph.replay()
            return result

        return replay

    def _recover(self, graph: torch.cuda.CUDAGraph, pool: Any, seed: int) -> None:
        """Undo what torch leaves behind if it cannot end a capture: memory and the default generator belong to it."""
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        end_pool: Any = getattr(torch._C, "_cuda_endAllocateToPool", None)
        if end_pool:
            with contextlib.suppress(RuntimeError):  # the capture did end, and only the function has failed
                end_pool(index, pool)
                torch._C._cuda_releasePool(index, pool)
        generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(torch.Generator(self.device).graphsafe_get_state())
        torch.manual_seed(seed)
        graph.reset()


def _cpu_rng_states() -> tuple[object, ...]:
    """Return the states of the random generators that a CUDA graph does not repeat."""
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


# --- compiled networks -----------------------------------------------------------------------------------------


class WarmupCompile:
    """The prepared step of compiled networks. The first call first takes a warm-up step, which it rolls back.

    If compiling fails (no compiler, or a gradient of a gradient), `on_failure` puts the original networks back, and
    training continues with them.

    objective   objective whose networks `torch.compile` wraps
    on_failure  called with the reason
    scaler      fp16 loss scaler, if there is one
    note        prints a line of progress
    """

    def __init__(
        self,
        objective: Any,
        *,
        on_failure: Callable[[str], None],
        scaler: Any = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.objective, self.on_failure, self.scaler, self.note = objective, on_failure, scaler, note
        self.is_warm = False

    def __call__(self, batch: Batch, number: int) -> dict[str, Tensor]:
        if not self.is_warm:
            self.is_warm = True
            self.note("compiling the networks, before the first step: this takes minutes")
            began = time.perf_counter()
            try:
                with rollback(self.objective, self.scaler):
                    self.objective.update(batch, 0)  # step 0: lazy losses, which skip most steps, are active in it
            except Exception as error:  # compilers fail in many ways
                self.on_failure(_to_one_line(error))
            else:
                self.note(f"compiled in {time.perf_counter() - began:.0f} s")
        losses: dict[str, Tensor] = self.objective.prepared_step(batch, number)
        return losses


@contextlib.contextmanager
def rollback(objective: Any, scaler: Any = None) -> Iterator[None]:
    """Undo the steps taken inside: weights, optimizer states, buffers, image pool and random state are as before."""
    trainables = objective.trainables
    tensors = [t for p in trainables for t in (*p.network.parameters(), *p.network.buffers())]
    tensors += [t for part in objective.stateful_modules.values() for t in (*part.parameters(), *part.buffers())]
    moments = [trainable.optimizer.state for trainable in trainables]
    tensors += [t for state in moments for part in state.values() for t in part.values() if isinstance(t, Tensor)]
    saved = [tensor.detach().clone() for tensor in tensors]
    known = [set(state) for state in moments]
    pool = objective.pool.tensors() if objective.pool else {}
    scale = scaler.state_dict() if scaler is not None else None
    device = tensors[0].device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
        for trainable, before in zip(trainables, known, strict=True):
            state = trainable.optimizer.state
            for parameter in set(state) - before:
                del state[parameter]
            for parameter in trainable.network.parameters():
                parameter.grad = None
        if objective.pool:
            objective.pool.restore(pool, device)
        if scale is not None:
            scaler.load_state_dict(scale)


def _to_one_line(error: Exception) -> str:
    # Where the memory went, and advice, take more sentences. Compilers put the cause into the second line.
    separator = ". " if isinstance(error, torch.cuda.OutOfMemoryError) else "\n"
    lines = str(error).split(separator)[:2]
    message = " ".join(line for line in lines if not line.startswith("Search for "))  # of CUDA errors: where to read
    return f"{type(error).__name__}: {message}".rstrip(": ")
