"""One run over several processes (`accelerate launch`, `torchrun`): who does what, and how they agree.

Every process plays the same game on its share of each batch; `Engine.backward_and_step` averages the gradients. Only the first
process writes and speaks: what it alone does is an argument of `on_rank0`. A process that waits for one that has left
waits forever, so whatever can go wrong in one process alone stands inside `sync_errors` (or `on_rank0`), where all learn of
it and end with the same exit code. What fails inside a training step itself is left to the launcher, which ends the
others; on the CPU they notice by themselves.

With a single process all of this does nothing. Imports torch and the contracts' errors.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from p2pzoo.utils.errors import PeerProcessError, UserError

T = TypeVar("T")


_agreeing: Any = None  # the group through which processes agree; None: torch's default one


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """The processes that a launcher started are one group inside. Without a launcher there is nothing to join."""
    global _agreeing
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        # A group of its own, on the CPU: agreeing never waits for what a GPU does, and it ends here. The default group
        # outlives its end where DDP has used it, and its threads abort a process that exits right after an exchange.
        _agreeing = dist.new_group(backend="gloo")
    failed = False
    try:
        yield
    except Exception as error:
        failed = not isinstance(error, (UserError, PeerProcessError))  # these all processes have agreed on
        raise
    finally:
        if _agreeing is not None:
            dist.destroy_process_group(_agreeing)
            _agreeing = None
        if dist.is_initialized() and not (failed and torch.cuda.is_available()):
            dist.destroy_process_group()  # NCCL would wait here for processes that know nothing of a failure


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def check_device(kind: str) -> None:
    """Raises UserError where the processes of this machine cannot have a device of this kind each."""
    if world_size() == 1:
        return
    if kind == "mps":
        raise UserError(
            f"{world_size()} processes cannot share the one MPS device: start a single one, or use --device cpu"
        )
    there, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if kind == "cuda" and here > there:
        raise UserError(f"{here} processes were started here for {there} GPUs: start one per GPU, or use --device cpu")


# --- each its part ---------------------------------------------------------------------------------------------


@overload
def shard(whole: range) -> range: ...


@overload
def shard(whole: Sequence[T]) -> Sequence[T]: ...


def shard(whole: Any) -> Any:
    """This process's part: the parts follow one another, and differ in length by one at most."""
    return whole[len(whole) * rank() // world_size() : len(whole) * (rank() + 1) // world_size()]


def check_batch(size: int, parts: int = 1) -> None:
    """Raises UserError where a batch of this size has no equal shares, each of so many equal parts."""
    if size % (world_size() * parts):
        needed = world_size() * parts
        each = f" in {parts} parts each ([train] accumulate)" if parts > 1 else ""
        raise UserError(
            f"[train] batch_size = {size} cannot be shared by {world_size()} processes{each}: it is the size of the whole "
            f"batch, so set a multiple of {needed}, as in -s train.batch_size={needed * (size // needed + 1)}"
        )


def all_gather(part: Tensor) -> Tensor:
    """The tensor whose equal `shard`s the processes hold."""
    if world_size() == 1:
        return part
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def all_gather_object(value: T) -> list[T]:
    """Every process's value, which pickle can take, in their order."""
    values: list[Any] = [value]
    if world_size() > 1:
        values *= world_size()
        dist.all_gather_object(values, value, group=_agreeing)
    return values


def all_reduce_mean(values: Sequence[float]) -> list[float]:
    """The mean over the processes of each value."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, group=_agreeing)
    found: list[float] = (tensor / world_size()).tolist()
    return found


def all_reduce_max(value: int) -> int:
    """The greatest of the processes' values."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_agreeing)
    return int(tensor)


# --- one for all -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sync_errors() -> Iterator[None]:
    """What is raised inside, on any process, is raised on all: none goes on to wait for one that has left.

    Nothing inside may exchange anything between processes.
    """
    if world_size() == 1:
        yield
        return
    own: BaseException | None = None
    try:
        yield
    except BaseException as error:
        own = error
    if all_reduce_max(own is not None):
        errors: list[Any] = all_gather_object(own and _portable(own))
        at = next(at for at, error in enumerate(errors) if error)
        raise (own if own and at == rank() else errors[at]) from own


def on_rank0(act: Callable[..., T], *args: Any) -> T:
    """`act(*args)` on the first process alone. What it returns, and what it raises, all get."""
    answer: Any = None
    with sync_errors():
        if rank() == 0:
            answer = act(*args)
    if world_size() > 1:
        holder = [answer]
        dist.broadcast_object_list(holder, group=_agreeing)
        answer = answer if rank() == 0 else holder[0]
    return answer  # type: ignore[no-any-return]


def _portable(error: BaseException) -> BaseException:
    """What the others raise in its place. Mistakes of the user are told by the first process, wherever they showed."""
    match error:
        case UserError():
            where = f"process {rank()}: " if rank() else ""
            return UserError(*(f"{where}{fault}" for fault in error.faults))
        case KeyboardInterrupt() | OSError():
            return type(error)(*error.args)
    return PeerProcessError(f"process {rank()}: {type(error).__name__}: {error}")


# --- gradients -------------------------------------------------------------------------------------------------


class _Passed(nn.Module):
    """Gives back the loss that it is given; owns the network whose gradients will be averaged."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, loss: Tensor) -> Tensor:
        return loss


def average_gradients(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """A function that a loss passes through last, so that its backward averages `network`'s gradients over processes.

    DDP expects one forward for each backward, of the network itself. The game does otherwise: D is called twice or more
    before its backward, by its features too, under R1 within a gradient, and while it is frozen. So DDP is given the
    loss alone; its hooks sit on the parameters whatever has been done with them.

    Buffers (BatchNorm's running statistics) stay each process's own; the first one's are saved. Looking for parameters
    without a part in the loss leaves those alone, as a single process does, and keeps DDP from regrouping gradients
    after the first step, which would give a resumed run other bits.
    """
    if world_size() == 1:
        return lambda loss: loss
    return DistributedDataParallel(_Passed(network), broadcast_buffers=False, find_unused_parameters=True)
