"""Images of a finished run: a grid of test images, and the best and worst ones for its report."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from p2pzoo.compute.engine import Engine
from p2pzoo.config.experiment import Experiment
from p2pzoo.config.settings import Translations
from p2pzoo.data import Store
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.grid import grid_indices, make_grid, save_png
from p2pzoo.models.sampling_path import PathFollower
from p2pzoo.models.translator import Translator
from p2pzoo.runs.evaluate import rank_images, translate_neighbours
from p2pzoo.runs.report import Comparison, SamplingPath
from p2pzoo.runs.run_folder import Run
from p2pzoo.training.run_writer import sample_indices

MAX_PATHS, MAX_TIMES = 3, 8  # paths in the report, and times of each: with x and y a row fits on a page
BEST_AND_WORST = 3  # images of each in the report: a row of them fits on a page


def save_test_grid(
    experiment: Experiment, run: Run, engine: Engine, G: Any, store: Store, translations: Translations, suffix: str = ""
) -> None:
    """Write samples/SPLIT.png, a grid x | ŷ | y of the evaluated split. `suffix` goes behind SPLIT."""
    shown = [_compare(engine, G, store, translations, index, "") for index in grid_indices(len(store))]
    rows = [[each.x, each.y_hat, each.y] for each in shown]
    save_png(run.samples / f"{experiment.evaluate.split}{suffix}.png", make_grid(rows))


def best_and_worst(experiment: Experiment, run: Run, engine: Engine, G: Any, store: Store) -> list[Comparison]:
    """The images with the best and the worst values of the first metric that ranks images; [] if none does."""
    if (best_first := rank_images(experiment, run, store)) is None:
        return []
    metric, order = best_first
    values = dict(order)

    def block_of(index: int) -> str:
        pair = store[index]
        return pair.id if pair.block is None else pair.block

    return [
        _compare(engine, G, store, experiment.translations, index, f"{label}, {metric} {values[index]:.4f}")
        for label, indices in pick_best_and_worst([*values], block_of).items()
        for index in indices
    ]


def _compare(engine: Engine, G: Any, store: Store, translations: Translations, index: int, note: str) -> Comparison:
    """A pair and its ŷ, which is translated with the neighbours of its measurement."""
    together = translations.test_batch
    batch, y_hat = translate_neighbours(engine, store, Translator(G, translations), index, together)[index % together]
    images = (image for [image] in Encodings.of(store.dataset).to_rgb(batch.x, y_hat, batch.y))
    return Comparison(batch.ids[0], note, *images)


def sampling_paths(experiment: Experiment, engine: Engine, G: Any, store: Store) -> list[SamplingPath]:
    """x, ŷ at the times of the sampler, and y of the first sample images. [] if G has no path, or one time only."""
    paths, follower = [], PathFollower(G, experiment.translations, MAX_TIMES)
    together = experiment.translations.test_batch
    for index in sample_indices(len(store), experiment.evaluate.samples)[:MAX_PATHS]:
        batch, *path = translate_neighbours(engine, store, follower, index, together)[index % together]
        if len(path) < 2:
            return []
        images = Encodings.of(store.dataset).to_rgb(batch.x, *path, batch.y)
        names = ["x", *(f"ŷ at t = {t:.3g}" for t in follower.times), "y"]
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
