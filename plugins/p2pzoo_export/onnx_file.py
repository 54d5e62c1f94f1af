"""Read and rewrite ONNX files: metadata, 8-bit weights, onnxruntime."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from p2pzoo_export.graph_check import RunGraph

PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # of the extra `onnx`
INPUT, NOISE, OUTPUT = "x", "noise", "y_hat"  # names in the graph
DIMENSION_NAMES = {0: "batch", 2: "height", 3: "width"}  # of the dimensions that may be free
OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1}  # axis of the output channels in the weight; groups do not matter
_FATAL = 4  # onnxruntime prints errors, level 3, in red besides raising them
MAX_INT8 = 127  # the value that a channel's largest weight gets


def find_missing_packages() -> list[str]:
    """Return the packages for ONNX that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def write_metadata(path: Path, description: str) -> None:
    """Add the description and names of the free dimensions; remove what the exporter recorded about its work."""
    import onnx

    file = onnx.load(str(path))
    del file.graph.value_info[:], file.graph.metadata_props[:]
    for part in (*file.graph.node, *file.graph.input, *file.graph.output, *file.graph.initializer):
        del part.metadata_props[:]
    ends = [*file.graph.input, *file.graph.output]
    shapes = [end.type.tensor_type.shape.dim for end in ends]
    for axis, name in DIMENSION_NAMES.items():
        if shapes[0][axis].dim_param:
            for end, shape in zip(ends, shapes, strict=True):
                shape[axis + (end.name == NOISE and axis > 1)].dim_param = name  # noise is (B, K, C, H, W)
    onnx.helper.set_model_props(file, {"p2pzoo": description})
    onnx.save(file, str(path))


def open_session(path: Path) -> RunGraph:
    """Return a function that runs the graph on the CPU. Its errors are exceptions only: nothing is printed."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(_FATAL)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run([OUTPUT], given)[0])

    return run


def quantize_weights(path: Path) -> None:
    """Store the weights of convolutions in 8 bits, with one scale per output channel. Activations stay in float32.

    8-bit activations made networks up to 1.8 times as fast on a CPU. But with instance norm, their images had a PSNR of
    27 to 37 dB to torch's, and lost up to 1 dB against the real ones, with each of onnxruntime's calibrations. With
    8-bit weights alone it is 55 dB and more.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(path), str(path), skip_symbolic_shape=True)  # folds batch norms into convolutions, too
    file = onnx.load(str(path))
    weights = {weight.name: weight for weight in file.graph.initializer}
    for node in list(file.graph.node):
        if node.op_type not in OUTPUT_AXIS or node.input[1] not in weights:
            continue
        weight = weights.pop(node.input[1])
        values, output_axis = onnx.numpy_helper.to_array(weight), OUTPUT_AXIS[node.op_type]
        other_axes = tuple(axis for axis in range(values.ndim) if axis != output_axis)
        largest = np.abs(values).max(axis=other_axes, keepdims=True)
        step = np.where(largest > 0, largest, 1) / MAX_INT8
        parts: dict[str, np.ndarray] = {
            f"{weight.name}.steps": np.rint(values / step).astype(np.int8),
            f"{weight.name}.step": step.ravel().astype(np.float32),
        }
        file.graph.initializer.remove(weight)
        file.graph.initializer.extend(onnx.numpy_helper.from_array(part, name) for name, part in parts.items())
        dequantize = onnx.helper.make_node("DequantizeLinear", [*parts], [weight.name], axis=output_axis)
        file.graph.node.insert(0, dequantize)
    onnx.save(file, str(path))
