"""From an experiment to finished results: find or open its run, train what is left, evaluate what is missing."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from p2pzoo.compute.conv_as_gemm import Chooser, Form
from p2pzoo.compute.distributed import check_batch, on_rank0, rank, sync_errors, world_size
from p2pzoo.compute.engine import Engine
from p2pzoo.compute.memory import enough_to_train, peak_bytes
from p2pzoo.compute.tuned_kernels import read_kernels, write_kernels
from p2pzoo.config.experiment import Experiment
from p2pzoo.config.provenance import changed_sources, sources
from p2pzoo.data import Store, single_batches
from p2pzoo.data.augmentation import make_augmentations
from p2pzoo.data.validation import validate_or_raise
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.grid import grid, pictured, save_png
from p2pzoo.models.build import build
from p2pzoo.models.model_file import rebuild
from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.models.test_modes import translate
from p2pzoo.plugin.protocols import Callback
from p2pzoo.plugin.registry import Registry
from p2pzoo.runs.evaluate import check_needs, check_trust, evaluate, metrics_of, missing, ranking
from p2pzoo.runs.monitor import Diverged, TrainingMonitor
from p2pzoo.runs.progress import Progress
from p2pzoo.runs.report import Comparison, write_report
from p2pzoo.runs.results import read_results
from p2pzoo.runs.run_folder import Run, run_for
from p2pzoo.training.checkpoint import list_checkpoints
from p2pzoo.training.loop import train
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import write_json, write_text
from p2pzoo.utils.version import __version__

BEST_AND_WORST = 3


@dataclass(frozen=True)
class Outcome:
    """A finished run. `stale`: what has changed since it was made; `trained`: whether this call trained it."""

    run: Run
    results: Mapping[str, Any]
    trained: bool
    stale: list[str]


def run_experiment(
    experiment: Experiment,
    registry: Registry,
    runs: Path,
    progress: Progress,
    *,
    fresh: bool = False,
    accept_stale: bool = False,
    continued: Run | None = None,
) -> Outcome:
    """Bring an experiment to its end. Does nothing where it is complete, resumes where it was cut off.

    Over several processes (see `processes`) all call this, and only the first one touches the disk.
    Raises UserError (bad data, another process on the run, sources that changed under an unfinished run) and
    train.Interrupted.
    """
    with sync_errors():
        data = _open_data(experiment)
        run = run_for(experiment, runs)
        made_from = {**sources(experiment), **_fingerprints(data)}
    if not fresh and (outcome := on_rank0(_finished, experiment, run, data["test"], made_from)):
        return outcome
    on_rank0(validate_or_raise, experiment, data, progress.note)
    with sync_errors():
        callbacks = [_Named(name, component.build()) for name, component in experiment.callbacks.items()]
    with contextlib.ExitStack() as held:
        on_rank0(held.enter_context, run.lock())
        trained, stale = on_rank0(_open_run, experiment, run, made_from, fresh, accept_stale)
        kernels = on_rank0(_kernels, experiment, run) if trained else {}
        with sync_errors():
            engine = Engine(experiment.compute, Chooser(kernels))
            metrics = metrics_of(experiment, data["test"], on_rank0(missing, experiment, run, data["test"]))
            check_trust(metrics, engine.device)
        on_rank0(_each, callbacks, "start", str(run.folder), experiment.resolved())
        if trained:
            with sync_errors():
                data["train"].prepare()
            if (pairs := data["train"]).location == "stream":
                told = f"{len(pairs)} training pairs, {pairs.bytes / 1e9:.1f} GB once decoded"
                progress.note(f"{told}, are read anew in every epoch ([compute] store)")
            on_rank0(_keep, kernels, run)
            start_from = on_rank0(_begin, experiment, run, engine, made_from, continued, progress)
            try:
                with enough_to_train(experiment, data["train"].size, engine.device_type):
                    train(
                        experiment, run, engine, data["train"], data["val"], progress, callbacks, start_from=start_from
                    )
            except UserError as error:
                if rank() == 0:
                    run.set_status(state="failed")
                    if isinstance(error, Diverged):
                        TrainingMonitor(run, progress).diverged(error)
                        write_report(run, experiment)
                raise
            # with what training found to work, and what it took
            on_rank0(
                lambda: write_json(run.folder / "env.json", environment(engine) | {"training": _cost(run, engine)})
            )
        progress.note(f"evaluating on {len(data['test'])} images of the {experiment.evaluate.split} split")
        tensors, header = on_rank0(load_tensors, run.model)
        G = rebuild(tensors, header, run.model, registry)  # in fp32 whatever it was trained in: as users of the file
        G = G.to(engine.device, memory_format=engine.memory_format)  # type: ignore[call-overload]
        results = evaluate(experiment, run, engine, G, data["test"], metrics)
        if not trained:
            on_rank0(run.add_metrics, experiment)
        on_rank0(_conclude, experiment, run, engine, G, data["test"])
        on_rank0(_each, callbacks, "finish", {name: number["value"] for name, number in results["metrics"].items()})
    return Outcome(run, results, trained, [] if trained else stale)


def _finished(experiment: Experiment, run: Run, test: Store, made_from: Mapping[str, str]) -> Outcome | None:
    """The outcome of a run that is complete and lacks no metric. From a read-only disk too: it takes no lock."""
    results = read_results(run.results)
    if run.state != "complete" or results is None or missing(experiment, run, test):
        return None
    stale = changed_sources(run.status.get("sources", {}), made_from)
    return Outcome(run, results, trained=False, stale=stale)


def _open_run(
    experiment: Experiment, run: Run, made_from: Mapping[str, str], fresh: bool, accept_stale: bool
) -> tuple[bool, list[str]]:
    """Whether there is something to train, and what has changed since the run began. Raises UserError."""
    to_train = fresh or run.state not in ("trained", "complete")
    if to_train:
        check_batch(experiment.train.batch_size, experiment.train.accumulate)
    if fresh:
        run.clear()
    elif to_train:
        _refuse_stale(run, made_from, accept_stale)
    return to_train, changed_sources(run.status.get("sources", {}), made_from)


def _begin(
    experiment: Experiment,
    run: Run,
    engine: Engine,
    made_from: Mapping[str, str],
    continued: Run | None,
    progress: Progress,
) -> Path | None:
    """Make the run ready to train. Returns the checkpoint to begin with where it goes on from another run."""
    if experiment.continued_from and not continued and not list_checkpoints(run):
        raise UserError(f"this recipe goes on from run {experiment.continued_from}: give --continue-from RUN")
    start_from = _continue(experiment, run, continued) if continued else None
    run.begin(experiment, environment(engine), made_from)
    over = f" over {world_size()} processes" if world_size() > 1 else ""
    progress.note(f"{_verb(run)} {experiment.title}, {experiment.train.images} images{over}, in {run.folder}")
    return start_from


def _conclude(experiment: Experiment, run: Run, engine: Engine, G: Any, test: Store) -> None:
    """Pictures and the last report; then the run is complete."""
    _test_picture(experiment, run, engine, G, test)
    for old in list_checkpoints(run)[:-1]:
        old.unlink()
    comparisons = _best_and_worst(experiment, run, engine, G, test)
    write_report(run, experiment, comparisons)  # before the status: a kill in between repeats it
    run.set_status(state="complete")


def _each(callbacks: Sequence[Callback], moment: str, *told: Any) -> None:
    for callback in callbacks:
        getattr(callback, moment)(*told)


class _Named(Callback):
    """A callback whose failures say whose they are. They end the run, as else nobody would hear of them."""

    def __init__(self, name: str, callback: Callback) -> None:
        self._name, self._callback = name, callback

    def start(self, *told: Any) -> None:
        self._tell("start", *told)

    def log(self, *told: Any) -> None:
        self._tell("log", *told)

    def samples(self, *told: Any) -> None:
        self._tell("samples", *told)

    def finish(self, *told: Any) -> None:
        self._tell("finish", *told)

    def _tell(self, moment: str, *told: Any) -> None:
        try:
            getattr(self._callback, moment)(*told)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            line = f"{type(error).__name__}: {error}".strip(": ").partition("\n")[0]
            raise UserError(
                f"[callbacks.{self._name}] failed at {moment}: {line}. The same command goes on from what was saved, "
                "without the callback too"
            ) from error


def _open_data(experiment: Experiment) -> dict[str, Store]:
    """The splits, before anything else happens: missing data is told first, and sizes that a network cannot take."""
    settings, compute = experiment.train, experiment.compute
    train_store = Store(
        experiment.dataset.build(split="train"), enlarge=settings.jitter, kernel=settings.jitter_kernel,
        compute=compute, origin=_origin(experiment),
    )  # fmt: skip
    data = {
        "train": train_store,
        "val": Store(experiment.dataset.build(split="val"), compute=compute),
        "test": Store(experiment.dataset.build(split=experiment.evaluate.split), compute=compute),
    }
    for name, store in data.items():
        if (store.size, store.channels) != (train_store.size, train_store.channels):
            raise UserError(f"the dataset's {name} images differ from its train images in size or channels")
    check_needs(experiment, data["test"])
    metrics_of(experiment, data["test"], experiment.metrics)
    faults: list[str] = []
    for network in (experiment.generator, experiment.discriminator):
        try:
            with torch.device("meta"):  # costs nothing, and refuses what cannot be built
                _ = network and build(network, train_store.channels, train_store.size)
        except UserError as error:
            faults += error.faults
    try:
        make_augmentations(experiment, train_store.channels, train_store.size)
    except UserError as error:
        faults += error.faults
    if faults:
        raise UserError(*faults)
    return data


def _origin(experiment: Experiment) -> str:
    """What the training pairs follow from besides their files: parameters, and the code that reads them."""
    made_by = sources(experiment)
    code = {name: made_by[name] for name in ("core", f"dataset {experiment.dataset.entry.full_name}")}
    return json.dumps({"split": "train", "dataset": experiment.dataset.identity(), "code": code}, sort_keys=True)


def _fingerprints(data: Mapping[str, Store]) -> dict[str, str]:
    """What the datasets say of the files they read, where they say anything."""
    found = {name: getattr(store.dataset, "fingerprint", None) for name, store in data.items()}
    return {f"{name} data": str(fingerprint) for name, fingerprint in found.items() if fingerprint}


def _refuse_stale(run: Run, made_from: Mapping[str, str], accept: bool) -> None:
    changed = changed_sources(run.status.get("sources", {}), made_from)
    if changed and not accept and list_checkpoints(run):
        raise UserError(
            f"{run.folder}: begun with other code or data ({', '.join(changed)} changed since). "
            "Start over with --fresh, or go on with --accept-stale"
        )


def _kernels(experiment: Experiment, run: Run) -> dict[str, Form]:
    """The choice of kernels to train with: the one that a run was begun with, else the recipe's.

    Raises UserError if the recipe has another one than the run.
    """
    asked = experiment.compute.kernels
    given = read_kernels(asked) if asked else {}
    if not list_checkpoints(run):
        return given
    begun = read_kernels(run.kernels) if run.kernels.exists() else {}
    if asked and given != begun:
        raise UserError(
            f"{run.folder}: begun with other kernels than {asked} says. Leave compute.kernels out to go on with "
            "its own, or start over with --fresh"
        )
    return begun


def _keep(kernels: Mapping[str, Form], run: Run) -> None:
    if kernels:
        write_kernels(run.kernels, kernels)
    else:
        run.kernels.unlink(missing_ok=True)


def _continue(experiment: Experiment, run: Run, continued: Run) -> Path:
    """Take over another run's last checkpoint and log. Raises UserError if it cannot be continued."""
    checkpoints = list_checkpoints(continued)
    if continued.state != "complete" or not checkpoints:
        raise UserError(f"{continued.folder}: --continue-from takes a complete run; this one is {continued.state}")
    seen = int(continued.status["images"])
    if experiment.train.images <= seen:
        raise UserError(
            f"--continue-from: {continued.folder} has seen {seen} images and the recipe asks for "
            f"{experiment.train.images}; raise it, as in -s train.images={2 * seen}"
        )
    if not list_checkpoints(run):
        write_text(run.folder / "metrics.jsonl", (continued.folder / "metrics.jsonl").read_text("utf-8"))
    return checkpoints[-1]


def _verb(run: Run) -> str:
    return "going on with" if list_checkpoints(run) else "training"


def _cost(run: Run, engine: Engine) -> dict[str, Any]:
    """Seconds of training, all its parts if it was cut off; and the most memory of the last part, in MB.

    On a GPU that is the device's, else the process's own.
    """
    seconds = sum(line.get("seconds", 0) for line in run.lines("timings.jsonl"))
    peak = peak_bytes(engine.device_type)
    return {"seconds": round(seconds, 1), "peak_megabytes": peak and round(peak / 1e6)}


def _test_picture(experiment: Experiment, run: Run, engine: Engine, G: Any, store: Store) -> None:
    rows = []
    for batch in map(engine.move, single_batches(store, pictured(len(store)))):
        y_hat = translate(G, batch.x, experiment.evaluate.test_mode)
        rows.append([images[0] for images in Encodings.of(store.dataset).to_rgb(batch.x, y_hat, batch.y)])
    save_png(run.samples / f"{experiment.evaluate.split}.png", grid(rows))


def _best_and_worst(experiment: Experiment, run: Run, engine: Engine, G: Any, store: Store) -> list[Comparison]:
    ranked = ranking(experiment, run, store)
    if ranked is None:
        return []
    name, order = ranked
    extremes = {"best": order, "worst": order[::-1]}
    shown: list[Comparison] = []
    for word, images in extremes.items():
        seen: set[str | None] = set()
        for index, value in images:
            block = store[index].block
            if (block is not None and block in seen) or len(seen) == BEST_AND_WORST:
                continue  # neighbours look alike: one of each block
            seen.add(block if block is not None else store[index].id)
            batch = engine.move(next(single_batches(store, range(index, index + 1))))
            y_hat = translate(G, batch.x, experiment.evaluate.test_mode)
            [x], [y_hat], [y] = Encodings.of(store.dataset).to_rgb(batch.x, y_hat, batch.y)
            shown.append(Comparison(batch.ids[0], f"{word}, {name} {value:.4f}", x, y_hat, y))
    return shown


def environment(engine: Engine) -> dict[str, Any]:
    """What a run was made with. Names no host, user or path."""
    return software() | engine.describe()


def software() -> dict[str, Any]:
    """What a number was computed by."""
    return {
        "p2pzoo": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "kornia", "timm", "accelerate", "numpy")},
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
    }
