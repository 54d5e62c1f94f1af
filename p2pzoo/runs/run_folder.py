"""A run: its identity, its folder, and what is in it.

runs/<recipe>/<profile>-seed<N>-<id>/
    recipe.toml       the resolved recipe; it can be run again
    status.json       state, images seen, versions and source hashes
    env.json          machine and software
    metrics.jsonl     losses; a function of recipe and seed only
    timings.jsonl     wall-clock, waiting, memory; not
    findings.jsonl    what the doctor has noticed, if anything (see health.py)
    kernels.json      what `[compute] kernels` said, if anything; a resumed run goes on with it
    samples/          x | ŷ | y grids
    checkpoints/      the newest two while training, the last one afterwards
    model.safetensors, results.json, stats.safetensors
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
from p2pzoo.utils.files import atomic_write, parse_json, parse_toml, read_object, write_json, write_text
from p2pzoo.utils.version import __version__


class Run:
    """A run's folder. Creating the object writes nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.samples = folder / "samples"
        self.model = folder / "model.safetensors"
        self.results = folder / "results.json"
        self.stats = folder / "stats.safetensors"
        self.recipe = folder / "recipe.toml"
        self.kernels = folder / "kernels.json"

    @property
    def status(self) -> dict[str, Any]:
        """status.json; where that is not there or not whole, what a new run's would say."""
        found = read_object(self.folder / "status.json") or {}
        whole = isinstance(found.get("state"), str) and type(found.get("images", 0)) is int
        whole = whole and isinstance(found.get("sources", {}), dict)
        return {"images": 0, **found} if whole else {"state": "new", "images": 0}

    @property
    def state(self) -> str:
        return str(self.status["state"])

    def set_status(self, **changes: Any) -> None:
        write_json(self.folder / "status.json", {**self.status, **changes})

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Only one process works on a run. Raises UserError if another one does."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            told = f"cannot make this folder ({error.strerror}); choose another place with --runs"
            raise UserError(f"{self.folder}: {told}") from None
        lock = filelock.FileLock(self.folder / ".lock")
        try:
            with lock.acquire(timeout=0):
                for left in self.folder.rglob(".*.tmp"):  # by a process that was killed
                    left.unlink()
                yield
        except filelock.Timeout:
            raise UserError(f"{self.folder}: another process is working on this run; wait for it or stop it") from None

    def begin(self, experiment: Experiment, env: Mapping[str, Any], made_from: Mapping[str, str]) -> None:
        """Make the folder ready: resolved recipe, environment, status. `made_from`: see `sources`."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.samples.mkdir(exist_ok=True)
        resolved = experiment.resolved()
        resolved["compute"].pop("kernels", None)  # kernels.json has its content
        write_text(self.recipe, tomli_w.dumps(resolved))
        write_json(self.folder / "env.json", env)
        self.set_status(
            state="training", id=experiment.id, seed=experiment.seed, profile=experiment.recipe.profile,
            recipe=experiment.recipe.name, p2pzoo=__version__, sources=made_from,
        )  # fmt: skip

    def add_metrics(self, experiment: Experiment) -> None:
        """Metrics that were measured after the run was begun belong to its recipe too."""
        try:
            kept = parse_toml(self.recipe.read_text("utf-8"))
        except (FileNotFoundError, ValueError):  # lost, or damaged since
            kept = experiment.resolved()
        metrics = kept.get("metrics", {}) | experiment.resolved().get("metrics", {})
        if metrics != kept.get("metrics", {}):
            write_text(self.recipe, tomli_w.dumps(kept | {"metrics": metrics}))

    def clear(self) -> None:
        """Forget what this run has done so far (--fresh). Touches only what a run writes."""
        (self.folder / "status.json").unlink(missing_ok=True)
        for file in sorted(self.checkpoints.glob("*.safetensors"), reverse=True):
            file.unlink()  # newest first and before the log: cut off here, the run still resumes as it would have
        for name in ("metrics.jsonl", "timings.jsonl", "findings.jsonl", "report.html"):
            (self.folder / name).unlink(missing_ok=True)
        for file in (self.kernels, self.model, self.results, self.stats, *self.samples.glob("*.png")):
            file.unlink(missing_ok=True)

    # --- logs ---

    def append(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a log; one that was cut off, or damaged, is left out."""
        file = self.folder / name
        if not file.exists():
            return []
        found = []
        for text in file.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):
                line = parse_json(text)
                if isinstance(line, dict) and type(line.get("images")) is int:
                    found.append(line)
        return found

    def truncate(self, name: str, images: int) -> None:
        """Drop what a log says of after `images`: training goes on from there."""
        kept = [line for line in self.lines(name) if line["images"] <= images]
        with atomic_write(self.folder / name) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")


def run_for(experiment: Experiment, runs: Path) -> Run:
    """The folder of this experiment: one that holds it already, whatever recipe it was made by, else its own."""
    own = runs / experiment.recipe.name / f"{experiment.recipe.profile}-seed{experiment.seed}-{experiment.id}"
    if (own / "status.json").exists():
        return Run(own)
    for folder in sorted(runs.glob(f"*/*-{experiment.id}")):
        if (folder / "status.json").exists():
            return Run(folder)
    return Run(own)


def find_run(path: Path) -> Run:
    """The run at a path the user gave. Raises UserError if there is none."""
    if not (path / "status.json").is_file() or not (path / "recipe.toml").is_file():
        raise UserError(f"{path}: not a run folder (it has no status.json and recipe.toml)")
    return Run(path)


# --- where the code came from ----------------------------------------------------------------------------------
