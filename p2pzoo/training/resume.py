"""What a run resumes with: the same code and data, the same kernels; or the last checkpoint of another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from p2pzoo.compute.conv_algorithms import ConvAlgorithm
from p2pzoo.compute.tuned_kernels import read_kernels, read_recipe_kernels, write_kernels
from p2pzoo.config.experiment import Experiment
from p2pzoo.config.provenance import changed_sources
from p2pzoo.models.checkpoint_model import list_checkpoints
from p2pzoo.runs.run_folder import Run
from p2pzoo.utils.errors import UserError


def refuse_stale(run: Run, hashes: Mapping[str, str]) -> None:
    """Raises UserError if the run has checkpoints of other code or data. hashes: of today's (`Experiment.sources`)."""
    changed = changed_sources(run.status.get("sources", {}), hashes)
    if changed and list_checkpoints(run.folder):
        raise UserError(
            f"{run.folder}: this run began with other code or data ({', '.join(changed)} changed since): start over "
            "with --fresh, or resume with --accept-stale"
        )


def choose_kernels(experiment: Experiment, run: Run, *, fresh: bool = False) -> dict[str, ConvAlgorithm]:
    """The kernels to train with: those that the run began with, unless it starts over; else those of [compute] kernels.

    Raises UserError if the recipe has other kernels than the run.
    """
    file = experiment.compute.kernels
    recipe_kernels = read_recipe_kernels(experiment.compute)
    if fresh or not list_checkpoints(run.folder):
        return recipe_kernels
    run_kernels = read_kernels(run.kernels) if run.kernels.exists() else {}
    if file and recipe_kernels != run_kernels:
        raise UserError(
            f"{run.folder}: this run began with other kernels than {file} has: remove compute.kernels to resume with "
            "the run's own, or start over with --fresh"
        )
    return run_kernels


def store_kernels(kernels: Mapping[str, ConvAlgorithm], run: Run) -> None:
    """Write kernels.json, or remove it if there are none."""
    if kernels:
        write_kernels(run.kernels, kernels)
    else:
        run.kernels.unlink(missing_ok=True)


def find_start(experiment: Experiment, continued: Run) -> Path:
    """The last checkpoint of another run. Raises UserError if it cannot be continued."""
    if continued.state != "complete":
        raise UserError(f"{continued.folder}: --continue-from takes a complete run; this one is {continued.state}")
    if not (checkpoints := list_checkpoints(continued.folder)):
        advice = f"start from its weights with -s init.generator={continued.model}"
        raise UserError(f"{continued.folder}: its checkpoints are gone, so --continue-from cannot use it: {advice}")
    images = int(continued.status["images"])
    if experiment.train.length <= images:
        raise UserError(
            f"--continue-from: {continued.folder} has seen {images} images and the recipe asks for "
            f"{experiment.train.length}; raise it, as in -s train.images={2 * images}"
        )
    return checkpoints[-1]


def describe_jump_of_lr(experiment: Experiment, continued: Run) -> str | None:
    """A line if the learning rate rises where this run goes on from another: its schedule spans the longer training."""
    *_, last = continued.lines("metrics.jsonl") or [{}]
    settings, images = experiment.train, int(continued.status["images"])
    before, now = last.get("lr"), experiment.optimizer.lr_at(images / settings.images_seen)
    if before is None or now <= 1.01 * before:
        return None
    return (
        f"the learning rate goes up from {before:.3g}, where {continued.folder} ended, to {now:.3g}: the schedule "
        f"'{experiment.optimizer.schedule}' now spans {settings.images_seen} images; for a rate that stays low, set "
        'optimizer.schedule = "constant" and optimizer.lr'
    )
