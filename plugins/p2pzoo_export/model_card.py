"""A finished run -> a folder fit for a model hub: the model, its recipe, pictures, and a card that says what it is.

The card's front matter is that of the Hugging Face model card (metadata of 2024: license, library_name, pipeline_tag,
tags, datasets, metrics, model-index). Its scalars are JSON, which YAML reads; text of recipes is escaped in Markdown.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

from p2pzoo import __version__, config
from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.config.recipe import leaves
from p2pzoo.models import safetensors_io
from p2pzoo.plugin.registry import Registry
from p2pzoo.runs.run_folder import Run, find_run
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write, read_json, write_text

FILES = ("README.md", "model.safetensors", "recipe.toml", "samples.png")
WORST = 3  # images that the card names
UNKNOWN_LICENCE = "unknown: say here what may be done with your data, and with a model trained on it"
PIX2PIX = "arXiv:1611.07004"


def write_card(
    folder: Path, out: Path, registry: Registry, *, licence: str | None = None, force: bool = False
) -> list[Path]:
    """The files written. licence: of the model, as hubs name it; None leaves "other", and a line that says so.

    Raises UserError for what is no finished run, and before anything in `out` would be overwritten.
    """
    if folder.is_file():
        raise UserError(f"{folder}: a card is made of a run folder; of a model file alone its training is not known")
    run = find_run(folder)
    if not run.model.is_file() or run.state != "complete":
        raise UserError(f"{folder}: a run that has not finished; p2pzoo run goes on with it")
    if out.resolve() == folder.resolve():
        raise UserError(f"{out}: is the run itself; give another folder")
    if there := [out / name for name in FILES if (out / name).exists() and not force]:
        raise UserError(f"{there[0]}: already there; --force overwrites it")
    experiment = config.load(str(run.recipe), registry=registry)
    test = run.samples / f"{experiment.evaluate.split}.png"
    picture = test if test.is_file() else None
    sources = {"model.safetensors": run.model, "recipe.toml": run.recipe, "samples.png": picture}
    text = card(run, experiment, licence=licence, pictured=picture is not None)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, source in sources.items():
        if source is not None:
            with atomic_write(out / name) as temporary:
                shutil.copyfile(source, temporary)
            written.append(out / name)
    write_text(out / "README.md", text)
    return [out / "README.md", *written]


def card(run: Run, experiment: Experiment, *, licence: str | None = None, pictured: bool = True) -> str:
    """The card's text, from what the run's folder holds."""
    results = read_json(run.results) or {}
    env = read_json(run.folder / "env.json") or {}
    _, header = safetensors_io.load_tensors(run.model)
    data = experiment.dataset
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"md": escaped, "code": code, "yaml": scalar}
    template = environment.from_string(Path(__file__).with_name("card.md").read_text("utf-8"))
    numbers = list(_numbers(results))
    return template.render(
        version=__version__,
        title=experiment.title,
        licence=licence,
        data=data,
        data_licence=licence_of(data),
        numbers=numbers,
        results=_grouped(numbers),
        split=experiment.evaluate.split,
        metrics=sorted({number["metric"] for number in numbers}),
        header=header,
        components=experiment.components(),
        recipe=[
            (".".join(key), value)
            for key, value in leaves(experiment.resolved())
            if not Path(str(value)).is_absolute()  # where files lay is nobody's business
        ],
        env={name: value for name, value in env.items() if name not in ("training", "on")},
        seconds=env.get("training", {}).get("seconds"),
        images=run.status["images"],
        id=run.status["id"],
        seed=experiment.seed,
        profile=experiment.recipe.profile,
        worst=_worst(run, experiment, results),
        papers=_papers(experiment),
        pictured=pictured,
    )


def licence_of(data: Component) -> str:
    """What the dataset says of its licence; see `contracts.Dataset`."""
    told = getattr(data.factory, "licence", None) or getattr(getattr(data.factory, "archive", None), "licence", None)
    return str(told) if told else UNKNOWN_LICENCE


def scalar(value: Any) -> str:
    """As a YAML scalar, which JSON is; no number that JSON lacks."""
    return json.dumps(value)


def escaped(value: Any) -> str:
    """Text that Markdown, and HTML in it, shows as it is, in one line."""
    text = " ".join(str(value).split())
    text = re.sub(r"([\\`*_{}\[\]#!|~$@])", r"\\\1", text).replace("://", "\\://")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(value: Any) -> str:
    """Text as code, also inside a table: fenced by more backticks than it has."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    if not text:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def _numbers(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, number in results.get("metrics", {}).items():
        value = number["value"]
        if value is None or not math.isfinite(value):
            continue  # neither JSON nor the hub has such
        protocol = results["protocols"][number["protocol"]]
        yield {
            "name": name,
            "metric": protocol["metric"]["use"].partition(":")[2],
            "value": value,
            "version": protocol["metric"].get("version", "unknown"),
            "hash": number["protocol"],
            "protocol": protocol,
        }


def _grouped(numbers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that were measured on the same images in the same way are one result of the model-index."""
    groups: dict[str, dict[str, Any]] = {}
    for number in numbers:
        protocol = number["protocol"]
        how = {name: protocol[name] for name in ("images", "size", "test_mode", "test_batch") if name in protocol}
        key = json.dumps([protocol["split"], how])
        groups.setdefault(key, {"split": protocol["split"], "how": how, "numbers": []})["numbers"].append(number)
    return list(groups.values())


def _worst(run: Run, experiment: Experiment, results: Mapping[str, Any]) -> tuple[str, list[tuple[str, float]]] | None:
    """(metric, [(id of a test image, its value), …] worst first), by the first metric that ranks single images."""
    if not run.stats.is_file():
        return None
    tensors, header = safetensors_io.load_tensors(run.stats)
    ids = header.get("ids", [])
    for name, component in experiment.metrics.items():
        better = getattr(component.factory, "better", None)
        rows = safetensors_io.strip_prefix(name, tensors)
        if better not in ("higher", "lower") or name not in results.get("metrics", {}) or not rows or not ids:
            continue
        try:
            metric = component.build(dataset=None)
            reduced = [metric.reduce({k: v[i : i + 1] for k, v in rows.items()})["value"] for i in range(len(ids))]
        except (AttributeError, TypeError, ValueError, UserError):  # one that asks its dataset
            continue
        values = [(str(id), float(value)) for id, value in zip(ids, reduced, strict=True)]
        if not any(math.isnan(value) for _, value in values):
            return name, sorted(values, key=lambda pair: pair[1], reverse=better == "lower")[:WORST]
    return None


def _papers(experiment: Experiment) -> list[tuple[str, str]]:
    """[(paper, what of it is used), …], that of pix2pix first."""
    found: dict[str, list[str]] = {PIX2PIX: ["the method"]}
    for component in experiment.components():
        if component.entry.paper and component.entry.paper.lower() != "none":
            key = next((known for known in found if known.split("v")[0] == component.entry.paper.split("v")[0]), None)
            found.setdefault(key or component.entry.paper, []).append(component.entry.full_name)
    return [(paper, ", ".join(dict.fromkeys(used))) for paper, used in found.items()]
