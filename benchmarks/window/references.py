"""In the background: the step of every combination on the CPU, in fp32, float64 and bf16, for `combinations`.

float64 shows how much rounding a network amplifies in fp32, and bf16 what its few digits cost without any GPU.
"""

from __future__ import annotations

import traceback

import torch

from p2pzoo.models.safetensors_io import save_tensors
from p2pzoo.utils.files import write_json
from window.context import Context, Record, say
from window.one_step import cosine, list_combinations, relative, take_step

THREADS = 4  # other stages need the other cores


def run(context: Context, record: Record) -> None:
    torch.set_num_threads(min(THREADS, torch.get_num_threads()))
    folder = context.work / "references"
    folder.mkdir(parents=True, exist_ok=True)
    rounding = {}
    for number, (name, overrides) in enumerate(list_combinations(context).items()):
        try:
            losses, vectors = take_step(overrides, context, "cpu", "fp32")
            _, exact = take_step(overrides, context, "cpu", "float64")
            _, short = take_step(overrides, context, "cpu", "bf16")
        except Exception as error:  # of a component: weights that are missing here, for example
            say(traceback.format_exc())
            write_json(folder / f"{number}.json", {"name": name, "error": f"{type(error).__name__}: {error}"})
            continue
        rounding[name] = {key: relative(vectors[key], exact[key]) for key in vectors}
        cosines = {key: cosine(short[key], vectors[key]) for key in vectors}
        header = {"losses": losses, "rounding": rounding[name], "cosine": cosines}
        save_tensors(folder / f"{number}.safetensors", vectors, header)
        record.set("rounding_of_fp32_on_the_cpu", rounding)
