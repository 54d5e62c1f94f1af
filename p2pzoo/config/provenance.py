"""Version and source hash of the core and of each component: a resumed run is compared with them."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from p2pzoo.config.experiment import Experiment
from p2pzoo.utils.paths import PACKAGE
from p2pzoo.utils.version import __version__

# Folders that no computation of a run imports: they start runs, or use them afterwards. Editing them orphans no run.
NOT_OF_RUNS = ("benchmarks", "cli", "recipes", "testing")


def sources(experiment: Experiment) -> dict[str, str]:
    """{"core" or a component: version and hash of its source}; what a resumed run is held to."""
    found = {"core": f"{__version__} {_hash_folder(PACKAGE, skip=NOT_OF_RUNS)}"}
    for component in experiment.components():
        entry = component.entry
        found[f"{entry.kind} {entry.full_name}"] = f"{entry.distribution} {_hash_module(component.factory.__module__)}"
    return found


def changed_sources(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [name for name in now if name in before and before[name] != now[name]]


def _hash_module(name: str) -> str:
    """The source of a module and all beside it: its top-level package."""
    top = sys.modules.get(name.partition(".")[0]) or importlib.import_module(name)
    file = getattr(top, "__file__", None)
    if file is None:
        return "no source"
    return _hash_folder(Path(file).parent) if Path(file).name == "__init__.py" else _hash_files([Path(file)])


def _hash_folder(folder: Path, skip: tuple[str, ...] = ()) -> str:
    files = [f for f in folder.rglob("*.py") if f.relative_to(folder).parts[0] not in skip]
    return _hash_files(sorted(files))


def _hash_files(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
