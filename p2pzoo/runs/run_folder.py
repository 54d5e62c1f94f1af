"""A run: its identity, its folder, and what is in it.

runs/<recipe>/<profile>-seed<N>-<id>/
    recipe.toml       the resolved recipe; it can be run again
    status.json       state, images seen, versions and source hashes
    env.json          machine and software
    metrics.jsonl     losses; they depend on recipe and seed only
    timings.jsonl     seconds, waiting, memory; they depend on the machine
    findings.jsonl    problems that the training monitor found, if any (monitor.py)
    kernels.json      a copy of `[compute] kernels`, if set; a resumed run uses it again
    samples/          x | ŷ | y grids
    checkpoints/      the newest two while training, the last one afterwards; each holds a model too
    model.safetensors    G as it is after the last step
    average.safetensors  G with the average of its weights (training/kept_average.py)
    snapshots/           G as it was earlier, for the metrics that measure it (`[evaluate] at`)
    results.json, stats.safetensors
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import tomli_w

from p2pzoo.config.experiment import Experiment
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write, parse_json, parse_toml, read_object, refuse_pipe, write_json, write_text
from p2pzoo.utils.find_runs import find_only_run
from p2pzoo.utils.version import __version__


class Run:
    """A run's folder. Creating the object writes nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.samples = folder / "samples"
        self.model = folder / "model.safetensors"
        self.average = folder / "average.safetensors"
        self.snapshots = folder / "snapshots"
        self.results = folder / "results.json"
        self.stats = folder / "stats.safetensors"
        self.recipe = folder / "recipe.toml"
        self.kernels = folder / "kernels.json"

    @property
    def status(self) -> dict[str, Any]:
        """The content of status.json; that of a new run if the file is missing or damaged."""
        status = read_object(self.folder / "status.json") or {}
        is_intact = isinstance(status.get("state"), str) and type(status.get("images", 0)) is int
        is_intact = is_intact and isinstance(status.get("sources", {}), dict)
        return {"images": 0, **status} if is_intact else {"state": "new", "images": 0}

    @property
    def state(self) -> str:
        """ "new", "training", "interrupted", "failed", "trained" or "complete"."""
        return str(self.status["state"])

    def set_status(self, **changes: Any) -> None:
        write_json(self.folder / "status.json", {**self.status, **changes})

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run's lock. Raises UserError if another process holds it, or if the folder cannot be made.

        Makes the folder. It goes again, with folders above it that are new too, if nothing is written into it.
        """
        new = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot make this folder ({error.strerror}); choose another place with --runs"
            ) from None
        lock = self.folder / ".lock"
        try:
            with filelock.FileLock(lock).acquire(timeout=0):
                for file in self.folder.rglob(f".*.{'[0-9a-f]' * 9}*.tmp"):  # of `atomic_write` in a killed process
                    file.unlink()
                try:
                    yield
                finally:
                    with contextlib.suppress(OSError):  # on Windows an empty folder stays: no open file can be deleted
                        if new and [*self.folder.iterdir()] == [lock]:
                            lock.unlink()
                            for folder in new:  # up to the first that holds something else
                                folder.rmdir()
        except filelock.Timeout:
            raise UserError(f"{self.folder}: another process is working on this run; wait for it or stop it") from None

    def begin(self, experiment: Experiment, env: Mapping[str, Any], hashes: Mapping[str, str]) -> None:
        """Write the resolved recipe, the environment and the status.

        hashes  of code (`Experiment.sources`) and data
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.samples.mkdir(exist_ok=True)
        resolved = experiment.resolved()
        resolved["compute"].pop("kernels", None)  # kernels.json has its content
        write_text(self.recipe, tomli_w.dumps(resolved))
        write_json(self.folder / "env.json", env)
        self.set_status(
            state="training", id=experiment.id, seed=experiment.seed, profile=experiment.recipe.profile,
            recipe=experiment.recipe.name, p2pzoo=__version__, sources=hashes,
        )  # fmt: skip

    def add_metrics(self, experiment: Experiment) -> None:
        """Add metrics to recipe.toml that were measured after the training, and which weights of G they measured."""
        refuse_pipe(self.recipe)
        try:
            recipe = parse_toml(self.recipe.read_text("utf-8"))
        except (FileNotFoundError, ValueError):  # lost or damaged
            recipe = experiment.resolved()
        added = {"metrics": recipe.get("metrics", {}) | experiment.resolved().get("metrics", {})}
        added["evaluate"] = recipe.get("evaluate", {}) | {"weights": experiment.evaluate.weights}
        if added != {key: recipe.get(key) for key in added}:
            write_text(self.recipe, tomli_w.dumps(recipe | added))

    def clear(self) -> None:
        """Delete what this run wrote (--fresh), and nothing else."""
        (self.folder / "status.json").unlink(missing_ok=True)
        for file in sorted(self.checkpoints.glob("*.safetensors"), reverse=True):
            file.unlink()  # newest first, before the log: if cut off, the run resumes with bit-identical results
        for name in ("metrics.jsonl", "timings.jsonl", "findings.jsonl", "report.html"):
            (self.folder / name).unlink(missing_ok=True)
        files = (self.kernels, self.model, self.average, self.results, self.stats)
        for file in (*files, *self.snapshots.glob("*.safetensors"), *self.samples.glob("*.png")):
            file.unlink(missing_ok=True)

    def weights(self, weights: str, at: int | None = None) -> Path:
        """The model file with these weights of G.

        weights  "last" or "average"
        at       images after which G was so; None: the end of the training

        >>> run = Run(Path("runs/mine/laptop-seed0-abc"))
        >>> run.weights("average").name, run.weights("average", 3500).name
        ('average.safetensors', 'average-0000003500.safetensors')
        """
        if at is None:
            return self.model if weights == "last" else self.average
        return self.snapshots / f"{weights}-{at:010d}.safetensors"

    # --- logs ---

    def append(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append lines to a log (name.jsonl), and wait until they are on the disk."""
        with (self.folder / name).open("a", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of a log. Skips lines that were cut off or damaged."""
        file = self.folder / name
        if not file.exists():
            return []
        refuse_pipe(file)
        lines = []
        for text in file.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):
                line = parse_json(text)
                if isinstance(line, dict) and type(line.get("images")) is int:
                    lines.append(line)
        return lines

    def truncate(self, name: str, images: int) -> None:
        """Remove the lines of a log after `images`, where training resumes."""
        kept = [line for line in self.lines(name) if line["images"] <= images]
        with atomic_write(self.folder / name) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")


def locate_run(experiment: Experiment, runs: Path) -> Run:
    """The run of this experiment: an existing folder, even under another recipe's name, else a new one."""
    default = runs / experiment.recipe.name / f"{experiment.recipe.profile}-seed{experiment.seed}-{experiment.id}"
    if (default / "status.json").exists():
        return Run(default)
    for folder in sorted(runs.glob(f"*/*-{experiment.id}")):
        if (folder / "status.json").exists():
            return Run(folder)
    return Run(default)


def find_run(path: Path) -> Run:
    """The run that a folder is, or the only one in it. Raises UserError if there is none, or a choice."""
    path = find_only_run(path)
    if not (path / "status.json").is_file() or not (path / "recipe.toml").is_file():
        raise UserError(f"{path}: not a run folder (it has no status.json and recipe.toml)")
    return Run(path)
