"""Write the result of the dataset check as one self-contained HTML page. All names in it are escaped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from p2pzoo.data.findings import Case, Finding, PairLocation
from p2pzoo.images.color_spaces import Encodings, Palette, dequantize, join_lab
from p2pzoo.plugin import Dataset, Split
from p2pzoo.runs.pages import data_uri, render_page
from p2pzoo.utils.files import write_text
from p2pzoo_data_tools.check import CheckResult

SIDE = 160  # px, longer side of a picture: three fit side by side on a card of the page
MAX_PICTURED_CASES = 12  # cases per finding that are shown with pictures, so that the page stays small


def write_page(path: Path, title: str, result: CheckResult, splits: Mapping[Split, Dataset]) -> None:
    """Write the page. The pairs that it shows are read again."""
    classes = list(dict.fromkeys(name for each in result.splits.values() for name in each.classes or ()))
    page = render_page(
        Path(__file__).with_name("check.html"),
        title=title,
        result=result,
        classes=classes,
        findings=[_describe_finding(finding, splits) for finding in result.findings],
    )
    write_text(path, page)


def _describe_finding(finding: Finding, splits: Mapping[Split, Dataset]) -> dict[str, Any]:
    cases = [
        _describe_case(case, splits, edges=finding.kind in ("shift", "misaligned"))
        for case in finding.cases[:MAX_PICTURED_CASES]
    ]
    return {
        "kind": finding.kind,
        "about": finding.about,
        "count": len(finding.cases),
        "pictured": [case for case in cases if case["pairs"]],
        "written": [str(case) for case, page_case in zip(finding.cases, cases, strict=False) if not page_case["pairs"]],
        "rest": [str(case) for case in finding.cases[MAX_PICTURED_CASES:]],
    }


def _describe_case(case: Case, splits: Mapping[Split, Dataset], *, edges: bool) -> dict[str, Any]:
    pairs = [_draw_pair(location, splits, edges=edges) for location in case.locations]
    return {"message": case.message, "pairs": [pair for pair in pairs if pair]}


def _draw_pair(location: PairLocation, splits: Mapping[Split, Dataset], *, edges: bool) -> dict[str, Any] | None:
    """Draw x and y and, if `edges`, an overlay of their edges. None if the pair cannot be drawn."""
    dataset = splits[location.split]
    try:
        pair = dataset[location.index]
        images, ranges = (pair.x, pair.y), (dataset.x_range, dataset.y_range)
        encodings = Encodings.of(dataset)
        if encodings.lab:
            L, ab = map(dequantize, images, ranges)
            images, ranges = (join_lab(L, np.zeros_like(ab)), join_lab(L, ab)), ((0.0, 255.0),) * 2
        colored = [_apply_palette(*each) for each in zip(images, ranges, encodings.palettes, strict=True)]
        x, y = (_to_picture(*each) for each in colored)
    except Exception:  # a damaged pair: the text of the finding says what is wrong with it
        return None
    return {
        "name": str(location),
        "files": location.files,
        "x": data_uri(x),
        "y": data_uri(y),
        "overlay": data_uri(_overlay_edges(x, y)) if edges else None,
    }


def _apply_palette(
    image: np.ndarray, limits: tuple[float, float], palette: Palette | None
) -> tuple[np.ndarray, tuple[float, float]]:
    """Color a one-hot image; return other images unchanged."""
    if palette is None:
        return image, limits
    return np.array(palette, np.uint8)[image.argmax(2)] * image.max(2, keepdims=True), (0.0, 255.0)


def _to_picture(image: np.ndarray, limits: tuple[float, float]) -> Image.Image:
    """Draw the first channel in grey, or the first three as RGB if there are as many. NaN and infinity are magenta."""
    channels = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    values = (channels.astype(np.float32) - limits[0]) / (limits[1] - limits[0])
    pixels = np.nan_to_num(values, nan=0, posinf=1, neginf=0).clip(0, 1) * 255
    pixels[~np.isfinite(values).all(axis=2)] = (255, 0, 255)
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    factor = SIDE / max(picture.size)
    size = tuple(max(1, round(side * factor)) for side in picture.size)
    return picture.resize((size[0], size[1]), Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX)


def _overlay_edges(x: Image.Image, y: Image.Image) -> Image.Image:
    """Draw edges of x in red and of y in cyan: white where they coincide."""
    red, cyan = (_draw_edges(picture) for picture in (x, y))
    return Image.fromarray(np.stack([red, cyan, cyan], axis=2))


def _draw_edges(picture: Image.Image) -> np.ndarray:
    smooth = picture.convert("L").filter(ImageFilter.GaussianBlur(SIDE / 100))
    down, right = np.gradient(np.asarray(smooth, np.float32))
    edges = np.hypot(down, right)
    low, high = (float(np.percentile(edges, share)) for share in (50, 97))
    scaled: np.ndarray = ((edges - low) / max(high - low, 1.0)).clip(0, 1) * 255
    return scaled.round().astype(np.uint8)
