"""Three steps of training, as a run takes them, with the least that a component can play with."""

from __future__ import annotations

import copy

import torch

from p2pzoo.compute.engine import Engine
from p2pzoo.data import Store, train_batches
from p2pzoo.runs.evaluate import check_needs
from p2pzoo.testing.kit import SIDE, Case
from p2pzoo.testing.partners import compute, experiment
from p2pzoo.training.loop import train_step
from p2pzoo.training.setup import build_objective

STEPS = 3


def check_training(case: Case) -> None:
    """Three steps with tiny partners: every loss stays finite, and a network moves."""
    network = case.kind in ("generator", "discriminator")
    with case.lacking():
        game = experiment(case.component, case.size[0] if network else SIDE)
        store = Store(game.dataset.build(split="train"), enlarge=game.train.jitter)
        check_needs(game, store)
        engine = Engine(compute())
        random = torch.get_rng_state()
        objective = build_objective(game, engine, store.channels, store.size)
    player = objective.D if case.kind == "discriminator" else objective.G
    assert player is not None
    before = copy.deepcopy(engine.unwrap(player.network).state_dict())
    batches = train_batches(store, game.train, game.seed)
    try:
        for step in range(STEPS):
            told = train_step(
                objective.step, engine, batches, step, game.optimizer.lr, game.seed, objective.augmentations
            )
            for name, value in told.items():
                assert value.isfinite(), f"{name} is {value.item()} at step {step}"
    finally:
        torch.set_rng_state(random)
    moved = [name for name, p in engine.unwrap(player.network).named_parameters() if not torch.equal(p, before[name])]
    assert moved or not before, "nothing of it has moved"
