"""Images of a finished run: a grid of test images, and the best and worst ones for its report."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from p2pzoo.compute.engine import Engine
from p2pzoo.config.experiment import Experiment
from p2pzoo.config.settings import Translations
from p2pzoo.data import Store, single_batches
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.grid import grid_indices, make_grid, save_png
from p2pzoo.models.sampling_path import follow_path
from p2pzoo.models.test_modes import translate
from p2pzoo.runs.evaluate import rank_images
from p2pzoo.runs.report import Comparison, SamplingPath
from p2pzoo.runs.run_folder import Run
from p2pzoo.training.run_writer import sample_indices

MAX_PATHS, MAX_TIMES = 3, 8  # paths in the report, and times of each: with x and y a row fits on a page
BEST_AND_WORST = 3  # images of each in the report: a row of them fits on a page


def save_test_grid(
    experiment: Experiment, run: Run, engine: Engine, G: Any, store: Store, translations: Translations, suffix: str = ""
) -> None:
    """Write samples/SPLIT.png, a grid x | ŷ | y of the evaluated split. `suffix` goes behind SPLIT."""
    rows = []
    for batch in map(engine.to_device, single_batches(store, grid_indices(len(store)))):
        y_hat = translate(G, batch.x, translations.test_mode)
        rows.append([images[0] for images in Encodings.of(store.dataset).to_rgb(batch.x, y_hat, batch.y)])
    save_png(run.samples / f"{experiment.evaluate.split}{suffix}.png", make_grid(rows))


def best_and_worst(experiment: Experiment, run: Run, engine: Engine, G: Any, store: Store) -> list[Comparison]:
    """The images with the best and the worst values of the first metric that ranks images; [] if none does."""
    best_first = rank_images(experiment, run, store)
    if best_first is None:
        return []
    metric, order = best_first
    values = dict(order)

    def block_of(index: int) -> str:
        pair = store[index]
        return pair.id if pair.block is None else pair.block

    picked = pick_best_and_worst([*values], block_of)
    comparisons: list[Comparison] = []
    for label, indices in picked.items():
        for index in indices:
            batch = engine.to_device(next(single_batches(store, range(index, index + 1))))
            y_hat = translate(G, batch.x, experiment.evaluate.test_mode)
            [x], [y_hat], [y] = Encodings.of(store.dataset).to_rgb(batch.x, y_hat, batch.y)
            comparisons.append(Comparison(batch.ids[0], f"{label}, {metric} {values[index]:.4f}", x, y_hat, y))
    return comparisons


def sampling_paths(experiment: Experiment, engine: Engine, G: Any, store: Store) -> list[SamplingPath]:
    """x, ŷ at the times of the sampler, and y of the first sample images. [] if G has no path, or one time only."""
    paths = []
    indices = sample_indices(len(store), experiment.evaluate.samples)[:MAX_PATHS]
    for batch in map(engine.to_device, single_batches(store, indices)):
        path = follow_path(G, batch.x, experiment.translations.test_mode, MAX_TIMES)
        if len(path) < 2:
            return []
        images = Encodings.of(store.dataset).to_rgb(batch.x, *(y_hat for _, y_hat in path), batch.y)
        names = ["x", *(f"ŷ at t = {t:.3g}" for t, _ in path), "y"]
        paths.append(SamplingPath(batch.ids[0], [*zip(names, (each[0] for each in images), strict=True)]))
    return paths


def pick_best_and_worst(order: Sequence[int], block_of: Callable[[int], Hashable]) -> dict[str, list[int]]:
    """{"best": [index, ...], "worst": [index, ...]}, at most BEST_AND_WORST each, and no image in both.

    order     the indices of the images, best first
    block_of  the block of an image. Neighbours look alike: a list has one image of each block
    """
    picked: dict[str, list[int]] = {"best": [], "worst": []}
    remaining = {"best": iter(order), "worst": reversed(order)}
    blocks: dict[str, set[Hashable]] = {"best": set(), "worst": set()}
    for _ in range(BEST_AND_WORST):
        for name, indices in picked.items():  # in turn: both lists get images, even of three
            others = {*picked["best"], *picked["worst"]}
            for index in remaining[name]:
                if index not in others and (block := block_of(index)) not in blocks[name]:
                    blocks[name].add(block)
                    indices.append(index)
                    break
    return picked
