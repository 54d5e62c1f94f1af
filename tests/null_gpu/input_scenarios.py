"""What a step does besides its graph: average of G, augmented pairs, seeds, batches on their way to the device."""

import copy

import torch
from null_gpu.training import Training, print_results

from p2pzoo.compute.cuda_graphs import WARMUP_STEPS
from p2pzoo.plugin.loader import registry
from p2pzoo.testing.component_case import ComponentCase
from p2pzoo.training.weight_average import WeightAverage


def average():
    training = Training()
    G = training.engine.unwrap(training.objective.G.network)
    training.objective.average = WeightAverage(copy.deepcopy(G), G, 0.9)
    return _count_replay(training)


def eps_before_correction():
    return _count_replay(Training(optimizer={"eps_before_correction": True}))


def affine():
    return _count_augmented("affine")


def photometric():
    return _count_augmented("photometric")


def flip_rotate():
    return _count_augmented("flip-rotate")


def _count_augmented(name):
    return _count_replay(Training(ComponentCase.from_entry(registry().get("augmentation", name))))


def _count_replay(training):
    training.step(WARMUP_STEPS + 1)
    batch = training.batches[training.number]
    return {
        "replayed": training.count_step(),
        "is_recorded": training.is_recorded,
        "warnings": training.warnings,
        "dtype": str(batch.x.dtype),
        "is_pinned": all(t.is_pinned() for t in (batch.x, batch.y, batch.random) if t is not None),
    }


def seeds():
    """The states of both generators after `Engine.seed`, and after torch.manual_seed."""
    engine = Training().engine
    states = []
    for seed in (engine.seed, torch.manual_seed):
        seed(2**62 + 5)
        states.append([torch.get_rng_state().tolist(), torch.cuda.get_rng_state().tolist()])
    return {"are_equal": states[0] == states[1]}


if __name__ == "__main__":
    scenarios = (average, eps_before_correction, affine, photometric, flip_rotate, seeds)
    print_results({function.__name__: function for function in scenarios})
