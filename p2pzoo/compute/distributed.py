"""One run over several processes (`accelerate launch`, `torchrun`): collectives, shards, errors, averaged gradients.

Every process trains on its shard of each batch; `Engine.backward_and_step` averages the gradients. Only rank 0 writes
files and prints; `on_rank0` runs a function there alone. A process that waits for a process that has exited waits
forever. Code that can fail in a single process therefore runs inside `sync_errors` (or `on_rank0`), which raises the
error in all processes, so that all end with the same exit code. Errors inside a training step are left to the launcher,
which ends the other processes; on the CPU they notice by themselves.

With a single process all of this does nothing. Imports torch and p2pzoo.utils.errors.
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
from p2pzoo.utils.launcher import is_launched

_T = TypeVar("_T")


_cpu_group: Any = None  # gloo group for values and errors; None: torch's default group


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the process group of the launcher inside this context. Does nothing without a launcher (WORLD_SIZE)."""
    global _cpu_group
    if is_launched():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        # A separate group on the CPU: exchanging values never waits for a GPU, and the group is destroyed below. The
        # default group survives destroy_process_group if DDP has used it, and its threads abort a process that exits
        # right after an exchange.
        _cpu_group = dist.new_group(backend="gloo")
    failed = False
    try:
        yield
    except Exception as error:
        failed = not isinstance(error, (UserError, PeerProcessError))  # sync_errors raised these in all processes
        raise
    finally:
        if _cpu_group is not None:
            dist.destroy_process_group(_cpu_group)
            _cpu_group = None
        if dist.is_initialized() and not (failed and torch.cuda.is_available()):
            dist.destroy_process_group()  # after a failure NCCL would wait here for the other processes


def rank() -> int:
    """Return the number of this process, from 0; 0 without a process group.

    >>> rank()
    0
    """
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes; 1 without a process group.

    >>> world_size()
    1
    """
    return dist.get_world_size() if dist.is_initialized() else 1


def check_device(device_type: str) -> None:
    """Raise UserError if this machine has fewer devices of this type ("cpu", "cuda", "mps") than processes."""
    if world_size() == 1:
        return
    if device_type == "mps":
        raise UserError(
            f"{world_size()} processes cannot share the single MPS device: start one process, or use --device cpu"
        )
    num_gpus, num_local = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device_type == "cuda" and num_local > num_gpus:
        gpus = f"{num_gpus} GPU{'s' * (num_gpus != 1)}"
        raise UserError(
            f"{num_local} processes were started on this machine, which has {gpus}: start one per GPU, or use "
            "--device cpu"
        )


# --- shards and collectives ------------------------------------------------------------------------------------


@overload
def shard(items: range) -> range: ...


@overload
def shard(items: Sequence[_T]) -> Sequence[_T]: ...


def shard(items: Any) -> Any:
    """Return the shard of this process. Shards are contiguous, in the order of the ranks; lengths differ by at most 1.

    >>> shard(range(5))
    range(0, 5)
    """
    return items[len(items) * rank() // world_size() : len(items) * (rank() + 1) // world_size()]


def check_batch(size: int, parts: int = 1) -> None:
    """Raise UserError if a batch cannot be split into equal shards, and each shard into equal parts.

    size   images of the whole batch, over all processes
    parts  backward passes per shard ([train] accumulate)

    >>> check_batch(4, parts=2)
    """
    if size % (world_size() * parts):
        divisor = world_size() * parts
        in_parts = f" in {parts} parts each ([train] accumulate)" if parts > 1 else ""
        raise UserError(
            f"[train] batch_size = {size} cannot be split among {world_size()} processes{in_parts}: it is the size of "
            f"the whole batch; set a multiple of {divisor}, as in -s train.batch_size={divisor * (size // divisor + 1)}"
        )


def all_gather(part: Tensor) -> Tensor:
    """Concatenate the shards of all processes along dimension 0, in the order of the ranks; their shapes are equal."""
    if world_size() == 1:
        return part
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def all_gather_object(value: _T) -> list[_T]:
    """Return the value of every process, in the order of the ranks. Values must be picklable.

    >>> all_gather_object("a")
    ['a']
    """
    values: list[Any] = [value]
    if world_size() > 1:
        values *= world_size()
        dist.all_gather_object(values, value, group=_cpu_group)
    return values


def all_reduce_mean(values: Sequence[float]) -> list[float]:
    """Return the mean of each value over the processes, computed in float64.

    >>> all_reduce_mean([1.0, 2.5])
    [1.0, 2.5]
    """
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, group=_cpu_group)
    means: list[float] = (tensor / world_size()).tolist()
    return means


def all_reduce_max(value: int) -> int:
    """Return the largest value over the processes."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_cpu_group)
    return int(tensor)


# --- errors ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sync_errors() -> Iterator[None]:
    """Raise an error of any process in all processes, so that no process waits for one that has exited.

    The code inside must not call a collective.
    """
    if world_size() == 1:
        yield
        return
    own_error: BaseException | None = None
    try:
        yield
    except BaseException as error:
        own_error = error
    if all_reduce_max(own_error is not None):
        errors: list[Any] = all_gather_object(own_error and _to_peer_error(own_error))
        failed_rank = next(number for number, error in enumerate(errors) if error)
        raise (own_error if own_error and failed_rank == rank() else errors[failed_rank]) from own_error


def on_rank0(function: Callable[..., _T], *args: Any) -> _T:
    """Call `function(*args)` on rank 0 alone. All processes return its result, or raise its error.

    >>> on_rank0(max, 1, 2)
    2
    """
    result: Any = None
    with sync_errors():
        if rank() == 0:
            result = function(*args)
    if world_size() > 1:
        holder = [result]
        dist.broadcast_object_list(holder, group=_cpu_group)
        result = result if rank() == 0 else holder[0]
    return result  # type: ignore[no-any-return]


def _to_peer_error(error: BaseException) -> BaseException:
    """Return the error that the other processes raise. A UserError stays one, since rank 0 prints it for all."""
    match error:
        case UserError():
            where = f"process {rank()}: " if rank() else ""
            return UserError(*(f"{where}{fault}" for fault in error.faults))
        case KeyboardInterrupt() | OSError():
            return type(error)(*error.args)
    return PeerProcessError(f"process {rank()}: {type(error).__name__}: {error}")


# --- gradients -------------------------------------------------------------------------------------------------


class _PassThrough(nn.Module):
    """Return the loss unchanged. DDP wraps this module, which holds the network whose gradients it averages."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, loss: Tensor) -> Tensor:
        return loss


def average_gradients(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function to apply to a loss: its backward pass then averages `network`'s gradients over the processes.

    DDP expects one forward pass of the network for each backward pass. GAN training does otherwise: D is called twice
    or more before its backward pass, also through its features, inside a gradient (R1), and while it is frozen. So DDP
    wraps only the loss; its hooks are on the parameters and work however the network was called.

    Buffers (running statistics of batch norm) differ between processes; those of rank 0 are saved.
    find_unused_parameters leaves parameters without a gradient alone, as a single process does. It also keeps DDP from
    rebuilding its gradient buckets after the first step, after which a resumed run would not be bit-identical.
    """
    if world_size() == 1:
        return lambda loss: loss
    return DistributedDataParallel(_PassThrough(network), broadcast_buffers=False, find_unused_parameters=True)
