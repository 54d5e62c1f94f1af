"""From an experiment to its results: find or create its run, train what is left, evaluate what is missing."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pzoo.compute.bf16_on_cpu import has_bf16_products
from p2pzoo.compute.conv_algorithms import ConvAlgorithm
from p2pzoo.compute.conv_as_gemm import AlgorithmChooser
from p2pzoo.compute.distributed import check_batch, check_device, on_rank0, rank, shard, sync_errors, world_size
from p2pzoo.compute.engine import Engine, pick_device
from p2pzoo.compute.memory import explain_out_of_memory
from p2pzoo.compute.tuned_kernels import read_recipe_kernels
from p2pzoo.config.component_errors import naming_components
from p2pzoo.config.experiment import Experiment
from p2pzoo.config.provenance import changed_sources
from p2pzoo.config.settings import Translations
from p2pzoo.data import Store
from p2pzoo.data.augmentation import make_augmentations
from p2pzoo.data.validation import validate_or_raise
from p2pzoo.models.at_use import with_parameters
from p2pzoo.models.checkpoint_model import list_checkpoints
from p2pzoo.models.image_size import find_network_faults
from p2pzoo.models.model_file import ModelHeader, restore_network
from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.plugin.protocols import Callback
from p2pzoo.plugin.registry import Registry
from p2pzoo.runs.evaluate import (
    TRIED_IMAGES,
    build_metrics,
    check_needs,
    check_trust,
    evaluate,
    find_missing_metrics,
    try_metrics,
)
from p2pzoo.runs.monitor import Diverged, TrainingMonitor
from p2pzoo.runs.progress import Progress
from p2pzoo.runs.report import write_report
from p2pzoo.runs.results import read_results
from p2pzoo.runs.run_folder import Run, locate_run
from p2pzoo.runs.stored_results import covers_metrics
from p2pzoo.training.callbacks import build_callbacks, call_each
from p2pzoo.training.environment import environment, training_cost
from p2pzoo.training.loop import build_state, run_training_loop
from p2pzoo.training.model_writer import refuse_lost_snapshots
from p2pzoo.training.result_images import best_and_worst, sampling_paths, save_test_grid
from p2pzoo.training.resume import choose_kernels, describe_jump_of_lr, find_start, refuse_stale, store_kernels
from p2pzoo.training.run_writer import sample_indices
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import copy_file, write_json
from p2pzoo.utils.plurals import format_count


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    results  the content of results.json
    trained  whether this call trained it
    stale    the code and data that changed after the run was trained
    """

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
    """Train and evaluate an experiment, or return its results if its run is complete. Resumes an unfinished run.

    A complete run whose data cannot be opened (any more, or here) still gives its stored results, with a note.

    fresh         start over, even if the run is complete
    accept_stale  resume although the code or data changed after the run began
    continued     a complete run to continue from (--continue-from)

    If there are several processes, all of them call this, and only the first one writes to the disk.
    Raises UserError (bad data, a run that another process works on, changed code), ComponentError and Interrupted.
    """
    components = [*experiment.components(), *experiment.metrics.values()]
    with naming_components(components):
        return _run(experiment, registry, runs, progress, fresh, accept_stale, continued)


def _run(
    experiment: Experiment, registry: Registry, runs: Path, progress: Progress, fresh: bool, accept_stale: bool,
    continued: Run | None,
) -> Outcome:  # fmt: skip
    with sync_errors():
        run = locate_run(experiment, runs)
    try:
        with sync_errors():
            data = _open_data(experiment)
            hashes = {**experiment.sources, **_fingerprints(data, experiment.evaluate.split)}
    except UserError as error:
        stored = None if fresh else on_rank0(_find_stored_outcome, experiment, run, error, progress)
        if stored is None:
            raise
        return stored
    if not fresh and (outcome := on_rank0(_find_outcome, experiment, run, data["test"], hashes)):
        return outcome
    with sync_errors():
        _check_device(experiment)
    on_rank0(_check_inputs, experiment, data, progress, fresh or run.state not in ("trained", "complete"))
    with sync_errors():
        callbacks = build_callbacks(experiment)
    with contextlib.ExitStack() as stack:
        on_rank0(stack.enter_context, run.lock())
        to_train, stale = on_rank0(_open_run, experiment, run, hashes, fresh, accept_stale)
        kernels = on_rank0(lambda: choose_kernels(experiment, run, fresh=fresh)) if to_train else {}
        missing = (
            [*experiment.measurements] if to_train else on_rank0(find_missing_metrics, experiment, run, data["test"])
        )
        with sync_errors():
            engine = Engine(experiment.compute, AlgorithmChooser(kernels), pixels=_count_pixels(experiment, data))
            metrics = build_metrics(experiment, data["test"], missing)
            check_trust(metrics, engine.device)
        if to_train:
            _Training(experiment, run, engine, data, hashes, kernels, callbacks, progress, continued, fresh).train()
        else:
            on_rank0(_start_callbacks, callbacks, run, experiment)
        progress.note(
            f"evaluating on {format_count(len(data['test']), 'image')} of the {experiment.evaluate.split} split"
        )
        load_G = functools.partial(_load_generator, experiment, run, engine, registry)
        results = evaluate(experiment, run, engine, load_G, data["test"], metrics)
        if not to_train:
            on_rank0(run.add_metrics, experiment)
        for name, changes in experiment.evaluate.also.items():
            translations = experiment.translations.changed(changes)
            G = load_G(translations)
            on_rank0(save_test_grid, experiment, run, engine, G, data["test"], translations, f"@{name}")
        G = load_G(experiment.translations)
        on_rank0(_complete, experiment, run, engine, G, data)
        values = {name: number["value"] for name, number in results["metrics"].items()}
        on_rank0(call_each, callbacks, "finish", values)
    return Outcome(run, results, to_train, [] if to_train else stale)


# --- a run that is complete ------------------------------------------------------------------------------------


def _find_outcome(experiment: Experiment, run: Run, test: Store, hashes: Mapping[str, str]) -> Outcome | None:
    """The outcome of a complete run that lacks no metric. Takes no lock, so it works on a read-only disk too."""
    results = read_results(run.results)
    if run.state != "complete" or results is None or find_missing_metrics(experiment, run, test):
        return None
    return Outcome(run, results, trained=False, stale=changed_sources(run.status.get("sources", {}), hashes))


def _find_stored_outcome(experiment: Experiment, run: Run, data_error: UserError, progress: Progress) -> Outcome | None:
    """The same without the data, from what the run stores; changes of the data cannot be detected then."""
    results = read_results(run.results)
    if run.state != "complete" or results is None or not covers_metrics(experiment, results):
        return None
    progress.note(f"the data cannot be opened ({'; '.join(data_error.faults)}): printing the stored results")
    stale = changed_sources(run.status.get("sources", {}), experiment.sources)
    return Outcome(run, results, trained=False, stale=stale)


# --- training --------------------------------------------------------------------------------------------------


def _open_run(
    experiment: Experiment, run: Run, hashes: Mapping[str, str], fresh: bool, accept_stale: bool
) -> tuple[bool, list[str]]:
    """Whether the run needs training, and the code and data that changed after it began. Raises UserError."""
    to_train = fresh or run.state not in ("trained", "complete")
    if to_train:
        check_batch(experiment.train.batch_size, experiment.train.accumulate)
    if to_train and not (fresh or accept_stale):
        refuse_stale(run, hashes)
    return to_train, changed_sources(run.status.get("sources", {}), hashes)


@dataclass(frozen=True)
class _Training:
    """What a run is trained with.

    hashes   {code or data: its hash}, to notice changes by later
    kernels  those of the engine, kept in the run's folder
    """

    experiment: Experiment
    run: Run
    engine: Engine
    data: Mapping[str, Store]
    hashes: Mapping[str, str]
    kernels: dict[str, ConvAlgorithm]
    callbacks: Sequence[Callback]
    progress: Progress
    continued: Run | None
    fresh: bool

    def train(self) -> None:
        experiment, run, engine, pairs = self.experiment, self.run, self.engine, self.data["train"]
        # before `_begin`: a run whose networks or losses cannot be built, as where weights are missing, writes nothing
        with explain_out_of_memory(experiment, pairs.size, engine.device_type), sync_errors():
            objective, state = build_state(experiment, engine, pairs)
        with sync_errors():
            pairs.prepare()
        if pairs.location == "stream":
            self.progress.note(
                f"{len(pairs)} training pairs, {pairs.bytes / 1e9:.1f} GB once decoded, are read again in every epoch "
                "([compute] store)"
            )
        start_from = on_rank0(self._begin)
        try:
            with explain_out_of_memory(experiment, pairs.size, engine.device_type):
                run_training_loop(
                    experiment, run, engine, objective, state, pairs, self.data["val"], self.progress, self.callbacks,
                    start_from=start_from,
                )  # fmt: skip
        except UserError as error:
            if rank() == 0:
                run.set_status(state="failed")
                if isinstance(error, Diverged):
                    TrainingMonitor(run, self.progress).diverged(error)
                    write_report(run, experiment)
            raise
        # again, since training can turn switches off (`Engine.enabled`); and with its cost
        facts = environment(engine, experiment)
        on_rank0(lambda: write_json(run.folder / "env.json", facts | {"training": training_cost(run, engine)}))

    def _begin(self) -> Path | None:
        """Prepare the run's folder. Returns the checkpoint to continue from, if there is one."""
        experiment, run, engine, continued = self.experiment, self.run, self.engine, self.continued
        if experiment.continued_from and not continued and (self.fresh or not list_checkpoints(run.folder)):
            raise UserError(f"this recipe continues run {experiment.continued_from}: give --continue-from RUN")
        refuse_lost_snapshots(experiment, run, self.fresh, continued)
        start_from = find_start(experiment, continued) if continued else None
        if self.fresh:
            run.clear()
        _start_callbacks(self.callbacks, run, experiment)
        store_kernels(self.kernels, run)
        if continued and not list_checkpoints(run.folder):
            copy_file(continued.folder / "metrics.jsonl", run.folder / "metrics.jsonl")
        if continued and (jump := describe_jump_of_lr(experiment, continued)):
            self.progress.note(jump)
        run.begin(experiment, environment(engine, experiment), self.hashes)
        verb = "resuming" if list_checkpoints(run.folder) else "training"
        processes = f" over {world_size()} processes" if world_size() > 1 else ""
        self.progress.note(f"{verb} {experiment.title}, {experiment.train.length} images{processes}, in {run.folder}")
        if engine.device_type == "cpu" and (hint := _suggest_precision(engine)):
            self.progress.note(hint)
        write_report(run, experiment)
        return start_from


def _start_callbacks(callbacks: Sequence[Callback], run: Run, experiment: Experiment) -> None:
    call_each(callbacks, "start", str(run.folder), experiment.resolved())


def _suggest_precision(engine: Engine) -> str | None:
    """A faster precision on this CPU, unless the recipe chose the slower one itself."""
    if engine.precision == "bf16" and has_bf16_products() is False:
        return "this CPU has no bf16 products: it multiplies in fp32; fp32 alone is faster (-s compute.precision=fp32)"
    if engine.settings.precision == "auto" and has_bf16_products():
        return (
            "this CPU has bf16 products: -s compute.precision=bf16 saves a quarter to a half of a step's time; fp32 is "
            "the default, so that results agree between CPUs"
        )
    return None


def _count_pixels(experiment: Experiment, data: Mapping[str, Store]) -> int:
    """The pixels that pass through G at once in this process."""
    train = experiment.train
    return len(shard(range(train.batch_size))) // train.accumulate * math.prod(data["train"].size)


# --- evaluation ------------------------------------------------------------------------------------------------


def _load_generator(experiment: Experiment, run: Run, engine: Engine, registry: Registry, wanted: Translations) -> Any:
    """G as users of the model file get it: in fp32, whatever precision it was trained in."""
    file = run.weights(wanted.weights, wanted.at)
    if not file.exists():
        what = f"its weights after {wanted.at} images" if wanted.at else "the average of its weights"
        advice = "measure others" if experiment.continued_from else "train it again with --fresh"
        raise UserError(f"{file}: this run was trained without keeping {what}: {advice}")
    tensors, header = on_rank0(load_tensors, file)
    parsed = with_parameters(ModelHeader.parse(header, file), wanted.at_use, registry)
    G = restore_network(tensors, parsed, file, registry)
    return G.to(engine.device, memory_format=engine.memory_format)  # type: ignore[call-overload]


def _complete(experiment: Experiment, run: Run, engine: Engine, G: Any, data: Mapping[str, Store]) -> None:
    """Write the test images and the last report; then the run is complete."""
    test = data["test"]
    save_test_grid(experiment, run, engine, G, test, experiment.translations)
    for old in list_checkpoints(run.folder)[:-1]:
        old.unlink()
    comparisons = best_and_worst(experiment, run, engine, G, test)
    paths = sampling_paths(experiment, engine, G, data["val"])
    write_report(run, experiment, comparisons, paths)  # before the status: a run killed in between writes it again
    run.set_status(state="complete")


# --- data ------------------------------------------------------------------------------------------------------


def _check_device(experiment: Experiment) -> None:
    """Raises UserError, with file and line, if this machine does not have the device, or too few for the processes."""
    try:
        check_device(pick_device(experiment.compute.device))
    except UserError as error:
        where = experiment.recipe.where(("compute", "device"))
        raise UserError(*(f"{where}  [compute] {fault}" for fault in error.faults)) from None


def _check_inputs(experiment: Experiment, data: dict[str, Store], progress: Progress, will_train: bool) -> None:
    """Raises UserError for a bad kernels file, bad images or failing metrics, before the run folder is made."""
    if will_train:
        read_recipe_kernels(experiment.compute)
    validate_or_raise(experiment, data, progress.note, keep_train=will_train)
    if will_train:
        try_metrics(build_metrics(experiment, data["test"], experiment.metrics), data["test"])


def _open_data(experiment: Experiment) -> dict[str, Store]:
    """The stores of train, val and of the evaluated split ("test").

    Comes first, so that missing data, and sizes that a network cannot take, are reported before training.
    Raises UserError.
    """
    settings, compute = experiment.train, experiment.compute
    train_store = Store(
        experiment.dataset.build(split="train"), enlarge=settings.jitter, kernel=settings.jitter_kernel,
        compute=compute, origin=_origin(experiment),
    )  # fmt: skip
    val_store = Store(experiment.dataset.build(split="val"), compute=compute)
    val_store.need_soon(sample_indices(len(val_store), experiment.evaluate.samples))
    split = experiment.evaluate.split
    test_store = val_store if split == "val" else Store(experiment.dataset.build(split=split), compute=compute)
    test_store.need_soon(range(min(TRIED_IMAGES, len(test_store))))
    data = {"train": train_store, "val": val_store, "test": test_store}
    for name, store in data.items():
        if (store.size, store.channels) != (train_store.size, train_store.channels):
            raise UserError(f"the dataset's {name} images differ from its train images in size or channels")
    check_needs(experiment, data["test"])
    build_metrics(experiment, data["test"], experiment.metrics)
    faults = find_network_faults(experiment, train_store.channels, train_store.size)
    try:
        make_augmentations(experiment, train_store.channels, train_store.size)
    except UserError as error:
        faults += error.faults
    if faults:
        raise UserError(*faults)
    return data


def _origin(experiment: Experiment) -> str:
    """What the decoded training pairs depend on besides their files: parameters, and the code that reads them."""
    hashes = experiment.sources
    code = {name: hashes[name] for name in ("core", f"dataset {experiment.dataset.entry.full_name}")}
    return json.dumps({"split": "train", "dataset": experiment.dataset.identity(), "code": code}, sort_keys=True)


def _fingerprints(data: Mapping[str, Store], evaluated: str) -> dict[str, str]:
    """{"SPLIT data": fingerprint of its files} of the datasets that have one. evaluated: the split of data["test"]."""
    stores = {"train": data["train"], "val": data["val"], evaluated: data["test"]}
    fingerprints = {split: getattr(store.dataset, "fingerprint", None) for split, store in stores.items()}
    return {f"{name} data": str(fingerprint) for name, fingerprint in fingerprints.items() if fingerprint}
