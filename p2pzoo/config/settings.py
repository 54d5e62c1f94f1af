"""The core's own tables of a recipe. Their fields are checked exactly as a component's parameters are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from p2pzoo.plugin.protocols import AddedLater

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Train:
    """[train]: how long and on what. Lengths are in images seen, so that batch sizes compare.

    images            training length; the last batch is completed
    batch_size        images per step, over all processes (1 in the paper; 10 in its Table 2)
    jitter            enlarge by this factor, then crop back at a random place (paper §3.3: 286/256; 1 is off)
    jitter_kernel     resampling of the enlargement: "bicubic" as in the PyTorch code; "bilinear-corners" as in Lua, the
                      corners' pixels staying where they are; "area" as in the TensorFlow code: what each new pixel
                      covers; "bilinear"
    crop_from         the least offset of the crop in px: 1 in Lua, which rounds up and never crops at the edge
    mirror            flip left and right with probability 1/2, x and y together (§3.3)
    replacement       each image is drawn anew from all of them, as in Lua; else every epoch shows each one once
    order             "pytorch": D moves, then G meets the D that has moved. "lua": G hears what D said before its move,
                      and learns by the weights that D has after it (see objective.LuaObjective)
    zero_biases       the biases of all convolutions are set to 0 at the start of each move, as in Lua
    spectral_norm     whose convolutions and linear layers have weights of spectral norm 1 (arXiv:1802.05957; see
                      spectral.py)
    d_steps           moves of D before each one of G, each on a fresh batch; G moves on the last of them. Images count
                      as they are drawn, for whomever: a step sees batch_size × d_steps of them, so that G moves
                      images / (batch_size × d_steps) times
    accumulate        a batch is taken in this many parts, whose gradients are summed: the same step in less memory,
                      up to rounding, where nothing looks at several images (batch norm does) and nothing is drawn.
                      G translates each image twice: without gradients for D's move, anew for its own
    pool_size         D sees fakes from a pool of this many earlier ones (0: off, as in pix2pix)
    ema               decay per step of the averaged G that is evaluated and saved (0: off)
    log_every         images between two lines of metrics.jsonl
    sample_every      images between two sample grids
    checkpoint_every  images between two checkpoints
    """

    images: Count
    batch_size: Count = 1
    jitter: Annotated[float, Field(ge=1, le=4)] = 286 / 256
    jitter_kernel: Literal["bicubic", "bilinear", "bilinear-corners", "area"] = "bicubic"
    crop_from: Annotated[Literal[0, 1], AddedLater] = 0
    mirror: bool = True
    replacement: Annotated[bool, AddedLater] = False
    order: Annotated[Literal["pytorch", "lua"], AddedLater] = "pytorch"
    zero_biases: Annotated[bool, AddedLater] = False
    spectral_norm: Annotated[Literal["none", "generator", "discriminator", "both"], AddedLater] = "none"
    d_steps: Annotated[Count, AddedLater] = 1
    accumulate: Annotated[Count, AddedLater] = 1
    pool_size: Natural = 0
    ema: Probability = 0.0
    log_every: Count = 100
    sample_every: Count = 500
    checkpoint_every: Count = 1000

    @property
    def step_images(self) -> int:
        """Images that one step draws."""
        return self.batch_size * self.d_steps

    @property
    def steps(self) -> int:
        """Of training: as many moves of G."""
        return -(-self.images // self.step_images)

    @property
    def images_seen(self) -> int:
        """Images at the end, with those that complete the last step."""
        return self.steps * self.step_images


ADAMS_OWN = ("betas", "eps", "eps_before_correction")  # of [optimizer]: of other classes they are among `options`


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """[optimizer]: Adam (paper §3.3), the same for G and D, or another class of torch.optim.

    use                    the class by its name in torch.optim. Parameters of it stand beside `use` (`weight_decay`,
                           `momentum`, ...), and those that were inherited for another class are dropped; what is not
                           set is as in torch, but the betas, which are the paper's wherever a class has two
    lr, betas, eps         Adam's; 2e-4 and (0.5, 0.999) in the paper
    lr_discriminator       D's rate where it has its own (two time scales: arXiv:1706.08500); follows `schedule` too
    eps_before_correction  eps is added to √v, and the whole is corrected for the moments' bias, as in Torch7 and
                           TensorFlow (the faster form in arXiv:1412.6980 §2); else it is added to √v corrected. That
                           differs in the first thousands of steps, for gradients near eps
    clip_norm              a gradient longer than this, over all weights of a network, is brought to this length
    schedule               what becomes of the rates, by the share t of training that is done:
                           "constant" (the paper's); "linear": constant for the first half, then linearly to 0;
                           "linear-epochs": the same in the 200 steps of the PyTorch code's 100 + 100 epochs, which
                           begin to fall one epoch early and end with one at 0; "cosine": (1 + cos πt) / 2, as torch's
                           CosineAnnealingLR; "step": times schedule_gamma after every schedule_every of training, as
                           StepLR; "polynomial": (1 - t) ** schedule_power, as PolynomialLR; "one-cycle": from 1/25 up
                           to 1 at t = 0.3 and down to 1/250000, on half cosines, as OneCycleLR, whose peak is a step
                           earlier and which cycles the momentum, too (arXiv:1708.07120)
    """

    use: Annotated[str, AddedLater] = "Adam"
    lr: Rate = 2e-4
    lr_discriminator: Annotated[Rate | None, AddedLater] = None
    betas: tuple[Probability, Probability] = (0.5, 0.999)
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    eps_before_correction: Annotated[bool, AddedLater] = False
    clip_norm: Annotated[Annotated[float, Field(gt=0)] | None, AddedLater] = None
    schedule: Literal["constant", "linear", "linear-epochs", "cosine", "step", "polynomial", "one-cycle"] = "constant"
    schedule_gamma: Annotated[float, Field(ge=0, le=1), AddedLater] = 0.1
    schedule_every: Annotated[float, Field(gt=0, le=1), AddedLater] = 1 / 3
    schedule_power: Annotated[float, Field(gt=0), AddedLater] = 1.0
    options: Annotated[
        tuple[tuple[str, Any], ...], AddedLater
    ] = ()  # of the class: no key of a recipe: speed/optimizers.py

    @property
    def arguments(self) -> dict[str, Any]:
        """What the class is given besides the weights and their rate."""
        return ({"betas": self.betas, "eps": self.eps} if self.use == "Adam" else {}) | dict(self.options)

    @property
    def table(self) -> dict[str, Any]:
        """[optimizer] as a recipe writes it."""
        others = () if self.use == "Adam" else ADAMS_OWN
        own = {name: value for name, value in vars(self).items() if name not in ("options", *others)}
        return own | dict(self.options)

    def lr_at(self, progress: float) -> float:
        """The rate (of G, where D has its own) when this share (0 to 1) of the training images has been seen."""
        return self.lr * self.share_at(progress)

    def share_at(self, progress: float) -> float:
        """What `schedule` leaves of the rates then."""
        match self.schedule:
            case "constant":
                return 1.0
            case "linear":
                return min(1.0, 2 * (1 - progress))
            case "linear-epochs":  # get_scheduler of networks.py, and train.py, which asks it to step first
                epoch = math.floor(200 * progress + 1e-9) + 1
                return max(0.0, 1 - max(0, epoch + 1 - 100) / 101)
            case "cosine":
                return _half_cosine(1.0, 0.0, progress)
            case "step":
                return float(self.schedule_gamma ** math.floor(progress / self.schedule_every + 1e-9))
            case "polynomial":
                return float((1 - progress) ** self.schedule_power)
            case "one-cycle":
                start, peak, end = 1 / 25, 0.3, 1 / 25 / 1e4
                if progress < peak:
                    return _half_cosine(start, 1.0, progress / peak)
                return _half_cosine(1.0, end, (progress - peak) / (1 - peak))

    def eps_at(self, step: int) -> float:
        """What torch's Adam, which adds it to √v corrected, is to be given in this step, counted from 0."""
        if not self.eps_before_correction:
            return self.eps
        return self.eps / math.sqrt(1 - self.betas[1] ** (step + 1))


def _half_cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * t)) / 2


@dataclass(frozen=True, kw_only=True)
class Init:
    """[init]: the first weights.

    weights        distribution of convolution weights; norm weights are N(1, 0.02), all biases 0. "own" keeps what
                   the networks' constructors made
    gain           standard deviation of "normal" (0.02 in the paper), gain of "xavier" and "orthogonal"; others: none
    generator      start G from a model.safetensors instead: its own (fine-tuning), or that of a smaller generator which
                   it says it can grow from
    discriminator  start D from a file that `p2pzoo import` made
    """

    weights: Literal["normal", "xavier", "kaiming", "orthogonal", "own"] = "normal"
    gain: Annotated[float, Field(gt=0, le=10)] = 0.02
    generator: Path | None = None
    discriminator: Annotated[Path | None, AddedLater] = None


@dataclass(frozen=True, kw_only=True)
class Compute:
    """[compute]: how it is computed, not what.

    device         "auto" takes CUDA, else MPS, else the CPU. Not part of a run's identity, nor is `threads`
    precision      "auto" is bf16 on CUDA cards that compute in it, fp16 with scaled losses on older ones with tensor
                   cores (from capability 7.0), and fp32 elsewhere
    deterministic  on CUDA: only kernels that give the same bits every time (slower). CPU runs always do
    channels_last  memory format of the networks
    tf32           on CUDA: TensorFloat-32 in fp32 matrix products and convolutions
    threads        CPU threads (0: as many as the process has cores). The same bits come only from the same number
    lowering       on a CPU: convolutions as matrix products where torch's kernels are slower (speed/lowering.py)
    kernels        on a CPU: a file of `p2pzoo tune` that says which convolutions are computed otherwise. Not part of a
                   run's identity: a run keeps its content, and goes on with it
    fused_adam     Adam in one kernel, on a CPU and on CUDA
    keep_memory    on a CPU: freed memory stays with the process (glibc only). Not part of a run's identity
    one_pass       D judges real and fake images together, where it pays and is seen to be the same (speed/onepass.py)
    compile        torch.compile of G and D, on a CPU in place of `lowering`. It takes minutes: "auto" is on CUDA
                   alone, in a single process, from 50 000 steps on
    cuda_graphs    on CUDA: the whole step is recorded once and replayed (speed/graphs.py), the same bits. Not part of a
                   run's identity
    prefetch       on CUDA: a thread makes the next batches, in pinned memory. Not part of a run's identity
    store          where a split's pairs are kept once they are decoded and enlarged; the numbers are the same, and none
                   of these four is part of a run's identity. "memory"; "disk": those for training, in the cache
                   (see data/store_file.py); "stream": nowhere, each is read anew whenever its turn comes. "auto":
                   memory where all of them fit into store_megabytes; else the disk, up to store_disk_megabytes and
                   where there is room for them; else they are streamed. Pairs for evaluation never go to the disk
    store_megabytes, store_disk_megabytes  see `store`
    readers        at most so many threads read pairs ahead (0: none, for a dataset that several cannot read at once)
    checkpointing  less memory, more time: activations are computed again in the backward pass (speed/recompute.py), to
                   the same values. Not part of a run's identity, so a run that lacked memory can go on with it
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    deterministic: bool = False
    channels_last: bool = True
    tf32: bool = True
    threads: Natural = 0
    lowering: bool = True
    kernels: Path | None = None
    fused_adam: bool = True
    keep_memory: bool = True
    one_pass: bool = True
    compile: Literal["auto"] | bool = "auto"
    cuda_graphs: bool = True
    prefetch: bool = True
    store: Literal["auto", "memory", "disk", "stream"] = "auto"
    store_megabytes: Natural = 2000
    store_disk_megabytes: Natural = 40_000
    readers: Natural = 8
    checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """[evaluate]: what is measured after training. Not part of a run's identity: a metric can be added later.

    test_mode  "paper": dropout on and statistics of the image itself, one image at a time (paper §3.4);
               "eval": running statistics, no dropout
    split      the split that is measured
    samples    how many validation images the sample grids show
    """

    test_mode: Literal["paper", "eval"] = "paper"
    split: Literal["test", "val"] = "test"
    samples: Count = 4
