"""The functions of `import p2pzoo`, which imports this module when one of them is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pzoo.plugin.loader import registry
from p2pzoo.plugin.registry import KINDS
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.suggest import did_you_mean

if TYPE_CHECKING:
    from p2pzoo.models.model import Model

DEFAULT_SIZE = (256, 256)  # (H, W) of networks, the size in most of the paper's experiments


@dataclass(frozen=True)
class Trained:
    """A complete run, as `p2pzoo.train` returns it.

    folder   the run folder, with model.safetensors and report.html
    metrics  {name: value}, as `p2pzoo run` prints them
    results  the contents of results.json: metrics with their protocols, and the description of the run
    """

    folder: Path
    metrics: Mapping[str, float]
    results: Mapping[str, Any]

    def load(self, *, device: str = "auto", precision: str = "fp32") -> Model:
        """Load the run's model; see `p2pzoo.load`."""
        from p2pzoo.models.load import load_model

        return load_model(self.folder, device=device, precision=precision)


@dataclass(frozen=True)
class Evaluated:
    """A measured model, as `p2pzoo.evaluate` returns it.

    metrics  {name: value}
    results  metrics with their protocols, as in results.json of a run
    """

    metrics: Mapping[str, float]
    results: Mapping[str, Any]


def list_components(kind: str | None) -> list[str]:
    """See `p2pzoo.list_components`."""
    listed = []
    for each_kind in KINDS if kind is None else (_check_kind(kind),):
        entries = registry().of(each_kind)
        names = [entry.name for entry in entries]
        unique_names = [e.name if names.count(e.name) == 1 else e.full_name for e in entries]
        listed += unique_names if kind else [f"{each_kind}.{name}" for name in unique_names]
    return listed


def create(kind: str, name: str, arguments: Mapping[str, Any]) -> Any:
    """See `p2pzoo.create`."""
    from p2pzoo.config.experiment import Component
    from p2pzoo.plugin import schema

    entry = registry().get(_check_kind(kind), name)
    factory, where = entry.load(), f"{kind} '{name}'"
    try:
        positional, params = schema.get_positional_names(factory), schema.get_params(factory)
    except TypeError as error:
        raise UserError(f"{where} {error}") from None
    known = [*positional, *params]
    unknown = [key for key in arguments if key not in known]
    faults = [
        f"{where} has no parameter '{key}'{did_you_mean(key, known) if known else ': it takes none'}" for key in unknown
    ]
    offered = {key: arguments[key] for key in positional if key in arguments}
    if "size" in positional:
        offered.setdefault("size", DEFAULT_SIZE)
    if "takes_time" in positional:
        offered.setdefault("takes_time", False)
    faults += [f"{where} needs {key}" for key in positional if key not in offered]
    values: dict[str, Any] = {}
    try:
        table = {key: schema.to_jsonable(value) for key, value in arguments.items() if key in params}
        values = schema.check_params(factory, table)
    except schema.InvalidParameters as error:
        faults += [f"{where} {message}" for _, message in error.faults]
    if faults:
        raise UserError(*faults)
    return Component(entry, factory, values).build(**offered)


def train(recipe: str | Path, profile: str | None, overrides: Sequence[str], seed: int | None, runs: Path) -> Trained:
    """See `p2pzoo.train`."""
    from p2pzoo import config
    from p2pzoo.runs.progress import NoProgress
    from p2pzoo.training.loop import Interrupted
    from p2pzoo.training.run_experiment import run_experiment

    seeded = () if seed is None else (f"seed={seed}",)
    experiment = config.load(str(recipe), profile, (*overrides, *seeded))
    try:
        outcome = run_experiment(experiment, registry(), runs, NoProgress())
    except Interrupted as interruption:
        raise KeyboardInterrupt(interruption.signum) from None
    return Trained(outcome.run.folder, _values(outcome.results), outcome.results)


def evaluate(
    model: str | Path, folders: Sequence[str | Path], metrics: str | Sequence[str], arguments: Mapping[str, Any]
) -> Evaluated:
    """See `p2pzoo.evaluate`. folders: none, or inputs and targets."""
    from p2pzoo.runs.evaluate_model import Request, evaluate_model

    paths = [Path(folder) for folder in folders]
    names = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    request = Request(Path(model), (paths[0], paths[1]) if paths else None, metrics=names, **arguments)
    results = evaluate_model(request, lambda _: None)
    return Evaluated(_values(results), results)


def _values(results: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(number["value"]) for name, number in results["metrics"].items()}


def _check_kind(kind: str) -> str:
    if kind not in KINDS:
        raise UserError(f"no kind '{kind}'{did_you_mean(kind, KINDS)}")
    return kind
