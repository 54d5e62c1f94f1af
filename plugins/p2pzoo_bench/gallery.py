"""A static page over all runs of some folders: numbers, the same test images, loss curves, links to reports.

It reads only what runs leave behind, never a model or a dataset, so committed results (`benchmarks/results`) can be
shown too. The page is index.html with its data inside, gallery.js and images/. It loads nothing else and works from
file://.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from p2pzoo.cli.options import without_nan
from p2pzoo.config.recipe import iter_leaves
from p2pzoo.images.grid import grid_indices
from p2pzoo.images.io import PILLOW_ERRORS, open_picture
from p2pzoo.models import safetensors_io
from p2pzoo.plugin.registry import Registry
from p2pzoo.runs.pages import render_page
from p2pzoo.runs.run_folder import Run
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import check_page_folder, copy_file, page_folder, parse_toml, refuse_pipe, write_text
from p2pzoo_bench.comparison import metric_of
from p2pzoo_bench.formats import split_grid
from p2pzoo_bench.stored_results import FinishedRun

MAX_CURVE_POINTS = 120  # enough for the plot's width; a page over 200 runs stays small
CURVE_DIGITS = 5  # significant digits of a curve's values, for the same reason
WEBP_QUALITY = 92  # colours differ by at most 4 of 255 from the stored image (tested)
SEARCH_DEPTH = 3  # levels of folders in which runs are looked for
FILTER_KINDS = ("generator", "discriminator", "process", "gan_loss", "losses", "augmentations", "dataset", "init")


@dataclass
class GalleryRun:
    """What the page shows of a run's folder. A damaged file counts as missing and is recorded in `faults`."""

    folder: Path
    faults: list[str] = field(default_factory=list)

    @cached_property
    def results(self) -> dict[str, Any]:
        results = FinishedRun(self.folder).results
        if not results and (self.folder / "results.json").exists():
            self.faults.append(f"{self.folder / 'results.json'}: not the results of a run; shown without numbers")
        return results

    @cached_property
    def recipe(self) -> dict[str, Any]:
        try:
            refuse_pipe(self.folder / "recipe.toml")
            return parse_toml((self.folder / "recipe.toml").read_text("utf-8"))
        except FileNotFoundError:  # results of the ground truth have no recipe
            return {}
        except (OSError, ValueError, UserError) as error:
            self.faults.append(f"{self.folder / 'recipe.toml'}: {error}; shown without its recipe")
            return {}

    @cached_property
    def status(self) -> dict[str, Any]:
        return Run(self.folder).status

    @property
    def name(self) -> str:
        """recipe/profile-seedN-id, or the folder's name of a committed copy."""
        in_runs = (self.folder / "status.json").exists()
        return f"{self.folder.parent.name}/{self.folder.name}" if in_runs else self.folder.name

    @property
    def identity(self) -> tuple[Any, ...]:
        """The same for a run and its committed copy."""
        facts = self.results or self.status
        return (facts.get("recipe"), facts.get("profile"), facts.get("id") or self.folder)

    @property
    def dataset(self) -> dict[str, Any]:
        """The dataset's table, from the recipe, else from the first protocol."""
        datasets = [protocol.get("dataset", {}) for protocol in self.results.get("protocols", {}).values()]
        return dict(self.recipe.get("dataset") or next(iter(datasets), {}))

    def test_images(self) -> dict[str, list[Image.Image]]:
        """{id: x, ŷ, y} of the grid of test images, in its order; {} if there is none or it cannot be read."""
        try:
            picture = FinishedRun(self.folder).picture if self.results else None
            if picture is None:
                return {}
            ids = safetensors_io.load_tensors(self.folder / "stats.safetensors")[1]["ids"]
            height, width = next(iter(self.results["protocols"].values()))["size"]
            with open_picture(picture) as grid:
                rows = split_grid(grid.convert("RGB"), (height, width))
            grid_ids = [ids[index] for index in grid_indices(len(ids))]
            if len(grid_ids) != len(rows):
                raise ValueError(f"the grid has {len(rows)} rows instead of {len(grid_ids)}")
        except (UserError, *PILLOW_ERRORS, StopIteration) as error:
            self.faults.append(f"{self.folder}: its test images cannot be shown ({error})")
            return {}
        return {  # a grid enlarges small images
            name: [image.resize((width, height), Image.Resampling.BOX) for image in row]
            for name, row in zip(grid_ids, rows, strict=True)
        }

    @property
    def components(self) -> dict[str, list[str]]:
        """{kind: the names of its components}, for the page's filters."""
        components: dict[str, list[str]] = {}
        for kind in FILTER_KINDS:
            table = self.recipe.get(kind, {})
            tables = [table] if "use" in table else [part for part in table.values() if isinstance(part, dict)]
            if names := sorted({_short_name(part["use"]) for part in tables if isinstance(part.get("use"), str)}):
                components[kind] = names
        return components

    @property
    def curves(self) -> dict[str, list[list[float]]]:
        """{logged name: [images seen, values]}, without values that are not finite, which no plot can show."""
        lines = Run(self.folder).lines("metrics.jsonl")
        step = max(1, -(-len(lines) // MAX_CURVE_POINTS))
        lines = lines[::-step][::-1]  # counted from the end: the last line stays
        names = dict.fromkeys(name for line in lines for name in line if name not in ("images", "lr"))
        curves: dict[str, list[list[float]]] = {}
        for name in names:
            points = [line for line in lines if isinstance(line.get(name), (int, float)) and math.isfinite(line[name])]
            curves[name] = [[line["images"] for line in points], [_round(line[name]) for line in points]]
        return curves


def find_runs(folders: Sequence[Path]) -> list[GalleryRun]:
    """The runs and committed copies in these folders and below. One that occurs twice is listed once.

    Raises UserError if a folder has none.
    """
    faults: list[str] = []
    runs: dict[tuple[Any, ...], GalleryRun] = {}
    for folder in folders:
        paths = [*_run_folders(folder, SEARCH_DEPTH)]
        if not paths:
            faults.append(f"{folder}: no runs in this folder (none has status.json or results.json)")
        for run in map(GalleryRun, paths):
            runs.setdefault(run.identity, run)
    if faults:
        raise UserError(*faults)
    return list(runs.values())


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "results.json").is_file() or (folder / "status.json").is_file():
        yield folder
    elif depth and folder.is_dir():
        for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
            yield from _run_folders(inner, depth - 1)


def write_gallery(out: Path, title: str, runs: Sequence[GalleryRun], registry: Registry) -> list[str]:
    """Write the page. Returns a line for each damaged file. Raises UserError if `out` contains other files."""
    check_page_folder(out, "gallery.js")
    with page_folder(out) as folder:
        (folder / "images").mkdir()
        pictures = _Pictures(folder / "images")
        document = _build_document(title, runs, registry, pictures, out)
        page = render_page(Path(__file__).with_name("gallery.html"), title=title, document=without_nan(document))
        copy_file(Path(__file__).with_name("gallery.js"), folder / "gallery.js")
        write_text(folder / "index.html", page)
    pictures.delete_others(out / "images")
    return [fault for run in runs for fault in run.faults]


class _Pictures:
    """The page's image files. Each is named by its content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: set[str] = set()

    def add(self, image: Image.Image) -> str:
        """Write the image, once. Returns its address, relative to the page."""
        name = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:16] + ".webp"
        if name not in self.written:
            image.save(self.folder / name, "WEBP", quality=WEBP_QUALITY)
        self.written.add(name)
        return f"images/{name}"

    def delete_others(self, folder: Path) -> None:
        """Delete the images of an older page from its folder."""
        for file in folder.glob("*.webp"):
            if file.name not in self.written:
                file.unlink()


def _build_document(
    title: str, runs: Sequence[GalleryRun], registry: Registry, pictures: _Pictures, out: Path
) -> dict[str, Any]:
    """The page's data, as plain values.

    sets     test images that several runs share: {label, size, ids, x: [address], y: [address]}
    columns  a metric under one protocol: a metric that was measured under two protocols has two columns
    """
    sets: dict[str, dict[str, Any]] = {}
    columns: dict[str, dict[str, Any]] = {}
    entries = []
    for run in runs:
        images = run.test_images()
        set_index = _add_image_set(sets, run, images, pictures) if images else None
        for metric, number in run.results.get("metrics", {}).items():
            measured = run.results["protocols"].get(number["protocol"], {})
            column = {"metric": metric, "protocol": number["protocol"], "measured": measured}
            columns.setdefault(f"{metric} {number['protocol']}", column)
        y_hat = [pictures.add(trio[1]) for trio in images.values()]
        entries.append(_describe_run(run, out) | {"set": set_index, "y_hat": y_hat})
    _describe_columns([*columns.values()])
    better = _better_directions(registry, [*columns.values()])
    return {
        "title": title,
        "runs": entries,
        "sets": [*sets.values()],
        "columns": [
            {
                "key": key,
                **{name: column[name] for name in ("metric", "protocol", "description", "differs")},
                "better": better.get(metric_of(column["metric"])),
            }
            for key, column in columns.items()
        ],
    }


def _add_image_set(
    sets: dict[str, dict[str, Any]], run: GalleryRun, images: Mapping[str, list[Image.Image]], pictures: _Pictures
) -> int:
    """Add the run's x and y, unless an earlier run has the same. Returns the index of their set."""
    size = next(iter(images.values()))[0].size
    key = json.dumps([run.dataset, size, list(images)], sort_keys=True, default=str)
    if key not in sets:
        sets[key] = {
            "label": _describe_dataset(run.dataset),
            "size": size,
            "ids": list(images),
            "x": [pictures.add(trio[0]) for trio in images.values()],
            "y": [pictures.add(trio[2]) for trio in images.values()],
        }
    return list(sets).index(key)


def _describe_run(run: GalleryRun, out: Path) -> dict[str, Any]:
    """The run's entry of the page's data, without images."""
    facts = run.results or run.status
    report = run.folder / "report.html"
    return {
        "name": run.name,
        "title": str(run.recipe.get("title") or ("ground truth" if facts.get("recipe") == "target" else run.name)),
        "recipe": facts.get("recipe"),
        "profile": facts.get("profile"),
        "seed": facts.get("seed"),
        "state": run.status.get("state", "complete" if run.results else None),  # a committed copy has no status
        "images": facts.get("images"),
        "report": _relative_url(report, out) if report.is_file() else None,
        "components": run.components | ({"dataset": [_describe_dataset(run.dataset)]} if run.dataset else {}),
        "values": {f"{m} {n['protocol']}": n["value"] for m, n in run.results.get("metrics", {}).items()},
        "curves": run.curves,
        "settings": [f"{'.'.join(path)}={_to_text(value)}" for path, value in iter_leaves(run.recipe)],
    }


def _describe_columns(columns: Sequence[dict[str, Any]]) -> None:
    """Add to each column a description of its data, and what differs from other columns of the same metric."""
    for column in columns:
        measured = column["measured"]
        size = "×".join(map(str, measured.get("size", ())))
        column["description"] = (
            f"{measured.get('images', '?')} images of the {measured.get('split', '?')} split, {size} px, "
            f"test mode {measured.get('test_mode', '?')}, {_describe_dataset(measured.get('dataset', {}))}"
        )
        others = [c["measured"] for c in columns if c["metric"] == column["metric"] and c is not column]
        mine, *theirs = [{path: _to_text(v) for path, v in iter_leaves(protocol)} for protocol in (measured, *others)]
        paths = dict.fromkeys(path for leaves in (mine, *theirs) for path in leaves)
        differing = [path for path in paths if any(other.get(path) != mine.get(path) for other in theirs)]
        column["differs"] = ", ".join(f"{path[-1]} {mine.get(path, 'none')}" for path in differing)


def _better_directions(registry: Registry, columns: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """{metric: "higher" or "lower"}, if its component is installed and declares it."""
    directions = {}
    for column in columns:
        try:
            metric = registry.get("metric", str(column["measured"]["metric"]["use"])).load()
        except (UserError, KeyError, TypeError):
            continue
        if (better := getattr(metric, "better", None)) in ("higher", "lower"):
            directions[metric_of(column["metric"])] = better
    return directions


def _describe_dataset(table: Mapping[str, Any]) -> str:
    """A dataset's name and its parameters in a few words."""
    values = [value for key, value in table.items() if key not in ("use", "version") and isinstance(value, (int, str))]
    words = [str(value) if isinstance(value, int) else Path(value).name for value in values]
    return " ".join([_short_name(str(table.get("use", "?"))), *words])


def _short_name(use: str) -> str:
    """The component's name without its plugin."""
    return use.rpartition(":")[2]


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _round(value: float) -> float:
    return float(f"{value:.{CURVE_DIGITS}g}")


def _relative_url(file: Path, out: Path) -> str:
    """A file's address, relative to a page in the folder `out`."""
    return urllib.parse.quote(Path(os.path.relpath(file.resolve(), out.resolve())).as_posix())
