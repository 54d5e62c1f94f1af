"""Build the networks, losses, optimizers and augmentations of a recipe on the device."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, get_args

from torch import nn

from p2pzoo.compute.batched_discriminator import BatchedDiscriminator, is_batch_independent, is_faster
from p2pzoo.compute.distributed import shard
from p2pzoo.compute.engine import Engine
from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.data.augmentation import make_augmentations
from p2pzoo.data.collate import StoredBatch
from p2pzoo.models.initialization import make_discriminator, make_generator
from p2pzoo.models.optional_parts import feature_channels
from p2pzoo.models.process import make_process
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import Side
from p2pzoo.training.accumulation import AccumulatingObjective
from p2pzoo.training.gan_step import Objective, Term, Trainable
from p2pzoo.training.image_pool import ImagePool
from p2pzoo.training.lua_order import LuaObjective
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError


def build_objective(
    experiment: Experiment, engine: Engine, channels: tuple[int, int], size: tuple[int, int]
) -> Objective:
    """Build G, D and the losses of a recipe on the engine's device.

    channels  of x and y
    size      (H, W) of the images

    Raises UserError if a network, loss or process cannot be built, or a loss trains a D that the recipe does not have.
    """
    settings = experiment.train
    gan, terms = _build_losses(experiment, engine, channels, size)
    modules: dict[Side, list[nn.Module]] = {
        side: [term.loss for term in terms if term.loss.side == side and isinstance(term.loss, nn.Module)]
        for side in get_args(Side)
    }
    G_network = engine.prepare_model(make_generator(experiment, channels, size))
    G_optimizer = engine.build_optimizer(G_network, experiment.optimizer, losses=modules["generator"])
    G = Trainable(engine.maybe_compile(G_network, settings.steps), G_optimizer)
    D, judge_both = _build_discriminator(experiment, engine, channels, size, modules["discriminator"])
    objective_class: Any = LuaObjective if settings.order == "lua" else Objective
    if settings.accumulate > 1:
        objective_class = functools.partial(AccumulatingObjective, parts=settings.accumulate)
    augmentations = make_augmentations(experiment, channels, size, engine.device)

    def prepare(batch: Batch) -> Batch:
        if isinstance(batch, StoredBatch):
            batch = batch.scaled()
        # to_device: augmentations can lose the memory format
        return engine.to_device(augmentations.augment_pairs(batch)) if augmentations else batch

    objective: Objective = objective_class(
        G, D, gan, terms, engine.backward_and_step,
        gan_weight=experiment.gan_loss.weight if experiment.gan_loss else 1.0,
        pool=ImagePool(settings.pool_size, experiment.seed) if settings.pool_size else None,
        judge_both=judge_both,
        augmentations=augmentations,
        prepare=prepare,
        process=make_process(experiment, channels, size),
        memory_format=engine.memory_format,
        zero_biases=settings.zero_biases,
        labels_for_D=experiment.discriminator is not None and "labels" in experiment.discriminator.entry.needs,
        d_steps=settings.d_steps,
    )  # fmt: skip
    return objective


def _build_losses(
    experiment: Experiment, engine: Engine, channels: tuple[int, int], size: tuple[int, int]
) -> tuple[Any, list[Term]]:
    """The GAN loss, or None, and the other losses. Their initial weights depend on the experiment's seed alone."""

    def build(component: Component, *name: str) -> Any:
        offered: dict[str, Any] = {"in_channels": channels[0], "out_channels": channels[1], "size": size}
        if "features" in component.entry.needs:
            offered["feature_channels"] = feature_channels(experiment, channels, size)
        with rng.torch_seed(rng.derive_seed(experiment.seed, "init", *name)):
            loss = component.build(**offered)
        return loss.to(engine.device) if isinstance(loss, nn.Module) else loss

    gan = build(experiment.gan_loss, "gan_loss") if experiment.gan_loss else None
    has_parameters = isinstance(gan, nn.Module) and any(parameter.requires_grad for parameter in gan.parameters())
    if experiment.gan_loss and has_parameters:
        raise UserError(
            f"gan_loss '{experiment.gan_loss.entry.full_name}' has parameters to train, and belongs to neither side: "
            "move them to a loss with a `side`"
        )
    terms = [Term(name, build(loss, "loss", name), loss.weight) for name, loss in experiment.losses.items()]
    _check_sides(terms, has_D=experiment.discriminator is not None)
    return gan, terms


def _build_discriminator(
    experiment: Experiment,
    engine: Engine,
    channels: tuple[int, int],
    size: tuple[int, int],
    losses: Sequence[nn.Module],
) -> tuple[Trainable | None, BatchedDiscriminator | None]:
    """D, and what computes it of real and fake images in one pass, if that is faster and gives the same logits."""
    settings = experiment.train
    model = make_discriminator(experiment, channels, size)
    if model is None or experiment.discriminator is None:
        return None, None
    images = len(shard(range(settings.batch_size))) // settings.accumulate
    pays_off = experiment.compute.one_pass and is_faster(engine.device_type, images, size)
    engine.enabled["one_pass"] = pays_off and is_batch_independent(
        model, channels, size, images, with_labels="labels" in experiment.discriminator.entry.needs
    )
    network = engine.prepare_model(model)
    judge_both = BatchedDiscriminator(network) if engine.enabled["one_pass"] else None
    settings_D = experiment.optimizer
    optimizer = engine.build_optimizer(network, settings_D, settings_D.lr_discriminator, losses=losses)
    # the order of train.lua replaces the forward of D's layers, which a compiled D no longer calls
    compiled = network if settings.order == "lua" else engine.maybe_compile(network, settings.steps)
    return Trainable(compiled, optimizer), judge_both


def _check_sides(terms: list[Term], *, has_D: bool) -> None:
    for term in terms:
        if term.loss.side not in get_args(Side):
            raise UserError(f"[losses.{term.name}] has side {term.loss.side!r}: it must be one of {get_args(Side)}")
        if term.loss.side == "discriminator" and not has_D:
            raise UserError(
                f"[losses.{term.name}] acts on the discriminator, and this recipe has none: remove the loss, or add a "
                "[discriminator]"
            )
