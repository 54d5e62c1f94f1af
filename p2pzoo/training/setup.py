"""Build the networks, losses, optimizers and augmentations of a recipe on the device."""

from __future__ import annotations

import functools
from typing import Any, get_args

from torch import nn

from p2pzoo.compute.batched_discriminator import BatchedDiscriminator, is_batch_independent, is_faster
from p2pzoo.compute.distributed import shard
from p2pzoo.compute.engine import Engine
from p2pzoo.config.experiment import Experiment
from p2pzoo.data.augmentation import make_augmentations
from p2pzoo.models.initialization import make_discriminator, make_generator
from p2pzoo.plugin.step_outputs import Side
from p2pzoo.training.accumulation import AccumulatingObjective
from p2pzoo.training.gan_step import Objective, Term, Trainable
from p2pzoo.training.image_pool import ImagePool
from p2pzoo.training.lua_order import LuaObjective
from p2pzoo.utils.errors import UserError


def build_objective(
    experiment: Experiment, engine: Engine, channels: tuple[int, int], size: tuple[int, int]
) -> Objective:
    """The recipe's game on the engine's device, for x and y of these channels and this (H, W). Raises UserError."""
    settings, lua = experiment.train, experiment.train.order == "lua"
    G_net = engine.prepare_model(make_generator(experiment, channels, size))
    G = Trainable(engine.compiled(G_net, settings.steps), engine.optimizer(G_net, experiment.optimizer))
    D, both = None, None
    if (D_made := make_discriminator(experiment, channels, size)) is not None:
        images = len(shard(range(settings.batch_size))) // settings.accumulate
        asked = experiment.compute.one_pass and is_faster(engine.device_type, images, size)
        engine.on["one_pass"] = asked and is_batch_independent(D_made, channels, size, images)
        D_net = engine.prepare_model(D_made)
        both = BatchedDiscriminator(D_net) if engine.on["one_pass"] else None
        moved_by = engine.optimizer(D_net, experiment.optimizer, experiment.optimizer.lr_discriminator)
        D = Trainable(D_net if lua else engine.compiled(D_net, settings.steps), moved_by)
    offered = {"in_channels": channels[0], "out_channels": channels[1], "size": size}
    gan = _on(engine, experiment.gan_loss.build(**offered)) if experiment.gan_loss else None
    terms = [Term(name, _on(engine, loss.build(**offered)), loss.weight) for name, loss in experiment.losses.items()]
    for term in terms:
        if term.loss.side not in get_args(Side):
            raise UserError(f"[losses.{term.name}] has side {term.loss.side!r}: it must be one of {get_args(Side)}")
        if term.loss.side == "discriminator" and D is None:
            raise UserError(f"[losses.{term.name}] acts on the discriminator, and this recipe has none")
    pool = ImagePool(settings.pool_size, experiment.seed) if settings.pool_size else None
    gan_weight = experiment.gan_loss.weight if experiment.gan_loss else 1.0
    kind: Any = LuaObjective if lua else Objective
    if settings.accumulate > 1:
        kind = functools.partial(AccumulatingObjective, parts=settings.accumulate)
    objective: Objective = kind(
        G, D, gan, terms, engine.backward_and_step, gan_weight=gan_weight, pool=pool, both=both,
        augmentations=make_augmentations(experiment, channels, size), zero_biases=settings.zero_biases,
        d_steps=settings.d_steps,
    )  # fmt: skip
    return objective


def _on(engine: Engine, loss: Any) -> Any:
    return loss.to(engine.device) if isinstance(loss, nn.Module) else loss
