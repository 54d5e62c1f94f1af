"""Whether the learning curves of a claim's rows cross (protocol 2).

They cross if the difference of the rows has another sign at the end of longer trainings (the `curves` of a claims file)
than at the claim's number of images. Then the verdict holds at the claim's number of images only. Both differences are
of the same runs, those of the curves' table, which may have fewer folds than the claim. Nothing is said before all runs
of that table are finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from p2pzoo.config.experiment import Experiment
from p2pzoo.utils.errors import UserError
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.claims_file import Claim, Claims
from p2pzoo_bench.comparison import metric_of
from p2pzoo_bench.folds import over_folds


@dataclass(frozen=True)
class Crossing:
    """The differences of a claim's parts, positive in its direction.

    images       of the claim's runs, and of the curves' longer ones
    folds        of the curves, whose differences these are; the fewest of any part
    differences  of each part, at both
    """

    images: tuple[int, int]
    folds: int
    differences: tuple[tuple[float, float], ...]

    @property
    def does_cross(self) -> bool:
        return any(early * late < 0 for early, late in self.differences)

    def describe(self) -> dict[str, Any]:
        """The crossing as plain values."""
        return {
            "images": list(self.images),
            "folds": self.folds,
            "cross": self.does_cross,
            "differences": [list(pair) for pair in self.differences],
        }


def check_curves(claims: Claims, benches: Mapping[str, Bench], curves: Bench) -> None:
    """Raises UserError if no claim's rows have curves, or if one is not measured at its claim's number of images."""
    file = claims.curves_file
    shared = {id: rows for id, claim in claims.claims.items() if (rows := find_shared(claim, benches, curves))}
    if not shared:
        raise UserError(
            f"{claims.curves_where}  curves: {file} has the rows and columns of no claim, trained alike but for "
            "train.images, which is one number for all rows: correct it, or remove the key"
        )
    for id, pairs in shared.items():
        images = pairs[0][0].train.images_seen
        if any(images not in late.evaluate.at or images >= late.train.images_seen for _, late in pairs):
            raise UserError(
                f"{claims.where[id]}  [claims.{id}] {file} does not measure its runs at {images:,} images and later: "
                f"add {images} to its evaluate.at"
            )


def find_shared(
    claim: Claim, benches: Mapping[str, Bench], curves: Bench
) -> list[tuple[Experiment, Experiment]] | None:
    """An experiment of each of the claim's rows and the same one of the curves, if these have all its rows and columns.

    Rows are the same if they have one name and train alike but for the number of images. None too if the claim's rows
    differ in their number of images, or those of the curves do: then there is no number at which to compare them.
    """
    found = []
    for name in claim.rows:
        early, late = _first(benches[claim.table], name), _first(curves, name)
        if late is None or early is None or _training(early) != _training(late):
            return None
        found.append((early, late))
    if len({(early.train.images_seen, late.train.images_seen) for early, late in found}) != 1:
        return None
    metrics = [part.metric for part in claim.parts]
    if any(each not in curves.table.columns or metric_of(each) in curves.unavailable for each in metrics):
        return None
    return found


def find_crossing(claim: Claim, benches: Mapping[str, Bench], curves: Bench) -> Crossing | None:
    """None if the claim's rows have no curves, runs of the curves are missing, or a number is not finite."""
    if (shared := find_shared(claim, benches, curves)) is None:
        return None
    finished = {(cell.row.name, cell.experiment.seed): curves.find_finished(cell) for cell in curves.cells}
    runs = {key: run for key, run in finished.items() if run is not None}
    if len(runs) < len(finished):
        return None
    images = shared[0][0].train.images_seen, shared[0][1].train.images_seen
    differences, folds = [], []
    for part in claim.parts:
        sign = 1 if curves.better_direction(part.metric) == "higher" else -1
        seeds = [seed for name, seed in runs if name == part.better and (part.worse, seed) in runs]
        pairs = [(runs[part.better, seed], runs[part.worse, seed]) for seed in seeds]
        tiles = [len(better.stats[1]["ids"]) for better, _ in pairs]
        early, late = (
            sign * over_folds([a.number(name) - b.number(name) for a, b in pairs], tiles).value
            for name in (_at(part.metric, images[0]), part.metric)
        )
        differences.append((early, late))
        folds.append(len(pairs))
    if not np.isfinite(differences).all():
        return None
    return Crossing(images, min(folds), tuple(differences))


def _first(bench: Bench, row: str) -> Experiment | None:
    return next((cell.experiment for cell in bench.cells if cell.row.name == row), None)


def _training(experiment: Experiment) -> dict[str, Any]:
    """What a run's id is made of, without the number of images, unless the learning rate follows it."""
    identity = experiment.identity()
    if experiment.optimizer.schedule != "constant":
        return identity
    return identity | {"train": {key: value for key, value in identity["train"].items() if key != "images"}}


def _at(column: str, images: int) -> str:
    """
    >>> _at("fcn_score.class_iou", 14000)
    'fcn_score@14000.class_iou'
    """
    name, dot, key = column.partition(".")
    return f"{name}@{images}{dot}{key}"
