"""What a table would train: each run, whether it is there, and about how long a missing one takes (`--dry-run`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from p2pzoo.runs.progress import format_duration
from p2pzoo.runs.run_folder import locate_run
from p2pzoo_bench.bench import Bench, Cell
from p2pzoo_bench.executors import ACCEPT_STALE, FRESH, RunningJob
from p2pzoo_bench.stored_results import FinishedRun


@dataclass(frozen=True)
class PlannedRun:
    """A run of the table.

    state        "complete"; "evaluate": trained, and metrics are missing; "resume"; "train"; or "changed": its data
                 changed after it was trained, and neither --fresh nor --accept-stale says what to do
    images       that the whole run trains on
    steps        training steps of the whole run
    images_left  that it has still to train on
    seconds      about how long that takes, by the finished runs of its row; None without one, or if nothing is left
    folder       of its results, if it is complete; else where it is trained
    changed      the data that changed, such as "train data"
    """

    row: str
    label: str
    recipe: str
    seed: int
    id: str
    state: str
    images: int
    steps: int
    images_left: int
    seconds: float | None
    folder: str
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        work = {
            "complete": f"complete, {self.folder}",
            "evaluate": f"trained, metrics are to be measured, {self.folder}",
            "resume": f"{self.images_left} images left of {self.images}",
            "train": f"{self.images} images ({self.steps} steps)",
            "changed": f"{' and '.join(self.changed)} changed since it was trained, {self.folder}: {FRESH} trains it "
            f"again, {ACCEPT_STALE} uses it as it is",
        }[self.state]
        time = f", about {format_duration(self.seconds)}" if self.seconds is not None else ""
        number = "" if self.state in ("complete", "evaluate", "changed") else f", {self.recipe}, id {self.id}"
        return f"{self.label}, seed {self.seed}: {work}{time}{number}"


def plan_runs(bench: Bench) -> list[PlannedRun]:
    """Every run of the table, in the order in which they are trained. Rows that share an experiment share its run."""
    finished = {cell.experiment.id: bench.find_finished(cell) for cell in bench.cells}
    rates = _seconds_per_image((cell, finished[cell.experiment.id]) for cell in bench.cells)
    return [_plan_run(bench, cell, finished[cell.experiment.id], rates) for cell in bench.cells]


def summarize_plan(runs: Sequence[PlannedRun]) -> dict[str, Any]:
    """The plan as JSON. seconds: of all runs that are not complete, one after the other; None if one is unknown."""
    by_id = {run.id: run for run in runs if run.state != "complete"}
    times = [run.seconds for run in by_id.values() if run.images_left]
    known = [seconds for seconds in times if seconds is not None]
    return {
        "runs": [asdict(run) for run in runs],
        "missing": len(by_id),
        "images": sum(run.images_left for run in by_id.values()),
        "seconds": sum(known) if times and len(known) == len(times) else None,
    }


def _plan_run(bench: Bench, cell: Cell, finished: FinishedRun | None, rates: Mapping[str, float]) -> PlannedRun:
    run = locate_run(cell.experiment, bench.runs)
    changed = () if finished else tuple(bench.find_changed_data(cell))
    is_fresh = not finished and bench.starts_over(cell)
    done = 0 if is_fresh or changed else RunningJob(bench.job(cell)).images
    if finished:
        state, folder, left = "complete", finished.folder, 0
    elif is_fresh or changed:
        state, folder, left = "train" if is_fresh else "changed", run.folder, cell.images
    elif run.state in ("trained", "complete"):
        state, folder, left = "evaluate", run.folder, 0
    else:
        state, folder, left = "resume" if done else "train", run.folder, cell.images - done
    rate = rates.get(cell.row.name)
    return PlannedRun(
        row=cell.row.name, label=cell.row.label, recipe=str(cell.row.recipe), seed=cell.experiment.seed,
        id=cell.experiment.id, state=state, images=cell.images, steps=cell.experiment.train.steps, images_left=left,
        seconds=left * rate if rate and left else None, folder=str(folder),
        changed=changed,
    )  # fmt: skip


def _seconds_per_image(runs: Iterable[tuple[Cell, FinishedRun | None]]) -> dict[str, float]:
    """{row: seconds of training for an image}, the mean over its finished runs that recorded it."""
    seconds: dict[str, list[float]] = {}
    for cell, finished in runs:
        training = finished.env.get("training") if finished else None
        total = training.get("seconds") if isinstance(training, dict) else None
        if isinstance(total, (int, float)) and total > 0:
            seconds.setdefault(cell.row.name, []).append(total / cell.images)
    return {row: sum(values) / len(values) for row, values in seconds.items()}
