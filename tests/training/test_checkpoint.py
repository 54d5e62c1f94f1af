"""A training state that is saved and restored goes on with the same bits, for every part that has a state.

test_resume.py shows the same of whole runs that are killed.
"""

import pytest
import torch

from p2pzoo import config
from p2pzoo.compute.engine import Engine
from p2pzoo.data import Store, train_batches
from p2pzoo.models.safetensors_io import load_tensors, save_tensors
from p2pzoo.training import loop

RECIPES = {
    "the paper's game": (),
    "batches of two, EMA, image pool": ("train.batch_size=2", "train.ema=0.9", "train.pool_size=4"),
    "the Lua code's game": (
        "train.order=lua",
        "train.zero_biases=true",
        "train.replacement=true",
        "generator.bias=lua",
        "discriminator.bias=lua",
        "optimizer.eps_before_correction=true",
    ),
    "augmented pairs and an augmented input of D": (
        'augmentations.turn={use="flip-rotate"}',
        'augmentations.seen={use="diffaugment"}',
    ),
    "spectral norm, two updates of D, accumulation, clipping": (
        "train.batch_size=2",
        "train.spectral_norm=both",
        "train.d_steps=2",
        "train.accumulate=2",
        "train.ema=0.9",
        "train.pool_size=4",
        "optimizer.clip_norm=0.5",
        "optimizer.schedule=one-cycle",
    ),
    **{
        f"{use}": (f"optimizer.use={use}", "optimizer.schedule=cosine")
        for use in ("AdamW", "RMSprop", "SGD", "NAdam", "Rprop")
    },
    "a penalty at random points, and one in every seventh step": (
        "gan_loss.use=wgan-gp",
        "losses.r1.use=r1",
        "losses.r1.every=7",
    ),
    "a network with a spectral norm of its own": (
        "generator.use=spade",
        "generator.width=2",
        "generator.upsamplings=2",
    ),
    "no discriminator": ('drop=["discriminator", "gan_loss"]',),
}
SAVED, END = 4, 9  # steps


class Training:
    """The training of a recipe, as `run_training_loop` does it, without its files."""

    def __init__(self, experiment):
        self.experiment, self.engine = experiment, Engine(experiment.compute)
        settings = experiment.train
        store = Store(experiment.dataset.build(split="train"), enlarge=settings.jitter, compute=experiment.compute)
        self.objective, self.state = loop.build_state(experiment, self.engine, store)
        self.batches = train_batches(store, settings, experiment.seed)

    def train(self, steps):
        """The losses of these steps."""
        return [self.step(number) for number in steps]

    def step(self, number):
        experiment = self.experiment
        rate = experiment.optimizer.lr_at(number / END)
        losses = loop.train_step(
            self.objective.step, self.engine, self.batches, number, rate, experiment.seed, self.objective.augmentations
        )
        return {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize("overrides", RECIPES.values(), ids=RECIPES)
def test_a_restored_state_trains_on_bit_identically(overrides, tiny, tmp_path):
    experiment = config.load(str(tiny), "smoke", overrides)
    file = tmp_path / "state.safetensors"
    straight = Training(experiment)
    straight.train(range(SAVED))
    save_tensors(file, straight.state.tensors(), {})
    losses = straight.train(range(SAVED, END))

    resumed = Training(experiment)
    resumed.state.load(load_tensors(file)[0], file)
    assert resumed.train(range(SAVED, END)) == losses
    expected, found = straight.state.tensors(), resumed.state.tensors()
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []
