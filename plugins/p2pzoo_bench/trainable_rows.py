"""Which rows of a table can train on somebody's own data (own_data.py), and why the others cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from p2pzoo import config
from p2pzoo.config.experiment import Experiment
from p2pzoo.data import Store
from p2pzoo.data.augmentation import make_augmentations
from p2pzoo.models.image_size import find_network_faults
from p2pzoo.models.optional_parts import feature_channels
from p2pzoo.models.process import make_process
from p2pzoo.plugin.registry import Registry
from p2pzoo.runs.evaluate import check_needs
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError, collect_faults
from p2pzoo_bench.row_names import join_names, name_together
from p2pzoo_bench.table_file import Row, Table

_PLACE = re.compile(r"^(.*?:\d+|-s .*?)  ")  # "mine.toml:3  ", "-s train.images=3  "
_COMPONENT = re.compile(r"^\w+ '[^']+': ")  # "generator 'unet': "
_ADVICE = re.compile(r": (remove it|use another one)$")  # to the author of the recipe


@dataclass(frozen=True)
class Reason:
    """Why rows of one training cannot train on the data.

    text         as the end of a sentence
    of_channels  whether their process refuses that x and y have different channels
    """

    text: str
    of_channels: bool = False


def find_reasons(
    rows: Sequence[Row],
    table: Table,
    profile: str | None,
    overrides: Sequence[str],
    store: Store,
    registry: Registry,
) -> tuple[dict[Any, Reason], list[str]]:
    """({training of rows: why it cannot take the images}, the names of the processes that can).

    Networks, process, losses and augmentations are built as before a training. A recipe with a fault of its own is not
    judged here: `Bench` reports it, with file and line.

    overrides  that stand behind those of the rows
    store      images of the data
    """
    reasons: dict[Any, Reason] = {}
    processes: dict[str, None] = {}
    seen: set[Any] = set()
    for row in rows:
        if row.recipe is None or row.training in seen:
            continue
        seen.add(row.training)
        settings = [*row.overrides, *overrides]
        try:
            experiment = config.load_without_data(row.recipe, profile or table.profile, settings, registry=registry)
        except UserError:
            continue
        if reason := _find_reason(experiment, store):
            reasons[row.training] = reason
        elif experiment.process:
            processes[experiment.process.entry.name] = None
    return reasons, [*processes]


def leave_out(
    table: Table, data: str, reasons: Mapping[Any, Reason], processes: Sequence[str] = ()
) -> tuple[Table, tuple[str, ...]]:
    """(the table without the rows of these trainings, a note for each training).

    data       the recipe of the data, for errors
    processes  that can take the images

    Raises UserError if its baseline is among them, or if they leave no row beside it.
    """
    if not reasons:
        return table, ()
    by_training: dict[Any, list[str]] = {}
    for row in table.trained:
        by_training.setdefault(row.training, []).append(row.label)
    notes = []
    for training, labels in by_training.items():
        if reason := reasons.get(training):
            way_out = _describe_way_out(processes) if reason.of_channels else ""
            notes.append(f"{name_together(labels)} is not trained on this data: {reason.text}{way_out}")
    baseline = next(row for row in table.trained if row.name == table.baseline)
    if reason := reasons.get(baseline.training):
        label = name_together(by_training[baseline.training])
        raise UserError(
            f"--data {data}: {label}, which the rows are compared with, cannot be trained on it: {reason.text}: use a "
            "table with another baseline, or other data"
        )
    rows = tuple(row for row in table.rows if not row.recipe or row.training not in reasons)
    if sum(row.recipe is not None for row in rows) < 2:
        raise UserError(
            f"--data {data}: no row beside {baseline.label} can be trained on it ({'; '.join(notes)}): choose others "
            "with --methods, or another table"
        )
    return replace(table, rows=rows), tuple(notes)


def _describe_way_out(processes: Sequence[str]) -> str:
    if not processes:
        return ""
    verbs = "starts from noise and can" if len(processes) == 1 else "start from noise and can"
    return f"; {join_names(processes)} {verbs} take them"


def _find_reason(experiment: Experiment, store: Store) -> Reason | None:
    channels, size = store.channels, store.size
    try:
        make_process(experiment, channels, size)
    except UserError as error:
        is_of_channels = isinstance(error.__cause__, ValueError) and channels[0] != channels[1]
        text = _describe(error.faults)  # what comes behind the first colon is for the author of the recipe
        return Reason(text.partition(": ")[0] if is_of_channels else text, is_of_channels)
    faults: list[str] = []
    with collect_faults(faults):
        check_needs(replace(experiment, metrics={}), store)  # of metrics: usable_metrics.py
    try:
        faults += find_network_faults(experiment, channels, size)
        with collect_faults(faults):
            make_augmentations(experiment, channels, size)
        faults += [] if faults else _find_loss_faults(experiment, channels, size)
    except RuntimeError as error:  # what torch raises for shapes that do not fit
        faults += (str(error).strip().splitlines() or [type(error).__name__])[:1]
    return Reason(_describe(faults)) if faults else None


def _find_loss_faults(experiment: Experiment, channels: tuple[int, int], size: tuple[int, int]) -> list[str]:
    """Why losses cannot be built for these images. Others, such as missing weights, are not due to the data."""
    faults: list[str] = []
    for loss in (*experiment.losses.values(), *([experiment.gan_loss] if experiment.gan_loss else [])):
        offered: dict[str, Any] = {"in_channels": channels[0], "out_channels": channels[1], "size": size}
        if "features" in loss.entry.needs:
            offered["feature_channels"] = feature_channels(experiment, channels, size)
        try:
            with rng.torch_seed(0):
                loss.build(**offered)
        except UserError as error:
            faults += error.faults if isinstance(error.__cause__, ValueError) else []
    return faults


def _describe(faults: Sequence[str]) -> str:
    """The faults of a recipe as the end of a sentence about its rows: without file and line, and without advice."""
    parts = [_ADVICE.sub("", _COMPONENT.sub("", _PLACE.sub("", fault))) for fault in faults]
    return "; ".join(dict.fromkeys(parts))
