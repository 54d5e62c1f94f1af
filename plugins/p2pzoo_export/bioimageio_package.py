"""Write a model of the BioImage Model Zoo (bioimage.io): a folder or a .zip that ilastik, deepImageJ and others run.

The package has the generator as ONNX, a description (rdf.yaml, model format 0.5), one input with its output as a test,
and a README. It takes images in the units of the files, and returns the units of the targets: pre- and postprocessing
are the model's own scaling. Format: https://github.com/bioimage-io/spec-bioimage-io
"""

from __future__ import annotations

import datetime
import hashlib
import re
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from p2pzoo import __version__
from p2pzoo.models.model import Model
from p2pzoo.models.scaling import Scaling
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write, page_folder
from p2pzoo_export.graph_check import MAX_DIFFERENCE, EvaluationData, ExportResult, make_examples
from p2pzoo_export.graphs import export_graph
from p2pzoo_export.onnx_file import INPUT, OUTPUT, find_missing_packages, open_session

BIOIMAGEIO = "bioimageio"  # the format's name on the command line
DESCRIPTION = "rdf.yaml"
FORMAT_VERSION = "0.5.4"
SCALE_ADVICE = "bring yours to this scale first, since a program that runs this package does not resize them"
MIN_NAME, MAX_NAME = 5, 64  # letters of a model's name
CITATIONS = (
    (
        "Isola, Zhu, Zhou, Efros: Image-to-Image Translation with Conditional Adversarial Networks. CVPR 2017",
        "10.1109/CVPR.2017.632",
    ),
    (
        f"Trained and exported with p2pzoo {__version__}, after Isola et al., arXiv:1611.07004",
        "10.48550/arXiv.1611.07004",
    ),
)
_PIXEL_UNITS = {"micrometer": 1_000_000, "nanometer": 1_000, "picometer": 1}  # in pm, the finest that is written
_EXACT_STEPS = 2**20  # a scale that is a multiple of 1 / 2²⁰ is exact in binary
_OLD_SERIALIZER = "package_file_descr_serializer"  # of bioimageio.spec, which pydantic 2.14 refuses to call


@dataclass(frozen=True)
class Side:
    """x or y, as files have it.

    names   of the channels
    scales  for each channel, the values that are -1 and 1 to the network
    dtype   of the values
    """

    names: tuple[str, ...]
    scales: tuple[tuple[float, float], ...]
    dtype: str

    def to_network(self) -> tuple[list[float], list[float]]:
        """(gain, offset) of each channel: value · gain + offset is in [-1, 1].

        >>> Side(("BF",), ((0.0, 4000.0),), "uint16").to_network()
        ([0.0005], [-1.0])
        """
        gains = [2 / (high - low) for low, high in self.scales]
        return gains, [-1 - low * gain for (low, _), gain in zip(self.scales, gains, strict=True)]

    def from_network(self) -> tuple[list[float], list[float]]:
        """(gain, offset) of each channel: the way back."""
        return [(high - low) / 2 for low, high in self.scales], [(high + low) / 2 for low, high in self.scales]


def export_bioimageio(
    model: Model,
    out: Path,
    *,
    title: str,
    licence: str,
    authors: Sequence[str],
    test_mode: str | None = None,
    data: EvaluationData | None = None,
) -> ExportResult:
    """Write the package: a .zip if `out` ends so, else a folder.

    title    of the model; letters that the format does not allow are left out
    licence  of the model, as SPDX spells it: CC-BY-4.0
    authors  of the model, each "NAME" or "NAME, AFFILIATION"
    data     of the run, for the test; None: smooth noise

    Raises UserError, and writes nothing, for a model that the format cannot describe, if bioimageio.spec is installed
    and finds a fault, and as `export_graph` does.
    """
    check_model(model)
    x, y = _find_sides(model)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        result = export_graph(
            model, folder / "model.onnx", "onnx", test_mode=test_mode, data=data, scale_advice=SCALE_ADVICE
        )
        _write_tensors(folder, make_examples(model, data)[0], x, y)
        readme = _write_readme(model, title, licence, (x, y), result)
        (folder / "README.md").write_text(readme, "utf-8")
        _write_description(folder, _describe(model, folder, title, licence, authors, (x, y), result.notes))
        note = _validate(folder / DESCRIPTION)
        _save(folder, out)
    return ExportResult(**{**vars(result), "notes": [*result.notes, *([note] if note else [])]})


def check_model(model: Model) -> None:
    """Raises UserError for a model that the format cannot describe, and without the packages for ONNX."""
    if missing := find_missing_packages():
        raise UserError(f"--to {BIOIMAGEIO} needs the package {missing[0]}: pip install 'p2pzoo[bioimageio]'")
    if model.x_labels or model.y_labels or model.encodings.lab:
        raise UserError(
            f"--to {BIOIMAGEIO}: the model was trained on label maps or on Lab colours, which the format cannot "
            "describe: use --to onnx"
        )
    if model.takes_noise:
        raise UserError(f"--to {BIOIMAGEIO}: the model takes noise, which the format has no input for: use --to onnx")


def _find_sides(model: Model) -> tuple[Side, Side]:
    """x and y as files have them, if the dataset described that (bands, channels); else as a dataset stores them."""
    for table in (model.header.as_json.get("file_layout") or {}).values():
        if isinstance(table, dict) and isinstance(table.get("x"), dict) and isinstance(table.get("y"), dict):
            try:
                x, y = (_parse_side(table[side]) for side in "xy")
            except (KeyError, TypeError, ValueError):
                continue
            if (len(x.names), len(y.names)) == (model.in_channels, model.out_channels):
                return x, y
    return (
        Side(_unique_names([None] * model.in_channels), (model.x_range,) * model.in_channels, model.x_dtype),
        Side(_unique_names([None] * model.out_channels), (model.y_range,) * model.out_channels, model.y_dtype),
    )


def _parse_side(table: dict[str, Any]) -> Side:
    scales = tuple((float(low), float(high)) for low, high in table["scales"])
    if len(table["names"]) != len(scales) or not all(low < high for low, high in scales):
        raise ValueError("scales")
    return Side(_unique_names(table["names"]), scales, np.dtype(table["dtype"]).name)


def _unique_names(names: Sequence[str | None]) -> tuple[str, ...]:
    """Names that are identifiers, as the format wants them.

    >>> _unique_names(["BF", "BF", None, "405 nm"])
    ('BF_1', 'BF_2', 'channel_3', 'channel_405_nm')
    """
    plain = [re.sub(r"\W+", "_", name or "", flags=re.ASCII).strip("_") for name in names]
    plain = [name if name[:1].isalpha() else f"channel_{name or number}" for number, name in enumerate(plain, 1)]
    return tuple(name if plain.count(name) == 1 else f"{name}_{number}" for number, name in enumerate(plain, 1))


def _write_tensors(folder: Path, image: torch.Tensor, x: Side, y: Side) -> None:
    """An input in units of its files, and the output of the graph with pre- and postprocessing."""

    def apply(values: np.ndarray, factors: tuple[list[float], list[float]]) -> np.ndarray:
        gain, offset = (np.array(factor).reshape(1, -1, 1, 1) for factor in factors)
        return values * gain + offset

    values = apply(image.numpy().astype(np.float64), x.from_network())
    if np.dtype(x.dtype).kind in "iu":
        info = np.iinfo(x.dtype)
        values = np.clip(np.rint(values), info.min, info.max)
    values = values.astype(x.dtype)
    scaled = np.clip(apply(values.astype(np.float32), x.to_network()), -1, 1).astype(np.float32)
    y_hat = open_session(folder / "model.onnx")(torch.from_numpy(scaled)).numpy()
    np.save(folder / "test_input.npy", values)
    np.save(folder / "test_output.npy", apply(np.clip(y_hat, -1, 1), y.from_network()).astype(np.float32))


def _describe(
    model: Model,
    folder: Path,
    title: str,
    licence: str,
    authors: Sequence[str],
    sides: tuple[Side, Side],
    notes: Sequence[str],
) -> dict[str, Any]:
    """The description, as rdf.yaml has it."""
    import onnx

    graph = onnx.load(str(folder / "model.onnx"))
    free = [bool(side.dim_param) for side in graph.graph.input[0].type.tensor_type.shape.dim]
    x, y = sides
    opset = next(each.version for each in graph.opset_import if not each.domain)
    x_tensor = {
        "id": INPUT, "axes": _input_axes(model, free, x.names), "test_tensor": _file(folder / "test_input.npy"),
        "data": {"type": x.dtype, "range": _range(x)},
        "preprocessing": [_dtype("float32"), _scale(x.to_network()), _clip(), _dtype("float32")],
    }  # fmt: skip
    y_tensor = {
        "id": OUTPUT, "axes": _output_axes(model, free, y.names), "test_tensor": _file(folder / "test_output.npy"),
        "data": {"type": "float32", "range": _range(y)},
        "postprocessing": [_clip(), _scale(y.from_network()), _dtype("float32")],
    }  # fmt: skip
    scaling = Scaling.resolve(model.file_layout)
    scale = {} if scaling.is_native else scaling.as_json()
    largest = max(high - low for low, high in y.scales)
    tolerance = {"relative_tolerance": 1e-3, "absolute_tolerance": MAX_DIFFERENCE * largest / 2}
    return {
        "format_version": FORMAT_VERSION,
        "type": "model",
        "name": _name(title),
        "description": _join_notes(f"{title}: paired image-to-image translation, x to y, trained with p2pzoo", notes),
        "authors": [_author(author) for author in authors],
        "cite": [{"text": text, "doi": doi} for text, doi in CITATIONS],
        "license": licence,
        "tags": ["image-to-image", "pix2pix", "p2pzoo"],
        "documentation": "README.md",
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "inputs": [x_tensor],
        "outputs": [y_tensor],
        "weights": {"onnx": {**_file(folder / "model.onnx"), "opset_version": opset}},
        "config": {"bioimageio": {"reproducibility_tolerance": [tolerance]}, "p2pzoo": {"run": model.run, **scale}},
    }


def _join_notes(text: str, notes: Sequence[str]) -> str:
    """
    >>> _join_notes("Nuclei", ["dropout is off"])
    'Nuclei. Note: dropout is off.'
    """
    return ". Note: ".join([text, *notes]) + "." if notes else text


def _input_axes(model: Model, free: Sequence[bool], names: Sequence[str]) -> list[dict[str, Any]]:
    height, width = model.padded_size(*model.size)
    sizes = {
        axis: {"min": side, "step": model.size_divisor} if is_free else side
        for axis, side, is_free in (("y", height, free[2]), ("x", width, free[3]))
    }
    return [*_first_axes(free, names), *({"type": "space", "id": axis, "size": sizes[axis], **_pixel(model, axis)}
                                         for axis in "yx")]  # fmt: skip


def _output_axes(model: Model, free: Sequence[bool], names: Sequence[str]) -> list[dict[str, Any]]:
    sizes = {axis: {"tensor_id": INPUT, "axis_id": axis} for axis in "yx"}
    return [*_first_axes(free, names), *({"type": "space", "id": axis, "size": sizes[axis], **_pixel(model, axis)}
                                         for axis in "yx")]  # fmt: skip


def _first_axes(free: Sequence[bool], names: Sequence[str]) -> list[dict[str, Any]]:
    batch: dict[str, Any] = {"type": "batch"} if free[0] else {"type": "batch", "size": 1}
    return [batch, {"type": "channel", "channel_names": [*names]}]


def _pixel(model: Model, axis: str) -> dict[str, Any]:
    """The size of a pixel, if the dataset `stacks` has stored it in micrometres.

    A reader computes the output's side as int(side · scale / scale), which is wrong for some sides if the scale is
    rounded: 7 · 0.325 / 0.325 is below 7. So the scale is in the largest unit in which it is exact: 325 nm.
    """
    table = (model.header.as_json.get("file_layout") or {}).get("stack")
    pixel = table.get("pixel") if isinstance(table, dict) else None
    size = pixel.get(axis.upper()) if isinstance(pixel, dict) else None
    if not isinstance(size, int | float) or not size > 0:
        return {}
    picometers = max(1, round(size * _PIXEL_UNITS["micrometer"]))
    unit, scale = next(
        (unit, picometers / each)
        for unit, each in _PIXEL_UNITS.items()
        if (picometers / each * _EXACT_STEPS).is_integer()
    )
    return {"unit": unit, "scale": scale}


def _range(side: Side) -> list[float]:
    return [min(low for low, _ in side.scales), max(high for _, high in side.scales)]


def _scale(factors: tuple[list[float], list[float]]) -> dict[str, Any]:
    gain, offset = factors
    return {"id": "scale_linear", "kwargs": {"axis": "channel", "gain": gain, "offset": offset}}


def _clip() -> dict[str, Any]:
    return {"id": "clip", "kwargs": {"min": -1.0, "max": 1.0}}


def _dtype(dtype: str) -> dict[str, Any]:
    return {"id": "ensure_dtype", "kwargs": {"dtype": dtype}}


def _file(path: Path) -> dict[str, str]:
    return {"source": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _name(title: str) -> str:
    """A name with the letters that the format allows.

    >>> _name("L1: cGAN → x"), _name("BF")
    ('L1 cGAN x', 'p2pzoo BF')
    """
    allowed = " ".join(re.sub(r"[^A-Za-z0-9_+\- ()]", " ", title).split())
    return (allowed if len(allowed) >= MIN_NAME else f"p2pzoo {allowed}")[:MAX_NAME].strip()


def _author(text: str) -> dict[str, str]:
    name, _, affiliation = (part.strip() for part in text.partition(","))
    return {"name": name, "affiliation": affiliation} if affiliation else {"name": name}


def _write_readme(model: Model, title: str, licence: str, sides: tuple[Side, Side], result: ExportResult) -> str:
    rows = "\n".join(
        f"| {letter} | {', '.join(side.names)} | {side.dtype} | "
        f"{', '.join(f'{low:g} to {high:g}' for low, high in dict.fromkeys(side.scales))} |"
        for letter, side in zip(("x (input)", "y (target)"), sides, strict=True)
    )
    notes = "".join(f"\n**Note:** {note}.\n" for note in result.notes)
    return f"""# {title}

A generator that translates images x to images y, trained on pairs as in pix2pix
([Isola et al. 2017](https://doi.org/10.1109/CVPR.2017.632)) with p2pzoo {__version__}, run {model.run}.

| | channels | values | scale |
|---|---|---|---|
{rows}

Values beyond the scale are clipped. The output is float32 in the units of y. Sizes: {result.sides}.
{notes}
## Validation

The graph was compared with torch on {result.checked_on}: values in [-1, 1] differ by {result.difference:.1e} at most.
Test it with `bioimageio test`. How good the translation is on your images is for you to measure: images of another
microscope, stain or pixel size are translated too, and can be wrong without a sign of it.

Licence: {licence}
"""


def _write_description(folder: Path, description: dict[str, Any]) -> None:
    import yaml  # a dependency of huggingface_hub

    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True, width=120)
    (folder / DESCRIPTION).write_text(text, "utf-8")


def _validate(path: Path) -> str | None:
    """A note why the description was not validated, or None. Raises UserError where bioimageio.spec finds a fault.

    Nothing is read from the web.
    """
    try:
        from bioimageio.spec import InvalidDescr, load_description
    except ImportError:
        return "the description was not validated: pip install 'p2pzoo[bioimageio]'"
    loaded = load_description(path, perform_io_checks=False)
    if not isinstance(loaded, InvalidDescr):
        return None
    faults = [f"{'.'.join(map(str, error.loc))}: {error.msg}" for each in loaded.validation_summary.details
              for error in each.errors]  # fmt: skip
    if any(_OLD_SERIALIZER in fault for fault in faults):
        return "the description was not validated: bioimageio.spec does not work with this pydantic, use pydantic<2.14"
    first = " ".join(faults[0].split()) if faults else "no reason given"
    if "license" in first:
        first = "no licence of SPDX has this name: give --licence as https://spdx.org/licenses spells it, CC-BY-4.0"
    raise UserError(f"--to {BIOIMAGEIO}: bioimageio.spec refuses the description: {first}")


def _save(folder: Path, out: Path) -> None:
    files = sorted(folder.iterdir())
    if out.suffix == ".zip":
        with atomic_write(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.name)
        return
    with page_folder(out) as target:
        for file in files:
            (target / file.name).write_bytes(file.read_bytes())
