"""A process of `training`: trains runs one after the other, as it is asked on stdin.

It keeps no checkpoints: at full width one has 0.9 GB. Evaluation happens at milestones, inside the training.
"""

from __future__ import annotations

import copy
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from p2pzoo import config
from p2pzoo.config.settings import Translations
from p2pzoo.data import Store, single_batches
from p2pzoo.images.grid import grid_indices, make_grid
from p2pzoo.models.safetensors_io import save_tensors, strip_prefix
from p2pzoo.models.test_modes import translate
from p2pzoo.models.translator import Translator
from p2pzoo.runs.evaluate import measure_all
from p2pzoo.runs.monitor import Diverged
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write
from window.build import Training
from window.context import Context, say
from window.plan import ROWS

DECAY = 0.999  # per image, of the moving average of G; at most (1 + n) / (10 + n) after n images
WINDOWS = 40  # means of the losses over so many parts of a run


@click.command()
@click.option("--context", required=True)
def main(context: str) -> None:
    """Answer requests, one line of JSON each."""
    worker = Worker(Context.parse(context))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            {"wait": worker.wait, "rate": worker.rate, "train": worker.train}[request.pop("do")](**request)
        except Exception as error:  # of one run
            say(traceback.format_exc())
            answer({"done": f"failed: {type(error).__name__}: {error}"[:300], "error": str(error)[:300]})


def answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


class Worker:
    """The process. It decodes the images once, for all runs."""

    def __init__(self, context: Context) -> None:
        self.context = context
        # fcn_score checks its scorer first, which fails where nothing computes
        self.names = context.sizes.metrics if context.computes else ("l1",)
        made = self.load("L1", 0, 8)
        self.pairs = Store(
            made.dataset.build(split="train"), enlarge=made.train.jitter, kernel=made.train.jitter_kernel
        )
        self.test = Store(made.dataset.build(split="test"))
        self.metrics: dict[str, Any] = {}
        for name, component in made.metrics.items():
            try:
                self.metrics |= {name: component.build(dataset=self.test.dataset)} if name in self.names else {}
            except UserError as error:  # weights that are not installed here
                say(f"without {name}: {error}")

    def load(self, row: str, seed: int, images: int) -> Any:
        sizes = self.context.sizes
        recipe, overrides = ROWS[row]
        metrics = [f"metrics.{name}.use={name}" for name in self.names]
        own = [f"train.images={images}", f"seed={seed}", f"compute.device={self.context.device}", "compute.threads=1"]
        return config.load(
            recipe, sizes.profile, [*sizes.overrides, *overrides, *metrics, *own, "compute.compile=false"]
        )

    def wait(self) -> None:
        """Answer at once: the process has started."""
        answer({"done": "complete"})

    def rate(self, row: str, seconds: float) -> None:
        """Measure images per second over this time, and the seconds of building and of evaluating."""
        began = time.perf_counter()
        with Training(self.load(row, 0, 10**7), store=self.pairs) as training:
            average = Average(training.engine.unwrap(training.objective.G.network))
            for _ in range(8):
                training.step()
                average.update(training.taken)
            training.wait()
            built = time.perf_counter()
            first = training.taken
            while time.perf_counter() < built + seconds:
                training.step()
                average.update(training.taken)
            training.wait()
            trained = time.perf_counter()
            self.measure(training, average.network)
            ended = time.perf_counter()
            images = (training.taken - first) * training.made.train.step_images
        answer({
            "done": "complete",
            "images_per_second": images / (trained - built),
            "build_seconds": built - began,
            "evaluation_seconds": ended - trained,
        })  # fmt: skip

    def train(self, row: str, seed: int, images: int, milestones: list[float]) -> None:
        """Train a run; answers with the numbers at each milestone."""
        made = self.load(row, seed, images)
        steps = made.train.steps
        due = {max(1, round(share * steps)) for share in milestones}
        began, losses = time.perf_counter(), []
        with Training(made, store=self.pairs) as training:
            G = training.engine.unwrap(training.objective.G.network)
            average = Average(G)
            try:
                while training.taken < steps:
                    training.step()
                    average.update(training.taken * made.train.step_images)
                    if training.taken % max(1, steps // WINDOWS) == 0 or training.taken in due:
                        training.read()
                        losses.append({"images": training.taken * made.train.step_images, **training.losses})
                    if training.taken in due:
                        seconds = time.perf_counter() - began
                        numbers = {
                            "last": self.measure(training, G),
                            "average": self.measure(training, average.network),
                        }
                        if training.taken == steps:
                            self.keep(training, average.network, row, seed, numbers["average"][1])
                        answer({
                            "images": training.taken * made.train.step_images, "seconds": round(seconds, 2),
                            "metrics": {which: values for which, (values, _) in numbers.items()},
                        })  # fmt: skip
            except Diverged as error:
                answer({"done": f"diverged: {error}", "facts": {"losses": losses}})
                return
            facts = {"id": made.id, "on": training.engine.describe()["on"], "precision": training.engine.precision}
        answer({"done": "complete", "facts": facts | {"losses": losses}})

    def measure(self, training: Training, G: nn.Module) -> tuple[dict[str, float], dict[str, Any]]:
        """All numbers of a generator on the test split, and their statistics of each image."""
        mode = training.made.evaluate.test_mode
        rows = measure_all(self.metrics, training.engine, self.test, Translator(G, Translations(test_mode=mode)))
        values = {}
        for name, metric in self.metrics.items():
            for key, value in metric.reduce(strip_prefix(name, rows)).items():
                values[name if key == "value" else f"{name}.{key}"] = float(value)
        return values, rows

    def keep(self, training: Training, G: nn.Module, row: str, seed: int, statistics: dict[str, Any]) -> None:
        """Store translations of test images, and the statistics of each image, of the average at the end."""
        folder = self.context.out / "training"
        folder.mkdir(exist_ok=True)
        name = f"{list(ROWS).index(row)}-{''.join(c if c.isalnum() else '_' for c in row)}-seed{seed}"
        mode, grid = training.made.evaluate.test_mode, []
        for index in list(grid_indices(len(self.test)))[:3]:
            batch = training.engine.to_device(next(single_batches(self.test, range(index, index + 1))))
            grid.append([batch.x[0], translate(G, batch.x, mode)[0], batch.y[0]])
        with atomic_write(folder / f"{name}.webp") as unfinished:
            make_grid(grid).save(unfinished, "WEBP", quality=90)
        pairs = [self.test[index] for index in range(len(self.test))]
        header = {"ids": [pair.id for pair in pairs], "blocks": [pair.block for pair in pairs], "weights": "average"}
        save_tensors(folder / f"{name}.safetensors", statistics, header)


class Average:
    """The moving average of a network's weights; its buffers are copies."""

    def __init__(self, network: nn.Module) -> None:
        self.source, self.network = network, copy.deepcopy(network)

    @torch.no_grad()
    def update(self, images: int) -> None:
        """After a step. images: those that training has used so far."""
        decay = min(DECAY, (1 + images) / (10 + images))
        torch._foreach_lerp_([*self.network.parameters()], [*self.source.parameters()], 1 - decay)
        for copied, buffer in zip(self.network.buffers(), self.source.buffers(), strict=True):
            copied.copy_(buffer)


if __name__ == "__main__":
    main()
    sys.exit()
