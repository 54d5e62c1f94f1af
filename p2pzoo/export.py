"""A trained generator as a graph for other runtimes: ONNX, or torch.export's archive. What is written was checked.

A graph computes G in one test mode (see `translate`), from x in [-1, 1] to ŷ in [-1, 1], both (B, C, H, W) in float32:

eval   running statistics, no dropout; any batch, and where the network allows it any sides that it can halve
paper  the statistics of the image itself, one image at a time. Dropout is off: no file can draw what `translate` draws,
       which it seeds by the image's pixels
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from p2pzoo import __version__
from p2pzoo.contracts import Batch
from p2pzoo.data import Store
from p2pzoo.data.batches import single_batches
from p2pzoo.errors import UserError
from p2pzoo.experiment import check
from p2pzoo.files import replacing
from p2pzoo.model import Model
from p2pzoo.pictures import pictured
from p2pzoo.plugins import registry
from p2pzoo.recipe import read_recipe
from p2pzoo.translate import translate

Run = Callable[[Tensor], Tensor]
Written = tuple[Run, str]  # what computes with the file; what is free in it

FORMATS = ("onnx", "torch-export")
WEB = "web"  # a page around the former: web.py
PRECISIONS = ("fp32", "fp16", "int8")
MOST = 1e-3  # that values in [-1, 1] may differ by, computed in float32
LEAST_PSNR = {"fp16": 40.0, "int8": 20.0}  # dB to torch's images: with less the file is no use
CALIBRATION = 16  # training images that the ranges of int8 are taken from
SPAN = 2.0  # of values in [-1, 1], for PSNR
DROPOUT = nn.modules.dropout._DropoutNd
BATCH_NORM = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Exported:
    """What was found when the file was compared with torch.

    difference  the largest of all values in [-1, 1]
    psnr        of its images to torch's, dB; infinite where they are the same
    psnr_loss   by how much its images are farther from the real ones than torch's, dB; None where there are none
    shown       what it was compared on, in words
    sides       what sides and batches the graph takes, in words
    notes       what is not as in `translate`, one line each
    """

    difference: float
    psnr: float
    psnr_loss: float | None
    shown: str
    sides: str
    notes: Sequence[str]


def export(
    model: Model,
    path: Path,
    to: str,
    *,
    test_mode: str | None = None,
    precision: str = "fp32",
    data: Data | None = None,
) -> Exported:
    """Write the generator in the format `to`, if what the file gives is what torch gives.

    test_mode  None is the model's own
    precision  "fp16": computed in float16; "int8": convolutions in 8-bit integers. Images stay float32. ONNX only
    data       real images to compare on; None: smooth noise

    Raises UserError where a package is missing, where the network cannot be exported or its file gives something else;
    nothing is written then.
    """
    if to not in FORMATS:
        raise UserError(f"no format '{to}': known are {', '.join(FORMATS)}")
    if precision not in PRECISIONS:
        raise UserError(f"no precision '{precision}': known are {', '.join(PRECISIONS)}")
    if precision != "fp32" and to != "onnx":
        raise UserError(f"--{precision} is for ONNX: a file of {to} computes in float32")
    mode, _ = model.manner(test_mode, None, None)
    still = _still(model.G)
    graph, notes = (_own_statistics(still), _notes(model.G)) if mode == "paper" else (still.eval(), [])
    x = _examples(model, data)
    told = dict(model.header) | {"test_mode": mode, "precision": precision, "p2pzoo": __version__}
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters: what counts is what the file gives
        if to == "onnx":
            run, free = _onnx(graph, x[0], temporary, mode, precision, told, data)
        else:
            run, free = _torch_export(graph, x[0], temporary, mode, told)
        return _compared(model, still, mode, run, free, x, data, precision, notes)


# --- the graph -------------------------------------------------------------------------------------------------


def _still(G: nn.Module) -> nn.Module:
    """A copy on the CPU that draws nothing by dropout in any mode."""
    copied = copy.deepcopy(G).cpu()
    for part in copied.modules():
        if isinstance(part, DROPOUT):
            part.p = 0.0
    return copied


def _own_statistics(still: nn.Module) -> nn.Module:
    """A copy in training mode whose batch norms keep no running statistics."""
    graph = copy.deepcopy(still).train()
    for part in graph.modules():
        if isinstance(part, ParametrizationList):  # its power iteration is not of the image, see translate.py
            part.eval()
        elif isinstance(part, BATCH_NORM):
            part.running_mean = part.running_var = part.num_batches_tracked = None
            part.track_running_stats = False
    return graph


def _notes(G: nn.Module) -> list[str]:
    if not any(isinstance(part, DROPOUT) and part.p for part in G.modules()):
        return []
    return ["dropout is off in the file; `translate` in the test mode paper has it on"]


class _Half(nn.Module):
    """float32 in and out, float16 between."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.half()).float()  # type: ignore[no-any-return]


def _free(mode: str) -> Iterator[tuple[str, dict[int, Any] | None]]:
    """What of x may vary, the most first, in words and as torch.export takes it."""
    any_size = torch.export.Dim.DYNAMIC
    if mode == "eval":
        yield "any batch, any sides", {0: any_size, 2: any_size, 3: any_size}
        yield "any batch", {0: any_size}
    else:
        yield "any sides", {2: any_size, 3: any_size}
    yield "", None


def _widest(graph: nn.Module, x: Tensor, mode: str, write: Callable[[torch.export.ExportedProgram], Run]) -> Written:
    """What `write` makes of the graph, with as much left free as the network allows. Raises UserError."""
    shown = torch.cat([x, x]) if mode == "eval" else x
    why: Exception | None = None
    for free, dims in _free(mode):
        try:
            with torch.no_grad():
                shapes = None if dims is None else (dims,)
                run = write(torch.export.export(graph, (shown if dims else x,), dynamic_shapes=shapes))
                for others in _others(x, x, free):  # traced for any does not mean that it takes any
                    run(others)
                return run, free
        except UserError:
            raise
        except Exception as error:  # exporters and runtimes raise what they like
            why = error
    assert why
    raise UserError(f"this generator cannot be exported: {_first_line(why)}") from why


def _others(x: Tensor, other: Tensor, free: str) -> Iterator[Tensor]:
    """Of other sides and batches than x, as far as these are free."""
    if "sides" in free:
        yield torch.cat([x, other], dim=3)
    if "batch" in free:
        yield torch.cat([x, other])


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# --- ONNX ------------------------------------------------------------------------------------------------------


def _onnx(
    graph: nn.Module, x: Tensor, path: Path, mode: str, precision: str, told: Mapping[str, Any], data: Data | None
) -> Written:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"ONNX needs the package {package}: pip install 'p2pzoo[onnx]'")
    import onnx

    def write(traced: torch.export.ExportedProgram) -> Run:
        program = torch.onnx.export(traced, dynamo=True, verbose=False, input_names=["x"], output_names=["y_hat"])
        assert program
        program.save(str(path))
        return _session(path)

    run, free = _widest(_Half(graph) if precision == "fp16" else graph, x, mode, write)
    if precision == "int8":
        _quantize(path, data.calibration(CALIBRATION) if data else [x])
        run = _session(path)
    file = onnx.load(str(path))
    onnx.helper.set_model_props(file, {"p2pzoo": json.dumps(told, sort_keys=True)})
    onnx.save(file, str(path))
    return run, free


def _session(path: Path) -> Run:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["y_hat"], {"x": x.numpy()})[0])


def _quantize(path: Path, images: Sequence[Tensor]) -> None:
    """Weights by channel, what flows by the ranges that `images` gave, where there are convolutions."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.images = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.images, None)
            return None if image is None else {"x": image.numpy()}

    quant_pre_process(str(path), str(path), skip_symbolic_shape=True)  # folds batch norms, for one
    quantize_static(
        str(path), str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        op_types_to_quantize=["Conv", "ConvTranspose"], weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
    )  # fmt: skip


# --- torch.export ----------------------------------------------------------------------------------------------


def _torch_export(graph: nn.Module, x: Tensor, path: Path, mode: str, told: Mapping[str, Any]) -> Written:
    def write(traced: torch.export.ExportedProgram) -> Run:
        with path.open("wb") as file:
            torch.export.save(traced, file, extra_files={"p2pzoo.json": json.dumps(told, sort_keys=True)})
        with path.open("rb") as file:
            return torch.export.load(file).module()

    return _widest(graph, x, mode, write)


# --- whether it gives the same ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """The images that a run was evaluated on, and those that it was trained on."""

    shown: Store
    trained: Store
    split: str

    def batches(self) -> list[Batch]:
        return list(single_batches(self.shown, pictured(len(self.shown))))

    def calibration(self, most: int) -> list[Tensor]:
        spread = range(0, len(self.trained), max(1, len(self.trained) // most))[:most]
        return [batch.x.contiguous() for batch in single_batches(self.trained, spread)]


def data_of(folder: Path) -> tuple[Data | None, str]:
    """The data of the run folder that a model lies in; or None, and why there is none."""
    recipe = folder / "recipe.toml"
    if not recipe.is_file():
        return None, "there is no recipe beside the model"
    try:
        made = check(read_recipe(str(recipe)), registry())
        split = made.evaluate.split
        shown, trained = (Store(made.dataset.build(split=each), compute=made.compute) for each in (split, "train"))
        return Data(shown, trained, split), ""
    except UserError as error:
        return None, f"the data of its recipe cannot be had ({error.faults[0]})"


def _examples(model: Model, data: Data | None) -> list[Tensor]:
    """(1, C, H, W) each, in [-1, 1], of the sides that the model was trained at."""
    if data:
        return [batch.x.contiguous() for batch in data.batches()]
    draw = torch.Generator().manual_seed(0)
    coarse = (max(1, side // 8) for side in model.size)
    noise = torch.rand(1, model.in_channels, *coarse, generator=draw) * 2 - 1
    return [nn.functional.interpolate(noise, model.size, mode="bilinear")]


def _compared(
    model: Model,
    still: nn.Module,
    mode: str,
    run: Run,
    free: str,
    images: Sequence[Tensor],
    data: Data | None,
    precision: str,
    notes: Sequence[str],
) -> Exported:
    """Raises UserError where the file gives something else than torch."""
    shown = [*images, *_others(images[0], images[-1], free)]
    theirs = [run(x) for x in shown]
    ours = [translate(still, x, mode) for x in shown]
    difference = max(float((a - b).abs().max()) for a, b in zip(theirs, ours, strict=True))
    psnr = _psnr(theirs[: len(images)], ours[: len(images)])
    if precision == "fp32" and not difference <= MOST:
        hint = "; --test-mode eval draws nothing" if mode == "paper" else ""
        raise UserError(f"the file gives something else than torch: by up to {difference:.2g}, {MOST:g} may be{hint}")
    if precision != "fp32" and not psnr >= LEAST_PSNR[precision]:
        told = f"{psnr:.1f} dB from torch's, {LEAST_PSNR[precision]:g} dB is the least"
        raise UserError(f"in {precision} the file's images are {told}: leave --{precision} out")
    loss = None
    if data:
        real = [batch.y for batch in data.batches()]
        loss = _psnr(ours[: len(real)], real) - _psnr(theirs[: len(real)], real)
    what = f"{len(images)} images of the {data.split} split" if data else "smooth noise"
    return Exported(difference, psnr, loss, what, _sides(model, free), notes)


def _sides(model: Model, free: str) -> str:
    sides = f"{model.size[0]}×{model.size[1]}"
    if "sides" in free:
        sides = f"any sides that are multiples of {model.divisor}" if model.divisor > 1 else "any sides"
    return f"{sides}, {'any batch' if 'batch' in free else 'one image at a time'}"


def _psnr(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Of all their pixels together, dB."""
    error = torch.cat([(a - b).flatten() for a, b in zip(some, others, strict=True)]).double().square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(SPAN**2 / error)
