"""What the dataset doctor found, on one page that needs nothing else; every name in it is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image, ImageFilter

from p2pzoo.data.findings import Case, Finding, Place
from p2pzoo.images.color_spaces import Encodings, Palette, from_stored, joined
from p2pzoo.plugin import Dataset, Split
from p2pzoo.runs.report import data_uri
from p2pzoo.utils.files import write_text
from p2pzoo_data_tools.check import Check

SIDE = 160  # px of a picture
DRAWN = 12  # cases of a finding that are shown with their pictures


def write_page(path: Path, title: str, checked: Check, splits: Mapping[Split, Dataset]) -> None:
    """The pairs that are drawn are read once more."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("check.html").read_text("utf-8"))
    classes = list(dict.fromkeys(name for each in checked.splits.values() for name in each.classes or ()))
    page = template.render(
        title=title,
        checked=checked,
        classes=classes,
        findings=[_finding(finding, splits) for finding in checked.findings],
    )
    write_text(path, page)


def _finding(finding: Finding, splits: Mapping[Split, Dataset]) -> dict[str, Any]:
    drawn = [_case(case, splits, edges=finding.kind == "shift") for case in finding.cases[:DRAWN]]
    return {
        "kind": finding.kind,
        "about": finding.about,
        "count": len(finding.cases),
        "drawn": [case for case in drawn if case["pairs"]],
        "written": [str(case) for case, shown in zip(finding.cases, drawn, strict=False) if not shown["pairs"]],
        "rest": [str(case) for case in finding.cases[DRAWN:]],
    }


def _case(case: Case, splits: Mapping[Split, Dataset], *, edges: bool) -> dict[str, Any]:
    pairs = [_pictures(place, splits, edges=edges) for place in case.places]
    return {"told": case.told, "pairs": [pair for pair in pairs if pair]}


def _pictures(place: Place, splits: Mapping[Split, Dataset], *, edges: bool) -> dict[str, Any] | None:
    """x, y, and their edges over one another if asked for; None where they cannot be drawn."""
    dataset = splits[place.split]
    try:
        pair = dataset[place.index]
        images, ranges = (pair.x, pair.y), (dataset.x_range, dataset.y_range)
        encodings = Encodings.of(dataset)
        if encodings.lab:
            L, ab = map(from_stored, images, ranges)
            images, ranges = (joined(L, np.zeros_like(ab)), joined(L, ab)), ((0.0, 255.0),) * 2
        drawn = [_coloured(*each) for each in zip(images, ranges, encodings.palettes, strict=True)]
        x, y = (_picture(*each) for each in drawn)
    except Exception:  # the finding tells what is wrong with it
        return None
    return {
        "name": str(place),
        "files": place.files,
        "x": data_uri(x),
        "y": data_uri(y),
        "over": data_uri(_over(x, y)) if edges else None,
    }


def _coloured(
    image: np.ndarray, limits: tuple[float, float], palette: Palette | None
) -> tuple[np.ndarray, tuple[float, float]]:
    """One-hot classes in their colours; other images as they are."""
    if palette is None:
        return image, limits
    return np.array(palette, np.uint8)[image.argmax(2)] * image.max(2, keepdims=True), (0.0, 255.0)


def _picture(image: np.ndarray, limits: tuple[float, float]) -> Image.Image:
    """One or two channels show the first as grey, more the first three; what is no number is magenta."""
    shown = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    values = (shown.astype(np.float32) - limits[0]) / (limits[1] - limits[0])
    pixels = np.nan_to_num(values, nan=0, posinf=1, neginf=0).clip(0, 1) * 255
    pixels[~np.isfinite(values).all(axis=2)] = (255, 0, 255)
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    factor = SIDE / max(picture.size)
    size = tuple(max(1, round(side * factor)) for side in picture.size)
    return picture.resize((size[0], size[1]), Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX)


def _over(x: Image.Image, y: Image.Image) -> Image.Image:
    """Edges of x in red and of y in cyan: white where they meet."""
    red, cyan = (_edges(picture) for picture in (x, y))
    return Image.fromarray(np.stack([red, cyan, cyan], axis=2))


def _edges(picture: Image.Image) -> np.ndarray:
    smooth = picture.convert("L").filter(ImageFilter.GaussianBlur(SIDE / 100))
    down, right = np.gradient(np.asarray(smooth, np.float32))
    edges = np.hypot(down, right)
    low, high = (float(np.percentile(edges, share)) for share in (50, 97))
    shown: np.ndarray = ((edges - low) / max(high - low, 1.0)).clip(0, 1) * 255
    return shown.round().astype(np.uint8)
