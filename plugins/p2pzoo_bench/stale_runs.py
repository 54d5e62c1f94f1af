"""Runs that other code or data trained than today's: a table and the verdicts on claims show them, and say so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from p2pzoo.config.experiment import Experiment
from p2pzoo.config.provenance import changed_sources, source_hashes
from p2pzoo.runs.changed_data import DataFingerprints
from p2pzoo.runs.run_folder import Run
from p2pzoo.utils.errors import UserError
from p2pzoo_bench.comparison import TableRow


class SourceChanges:
    """Finds what changed after runs were trained. The code of the same components is read once."""

    def __init__(self, fingerprints: DataFingerprints) -> None:
        self._fingerprints = fingerprints
        self._hashes: dict[tuple[str, ...], Mapping[str, str]] = {}

    def find(self, experiment: Experiment, folder: Path) -> list[str]:
        """The names of code and data that changed: "core", "generator NAME", "train data".

        [] for a folder that records no sources, as a committed copy does. Data that cannot be opened is left out.
        """
        run = Run(folder)
        before = run.status.get("sources", {})
        if not before:
            return []
        key = tuple(f"{component.entry.kind} {component.entry.full_name}" for component in experiment.components())
        if key not in self._hashes:
            self._hashes[key] = source_hashes(experiment)
        try:
            data = self._fingerprints.find_changed(experiment, run)
        except UserError:
            data = []
        return [*changed_sources(before, self._hashes[key]), *data]


def describe_stale(rows: Iterable[TableRow], find: Callable[[TableRow, Path], Sequence[str]]) -> list[dict[str, Any]]:
    """An entry for each row with such runs: {"row", "label", "stale", "runs", "changed"}, the two numbers of runs.

    find  returns what changed after the run in this folder was trained
    """
    entries = []
    for row in rows:
        changes = [changed for run in row.runs if (changed := find(row, run.folder))]
        if changes:
            names = dict.fromkeys(name for changed in changes for name in changed)
            entry = {"row": row.name, "label": row.label, "stale": len(changes), "runs": len(row.runs)}
            entries.append({**entry, "changed": [*names]})
    return entries


def format_stale(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence about all entries of `describe_stale`; [] if there are none.

    >>> entry = {"label": "A", "stale": 2, "runs": 2, "changed": ["core", "train data"]}
    >>> format_stale([entry, {**entry, "label": "B"}, {"label": "C", "stale": 1, "runs": 3, "changed": ["core"]}])
    ['Code or data changed after these runs were trained: A, B (core, train data); C, 1 of 3 runs (core).']
    """
    labels: dict[tuple[str, ...], list[str]] = {}
    for entry in entries:
        part = "" if entry["stale"] == entry["runs"] else f", {entry['stale']} of {entry['runs']} runs"
        labels.setdefault(tuple(entry["changed"]), []).append(f"{entry['label']}{part}")
    groups = [f"{', '.join(rows)} ({', '.join(changed)})" for changed, rows in labels.items()]
    return [f"Code or data changed after these runs were trained: {'; '.join(groups)}."] if groups else []
