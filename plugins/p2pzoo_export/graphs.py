"""A trained generator as a graph for other runtimes: ONNX, or torch.export's archive. What is written was checked.

A graph computes G in one test mode (see `translate`), from x in [-1, 1] to ŷ in [-1, 1], both (B, C, H, W) in float32:

eval   running statistics, no dropout; any batch, and where the network allows it any sides that it can halve
paper  the statistics of the image itself, one image at a time. Dropout is off: no file can draw what `translate` draws,
       which it seeds by the image's pixels

Files say what they are, under "p2pzoo" (`_told`), and hold no path of the machine that wrote them.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from p2pzoo import __version__, config
from p2pzoo.data import Store
from p2pzoo.data.loader import single_batches
from p2pzoo.images.grid import pictured
from p2pzoo.models.model import Model
from p2pzoo.models.test_modes import translate
from p2pzoo.plugin import Batch
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write

Run = Callable[[Tensor], Tensor]
Written = tuple[Run, str]  # what computes with the file; what is free in it

FORMATS = ("onnx", "torch-export")
WEB = "web"  # a page around the former: web.py
PRECISIONS = ("fp32", "fp16", "int8")
MOST = 1e-3  # that values in [-1, 1] may differ by, computed in float32
LEAST_PSNR = {"fp16": 40.0, "int8": 30.0}  # dB to torch's image, of each: with less the file is no use
RIGHT = 20.0  # dB, in any precision, at other sides and batches than those that a graph was traced with
STEPS = 127  # of int8, from 0 to a channel's largest weight
LEAST_SIDE = 4  # of the coarsest maps: norms over fewer values magnify rounding
NAMES = ("x", "y_hat")  # of a graph's input and output
SIDES = {0: "batch", 2: "height", 3: "width"}  # dimensions that may be free
CHANNELS_AT = {"Conv": 0, "ConvTranspose": 1}  # those that a weight leads to; of groups, it is no matter
SPAN = 2.0  # of values in [-1, 1], for PSNR
DROPOUT = nn.modules.dropout._DropoutNd
BATCH_NORM = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Exported:
    """What was found when the file was compared with torch.

    difference  the largest of all values in [-1, 1], over all that is `shown`
    psnr        of its images to torch's, dB; infinite where they are the same
    psnr_loss   by how much its images are farther from the real ones than torch's, dB; None where there are none
    shown       what it was compared on, in words: which images, and what sides and batches
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
    precision  "fp16": computed in float16; "int8": weights of convolutions kept in 8 bits, and computed with in
               float32. Images stay float32. ONNX only
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
    if not hasattr(torch.export.Dim, "DYNAMIC"):
        raise UserError(f"graphs need torch 2.6 or newer, and this is {torch.__version__}: pip install -U torch")
    mode, _ = model.resolve_options(test_mode, None, None)
    still = _still(model.G)
    graph, notes = (_own_statistics(still), _notes(model.G)) if mode == "paper" else (still.eval(), [])
    images = _examples(model, data)
    told = _told(model, mode, precision)
    with atomic_write(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters: what counts is what the file gives
        if to == "onnx":
            run, free = _onnx(graph, model, images, temporary, mode, precision, told)
        else:
            run, free = _torch_export(graph, model, images, temporary, mode, told)
        return _compared(model, still, mode, run, free, images, data, precision, notes)


def _told(model: Model, mode: str, precision: str) -> str:
    """What a file says of itself, as JSON: the model file's header, and what goes in and comes out."""
    ends = {
        end: {"name": name, "layout": "NCHW", "channels": channels, "range": [-1, 1]}
        for end, name, channels in zip(("input", "output"), NAMES, (model.in_channels, model.out_channels), strict=True)
    }
    made = {"test_mode": mode, "precision": precision, "p2pzoo": __version__}
    return json.dumps({**model.header, **ends, **made}, sort_keys=True)


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


def _widest(
    graph: nn.Module,
    model: Model,
    images: Sequence[Tensor],
    mode: str,
    write: Callable[[torch.export.ExportedProgram], Run],
) -> Written:
    """What `write` makes of the graph, with as much left free as the network allows. Raises UserError."""
    x = images[0]
    shown = torch.cat([x, x]) if mode == "eval" else x
    why: Exception | None = None
    for free, dims in _free(mode):
        try:
            with torch.no_grad():
                shapes = None if dims is None else (dims,)
                traced = torch.export.export(graph, (shown if dims else x,), dynamic_shapes=shapes)
                _without_paths(traced)
                run = write(traced)
                for other in _others(model, images, free):  # traced for any does not mean that it is right for any
                    if not _psnr([run(other)], [graph(other)]) >= RIGHT:
                        raise ValueError(f"its file gives something else at {_size(other)}")
                return run, free
        except (UserError, OSError, MemoryError):
            raise
        except Exception as error:  # exporters and runtimes raise what they like
            why = error
    assert why
    raise UserError(f"this generator cannot be exported: {_first_line(why)}") from why


def _without_paths(traced: torch.export.ExportedProgram) -> None:
    """Each operation remembers the lines of code that called it, by their place on this disk."""
    for part in traced.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)


def _others(model: Model, images: Sequence[Tensor], free: str) -> list[Tensor]:
    """Of other sides and batches than the images have, as far as these are free."""
    x, other = images[0], images[-1]
    found = []
    if "sides" in free:
        found += [torch.cat([x, other], dim=3), torch.cat([x, other[:, :, : model.divisor]], dim=2)]
        height, width = (side // 2 // model.divisor * model.divisor for side in x.shape[2:])
        if min(height, width) >= LEAST_SIDE * model.divisor:
            found.append(x[:, :, :height, :width].contiguous())
    if "batch" in free:
        found.append(torch.cat([x, other, x]))
    return found


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# --- ONNX ------------------------------------------------------------------------------------------------------


def missing_packages() -> list[str]:
    """What the extra `onnx` would install."""
    return [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]


def _onnx(
    graph: nn.Module, model: Model, images: Sequence[Tensor], path: Path, mode: str, precision: str, told: str
) -> Written:
    if missing := missing_packages():
        raise UserError(f"ONNX needs the package {missing[0]}: pip install 'p2pzoo[onnx]'")

    def write(traced: torch.export.ExportedProgram) -> Run:
        names = {"input_names": NAMES[:1], "output_names": NAMES[1:]}
        program = torch.onnx.export(traced, dynamo=True, verbose=False, **names)  # type: ignore[arg-type]
        assert program
        program.save(str(path))
        if precision == "int8":
            _shrink(path)
        _label(path, told)
        return _session(path)

    return _widest(_Half(graph) if precision == "fp16" else graph, model, images, mode, write)


def _label(path: Path, told: str) -> None:
    """What the file is, and names for what is free, in place of what the exporter remembers of its own work."""
    import onnx

    file = onnx.load(str(path))
    del file.graph.value_info[:], file.graph.metadata_props[:]
    for part in (*file.graph.node, *file.graph.input, *file.graph.output, *file.graph.initializer):
        del part.metadata_props[:]
    [x], [y_hat] = file.graph.input, file.graph.output
    sides = [end.type.tensor_type.shape.dim for end in (x, y_hat)]
    for place, name in SIDES.items():
        if sides[0][place].dim_param:
            for end in sides:
                end[place].dim_param = name
    onnx.helper.set_model_props(file, {"p2pzoo": told})
    onnx.save(file, str(path))


def _session(path: Path) -> Run:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run([NAMES[1]], {NAMES[0]: x.numpy()})[0])


def _shrink(path: Path) -> None:
    """Weights of convolutions as 8-bit steps, of a size of its own for each channel that they lead to.

    What flows between them stays float32. In 8 bits, too, networks were up to 1.8 times as fast on a CPU, but those
    with instance norm came out at 27 to 37 dB to torch's images, up to 1 dB farther from the real ones, by whichever
    of onnxruntime's calibrations; so they are at 55 dB and more.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(path), str(path), skip_symbolic_shape=True)  # folds batch norms, for one
    file = onnx.load(str(path))
    weights = {weight.name: weight for weight in file.graph.initializer}
    for node in list(file.graph.node):
        if node.op_type not in CHANNELS_AT or node.input[1] not in weights:
            continue
        weight = weights.pop(node.input[1])
        values, at = onnx.numpy_helper.to_array(weight), CHANNELS_AT[node.op_type]
        most = np.abs(values).max(axis=tuple(axis for axis in range(values.ndim) if axis != at), keepdims=True)
        step = np.where(most > 0, most, 1) / STEPS
        parts: dict[str, np.ndarray] = {
            f"{weight.name}.steps": np.rint(values / step).astype(np.int8),
            f"{weight.name}.step": step.ravel().astype(np.float32),
        }
        file.graph.initializer.remove(weight)
        file.graph.initializer.extend(onnx.numpy_helper.from_array(part, name) for name, part in parts.items())
        file.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", [*parts], [weight.name], axis=at))
    onnx.save(file, str(path))


# --- torch.export ----------------------------------------------------------------------------------------------


def _torch_export(
    graph: nn.Module, model: Model, images: Sequence[Tensor], path: Path, mode: str, told: str
) -> Written:
    def write(traced: torch.export.ExportedProgram) -> Run:
        with path.open("wb") as file:
            torch.export.save(traced, file, extra_files={"p2pzoo.json": told})
        with path.open("rb") as file:
            return torch.export.load(file).module()

    return _widest(graph, model, images, mode, write)


# --- whether it gives the same ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """The pairs that a run was evaluated on."""

    shown: Store
    split: str

    def batches(self) -> list[Batch]:
        return list(single_batches(self.shown, pictured(len(self.shown))))

    def fits(self, model: Model) -> bool:
        """Whether they can be the model's."""
        channels = (model.in_channels, model.out_channels)
        return (self.shown.channels, self.shown.size) == (channels, model.size)


def data_of(folder: Path, model: Model) -> tuple[Data | None, str]:
    """The data of the run folder that the model lies in; or None, and why there is none."""
    recipe = folder / "recipe.toml"
    if not recipe.is_file():
        return None, "there is no recipe beside the model"
    try:
        made = config.load(str(recipe))
        split = made.evaluate.split
        data = Data(Store(made.dataset.build(split=split), compute=made.compute), split)
        return (data, "") if data.fits(model) else (None, "the recipe beside the model is of other images")
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
    others = _others(model, images, free)
    shown = [*images, *others]
    theirs = [run(x) for x in shown]
    ours = [translate(still, x, mode) for x in shown]
    pairs = list(zip(theirs, ours, strict=True))
    difference = torch.stack([(a - b).abs().max() for a, b in pairs]).max().item()  # nan if one is
    psnr = _psnr(theirs[: len(images)], ours[: len(images)])
    if precision == "fp32" and not difference <= MOST:
        hint = "; --test-mode eval draws nothing" if mode == "paper" else ""
        raise UserError(f"the file gives something else than torch: by up to {difference:.2g}, {MOST:g} may be{hint}")
    if precision != "fp32":
        for each in (_psnr([a], [b]) for a, b in pairs[: len(images)]):
            if not each >= LEAST_PSNR[precision]:
                told = f"{each:.1f} dB from torch's, {LEAST_PSNR[precision]:g} dB is the least"
                raise UserError(f"in {precision} one of the file's images is {told}: leave --{precision} out")
    loss = None
    if data:
        real = [batch.y for batch in data.batches()]
        loss = _psnr(ours[: len(real)], real) - _psnr(theirs[: len(real)], real)
    what = f"{len(images)} images of the {data.split} split" if data else "smooth noise"
    sizes = ", ".join([_size(images[0]), *map(_size, others)])
    return Exported(difference, psnr, loss, f"{what}, {sizes}", _sides(model, free), notes)


def _size(x: Tensor) -> str:
    batch, _, height, width = x.shape
    return f"{height}×{width}" if batch == 1 else f"{batch} of {height}×{width}"


def _sides(model: Model, free: str) -> str:
    sides = f"{model.size[0]}×{model.size[1]}"
    if "sides" in free:
        sides = f"any sides that are multiples of {model.divisor}" if model.divisor > 1 else "any sides"
    return f"{sides}, {'any batch' if 'batch' in free else 'one image at a time'}"


def _psnr(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Of all their pixels together, dB."""
    error = torch.cat([(a - b).flatten() for a, b in zip(some, others, strict=True)]).double().square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(SPAN**2 / error)
