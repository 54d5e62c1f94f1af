"""What generators and discriminators promise."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p2pzoo.compute.engine import Engine
from p2pzoo.models import safetensors_io
from p2pzoo.models.build import build
from p2pzoo.models.model_file import load_model
from p2pzoo.models.test_modes import prepared
from p2pzoo.plugin import schema
from p2pzoo.plugin.registry import Registry
from p2pzoo.testing.kit import Case, maps
from p2pzoo.testing.partners import compute
from p2pzoo.utils import rng

CHANNELS = ((3, 3), (1, 3), (3, 1), (4, 4))
ROUNDING = 1e-6  # of the largest value, in float64: what another order of summing may change
BF16 = 0.1  # mean difference over mean absolute value


def check_shapes(case: Case) -> None:
    """Any channels; any size that `size_divisor` allows, as wide as high or not."""
    for channels in CHANNELS:
        _shown(case, case.network(channels), channels, case.size)
    height, width = case.size[0], 2 * case.size[1]
    _shown(case, case.network(size=(height, width)), (3, 3), (height, width))
    if case.kind == "generator":
        network, (side, _) = case.network(), case.size
        divisor = int(getattr(network, "size_divisor", 1))
        assert divisor >= 1, f"size_divisor is {divisor}"
        _shown(case, network, (3, 3), (side + divisor, side + 2 * divisor))
        if divisor > 1:
            odd = (side + divisor // 2, side)
            with contextlib.suppress(ValueError):
                _shown(case, network, (3, 3), odd)


def check_range(case: Case) -> None:
    """ŷ lies in [-1, 1]."""
    with torch.no_grad():
        y_hat = case.network()(*case.inputs())
    assert y_hat.isfinite().all(), "ŷ holds values that are nan or inf"
    assert y_hat.abs().max() <= 1, f"ŷ reaches from {y_hat.min():.3g} to {y_hat.max():.3g}, and not within [-1, 1]"


def check_logits(case: Case) -> None:
    """D(x, y) is a list of (B, 1, h, w) maps; `features` has a list of activations for each of them."""
    network, shown = case.network(), case.inputs()
    logits, features = network(*shown), network.features(*shown)  # type: ignore[operator]
    assert isinstance(logits, list), f"gives a {type(logits).__name__} where a list of maps is expected"
    assert logits, "gives no map of logits"
    for each in logits:
        assert each.ndim == 4, f"a map of logits is {_told(each)}, not (B, 1, h, w)"
        assert each.shape[:2] == (len(shown[0]), 1), f"a map of logits is {_told(each)}, not (B, 1, h, w)"
    nested = isinstance(features, list) and all(isinstance(scale, list) and scale for scale in features)
    assert nested, "features gives no list of lists of activations"
    assert len(features) == len(logits), f"features has {len(features)} lists, and there are {len(logits)} maps"


def check_gradients(case: Case) -> None:
    """Every parameter that asks for a gradient gets a finite one."""
    network = case.network()
    _scalar(network(*case.inputs())).backward()
    asking = {name: p for name, p in network.named_parameters() if p.requires_grad}
    without = [name for name, p in asking.items() if p.grad is None]
    assert not without, f"no gradient reaches {_first(without)}"
    wild = [name for name, p in asking.items() if p.grad is not None and not p.grad.isfinite().all()]
    assert not wild, f"the gradient of {_first(wild)} is not finite"


def check_gradients_reach_y(case: Case) -> None:
    """What D says of ŷ, in logits and in features, can teach G."""
    network, (x, y) = case.network(), case.inputs()
    for name, output in (("its logits", lambda: network(x, y)), ("its features", lambda: _features(network, x, y))):
        y.grad = None
        y.requires_grad_()
        _scalar(output()).backward()
        assert y.grad is not None, f"no gradient of {name} reaches ŷ"
        assert y.grad.isfinite().all(), f"the gradient that {name} send to ŷ is not finite"
        assert y.grad.abs().sum() > 0, f"the gradient that {name} send to ŷ is 0"


def check_seed(case: Case) -> None:
    """One seed, the same bits: of the first weights, and of the output in training."""
    one, other = case.network(seed=1), case.network(seed=1)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), f"'{name}' differs between two that one seed made"
    outputs = []
    for network in (one, other):
        with rng.torch_seed(2), torch.no_grad():
            outputs.append(maps(network(*case.inputs())))
    assert all(map(torch.equal, *outputs)), "one seed gives two outputs in training"


def check_modes(case: Case) -> None:
    """In eval mode nothing is drawn, nothing kept, and an image's output does not depend on the rest of the batch. What
    differs in training is the doing of layers: norms, dropout, spectral norm; the network's own code does the same.
    """
    network, shown = _used(case).eval(), case.inputs()
    kept = copy.deepcopy(network.state_dict())
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        random = torch.get_rng_state()
        together = maps(network(*shown))
        assert torch.equal(random, torch.get_rng_state()), "draws random numbers in eval mode"
        apart = [maps(network(*(each[i : i + 1] for each in shown))) for i in range(len(shown[0]))]
        alone = [torch.cat(rows) for rows in zip(*apart, strict=True)]
        assert _close(together, alone), "in eval mode an image's output depends on the rest of its batch"
        changed = [name for name, tensor in network.state_dict().items() if not torch.equal(tensor, kept[name])]
        assert not changed, f"changes {_first(changed)} in eval mode"

        network.train()
        for layer in network.modules():
            if _of_torch(layer):
                layer.training = False
        same = _close(maps(network(*shown)), together)
        assert same, "its own code does something else in training than in eval mode: declare why in known_failures"


def check_file(case: Case) -> None:
    """Its tensors go through a safetensors file, and the network that is made of that file gives the same bits."""
    network, shown = _used(case).eval(), case.inputs()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder) / "model.safetensors"
        if case.kind == "generator":
            safetensors_io.save_model(file, network, _header(case, network))
            again, _ = load_model(file, Registry([case.component.entry]))
        else:
            safetensors_io.save_tensors(file, network.state_dict(), {})
            with torch.device("meta"):
                again = build(case.component, (3, 3), case.size)
            again = again.to_empty(device="cpu")
            safetensors_io.load_into(again, safetensors_io.load_tensors(file)[0], "the file")
        outputs = maps(network(*shown)), maps(again.eval()(*shown))
    told = "gives something else once it is read from its file: does it keep values that are in no state_dict?"
    assert all(map(torch.equal, *outputs)), told


def check_meta(case: Case) -> None:
    """It can be built, and asked for its output's shape, on the meta device, where nothing is allocated."""
    with torch.device("meta"):
        network = build(case.component, (3, 3), case.size)
        shown = [torch.zeros(each.shape) for each in case.inputs()]
        output = maps(network(*shown))
    real = [name for name, tensor in network.state_dict().items() if not tensor.is_meta]
    assert not real, f"allocates {_first(real)}"
    assert all(each.is_meta for each in output), "its output is allocated"


def check_bf16(case: Case) -> None:
    """Under autocast to bfloat16 outputs and gradients are finite, and the outputs about the same."""
    network, shown = _used(case).eval(), case.inputs()
    with torch.no_grad():
        expected = maps(network(*shown))
    with torch.autocast("cpu", torch.bfloat16):
        output = maps(network(*shown))
    _scalar([each.float() for each in output]).backward()
    for one, other in zip(output, expected, strict=True):
        assert one.isfinite().all(), "its output under bf16 autocast is not finite"
        error = ((one.float() - other).abs().mean() / other.abs().mean().clamp(min=1e-3)).item()
        assert error < BF16, f"its output under bf16 autocast differs by {error:.0%}"
    wild = [name for name, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert not wild, f"the gradient of {_first(wild)} under bf16 autocast is not finite"


def check_compile(case: Case) -> None:
    """torch.compile (backend aot_eager) traces it whole, forwards and backwards, to the same values."""
    network = _settled(case, case.network())
    plain = copy.deepcopy(network)
    torch.compiler.reset()
    try:
        with _quiet():
            _same_game(case, plain, torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False), network)
    finally:
        torch.compiler.reset()


def check_export(case: Case) -> None:
    """torch.export traces it in eval mode, and the exported program gives what the network gives."""
    network, inputs = _used(case).eval(), case.inputs()
    with torch.no_grad(), _quiet():
        exported = torch.export.export(network, inputs).module()
        assert _close(maps(exported(*inputs)), maps(network(*inputs))), "gives other values once it is exported"


def check_rewrites(case: Case) -> None:
    """What the core does for speed (kernels, memory format) or memory (checkpointing) changes nothing but rounding."""
    for settings in (compute(), compute(checkpointing=True, channels_last=False)):
        network = _settled(case, _used(case))
        plain = copy.deepcopy(network)
        with _quiet():  # it may have no part that checkpointing could compute again
            placed = Engine(settings).prepare_model(network)
        _same_game(case, plain, placed, network)
    if case.kind == "generator":
        [x] = case.inputs()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            prepared(_used(case).eval(), x[:1])
        told = [str(each.message) for each in said if "folded" in str(each.message)]
        assert not told, f"in eval mode: {_first(told)}"


# --- what they share -------------------------------------------------------------------------------------------


def _shown(case: Case, network: nn.Module, channels: tuple[int, int], size: tuple[int, int]) -> None:
    """Shapes of what the network gives for x and y of these channels and this (H, W)."""
    shown = case.inputs(channels, size)
    with torch.no_grad():
        output = network(*shown)
    if case.kind == "generator":
        expected = (len(shown[0]), channels[1], *size)
        assert isinstance(output, Tensor), f"gives a {type(output).__name__}, not a tensor"
        assert output.shape == expected, f"ŷ of a {_told(shown[0])} x is {_told(output)}, not {expected}"
    else:
        for each in maps(output):
            assert each.shape[:2] == (len(shown[0]), 1), f"logits of {_told(shown[1])} y are {_told(each)}"
            assert min(each.shape[2:]) >= 1, f"no logit is left of {_told(shown[1])} y"


def _used(case: Case) -> nn.Module:
    """As after some training: norms have seen images, and nothing is at its first value."""
    network, draw = case.network(seed=1), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.02)
        for norm in network.modules():
            learns = all(parameter.requires_grad for parameter in norm.parameters())
            if isinstance(norm, nn.modules.batchnorm._NormBase) and norm.running_mean is not None and learns:
                assert norm.running_var is not None
                norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=draw) * 0.1)
                norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=draw) + 0.5)
    return network


def _settled(case: Case, network: nn.Module) -> nn.Module:
    """In float64, and without dropout, whose numbers fall elsewhere in another memory format; in eval mode altogether
    where the network draws numbers of its own.
    """
    network = network.double()
    for layer in network.modules():
        if _drops(layer):
            layer.training = False
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        random = torch.get_rng_state()
        copy.deepcopy(network)(*(each.double() for each in case.inputs()))
        if not torch.equal(random, torch.get_rng_state()):
            network.eval()
    return network


def _same_game(case: Case, plain: nn.Module, rewritten: Any, own: nn.Module) -> None:
    """Two networks of the same weights: the same outputs, the same gradients."""
    shown = [each.double() for each in case.inputs()]
    outputs = []
    for network in (plain, rewritten):
        with rng.torch_seed(3):
            output = maps(network(*shown))
        outputs.append([each.detach() for each in output])
        _scalar(output).backward()
    assert _close(*outputs), "gives another output"
    for (name, one), other in zip(plain.named_parameters(), own.parameters(), strict=True):
        if one.grad is not None:
            assert other.grad is not None, f"no gradient reaches '{name}'"
            assert _close([one.grad], [other.grad]), f"the gradient of '{name}' is another one"


def _close(one: list[Tensor], other: list[Tensor]) -> bool:
    exact = all(each.dtype == torch.float64 for each in one)
    for a, b in zip(one, other, strict=True):
        room = (ROUNDING if exact else 1e-4) * max(float(a.abs().max()), 1e-3)
        if a.shape != b.shape or not torch.allclose(a, b, rtol=0, atol=room):
            return False
    return True


def _scalar(output: Any) -> Tensor:
    """A number to differentiate, in which each value has a weight of its own: norms make plain sums constant."""
    draw = torch.Generator().manual_seed(4)
    weighted = [(each * torch.randn(each.shape, generator=draw).to(each.dtype)).mean() for each in maps(output)]
    return torch.stack(weighted).sum()


def _features(network: Any, x: Tensor, y: Tensor) -> list[Tensor]:
    return [each for scale in network.features(x, y) for each in scale]


def _of_torch(layer: nn.Module) -> bool:
    known = _drops(layer) or isinstance(layer, nn.modules.batchnorm._NormBase)
    return known or type(layer).__module__.startswith("torch.")


def _drops(layer: nn.Module) -> bool:
    """Dropout and its kin, timm's DropPath among them."""
    return isinstance(layer, nn.modules.dropout._DropoutNd) or type(layer).__name__.startswith("Drop")


def _header(case: Case, network: nn.Module) -> dict[str, Any]:
    component = case.component
    return {
        "generator": {"use": component.entry.full_name, "params": schema.to_jsonable(component.values)},
        "in_channels": 3,
        "out_channels": 3,
        "size": list(case.size),
        "size_divisor": getattr(network, "size_divisor", 1),
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _first(names: list[str]) -> str:
    return f"'{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _told(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
