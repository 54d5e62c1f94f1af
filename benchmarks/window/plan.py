"""The stages of the window with their budgets, and the sizes of everything in it: full, and toy for rehearsals."""

from __future__ import annotations

from dataclasses import dataclass

SECONDS = 585  # of the whole window; whoever has 600 s needs some to start the command and to copy the folder
PACK_SECONDS = 15  # for the summary at the end


@dataclass(frozen=True)
class Stage:
    """A process of the window.

    name     its file is NAME.json, its log is logs/NAME.log
    module   module of this package; its function `run(context, record)` is the stage
    seconds  budget. None: all that is left
    title    what it finds out
    until    set for a stage in the background: it starts after the inventory, and ends when this stage begins
    """

    name: str
    module: str
    seconds: float | None
    title: str
    until: str = ""


STAGES = (
    Stage("inventory", "inventory", 25, "device, versions, and the largest rates of this device"),
    Stage("references", "references", None, "the combinations on the CPU, in fp32 and float64", until="captures"),
    Stage("compile_cache", "compile_cache", None, "compiles what later stages compile", until="speed_256_1"),
    Stage("combinations", "combinations", 70, "a step of each combination: CPU against GPU in fp32, and bf16"),
    Stage("captures", "captures", 15, "a CUDA graph that cannot be recorded: training goes on without it"),
    Stage("graphs", "graphs", 40, "steps with and without a CUDA graph: equal to the bit"),
    Stage("resume", "resume", 45, "a run that SIGTERM stops and that resumes: the model is equal to the byte"),
    Stage("speed_256_1", "speed", 80, "speed at 256 px, batch 1: every switch, and the classic code"),
    Stage("speed_256_4", "speed", 25, "speed at 256 px, batch 4"),
    Stage("speed_256_16", "speed", 25, "speed at 256 px, batch 16"),
    Stage("speed_512_1", "speed", 25, "speed at 512 px, batch 1"),
    Stage("kernels", "kernels", 20, "which kernels a step has, and the time of a replay"),
    Stage("training", "training", None, "losses and discriminators of the paper at full width, several seeds"),
)
BY_NAME = {stage.name: stage for stage in STAGES}


@dataclass(frozen=True)
class Cell:
    """A comparison of speed. Times are of `steps` steps; a round has one time of each contestant."""

    size: int
    width: int
    batch: int
    steps: int
    rounds: int
    contestants: tuple[str, ...]


SWITCHES = ("tf32", "channels_last", "fused_adam", "one_pass", "cuda_graphs", "prefetch")
CLASSIC = ("classic", "classic, best switches")
FEW = ("p2pzoo", *CLASSIC, "without cuda_graphs")
ALL = (
    "p2pzoo", *CLASSIC, *(f"without {switch}" for switch in SWITCHES),
    "with fp32", "with bf16", "with deterministic", "with compile", "classic, best switches, compiled",
)  # fmt: skip

ROWS = {  # of the training runs: recipe and overrides; the paper's 70 px of 256 are 34 px of 128
    "L1": ("zoo:ablation_l1.toml", ()),
    "L1 + GAN": ("zoo:ablation_l1_gan.toml", ("discriminator.receptive_field=34",)),
    "L1 + cGAN": ("zoo:ablation_l1_cgan.toml", ("discriminator.receptive_field=34",)),
    "L1 + cGAN, D of 1 px": ("zoo:ablation_pixel.toml", ()),
    "L1 + cGAN, D of 142 px": ("zoo:ablation_l1_cgan.toml", ("discriminator.receptive_field=142",)),
}


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    combinations        names of the combinations; empty: all
    width, size         of the networks and images of `combinations`
    steps               steps of `graphs` and `captures`
    graph_cases         how many cases of `graphs`
    graph_width, graph_size  of the networks and images of `graphs`, `captures` and `kernels`
    variants            variants of `resume`
    resume_images       images of its runs
    profile             profile of the recipes of the training runs, and `overrides` to it
    metrics             of the training runs
    seeds, workers      of the training runs
    images              largest length of a training run
    rate_seconds        how long the rate of the training runs is measured
    matrix              side of the matrices whose product gives the largest rate
    """

    combinations: tuple[str, ...]
    width: int
    size: int
    steps: int
    graph_cases: int
    graph_width: int
    graph_size: int
    variants: tuple[str, ...]
    resume_images: int
    cells: dict[str, Cell]
    profile: str
    overrides: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[str, ...]
    seeds: int
    workers: int
    images: int
    rate_seconds: float
    matrix: int


FULL = Sizes(
    combinations=(),
    width=16,
    size=64,
    steps=12,
    graph_cases=5,
    graph_width=64,
    graph_size=256,
    variants=("auto", "compile", "fp16"),
    resume_images=1000,
    cells={
        "speed_256_1": Cell(256, 64, 1, 40, 9, ALL),
        "speed_256_4": Cell(256, 64, 4, 20, 7, FEW),
        "speed_256_16": Cell(256, 64, 16, 8, 7, FEW),
        "speed_512_1": Cell(512, 64, 1, 20, 7, FEW),
    },
    profile="gpu",
    overrides=(),
    metrics=("l1", "fcn_score", "lab_histogram", "sharpness", "kid_efficientnet_lite0"),
    rows=tuple(ROWS),
    seeds=3,
    workers=8,
    images=50_000,
    rate_seconds=5.0,
    matrix=8192,
)
TOY = Sizes(
    combinations=("base", "generator resnet6", "train.spectral_norm=both"),
    width=4,
    size=64,
    steps=5,
    graph_cases=1,
    graph_width=4,
    graph_size=64,
    variants=("auto", "compile", "fp16"),
    resume_images=40,
    cells={
        "speed_256_1": Cell(64, 4, 1, 2, 2, ("p2pzoo", "classic, best switches", "without one_pass")),
    },
    profile="smoke",
    overrides=("generator.width=4", "dataset.size=64", "dataset.stride=256"),
    metrics=("l1", "fcn_score"),
    rows=("L1", "L1 + cGAN"),
    seeds=1,
    workers=2,
    images=16,
    rate_seconds=0.3,
    matrix=128,
)
