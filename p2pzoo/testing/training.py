"""The checks that a component can be trained, and that its training can be resumed; all other parts are tiny."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p2pzoo.compute.engine import Engine
from p2pzoo.config.experiment import Experiment
from p2pzoo.data import Store
from p2pzoo.runs.evaluate import check_needs
from p2pzoo.testing.component_case import IMAGE_SIDE, ComponentCase
from p2pzoo.testing.tiny_components import build_experiment, cpu_settings
from p2pzoo.training.checkpoint import LossLogger, State
from p2pzoo.training.gan_step import Objective
from p2pzoo.training.loop import make_batches, train_step
from p2pzoo.training.setup import build_objective

_NUM_STEPS = 3  # so that D and G each see the other's update at least twice


def check_training(case: ComponentCase) -> None:
    """Trains for three steps with tiny components: every loss stays finite, and the weights change."""
    if case.kind in ("loss", "gan_loss"):
        _check_trains_parameters(case.build_loss())
    trained = _train(case)
    for step, losses in enumerate(trained.losses):
        for name, value in losses.items():
            assert value.isfinite(), f"{name} is {value.item()} at step {step}"
    changed = [name for name, tensor in trained.weights.items() if not torch.equal(tensor, trained.initial[name])]
    assert changed or not trained.initial, "no weight has changed after training"


def _check_trains_parameters(loss: Any) -> None:
    """Only a loss that is an nn.Module has parameters that an optimizer knows."""
    if isinstance(loss, nn.Module):
        return
    parameters: dict[str, nn.Parameter] = {}
    for name, value in getattr(loss, "__dict__", {}).items():
        if isinstance(value, nn.Module):
            parameters |= {f"{name}.{key}": parameter for key, parameter in value.named_parameters()}
        elif isinstance(value, nn.Parameter):
            parameters[name] = value
    trainable = [name for name, parameter in parameters.items() if parameter.requires_grad]
    assert not trainable, (
        f"its parameter '{trainable[0]}' is never trained, because the loss is no nn.Module: derive the class from "
        "nn.Module, or set requires_grad to False"
    )


def check_resume(case: ComponentCase) -> None:
    """Gives the same bits if training is rebuilt from a checkpoint after two of three steps: it hides no state."""
    trained = _train(case)
    with _seeded(), case.skip_if_missing():
        resumed = _Training.begin(case)
    with _seeded():
        resumed.state.load(trained.checkpoint, Path("checkpoint"))
        resumed.step(_NUM_STEPS - 1)
    tensors = resumed.state.tensors()
    differing = [name for name, tensor in trained.state.items() if not torch.equal(tensor, tensors[name])]
    assert not differing, (
        f"after a resume '{differing[0]}' has other values than without: the {case.kind} keeps state that is in no "
        "checkpoint; keep it in buffers of an nn.Module"
    )


@dataclass(frozen=True)
class _Trained:
    """What a training of _NUM_STEPS leaves for the checks.

    initial, weights  the state dict of the trained network before and after
    losses            one dict per step
    checkpoint        the state before the last step
    state             the state after it
    """

    initial: dict[str, Tensor]
    weights: dict[str, Tensor]
    losses: list[dict[str, Tensor]]
    checkpoint: dict[str, Tensor]
    state: dict[str, Tensor]


def _train(case: ComponentCase) -> _Trained:
    """Train the component once; a second call returns the result of the first."""
    if "trained" not in case.cache:
        with _seeded(), case.skip_if_missing():
            training = _Training.begin(case)
        objective = training.objective
        trainable = objective.D if case.kind == "discriminator" else objective.G
        assert trainable is not None
        network = training.engine.unwrap(trainable.network)
        initial = _copy(network.state_dict())
        with _seeded():
            losses = [training.step(step) for step in range(_NUM_STEPS - 1)]
            checkpoint = _copy(training.state.tensors())
            losses.append(training.step(_NUM_STEPS - 1))
        weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
        case.cache["trained"] = _Trained(initial, weights, losses, checkpoint, training.state.tensors())
    return case.cache["trained"]  # type: ignore[no-any-return]


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@dataclass
class _Training:
    """A training of the component, from its initial weights."""

    experiment: Experiment
    engine: Engine
    objective: Objective
    state: State
    batches: Any

    @classmethod
    def begin(cls, case: ComponentCase) -> _Training:
        is_network = case.kind in ("generator", "discriminator")
        experiment = build_experiment(case.component, case.size[0] if is_network else IMAGE_SIDE)
        store = Store(experiment.dataset.build(split="train"), enlarge=experiment.train.jitter)
        check_needs(experiment, store)
        engine = Engine(cpu_settings())
        objective = build_objective(experiment, engine, store.channels, store.size)
        state = State(
            engine, objective.G, objective.D, None, objective.pool, LossLogger(), objective.stateful_modules
        )  # fmt: skip
        batches = make_batches(experiment, store, objective.augmentations)
        return cls(experiment, engine, objective, state, batches)

    def step(self, step: int) -> dict[str, Tensor]:
        experiment, objective = self.experiment, self.objective
        rate = experiment.optimizer.lr
        return train_step(objective.step, self.engine, self.batches, step, rate, experiment.seed)


@contextmanager
def _seeded() -> Iterator[None]:
    """Afterwards torch's random state is as before."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
