"""How fast a recipe trains and translates on this machine, so that rows of a table can train for equal times.

    python -m p2pzoo_bench.rates RECIPE.toml          # prints a Rate as JSON

A recipe is measured in a process of its own, as `p2pzoo run` trains it: a few steps to warm up, then steps for
PROBE_SECONDS, then translations of a few images.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock
from torch import nn

from p2pzoo.compute.engine import Engine, count_usable_cores, pick_device
from p2pzoo.config.experiment import Experiment
from p2pzoo.config.settings import Compute
from p2pzoo.data import Store, single_batches
from p2pzoo.models.process import build_process, takes_time
from p2pzoo.models.translator import Translator
from p2pzoo.plugin import schema
from p2pzoo.runs.evaluate import build_metrics, count_samples, group_by_translations
from p2pzoo.runs.evaluate import measure as measure_images
from p2pzoo.training.loop import make_batches, train_step
from p2pzoo.training.setup import build_objective
from p2pzoo.utils.errors import Error, UserError
from p2pzoo.utils.files import read_object, write_json

WARM_UP_STEPS = 3
PROBE_SECONDS, MIN_STEPS = 8.0, 5
# in the last line of a failure: the class of an exception, and the line of the recipe, which is a temporary file
_NOT_FOR_USERS = re.compile(r"^([A-Za-z_][\w.]*: )?(\S*probe\.toml(:\d+)?  )?(?=.)")


@dataclass(frozen=True)
class Rate:
    """Seconds of this machine.

    step       one training step
    evaluate   measuring one test image: its translations, and the samples that metrics take
    also       {name of [evaluate.also.NAME]: the part of `evaluate` for these translations}
    """

    step: float
    evaluate: float
    also: Mapping[str, float] = field(default_factory=dict)


class UnknownSpeed(UserError):
    """A recipe cannot be trained here, so its speed cannot be measured."""


def name_rate(experiment: Experiment, threads: int) -> str:
    """The name of a rate. It changes with what the run id leaves out: device, threads, and the rest of [compute].

    threads  of a run whose recipe sets none; 0: all cores
    """
    used = {
        "device": pick_device(experiment.compute.device),
        "threads": experiment.compute.threads or threads or count_usable_cores(),
    }
    text = json.dumps(schema.to_jsonable({**vars(experiment.compute), **used}), sort_keys=True)
    return f"{experiment.id}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def measure_rates(recipes: Mapping[str, str], file: Path) -> dict[str, Rate]:
    """{name: Rate} of these recipes, {name: TOML}. Those that the file has are not measured again.

    With other measurements than then, `evaluate` and `also` are. `step` stays, and so do lengths that follow from it.

    One process measures at a time: two would slow each other down.

    Raises UnknownSpeed if a recipe cannot be trained, with its last line, and UserError if the file is damaged.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    rates = {}
    for name, recipe in recipes.items():
        with filelock.FileLock(file.with_name(f".{file.name}.lock")):
            known = _read_known(file)  # again for each name: another process may have added some
            measurements = _digest_measurements(recipe)
            if known.get(name, {}).get("measurements") != measurements:
                rate = {**asdict(_measure_in_process(name, recipe)), "measurements": measurements}
                if name in known:
                    rate["step"] = known[name]["step"]
                known[name] = rate
                write_json(file, known)
        rates[name] = Rate(**{key: value for key, value in known[name].items() if key != "measurements"})
    return rates


def _digest_measurements(recipe: str) -> str:
    """The metrics of a recipe and how its translations are made: the run id, and so `name_rate`, does not have them."""
    tree = tomllib.loads(recipe)
    text = json.dumps([tree.get("metrics"), tree.get("evaluate")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _read_known(file: Path) -> dict[str, dict[str, Any]]:
    known = read_object(file)
    if known is None and file.exists():
        raise UserError(
            f"{file}: is damaged; delete it to measure the speeds again. The rows then get other lengths, and their "
            "runs are trained again"
        )
    return known or {}


def _measure_in_process(name: str, recipe: str) -> Rate:
    with tempfile.TemporaryDirectory(prefix="p2pzoo-") as folder:
        file = Path(folder) / "probe.toml"
        file.write_text(recipe, "utf-8")
        command = [sys.executable, "-m", "p2pzoo_bench.rates", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UnknownSpeed(f"{name}: its speed cannot be measured: {_NOT_FOR_USERS.sub('', lines[-1])}")
    return Rate(**json.loads(done.stdout.splitlines()[-1]))


def measure(experiment: Experiment) -> Rate:
    """The rate of an experiment, on the device and threads of its [compute]."""
    engine = Engine(experiment.compute)
    store = _open_train_store(experiment)
    objective = build_objective(experiment, engine, store.channels, store.size)
    step_function = engine.compile_step(objective)
    batches = make_batches(experiment, store, objective.augmentations)
    times: list[float] = []
    lr = experiment.optimizer.lr
    while len(times) < WARM_UP_STEPS + MIN_STEPS or sum(times[WARM_UP_STEPS:]) < PROBE_SECONDS:
        began = time.perf_counter()
        logs = train_step(step_function, engine, batches, len(times), lr, experiment.seed, objective.augmentations)
        next(iter(logs.values())).item()  # waits for the device
        times.append(time.perf_counter() - began)
    G = engine.unwrap(objective.G.network)
    test = Store(experiment.dataset.build(split=experiment.evaluate.split), compute=experiment.compute)
    seconds = _measure_evaluation(experiment, engine, G, test)
    also = {name: each for name, each in seconds.items() if name in experiment.evaluate.also}
    return Rate(statistics.median(times[WARM_UP_STEPS:]), sum(seconds.values()), also)


def _open_train_store(experiment: Experiment) -> Store:
    """The training pairs, kept and read as `p2pzoo run` does.

    Those that it keeps on disk are kept in memory: their file is mapped into memory, and writing it here would take as
    long as the first epoch.
    """
    dataset, train = experiment.dataset.build(split="train"), experiment.train

    def open_store(compute: Compute) -> Store:
        return Store(dataset, enlarge=train.jitter, kernel=train.jitter_kernel, compute=compute, origin="rates")

    store = open_store(experiment.compute)
    return open_store(replace(experiment.compute, store="memory")) if store.location == "disk" else store


def _measure_evaluation(experiment: Experiment, engine: Engine, G: nn.Module, store: Store) -> dict[str, float]:
    """{what the names of their metrics have behind "@": seconds to translate and measure one image}."""
    metrics = build_metrics(experiment, store, experiment.measurements)
    batch = engine.to_device(next(single_batches(store, range(1))))
    seconds: dict[str, float] = {}
    for translations, group in group_by_translations(experiment, metrics).items():
        asked = G
        if component := experiment.process:
            component = replace(component, values={**component.values, **translations.process})
            takes = takes_time(experiment.generator)
            asked = build_process(component, store.channels, store.size, takes_time=takes).sampler(G)
        for _ in range(2):  # the first also prepares kernels and memory
            began = time.perf_counter()
            y_hats = Translator(asked, translations)(batch.x, 2)
            translated = time.perf_counter()
            measure_images(group, batch, y_hats[:1], store.dataset)
            measured = time.perf_counter()
        samples = count_samples(group) if len(y_hats) > 1 else 1  # without random numbers, one stands for all
        name = next(iter(group)).partition("@")[2]
        of_one = (translated - began) / len(y_hats) * samples + measured - translated
        seconds[name] = seconds.get(name, 0.0) + of_one
    return seconds


if __name__ == "__main__":
    from p2pzoo import config

    try:
        print(json.dumps(asdict(measure(config.load(sys.argv[1])))))
    except Error as error:
        sys.exit(str(error))
