"""Export a trained generator as a graph for other runtimes: ONNX, or an archive of torch.export. Each file is checked.

A graph computes G in one test mode (see `p2pzoo translate`), from x in [-1, 1] to ŷ in [-1, 1], both (B, C, H, W) in
float32. The sampler of a process that draws noise has a second input, noise (B, K, C, H, W) of N(0, 1):

eval   running statistics, no dropout; any batch, and any sides that the network allows
paper  the statistics of the image itself, one image at a time. Dropout is off: `p2pzoo translate` seeds it by the
       pixels of the image, which no file can do

Files contain a description under "p2pzoo" (`_describe_file`), and no path of the machine that wrote them.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from p2pzoo import __version__
from p2pzoo.models.model import Model
from p2pzoo.models.scaling import Scaling
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write
from p2pzoo_export.graph_check import (
    EvaluationData,
    ExportResult,
    RunGraph,
    compare_with_torch,
    compute_psnr,
    format_size,
    make_examples,
    make_other_sizes,
    with_noise,
)
from p2pzoo_export.onnx_file import (
    INPUT,
    NOISE,
    OUTPUT,
    find_missing_packages,
    open_session,
    quantize_weights,
    write_metadata,
)
from p2pzoo_export.private_paths import without_private_paths

FreeDimensions = str  # dimensions of x that are free in a graph: "any batch, any sides", "any batch", "any sides", ""
WriteGraph = Callable[[torch.export.ExportedProgram], RunGraph]

FORMATS = ("onnx", "torch-export")
WEB = "web"  # a page with a graph in it: web.py
PRECISIONS = ("fp32", "fp16", "int8")
MIN_PSNR_OTHER_SIZES = 20.0  # dB, any precision: at sizes the graph was not traced with, a wrong graph has far less
DROPOUT = nn.modules.dropout._DropoutNd
BATCH_NORM = nn.modules.batchnorm._BatchNorm


def export_graph(
    model: Model,
    path: Path,
    to: str,
    *,
    test_mode: str | None = None,
    precision: str = "fp32",
    data: EvaluationData | None = None,
    scale_advice: str = "resize them first (file_layout in the description)",
) -> ExportResult:
    """Write the generator in the format `to`, if the file's outputs are those of torch.

    to         one of FORMATS
    test_mode  None: the model's own
    precision  ONNX only. "fp16": computed in float16; "int8": weights of convolutions stored in 8 bits, computed in
               float32. Inputs and outputs stay float32
    data       real images to compare on; None: smooth noise
    scale_advice  what the note says of a model that saw its training images resized; "": no note

    Raises UserError, and writes nothing, if a package is missing, the network cannot be exported (a process or a
    generator that draws noise and takes none as an argument cannot), or its file differs from torch.
    """
    if to not in FORMATS:
        raise UserError(f"no format '{to}'; use one of {', '.join(FORMATS)}")
    if precision not in PRECISIONS:
        raise UserError(f"no precision '{precision}'; use one of {', '.join(PRECISIONS)}")
    if precision != "fp32" and to != "onnx":
        raise UserError(f"--{precision} works with --to onnx only: a file of {to} computes in float32")
    if not hasattr(torch.export.Dim, "DYNAMIC"):
        raise UserError(f"graphs need torch 2.6 or newer, this is {torch.__version__}: pip install -U torch")
    mode, _ = model.resolve_options(test_mode, None, None)
    _check_noise_is_an_input(model)
    network = _copy_without_dropout(model.G)
    if mode == "paper":
        graph, notes = _copy_with_image_statistics(network), _describe_dropout(model.G)
    else:
        graph, notes = network.eval(), []
    images = make_examples(model, data)
    description = _describe_file(model, mode, precision)
    with atomic_write(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about correct graphs too; the comparison decides
        if to == "onnx":
            run, free = _export_onnx(graph, model, images, temporary, mode, precision, description)
        else:
            run, free = _export_torch(graph, model, images, temporary, mode, description)
        notes += [*_describe_noise(model), *_describe_scale(model, scale_advice)]
        return compare_with_torch(model, network, mode, run, free, images, data, precision, notes)


def _check_noise_is_an_input(model: Model) -> None:
    if model.draws_own_noise:
        advice = " (see p2pzoo.plugin.Process.sampler)" if model.header.process else ""
        raise UserError(
            f"{model.noise_source} draws its own noise, which a graph cannot repeat: it must take it as an "
            f"argument{advice}"
        )


def _describe_file(model: Model, mode: str, precision: str) -> str:
    """Return the description in the file, as JSON: the header of the model file, and the graph's input and output."""
    ends: dict[str, dict[str, Any]] = {
        end: {"name": name, "layout": "NCHW", "channels": channels, "range": [-1, 1]}
        for end, name, channels in (("input", INPUT, model.in_channels), ("output", OUTPUT, model.out_channels))
    }
    if model.takes_noise:
        draws, channels = model.noise_shape
        ends["noise"] = {"name": NOISE, "layout": "NKCHW", "draws": draws, "channels": channels, "values": "N(0, 1)"}
    graph = {"test_mode": mode, "precision": precision, "p2pzoo": __version__}
    graph |= {"address": model.address} if model.address else {}
    return json.dumps({**without_private_paths(model.header.as_json), **ends, **graph}, sort_keys=True)


def _describe_noise(model: Model) -> list[str]:
    if not model.takes_noise:
        return []
    draws, channels = model.noise_shape
    return [f"a second input, {NOISE} (B, {draws}, {channels}, H, W) of N(0, 1): other noise gives another sample"]


def _describe_scale(model: Model, advice: str) -> list[str]:
    scaling = Scaling.resolve(model.file_layout)
    return [f"the graph sees images {scaling}, as in training: {advice}"] if advice and not scaling.is_native else []


# --- the graph -------------------------------------------------------------------------------------------------


def _copy_without_dropout(G: nn.Module) -> nn.Module:
    """Return a copy on the CPU whose dropout does nothing in any mode."""
    network = copy.deepcopy(G).cpu()
    for part in network.modules():
        if isinstance(part, DROPOUT):
            part.p = 0.0
    return network


def _copy_with_image_statistics(network: nn.Module) -> nn.Module:
    """Return a copy in training mode whose batch norms keep no running statistics."""
    graph = copy.deepcopy(network).train()
    for part in graph.modules():
        if isinstance(part, ParametrizationList):  # its power iteration would change the weights at each image
            part.eval()
        elif isinstance(part, BATCH_NORM):
            part.running_mean = part.running_var = part.num_batches_tracked = None
            part.track_running_stats = False
    return graph


def _describe_dropout(G: nn.Module) -> list[str]:
    if not any(isinstance(part, DROPOUT) and part.p for part in G.modules()):
        return []
    return ["dropout is off in the file; `p2pzoo translate` in test mode paper applies it"]


class _HalfPrecision(nn.Module):
    """float32 in and out, float16 between."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, x: Tensor, *noise: Tensor) -> Tensor:
        return self.network(x.half(), *noise).float()  # type: ignore[no-any-return]


def _iter_free_dimensions(mode: str) -> Iterator[tuple[FreeDimensions, dict[int, Any] | None]]:
    """Yield (what is free in x, the same as torch.export expects it), the freest first."""
    any_size = torch.export.Dim.DYNAMIC
    if mode == "eval":
        yield "any batch, any sides", {0: any_size, 2: any_size, 3: any_size}
        yield "any batch", {0: any_size}
    else:
        yield "any sides", {2: any_size, 3: any_size}
    yield "", None


def _export_freest(
    graph: nn.Module, model: Model, images: Sequence[Tensor], mode: str, write: WriteGraph
) -> tuple[RunGraph, FreeDimensions]:
    """Write the graph with as many free dimensions as the network allows. Raises UserError if it cannot be exported."""
    x = images[0]
    example = torch.cat([x, x]) if mode == "eval" else x
    last_error: Exception | None = None
    for free, dims in _iter_free_dimensions(mode):
        try:
            with torch.no_grad():
                # A copy: an export that failed leaves its free dimensions marked on the tensor.
                inputs = with_noise(model, (example if dims else x).clone())
                shapes = (
                    None if dims is None else (dims, {axis + (axis > 1): dims[axis] for axis in dims})[: len(inputs)]
                )
                traced = torch.export.export(graph, inputs, dynamic_shapes=shapes)
                _remove_paths(traced)
                run = write(traced)
                # A graph that was traced with free dimensions may still be wrong at other sizes: run it there.
                for other in make_other_sizes(model, images, free):
                    given = with_noise(model, other)
                    if not compute_psnr([run(*given)], [graph(*given)]) >= MIN_PSNR_OTHER_SIZES:
                        raise ValueError(f"its file gives another output at {format_size(other)}")
                return run, free
        except (UserError, OSError, MemoryError):
            raise
        except Exception as error:  # exporters and runtimes raise errors of any type
            last_error = error
    assert last_error
    raise UserError(f"this generator cannot be exported: {_first_line(last_error)}") from last_error


def _remove_paths(traced: torch.export.ExportedProgram) -> None:
    """Each operation records the lines of code that called it, with their paths on this machine."""
    for part in traced.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# --- the formats -----------------------------------------------------------------------------------------------


def _export_onnx(
    graph: nn.Module, model: Model, images: Sequence[Tensor], path: Path, mode: str, precision: str, description: str
) -> tuple[RunGraph, FreeDimensions]:
    if missing := find_missing_packages():
        raise UserError(f"ONNX needs the package {missing[0]}: pip install 'p2pzoo[onnx]'")

    def write(traced: torch.export.ExportedProgram) -> RunGraph:
        names = {"input_names": [INPUT, NOISE][: len(traced.graph_signature.user_inputs)], "output_names": [OUTPUT]}
        program = torch.onnx.export(traced, dynamo=True, verbose=False, **names)  # type: ignore[arg-type]
        assert program
        program.save(str(path))
        if precision == "int8":
            quantize_weights(path)
        write_metadata(path, description)
        return open_session(path)

    return _export_freest(_HalfPrecision(graph) if precision == "fp16" else graph, model, images, mode, write)


def _export_torch(
    graph: nn.Module, model: Model, images: Sequence[Tensor], path: Path, mode: str, description: str
) -> tuple[RunGraph, FreeDimensions]:
    def write(traced: torch.export.ExportedProgram) -> RunGraph:
        file = io.BytesIO()  # on a full disk torch ends the process
        torch.export.save(traced, file, extra_files={"p2pzoo.json": description})
        path.write_bytes(file.getbuffer())
        return torch.export.load(file).module()

    return _export_freest(graph, model, images, mode, write)
