"""Device, precision, memory format and optimizers of one run. The models and losses are built elsewhere.

Accelerate moves the models to the device and handles mixed precision.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from p2pzoo.compute.bf16_on_cpu import has_bf16_products
from p2pzoo.compute.conv_as_gemm import AlgorithmChooser, convs_as_gemm
from p2pzoo.compute.cuda_graphs import CUDAGraphRecorder, CUDAGraphStep, GraphRecorder, TrainStep, WarmupCompile
from p2pzoo.compute.norm_gradients import fix_instance_norms, speed_up_batch_norms
from p2pzoo.compute.prefetch import BatchSequence, Prefetcher, SplitBatches, count_workers
from p2pzoo.compute.tuned_kernels import read_recipe_kernels
from p2pzoo.config import optimizers
from p2pzoo.config.settings import Compute, Optimizer
from p2pzoo.plugin.batch import Batch
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.external_weights import own_parameters

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameter numbers of mallopt, from malloc.h
# Compiling takes minutes and saves milliseconds per step: 2 minutes are 2.4 ms for each of 50 000 steps.
MIN_STEPS_TO_COMPILE = 50_000
TENSOR_CORE_CAPABILITY, BF16_CAPABILITY = (7, 0), (8, 0)  # Volta, Ampere
# Up to here casts of weights and gradients to bf16 and back move more memory than bf16 saves in the convolutions: 716
# against 483 MB in a step of the U-Net of width 64 with one image of 256 px (counted; no GPU has measured it).
MAX_TF32_PIXELS = 256 * 256


def pick_device(requested: str) -> str:
    """Return the requested device type; "auto" picks the first available of "cuda", "mps" and "cpu".

    Raises UserError if the requested device is not available.

    >>> pick_device("cpu")
    'cpu'
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if requested == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if requested not in available:
        number = requested.removeprefix("cuda:")
        one_gpu = f"; CUDA_VISIBLE_DEVICES={number} selects one GPU" if number.isdecimal() else ""
        raise UserError(f'device = "{requested}": give "auto", "cpu", "cuda" or "mps"{one_gpu}')
    if not available[requested]:
        name, is_built = {
            "cuda": ("CUDA", torch.version.cuda is not None or torch.version.hip is not None),
            "mps": ("Apple", torch.backends.mps.is_built()),
        }[requested]
        reason = f"torch {torch.__version__}" if is_built else f"torch {torch.__version__} is built without {name}"
        raise UserError(f'device = "{requested}": no {name} device found ({reason}): use --device auto')
    return requested


def best_memory_format(device_type: str) -> torch.memory_format:
    """Channels-last where it is faster. On Apple's devices batch norm's gradients are wrong in it, or it crashes
    (pytorch issue 175189).

    >>> best_memory_format("mps")
    torch.contiguous_format
    """
    return torch.channels_last if device_type in ("cpu", "cuda") else torch.contiguous_format


def best_precision(
    device_type: str, pixels: int | None = None, *, tf32: bool = True
) -> Literal["fp32", "bf16", "fp16"]:
    """Return the precision that "auto" stands for: half precision only on devices with arithmetic units for it.

    pixels  images × height × width of one pass through G; None if it is not known. With few of them, and TF32, a device
            is faster in fp32 than in bf16
    tf32    whether fp32 means TF32 where a device has it

    >>> best_precision("cpu")
    'fp32'
    """
    if device_type != "cuda":
        return "fp32"
    capability = torch.cuda.get_device_capability()
    if torch.version.hip:
        return "bf16"
    if capability >= BF16_CAPABILITY:
        has_few_pixels = pixels is not None and pixels <= MAX_TF32_PIXELS
        return "fp32" if tf32 and has_few_pixels else "bf16"
    return "fp16" if capability >= TENSOR_CORE_CAPABILITY else "fp32"


def _say_nothing(_: str) -> None: ...


class Engine:
    """The device of a run, and the only place that computes gradients and takes optimizer steps.

    enabled  whether each switch of [compute] is active in this run: the recipe asks for it, the device supports it,
             and nothing in training has turned it off

    >>> engine = Engine(Compute(device="cpu"))
    >>> engine.describe()["precision"]
    'fp32'
    """

    def __init__(
        self, settings: Compute, chooser: AlgorithmChooser | None = None, *, pixels: int | None = None
    ) -> None:
        """Set torch's global options (threads, tf32, determinism) and create the Accelerator.

        settings  the table [compute]
        chooser   picks the algorithms of the convolutions; read from the file `settings.kernels` if not given
        pixels    images × height × width of one pass through G, if it is known: `best_precision` depends on it

        Raises UserError if the device or the precision is not available.
        """
        self.settings = settings
        self.chooser = chooser or AlgorithmChooser(read_recipe_kernels(settings))
        self.device_type = pick_device(settings.device)
        distributed.check_device(self.device_type)
        torch.set_num_threads(settings.threads or min(torch.get_num_threads(), count_usable_cores()))
        if self.device_type == "cpu" and settings.keep_memory:
            keep_freed_memory()
        precision = settings.precision
        if precision == "auto":
            precision = best_precision(self.device_type, pixels, tf32=settings.tf32)
        if precision == "fp16" and self.device_type != "cuda":
            raise UserError(f'[compute] precision = "fp16" needs CUDA, this run is on {self.device_type}')
        self.precision = precision
        if self.device_type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = settings.tf32
            torch.backends.cudnn.allow_tf32 = settings.tf32
            torch.backends.cudnn.benchmark = (
                False  # it chooses kernels by timing, so results would vary from run to run
            )
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(settings.deterministic)
            # It doubles the launches, to make errors visible.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        AcceleratorState._reset_state(reset_partial_state=True)  # one process may train several runs in sequence
        mixed = "no" if precision == "fp32" else precision
        try:
            self.accelerator = Accelerator(mixed_precision=mixed, cpu=self.device_type == "cpu")
        except ValueError as error:
            raise UserError(f'[compute] precision = "{precision}" on {self.device_type}: {error}') from None
        cpu, cuda = self.device_type == "cpu", self.device_type == "cuda"
        self.enabled: dict[str, bool] = {
            "channels_last": settings.channels_last and best_memory_format(self.device_type) == torch.channels_last,
            "tf32": cuda and settings.tf32,
            "lowering": cpu
            and settings.lowering
            and settings.compile is not True,  # torch.compile picks its own kernels
            "fused_adam": (cpu or cuda) and settings.fused_adam,
            "one_pass": settings.one_pass,
            "compile": (cpu or cuda) and settings.compile is True,
            "cuda_graphs": cuda and settings.cuda_graphs,
            "prefetch": cuda and settings.prefetch,
        }
        self._prefetcher: Prefetcher[Any] | None = None
        self._average_gradients: dict[Any, Callable[[Tensor], Tensor]] = {}  # per optimizer, see distributed.py
        self._lr_ratios: dict[Any, float] = {}  # per optimizer: its learning rate / settings.lr
        self._eps_at: Callable[[int], float] | None = None
        self._clip_norm: float | None = None

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.enabled["channels_last"] else torch.contiguous_format

    def prepare_model(self, model: nn.Module) -> Any:
        """Return the module on the device, with the memory format, precision and kernels of the run.

        The result shares its parameters and buffers with `model`.
        """
        model = model.to(memory_format=self.memory_format)
        if self.device_type == "cpu":
            fix_instance_norms(model)
        if self.settings.checkpointing:
            model = with_activation_checkpointing(model)
        if self.enabled["lowering"]:
            speed_up_batch_norms(model)
            model = convs_as_gemm(model, self.chooser)
        # evaluation_mode: without DDP, average_gradients wraps the loss instead. device_placement: to find its default,
        # Accelerate imports torch.distributed.tensor, which takes a second
        model = self.accelerator.prepare_model(model, device_placement=True, evaluation_mode=True)
        if self.precision != "fp32" and hasattr(model, "features"):  # Accelerate wraps only forward
            autocast = self.accelerator.autocast()
            model.features = convert_outputs_to_fp32(autocast(model.features))
        return model

    def maybe_compile(self, model: nn.Module, steps: int) -> Any:
        """Return the model wrapped in torch.compile, if [compute] asks for it or the run is long enough.

        Compilation happens at the first call; `compile_step` handles its failure.

        model  network that `prepare_model` returned
        steps  training steps of the whole run
        """
        if self.settings.compile == "auto" and self.device_type == "cuda" and distributed.world_size() == 1:
            self.enabled["compile"] = steps >= MIN_STEPS_TO_COMPILE
        return torch.compile(model, dynamic=False) if self.enabled["compile"] else model

    def unwrap(self, model: nn.Module) -> nn.Module:
        """Return the network without the wrappers of torch.compile, mixed precision and DDP."""
        network: nn.Module = getattr(model, "_orig_mod", model)
        if isinstance(network, nn.parallel.DistributedDataParallel):
            network = network.module
        return network

    def build_optimizer(
        self, model: nn.Module, settings: Optimizer, lr: float | None = None, losses: Sequence[nn.Module] = ()
    ) -> Any:
        """Return the optimizer of a model, without its external weights, and of the parameters of its side's losses.

        Adam and AdamW are fused where the device has a fused kernel.
        torch's default Adam takes a fifth of a pix2pix step on a CPU.

        settings  the table [optimizer]
        lr        learning rate of this model; `settings.lr` if not given
        """
        kind, options, lr = optimizers.light_class(settings.use), settings.arguments, lr or settings.lr
        self.enabled["fused_adam"] = fused = self.enabled["fused_adam"] and settings.use in fused_adam.DENSE_OPTIMIZERS
        if settings.use in fused_adam.DENSE_OPTIMIZERS:
            kind = fused_adam.DENSE_OPTIMIZERS[settings.use] if fused and self.device_type == "cpu" else kind
            options["fused"] = fused
        self._eps_at = settings.eps_at if settings.eps_before_correction else None
        if self._eps_at and fused and self.device_type == "cuda":
            kind, self._eps_at = fused_adam.RecordableEpsAdam, None
        # A CUDA graph reads the learning rate from a tensor. It is a tensor without a graph too, so that results are
        # bit-identical.
        rate = torch.tensor(lr, device=self.device) if fused and self.device_type == "cuda" else lr
        of_losses = [parameter for loss in losses for parameter in loss.parameters() if parameter.requires_grad]
        optimizer = kind([*own_parameters(model).values(), *of_losses], lr=rate, **options)
        if isinstance(optimizer, fused_adam.Dense):
            optimizer.allocate_moments()
        owner = nn.ModuleList([model, *losses]) if of_losses else model
        self._average_gradients[optimizer] = distributed.average_gradients(owner)
        self._lr_ratios[optimizer] = lr / settings.lr
        self._clip_norm = settings.clip_norm
        return optimizer

    def seed(self, key: int) -> None:
        """Seed torch's generators of the CPU and of this device, as torch.manual_seed seeds those of all devices.

        It is called in every step. torch.manual_seed takes ten times as long: it asks for each kind of device.
        """
        torch.default_generator.manual_seed(key)
        if self.device_type == "cuda":
            index = self.device.index
            generators = torch.cuda.default_generators
            generators[torch.cuda.current_device() if index is None else index].manual_seed(key)
        elif self.device_type == "mps":
            torch.mps.manual_seed(key)

    def set_lr(self, lr: float, step: int = 0) -> None:
        """Set the learning rate of this training step, and Adam's eps if it changes from step to step.

        A network with another base learning rate keeps its ratio to this one.

        lr    learning rate of the schedule at this step
        step  number of the training step, from 0; only `eps_before_correction` uses it
        """
        for optimizer, ratio in self._lr_ratios.items():
            for group in optimizer.param_groups:
                if self._eps_at:
                    group["eps"] = self._eps_at(step)
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(ratio * lr)
                else:
                    group["lr"] = ratio * lr

    def backward_and_step(self, loss: Tensor | Iterable[Tensor], optimizer: Any) -> None:
        """Compute the gradient of the loss, averaged over the processes, and take one optimizer step.

        loss       scalar, or scalars whose sum is the loss: the next one is requested after the backward pass of the
                   one before, so that only one graph is in memory
        optimizer  optimizer that `build_optimizer` returned
        """
        scaler = self.accelerator.scaler
        if isinstance(loss, Tensor) and self._steps_in_backward(optimizer):
            optimizer.step_in_backward(loss)
            return
        for part in (loss,) if isinstance(loss, Tensor) else loss:
            part = self._average_gradients[optimizer](part)
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
        optimizer.zero_grad(set_to_none=True)  # now, so that the activations of the next step reuse this memory

    def _steps_in_backward(self, optimizer: Any) -> bool:
        """Whether weights are updated inside the backward pass, so that the gradients are never all in memory."""
        needs_all_gradients = self._clip_norm or self.accelerator.scaler or distributed.world_size() > 1
        return isinstance(optimizer, fused_adam.Dense) and not needs_all_gradients and not self.settings.checkpointing

    def compile_step(self, objective: Any, note: Callable[[str], None] = _say_nothing) -> TrainStep:
        """Return `objective.step`, compiled and recorded as a CUDA graph where [compute] and the objective allow it.

        note  prints a line of progress: the first step says when compiling begins, and how long it took

        Warns with the reason if a graph was requested and cannot be recorded.
        """
        prepared_step: TrainStep = objective.prepared_step
        step: TrainStep = objective.step
        if self.enabled["compile"]:
            prepared_step = WarmupCompile(
                objective,
                on_failure=functools.partial(self._disable_compile, objective),
                scaler=self.accelerator.scaler,
                note=note,
            )
            step = _preparing(objective.prepare, prepared_step)
        if not self.enabled["cuda_graphs"]:
            return step
        obstacles = {
            "the image pool draws random numbers on the CPU in each step": objective.pool is not None,
            "several processes exchange gradients": distributed.world_size() > 1,
            "fused_adam is off, or the optimizer is not Adam or AdamW": not self.enabled["fused_adam"],
            "activation checkpointing resets the random state when it recomputes a block": self.settings.checkpointing,
        }
        for reason, is_present in obstacles.items():
            if is_present:
                self._disable_graphs(reason)
                return step
        networks = [trainable.network for trainable in objective.trainables]
        losses = [objective.gan, *(term.loss for term in objective.terms)]
        augmentations = objective.augmentations
        of_pairs = augmentations.pair_augmentations.values() if augmentations else ()
        of_D = augmentations.discriminator_augmentations.values() if augmentations else ()
        optimizers = [trainable.optimizer for trainable in objective.trainables]
        return CUDAGraphStep(
            prepared_step,
            self.build_recorder(),
            prepare=objective.prepare,
            parts=[*networks, *losses, *of_D, *([objective.process] if objective.process else [])],
            prepare_parts=[*of_pairs],
            optimizers=optimizers,
            on_failure=functools.partial(self._give_up_recording, optimizers),
        )

    def build_recorder(self) -> GraphRecorder:
        """Return the recorder of this device. Tests replace this method to record without CUDA."""
        return CUDAGraphRecorder(self.device, pause=self._wait_for_prefetch)

    def _wait_for_prefetch(self) -> None:
        if self._prefetcher:
            self._prefetcher.wait()

    def _give_up_recording(self, optimizers: Sequence[Any], reason: str) -> None:
        scaler = self.accelerator.scaler
        if scaler is not None:  # the recording may have ended inside a step
            scaler.update(scaler.get_scale())
            for optimizer in optimizers:
                for name in ("grad_scale", "found_inf"):  # the scaler sets them while a fused optimizer takes a step
                    vars(optimizer).pop(name, None)
        self._disable_graphs(reason)

    def _disable_graphs(self, reason: str) -> None:
        self.enabled["cuda_graphs"] = False
        warnings.warn(f"training without a CUDA graph: {reason}", stacklevel=2)

    def _disable_compile(self, objective: Any, reason: str) -> None:
        self.enabled["compile"] = False
        for trainable in objective.trainables:
            trainable.network = self.unwrap(trainable.network)
        warnings.warn(f"training without torch.compile: {reason}", stacklevel=2)

    def prefetch(self, batches: SplitBatches, steps: int) -> contextlib.AbstractContextManager[BatchSequence]:
        """Return a context manager over the same batches, which threads prepare in advance on CUDA.

        There they are stored values in pinned memory, to be scaled on the device. On a CPU the batches are returned as
        they are: the threads would compete with training for the cores.

        batches  batches of the run by step
        steps    number of the run's steps; no batch is prepared after the last
        """
        if not self.enabled["prefetch"]:
            return contextlib.nullcontext(batches)
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size()))  # on this machine: torchrun's
        self._prefetcher = Prefetcher(
            batches.read,
            lambda step, pairs: self._pin(batches.make_stored(step, pairs)),
            end=steps,
            workers=count_workers(count_usable_cores() // processes),
        )
        return self._prefetcher

    def _pin(self, batch: Batch) -> Batch:
        """The batch in pinned memory. Runs in the prefetch threads."""
        index = self.device.index  # the current device is per thread, and is 0 in a new thread
        with torch.cuda.device(-1 if index is None else index):
            tensors = {name: tensor.pin_memory() for name, tensor in batch.tensors().items()}
        return replace(batch, **tensors)

    def to_device(self, batch: Batch) -> Batch:
        """Return the batch on the device, images in the memory format of the run."""
        non_blocking = self.device_type == "cuda"  # later kernels of the stream wait for the copy; Python does not
        tensors = {name: t.to(self.device, non_blocking=non_blocking) for name, t in batch.tensors().items()}
        for name in {"x", "y", "z"} & tensors.keys():  # on the device: on the host it takes a copy out of pinned memory
            tensors[name] = tensors[name].to(self.device, memory_format=self.memory_format)
        return replace(batch, **tensors)

    def describe(self) -> dict[str, Any]:
        """Return what a result depends on besides the recipe: device, precision, threads, active switches.

        env.json of a run stores it.
        """
        described: dict[str, Any] = {
            "device": self.device_type,
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "processes": distributed.world_size(),
            "deterministic": self.device_type == "cpu" or self.settings.deterministic,
            "on": [switch for switch, is_enabled in self.enabled.items() if is_enabled],
        }
        if self.device_type == "cuda":
            described["gpu"] = torch.cuda.get_device_name()
        if self.device_type == "cpu" and self.precision == "bf16":
            described["products"] = "fp32" if has_bf16_products() is False else "bf16"
        return described


def _preparing(prepare: Callable[[Batch], Batch], step: TrainStep) -> TrainStep:
    """The training step that prepares its batch first."""
    return lambda batch, number: step(prepare(batch), number)


def count_usable_cores() -> int:
    """Return the number of cores that this process may use, by its CPU affinity and its cgroup quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no cgroups v2, or no limit ("max")
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the rest of the process. Does nothing without glibc.

    A step frees and allocates gigabytes. By default glibc returns blocks of 32 MiB and more to the system, which has
    to clear their pages at the next allocation: up to a quarter of a step at 256 px.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Context manager in which the model's parameters get no gradients; gradients still flow through to its input.

    >>> D = nn.Linear(2, 1)
    >>> with frozen(D):
    ...     D.weight.requires_grad
    False
    >>> D.weight.requires_grad
    True
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
