"""Training step by step on the null GPU, and the scenarios that use it: functions whose result is printed as JSON."""

import json
import sys
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import replace

import torch
from null_gpu.run import counting

from p2pzoo.compute.engine import Engine
from p2pzoo.config.settings import Compute
from p2pzoo.data import Store, train_batches
from p2pzoo.data.process_noise import make_process_noise
from p2pzoo.testing.component_case import IMAGE_SIDE
from p2pzoo.testing.tiny_components import build_experiment, build_tiny_component
from p2pzoo.training.gan_step import Term
from p2pzoo.training.loop import train_step
from p2pzoo.training.setup import build_objective

STEPS = 20  # at most, of a training
MAX_LAUNCHES = 4  # in a step beside the graph: learning rates of G and D, and the state of the random generator


def print_results(scenarios, alone=None):
    """Run these {name: function} one after another, or those that the command line names, and print each result.

    The lines are JSON: {name: result}, or {name: {"error": traceback}}.

    alone  scenarios that run only if they are named
    """
    for name in sys.argv[1:] or scenarios:
        torch.cuda.set_stream(torch.cuda.default_stream())
        try:
            result = {**scenarios, **(alone or {})}[name]()
        except Exception:
            result = {"error": traceback.format_exc()}
        print(json.dumps({name: result}), flush=True)


class Training:
    """A training of tiny components on CUDA; `step()` takes the next step as `p2pzoo run` does.

    case         the component that is not the kit's tiny one
    extra        losses beside it
    in_prefetch  called in the prefetch threads for each batch
    experiment   in place of `case`
    compute      values of [compute]
    settings     values of other tables: train={"batch_size": 4}
    """

    def __init__(self, case=None, *, extra=(), in_prefetch=lambda: None, experiment=None, compute=None, **settings):
        experiment = experiment or _build_experiment(case)
        changed = {name: replace(getattr(experiment, name), **values) for name, values in settings.items()}
        self.experiment = replace(experiment, compute=Compute(device="cuda", **(compute or {})), **changed)
        self.caught = []
        with self._catching():
            store = Store(self.experiment.dataset.build(split="train"))
            self.engine = Engine(self.experiment.compute)
            self.objective = build_objective(self.experiment, self.engine, store.channels, store.size)
            self.objective.terms.extend(Term(f"extra{i}", loss, 1.0) for i, loss in enumerate(extra))
            self.step_function = self.engine.compile_step(self.objective)
        augmentations = self.objective.augmentations
        sample_random = augmentations.sample if augmentations else None
        noise = make_process_noise(self.experiment, store.channels, store.size)
        sample_process = noise.sample if noise else None
        batches = train_batches(store, self.experiment.train, self.experiment.seed, sample_random, sample_process)
        pin = self.engine._pin
        self.engine._pin = lambda batch: (in_prefetch(), pin(batch))[1]
        self.prefetcher = self.engine.prefetch(batches, steps=STEPS)
        self.batches = self.prefetcher.__enter__()
        self.number = 0

    def step(self, steps=1):
        """Take steps, and return the logs of the last one."""
        with self._catching():
            for _ in range(steps):
                logs = train_step(self.step_function, self.engine, self.batches, self.number, 1e-4, 0)
                self.number += 1
        return logs

    def count_step(self):
        """Take a step, and return what was counted in it. Its batch is ready."""
        self.prefetcher.wait()
        with counting() as counted:
            self.step()
        return counted

    @property
    def is_recorded(self):
        return getattr(self.step_function, "_replay", None) is not None

    @property
    def warnings(self):
        return [str(warning.message) for warning in self.caught]

    @contextmanager
    def _catching(self):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        self.caught += caught


def _build_experiment(case):
    component = case.component if case else build_tiny_component("generator")
    is_network = case is not None and case.kind in ("generator", "discriminator")
    return build_experiment(component, case.size[0] if is_network else IMAGE_SIDE)
