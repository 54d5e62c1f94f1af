"""The core's own tables of a recipe: [train], [optimizer], [init], [compute], [evaluate].

Their fields are checked as the parameters of a component are, and `p2pzoo show train` prints them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from p2pzoo.config.frozen_table import NO_TABLE, FrozenTable
from p2pzoo.plugin import schema
from p2pzoo.plugin.protocols import AddedLater

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1)]

AT_USE_KINDS = ("process", "generator")  # whose parameters can differ where a trained G is used


@dataclass(frozen=True, kw_only=True)
class Train:
    """[train]: how long to train, and how images are prepared. Lengths count images, so that batch sizes compare.

    images            length of the training, in images; the last batch is completed. Give this or `epochs`
    epochs            the same as a number of passes over all training pairs; it becomes images = epochs × pairs
    batch_size        images per training step, over all processes
    jitter            enlarge images by this factor, then crop at a random place to the original size (1: off)
    jitter_kernel     interpolation of the enlargement: "bicubic" as in the PyTorch code; "bilinear-corners" as in the
                      Lua code, which aligns the corner pixels; "area" as in the TensorFlow code, the mean of the area
                      that a new pixel covers; "bilinear"
    crop_from         smallest offset of the random crop, in px; the Lua code rounds up and never takes 0
    mirror            flip x and y together, left to right, with probability 1/2
    replacement       draw each image from all images, as the Lua code does; otherwise every epoch takes each image once
    order             "pytorch": D steps first, and G's loss comes from the updated D. "lua": G's loss comes from D's
                      output before its step, but the gradient flows through the updated weights
    zero_biases       set the biases of all convolutions to 0 before each optimizer step, as the Lua code does
    spectral_norm     networks whose convolutions and linear layers get weights of spectral norm 1 (arXiv:1802.05957)
    d_steps           optimizer steps of D for each step of G. Each takes a new batch, and G takes the last one. All
                      these images count: a training step takes batch_size × d_steps of them
    accumulate        split each batch into this many parts and sum their gradients, to save memory. The result differs
                      by rounding only, unless a layer mixes images (batch norm) or draws random numbers, or a loss
                      compares images of a batch (`relativistic` with its average): it sees those of a part. G
                      translates each image twice: without gradients for the step of D, then with them for its own
    pool_size         show D fake images from a pool of this many earlier ones (0: off)
    ema               decay per step of the moving average of G, which is then evaluated and saved (0: off)
    log_every         images between two lines of metrics.jsonl
    sample_every      images between two sample grids
    checkpoint_every  images between two checkpoints
    """

    images: Count | None = None
    epochs: Annotated[Annotated[float, Field(gt=0, le=1e6)] | None, AddedLater] = None
    batch_size: Count = 1  # the paper's in Tables 1, 3 and 6; it has 10 in Table 2
    jitter: Annotated[float, Field(ge=1, le=4)] = 286 / 256  # paper §6.2: 256 px to 286 px
    jitter_kernel: Literal["bicubic", "bilinear", "bilinear-corners", "area"] = "bicubic"  # as in the PyTorch code
    crop_from: Annotated[Literal[0, 1], AddedLater] = 0  # as in the PyTorch code
    mirror: bool = True  # paper §6.2
    replacement: Annotated[bool, AddedLater] = False  # as in the PyTorch code
    # training/lua_order.py says what "lua" computes
    order: Annotated[Literal["pytorch", "lua"], AddedLater] = "pytorch"
    zero_biases: Annotated[bool, AddedLater] = False  # a leftover of DCGAN in the Lua code: phillipi/pix2pix#55
    # spectral norm is not in pix2pix
    spectral_norm: Annotated[Literal["none", "generator", "discriminator", "both"], AddedLater] = "none"
    d_steps: Annotated[Count, AddedLater] = 1  # paper §3.3: one step of D, then one of G
    accumulate: Annotated[Count, AddedLater] = 1
    pool_size: Natural = 0  # pix2pix has no pool; CycleGAN has 50
    ema: Probability = 0.0  # not in pix2pix
    log_every: Count = 100
    sample_every: Count = 500
    checkpoint_every: Count = 1000

    @property
    def step_images(self) -> int:
        """Images that one training step takes."""
        return self.batch_size * self.d_steps

    @property
    def length(self) -> int:
        """`images`, which `config.load` computes from `epochs`. Raises ValueError before that."""
        if self.images is None:
            raise ValueError("epochs are not resolved to images")
        return self.images

    @property
    def steps(self) -> int:
        """Training steps, which are also the optimizer steps of G."""
        return -(-self.length // self.step_images)

    @property
    def images_seen(self) -> int:
        """Images at the end of the training, with those that complete the last step."""
        return self.steps * self.step_images


ADAM_KEYS = ("betas", "eps", "eps_before_correction")  # keys of [optimizer] that only Adam has; see `Optimizer.options`


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """[optimizer]: Adam as in the paper, or another class of torch.optim. G and D each have one.

    use                    class of torch.optim by its name. Its parameters are further keys of this table
                           (`weight_decay`, `momentum`, ...). A recipe that changes `use` drops those it inherited.
                           Unset parameters have torch's defaults, except betas, which are the paper's
    lr                     learning rate
    lr_discriminator       learning rate of D, if it differs from that of G (arXiv:1706.08500); follows `schedule` too
    betas                  decay rates of Adam's moving averages of the gradient and of its square
    eps                    Adam's term against division by 0
    eps_before_correction  add eps to √v before the bias correction, as Torch7 and TensorFlow do (arXiv:1412.6980 §2),
                           not after it. This matters in the first thousands of steps, for gradients near eps
    clip_norm              maximal norm of the gradient over all weights of a network; longer gradients are scaled down
    schedule               learning rate as a function of the finished share t of the training. "constant".
                           "linear": constant for the first half, then linear to 0. "linear-epochs": the same in the
                           200 steps of the PyTorch code's 100 + 100 epochs, which begins to fall one epoch early and
                           ends with one epoch at 0. "cosine": (1 + cos πt) / 2, torch's CosineAnnealingLR. "step":
                           multiplied by schedule_gamma after every schedule_every, StepLR. "polynomial":
                           (1 - t) ** schedule_power, PolynomialLR. "one-cycle": half cosines from 1/25 up to 1 at
                           t = 0.3 and down to 1/250000 (arXiv:1708.07120). torch's OneCycleLR has its peak one step
                           earlier, and also cycles the momentum
    schedule_gamma         factor of schedule = "step"
    schedule_every         share of the training after which schedule = "step" multiplies the learning rate again
    schedule_power         exponent of schedule = "polynomial"
    """

    use: Annotated[str, AddedLater] = "Adam"  # paper §3.3
    lr: Rate = 2e-4  # paper §3.3
    lr_discriminator: Annotated[Rate | None, AddedLater] = None
    betas: tuple[Probability, Probability] = (0.5, 0.999)  # paper §3.3
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8  # the default of torch and of Torch7
    eps_before_correction: Annotated[bool, AddedLater] = False  # torch's form
    clip_norm: Annotated[Annotated[float, Field(gt=0)] | None, AddedLater] = None  # not in pix2pix
    # the Lua code's is constant; the paper names no schedule
    schedule: Literal["constant", "linear", "linear-epochs", "cosine", "step", "polynomial", "one-cycle"] = "constant"
    schedule_gamma: Annotated[float, Field(ge=0, le=1), AddedLater] = 0.1  # StepLR's default
    schedule_every: Annotated[float, Field(gt=0, le=1), AddedLater] = 1 / 3
    schedule_power: Annotated[float, Field(gt=0), AddedLater] = 1.0  # PolynomialLR's default
    # parameters of the class that `use` names; not a key of recipes: config/optimizers.py fills it
    options: Annotated[tuple[tuple[str, Any], ...], AddedLater] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the class, without the learning rate."""
        return ({"betas": self.betas, "eps": self.eps} if self.use == "Adam" else {}) | dict(self.options)

    @property
    def table(self) -> dict[str, Any]:
        """[optimizer] as a recipe writes it."""
        hidden = ("options",) if self.use == "Adam" else ("options", *ADAM_KEYS)
        return {name: value for name, value in vars(self).items() if name not in hidden} | dict(self.options)

    def lr_at(self, progress: float) -> float:
        """The learning rate after this share (0 to 1) of the training; that of G, if D has its own.

        >>> Optimizer(lr=2e-4, schedule="linear").lr_at(0.75)
        0.0001
        """
        return self.lr * self.schedule_factor(progress)

    def schedule_factor(self, progress: float) -> float:
        """The factor of the learning rate after this share of the training, 0 to 1."""
        match self.schedule:
            case "constant":
                return 1.0
            case "linear":
                return min(1.0, 2 * (1 - progress))
            case "linear-epochs":  # get_scheduler of networks.py; train.py steps it before each epoch
                epoch = math.floor(200 * progress + 1e-9) + 1
                return max(0.0, 1 - max(0, epoch + 1 - 100) / 101)
            case "cosine":
                return _half_cosine(1.0, 0.0, progress)
            case "step":
                return float(self.schedule_gamma ** math.floor(progress / self.schedule_every + 1e-9))
            case "polynomial":
                return float((1 - progress) ** self.schedule_power)
            case "one-cycle":
                start, peak, end = 1 / 25, 0.3, 1 / 25 / 1e4  # OneCycleLR's defaults
                if progress < peak:
                    return _half_cosine(start, 1.0, progress / peak)
                return _half_cosine(1.0, end, (progress - peak) / (1 - peak))

    def eps_at(self, step: int) -> float:
        """The eps to give torch's Adam in this step, counted from 0: torch adds it after the bias correction."""
        if not self.eps_before_correction:
            return self.eps
        return self.eps / math.sqrt(1 - self.betas[1] ** (step + 1))


def _half_cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * t)) / 2


@dataclass(frozen=True, kw_only=True)
class Init:
    """[init]: the initial weights.

    weights        distribution of the weights of convolutions and linear layers. Norm layers get N(1, 0.02), and the
                   biases of all these layers 0. "own" keeps what the networks' constructors draw
    gain           standard deviation of "normal", gain of "xavier" and "orthogonal"; "kaiming" and "own" have none
    generator      model.safetensors to start G from, or an address (zoo:NAME, hf:OWNER/NAME): a model of the same
                   generator (fine-tuning), or of a smaller one that it can grow from
    discriminator  file to start D from, as `p2pzoo import` writes it, or an address
    """

    weights: Literal["normal", "xavier", "kaiming", "orthogonal", "own"] = "normal"  # paper §6.2
    gain: Annotated[float, Field(gt=0, le=10)] = 0.02  # paper §6.2
    generator: Path | None = None
    discriminator: Annotated[Path | None, AddedLater] = None


@dataclass(frozen=True, kw_only=True)
class Compute:
    """[compute]: where and how to compute.

    The run id depends on precision, deterministic, channels_last, tf32, lowering, fused_adam, one_pass and compile.

    device         "auto" takes CUDA, else MPS, else the CPU
    precision      "auto" on CUDA: bf16 if the device computes in it and more than 256×256 pixels (images × height ×
                   width) pass through G at once; for fewer, casts cost more than bf16 saves, and it is fp32 with tf32.
                   fp16 with loss scaling on older devices with tensor cores (compute capability 7.0). Elsewhere fp32.
                   "bf16" on a CPU: convolutions and activations in bf16; weights, their gradients and losses in fp32
    deterministic  on CUDA: use only deterministic kernels, which are slower. The CPU always does
    channels_last  store weights and activations in the channels-last memory format
    tf32           on CUDA: use TensorFloat-32 for matrix products and convolutions in fp32
    threads        CPU threads (0: one per core of the process). Results are bit-identical for the same number only
    lowering       on a CPU: compute convolutions as matrix products where that is faster
    kernels        on a CPU: file of `p2pzoo tune` that chooses how each convolution is computed. A run keeps a copy of
                   it and resumes with that
    fused_adam     Adam with torch's fused kernels. On a CPU each weight is updated in the backward pass, as soon as its
                   gradient is there, so the gradients are never all in memory
    keep_memory    on a CPU: keep freed memory in the process, to use it again (glibc only)
    one_pass       pass real and fake images through D as one batch, if that is faster and gives the same results
    compile        apply torch.compile to G and D; on a CPU it replaces `lowering`. "auto" compiles on CUDA in a single
                   process, from 50 000 steps on, because it takes minutes
    cuda_graphs    on CUDA: record the training step once and replay it, with bit-identical results
    prefetch       on CUDA: prepare the next batches in threads (one for each 4 cores, at most 4), in pinned memory
    store          where decoded and enlarged pairs are kept: "memory"; "disk", for training pairs, in the cache;
                   "stream": nowhere, each pair is read again when it is needed. "auto": memory if all pairs fit into
                   store_megabytes, else the disk up to store_disk_megabytes, else stream. Pairs for evaluation are
                   never written to the disk
    store_megabytes       size of the memory store, in MB, up to which "auto" takes it
    store_disk_megabytes  size of the disk store, in MB, up to which "auto" takes it
    readers        maximal number of threads that read pairs ahead (0: none, for datasets that are not thread-safe)
    checkpointing  recompute activations in the backward pass: less memory, more time, the same values. A run that ran
                   out of memory can resume with it
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    deterministic: bool = False  # deterministic kernels are slower on CUDA
    channels_last: bool = True  # with fused_adam 962 in place of 1066 ms per step (2 cores, 256 px, batch 1)
    tf32: bool = True
    threads: Natural = 0
    lowering: bool = True  # compute/conv_as_gemm.py: 694 in place of 962 ms per step (2 cores, 256 px, batch 1)
    kernels: Path | None = None
    fused_adam: bool = True  # 44 ms in place of 292 ms for 50 million weights on a CPU
    keep_memory: bool = True  # returning memory to the system costs up to a quarter of a step at 256 px
    one_pass: bool = True  # compute/batched_discriminator.py
    compile: Literal["auto"] | bool = "auto"  # on a CPU slower than `lowering`: 20 against 27 steps/s
    cuda_graphs: bool = True  # compute/cuda_graphs.py: at batch 1 a GPU is faster than Python launches its kernels
    prefetch: bool = True
    store: Literal["auto", "memory", "disk", "stream"] = "auto"  # data/store.py
    store_megabytes: Natural = 2000
    store_disk_megabytes: Natural = 40_000
    readers: Natural = 8
    checkpointing: bool = False  # compute/activation_checkpointing.py: costs a second forward pass


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """[evaluate]: what to measure after training. Not part of the run id: metrics can be added later.

    test_mode   "paper": dropout on, and norms use the statistics of the image itself, one image at a time (paper §3.3);
                "eval": dropout off, running statistics
    test_batch  in test mode "paper": so many images are translated together, and norms use the statistics of all
    weights     of G: "last", those after the last step; "average", their average over the training, which every run
                keeps (training/kept_average.py)
    at          also measure G as it was after so many images, each in increasing order. A metric NAME is there as
                NAME@IMAGES. The run must be trained with this key: it keeps the weights
    process     parameters of the process that differ from its table, such as { steps = 4 }: those that training does
                not depend on
    generator   the same of the generator
    also        further translations to measure: tables [evaluate.also.NAME] with the keys of [metrics.NAME.evaluate].
                A metric METRIC is there as METRIC@NAME
    split       split to measure on
    samples     number of validation images in each sample grid
    """

    test_mode: Literal["paper", "eval"] = "paper"  # how the paper's numbers were measured
    test_batch: Count = 1  # paper §3.3
    weights: Literal["last", "average"] = "last"
    at: tuple[Count, ...] = ()
    process: FrozenTable = NO_TABLE
    generator: FrozenTable = NO_TABLE
    also: FrozenTable = NO_TABLE
    split: Literal["test", "val"] = "test"
    samples: Count = 4


@dataclass(frozen=True, kw_only=True)
class EvaluateMetric:
    """[metrics.NAME.evaluate]: where a metric measures other translations than [evaluate] says.

    test_mode   as in [evaluate]
    test_batch  as in [evaluate]
    weights     as in [evaluate]
    at          images after which G was as this metric measures it; the run must be trained with this key
    process     as in [evaluate], on top of it
    generator   as in [evaluate], on top of it
    """

    test_mode: Literal["paper", "eval"] | None = None
    test_batch: Count | None = None
    weights: Literal["last", "average"] | None = None
    at: Count | None = None
    process: FrozenTable | None = None
    generator: FrozenTable | None = None


@dataclass(frozen=True, kw_only=True)
class Translations:
    """Which translations are measured: those of G with these weights, in this test mode.

    at                  images after which G was so; None: at the end of the training
    process, generator  their parameters that differ from those of the training
    """

    test_mode: Literal["paper", "eval"] = "paper"
    test_batch: int = 1
    weights: Literal["last", "average"] = "last"
    at: int | None = None
    process: FrozenTable = NO_TABLE
    generator: FrozenTable = NO_TABLE

    def changed(self, values: Mapping[str, Any]) -> Translations:
        """With these keys of [metrics.NAME.evaluate]. Parameters of the process and of the generator are added.

        >>> fewer = Translations(process=FrozenTable(steps=4)).changed({"weights": "average", "process": {"eta": 1.0}})
        >>> fewer.weights, fewer.process
        ('average', {'steps': 4, 'eta': 1.0})
        """
        merged = {name: FrozenTable(getattr(self, name) | values[name]) for name in AT_USE_KINDS if name in values}
        return replace(self, **{**values, **merged})

    @property
    def at_use(self) -> dict[str, FrozenTable]:
        """{"process" or "generator": its parameters that differ}, without empty ones."""
        return {name: table for name in AT_USE_KINDS if (table := getattr(self, name))}

    def protocol(self) -> dict[str, Any]:
        """What the protocol of a number says of them; what 0.1.0 did not have is left out where it is the default.

        >>> Translations(weights="average").protocol()
        {'test_mode': 'paper', 'test_batch': 1, 'weights': 'average'}
        """
        return {
            "test_mode": self.test_mode,
            **({"test_batch": self.test_batch} if self.test_mode == "paper" else {}),
            **({"weights": self.weights} if self.weights != "last" else {}),
            **({"at": self.at} if self.at is not None else {}),
            **{name: schema.to_jsonable(table) for name, table in self.at_use.items()},
        }
