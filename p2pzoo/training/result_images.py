"""Images of a finished run: a grid of test images, and the best and worst ones for its report."""

from __future__ import annotations

from typing import Any

from p2pzoo.compute.engine import Engine
from p2pzoo.config.experiment import Experiment
from p2pzoo.data import Store, single_batches
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.grid import grid_indices, make_grid, save_png
from p2pzoo.models.test_modes import translate
from p2pzoo.runs.evaluate import rank_images
from p2pzoo.runs.report import Comparison
from p2pzoo.runs.run_folder import Run

BEST_AND_WORST = 3  # images of each in the report: a row of them fits on a page


def save_test_grid(experiment: Experiment, run: Run, engine: Engine, G: Any, store: Store) -> None:
    """Write samples/SPLIT.png, a grid x | ŷ | y of the evaluated split."""
    rows = []
    for batch in map(engine.to_device, single_batches(store, grid_indices(len(store)))):
        y_hat = translate(G, batch.x, experiment.evaluate.test_mode)
        rows.append([images[0] for images in Encodings.of(store.dataset).to_rgb(batch.x, y_hat, batch.y)])
    save_png(run.samples / f"{experiment.evaluate.split}.png", make_grid(rows))


def best_and_worst(experiment: Experiment, run: Run, engine: Engine, G: Any, store: Store) -> list[Comparison]:
    """The images with the best and the worst values of the first metric that ranks images; [] if none does."""
    best_first = rank_images(experiment, run, store)
    if best_first is None:
        return []
    metric, order = best_first
    comparisons: list[Comparison] = []
    for label, ranked in {"best": order, "worst": order[::-1]}.items():
        blocks: set[str | None] = set()
        for index, value in ranked:
            block = store[index].block
            if (block is not None and block in blocks) or len(blocks) == BEST_AND_WORST:
                continue  # neighbours look alike: one of each block
            blocks.add(block if block is not None else store[index].id)
            batch = engine.to_device(next(single_batches(store, range(index, index + 1))))
            y_hat = translate(G, batch.x, experiment.evaluate.test_mode)
            [x], [y_hat], [y] = Encodings.of(store.dataset).to_rgb(batch.x, y_hat, batch.y)
            comparisons.append(Comparison(batch.ids[0], f"{label}, {metric} {value:.4f}", x, y_hat, y))
    return comparisons
