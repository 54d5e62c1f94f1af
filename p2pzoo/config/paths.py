"""Where the files and folders of a recipe are: relative to the recipe file that names them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from p2pzoo.config.frozen_table import FrozenTable
from p2pzoo.config.recipe import Key, Recipe, is_of_run
from p2pzoo.plugin.model_source import is_address
from p2pzoo.utils.paths import shipped_dir


def locate_paths(recipe: Recipe, table: Key, values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a table, with each relative path of a recipe file as one from the current folder.

    table   ("dataset",), ("metrics", "fid"), …
    values  its parameters, checked

    A path is relative to the folder of the file that sets it. If it exists only in the current folder, as p2pzoo 0.1
    had it, that is used, with a warning. Relative to the current folder are the paths of -s, of the recipes that ship
    with p2pzoo, whose folders have no data, and of the recipe.toml of a run, which was written for that folder.

    Paths below the current folder stay relative, so that the id of a run does not depend on where that folder is.
    """
    return {name: _locate(recipe, (*table, name), value) for name, value in values.items()}


def _locate(recipe: Recipe, key: Key, value: Any) -> Any:
    if not isinstance(value, Path):  # a table may be one of a component, whose paths a check of it has found
        return FrozenTable(locate_paths(recipe, key, value)) if isinstance(value, FrozenTable) else value
    file = recipe.file_of(key)
    if key[0] == "init" and is_address(value):
        return value
    if file is None or value.is_absolute() or is_of_run(file) or _is_shipped(file):
        return value
    here = Path.cwd()
    beside = here / file.parent / value
    path = beside.relative_to(here) if beside.is_relative_to(here) else beside
    if not path.exists() and value.exists():
        line = (
            f'{recipe.where(key)}  [{".".join(key[:-1])}] {key[-1]} = "{value}" is found in the current folder, '
            "not beside the recipe"
        )
        warnings.warn(f"{line}: move it there, or give the path from the recipe", stacklevel=2)
        return value
    return path


def _is_shipped(file: Path) -> bool:
    return file.resolve().is_relative_to(shipped_dir("recipes").resolve())
