"""Steps with and without a CUDA graph. With `deterministic` they are equal to the bit: that is checked.

Without `deterministic` it is only recorded whether they are equal, and whether two eager runs are.
"""

from __future__ import annotations

import time
import traceback
import warnings
from typing import Any

from torch import Tensor

from window.build import Training, difference, experiment
from window.context import Context, Record, say

CASES = {  # name: (overrides, whether at the full size)
    "bf16": (("compute.precision=bf16",), True),
    "fp32": (("compute.precision=fp32",), True),
    "resnet9": (("generator.use=resnet9",), False),
    "DiffAugment": (("augmentations.extra.use=diffaugment",), False),
    "multiscale, hinge, feature matching": (
        ("discriminator.use=multiscale", "gan_loss.use=hinge", "losses.features.use=feature-matching"), False,
    ),
}  # fmt: skip
RUNS = {  # name: overrides
    "graph": ("compute.cuda_graphs=true",),
    "eager": ("compute.cuda_graphs=false",),
    "eager again": ("compute.cuda_graphs=false",),
}


def run(context: Context, record: Record) -> None:
    for name, (overrides, is_full) in list(CASES.items())[: context.sizes.graph_cases]:
        for deterministic in (True, False):
            label = f"{name}, {'deterministic' if deterministic else 'not deterministic'}"
            try:
                compare(context, record, label, overrides, is_full, deterministic)
            except Exception as error:  # of one case
                say(traceback.format_exc())
                record.check(label, False, error=f"{type(error).__name__}: {error}")


def compare(
    context: Context, record: Record, label: str, overrides: tuple[str, ...], is_full: bool, deterministic: bool
) -> None:
    settings = (*overrides, f"compute.deterministic={str(deterministic).lower()}")
    # without `deterministic`, a second eager run shows what varies without a graph
    names = ("graph", "eager") if deterministic else tuple(RUNS)
    runs = {name: train(context, (*settings, *RUNS[name]), is_full) for name in names}
    states = {name: state for name, (state, _) in runs.items()}
    figures: dict[str, Any] = {name: facts for name, (_, facts) in runs.items()}
    figures["graph against eager"] = against = difference(states["graph"], states["eager"])
    if not deterministic:
        figures["eager against eager again"] = difference(states["eager again"], states["eager"])
    record.set(label, figures)
    if context.device == "cuda":
        warned = figures["graph"]["warnings"]
        record.check(f"{label}: a graph was recorded", "cuda_graphs" in figures["graph"]["on"], warnings=warned)
    if deterministic:
        record.compare(f"{label}: graph and eager are equal to the bit", against["different"] == 0, **against)


def train(
    context: Context, overrides: tuple[str, ...], is_full: bool, terms: tuple[Any, ...] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train a few steps. Returns all weights and optimizer states, and {"on", "warnings", "seconds", "losses"}."""
    sizes = context.sizes
    size, width = (sizes.graph_size, sizes.graph_width) if is_full else (sizes.size, sizes.width)
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Training(experiment(context, size, width, 1, overrides), terms) as training:
            for _ in range(sizes.steps):
                training.step()
            training.read()
            state = training.state()
            on = [switch for switch, is_on in training.engine.enabled.items() if is_on]
    return state, {
        "on": on,
        "precision": training.engine.precision,
        "warnings": sorted({str(warning.message) for warning in caught}),
        "losses": training.losses,
        "seconds": round(time.perf_counter() - began, 3),
    }
