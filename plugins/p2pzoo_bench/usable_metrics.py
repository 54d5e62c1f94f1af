"""Which metrics of a table, and of the recipes of its rows, can measure somebody's own data (own_data.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from p2pzoo import config
from p2pzoo.config.experiment import Component
from p2pzoo.data import Store
from p2pzoo.plugin.registry import Registry
from p2pzoo.runs.evaluate import build_metric, try_metrics
from p2pzoo.utils.errors import UserError
from p2pzoo_bench.table_file import Row, Table, inline


def without_blocks(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Metrics of a table for data without blocks: a kernel distance leaves out the image itself (`NAME.paired`), in
    place of all images of its block.

    >>> without_blocks({"kid": {"use": "kid", "between_blocks": True}})
    {'kid': {'use': 'kid'}}
    """
    return {
        name: {key: value for key, value in values.items() if key != "between_blocks" or not value}
        for name, values in metrics.items()
    }


def leave_out_unusable(
    table: Table, profile: str | None, store: Store, registry: Registry
) -> tuple[Table, dict[str, str]]:
    """(the table without the metrics that cannot measure this data, {metric: why}).

    Each metric measures two images, as before a training: what it refuses is not known earlier. A metric of a row's
    recipe is dropped there, since its run would fail.

    store  the images that are measured
    """
    own = {row.name: _load_metrics(row, (), table, profile, registry) for row in table.trained}
    components: dict[str, Component] = {}
    for row in table.trained:
        components = {**_load_metrics(row, table.overrides({}), table, profile, registry), **components}
    found = {name: _find_reason(name, components[name], store) for name in components}
    reasons = {name: reason for name, reason in found.items() if reason}
    rows = (_drop(row, [name for name in reasons if name in own.get(row.name, ())]) for row in table.rows)
    metrics = {name: values for name, values in table.metrics.items() if name not in reasons}
    return replace(table, rows=tuple(rows), metrics=metrics), reasons


def _load_metrics(
    row: Row, further: Sequence[str], table: Table, profile: str | None, registry: Registry
) -> Mapping[str, Component]:
    """The metrics of a row's recipe; {} if it has a fault, which `Bench` reports."""
    assert row.recipe
    overrides = [*row.overrides, *further]
    try:
        return config.load_without_data(row.recipe, profile or table.profile, overrides, registry=registry).metrics
    except UserError:
        return {}


def _find_reason(name: str, component: Component, store: Store) -> str | None:
    """Why a metric cannot measure the images of a store, as the end of a sentence that begins with its name."""
    available = {"labels": store.has_labels, "blocks": store.has_blocks}
    if missing := [need for need in component.entry.needs if not available.get(need)]:
        return f" needs {missing[0]}"
    try:
        metric = build_metric(replace(component, where="", places={}), store.dataset)
        try_metrics({name: metric}, store)
    except UserError as error:
        return f": {error.faults[0].removesuffix(': remove it from the recipe')}"
    except (ValueError, RuntimeError) as error:  # what torch raises for shapes that do not fit
        return f": {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
    return None


def _drop(row: Row, names: list[str]) -> Row:
    if not names:
        return row
    return replace(row, overrides=(*row.overrides, f"drop={inline([f'metrics.{name}' for name in names])}"))
