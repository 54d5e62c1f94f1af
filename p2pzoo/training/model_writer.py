"""Writes G as model files: at the end of the training, and snapshots during it for the metrics that measure them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import Tensor

from p2pzoo.compute.distributed import on_rank0
from p2pzoo.config.experiment import Experiment
from p2pzoo.data import Store, train_batches
from p2pzoo.data.loader import step_samples
from p2pzoo.models import safetensors_io
from p2pzoo.models.checkpoint_model import images_of, list_checkpoints
from p2pzoo.models.norm_statistics import NORM_IMAGES, estimate_norms
from p2pzoo.runs.run_folder import Run
from p2pzoo.training.checkpoint import State
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError


class ModelWriter:
    """Writes the model files of one run.

    store  of the training pairs
    """

    def __init__(self, experiment: Experiment, run: Run, state: State, store: Store) -> None:
        self._experiment, self._run, self._state, self._store = experiment, run, state, store
        self._snapshots = plan_snapshots(experiment)

    def after_step(self, step: int) -> None:
        """Update the average, and write the snapshots that are due after this step, counted from 1.

        Every process calls this; only the first one writes.
        """
        if self._state.kept_average:
            self._state.kept_average.after_step(step)
        for weights, at in self._snapshots.get(step, ()):
            on_rank0(self._write, weights, at, step)

    def write_final(self) -> None:
        """Write the model files of the finished training. model.safetensors is last: with it the run is trained."""
        if self._state.kept_average:
            self._write("average", None, self._experiment.train.steps)
        self._write("last", None, self._experiment.train.steps)

    def _write(self, weights: str, at: int | None, step: int) -> None:
        header: Mapping[str, object] = self._state.model_header
        path, average = self._run.weights(weights, at), self._state.kept_average
        path.parent.mkdir(exist_ok=True)
        if weights == "last":
            safetensors_io.save_model(path, self._state.final, header)
            return
        assert average is not None, "config refuses weights = average with train.ema"
        with average.in_place(step) as G, rng.torch_seed(rng.derive_seed(self._experiment.seed, "average")):
            estimate_norms(G, self._norm_batches())
            safetensors_io.save_model(path, G, {**header, "weights": "average"})

    def _norm_batches(self) -> Iterator[Tensor]:
        """x of the first training batches of this process, cropped and flipped as in training: at least NORM_IMAGES
        images, but not of more steps than the training has."""
        train = self._experiment.train
        batches = train_batches(self._store, train, self._experiment.seed)
        images_of_step = len(step_samples(0, train.batch_size, train.d_steps))
        for step in range(min(math.ceil(NORM_IMAGES / images_of_step), train.steps)):
            yield self._state.engine.to_device(batches[step]).x


def plan_snapshots(experiment: Experiment) -> dict[int, list[tuple[str, int]]]:
    """{training step: [(weights, images), ...] to keep after it}. A step can take more images than one.

    >>> from p2pzoo import config
    >>> short = ["train.images=10", "train.batch_size=4", "evaluate.at=[2, 3, 8]"]
    >>> plan_snapshots(config.load("zoo:base.toml", "smoke", short))
    {1: [('last', 2), ('last', 3)], 2: [('last', 8)]}
    """
    wanted = {(each.translations.weights, each.translations.at) for each in experiment.measurements.values()}
    steps: dict[int, list[tuple[str, int]]] = {}
    for weights, at in sorted((weights, at) for weights, at in wanted if at is not None):
        steps.setdefault(math.ceil(at / experiment.train.step_images), []).append((weights, at))
    return steps


def refuse_lost_snapshots(experiment: Experiment, run: Run, fresh: bool, continued: Run | None) -> None:
    """Raises UserError if G is to be measured as it was before this training begins, and the run has no such file.

    fresh, continued  as in `run_experiment`
    """
    checkpoints = [] if fresh else list_checkpoints(run.folder)
    seen = images_of(checkpoints[-1]) if checkpoints else int(continued.status["images"]) if continued else 0
    begins = seen // experiment.train.step_images
    early = [each for step, group in plan_snapshots(experiment).items() if step <= begins for each in group]
    if lost := sorted({at for weights, at in early if fresh or not run.weights(weights, at).exists()}):
        raise UserError(
            f"{run.folder}: at = {', '.join(map(str, lost))}: this training goes on after {seen} images, and how G was "
            f"before is lost: give larger numbers{'' if experiment.continued_from else ', or start over with --fresh'}"
        )
