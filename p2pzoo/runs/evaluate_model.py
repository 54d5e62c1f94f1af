"""Measure a trained model, whoever trained it: on a split of a recipe's data, or on two folders of images."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from p2pzoo import config
from p2pzoo.compute.conv_as_gemm import AlgorithmChooser
from p2pzoo.compute.engine import Engine
from p2pzoo.compute.memory import is_out_of_memory
from p2pzoo.config.component_errors import naming_components
from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.config.frozen_table import FrozenTable
from p2pzoo.config.recipe import NO_PROFILE, parse_override
from p2pzoo.config.settings import AT_USE_KINDS, Compute, Translations
from p2pzoo.data import Store
from p2pzoo.data.collate import collate
from p2pzoo.data.pairing import SPLITS
from p2pzoo.data.validation import validate_or_raise
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.label_maps import Labels
from p2pzoo.images.resize import resize_to
from p2pzoo.models.at_use import AtUse
from p2pzoo.models.intervals import BoundsTranslator, find_reason_against
from p2pzoo.models.load import find_model_file, find_run_folder, load_model, resolve_model_path
from p2pzoo.models.model import TEST_MODES, Model
from p2pzoo.models.scaling import NO_FILE_LAYOUT, Scaling
from p2pzoo.models.translator import Translator
from p2pzoo.plugin import schema
from p2pzoo.plugin.batch import Pair
from p2pzoo.plugin.loader import registry
from p2pzoo.plugin.model_source import pin_model
from p2pzoo.runs.changed_data import describe_changed_train_data
from p2pzoo.runs.evaluate import (
    add_numbers,
    build_metric,
    build_metrics,
    build_protocol,
    check_needs,
    check_trust,
    count_samples,
    describe_metric,
    describe_time,
    group_by_translations,
    join_rows,
    measure,
    measure_all,
)
from p2pzoo.runs.folder_pairs import FolderPair, FolderPairs
from p2pzoo.runs.run_folder import Run
from p2pzoo.utils.errors import OutOfMemory, UserError
from p2pzoo.utils.plurals import format_count

MAX_SCALE_RATIO = 1.05  # medians over other images differ by a few percent
Note = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to measure, and on which images: the arguments of `p2pzoo.evaluate`, see there."""

    model: Path
    folders: tuple[Path, Path] | None = None
    recipe: str | None = None
    profile: str | None = None
    overrides: Sequence[str] = ()
    split: str | None = None
    metrics: Sequence[str] = ()
    test_mode: str | None = None
    scale: float | Literal["native"] | None = None
    size: tuple[int, int] | None = None
    device: str | None = None
    process: Mapping[str, Any] = field(default_factory=dict)
    generator: Mapping[str, Any] = field(default_factory=dict)

    @property
    def at_use(self) -> AtUse:
        """Parameters of the model that differ from its training, on top of those of the recipe's [evaluate]."""
        return {"process": self.process, "generator": self.generator}

    def __post_init__(self) -> None:
        for name, known in (("test_mode", TEST_MODES), ("split", SPLITS)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def evaluate_model(request: Request, note: Note) -> dict[str, Any]:
    """The numbers and their protocols, as results.json of a run has them. note: prints a line.

    Raises UserError: no such model, recipe, metric or data, or they do not fit together.
    """
    options = {"compute.device": request.device, "evaluate.test_mode": None if request.folders else request.test_mode}
    one_by_one = ["evaluate.test_batch=1"] if options["evaluate.test_mode"] == "eval" else []  # batches change nothing
    overrides = [*one_by_one, *request.overrides, *(f"{key}={value}" for key, value in options.items() if value)]
    request = replace(request, model=pin_model(request.model))
    find_model_file(request.model)
    _check_overrides(request)
    recipe = request.recipe or find_recipe_beside(request.model)
    if recipe is None and (request.profile or request.overrides):
        raise UserError(f"{request.model}: has no recipe.toml that --profile or -s could change: give --recipe FILE")
    experiment = config.load(recipe, request.profile, overrides) if recipe else None
    if request.folders is None and experiment is None:
        raise UserError(
            f"{request.model}: has no recipe.toml beside it, so nothing says on which images to measure it: give "
            "--recipe FILE, or a folder of inputs and a folder of targets"
        )
    components = _choose_metrics(request, experiment)
    if request.folders:
        components = _leave_out_own_translations(components, request, note)
    model = load_model(request.model, device="cpu", at_use=request.at_use)
    components = _with_metric_of_calibration(model, components, request, note)
    if not components:
        raise UserError(
            f"{request.model}: no metric is left to measure, since all of its recipe have a table "
            "[metrics.NAME.evaluate], which is for a recipe's own images: give --metric NAME (`p2pzoo list metric`)"
        )
    if request.folders is None:
        assert experiment is not None
        if request.scale is not None or request.size is not None:
            raise UserError(
                "--scale and --size are for two folders: a recipe says how its images are resized ([dataset])"
            )
        with naming_components([experiment.dataset, *components.values()]):
            return _measure_on_recipe(model, replace(experiment, metrics=components), request, note)
    compute = experiment.compute if experiment else Compute(device=request.device or "auto")  # type: ignore[arg-type]
    with naming_components(components.values()):
        return _measure_on_folders(model, components, compute, request, note)


def _check_overrides(request: Request) -> None:
    """Raises UserError for an override that would change nothing: the model is measured as it is."""
    used = ("metrics", "compute") if request.folders else ("dataset", "metrics", "evaluate", "compute")
    unused = [item for item in request.overrides if not _is_used(item, used)]
    if unused:
        tables = ", ".join(f"[{name}]" for name in used)
        where = "with two folders" if request.folders else "to measure a model"
        is_at_use = unused[0].partition(".")[0] in AT_USE_KINDS and not request.folders
        advice = (
            f"write -s evaluate.{unused[0]} for a parameter that may differ from its training"
            if is_at_use
            else "remove it"
        )
        raise UserError(f"-s {unused[0]}: only {tables} of a recipe are used {where}; {advice}")


def _is_used(override: str, tables: Sequence[str]) -> bool:
    """Whether an override changes one of these tables. `drop` may remove metrics, and keys of [evaluate]."""
    table = override.partition("=")[0].partition(".")[0].strip()
    if table != "drop":
        return table in tables
    names = parse_override(override)["drop"]
    droppable = ("metrics.", *(["evaluate"] if "evaluate" in tables else []))
    return all(str(name).startswith(droppable) for name in (names if isinstance(names, list) else [names]))


def find_recipe_beside(path: Path) -> str | None:
    """The recipe.toml in the model's folder, if there is one."""
    recipe = find_run_folder(find_model_file(path)) / "recipe.toml"
    return str(recipe) if recipe.is_file() else None


def _choose_metrics(request: Request, experiment: Experiment | None) -> dict[str, Component]:
    """The recipe's metrics, or the wanted ones: of the recipe by their name there, else any metric with its defaults.

    Raises UserError for unknown ones, and if there is no metric.
    """
    of_recipe = dict(experiment.metrics) if experiment else {}
    if not request.metrics:
        if not of_recipe:
            reason = "its recipe has no metrics" if experiment else "has no recipe.toml beside it"
            raise UserError(f"{request.model}: {reason}: give --metric NAME (`p2pzoo list metric`), or --recipe FILE")
        return of_recipe
    components: dict[str, Component] = {}
    faults: list[str] = []
    for name in dict.fromkeys(request.metrics):
        try:
            components[name] = of_recipe[name] if name in of_recipe else _find_metric(name)
        except UserError as error:
            faults += [f"--metric {name}: {fault}" for fault in error.faults]
    if faults:
        raise UserError(*faults)
    return components


def _leave_out_own_translations(
    components: Mapping[str, Component], request: Request, note: Note
) -> dict[str, Component]:
    """The metrics without those that have a table [metrics.NAME.evaluate], which a note names.

    Raises UserError for one of them that the request names.
    """
    left_out = [name for name, component in components.items() if component.evaluate]
    if request.metrics and left_out:
        raise UserError(
            *(
                f"--metric {name}: has a table [metrics.{name}.evaluate], which is for a recipe's own images, not for "
                f"two folders: add -s 'drop=[\"metrics.{name}.evaluate\"]', or choose another metric"
                for name in left_out
            )
        )
    if left_out:
        note(f"{', '.join(left_out)}: not measured, since [metrics.NAME.evaluate] is for a recipe's own images")
    return {name: component for name, component in components.items() if name not in left_out}


def _find_metric(name: str) -> Component:
    entry = registry().get("metric", name)
    factory = entry.load()
    try:
        return Component(entry, factory, schema.check_params(factory, {}), where=f"--metric {name}")
    except (schema.InvalidParameters, TypeError) as error:
        raise UserError(
            f"{error}: set it with -s metrics.{name}.PARAM=VALUE and -s metrics.{name}.use={name}"
        ) from None


def _describe_checkpoint(model: Model) -> dict[str, Any]:
    """How far its training was, for a run that is not finished."""
    return {"checkpoint": model.checkpoint._asdict()} if model.checkpoint else {}


# --- intervals of a calibrated model -----------------------------------------------------------------------------


def _with_metric_of_calibration(
    model: Model, components: Mapping[str, Component], request: Request, note: Note
) -> dict[str, Component]:
    """The metrics, and the one that the model's calibration names; only the wanted ones if the request names some."""
    name = model.calibration.metric if model.calibration and not request.metrics else None
    if name is None or any(component.entry.full_name == name for component in components.values()):
        return {**components}
    try:
        metric = _find_metric(name)
    except UserError as error:  # of a plugin that is not installed
        note(f"the coverage of the model's intervals is not measured: {error}")
        return {**components}
    key = name.rpartition(":")[2]
    if not hasattr(metric.factory, "calibration") or key in components:  # the name comes from the model's file
        note(f"the coverage of the model's intervals is not measured: its file names '{name}', which does not do that")
        return {**components}
    return {**components, key: metric}


def _calibrated(
    model: Model,
    metrics: Mapping[str, Any],
    translations_of: Callable[[str], Translations],
    request: Request,
    note: Note,
) -> dict[str, Any]:
    """The metrics; those of intervals (see `Metric.calibration`) get the model's calibration.

    Those whose translations are not those of the calibration are left out with a note. Raises UserError if the model
    has no calibration, for a metric left out that the request names, and if no metric is left.
    """
    kept, left_out = {}, []
    for name, metric in metrics.items():
        if hasattr(metric, "calibration"):
            if reason := _why_not_calibrated(model, translations_of(name), request):
                line = f"{name}: not measured: {reason}"
                if model.calibration is None or name in request.metrics:
                    raise UserError(line)
                left_out.append(line)
                continue
            metric.calibration = model.calibration
        kept[name] = metric
    if not kept:
        raise UserError(*left_out)
    for line in left_out:
        note(line)
    return kept


def _why_not_calibrated(model: Model, translations: Translations, request: Request) -> str | None:
    if reason := find_reason_against(model.header):
        return reason
    if any(request.at_use.values()) or translations.at_use:
        return "the model is calibrated with the parameters of its training"
    try:
        model.check_interval(translations.test_mode)
    except ValueError as error:
        return str(error).replace("calibrate MODEL", f"calibrate {request.model}")
    own = translations.weights == model.weights and translations.at is None and translations.test_batch == 1
    return None if own else "the model is calibrated with the weights of its own file, one image at a time"


def _translators(
    model: Model, G: nn.Module, translations: Translations, metrics: Mapping[str, Any]
) -> list[tuple[Translator, dict[str, Any]]]:
    """What translates for these metrics, and for which of them: bounds for metrics of intervals, else translations."""
    plain = {name: metric for name, metric in metrics.items() if not hasattr(metric, "calibration")}
    others = {name: metric for name, metric in metrics.items() if name not in plain}
    pairs: list[tuple[Translator, dict[str, Any]]] = []
    if plain:
        pairs.append((Translator(G, translations, model.size_divisor), plain))
    if others:
        assert model.calibration is not None
        pairs.append((BoundsTranslator(G, model.calibration, translations, model.size_divisor), others))
    return pairs


# --- on a recipe's data ------------------------------------------------------------------------------------------


def _measure_on_recipe(model: Model, experiment: Experiment, request: Request, note: Note) -> dict[str, Any]:
    """To the bit the numbers of `p2pzoo run`: the same images, batches, engine and `translate`."""
    evaluation = replace(
        experiment.evaluate,
        split=request.split or experiment.evaluate.split,  # type: ignore[arg-type]
        process=FrozenTable({**experiment.evaluate.process, **request.process}),
        generator=FrozenTable({**experiment.evaluate.generator, **request.generator}),
    )
    experiment = replace(experiment, evaluate=evaluation)
    store = Store(experiment.dataset.build(split=evaluation.split), compute=experiment.compute)
    check_needs(experiment, store)
    experiment = _with_weights_of(model, experiment, request, note)
    built = build_metrics(experiment, store, experiment.measurements)
    metrics = _calibrated(model, built, lambda name: experiment.measurements[name].translations, request, note)
    is_own = experiment.id == model.run
    check_images_fit(model, store, experiment.recipe.name)
    if not is_own:
        _describe_differences(model, store, experiment, request, note)
    elif changed := describe_changed_train_data(request.model, experiment):
        warnings.warn(changed, stacklevel=2)
    validate_or_raise(experiment, {"test": store}, note, keep_train=False)
    engine = Engine(experiment.compute, AlgorithmChooser({}))
    check_trust(metrics, engine.device)
    note(
        f"measuring on {format_count(len(store), 'image')} of the {evaluation.split} split, test mode "
        f"{evaluation.test_mode}"
    )
    _describe_own_test_modes(experiment, metrics, note)
    statistics: dict[str, Tensor] = {}
    timings: list[dict[str, Any]] = []
    for translations, group in group_by_translations(experiment, metrics).items():
        G = _find_generator(model, translations, request).to(engine.device, memory_format=engine.memory_format)  # type: ignore[call-overload]
        for translator, part in _translators(model, G, translations, group):
            translate_x = functools.partial(_translate, translator)
            statistics |= measure_all(part, engine, store, translate_x, translations.test_batch)
            timings += describe_time(translator, engine) if type(translator) is Translator else []
    protocols = {name: build_protocol(experiment, name, store, metric) for name, metric in metrics.items()}
    return {
        "id": model.run,
        "model": str(request.model),
        **_describe_checkpoint(model),
        "recipe": experiment.recipe.name,
        "profile": experiment.recipe.profile,
        "seed": experiment.seed if is_own else None,
        **add_numbers({}, metrics, protocols, statistics),
        **({"timings": timings} if timings else {}),
    }


def _describe_own_test_modes(experiment: Experiment, names: Iterable[str], note: Note) -> None:
    """Print which metrics are measured in another test mode than that of [evaluate], or of --test-mode."""
    modes = {name: experiment.measurements[name].translations.test_mode for name in names}
    if others := [f"{name} ({mode})" for name, mode in modes.items() if mode != experiment.evaluate.test_mode]:
        note(f"in another test mode, which a table of their own in the recipe names: {', '.join(others)}")


def _with_weights_of(model: Model, experiment: Experiment, request: Request, note: Note) -> Experiment:
    """The experiment with the weights that a model file has, or a folder with one model. A run's folder has several."""
    if (resolve_model_path(request.model) / "status.json").is_file():
        return experiment
    wanted = experiment.evaluate
    also = {name: table for name, table in wanted.also.items() if not _find_other_weights(model, table)}
    if wanted.weights != model.weights or wanted.at or len(also) < len(wanted.also):
        note(f"only the {model.weights} weights, those of {request.model}; its run's folder has those of [evaluate]")
    experiment = replace(experiment, evaluate=replace(wanted, weights=model.weights, at=(), also=FrozenTable(also)))
    faults = [
        f"metric '{name}' measures G with other weights ({', '.join(others)}) than {request.model} has: give the "
        "folder of its run, or name other metrics with --metric"
        for name, metric in experiment.metrics.items()
        if (others := _find_other_weights(model, metric.evaluate))
    ]
    if faults:
        raise UserError(*faults)
    return experiment


def _find_other_weights(model: Model, table: Mapping[str, Any]) -> list[str]:
    """The keys of a table [metrics.NAME.evaluate] that name other weights than those of the model's file."""
    return [key for key in ("weights", "at") if table.get(key, model.weights) != model.weights]


def _find_generator(model: Model, translations: Translations, request: Request) -> nn.Module:
    """G with the weights that are measured: those of `model`, or of another file in the folder of its run."""
    file = request.model
    if translations.at is not None or translations.weights != model.weights:
        folder = find_run_folder(find_model_file(request.model))
        file = Run(folder).weights(translations.weights, translations.at)
        if not file.is_file():
            raise UserError(f"{file}: no such file; the run of {request.model} keeps no such weights")
    elif not translations.at_use:
        return model.G
    return load_model(file, device="cpu", at_use=translations.at_use).G


def check_images_fit(model: Model, store: Store, recipe: str) -> None:
    """Raises UserError if the recipe's images have other channels, ranges, color spaces or classes than the model's."""
    dataset = store.dataset
    encodings = Encodings.of(dataset)
    faults: list[str] = []
    for position, side in enumerate("xy"):
        channels = (model.in_channels, model.out_channels)[position], store.channels[position]
        encoded = (model.encodings.x, model.encodings.y)[position], (encodings.x, encodings.y)[position]
        dtypes = getattr(model, f"{side}_dtype"), store.dtypes[position]
        limits = [getattr(owner, f"{side}_range") for owner in (model, dataset)]
        ranges = [f"{low:g} to {high:g}" for low, high in limits]
        labels: list[Labels | None] = [getattr(owner, f"{side}_labels", None) for owner in (model, dataset)]
        if channels[0] != channels[1]:
            count = format_count(channels[1], "channel")
            faults.append(f"{side} has {count} in {recipe}, and {channels[0]} in the model")
        elif encoded[0] != encoded[1]:
            faults.append(f"{side} is {encoded[1] or 'RGB'} in {recipe}, and {encoded[0] or 'RGB'} in the model")
        elif dtypes[0] == dtypes[1] and ranges[0] != ranges[1]:
            faults.append(f"{side} has values from {ranges[1]} in {recipe}, and {ranges[0]} in the model")
        elif labels[0] and labels[1] and labels[0].classes.names != labels[1].classes.names:
            faults.append(f"{side} has other classes in {recipe} than in the model")
    if faults:
        raise UserError(*(f"{fault}: give a --recipe with images like those of its training" for fault in faults))


def _describe_differences(model: Model, store: Store, experiment: Experiment, request: Request, note: Note) -> None:
    """Print where another recipe shows the model its images in another way than in its training."""
    mode, name = experiment.evaluate.test_mode, experiment.recipe.name
    if mode != model.test_mode and not request.test_mode:
        note(f"test mode {mode}, as in {name}; the model's own is {model.test_mode} (--test-mode {model.test_mode})")
    if difference := describe_other_scale(model, store, name):
        warnings.warn(difference, stacklevel=2)


def describe_other_scale(model: Model, store: Store, recipe: str) -> str | None:
    """A line if the recipe brings images to another scale than the model's training; None if not, or if unknown."""
    layout, own = getattr(store.dataset, "file_layout", None), model.file_layout
    if layout is None or own is None:
        return None
    ratios = [theirs / ours for theirs, ours in zip(layout.scale, own.scale, strict=True)]
    if max(*ratios, *(1 / ratio for ratio in ratios)) <= MAX_SCALE_RATIO:
        return None
    return (
        f"{recipe} brings images to {_format_scale(layout.scale)} of their size, the model's training to "
        f"{_format_scale(own.scale)}: set [dataset] size as in its training"
    )


def _format_scale(scale: tuple[float, float]) -> str:
    """
    >>> _format_scale((0.5, 0.5)), _format_scale((0.5, 0.25))
    ('0.5', '0.5 × 0.25')
    """
    return " × ".join(f"{factor:.3g}" for factor in dict.fromkeys(scale))


# --- on two folders ----------------------------------------------------------------------------------------------


def _measure_on_folders(
    model: Model, components: Mapping[str, Component], compute: Compute, request: Request, note: Note
) -> dict[str, Any]:
    assert request.folders is not None
    try:
        mode, _ = model.resolve_options(request.test_mode, None, None)
        scaling = Scaling.resolve(model.file_layout, request.scale, request.size)
    except ValueError as error:
        raise UserError(str(error)) from None
    pairs = FolderPairs(model, *request.folders, request.split, scaling)
    at_use = {kind: FrozenTable(table) for kind, table in request.at_use.items()}
    translations = Translations(test_mode=mode, weights=model.weights, **at_use)  # type: ignore[arg-type]
    metrics = _calibrated(model, _build_for_folders(components, pairs), lambda _: translations, request, note)
    engine = Engine(compute, AlgorithmChooser({}))
    check_trust(metrics, engine.device)
    G = model.G.to(engine.device, memory_format=engine.memory_format)  # type: ignore[call-overload]
    if model.file_layout is None and request.scale is None and request.size is None:
        warnings.warn(f"{NO_FILE_LAYOUT}, such as --scale 0.5 (--scale native: no warning)", stacklevel=2)
    how = "" if scaling.is_native else f"; the model sees them {scaling}"
    note(
        f"measuring on {format_count(len(pairs), 'pair')} of {' and '.join(map(str, request.folders))}, "
        f"test mode {mode}{how}"
    )
    rows, translators = [], _translators(model, G, translations, metrics)
    for item in pairs:
        batch = engine.to_device(collate([item.pair], pairs))
        row: dict[str, Tensor] = {}
        for translator, part in translators:
            y_hats = _translate_pair(model, translator, engine, pairs, item, count_samples(part))
            row |= measure(part, batch, y_hats, pairs)
        rows.append(row)
    facts = {
        "dataset": {"use": "two-folders", "pixels": pairs.fingerprint},
        "split": pairs.split,
        "images": len(pairs),
        **({"size": list(*pairs.sizes)} if len(pairs.sizes) == 1 else {}),
        **translations.protocol(),
        **({} if scaling.is_native else {"scaling": scaling.as_json()}),
    }
    protocols = {
        name: {"metric": describe_metric(components[name], metric), **facts} for name, metric in metrics.items()
    }
    timings = [entry for each, _ in translators if type(each) is Translator for entry in describe_time(each, engine)]
    return {
        "id": model.run,
        "model": str(request.model),
        **_describe_checkpoint(model),
        "recipe": "two-folders",
        "profile": NO_PROFILE,
        "seed": None,
        **add_numbers({}, metrics, protocols, join_rows(rows)),
        **({"timings": timings} if timings else {}),
    }


def _build_for_folders(components: Mapping[str, Component], pairs: FolderPairs) -> dict[str, Any]:
    """Raises UserError with all metrics that cannot be built, and those that need what two folders do not have."""
    available = {"labels": pairs.classes is not None}
    metrics: dict[str, Any] = {}
    faults: list[str] = []
    for name, component in components.items():
        missing = [need for need in component.entry.needs if not available.get(need)]
        if missing:
            faults.append(
                f"metric '{name}' needs {missing[0]}, which two folders do not have: choose others by --metric"
            )
            continue
        try:
            metrics[name] = build_metric(component, pairs)
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(*faults)
    return metrics


def _translate_pair(
    model: Model, translator: Translator, engine: Engine, pairs: FolderPairs, item: FolderPair, count: int
) -> list[Tensor]:
    """Samples of ŷ, (1, C, H, W) in [-1, 1] each, in the size of the pair's files, not rounded to stored values."""
    pair, prepared = item
    batch = engine.to_device(collate([Pair(pair.id, prepared.x, pair.y)], pairs))
    y_hats = _translate(translator, batch.x, count)
    return [_resize(y_hat, prepared.size, model.encodings.y == "one-hot") for y_hat in y_hats]


def _resize(y_hat: Tensor, size: tuple[int, int], is_map: bool) -> Tensor:
    """ŷ (1, C, H, W) in this size. is_map: it has the classes of a label map."""
    if y_hat.shape[2:] == size:
        return y_hat
    array = np.ascontiguousarray(y_hat[0].permute(1, 2, 0).cpu().numpy())
    resized = resize_to(array, size, "stretch", (-1, 1), bands=True, kernel="nearest" if is_map else "bicubic")
    return torch.from_numpy(resized).permute(2, 0, 1)[None].to(y_hat.device)


def _translate(translator: Translator, x: Tensor, count: int) -> list[Tensor]:
    """What `translator` returns. Raises OutOfMemory."""
    height, width = x.shape[2:]
    try:
        return translator(x, count)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory at {height}×{width}: measure at a smaller size (--scale, --size)") from None
