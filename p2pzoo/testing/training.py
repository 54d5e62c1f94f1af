"""The check that a component can be trained: three training steps, with tiny components for all other parts."""

from __future__ import annotations

import copy

import torch

from p2pzoo.compute.engine import Engine
from p2pzoo.data import Store, train_batches
from p2pzoo.runs.evaluate import check_needs
from p2pzoo.testing.component_case import IMAGE_SIDE, ComponentCase
from p2pzoo.testing.tiny_components import build_experiment, cpu_settings
from p2pzoo.training.loop import train_step
from p2pzoo.training.setup import build_objective

_NUM_STEPS = 3  # so that D and G each see the other's update at least twice


def check_training(case: ComponentCase) -> None:
    """Trains for three steps with tiny components: every loss stays finite, and the weights change."""
    is_network = case.kind in ("generator", "discriminator")
    with case.skip_if_missing():
        experiment = build_experiment(case.component, case.size[0] if is_network else IMAGE_SIDE)
        store = Store(experiment.dataset.build(split="train"), enlarge=experiment.train.jitter)
        check_needs(experiment, store)
        engine = Engine(cpu_settings())
        rng_state = torch.get_rng_state()
        objective = build_objective(experiment, engine, store.channels, store.size)
    trainable = objective.D if case.kind == "discriminator" else objective.G
    assert trainable is not None
    before = copy.deepcopy(engine.unwrap(trainable.network).state_dict())
    batches = train_batches(store, experiment.train, experiment.seed)
    try:
        for step in range(_NUM_STEPS):
            losses = train_step(
                objective.step, engine, batches, step, experiment.optimizer.lr, experiment.seed, objective.augmentations
            )
            for name, value in losses.items():
                assert value.isfinite(), f"{name} is {value.item()} at step {step}"
    finally:
        torch.set_rng_state(rng_state)
    parameters = engine.unwrap(trainable.network).named_parameters()
    changed = [name for name, p in parameters if not torch.equal(p, before[name])]
    assert changed or not before, "no weight has changed after training"
