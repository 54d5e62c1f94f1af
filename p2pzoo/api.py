"""What `import p2pzoo` offers, behind its light front: components by name, and whole runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pzoo.plugin.loader import registry
from p2pzoo.plugin.registry import KINDS
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.suggest import nearest

if TYPE_CHECKING:
    from p2pzoo.models.model import Model

SIZE = (256, 256)  # that networks are made for if nobody says


@dataclass(frozen=True)
class Trained:
    """A finished run.

    folder   what it left, model.safetensors and report.html among it
    metrics  {name: value}, as `p2pzoo run` prints them
    results  results.json: the metrics with their protocols, and what the run is
    """

    folder: Path
    metrics: Mapping[str, float]
    results: Mapping[str, Any]

    def load(self, *, device: str = "auto", precision: str = "fp32") -> Model:
        """Its model; see `p2pzoo.load`."""
        from p2pzoo.models.model import load

        return load(self.folder, device=device, precision=precision)


def list_components(kind: str | None) -> list[str]:
    found = []
    for one in KINDS if kind is None else (_known(kind),):
        entries = registry().of(one)
        names = [entry.name for entry in entries]
        shown = [e.name if names.count(e.name) == 1 else e.full_name for e in entries]
        found += shown if kind else [f"{one}.{name}" for name in shown]
    return found


def create(kind: str, name: str, arguments: Mapping[str, Any]) -> Any:
    from p2pzoo.config.experiment import Component
    from p2pzoo.plugin import schema

    entry = registry().get(_known(kind), name)
    factory, where = entry.load(), f"{kind} '{name}'"
    try:
        filled, known = schema.positional_of(factory), [*schema.positional_of(factory), *schema.params_of(factory)]
    except TypeError as error:
        raise UserError(f"{where} {error}") from None
    faults = [f"{where} has no parameter '{each}'{nearest(each, known)}" for each in arguments if each not in known]
    offered = {each: arguments[each] for each in filled if each in arguments}
    if "size" in filled:
        offered.setdefault("size", SIZE)
    faults += [f"{where} needs {each}" for each in filled if each not in offered]
    values: dict[str, Any] = {}
    try:
        values = schema.check(
            factory, {k: schema.to_jsonable(v) for k, v in arguments.items() if k in known and k not in filled}
        )
    except schema.Faults as error:
        faults += [f"{where} {told}" for _, told in error.faults]
    if faults:
        raise UserError(*faults)
    return Component(entry, factory, values).build(**offered)


def train(recipe: str | Path, profile: str | None, overrides: Sequence[str], runs: Path) -> Trained:
    from p2pzoo import config
    from p2pzoo.runs.progress import NoProgress
    from p2pzoo.training.loop import Interrupted
    from p2pzoo.training.run_experiment import run_experiment

    experiment = config.load(str(recipe), profile, tuple(overrides))
    try:
        outcome = run_experiment(experiment, registry(), runs, NoProgress())
    except Interrupted as stopped:
        raise KeyboardInterrupt(stopped.signum) from None
    metrics = {name: float(number["value"]) for name, number in outcome.results["metrics"].items()}
    return Trained(outcome.run.folder, metrics, outcome.results)


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise UserError(f"no kind '{kind}'{nearest(kind, KINDS)}")
    return kind
