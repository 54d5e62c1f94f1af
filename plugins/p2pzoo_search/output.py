"""What a search writes: the best settings as a recipe, the table of its trials, and how to test them once."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from p2pzoo_bench.table_file import inline
from rich.table import Table

from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.config.recipe import Key, find_recipe, iter_leaves
from p2pzoo.plugin import model_source
from p2pzoo.runs.pages import render_page
from p2pzoo.utils.files import write_text
from p2pzoo_search.study import Trial
from p2pzoo_search.trials import Request, Search, to_overrides


@dataclass(frozen=True)
class Outcome:
    """The trials of a search, the best one, and the files.

    command  tests the best settings once
    """

    search: Search
    trials: Sequence[Trial]
    best: Trial | None
    recipe: Path
    page: Path
    command: str

    @property
    def caution(self) -> str:
        count = sum(trial.score is not None for trial in self.trials)
        return (
            f"The score of the best of {count} trials is optimistic: the same validation images chose it. For a number "
            "to report, train the best settings and test them on the test images, once:"
        )

    def to_json(self) -> dict[str, Any]:
        """The document of --json."""
        return {
            "metric": self.search.metric,
            "better": self.search.study.better,
            "images": self.search.images,
            "best": self._describe(self.best) if self.best else None,
            "trials": [self._describe(trial) for trial in self.trials],
            "file": str(self.recipe),
            "page": str(self.page),
            "command": self.command,
        }

    def _describe(self, trial: Trial) -> dict[str, Any]:
        run = self.search.find_run(trial)
        return {
            "trial": trial.number + 1, "settings": dict(trial.settings), "score": trial.score, "state": trial.state,
            "run": str(run.folder) if run else None, "reason": self.search.failures.get(trial.number),
        }  # fmt: skip

    def to_rich(self) -> Table:
        """The table of the trials, the best first."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("trial", *self.search.study.space.settings, self.search.metric):
            table.add_column(heading)
        for row in self._rows():
            table.add_row(str(row["number"]), *row["settings"], row["score"])
        return table

    def to_html(self) -> str:
        """The page of the search."""
        search = self.search
        failed = sum(trial.state == "failed" for trial in self.trials)
        about = (
            f"{len(self.trials)} trials of {search.images:,} images each, by {search.metric} on the validation images, "
            f"seed {search.study.seed}"
        )
        return render_page(
            Path(__file__).parent / "search.html",
            recipe=search.request.recipe, about=about + (f"; {failed} failed" if failed else ""), names=[
            *search.study.space.settings], metric=search.metric, better=search.study.better, rows=self._rows(),
            caution=self.caution if self.best else "", command=self.command,
        )  # fmt: skip

    def _rows(self) -> list[dict[str, Any]]:
        sign = 1 if self.search.study.better == "lower" else -1
        ranked = sorted(self.trials, key=lambda t: (t.score is None, sign * (t.score or 0.0), t.number))
        return [
            {
                "number": trial.number + 1,
                "best": trial == self.best,
                "settings": [_show(trial.settings.get(name)) for name in self.search.study.space.settings],
                "score": trial.state if trial.score is None else f"{trial.score:.5g}",
                "run": run.folder.name if (run := self.search.find_run(trial)) else "",
            }
            for trial in ranked
        ]


def write_outcome(search: Search, folder: Path) -> Outcome:
    """Write best.toml and search.html."""
    recipe, page = folder / "best.toml", folder / "search.html"
    request = search.request
    command = ["p2pzoo", "run", str(recipe), *(("--profile", request.profile) if request.profile else ())]
    command += ("--seed", str(request.seed)) if request.seed is not None else ()
    outcome = Outcome(search, search.study.trials(), search.study.best(), recipe, page, shlex.join(command))
    if outcome.best:
        write_text(recipe, to_recipe(request, outcome.best, search.metric, folder, len(outcome.trials)))
    write_text(page, outcome.to_html())
    return outcome


def to_recipe(request: Request, best: Trial, metric: str, folder: Path, count: int) -> str:
    """A recipe that extends the searched one by the best settings, of its own length, tested on the test images.

    folder  of the recipe: its paths are relative to it
    """
    file = find_recipe(request.recipe)
    extends = request.recipe if request.recipe.startswith("zoo:") else _relative(file, folder)
    experiment = request.load(*to_overrides(best.settings))
    tree: dict[str, Any] = {"extends": extends, "title": f"{experiment.title}: the best of {count} trials"}
    for key, value in _iter_overridden(experiment, folder):
        table = tree
        for part in key[:-1]:
            table = table.setdefault(part, {})
        table[key[-1]] = value
    tree["evaluate"]["split"] = "test"
    return f"# written by p2pzoo search: {metric} = {best.score:.6g} on the validation images\n{tomli_w.dumps(tree)}"


def _iter_overridden(experiment: Experiment, folder: Path) -> Iterator[tuple[Key, Any]]:
    """(key, value) of what the command line and the trial set and no later setting dropped, as another `use` does.

    The seed is an option of the command, and the profile too.
    """
    recipe = experiment.recipe
    for key, value in iter_leaves(recipe.values):
        if recipe.file_of(key) is None and key[0] not in ("profile", "seed"):
            path = functools.reduce(_look_up, key, experiment)
            is_address = key[0] == "init" and model_source.is_address(value)
            yield key, _relative(path, folder) if isinstance(path, Path) and not is_address else value


def _look_up(holder: Any, name: str) -> Any:
    """The checked value of a name in a table of an experiment; None if it is not kept under this name."""
    if isinstance(holder, Component):
        holder = {"evaluate": holder.evaluate, **holder.values}
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def _relative(path: Path, folder: Path) -> str:
    """A path from a folder; an absolute one stays as it is."""
    return str(path) if path.is_absolute() else os.path.relpath(path.resolve(), folder.resolve())


def _show(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else inline(value)
