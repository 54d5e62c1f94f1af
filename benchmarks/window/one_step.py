"""The combinations of components and settings, and one training step of each, on any device and in any precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from p2pzoo import config
from p2pzoo.compute.engine import Engine
from p2pzoo.plugin import schema
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.loader import registry
from p2pzoo.training.loop import train_step
from p2pzoo.training.setup import build_objective
from window.context import SEED, Context

CHANNELS = (3, 3)
SMALL = {  # parameters for 64 px, and those that make large networks small, as the tests of all networks do
    "pix2pixhd-global": ("downsamplings=2", "blocks=2"),
    "pix2pixhd-local": ("downsamplings=2", "blocks=2", "local_blocks=1"),
    "spade": ("upsamplings=2",),
    "timm-unet": ("backbone=test_efficientnet",),
    "timm-projected": ("backbone=test_efficientnet",),
    "ms-ssim": ("scales=3",),
}
SIDES = {"image": 256}  # discriminators that need larger images
SETTINGS = (  # of [train], [optimizer], [compute] and the networks: those that change which kernels run, or their order
    "train.batch_size=4", "train.spectral_norm=both", "train.d_steps=2", "train.batch_size=4 train.accumulate=2",
    "train.pool_size=50", "train.order=lua", "train.zero_biases=true", "optimizer.use=AdamW", "optimizer.clip_norm=1",
    "optimizer.eps_before_correction=true", "compute.checkpointing=true", "compute.channels_last=false",
    "compute.fused_adam=false", "compute.one_pass=false", "discriminator.conditional=false",
    "discriminator.receptive_field=34",
)  # fmt: skip


def list_combinations(context: Context) -> dict[str, list[str]]:
    """{name: overrides of base.toml}: every component of the kinds that train, and SETTINGS, each alone."""
    found = {"base": [], **dict(_of_components())}
    found |= {setting: setting.split() for setting in SETTINGS}
    wanted = context.sizes.combinations
    return {name: overrides for name, overrides in found.items() if not wanted or name in wanted}


def _of_components() -> Iterator[tuple[str, list[str]]]:
    base = {"generator": "unet", "discriminator": "patch", "gan_loss": "vanilla", "loss": "l1"}
    for kind, default in base.items():
        table = "losses.extra" if kind == "loss" else kind
        for entry in registry().of(kind):
            if entry.name != default:
                small = [f"{table}.{parameter}" for parameter in SMALL.get(entry.name, ())]
                yield f"{kind} {entry.name}", [f"{table}.use={entry.full_name}", *small]
    yield "augmentation diffaugment", ["augmentations.extra.use=diffaugment"]
    norm = schema.get_params(registry().get("generator", "unet").load())["norm"]
    for value in get_args(norm.annotation):
        if value != norm.default:
            yield f"norm {value}", [f"generator.norm={value}", f"discriminator.norm={value}"]


def load(overrides: Sequence[str], context: Context, device: str, precision: str) -> Any:
    """The experiment of a combination: small networks without noise."""
    chosen = dict(item.split("=", 1) for item in overrides)
    scale = []
    for role, default in (("generator", "unet"), ("discriminator", "patch")):
        entry = registry().get(role, chosen.get(f"{role}.use", default))
        known = schema.get_params(entry.load())
        scale += [f"{role}.width={context.sizes.width}"] if "width" in known else []
        scale += [f"{role}.noise=none"] if "noise" in known else []
    fixed = [f"compute.device={device}", f"compute.precision={precision}", "compute.tf32=false", f"seed={SEED}"]
    return config.load("zoo:base.toml", "smoke", [*overrides, *scale, *fixed])


def take_step(overrides: Sequence[str], context: Context, device: str, precision: str) -> tuple[dict, dict]:
    """Take the first step. Returns its losses, and Adam's state of both networks: {"G.exp_avg": one long vector, …}.

    precision  "fp32" or "bf16", or "float64": float64 throughout, from the same weights and images
    """
    is_double = precision == "float64"
    made = load(overrides, context, device, "fp32" if is_double else precision)
    side = max(context.sizes.size, SIDES.get(made.discriminator.entry.name, 0))
    engine = Engine(made.compute)
    objective = build_objective(made, engine, CHANNELS, (side, side))
    for network in (trainable.network for trainable in objective.trainables):
        for part in network.modules():
            if isinstance(part, nn.modules.dropout._DropoutNd):
                part.p = 0.0  # devices sample other numbers
    batch = _batch(side, made.train.step_images)
    if is_double:
        _to_float64(objective)
        batch = Batch(batch.x.double(), batch.y.double(), batch.ids)
    losses = train_step(objective.step, engine, [batch], 0, made.optimizer.lr, SEED, objective.augmentations)
    vectors = {}
    for name, trainable in zip("GD", objective.trainables, strict=False):
        states = [trainable.optimizer.state[p] for g in trainable.optimizer.param_groups for p in g["params"]]
        for key in ("exp_avg", "exp_avg_sq"):
            parts = [state[key].detach().reshape(-1) for state in states if key in state]
            vectors[f"{name}.{key}"] = torch.cat(parts).cpu()
    return {name: float(value) for name, value in losses.items()}, vectors


def _batch(side: int, count: int) -> Batch:
    """Smooth noise in [-1, 1], the same in every process."""
    generator = torch.Generator().manual_seed(SEED)
    coarse = torch.rand(2, count, 3, side // 4, side // 4, generator=generator) * 2 - 1
    x, y = (nn.functional.interpolate(images, size=(side, side), mode="bilinear") for images in coarse)
    return Batch(x, y, tuple(str(number) for number in range(count)))


def _to_float64(objective: Any) -> None:
    """The objective in float64. Its optimizers keep the same parameters."""
    for network in (trainable.network for trainable in objective.trainables):
        network.double()
    for module in objective.stateful_modules.values():
        module.double()


def relative(actual: Tensor, expected: Tensor) -> float:
    """‖actual - expected‖ / ‖expected‖."""
    distance = (actual.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)
    return float(distance)


def cosine(actual: Tensor, expected: Tensor) -> float:
    """The cosine of the angle between two vectors."""
    return float(nn.functional.cosine_similarity(actual.double(), expected.double(), dim=0))
