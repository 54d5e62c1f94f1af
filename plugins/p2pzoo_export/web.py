"""A page that runs a generator in the browser, from a folder or one file, without a server: draw or drop an image.

The runtime is onnxruntime-web, single-threaded WebAssembly, of one version whose files are known by their hashes.
Everything is embedded, because a page that is opened from a disk may read no other file.
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

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from p2pzoo.data import single_batches
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.grid import pictured, to_rgb
from p2pzoo.images.label_maps import Labels
from p2pzoo.models.model import Model
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write, write_text
from p2pzoo.utils.paths import cache_dir
from p2pzoo.utils.untar import extract
from p2pzoo_export.graphs import Data, Exported, export

PACKED = "onnxruntime-web"
VERSION = "1.30.0"
RUNTIME = {  # file in its dist/: SHA-256
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
ARCHIVE_BYTES, ARCHIVE_FILES = 600_000_000, 5_000  # that the package may unpack to
WHITE, SKETCH = 250, 0.6  # a drawing: so much of x is so light
PENCIL = [{"name": "line", "colour": [0, 0, 0]}, {"name": "paper", "colour": [255, 255, 255]}]
SCRIPTS = ("runtime.js", "model.js", "page.js")  # of a folder, in the order that they are run in


def export_web(
    model: Model,
    out: Path,
    *,
    title: str,
    test_mode: str | None = None,
    precision: str = "fp32",
    data: Data | None = None,
    ort_dir: Path | None = None,
) -> Exported:
    """Write the page: a folder with index.html, or everything in `out` where that ends in .html.

    data     of the run: examples to begin with, and the colours to draw with; None: images are dropped
    ort_dir  a folder or a .tgz with the runtime; None: from the cache, else by `npm pack`

    Raises UserError for images that the page cannot show or make, without the runtime, and as `export` does; what was
    there before is then as it was.
    """
    _check(model)
    if out.suffix != ".html":
        _check_folder(out)
    found = runtime(ort_dir)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        exported = export(model, graph, "onnx", test_mode=test_mode, precision=precision, data=data)
        embedded = {"model": graph.read_bytes(), "runtime": found[0], "wasm": found[1]}
    scripts = {name: _script(name, content) for name, content in embedded.items()}
    document = _document(model, title, test_mode or model.test_mode, exported.notes, data)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("web.html").read_text("utf-8"))
    page = Path(__file__).with_name("web.js").read_text("utf-8")
    if out.suffix == ".html":
        inline = [Markup(script) for script in (*scripts.values(), page)]  # ours: base64, and the package's own file
        write_text(out, template.render(document=document, inline=inline, files=[]))
        return exported
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "model.js", scripts["model"])
    write_text(out / "runtime.js", scripts["runtime"] + scripts["wasm"])
    write_text(out / "page.js", page)
    write_text(out / "index.html", template.render(document=document, inline=[], files=SCRIPTS))
    return exported


def _script(name: str, content: bytes) -> str:
    return f'(window.embedded ??= {{}}).{name} = "{base64.b64encode(content).decode()}";\n'


def _check_folder(out: Path) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "page.js").exists())):
        raise UserError(f"{out}: has other files in it; give a new folder, one with an older page, or a .html file")


def _check(model: Model) -> None:
    """Raises UserError for a model whose images no canvas holds."""
    one_hot = [bool(labels) and side == "one-hot" for labels, side in zip(*_coded(model), strict=True)]
    if model.encodings.lab:
        raise UserError("a page cannot make lightness and colour of photos: export --to onnx")
    for side, dtype, channels, coded in (
        ("takes", model.x_dtype, model.in_channels, one_hot[0]),
        ("gives", model.y_dtype, model.out_channels, one_hot[1]),
    ):
        if not coded and (dtype != "uint8" or channels not in (1, 3)):
            raise UserError(f"a page shows 1 or 3 channels of 8 bits; this model {side} {channels} of {dtype}")


def _coded(model: Model) -> tuple[tuple[Labels | None, Labels | None], tuple[str | None, str | None]]:
    return (model.x_labels, model.y_labels), (model.encodings.x, model.encodings.y)


# --- what the page is told -------------------------------------------------------------------------------------


def _document(model: Model, title: str, mode: str, notes: Sequence[str], data: Data | None) -> dict[str, Any]:
    shown = _shown(data) if data else {}
    classes = _classes(model.x_labels) if model.encodings.x == "one-hot" else None
    return {
        "title": title,
        "run": model.run,
        "test_mode": mode,
        "sides": list(model.size),
        "channels": model.in_channels,
        "classes": classes,
        "classes_given": _classes(model.y_labels) if model.encodings.y == "one-hot" else None,
        "colours": classes or (_colours(data, [*shown.values()]) if data else None),
        "examples": [{"name": name, "picture": _data_url(image)} for name, image in shown.items()],
        "notes": list(notes),
    }


def _classes(labels: Labels | None) -> list[dict[str, Any]]:
    assert labels
    named = zip(labels.classes.names, labels.classes.colours, strict=True)
    return [{"name": name, "colour": list(colour)} for name, colour in named]


def _shown(data: Data) -> dict[str, np.ndarray]:
    """{id: x as people see it, (H, W, 3) uint8} of some test images."""
    store = data.shown
    batches = single_batches(store, pictured(len(store)))
    encodings = Encodings.of(store.dataset)
    return {batch.ids[0]: to_rgb(encodings.to_rgb(batch.x)[0][0]) for batch in batches}


def _colours(data: Data, images: Sequence[np.ndarray]) -> list[dict[str, Any]] | None:
    """What x is drawn with: the classes' colours if it has no others, black on white if it is mostly white."""
    dataset = data.shown.dataset
    pixels = np.concatenate([image.reshape(-1, 3) for image in images])
    if dataset.classes and dataset.palette:
        named = [
            {"name": name, "colour": list(colour)}
            for name, colour in zip(dataset.classes, dataset.palette, strict=True)
        ]
        if {tuple(colour) for colour in np.unique(pixels, axis=0).tolist()} <= set(map(tuple, dataset.palette)):
            return named
    if (pixels.min(axis=1) >= WHITE).mean() >= SKETCH:
        return PENCIL
    return None


def _data_url(image: np.ndarray) -> str:
    written = io.BytesIO()
    Image.fromarray(image).save(written, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


# --- the runtime -----------------------------------------------------------------------------------------------


def runtime(ort_dir: Path | None = None) -> tuple[bytes, bytes]:
    """The script and the WebAssembly of onnxruntime-web, checked. Raises UserError where they cannot be had."""
    kept = cache_dir() / f"{PACKED}-{VERSION}"
    if ort_dir is None and not all((kept / name).is_file() for name in RUNTIME):
        with tempfile.TemporaryDirectory() as folder:
            _keep(_read(_npm_pack(Path(folder))), kept)
    found = _read(ort_dir or kept)
    return found["ort.wasm.bundle.min.mjs"], found["ort-wasm-simd-threaded.wasm"]


def _read(place: Path) -> Mapping[str, bytes]:
    """{file: content} from a folder or an archive. Raises UserError where one is missing or another one."""
    if place.is_file():
        with tempfile.TemporaryDirectory() as folder:
            extract(place, Path(folder), most_bytes=ARCHIVE_BYTES, most_members=ARCHIVE_FILES)
            return _read(Path(folder) / "package")
    found = {}
    for name, digest in RUNTIME.items():
        files = [place / inside / name for inside in ("", "dist") if (place / inside / name).is_file()]
        if not files:
            raise UserError(f"{place}: has no {name}; give the folder or .tgz that `npm pack {PACKED}@{VERSION}` makes")
        found[name] = files[0].read_bytes()
        if hashlib.sha256(found[name]).hexdigest() != digest:
            raise UserError(f"{files[0]}: not that of {PACKED} {VERSION}, by its SHA-256: npm pack {PACKED}@{VERSION}")
    return found


def _npm_pack(folder: Path) -> Path:
    wanted = f"{PACKED}@{VERSION}"
    otherwise = f"fetch it elsewhere with `npm pack {wanted}`, and name the file with --ort-dir"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"the page needs {wanted}, and there is no npm here to fetch it: {otherwise}")
    told = subprocess.run([npm, "pack", wanted, "--silent"], cwd=folder, capture_output=True, text=True, check=False)
    archives = [*folder.glob("*.tgz")]
    if told.returncode or not archives:
        lines = [line for line in told.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise UserError(f"npm cannot fetch {wanted} ({lines[-1].strip()}): {otherwise}")
    return archives[0]


def _keep(files: Mapping[str, bytes], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)


def title_of(folder: Path) -> str:
    """What the recipe beside a model is called; else "p2pzoo"."""
    import tomllib

    try:
        told = tomllib.loads((folder / "recipe.toml").read_text("utf-8")).get("title")
    except (OSError, ValueError):
        told = None
    return str(told or "p2pzoo")
