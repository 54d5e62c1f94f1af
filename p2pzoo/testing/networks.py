"""Checks of generators and discriminators."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p2pzoo.compute.engine import Engine
from p2pzoo.models import safetensors_io
from p2pzoo.models.build import build_network, on_meta
from p2pzoo.models.external_weights import HEADER_KEY, digest_external
from p2pzoo.models.model_file import load_network
from p2pzoo.models.optional_parts import unpack_seen_target
from p2pzoo.models.process_faults import change_weights
from p2pzoo.models.test_modes import optimize_for_eval
from p2pzoo.plugin import schema
from p2pzoo.plugin.registry import Registry
from p2pzoo.testing.component_case import ComponentCase, DoesNotApply, output_maps
from p2pzoo.testing.tiny_components import cpu_settings
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.external_weights import without_external

_OTHER_CHANNELS = ((1, 3), (3, 1), (4, 4))  # than (3, 3), which all checks use
_FLOAT64_TOLERANCE = 1e-6  # relative to the largest value: another order of summation changes no more than this
_FLOAT32_TOLERANCE = 1e-4  # the same for float32
_BF16_ERROR = 0.1  # mean difference / mean absolute value: bfloat16 keeps 8 bits, and errors add up over the layers


def check_network_shapes(case: ComponentCase) -> None:
    """Accepts any channel counts, and images that are not square."""
    _assert_output_shapes(case, case.copy_network(), (3, 3), case.size)
    for channels in _OTHER_CHANNELS:
        _assert_output_shapes(case, case.build_network(channels), channels, case.size)
    height, width = case.size[0], 2 * case.size[1]
    _assert_output_shapes(case, case.build_network(size=(height, width)), (3, 3), (height, width))


def check_network_size_divisor(case: ComponentCase) -> None:
    """Accepts sizes that are multiples of `size_divisor` (default 1), and refuses others with a ValueError."""
    network, (side, _) = case.copy_network().eval(), case.size
    divisor = getattr(network, "size_divisor", 1)
    is_valid = isinstance(divisor, int) and divisor >= 1
    assert is_valid, f"`size_divisor` is {divisor!r}: it must be an int of at least 1"
    _assert_output_shapes(case, network, (3, 3), (side + divisor, side + 2 * divisor))
    for rest in sorted({1, divisor // 2} - {0, divisor}):
        for size in ((side + rest, side), (side, side + rest)):
            try:
                _assert_output_shapes(case, network, (3, 3), size)
            except ValueError:
                continue
            except Exception as error:
                problem = f"raises {type(error).__name__}"
            else:
                problem = "raises nothing"
            raise AssertionError(
                f"{problem} for images of {size[0]}×{size[1]}, although size_divisor = {divisor}: raise a ValueError "
                "that names the size"
            )


def check_generator_range(case: ComponentCase) -> None:
    """ŷ is within [-1, 1], also with large weights, as after a long training."""
    inputs = case.example_inputs()
    with torch.no_grad():
        _assert_in_range(case.copy_network()(*inputs), "")
        network = case.copy_network().double()
        generator = torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        y_hat = network(*_in_double(inputs))
        if y_hat.isfinite().all():  # such weights may overflow
            _assert_in_range(y_hat, " with large weights: end with a tanh or a clamp")


def check_generator_time(case: ComponentCase) -> None:
    """If it has `takes_time`, ŷ depends on t, and without t it is that of t = 1."""
    if not case.takes_time:
        raise DoesNotApply("does not take the time")
    network, (x, _) = build_trained_network(case).eval(), case.example_inputs()
    with torch.no_grad():
        at_start, early = (network(x, torch.full((len(x),), t)) for t in (1.0, 0.25))
        assert _is_close([at_start], [network(x)]), "without t it gives another output than at t = 1"
    assert not _is_close([at_start], [early]), "gives one image at all times: its forward ignores t"


def check_discriminator_logits(case: ComponentCase) -> None:
    """D(x, y) is a list of (B, 1, h, w) maps, and `features` has one list of activations for each of them."""
    network, inputs = case.copy_network(), case.example_inputs()
    logits, features = network(*inputs), network.features(*inputs)  # type: ignore[operator]
    assert isinstance(logits, list), f"returns a {type(logits).__name__}, not a list of maps"
    assert logits, "returns an empty list: there must be one map of logits per scale"
    for logit_map in logits:
        is_map = logit_map.ndim == 4 and logit_map.shape[:2] == (len(inputs[0]), 1)
        assert is_map, f"a map of logits has the shape {_shape(logit_map)}, not (B, 1, h, w)"
    is_nested = isinstance(features, list) and all(isinstance(scale, list) and scale for scale in features)
    assert is_nested, "`features` does not return a list of lists of activations, one list per scale"
    assert len(features) == len(logits), f"`features` returns {len(features)} lists for {len(logits)} maps of logits"


def check_network_gradients(case: ComponentCase) -> None:
    """Every parameter with requires_grad gets a finite gradient."""
    network = case.copy_network()
    _weighted_sum(compute_training_output(case, network)).backward()
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    without = [name for name, p in trainable.items() if p.grad is None]
    assert not without, f"no gradient reaches {_first_of(without)}"
    infinite = [name for name, p in trainable.items() if p.grad is not None and not p.grad.isfinite().all()]
    assert not infinite, f"the gradient of {_first_of(infinite)} is nan or inf"


def check_discriminator_gradients_reach_y(case: ComponentCase) -> None:
    """Gradients of the logits and of the features reach ŷ, so that G can learn from them."""
    network, (x, y, *labels) = case.copy_network(), case.example_inputs()
    features = lambda: _features(network, x, y, *labels)  # noqa: E731
    for name, compute in (("its logits", lambda: network(x, y, *labels)), ("its features", features)):
        y.grad = None
        y.requires_grad_()
        _weighted_sum(compute()).backward()
        assert y.grad is not None, f"no gradient of {name} reaches ŷ"
        assert y.grad.isfinite().all(), f"the gradient of {name} at ŷ is nan or inf"
        assert y.grad.abs().sum() > 0, f"the gradient of {name} at ŷ is 0"


def check_network_seed(case: ComponentCase) -> None:
    """One seed gives bit-identical initial weights, and bit-identical outputs in training mode."""
    first, second = case.copy_network(seed=1), case.build_network(seed=1)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), f"'{name}' differs between two networks of one seed"
    outputs = []
    for network in (first, second):
        with rng.torch_seed(2), torch.no_grad():
            outputs.append(output_maps(network(*case.example_inputs())))
    assert all(map(torch.equal, *outputs)), "one seed gives two outputs in training mode"


def check_network_modes(case: ComponentCase) -> None:
    """Eval mode samples no random numbers, changes no buffers and treats each image of a batch independently.

    A generator with `sees_target` may sample in eval mode too. Only layers (norms, dropout, spectral norm) differ
    between training and eval mode, not the network's own code.
    """
    network, inputs = build_trained_network(case).eval(), case.example_inputs()
    tensors_before = copy.deepcopy(network.state_dict())
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        rng_state = torch.get_rng_state()
        in_batch = output_maps(network(*case.example_inputs()))
        draws = not torch.equal(rng_state, torch.get_rng_state())
        if draws and getattr(network, "sees_target", False):
            raise DoesNotApply("draws noise in eval mode, as a generator with `sees_target` may")
        assert not draws, "draws random numbers in eval mode"
        if not all(map(torch.equal, in_batch, output_maps(network(*case.example_inputs())))):
            raise DoesNotApply("gives two outputs for the same x: see the check `random_numbers`")
        single_outputs = [
            output_maps(network(*(each[i : i + 1].clone() for each in inputs))) for i in range(len(inputs[0]))
        ]
        alone = [torch.cat(rows) for rows in zip(*single_outputs, strict=True)]
        assert _is_close(in_batch, alone), "in eval mode an image's output depends on the rest of its batch"
        tensors = network.state_dict()
        changed = [name for name, tensor in tensors.items() if not torch.equal(tensor, tensors_before[name])]
        assert not changed, f"changes {_first_of(changed)} in eval mode"

        network.train()
        for layer in network.modules():
            if _is_torch_layer(layer):
                layer.training = False
        is_same = _is_close(output_maps(network(*case.example_inputs())), in_batch)
        assert is_same, "its own code differs between training and eval mode: give the reason in `known_failures`"


def check_network_file(case: ComponentCase) -> None:
    """A network that is loaded from its safetensors file gives bit-identical outputs."""
    network, inputs = build_trained_network(case).eval(), case.example_inputs()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder) / "model.safetensors"
        if case.kind == "generator":
            safetensors_io.save_model(file, network, network_header(case, network))
            loaded, _ = load_network(file, Registry([case.component.entry]))
        else:
            safetensors_io.save_tensors(file, without_external(network, network.state_dict()), {})
            loaded = case.build_network(seed=2)
            safetensors_io.load_into(loaded, safetensors_io.load_tensors(file)[0], "the file")
        outputs = _run_seeded(network, inputs), _run_seeded(loaded.eval(), inputs)
    message = "gives another output after it is loaded from its file: is one of its tensors not in the state dict?"
    assert all(map(torch.equal, *outputs)), message


def check_network_meta(case: ComponentCase) -> None:
    """Can be built and run on the meta device, where nothing is allocated."""
    with on_meta():
        network = build_network(case.component, (3, 3), case.size)
        inputs = [torch.zeros(each.shape, dtype=each.dtype) for each in case.example_inputs()]
        output = output_maps(network(*inputs))
    allocated = [name for name, tensor in network.state_dict().items() if not tensor.is_meta]
    assert not allocated, f"allocates {_first_of(allocated)}"
    assert all(each.is_meta for each in output), "allocates its output"


def check_network_bf16(case: ComponentCase) -> None:
    """In bfloat16, outputs and gradients are finite, and outputs are close to those in float32.

    Under autocast, as on a GPU, and with the convolutions that the core computes itself on a CPU.
    """
    network, inputs = build_trained_network(case).eval(), case.example_inputs()
    with torch.no_grad():
        expected = _run_seeded(network, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        _check_bf16_pass(network, _run_seeded(network, inputs), expected)
    with _no_warnings():
        prepared = Engine(cpu_settings(precision="bf16")).prepare_model(network)
    _check_bf16_pass(network, _run_seeded(prepared, inputs), expected)


def _check_bf16_pass(network: nn.Module, output: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    _weighted_sum([each.float() for each in output]).backward()
    for half, single in zip(output, expected, strict=True):
        assert half.isfinite().all(), "its output in bf16 is nan or inf"
        error = ((half.float() - single).abs().mean() / single.abs().mean().clamp(min=1e-3)).item()
        assert error < _BF16_ERROR, f"its output in bf16 differs by {error:.0%}, {_BF16_ERROR:.0%} is allowed"
    infinite = [name for name, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert not infinite, f"the gradient of {_first_of(infinite)} in bf16 is nan or inf"
    network.zero_grad()


def check_network_compile(case: ComponentCase) -> None:
    """torch.compile (backend aot_eager, fullgraph) gives the same outputs and gradients."""
    network = _make_repeatable(case, case.copy_network())
    original = copy.deepcopy(network)
    torch.compiler.reset()
    try:
        with _no_warnings():
            compiled = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)
            _assert_same_step(case, original, compiled, network)
    finally:
        torch.compiler.reset()


def check_network_export(case: ComponentCase) -> None:
    """torch.export traces the network in eval mode, and the exported program gives the same output."""
    network, inputs = build_trained_network(case).eval(), case.example_inputs()
    with torch.no_grad(), _no_warnings():
        exported = torch.export.export(network, inputs).module()
        is_same = _is_close(_run_seeded(exported, inputs), _run_seeded(network, inputs))
        assert is_same, "gives another output after torch.export"


def check_network_rewrites(case: ComponentCase) -> None:
    """The core's changes for speed (kernels, memory format) and memory (checkpointing) change only the rounding."""
    for settings in (cpu_settings(), cpu_settings(checkpointing=True, channels_last=False)):
        network = _make_repeatable(case, build_trained_network(case))
        original = copy.deepcopy(network)
        with _no_warnings():  # it may have no layers for activation checkpointing
            prepared = Engine(settings).prepare_model(network)
        _assert_same_step(case, original, prepared, network)
    if case.kind == "generator":
        x, *_ = case.example_inputs()
        network = build_trained_network(case).eval()
        with _no_warnings():
            optimized = optimize_for_eval(network, x[:1])  # the network itself if the faster copy differs from it
        message = "in eval mode it gives another output after batch norms are fused into convolutions"
        assert optimized is not network, message


# --- shared by the checks --------------------------------------------------------------------------------------


def _assert_in_range(y_hat: Tensor, remark: str) -> None:
    assert y_hat.isfinite().all(), "ŷ has values that are nan or inf"
    assert y_hat.abs().max() <= 1, f"values of ŷ are {y_hat.min():.3g} to {y_hat.max():.3g}, not within [-1, 1]{remark}"


def _assert_output_shapes(
    case: ComponentCase, network: nn.Module, channels: tuple[int, int], size: tuple[int, int]
) -> None:
    """Check the output for x and y with these channels and this (H, W)."""
    inputs = case.example_inputs(channels, size)
    with torch.no_grad():
        output = network(*inputs)
    if case.kind == "generator":
        expected = (len(inputs[0]), channels[1], *size)
        assert isinstance(output, Tensor), f"returns a {type(output).__name__}, not a tensor"
        assert output.shape == expected, f"ŷ for x of {_shape(inputs[0])} is {_shape(output)}, not {expected}"
    else:
        for logit_map in output_maps(output):
            message = f"logits for y of {_shape(inputs[1])} are {_shape(logit_map)}"
            assert logit_map.shape[:2] == (len(inputs[0]), 1), message
            assert min(logit_map.shape[2:]) >= 1, f"{message}: no logit is left"


def build_trained_network(case: ComponentCase) -> nn.Module:
    """A network as after some training: weights and running statistics differ from their initial values."""
    network, generator = case.copy_network(seed=1), torch.Generator().manual_seed(6)
    change_weights(network, 0.02)
    with torch.no_grad():
        for norm in network.modules():
            is_trainable = all(parameter.requires_grad for parameter in norm.parameters())
            if isinstance(norm, nn.modules.batchnorm._NormBase) and norm.running_mean is not None and is_trainable:
                assert norm.running_var is not None
                norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator) * 0.1)
                norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)
    return network


def compute_training_output(case: ComponentCase, network: nn.Module) -> list[Tensor]:
    """What the network computes in training: ŷ, with its own losses if it sees the target, or the logits."""
    if not getattr(network, "sees_target", False):
        return output_maps(network(*case.example_inputs()))
    y_hat, losses = call_with_target(case, network)
    return [y_hat, *losses.values()]


def call_with_target(case: ComponentCase, network: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
    (x, *_), (y, *_) = case.example_inputs(), case.example_inputs(seed=1)
    try:
        with rng.torch_seed(0):
            return unpack_seen_target(network, x, y)
    except UserError as error:
        raise AssertionError(error.faults[0]) from None


def _run_seeded(network: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output for the same random numbers in each call."""
    with rng.torch_seed(6):
        return output_maps(network(*inputs))


def _make_repeatable(case: ComponentCase, network: nn.Module) -> nn.Module:
    """The network in float64 and without dropout, or in eval mode if its own code draws random numbers.

    Another memory format gives dropout's random numbers to other values.
    """
    network = network.double()
    for layer in network.modules():
        if _is_dropout(layer):
            layer.training = False
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        rng_state = torch.get_rng_state()
        copy.deepcopy(network)(*_in_double(case.example_inputs()))
        if not torch.equal(rng_state, torch.get_rng_state()):
            network.eval()
    return network


def _assert_same_step(case: ComponentCase, original: nn.Module, rewritten: Any, owner: nn.Module) -> None:
    """Check that two networks of the same weights give the same outputs and gradients.

    owner  the module that holds the parameters of `rewritten`
    """
    inputs = _in_double(case.example_inputs())
    outputs = []
    for network in (original, rewritten):
        with rng.torch_seed(3):
            output = output_maps(network(*inputs))
        outputs.append([each.detach() for each in output])
        _weighted_sum(output).backward()
    assert _is_close(*outputs), "gives another output"
    for (name, expected), parameter in zip(original.named_parameters(), owner.parameters(), strict=True):
        if expected.grad is not None:
            assert parameter.grad is not None, f"no gradient reaches '{name}'"
            assert _is_close([expected.grad], [parameter.grad]), f"gives '{name}' another gradient"


def _in_double(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The images in float64; labels as they are."""
    return [each.double() if each.is_floating_point() else each for each in inputs]


def _is_close(first: list[Tensor], second: list[Tensor]) -> bool:
    is_double = all(each.dtype == torch.float64 for each in first)
    for a, b in zip(first, second, strict=True):
        tolerance = (_FLOAT64_TOLERANCE if is_double else _FLOAT32_TOLERANCE) * max(float(a.abs().max()), 1e-3)
        if a.shape != b.shape or not torch.allclose(a, b, rtol=0, atol=tolerance):
            return False
    return True


def _weighted_sum(output: Any) -> Tensor:
    """A scalar with a random weight for each value: a plain sum is constant after an instance norm."""
    generator = torch.Generator().manual_seed(4)
    means = [
        (each * torch.randn(each.shape, generator=generator).to(each.dtype)).mean() for each in output_maps(output)
    ]
    return torch.stack(means).sum()


def _features(network: Any, *inputs: Tensor) -> list[Tensor]:
    return [activation for scale in network.features(*inputs) for activation in scale]


def _is_torch_layer(layer: nn.Module) -> bool:
    is_known = _is_dropout(layer) or isinstance(layer, nn.modules.batchnorm._NormBase)
    return is_known or type(layer).__module__.startswith("torch.")


def _is_dropout(layer: nn.Module) -> bool:
    """Whether the layer is a dropout of torch, or one such as timm's DropPath."""
    return isinstance(layer, nn.modules.dropout._DropoutNd) or type(layer).__name__.startswith("Drop")


def network_header(case: ComponentCase, network: nn.Module) -> dict[str, Any]:
    """The header of a model file, as far as `load_network` needs it."""
    component = case.component
    return {
        "generator": {"use": component.entry.full_name, "params": schema.to_jsonable(component.values)},
        "in_channels": 3,
        "out_channels": 3,
        "size": list(case.size),
        "size_divisor": getattr(network, "size_divisor", 1),
        **({HEADER_KEY: digest} if (digest := digest_external(network)) else {}),
    }


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _first_of(names: list[str]) -> str:
    return f"'{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
