"""Where and how it is computed: device, precision, memory format, optimizers. What is computed is not decided here.

Accelerate places the models and handles precision.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from p2pzoo.contracts import Batch
from p2pzoo.errors import UserError
from p2pzoo.kernels import read_kernels
from p2pzoo.lowering import Chooser, lowered
from p2pzoo.norms import mend_instance_norms
from p2pzoo.optimizers import DenseAdam
from p2pzoo.settings import Compute, Optimizer

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def pick_device(asked: str) -> str:
    """ "auto" as the best device there is. Raises UserError if the one asked for is missing."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[asked]:
        raise UserError(f'[compute] device = "{asked}": torch {torch.__version__} sees none here; use --device auto')
    return asked


class Engine:
    """A run's device, and the one place where gradients are made and taken."""

    def __init__(self, settings: Compute, chooser: Chooser | None = None) -> None:
        """chooser: of the convolutions' kernels, if not by `settings.kernels`."""
        self.settings = settings
        self.chooser = chooser or Chooser(read_kernels(settings.kernels) if settings.kernels else None)
        self.device_type = pick_device(settings.device)
        torch.set_num_threads(settings.threads or min(torch.get_num_threads(), usable_cores()))
        if self.device_type == "cpu" and settings.keep_memory:
            keep_memory()
        precision = settings.precision
        if precision == "auto":
            precision = "bf16" if self.device_type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        if precision == "fp16" and self.device_type != "cuda":
            raise UserError(f'[compute] precision = "fp16" needs CUDA, this run is on {self.device_type}')
        self.precision = precision
        if self.device_type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = settings.tf32
            torch.backends.cudnn.allow_tf32 = settings.tf32
            torch.backends.cudnn.benchmark = False  # it would choose kernels by timing, and so the bits by noise
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(settings.deterministic)
        AcceleratorState._reset_state(reset_partial_state=True)  # one process may hold several runs, one after another
        mixed = "no" if precision == "fp32" else precision
        self.accelerator = Accelerator(mixed_precision=mixed, cpu=self.device_type == "cpu")

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.settings.channels_last else torch.contiguous_format

    def place(self, model: nn.Module) -> Any:
        """The module on the device, in the run's memory format, precision and kernels. Shares the weights."""
        model = model.to(memory_format=self.memory_format)
        if self.device_type == "cpu":
            mend_instance_norms(model)
        if self.device_type == "cpu" and self.settings.lowering:
            model = lowered(model, self.chooser)
        return self.accelerator.prepare_model(model)

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The network itself, without what precision or DDP put around it."""
        found: nn.Module = self.accelerator.unwrap_model(model)
        return found

    def adam(self, model: nn.Module, settings: Optimizer) -> Any:
        """Adam in one kernel where there is one: torch's default on a CPU takes a fifth of a pix2pix step."""
        fused = self.settings.fused_adam and self.device_type in ("cpu", "cuda")
        kind = DenseAdam if fused and self.device_type == "cpu" else torch.optim.Adam
        adam = kind(model.parameters(), lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)
        return self.accelerator.prepare_optimizer(adam)

    def descend(self, loss: Tensor, optimizer: Any) -> None:
        """One step of `optimizer` down the gradient of `loss`, a scalar."""
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        optimizer.step()

    def move(self, batch: Batch) -> Batch:
        """The batch on the device."""
        labels = None if batch.labels is None else batch.labels.to(self.device)
        x = batch.x.to(self.device, memory_format=self.memory_format)
        y = batch.y.to(self.device, memory_format=self.memory_format)
        return Batch(x, y, batch.ids, labels, batch.blocks)

    def describe(self) -> dict[str, Any]:
        """What a result depends on besides the recipe."""
        described: dict[str, Any] = {
            "device": self.device_type,
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "deterministic": self.device_type == "cpu" or self.settings.deterministic,
        }
        if self.device_type == "cuda":
            described["gpu"] = torch.cuda.get_device_name()
        return described


def usable_cores() -> int:
    """Cores that this process may use: of its affinity and of its control group, not of the whole machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no control groups (of version 2), or no limit ("max")
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def keep_memory() -> None:
    """Have glibc keep what is freed. A step frees and takes gigabytes; it would give blocks of 32 MiB and more back to
    the system each time, and the system would clear their pages again: up to a quarter of a step at 256 px.

    For the whole process, from now on. Does nothing where there is no glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model's parameters get no gradients inside; what flows through it does."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
