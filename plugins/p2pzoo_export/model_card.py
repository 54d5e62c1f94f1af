"""Write a folder for a model hub from a run: the model, its recipe, pictures, and a model card.

The metadata block of the card is written by huggingface_hub; nothing here uses the network. The text of recipes is
escaped in Markdown.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData

from p2pzoo import __version__, config
from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.config.recipe import iter_leaves
from p2pzoo.config.settings import AT_USE_KINDS
from p2pzoo.images.io import can_hold
from p2pzoo.models import safetensors_io
from p2pzoo.models.load import read_model
from p2pzoo.models.model_file import ModelHeader
from p2pzoo.models.safetensors_io import save_model_tensors
from p2pzoo.models.scaling import Scaling
from p2pzoo.plugin.model_source import is_address
from p2pzoo.plugin.registry import Registry
from p2pzoo.runs.report import describe_environment, is_in_environment
from p2pzoo.runs.results import describe_too_few
from p2pzoo.runs.run_folder import Run, find_run
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import copy_file, parse_toml, read_json, write_text
from p2pzoo_export.private_paths import is_private, without_private_paths

FILES = ("README.md", "model.safetensors", "recipe.toml", "samples.png")
NUM_WORST = 3  # worst test images that the card names
UNKNOWN_LICENCE = "unknown: state here what may be done with your data, and with a model trained on it"
PIX2PIX = "arXiv:1611.07004"
TASK = "image-to-image"  # as the hub names it
ARGS = ("images", "size", "test_mode", "test_batch", "weights", *AT_USE_KINDS)  # of a protocol, in the model-index


def write_card(
    folder: Path,
    out: Path,
    registry: Registry,
    *,
    licence: str | None = None,
    force: bool = False,
    is_public: bool = False,
) -> list[Path]:
    """Write the folder `out` for the run `folder`; return the files written.

    The model has the weights that the run's numbers and pictures measured, which are the only ones that the card has.
    Of a run that is not finished, it is the newest intact checkpoint, and the card says so.

    licence    of the model, as hubs name it; None writes "other", and a line that says that none is stated
    force      overwrite files that exist
    is_public  leave out recipe.toml if it names absolute paths, which are private

    Raises UserError if `folder` is not a run with a model, or before a file would be overwritten.
    """
    if folder.is_file():
        raise UserError(f"{folder}: a model file does not contain how it was trained; give the run folder")
    if is_address(folder):
        raise UserError(f"{folder}: is a model that is published already; a card describes a run: give the run folder")
    run = find_run(folder)
    if out.resolve() == folder.resolve():
        raise UserError(f"{out}: this is the run folder itself; write the card to another folder")
    if existing := [out / name for name in FILES if (out / name).exists() and not force]:
        raise UserError(f"{existing[0]}: already exists; --force overwrites it")
    experiment = config.load(str(run.recipe), registry=registry)
    tensors, json_header, file = read_model(folder)
    header = ModelHeader.parse(json_header, file)
    published = without_private_paths(json_header)
    samples = _find_samples(run, experiment, header)
    has_recipe = not (is_public and names_private_paths(run.recipe))
    text = render_card(run, experiment, header, licence=licence, samples=samples, has_recipe=has_recipe)
    out.mkdir(parents=True, exist_ok=True)
    sources = {"recipe.toml": run.recipe} if has_recipe else {}
    if header.checkpoint or json_header != published:
        save_model_tensors(out / "model.safetensors", tensors, published)
    else:
        sources["model.safetensors"] = file
    if samples:
        sources["samples.png"] = samples
    for name, source in sources.items():
        copy_file(source, out / name)
    write_text(out / "README.md", text)
    return [out / name for name in FILES if name in ("README.md", "model.safetensors") or name in sources]


def names_private_paths(recipe: Path) -> bool:
    """Whether a recipe.toml has absolute paths, which are those of this machine."""
    return any(is_private(value) for _, value in iter_leaves(parse_toml(recipe.read_text("utf-8"))))


def _find_samples(run: Run, experiment: Experiment, header: ModelHeader) -> Path | None:
    """The grid of test images; of a run that is not evaluated, the newest grid of validation images.

    None if only the latter are there and the model is an average: training shows the last weights.
    """
    of_test = run.samples / f"{experiment.evaluate.split}.png"
    if of_test.is_file() or header.weights == "average":
        return of_test if of_test.is_file() else None
    return max(run.samples.glob("images-*.png"), default=None)


def render_card(
    run: Run,
    experiment: Experiment,
    header: ModelHeader,
    *,
    licence: str | None = None,
    samples: Path | None = None,
    has_recipe: bool = True,
) -> str:
    """Return the text of README.md, from the files of the run folder.

    header      of the model; samples: its pictures, if there are any
    has_recipe  whether recipe.toml is beside the card
    """
    results = read_json(run.results) or {}
    env = read_json(run.folder / "env.json") or {}
    data = experiment.dataset
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"md": escape_markdown, "code": format_code}
    template = environment.from_string(Path(__file__).with_name("card.md").read_text("utf-8"))
    measured = list(_read_metrics(results))
    metrics = [metric for metric in measured if _is_of_model(metric["protocol"], header)]
    shell, python = describe_use(header)
    body = template.render(
        version=__version__,
        title=experiment.title,
        licence=licence,
        data=data,
        data_licence=get_licence(data),
        numbers=metrics,
        others=len(measured) - len(metrics),
        header=header,
        has_recipe=has_recipe,
        shell=shell,
        python=python,
        scaling=None if (scaling := Scaling.resolve(header.file_layout)).is_native else scaling,
        components=experiment.components(),
        recipe=[
            (".".join(key), value)
            for key, value in iter_leaves(experiment.resolved())
            if not is_private(value) and not is_in_environment(key, env)
        ],
        env=describe_environment({name: value for name, value in env.items() if name != "on"}),
        seconds=env.get("training", {}).get("seconds"),
        images=header.checkpoint.images if header.checkpoint else run.status["images"],
        evaluated=run.state == "complete",
        id=run.status["id"],
        seed=experiment.seed,
        profile=experiment.recipe.profile,
        worst=_find_worst_images(run, experiment, {metric["name"] for metric in metrics}),
        papers=_list_papers(experiment),
        samples_of=samples and ("val" if samples.stem.startswith("images-") else experiment.evaluate.split),
    )
    metadata = make_metadata(experiment, header.use, metrics, licence)
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"


def make_metadata(
    experiment: Experiment, generator: str, metrics: list[dict[str, Any]], licence: str | None
) -> ModelCardData:
    """Return the metadata of the card."""
    data = ModelCardData(
        license=licence or "other",
        library_name="p2pzoo",
        pipeline_tag=TASK,
        tags=["pix2pix", TASK, generator],
        datasets=[experiment.dataset.entry.name],
        metrics=sorted({metric["metric"] for metric in metrics}) or None,
    )
    if metrics:
        # Not by eval_results: huggingface_hub merges results that differ only in the `args` of the dataset.
        results = [_make_result(experiment.dataset, group) for group in _group_by_images(metrics)]
        data["model-index"] = [{"name": experiment.title, "results": results}]
    return data


def _make_result(data: Component, group: Mapping[str, Any]) -> dict[str, Any]:
    dataset = {"name": data.entry.summary, "type": data.entry.name, "split": group["split"], "args": group["args"]}
    metrics = [{"type": each["metric"], "name": each["name"], "value": each["value"]} for each in group["metrics"]]
    return {"task": {"type": TASK}, "dataset": dataset, "metrics": metrics}


def describe_use(header: ModelHeader) -> tuple[list[str], list[str]]:
    """Return (lines of shell, lines of Python) that translate one image of the kind that this model takes.

    Files are PNGs if they can hold the channels and values of x and of y, else NumPy arrays.
    """
    x_fits, y_fits = (
        is_map or encoding is not None or (channels in (1, 3) and can_hold(".png", dtype, channels))
        for is_map, encoding, channels, dtype in (
            (bool(header.x_labels), header.encodings.x, header.in_channels, header.x_dtype),
            (bool(header.y_labels), header.encodings.y, header.out_channels, header.y_dtype),
        )
    )
    source = "labels.png" if header.x_labels else "photo.png" if x_fits else "image.npy"
    shell = [f"p2pzoo translate model.safetensors {source} -o translated/"]
    if header.file_layout and (half := header.file_layout.x_half):
        shell += [f"p2pzoo translate model.safetensors pair.png --side {half} -o translated/  # a file with x and y"]
    if x_fits and y_fits:
        call = f'p2pzoo.load("model.safetensors").translate("{source}").save("translated.png")'
        return shell, ["import p2pzoo", "", call]
    low, high = header.x_range
    read = f'np.asarray(Image.open("{source}"))' if x_fits else f'np.load("{source}")'
    return shell, [
        "import numpy as np",
        "import p2pzoo",
        *(["from PIL import Image"] if x_fits else []),
        "",
        f"x = {read}  # (H, W, {header.in_channels}) {header.x_dtype}, values from {low:g} to {high:g}",
        'np.save("translated.npy", p2pzoo.load("model.safetensors").translate(x))',
    ]


def get_licence(data: Component) -> str:
    """Return the licence that the dataset states (`licence` or `archive` of its class), else UNKNOWN_LICENCE."""
    archive = getattr(data.factory, "archive", None)
    licence = getattr(data.factory, "licence", None) or getattr(archive, "licence", None)
    return str(licence) if licence else UNKNOWN_LICENCE


def escape_markdown(value: Any) -> str:
    """Escape text so that Markdown, and HTML in it, shows it literally, in one line.

    >>> escape_markdown("a_b <i>")
    'a\\\\_b &lt;i&gt;'
    """
    text = " ".join(str(value).split())
    text = re.sub(r"([\\`*_{}\[\]#!|~$@])", r"\\\1", text).replace("://", "\\://")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def format_code(value: Any) -> str:
    """Format text as inline code that is valid in a table too: the fence has more backticks than the text.

    >>> format_code("lr = 0.1")
    '`lr = 0.1`'
    """
    text = " ".join(str(value).split()).replace("|", "\\|")
    if not text:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def _read_metrics(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, number in results.get("metrics", {}).items():
        value = number["value"]
        if value is None or not math.isfinite(value):
            continue  # the hub accepts finite numbers only
        protocol = results["protocols"][number["protocol"]]
        yield {
            "name": name,
            "metric": protocol["metric"]["use"].partition(":")[2],
            "value": value,
            "too_few": describe_too_few(results, name),
            "version": protocol["metric"].get("version", "unknown"),
            "hash": number["protocol"],
            "protocol": protocol,
            "changed": _describe_changes(protocol),
        }


def _is_of_model(protocol: Mapping[str, Any], header: ModelHeader) -> bool:
    """Whether a number measured the weights of this model file, which are those at the end of the training."""
    return protocol.get("weights", "last") == header.weights and "at" not in protocol


def _describe_changes(protocol: Mapping[str, Any]) -> str:
    """The parameters that a number was measured with in place of those of the training.

    >>> _describe_changes({"split": "test", "process": {"steps": 4}})
    'process.steps = 4'
    """
    tables = {kind: protocol.get(kind, {}) for kind in AT_USE_KINDS}
    return ", ".join(f"{kind}.{key} = {value}" for kind, table in tables.items() for key, value in table.items())


def _group_by_images(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Group metrics that were measured on the same images in the same way, as the results of a model-index."""
    groups: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        protocol = metric["protocol"]
        args = {name: protocol[name] for name in ARGS if name in protocol}
        key = json.dumps([protocol["split"], args])
        groups.setdefault(key, {"split": protocol["split"], "args": args, "metrics": []})["metrics"].append(metric)
    return list(groups.values())


def _find_worst_images(
    run: Run, experiment: Experiment, shown: Collection[str]
) -> tuple[str, list[tuple[str, float]]] | None:
    """Return (metric, [(id of a test image, its value), …], worst first), by the first metric that ranks single images.

    shown  the metrics of the card

    None if there is no such metric.
    """
    if not run.stats.is_file():
        return None
    tensors, header = safetensors_io.load_tensors(run.stats)
    ids = header.get("ids", [])
    for name, component in experiment.metrics.items():
        better = getattr(component.factory, "better", None)
        rows = safetensors_io.strip_prefix(name, tensors)
        if better not in ("higher", "lower") or name not in shown or not rows or not ids:
            continue
        try:
            metric = component.build(dataset=None)
            reduced = [metric.reduce({k: v[i : i + 1] for k, v in rows.items()})["value"] for i in range(len(ids))]
        except (AttributeError, TypeError, ValueError, UserError):  # a metric that needs its dataset
            continue
        values = [(str(id), float(value)) for id, value in zip(ids, reduced, strict=True)]
        if not any(math.isnan(value) for _, value in values):
            return name, sorted(values, key=lambda pair: pair[1], reverse=better == "lower")[:NUM_WORST]
    return None


def _is_paper(text: str) -> bool:
    return text.lower() not in ("", "none")


def _list_papers(experiment: Experiment) -> list[tuple[str, str]]:
    """Return [(paper, components that follow it), …]; that of the method comes first: pix2pix, or the process."""
    method = experiment.process.entry.paper if experiment.process else PIX2PIX
    uses: dict[str, list[str]] = {method: ["the method"]} if _is_paper(method) else {}
    for component in experiment.components():
        if _is_paper(component.entry.paper):
            key = next((known for known in uses if known.split("v")[0] == component.entry.paper.split("v")[0]), None)
            uses.setdefault(key or component.entry.paper, []).append(component.entry.full_name)
    return [(paper, ", ".join(dict.fromkeys(names))) for paper, names in uses.items()]
