"""A training step of every combination on the device, against the same step on the CPU (`references`).

In fp32 without TF32, losses and Adam's state after the step deviate by at most LIMIT, or by MULTIPLE times what fp32 on
the CPU deviates from float64, if that is more: some networks amplify rounding. In bf16, the gradients (Adam's first
moment) have a cosine of at least MIN_COSINE with those in fp32; if bf16 on the CPU is further away, at most MULTIPLE
times as far.
"""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

from torch import Tensor

from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.utils.files import read_object
from window.context import Context, Record, say
from window.one_step import cosine, list_combinations, relative, take_step

LIMIT = 1e-4
MULTIPLE = 4
MIN_COSINE = 0.99
RESERVE = 2.0  # seconds before the end at which the stage waits for no further reference

Step = tuple[dict[str, float], dict[str, Tensor]]


def run(context: Context, record: Record) -> None:
    combinations = list_combinations(context)
    taken: dict[str, dict[str, Step]] = {}
    compared: dict[str, Any] = {}
    waiting = dict(enumerate(combinations))
    for name, overrides in combinations.items():
        taken[name] = {}
        for precision in ("fp32", "bf16"):
            try:
                taken[name][precision] = take_step(overrides, context, context.device, precision)
            except Exception as error:  # of one component
                say(traceback.format_exc())
                compared.setdefault(name, {})[precision] = {"error": f"{type(error).__name__}: {error}"}
        compare_ready(context, record, waiting, taken, compared)
    while waiting and context.left() > RESERVE:
        time.sleep(0.2)
        compare_ready(context, record, waiting, taken, compared)
    record.set("without_reference", list(waiting.values()))
    record.check("every combination has a reference", not waiting, missing=len(waiting))


def compare_ready(
    context: Context, record: Record, waiting: dict[int, str], taken: dict[str, Any], compared: dict[str, Any]
) -> None:
    """Compare the combinations that have been computed on both sides; takes them out of `waiting`."""
    for number, name in list(waiting.items()):
        if name not in taken:
            continue
        path = context.work / "references" / f"{number}.safetensors"
        if failure := read_object(path.with_suffix(".json")):
            compared[name] = compared.get(name, {}) | {"cpu": failure["error"]}
        elif path.exists():
            compare(name, taken[name], path, record, compared.setdefault(name, {}))
        else:
            continue
        del waiting[number]
        taken[name] = {}  # frees memory
        record.set("combinations", compared)


def compare(name: str, steps: dict[str, Step], path: Path, record: Record, figures: dict[str, Any]) -> None:
    expected, header = load_tensors(path)
    for precision, (losses, vectors) in steps.items():
        loss = max(abs(losses[key] - value) / max(abs(value), 1e-3) for key, value in header["losses"].items())
        found = figures.setdefault(precision, {})
        found |= {"loss": loss, "losses": losses}
        found["relative"] = {key: relative(vectors[key], expected[key]) for key in expected}
        found["cosine"] = {key: cosine(vectors[key], expected[key]) for key in expected if key.endswith("exp_avg")}
        if precision == "bf16":
            needed = {key: min(MIN_COSINE, 1 - MULTIPLE * (1 - header["cosine"][key])) for key in found["cosine"]}
            worst = min(needed, key=lambda key: found["cosine"][key] - needed[key])
            reached = found["cosine"][worst]
            record.compare(f"{name}, bf16", reached >= needed[worst], where=worst, cosine=reached, needed=needed[worst])
            continue
        limits = {key: max(LIMIT, MULTIPLE * header["rounding"][key]) for key in expected}
        excess = {key: found["relative"][key] / limits[key] for key in expected}
        worst = max(excess, key=excess.__getitem__)
        limit = max(LIMIT, *limits.values())
        record.compare(
            f"{name}, fp32", excess[worst] <= 1 and loss <= limit,
            where=worst, relative=found["relative"][worst], limit=limits[worst], loss=loss,
        )  # fmt: skip
    for precision in ("fp32", "bf16"):
        if precision not in steps:
            record.check(f"{name}, {precision}", False, error=figures.get(precision, {}).get("error", ""))
