"""Table files: which recipes stand beside one another, what is measured of them, and what the paper published.

    title = "Table 3: the receptive field of D"
    source = "Isola et al. 2017 (v3), Table 3, on Cityscapes"     # of the published numbers
    baseline = "patch70"                                          # the row that the others are compared with
    seeds = 3                                                     # 0, 1, 2

    [metrics.fcn_score]                                           # measured besides what the recipes name
    use = "fcn_score"

    [columns]                                                     # metric: what stands above its column
    "fcn_score.class_iou" = "class IoU"

    [rows.patch70]
    recipe = "zoo:ablation_patch70.toml"                          # or a path from this file's folder
    label = "70×70"
    set = ["train.batch_size=10"]                                 # as -s of `p2pzoo run`
    published = { "fcn_score.class_iou" = 0.17 }

    [rows.photos]
    target = true                                                 # y itself, in the place of a translation
    label = "ground truth"

A table with `study = true` shows how often people took translations for real: `p2pzoo study-analyze --table`. Its rows
name algorithms of a study, and have neither recipe nor target.

Knows neither components nor torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from p2pzoo.config.recipe import Origin, Source, locate
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import parse_toml
from p2pzoo.utils.paths import shipped
from p2pzoo.utils.suggest import nearest

KEYS = ("title", "source", "baseline", "seeds", "study", "metrics", "columns", "rows")
ROW_KEYS = ("recipe", "label", "set", "published", "target")


@dataclass(frozen=True)
class Row:
    """recipe: None for the target's row. overrides: as `-s` takes them."""

    name: str
    label: str
    recipe: str | None
    overrides: tuple[str, ...]
    published: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """A table as its file has it. `columns`: {metric: heading}; `metrics`: tables as in a recipe."""

    name: str
    folder: Path
    title: str
    source: str
    baseline: str
    seeds: int
    metrics: Mapping[str, Mapping[str, Any]]
    columns: Mapping[str, str]
    rows: tuple[Row, ...]
    study: bool = False

    @property
    def trained(self) -> list[Row]:
        return [row for row in self.rows if row.recipe]

    def overrides(self, without: Mapping[str, str]) -> list[str]:
        """`-s` overrides that add the table's metrics to a recipe, but those of `without`."""
        return [f"metrics.{name}={inline(table)}" for name, table in self.metrics.items() if name not in without]


def read_table(path: str) -> Table:
    """Read a table file, or "zoo:NAME" for one that travels with p2pzoo. Raises UserError with every fault."""
    zoo = path.startswith("zoo:")
    file = shipped("benchmarks") / path.removeprefix("zoo:") if zoo else Path(path)
    try:
        text = file.read_text("utf-8")
        tree = parse_toml(text)
    except FileNotFoundError:
        near = sorted(p.name for p in file.parent.glob("*.toml")) if file.parent.is_dir() else []
        raise UserError(f"{path}: no such table{nearest(file.name, near) if near else ''}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a table ({error})") from None
    except ValueError as error:
        raise UserError(f"{path}: broken TOML: {error}") from None
    source = Source(path, text)
    if faults := list(_faults(source, tree, file.parent)):
        raise UserError(*faults)
    rows = tuple(_row(name, table, file.parent) for name, table in tree["rows"].items())
    return Table(
        name=file.stem,
        folder=file.parent,
        title=tree.get("title", file.stem),
        source=tree.get("source", ""),
        baseline=tree.get("baseline", next((row.name for row in rows if row.recipe), rows[0].name)),
        seeds=tree.get("seeds", 1),
        metrics=tree.get("metrics", {}),
        columns=tree["columns"],
        rows=rows,
        study=tree.get("study", False),
    )


def inline(value: Any) -> str:
    """A value as TOML writes it on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {inline(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").rstrip("\n")


def is_seed(override: str) -> bool:
    """Whether a `-s` override is one of the seed."""
    return override.partition("=")[0].strip() == "seed"


def _key(name: str) -> str:
    return tomli_w.dumps({name: 0}).removesuffix(" = 0\n")


def _row(name: str, table: Mapping[str, Any], folder: Path) -> Row:
    recipe = table.get("recipe")
    if recipe and not recipe.startswith("zoo:"):
        recipe = str(locate(recipe, folder))
    published = {metric: float(number) for metric, number in table.get("published", {}).items()}
    return Row(name, table.get("label", name), recipe, tuple(table.get("set", ())), published)


def _faults(source: Source, tree: Mapping[str, Any], folder: Path) -> Iterator[str]:
    def at(*key: str) -> str:
        return str(Origin(source, key))

    for key in tree:
        if key not in KEYS:
            yield f"{at(key)}  a table file has no '{key}'{nearest(key, KEYS)}"
    for key in ("title", "source", "baseline"):
        if not isinstance(tree.get(key, ""), str):
            yield f"{at(key)}  {key} must be text"
    seeds = tree.get("seeds", 1)
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        yield f"{at('seeds')}  seeds = {seeds!r}: give their number, 1 or more"
    columns, rows = tree.get("columns", {}), tree.get("rows", {})
    if not _tables(columns, str) or not columns:
        yield f'{at("columns")}  [columns] says what is shown, as in "fcn_score.class_iou" = "class IoU"'
        columns = {}
    if not _tables(rows, dict) or not rows:
        yield f'{at("rows")}  a table needs rows: [rows.NAME] with recipe = "zoo:ablation_l1.toml"'
        rows = {}
    metrics = tree.get("metrics", {})
    if not _tables(metrics, dict):
        yield f'{at("metrics")}  [metrics] must hold tables, as in [metrics.fcn_score] with use = "fcn_score"'
    elif strange := [name for name in metrics if "." in name]:
        yield f"{at('metrics')}  metric '{strange[0]}': a name has no dot"
    study = tree.get("study", False)
    if not isinstance(study, bool):
        yield f"{at('study')}  study = {study!r}: true, or leave it out"
    for name, row in rows.items():
        yield from _row_faults(at, name, row, columns, study=study is True)
    if study is True:
        return
    trained = [name for name, row in rows.items() if "recipe" in row]
    if rows and not trained:
        yield f"{at('rows')}  no row has a recipe: there is nothing to compare"
    elif rows and (asked := tree.get("baseline", trained[0])) not in trained:
        yield f"{at('baseline')}  baseline = {asked!r} is no row with a recipe{nearest(str(asked), trained)}"


def _row_faults(
    at: Any, name: str, row: Mapping[str, Any], columns: Mapping[str, str], *, study: bool
) -> Iterator[str]:
    where = at("rows", name)
    for key in row:
        if key not in ROW_KEYS:
            yield f"{at('rows', name, key)}  [rows.{name}] has no '{key}'{nearest(key, ROW_KEYS)}"
    if not isinstance(row.get("label", ""), str):
        yield f"{at('rows', name, 'label')}  label must be text"
    if study and ("recipe" in row or "target" in row):
        yield f"{where}  [rows.{name}] is an algorithm of a study, and has neither recipe nor target"
    elif not study and (row.get("target", True) is not True or ("recipe" in row) == ("target" in row)):
        yield f"{where}  [rows.{name}] needs a recipe, or target = true for the ground truth"
    if not (isinstance(recipe := row.get("recipe", "zoo:"), str) and recipe):
        yield f"{at('rows', name, 'recipe')}  recipe must be a path or zoo:NAME"
    overrides = row.get("set", [])
    if not isinstance(overrides, list) or not all(isinstance(item, str) for item in overrides):
        yield f'{at("rows", name, "set")}  set takes an array, as in set = ["train.batch_size=10"]'
    elif any(is_seed(item) for item in overrides):
        yield f"{at('rows', name, 'set')}  a seed is set for no row alone: all have 0, 1, … (seeds = 3, or --seeds)"
    published = row.get("published", {})
    numbers = isinstance(published, dict) and all(type(value) in (int, float) for value in published.values())
    if not numbers:
        yield f"{at('rows', name, 'published')}  published takes numbers, as in {{ fcn_score = 0.66 }}"
    else:
        where = at("rows", name, "published")
        unknown = [metric for metric in published if metric not in columns]
        yield from (f"{where}  published names no column: '{metric}'{nearest(metric, columns)}" for metric in unknown)


def _tables(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(isinstance(item, kind) for item in value.values())
