"""The core's own tables of a recipe. Their fields are checked exactly as a component's parameters are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from p2pzoo.contracts import Later

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]


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
    crop_from: Annotated[Literal[0, 1], Later] = 0
    mirror: bool = True
    replacement: Annotated[bool, Later] = False
    order: Annotated[Literal["pytorch", "lua"], Later] = "pytorch"
    zero_biases: Annotated[bool, Later] = False
    pool_size: Natural = 0
    ema: Probability = 0.0
    log_every: Count = 100
    sample_every: Count = 500
    checkpoint_every: Count = 1000

    @property
    def steps(self) -> int:
        return -(-self.images // self.batch_size)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """[optimizer]: Adam (paper §3.3), the same for G and D.

    lr, betas, eps         Adam's; 2e-4 and (0.5, 0.999) in the paper
    eps_before_correction  eps is added to √v, and the whole is corrected for the moments' bias, as in Torch7 and
                           TensorFlow (the faster form in arXiv:1412.6980 §2); else it is added to √v corrected. That
                           differs in the first thousands of steps, for gradients near eps
    schedule               "constant" (the paper's); "linear": constant for the first half, then linearly to 0;
                           "linear-epochs": the same in the 200 steps of the PyTorch code's 100 + 100 epochs, which
                           begin to fall one epoch early and end with one at 0
    """

    lr: Annotated[float, Field(gt=0, le=1)] = 2e-4
    betas: tuple[Probability, Probability] = (0.5, 0.999)
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    eps_before_correction: Annotated[bool, Later] = False
    schedule: Literal["constant", "linear", "linear-epochs"] = "constant"

    def lr_at(self, progress: float) -> float:
        """The rate when this share (0 to 1) of the training images has been seen."""
        if self.schedule == "linear-epochs":  # get_scheduler of networks.py, and train.py, which asks it to step first
            epoch = math.floor(200 * progress + 1e-9) + 1
            return self.lr * max(0.0, 1 - max(0, epoch + 1 - 100) / 101)
        return self.lr if self.schedule == "constant" else self.lr * min(1.0, 2 * (1 - progress))

    def eps_at(self, step: int) -> float:
        """What torch's Adam, which adds it to √v corrected, is to be given in this step, counted from 0."""
        if not self.eps_before_correction:
            return self.eps
        return self.eps / math.sqrt(1 - self.betas[1] ** (step + 1))


@dataclass(frozen=True, kw_only=True)
class Init:
    """[init]: the first weights.

    weights        distribution of convolution weights; norm weights are N(1, 0.02), all biases 0. "own" keeps what
                   the networks' constructors made
    gain           standard deviation of "normal" (0.02 in the paper), gain of "xavier" and "orthogonal"; others: none
    generator      start G from a model.safetensors instead: its own (fine-tuning), or that of a smaller generator which
                   it says it can grow from
    """

    weights: Literal["normal", "xavier", "kaiming", "orthogonal", "own"] = "normal"
    gain: Annotated[float, Field(gt=0, le=10)] = 0.02
    generator: Path | None = None


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
    lowering       on a CPU: convolutions as matrix products where torch's kernels are slower (see lowering.py)
    kernels        on a CPU: a file of `p2pzoo tune` that says which convolutions are computed otherwise. Not part of a
                   run's identity: a run keeps its content, and goes on with it
    fused_adam     Adam in one kernel, on a CPU and on CUDA
    keep_memory    on a CPU: freed memory stays with the process (glibc only). Not part of a run's identity
    one_pass       D judges real and fake images together, where that pays and is seen to be the same (see onepass.py)
    compile        torch.compile of G and D, on a CPU in place of `lowering`. It takes minutes: "auto" is on CUDA
                   alone, in a single process, from 50 000 steps on
    cuda_graphs    on CUDA: the whole step is recorded once and replayed (see graphs.py), with the same bits. Not part
                   of a run's identity
    prefetch       on CUDA: a thread makes the next batches, in pinned memory. Not part of a run's identity
    checkpointing  less memory, more time: activations are computed again in the backward pass (see recompute.py), to
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
