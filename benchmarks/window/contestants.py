"""Training steps whose speed is compared, each in a process: p2pzoo with its switches, and the classic code.

    python benchmarks/window/contestants.py --context JSON --cell speed_256_1 --name "without tf32"

The classic code is `baseline.py`: eager, fp32, NCHW, torch's default Adam and `.item()` on every loss, as in the public
PyTorch code; as there, cuDNN chooses its kernels by timing. Its batches are already on the device, as if its loader
always kept up; p2pzoo makes its own. "Best switches" is the same code with what a few lines add: bf16 autocast, TF32,
channels-last memory, a fused Adam, and torch.compile where the name says so.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import measure
import torch
from baseline import Classic, batches
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from train_step import ours_plain

from window.build import Training, experiment, pairs_folder
from window.context import SEED, Context, say
from window.plan import Cell

SWITCHES = {  # "without NAME", "with NAME"
    "fp32": 'compute.precision="fp32"',  # with TF32; p2pzoo itself takes the precision that it has by default
    "bf16": 'compute.precision="bf16"',
    "tf32": "compute.tf32=false",
    "channels_last": "compute.channels_last=false",
    "fused_adam": "compute.fused_adam=false",  # without it there is no CUDA graph either
    "one_pass": "compute.one_pass=false",
    "cuda_graphs": "compute.cuda_graphs=false",
    "prefetch": "compute.prefetch=false",
    "deterministic": "compute.deterministic=true",
    "compile": "compute.compile=true",
}
WARM_UP = 8  # steps before timing: more than the warm-up steps before a graph is recorded
COUNTED = 5  # steps in which synchronizations are counted
READY = 4  # batches of the classic code that are on the device


@click.command()
@click.option("--context", required=True)
@click.option("--cell", required=True)
@click.option("--name", required=True)
@click.option("--warm-up-only", is_flag=True, help="End after the warm-up, which fills the compilers' caches.")
def main(context: str, cell: str, name: str, warm_up_only: bool) -> None:
    """Be one contestant."""
    torch.manual_seed(SEED)
    parsed = Context.parse(context)
    contestant = make(name, parsed, parsed.sizes.cells[cell])
    for _ in range(WARM_UP):
        contestant.step()
    contestant.wait()
    if warm_up_only:
        return
    steps = parsed.sizes.cells[cell].steps
    about = contestant.about() | {"waits": round(count_waits(contestant, parsed.device) / COUNTED, 1)}
    contestant.pop_waiting()

    def work() -> None:
        for _ in range(steps):
            contestant.step()
        contestant.wait()

    def facts() -> dict[str, Any]:
        return {"waited": contestant.pop_waiting()}

    peak = torch.cuda.max_memory_allocated if parsed.device == "cuda" else None
    measure.serve(work, about, peak=peak, facts=facts)


def make(name: str, context: Context, cell: Cell) -> Any:
    if name.startswith("classic"):
        return ClassicTraining(name, context, cell)
    word, _, switch = name.partition(" ")
    overrides = [SWITCHES[switch]] if word in ("with", "without") else []
    return Zoo(Training(experiment(context, cell.size, cell.width, cell.batch, overrides)))


class Zoo:
    """p2pzoo's step."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.step, self.wait, self.pop_waiting = training.step, training.wait, training.pop_waiting

    def about(self) -> dict[str, Any]:
        engine = self.training.engine
        on = [switch for switch, is_on in engine.enabled.items() if is_on]
        return {"on": on, "precision": engine.precision}


class ClassicTraining:
    """The classic code's step."""

    def __init__(self, name: str, context: Context, cell: Cell) -> None:
        self.device, self.taken, self.flop = context.device, 0, 0
        self.is_best, self.is_compiled = "best switches" in name, "compiled" in name
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = self.is_best
        torch.backends.cudnn.allow_tf32 = self.is_best
        classic = ours_plain(cell.size, cell.width)
        networks = [network.to(context.device) for network in (classic.G, classic.D)]
        memory_format = torch.channels_last if self.is_best else torch.contiguous_format
        G, D = (network.to(memory_format=memory_format) for network in networks)
        if self.is_best:
            G, D = autocast(G, context.device), autocast(D, context.device)
        if self.is_compiled:
            G, D = (torch.compile(network, dynamic=False) for network in (G, D))
        self.classic = Classic(G, D)
        if self.is_best:
            for optimizer in (self.classic.optimizer_G, self.classic.optimizer_D):
                optimizer.param_groups[0]["fused"] = True
        pairs = batches(pairs_folder(context, cell.size), cell.size, cell.batch)
        self.ready = [
            tuple(images.to(context.device, memory_format=memory_format) for images in next(pairs))
            for _ in range(READY)
        ]  # fmt: skip
        if not self.is_best:
            with FlopCounterMode(display=False) as counter:
                self.step()
            self.flop = counter.get_total_flops()

    def step(self) -> object:
        self.taken += 1
        return self.classic.step(*self.ready[self.taken % READY])

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def pop_waiting(self) -> dict[str, float]:
        return {}

    def about(self) -> dict[str, Any]:
        return {"flop": self.flop} if self.flop else {}


def autocast(network: nn.Module, device: str) -> nn.Module:
    """The network in bf16 autocast; its results are fp32."""
    forward = network.forward

    def in_bf16(*args: Tensor) -> Any:
        with torch.autocast(device, torch.bfloat16):
            result = forward(*args)
        return result.float() if isinstance(result, Tensor) else [part.float() for part in result]

    network.forward = in_bf16  # type: ignore[method-assign]
    return network


def count_waits(contestant: Any, device: str) -> int:
    """How often Python waits for the device in COUNTED steps."""
    if device != "cuda":
        return 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step: Callable[[], object] = contestant.step
        for _ in range(COUNTED):
            step()
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


if __name__ == "__main__":
    main()
    say("ended")
    sys.exit()
