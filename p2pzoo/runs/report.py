"""report.html: a run on one self-contained page, refreshed during training. Every name in it is escaped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from p2pzoo.config.experiment import Experiment
from p2pzoo.config.recipe import Key, iter_leaves
from p2pzoo.images.curves import plot_curves
from p2pzoo.images.grid import to_uint8_rgb
from p2pzoo.images.io import PILLOW_ERRORS, open_picture
from p2pzoo.runs.monitor import read_findings
from p2pzoo.runs.pages import data_uri, render_page
from p2pzoo.runs.results import describe_too_few, read_results
from p2pzoo.runs.run_folder import Run
from p2pzoo.utils.files import read_object, write_text

MAX_GRIDS = 12  # sample grids, spread over the training: more would make the page slow to load


@dataclass(frozen=True)
class Comparison:
    """A test image, (C, H, W) in [-1, 1] each. note: what was measured on it."""

    id: str
    note: str
    x: Tensor
    y_hat: Tensor
    y: Tensor


@dataclass(frozen=True)
class SamplingPath:
    """How a process reaches the translation of a validation image: (caption, (C, H, W) in [-1, 1]), …"""

    id: str
    images: Sequence[tuple[str, Tensor]]


def write_report(
    run: Run, experiment: Experiment, comparisons: Sequence[Comparison] = (), paths: Sequence[SamplingPath] = ()
) -> None:
    """Write the page from the files in the run's folder.

    comparisons, paths  test and validation images, once the run is evaluated
    """
    env = read_object(run.folder / "env.json") or {}
    results = read_results(run.results)
    losses, samples = run.lines("metrics.jsonl"), sorted(run.samples.glob("images-*.png"))
    shown = [*(line["images"] for line in losses[-1:]), *map(parse_images_seen, samples[-1:])]
    page = render_page(
        Path(__file__).with_name("report.html"),
        title=experiment.title,
        run=run.folder.name,
        status=run.status,
        seen=max(run.status["images"], *shown, 0),  # the status has those of the last checkpoint
        target=experiment.train.images_seen,
        results=results,
        too_few={name: describe_too_few(results, name) for name in results["metrics"]} if results else {},
        environment=describe_environment(env),
        recipe=[*_describe_recipe(experiment, env)],
        findings=read_findings(run),
        curves=plot_curves(losses),
        grids=[*_grids(_spread(samples))],
        comparisons=[
            {"id": c.id, "note": c.note, **{name: _picture(getattr(c, name)) for name in ("x", "y_hat", "y")}}
            for c in comparisons
        ],
        picture_note=getattr(experiment.dataset.factory, "picture_note", ""),
        paths=[{"id": p.id, "images": [(name, _picture(image)) for name, image in p.images]} for p in paths],
    )
    write_text(run.folder / "report.html", page)


def _describe_recipe(experiment: Experiment, env: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key, value in iter_leaves(experiment.resolved()):
        if not is_in_environment(key, env):
            yield {"key": ".".join(key), "value": value, "origin": experiment.origin(key),
                   "by_default": key not in experiment.recipe.origins}  # fmt: skip


def describe_environment(env: Mapping[str, Any]) -> dict[str, str]:
    """What pages say about env.json: {name: value as text}.

    Leaves out time and memory, which differ each time (a page must stay bit-identical), and the table of components.

    >>> describe_environment({"device": "cpu", "deterministic": True, "on": ["tf32", "compile"]})
    {'device': 'cpu', 'deterministic kernels': 'yes (always on a CPU)', 'switches in use': 'tf32, compile'}
    """
    names = {"deterministic": "deterministic kernels", "on": "switches in use", "products": "products in"}
    words = {True: "yes (always on a CPU)" if env.get("device") == "cpu" else "yes", False: "no"}
    texts = {}
    for key, value in env.items():
        if key not in ("components", "training"):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            texts[names.get(key, key)] = words[value] if isinstance(value, bool) else text
    return texts


def is_in_environment(key: Key, env: Mapping[str, Any]) -> bool:
    """Whether `describe_environment` shows what a key of the recipe has led to, so that pages need not show both."""
    return key == ("compute", "deterministic") and "deterministic" in env


def parse_images_seen(path: Path) -> int:
    """The images seen, from the name of a sample grid.

    >>> parse_images_seen(Path("samples/images-00000500.png"))
    500
    """
    return int(path.stem.partition("-")[2])


def _grids(paths: Sequence[Path]) -> Iterator[tuple[int, str]]:
    """(images seen, data URI) of each sample grid. Skips damaged files: they must not end a run."""
    for path in paths:
        with contextlib.suppress(*PILLOW_ERRORS), open_picture(path) as picture:
            yield parse_images_seen(path), data_uri(picture)


def _picture(image: Tensor) -> str:
    return data_uri(Image.fromarray(to_uint8_rgb(image)))


def _spread(paths: list[Path]) -> list[Path]:
    """At most MAX_GRIDS of them, with the first and the last one."""
    if len(paths) <= MAX_GRIDS:
        return paths
    return [paths[round(i * (len(paths) - 1) / (MAX_GRIDS - 1))] for i in range(MAX_GRIDS)]
