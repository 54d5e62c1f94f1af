"""All runs of some folders on one static page: numbers, the same test images, curves, links to their reports.

Reads what runs leave behind and never a model or a dataset, so that kept runs (`benchmarks/results`) can be shown too.
The page is index.html with its data inside, gallery.js and images/; it asks for nothing else and works from file://.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from p2pzoo.config.recipe import leaves
from p2pzoo.images.grid import pictured
from p2pzoo.images.io import UNREADABLE
from p2pzoo.models import safetensors_io
from p2pzoo.plugin.registry import Registry
from p2pzoo.runs.run_folder import Run
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import parse_toml, write_text
from p2pzoo_bench.comparison import Finished, metric_of
from p2pzoo_bench.formats import tiles

POINTS = 120  # of a curve, at most
DIGITS = 5
QUALITY = 92
DEPTH = 3  # levels of folders in which runs are looked for
FILTERED = ("generator", "discriminator", "gan_loss", "losses", "augmentations", "dataset", "init")


@dataclass
class Shown:
    """A run's folder as the page has it. A damaged file of it is as one that is not there."""

    folder: Path
    faults: list[str] = field(default_factory=list)

    @cached_property
    def results(self) -> dict[str, Any]:
        found = Finished(self.folder).results
        whole = isinstance(found, dict) and all(isinstance(found.get(key), dict) for key in ("metrics", "protocols"))
        if not whole and (self.folder / "results.json").exists():
            self.faults.append(f"{self.folder / 'results.json'}: not a run's results; shown without numbers")
        return found if whole else {}

    @cached_property
    def recipe(self) -> dict[str, Any]:
        try:
            return parse_toml((self.folder / "recipe.toml").read_text("utf-8"))
        except FileNotFoundError:  # the ground truth has none
            return {}
        except (OSError, ValueError) as error:
            self.faults.append(f"{self.folder / 'recipe.toml'}: {error}; shown without it")
            return {}

    @cached_property
    def status(self) -> dict[str, Any]:
        return Run(self.folder).status

    @property
    def name(self) -> str:
        """recipe/profile-seedN-id, or the folder of a kept run."""
        in_runs = (self.folder / "status.json").exists()
        return f"{self.folder.parent.name}/{self.folder.name}" if in_runs else self.folder.name

    @property
    def identity(self) -> tuple[Any, ...]:
        """Of a run and of its kept copy the same."""
        told = self.results or self.status
        return (told.get("recipe"), told.get("profile"), told.get("id") or self.folder)

    @property
    def data(self) -> dict[str, Any]:
        """The dataset's table, of the recipe or else of what was measured."""
        measured = [protocol.get("dataset", {}) for protocol in self.results.get("protocols", {}).values()]
        return dict(self.recipe.get("dataset") or next(iter(measured), {}))

    def test_images(self) -> dict[str, list[Image.Image]]:
        """{id: x, ŷ, y} of the grid of test images, in its order."""
        try:
            grid = Finished(self.folder).picture if self.results else None
            if grid is None:
                return {}
            ids = safetensors_io.load_tensors(self.folder / "stats.safetensors")[1]["ids"]
            height, width = next(iter(self.results["protocols"].values()))["size"]
            with Image.open(grid) as sheet:
                rows = tiles(sheet.convert("RGB"), (height, width))
            shown = [ids[index] for index in pictured(len(ids))]
            if len(shown) != len(rows):
                raise ValueError(f"{len(rows)} rows, and not {len(shown)}")
        except (UserError, *UNREADABLE, StopIteration) as error:
            self.faults.append(f"{self.folder}: its test images cannot be shown ({error})")
            return {}
        return {
            name: [tile.resize((width, height), Image.Resampling.BOX) for tile in row]
            for name, row in zip(shown, rows, strict=True)
        }

    @property
    def components(self) -> dict[str, list[str]]:
        """{what can be filtered by: the components of it}"""
        found: dict[str, list[str]] = {}
        for kind in FILTERED:
            table = self.recipe.get(kind, {})
            used = [table] if "use" in table else [part for part in table.values() if isinstance(part, dict)]
            if names := sorted({_bare(part["use"]) for part in used if isinstance(part.get("use"), str)}):
                found[kind] = names
        return found

    @property
    def curves(self) -> dict[str, list[list[float]]]:
        """{logged name: [images seen, values]}"""
        logged = Run(self.folder).lines("metrics.jsonl")
        lines = [line for line in logged if isinstance(line, dict) and "images" in line]
        step = max(1, -(-len(lines) // POINTS))
        lines = lines[::-step][::-1]  # the last one stays
        names = dict.fromkeys(name for line in lines for name in line if name not in ("images", "lr"))
        found: dict[str, list[list[float]]] = {}
        for name in names:
            known = [line for line in lines if isinstance(line.get(name), (int, float))]
            found[name] = [[line["images"] for line in known], [_rounded(line[name]) for line in known]]
        return found


def find_runs(folders: Sequence[Path]) -> list[Shown]:
    """Run folders at and under these, also kept copies; a run that is there twice once.

    Raises UserError where a folder has none.
    """
    faults: list[str] = []
    found: dict[tuple[Any, ...], Shown] = {}
    for folder in folders:
        here = [Shown(path) for path in _run_folders(folder, DEPTH)]
        if not here:
            faults.append(f"{folder}: no runs in this folder (none has status.json or results.json)")
        for shown in here:
            found.setdefault(shown.identity, shown)
    if faults:
        raise UserError(*faults)
    return list(found.values())


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "results.json").is_file() or (folder / "status.json").is_file():
        yield folder
    elif depth and folder.is_dir():
        for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
            yield from _run_folders(inner, depth - 1)


def write_gallery(out: Path, title: str, runs: Sequence[Shown], registry: Registry) -> list[str]:
    """Write the page. Returns what could not be shown. Raises UserError where `out` holds something else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "gallery.js").exists():
        raise UserError(f"{out}: has other files in it; give a new folder, or one with an older gallery")
    (out / "images").mkdir(parents=True, exist_ok=True)
    pictures = _Pictures(out / "images")
    document = _document(title, runs, registry, pictures, out)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("gallery.html").read_text("utf-8"))
    shutil.copyfile(Path(__file__).with_name("gallery.js"), out / "gallery.js")
    write_text(out / "index.html", template.render(title=title, document=document))
    pictures.forget_others()
    return [fault for run in runs for fault in run.faults]


class _Pictures:
    """Files of the page, each named by what is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: set[str] = set()

    def add(self, image: Image.Image) -> str:
        """The image's address from the page."""
        name = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:16] + ".webp"
        if name not in self.written:
            image.save(self.folder / name, "WEBP", quality=QUALITY)
        self.written.add(name)
        return f"images/{name}"

    def forget_others(self) -> None:
        """Those of an older page."""
        for file in self.folder.glob("*.webp"):
            if file.name not in self.written:
                file.unlink()


def _document(title: str, runs: Sequence[Shown], registry: Registry, pictures: _Pictures, out: Path) -> dict[str, Any]:
    """What the page shows, as plain values.

    sets     of test images that several runs share: {label, ids, x: {id: address}, y}
    columns  a metric under one protocol; a metric that was measured in two ways is two columns
    """
    sets: dict[str, dict[str, Any]] = {}
    columns: dict[str, dict[str, Any]] = {}
    listed = []
    for run in runs:
        told = run.results or run.status
        key, images = None, run.test_images()
        if images:
            size = next(iter(images.values()))[0].size
            key = json.dumps([run.data, size, list(images)], sort_keys=True, default=str)
            if key not in sets:
                sets[key] = {
                    "label": _label(run.data),
                    "size": size,
                    "ids": list(images),
                    "x": [pictures.add(trio[0]) for trio in images.values()],
                    "y": [pictures.add(trio[2]) for trio in images.values()],
                }
        for metric, number in run.results.get("metrics", {}).items():
            columns.setdefault(
                f"{metric} {number['protocol']}",
                {
                    "metric": metric,
                    "protocol": number["protocol"],
                    "described": run.results["protocols"].get(number["protocol"], {}),
                },
            )
        report = run.folder / "report.html"
        listed.append({
            "name": run.name,
            "title": str(run.recipe.get("title") or ("ground truth" if told.get("recipe") == "target" else run.name)),
            "recipe": told.get("recipe"),
            "profile": told.get("profile"),
            "seed": told.get("seed"),
            "state": "complete" if run.results else run.status["state"],
            "images": told.get("images"),
            "report": _address(report, out) if report.is_file() else None,
            "components": run.components | ({"dataset": [_label(run.data)]} if run.data else {}),
            "set": list(sets).index(key) if key else None,
            "y_hat": [pictures.add(trio[1]) for trio in images.values()],
            "values": {f"{m} {n['protocol']}": n["value"] for m, n in run.results.get("metrics", {}).items()},
            "curves": run.curves,
            "settings": [f"{'.'.join(path)}={_plain(value)}" for path, value in leaves(run.recipe)],
        })  # fmt: skip
    _tell_apart(columns.values())
    better = _directions(registry, columns.values())
    return {
        "title": title,
        "runs": listed,
        "sets": [*sets.values()],
        "columns": [
            {
                "key": key,
                **{name: column[name] for name in ("metric", "protocol", "told", "apart")},
                "better": better.get(metric_of(column["metric"])),
            }
            for key, column in columns.items()
        ],
    }


def _tell_apart(columns: Any) -> None:
    """Say what each was measured on, and of a metric that was measured in several ways what is its own."""
    for column in columns:
        described = column["described"]
        size = "×".join(map(str, described.get("size", ())))
        column["told"] = (
            f"{described.get('images', '?')} images of the {described.get('split', '?')} split, {size} px, "
            f"test mode {described.get('test_mode', '?')}, {_label(described.get('dataset', {}))}"
        )
        others = [c["described"] for c in columns if c["metric"] == column["metric"] and c is not column]
        mine, *theirs = [{path: _plain(value) for path, value in leaves(each)} for each in (described, *others)]
        paths = dict.fromkeys(path for each in (mine, *theirs) for path in each)
        differing = [path for path in paths if any(other.get(path) != mine.get(path) for other in theirs)]
        column["apart"] = ", ".join(f"{path[-1]} {mine.get(path, 'none')}" for path in differing)


def _directions(registry: Registry, columns: Any) -> dict[str, str]:
    """{metric: which of its values are the better}, where its component is installed and says so."""
    found = {}
    for column in columns:
        try:
            metric = registry.get("metric", str(column["described"]["metric"]["use"])).load()
        except (UserError, KeyError, TypeError):
            continue
        if (better := getattr(metric, "better", None)) in ("higher", "lower"):
            found[metric_of(column["metric"])] = better
    return found


def _label(table: Mapping[str, Any]) -> str:
    """A dataset in few words: its name and what it was asked for."""
    given = [value for key, value in table.items() if key not in ("use", "version")]
    words = [str(each) if isinstance(each, int) else Path(each).name for each in given if isinstance(each, (int, str))]
    return " ".join([_bare(str(table.get("use", "?"))), *words])


def _bare(use: str) -> str:
    return use.rpartition(":")[2]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _address(file: Path, out: Path) -> str:
    """A file's address from a page in the folder `out`."""
    return urllib.parse.quote(Path(os.path.relpath(file.resolve(), out.resolve())).as_posix())
