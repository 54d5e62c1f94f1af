"""Where and how it is computed: device, precision, memory format, optimizers. What is computed is not decided here.

Accelerate places the models and handles precision.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn

from p2pzoo.compute import distributed, fused_adam
from p2pzoo.compute.activation_checkpointing import with_activation_checkpointing
from p2pzoo.compute.conv_as_gemm import Chooser, convs_as_gemm
from p2pzoo.compute.cuda_graphs import CUDAGraphStep, CudaRecorder, Recorder, Step, WarmupCompile
from p2pzoo.compute.instance_norm_fix import mend_instance_norms
from p2pzoo.compute.prefetch import Ahead, Batches
from p2pzoo.compute.tuned_kernels import read_kernels
from p2pzoo.config import optimizers
from p2pzoo.config.settings import Compute, Optimizer
from p2pzoo.plugin.batch import Batch
from p2pzoo.utils.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
COMPILE_FROM = 50_000  # steps: compiling takes minutes, and saves milliseconds of each (2 minutes are 2.4 ms of 50 000)
TENSOR_CORES, BF16 = (7, 0), (8, 0)  # compute capabilities: Volta, Ampere


def pick_device(asked: str) -> str:
    """ "auto" as the best device there is. Raises UserError if the one asked for is missing."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[asked]:
        raise UserError(f'[compute] device = "{asked}": torch {torch.__version__} sees none here; use --device auto')
    return asked


def best_precision(device_type: str) -> Literal["fp32", "bf16", "fp16"]:
    """ "auto": half precision where the device computes in it, and does not only store it."""
    if device_type != "cuda":
        return "fp32"
    capability = torch.cuda.get_device_capability()
    if torch.version.hip or capability >= BF16:
        return "bf16"
    return "fp16" if capability >= TENSOR_CORES else "fp32"


class Engine:
    """A run's device, and the one place where gradients are made and taken.

    on  the switches of [compute] as they are in this run: what it asks for, the device has and training has met
    """

    def __init__(self, settings: Compute, chooser: Chooser | None = None) -> None:
        """chooser: of the convolutions' kernels, if not by `settings.kernels`."""
        self.settings = settings
        self.chooser = chooser or Chooser(read_kernels(settings.kernels) if settings.kernels else None)
        self.device_type = pick_device(settings.device)
        distributed.check_device(self.device_type)
        torch.set_num_threads(settings.threads or min(torch.get_num_threads(), usable_cores()))
        if self.device_type == "cpu" and settings.keep_memory:
            keep_memory()
        precision = best_precision(self.device_type) if settings.precision == "auto" else settings.precision
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
        try:
            self.accelerator = Accelerator(mixed_precision=mixed, cpu=self.device_type == "cpu")
        except ValueError as error:
            raise UserError(f'[compute] precision = "{precision}" on {self.device_type}: {error}') from None
        cpu, cuda = self.device_type == "cpu", self.device_type == "cuda"
        self.on: dict[str, bool] = {
            "channels_last": settings.channels_last,
            "tf32": cuda and settings.tf32,
            "lowering": cpu and settings.lowering and settings.compile is not True,  # a compiler sees other kernels
            "fused_adam": (cpu or cuda) and settings.fused_adam,
            "one_pass": settings.one_pass,
            "compile": (cpu or cuda) and settings.compile is True,
            "cuda_graphs": cuda and settings.cuda_graphs,
            "prefetch": cuda and settings.prefetch,
        }
        self._averaged: dict[Any, Callable[[Tensor], Tensor]] = {}  # by optimizer: see processes.averaged
        self._share: dict[Any, float] = {}  # of the learning rate, by optimizer
        self._eps_at: Callable[[int], float] | None = None
        self._clip_norm: float | None = None

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.settings.channels_last else torch.contiguous_format

    def prepare_model(self, model: nn.Module) -> Any:
        """The module on the device, in the run's memory format, precision and kernels. Shares the weights."""
        model = model.to(memory_format=self.memory_format)
        if self.device_type == "cpu":
            mend_instance_norms(model)
        if self.settings.checkpointing:
            model = with_activation_checkpointing(model)
        if self.on["lowering"]:
            model = convs_as_gemm(model, self.chooser)
        model = self.accelerator.prepare_model(model, evaluation_mode=True)  # without DDP, which `optimizer` adds
        if self.precision != "fp32" and hasattr(model, "features"):  # Accelerate sees to forward alone
            autocast = self.accelerator.autocast()
            model.features = convert_outputs_to_fp32(autocast(model.features))
        return model

    def compiled(self, model: nn.Module, steps: int) -> Any:
        """What plays in the model's place for so many steps: the model, compiled if that pays or is asked for.

        Nothing is compiled yet; `compile_step` sees to what happens where that fails.
        """
        if self.settings.compile == "auto" and self.device_type == "cuda" and distributed.world_size() == 1:
            self.on["compile"] = steps >= COMPILE_FROM
        return torch.compile(model, dynamic=False) if self.on["compile"] else model

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The network itself, without what compilation, precision or DDP put around it."""
        found: nn.Module = self.accelerator.unwrap_model(getattr(model, "_orig_mod", model))
        return found

    def optimizer(self, model: nn.Module, settings: Optimizer, lr: float | None = None) -> Any:
        """What moves the model. Adam in one kernel where there is one: torch's default on a CPU takes a fifth of a
        pix2pix step.

        lr: of this model, if not `settings.lr`
        """
        kind, options, lr = optimizers.named(settings.use), settings.arguments, lr or settings.lr
        self.on["fused_adam"] = fused = self.on["fused_adam"] and settings.use in fused_adam.DENSE
        if settings.use in fused_adam.DENSE:
            kind = fused_adam.DENSE[settings.use] if fused and self.device_type == "cpu" else kind
            options["fused"] = fused
        # a graph reads the rate where it lies; and it lies there without one too, for the same bits
        rate = torch.tensor(lr, device=self.device) if fused and self.device_type == "cuda" else lr
        optimizer = kind(model.parameters(), lr=rate, **options)
        self._averaged[optimizer] = distributed.average_gradients(model)
        self._share[optimizer] = lr / settings.lr
        self._eps_at = settings.eps_at if settings.eps_before_correction else None
        self._clip_norm = settings.clip_norm
        return optimizer

    def seed(self, key: int) -> None:
        """Begin torch's random numbers anew. On a CPU for its generator alone: torch.manual_seed asks every device."""
        if self.device_type == "cpu":
            torch.default_generator.manual_seed(key)
        else:
            torch.manual_seed(key)

    def set_rate(self, rate: float, step: int = 0) -> None:
        """The learning rate of this training step, counted from 0, and Adam's eps where that changes with it.

        A network that has a rate of its own keeps it in the same proportion to this one.
        """
        for optimizer, share in self._share.items():
            for group in optimizer.param_groups:
                if self._eps_at:
                    group["eps"] = self._eps_at(step)
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(share * rate)
                else:
                    group["lr"] = share * rate

    def backward_and_step(self, loss: Tensor | Iterable[Tensor], optimizer: Any) -> None:
        """One step of `optimizer` down the gradient of `loss`, a scalar: of its mean over the processes.

        Where scalars are given, their sum is the loss: each is asked for once the gradient of the one before is taken.
        """
        scaler = self.accelerator.scaler
        for part in (loss,) if isinstance(loss, Tensor) else loss:
            part = self._averaged[optimizer](part)
            (part if scaler is None else scaler.scale(part)).backward()
        if self._clip_norm:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], self._clip_norm)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad(set_to_none=True)  # now: the next step's activations find room where they were

    def compile_step(self, objective: Any) -> Step:
        """`objective.step`, as few launches as the device, [compute] and the objective itself allow."""
        step: Step = objective.step
        if self.on["compile"]:
            step = WarmupCompile(
                objective, plain=functools.partial(self._plain, objective), scaler=self.accelerator.scaler
            )
        if not self.on["cuda_graphs"]:
            return step
        obstacles = {
            "the image pool draws as it goes": objective.pool is not None,
            "fp16 decides step by step whether to take it": self.accelerator.scaler is not None,
            "several processes exchange gradients": distributed.world_size() > 1,
            "fused_adam is off, or the optimizer is no Adam": not self.on["fused_adam"],
            "eps_before_correction gives Adam another eps in each step": self._eps_at is not None,
            "checkpointing puts random numbers back as it computes again": self.settings.checkpointing,
        }
        for reason, there in obstacles.items():
            if there:
                self._uncaptured(reason)
                return step
        networks = [player.network for player in objective.players]
        losses = [objective.gan, *(term.loss for term in objective.terms)]
        augmentations = objective.augmentations.of_d.values() if objective.augmentations else ()
        optimizers = [player.optimizer for player in objective.players]
        return CUDAGraphStep(
            step,
            self.recorder(),
            parts=[*networks, *losses, *augmentations],
            optimizers=optimizers,
            given_up=self._uncaptured,
        )

    def recorder(self) -> Recorder:
        return CudaRecorder(self.device)

    def _uncaptured(self, reason: str) -> None:
        self.on["cuda_graphs"] = False
        warnings.warn(f"training without a CUDA graph: {reason}", stacklevel=2)

    def _plain(self, objective: Any, reason: str) -> None:
        self.on["compile"] = False
        for player in objective.players:
            player.network = self.unwrap(player.network)
        warnings.warn(f"training without torch.compile: {reason}", stacklevel=2)

    def prefetch(self, batches: Batches, steps: int) -> contextlib.AbstractContextManager[Batches]:
        """The batches, made ahead where the device would wait for them; a CPU has to make them itself."""
        return Ahead(batches, self._pinned, steps) if self.on["prefetch"] else contextlib.nullcontext(batches)

    def _pinned(self, batch: Batch) -> Batch:
        def pinned(images: Tensor) -> Tensor:
            return images.contiguous(memory_format=self.memory_format).pin_memory()

        own = self.device.index  # each thread has a device of its own, the first one, until it is told another
        with torch.cuda.device(-1 if own is None else own):
            labels = None if batch.labels is None else batch.labels.pin_memory()
            return replace(batch, x=pinned(batch.x), y=pinned(batch.y), labels=labels)

    def move(self, batch: Batch) -> Batch:
        """The batch on the device."""
        aside = self.device_type == "cuda"  # what follows on the device waits for it, and nothing else
        labels, drawn = (
            None if each is None else each.to(self.device, non_blocking=aside) for each in (batch.labels, batch.random)
        )
        x = batch.x.to(self.device, memory_format=self.memory_format, non_blocking=aside)
        y = batch.y.to(self.device, memory_format=self.memory_format, non_blocking=aside)
        return replace(batch, x=x, y=y, labels=labels, random=drawn)

    def describe(self) -> dict[str, Any]:
        """What a result depends on besides the recipe."""
        described: dict[str, Any] = {
            "device": self.device_type,
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "processes": distributed.world_size(),
            "deterministic": self.device_type == "cpu" or self.settings.deterministic,
            "on": [switch for switch, on in self.on.items() if on],
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
