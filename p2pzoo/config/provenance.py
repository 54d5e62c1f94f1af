"""Version and source hash of the core and of each component, to find out whether code changed since a run began."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from p2pzoo.utils.paths import PACKAGE
from p2pzoo.utils.version import __version__

if TYPE_CHECKING:
    from p2pzoo.config.experiment import Component, Experiment

# folders whose code changes no result of a run: they start runs, or use them afterwards
UNUSED_BY_RUNS = ("benchmarks", "cli", "recipes", "testing")


def source_hashes(experiment: Experiment) -> dict[str, str]:
    """{"core" or a component: version and hash of its source}, of the files as they are now (`Experiment.sources`)."""
    hashes = {"core": f"{__version__} {_hash_folder(PACKAGE, skip=UNUSED_BY_RUNS)}"}
    for component in experiment.components():
        hashes[f"{component.entry.kind} {component.entry.full_name}"] = component_source(component)
    return hashes


def component_source(component: Component) -> str:
    """Name and version of the component's distribution, and the hash of its source: "att-zoo 1.2 0f3ae1b2c3d4"."""
    return f"{component.entry.distribution} {_hash_module(component.factory.__module__)}"


def changed_sources(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names in both whose version or source differs.

    Before 0.2 "test data" was the evaluated split: of runs that were evaluated on val, it says nothing of test.
    """
    unknown = "test data" if before.get("test data") == before.get("val data") else None
    return [name for name in now if name in before and before[name] != now[name] and name != unknown]


def _hash_module(name: str) -> str:
    """The hash of the top-level package of a module."""
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
