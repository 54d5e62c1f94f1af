"""A search that can stop and go on: Optuna's study in a file, and what its trials have in common.

A folder with

    journal.log   Optuna's journal: the trials, their settings and scores
    search.json   what all trials share; another search in this folder is refused
    rates.json    how fast the recipe trains, with --budget
    failures.json why trials ended without a score, if the reason may lie in the machine
    runs/         the runs of the trials
    best.toml, search.html

The sampler of each trial has a seed of its own, made of the search's seed and the trial's number: an interrupted search
goes on with the trials that it would have tried.
"""

from __future__ import annotations

import contextlib
import json
import operator
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
from p2pzoo_bench.comparison import describe_differences

from p2pzoo.config.recipe import is_same_component
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import read_object, write_json
from p2pzoo.utils.rng import derive_seed
from p2pzoo_search.space import Choices, Range, Space

try:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, TrialState
except ImportError as error:
    raise UserError(f"p2pzoo search needs the package optuna ({error}): pip install 'p2pzoo[search]'") from None

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Trial:
    """A trial of the search.

    settings  {dotted name: value}
    score     value of the metric on the validation images; None if it has none
    state     "finished", "failed" or "unfinished"
    """

    number: int
    settings: Mapping[str, Any]
    score: float | None
    state: str


class SearchStudy:
    """The trials of a folder. Use it inside `lock_study`."""

    def __init__(self, folder: Path, space: Space, better: str, seed: int) -> None:
        self.space, self.better, self.seed = space, better, seed
        self._failures = folder / "failures.json"
        direction = "minimize" if better == "lower" else "maximize"
        storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
        with warnings.catch_warnings(action="ignore"):
            self._study = optuna.create_study(
                storage=storage, study_name="p2pzoo", load_if_exists=True, direction=direction
            )

    def trials(self) -> list[Trial]:
        """All trials that were begun, by number."""
        return [self._describe(trial) for trial in self._asked()]

    def unfinished(self) -> list[Trial]:
        """Those that an earlier call began and did not end."""
        return [trial for trial in self.trials() if trial.state == "unfinished"]

    def best(self) -> Trial | None:
        """The first of the best trials; None if none has a score."""
        scored = [trial for trial in self.trials() if trial.score is not None]
        sign = 1 if self.better == "lower" else -1
        return min(scored, key=lambda trial: sign * (trial.score or 0.0), default=None)

    def begin_with(self, own: Mapping[str, Any]) -> list[str]:
        """Make the recipe's own settings the first trial of a new study, if [search] allows them.

        own  {dotted name: value} of the recipe

        Returns the names of those that [search] does not allow; [] also if the study has begun.
        """
        if self._study.get_trials(deepcopy=False):
            return []
        encoded = {name: _encode(name, choice, own.get(name)) for name, choice in self.space.settings.items()}
        refused = [name for name, value in encoded.items() if value is None]
        if not refused:
            self._study.enqueue_trial(encoded)
        return refused

    def ask(self) -> Trial:
        """Begin the next trial: the first ten are random, then TPE (Bergstra et al. 2011) looks at those before."""
        number = len(self._asked())
        self._study.sampler = optuna.samplers.TPESampler(seed=derive_seed(self.seed, "search", number) % 2**32)
        asked = self._study.ask()
        for name, choice in self.space.settings.items():
            if isinstance(choice, Choices):  # by index: Optuna stores plain values only, and TOML has arrays
                asked.suggest_categorical(name, range(len(choice.values)))
            elif choice.is_integer:
                asked.suggest_int(name, int(choice.low), int(choice.high), log=choice.log)
            else:
                asked.suggest_float(name, choice.low, choice.high, log=choice.log)
        return self.trials()[number]

    def tell(self, trial: Trial, score: float | None) -> None:
        """End a trial. score: None if it failed or has no finite value."""
        state = TrialState.FAIL if score is None else TrialState.COMPLETE
        self._study.tell(trial.number, score, state=state)

    def is_first_failure(self, trial: Trial, reason: str) -> bool:
        """Whether a trial that may have ended because of the machine did so for the first time. Keeps the reason."""
        known = read_object(self._failures) or {}
        write_json(self._failures, {**known, str(trial.number): reason})
        return str(trial.number) not in known

    def _asked(self) -> list[FrozenTrial]:
        """Those that are begun; one that waits is not. A trial without all its settings was cut off while it began."""
        trials = self._study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING and trial.params.keys() != self.space.settings.keys():
                self._study.tell(trial.number, state=TrialState.FAIL)
        return [each for each in self._study.get_trials(deepcopy=False) if each.state != TrialState.WAITING]

    def _describe(self, trial: FrozenTrial) -> Trial:
        settings = {
            name: choice.values[trial.params[name]] if isinstance(choice, Choices) else choice.round(trial.params[name])
            for name, choice in self.space.settings.items()
            if name in trial.params
        }
        states = {TrialState.COMPLETE: "finished", TrialState.RUNNING: "unfinished"}
        return Trial(trial.number, settings, trial.value, states.get(trial.state, "failed"))


def _encode(name: str, choice: Choices | Range, value: Any) -> Any:
    """A setting as Optuna stores it; None if [search] does not allow this value."""
    if isinstance(choice, Choices):
        is_same = is_same_component if name.endswith(".use") else operator.eq
        return next((index for index, each in enumerate(choice.values) if is_same(each, value)), None)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and choice.low <= value <= choice.high else None


@contextlib.contextmanager
def lock_study(folder: Path) -> Iterator[None]:
    """Hold the folder of a study. Raises UserError if another process has it, or if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--study {folder}: cannot make this folder ({error.strerror}); choose another") from None
    try:
        with filelock.FileLock(folder / ".lock").acquire(timeout=0):
            yield
    except filelock.Timeout:
        raise UserError(f"--study {folder}: another process searches here; wait for it, or choose another") from None


def check_same_search(folder: Path, shared: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of search.json, if these are its trials; None if the study is new.

    shared  what all trials of this call have in common

    Raises UserError if the trials in the folder have something else in common.
    """
    known = read_object(folder / "search.json")
    if known is None:
        if (folder / "journal.log").exists():
            raise UserError(f"--study {folder}: search.json is missing or damaged; choose another folder")
        return None
    now = json.loads(json.dumps(shared))
    for name, value in now.items():
        if (before := known.get(name)) != value:
            change = f"{_shorten(before)}, now {_shorten(value)}"
            if isinstance(before, dict) and isinstance(value, dict):
                change = "; ".join(describe_differences(before, value))
            raise UserError(
                f"--study {folder}: its trials have another {name} ({change}); give another folder, or undo the change"
            )
    return known


def write_shared(folder: Path, shared: Mapping[str, Any]) -> None:
    """Write search.json."""
    write_json(folder / "search.json", dict(shared))


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 60 else f"{text[:57]}..."
