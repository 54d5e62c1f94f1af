"""The trials of a search as runs: checked before anything trains, of one length, measured on the validation images."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from p2pzoo_bench.comparison import metric_of
from p2pzoo_bench.executors import ACCEPT_STALE, Executor, Job
from p2pzoo_bench.metric_numbers import list_numbers
from p2pzoo_bench.run_missing import Progress, has_diverged, run_missing
from p2pzoo_bench.table_file import inline, overlaps
from p2pzoo_bench.validation_split import find_split_fault

from p2pzoo import config
from p2pzoo.config.experiment import Experiment
from p2pzoo.config.provenance import changed_sources
from p2pzoo.config.recipe import iter_leaves, parse_override
from p2pzoo.data import Store
from p2pzoo.models.checkpoint_model import list_checkpoints
from p2pzoo.plugin.registry import Registry
from p2pzoo.runs.evaluate import describe_metric
from p2pzoo.runs.results import read_results
from p2pzoo.runs.run_folder import Run, locate_run
from p2pzoo.utils.errors import UserError, raise_faults
from p2pzoo.utils.suggest import did_you_mean
from p2pzoo_search.space import Space
from p2pzoo_search.study import SearchStudy, Trial

VALIDATION = "evaluate.split='val'"
OF_ALL_TRIALS = ("seed", "title", "drop", "train.images", "train.epochs", "evaluate.split")  # not for -s


@dataclass(frozen=True)
class Request:
    """A recipe and what the command line says about it.

    overrides  as -s takes them, for all trials
    seed       of all trials and of the sampler; None: the recipe's
    """

    recipe: str
    profile: str | None
    overrides: tuple[str, ...]
    seed: int | None
    space: Space
    registry: Registry = field(repr=False)

    def load(self, *settings: str) -> Experiment:
        """The experiment with these settings, measured on the validation images. Raises UserError."""
        seeded = () if self.seed is None else (f"seed={self.seed}",)
        every = [*self.overrides, *settings, *seeded, VALIDATION]
        return config.load(self.recipe, self.profile, every, registry=self.registry)


def to_overrides(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings as -s takes them.

    >>> to_overrides({"generator.use": "unet", "losses.l1.weight": 50})
    ('generator.use="unet"', 'losses.l1.weight=50')
    """
    return tuple(f"{name}={inline(value)}" for name, value in settings.items())


def check_request(request: Request, metric: str) -> Experiment:
    """The experiment of the recipe's own settings, if it can be searched.

    Raises UserError with every fault: a name or a value that the recipe does not take, -s that sets what is searched, a
    metric without a better direction, data without validation images of its own.
    """
    faults = []
    for override in request.overrides:
        keys = [".".join(key) for key, _ in iter_leaves(parse_override(override))]
        if any(key in OF_ALL_TRIALS for key in keys):
            faults.append(f"-s {override}: `p2pzoo search` sets it for all trials; remove it")
        for name in request.space.settings:
            if any(overlaps(key, name) for key in keys):
                faults.append(f"-s {override}: {request.space.where(*name.split('.'))} searches it; remove one of them")
    if faults:
        raise UserError(*faults)
    experiment = request.load()
    faults = [*_find_bad_values(request), *_find_metric_faults(request.space, experiment, metric)]
    if fault := find_split_fault(experiment):
        faults.append(fault)
    if faults:
        raise UserError(*faults)
    return experiment


def _find_bad_values(request: Request) -> list[str]:
    """Faults of names and of values, each value tried alone. Another component's own parameters are left to trials."""
    faults: dict[str, str] = {}
    replaced = {name.removesuffix(".use") for name in request.space.settings if name.endswith(".use")}
    for name, choice in request.space.settings.items():
        if name.rpartition(".")[0] in replaced and not name.endswith(".use"):
            continue
        for value in choice.ends():
            [override] = to_overrides({name: value})
            try:
                request.load(override)
            except UserError as error:
                for fault in error.faults:
                    message = str(fault).removeprefix(f"-s {override}").lstrip(": ").strip()
                    where = request.space.where(*name.split("."))
                    faults.setdefault(f"{name} {message.partition(' = ')[0]}", f"{where}  [search] {name}: {message}")
    return list(faults.values())


def _find_metric_faults(space: Space, experiment: Experiment, metric: str) -> list[str]:
    where = space.where("metric") if space.metric == metric else "--metric"
    measurement = experiment.measurements.get(metric_of(metric))
    if measurement is None:
        names = [*experiment.measurements]
        return [f"{where}  metric '{metric}': the recipe does not measure it{did_you_mean(metric, names)}"]
    if better_direction(experiment, metric) is None:
        return [f"{where}  metric '{metric}': neither more nor less of it is better; name another metric"]
    store = Store(experiment.dataset.build(split="val"), compute=experiment.compute)
    parts = list_numbers(experiment, metric_of(metric), store)
    return [] if metric in parts else [f"{where}  metric '{metric}': no such part{did_you_mean(metric, parts)}"]


def better_direction(experiment: Experiment, metric: str) -> str | None:
    """ "higher", "lower", or None if neither is better."""
    better: str | None = getattr(experiment.measurements[metric_of(metric)].metric.factory, "better", None)
    return better


def describe_measurement(experiment: Experiment, metric: str) -> dict[str, Any]:
    """What a score depends on besides the weights and the data: the metric, and how G translates for it."""
    measurement = experiment.measurements[metric_of(metric)]
    built = measurement.metric.build(dataset=experiment.dataset.build(split="val"))
    return {**describe_metric(measurement.metric, built), **measurement.translations.protocol()}


class Interrupted(Exception):
    """A trial ended for a reason that may lie in the machine, so it stays unfinished."""


@dataclass
class Search:
    """A search that runs: it begins trials, trains them, and keeps their scores.

    options  for every `p2pzoo run`, such as --accept-stale
    """

    request: Request
    study: SearchStudy
    folder: Path
    metric: str
    images: int
    options: tuple[str, ...] = ()
    failures: dict[int, str] = field(default_factory=dict)  # of this call, by trial

    def refuse_changed_code(self) -> None:
        """Raises UserError with all interrupted trials that began with other code, unless --accept-stale is given.

        Their runs would be refused, and a trial that failed is not tried again.
        """
        if ACCEPT_STALE not in self.options:
            raise_faults([
                f"{run.folder}: trial {trial.number + 1} began with other code ({', '.join(changed)} changed since): "
                f"go on with {ACCEPT_STALE}, or search from the start in another --study"
                for trial, run, changed in self._find_changed_code(self.study.unfinished())
                if run.state not in ("trained", "complete") and list_checkpoints(run.folder)
            ])  # fmt: skip

    def find_stale(self) -> dict[str, list[str]]:
        """{run folder: the sources that changed} of finished trials that other code trained."""
        finished = [trial for trial in self.study.trials() if trial.state == "finished"]
        return {str(run.folder): changed for _, run, changed in self._find_changed_code(finished)}

    def _find_changed_code(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Run, list[str]]]:
        """(trial, its run, the sources that changed) of those whose run began with other code."""
        for trial in trials:
            with contextlib.suppress(UserError):  # settings that do not go together have no run
                experiment = self.load(trial)
                run = locate_run(experiment, self.folder / "runs")
                if changed := changed_sources(run.status.get("sources", {}), experiment.sources):
                    yield trial, run, changed

    def continue_until(self, count: int, executor: Executor, jobs: int, progress: Progress) -> None:
        """Train until the study has this many trials.

        Trials of one group train at a time and know only those of the groups before, so that the same trials come in
        any order of their ends.

        Raises Stopped after a signal, and Interrupted after a group with a trial that ended for a reason that may lie
        in the machine: that one stays unfinished. If it ends so a second time, it has failed.
        """
        while group := self._next_group(count, jobs):
            experiments: dict[int, Experiment] = {}
            for trial in group:
                try:
                    experiments[trial.number] = self.load(trial)
                except UserError as error:
                    self.failures[trial.number] = str(error.faults[0])
            waiting = {  # by id: two trials may have equal settings
                experiment.id: Job(self._title(number, count), experiment, self.folder / "runs", self.options)
                for number, experiment in experiments.items()
                if self.read_score(experiment) is None
            }
            failed = run_missing([*waiting.values()], executor, progress) if waiting else {}
            interrupted: list[str] = []
            for trial in group:
                experiment = experiments.get(trial.number)
                score = self.read_score(experiment) if experiment else None
                if experiment and score is None:
                    reason = self.failures[trial.number] = failed.get(experiment.id, "its metric is not a number")
                    if not self._is_of_settings(experiment) and self.study.is_first_failure(trial, reason):
                        interrupted.append(f"{self._title(trial.number, count)}: {reason}")
                        continue
                self.study.tell(trial, score)
                shown = "failed: " + self.failures[trial.number] if score is None else f"{self.metric} {score:.5g}"
                progress.note(f"{self._title(trial.number, count)}: {shown}")
            if interrupted:
                raise Interrupted("; ".join(interrupted))

    def _is_of_settings(self, experiment: Experiment) -> bool:
        """Whether the settings are why a trial has no score: it diverged, or its number is not finite."""
        run = locate_run(experiment, self.folder / "runs")
        return run.state == "complete" or has_diverged(run)

    def _next_group(self, count: int, jobs: int) -> list[Trial]:
        group = self.study.unfinished()
        begun = len(self.study.trials())
        while begun < count and (begun % jobs or not group):
            group.append(self.study.ask())
            begun += 1
        return group

    def _title(self, number: int, count: int) -> str:
        return f"trial {number + 1} of {max(count, len(self.study.trials()))}"

    def load(self, trial: Trial) -> Experiment:
        """The experiment of a trial. Raises UserError if its settings do not go together."""
        experiment = self.request.load(*to_overrides(trial.settings), f"train.images={self.images}")
        return replace(experiment, recipe=replace(experiment.recipe, name="trials"))

    def find_run(self, trial: Trial) -> Run | None:
        """The run of a trial; None if its settings do not go together."""
        try:
            return locate_run(self.load(trial), self.folder / "runs")
        except UserError:
            return None

    def read_score(self, experiment: Experiment) -> float | None:
        """The metric of a complete run on the validation images; None if it is not complete or has no finite number."""
        run = locate_run(experiment, self.folder / "runs")
        results = read_results(run.results) if run.state == "complete" else None
        if results is None:
            return None
        number = results["metrics"].get(self.metric)
        if number is None or results["protocols"][number["protocol"]]["split"] != "val":
            return None
        value = float(number["value"])
        return value if math.isfinite(value) else None
