"""Checks of several kinds: what a component may change, sample and read besides its arguments.

Each check uses the component as training or evaluation does, through a `_Use`.
"""

from __future__ import annotations

import contextlib
import copy
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from p2pzoo.plugin.batch import Batch, BatchField
from p2pzoo.testing import augmentations, metrics, processes
from p2pzoo.testing.component_case import ComponentCase, DoesNotApply, first_line, output_maps, random_states
from p2pzoo.testing.losses import Game, describe_side, losses_by_side
from p2pzoo.utils import rng

_ALL_FIELDS: tuple[str, ...] = (*get_args(BatchField), "features", "z")  # what `needs` of a loss may name
_TAKES_CPU_TENSORS = ("aten::index", "aten::copy_")  # an index, and the source of a copy, may be on the CPU


def check_keeps_inputs(case: ComponentCase) -> None:
    """Changes none of its arguments in place."""
    for use in _iter_uses(case):
        before = {name: tensor.detach().clone() for name, tensor in use.arguments.items()}
        use.compute()
        for name, tensor in use.arguments.items():
            is_same = torch.equal(tensor.detach(), before[name])
            assert is_same, f"{use.name}changes {name} in place: compute a new tensor instead"


def check_own_random_numbers(case: ComponentCase) -> None:
    """Takes random numbers from torch's global generator only, and gives the same bits for the same seed."""
    for use in _iter_uses(case):
        before = random_states()
        first = use.compute_seeded()
        for name, state in random_states().items():
            assert state == before[name], f"{use.name}samples {name}: p2pzoo seeds those of torch's functions only"
        second = use.compute_seeded()
        assert all(map(torch.equal, first, second)), (
            f"{use.name}gives another output for the same arguments, weights and seed: it has its own random numbers, "
            "or state that is in no buffer. Use torch's global generator, as in torch.rand(...), and buffers"
        )


def check_computes_on_device(case: ComponentCase) -> None:
    """Makes no tensor on the CPU while its arguments are on another device."""
    for use in _iter_uses(case, device="meta"):
        try:
            with _OneDevice(), _autocast_on_meta():  # type: ignore[no-untyped-call]
                output = use.compute()
        except AssertionError:
            raise
        except Exception as error:
            if "device" in str(error):
                raise AssertionError(f"{use.name}mixes tensors of two devices: {first_line(error)}") from None
            raise DoesNotApply(f"does not compute on the meta device: {first_line(error)}") from None
        assert all(each.is_meta for each in output), f"{use.name}gives an output on the CPU for arguments elsewhere"


def check_declared_needs(case: ComponentCase) -> None:
    """Reads no field of the batch, and no features or z of G, that are not in the `needs` of its registration."""
    declared = case.component.entry.needs
    if _error_with_fields(case, declared) is None:
        return
    for name in (each for each in _ALL_FIELDS if each not in declared):
        if error := _error_with_fields(case, [field for field in _ALL_FIELDS if field != name]):
            _raise_if_it_fails_anyway(case)
            owner = "G" if name in ("features", "z") else "the batch"
            raise AssertionError(
                f'reads `{name}` of {owner} ({first_line(error)}), but is registered without needs=("{name}",)'
            ) from error


def _error_with_fields(case: ComponentCase, fields: Collection[str]) -> Exception | None:
    try:
        for use in _iter_uses(case, fields=fields):
            use.compute()
    except DoesNotApply:
        raise
    except Exception as error:
        return error
    return None


def _raise_if_it_fails_anyway(case: ComponentCase) -> None:
    if error := _error_with_fields(case, _ALL_FIELDS):
        raise DoesNotApply(f"fails with every field of the batch: {first_line(error)}") from error


# --- one use of a component of each kind ------------------------------------------------------------------------


@dataclass
class _Use:
    """One use of a component.

    name       what is used, for messages: "in eval mode it ", or "" if there is one use only
    arguments  {name: tensor}
    compute    computes all outputs from these arguments
    module     the nn.Module with the component's state, if it is one
    """

    name: str
    arguments: Mapping[str, Tensor]
    compute: Callable[[], list[Tensor]]
    module: nn.Module | None = None

    def compute_seeded(self) -> list[Tensor]:
        """The outputs with torch's generator at one seed. Parameters and buffers are as before afterwards."""
        state = copy.deepcopy(self.module.state_dict()) if self.module else {}
        with rng.torch_seed(7):
            output = [each.detach().clone() for each in self.compute()]
        if self.module:
            self.module.load_state_dict(state)
        return output


def _iter_uses(case: ComponentCase, device: str = "cpu", fields: Collection[str] = _ALL_FIELDS) -> Iterator[_Use]:
    """fields: those of the batch that are not None, and "features" and "z" if G has them."""
    if case.kind in ("generator", "discriminator"):
        yield from _network_uses(case, device)
    elif case.kind in ("loss", "gan_loss"):
        yield from _loss_uses(case, device, fields)
    elif case.kind == "metric":
        yield _metric_use(case, fields)
    elif case.kind == "process":
        yield from _process_uses(case, device)
    else:
        yield _augmentation_use(case, device, fields)


def _network_uses(case: ComponentCase, device: str) -> Iterator[_Use]:
    network: Any = case.copy_network().to(device)
    for mode in ("training", "eval"):
        names = ("x", "t") if case.takes_time else ("x", "y", "labels")
        arguments = dict(zip(names, (each.to(device) for each in case.example_inputs()), strict=False))

        def compute(arguments: dict[str, Tensor] = arguments) -> list[Tensor]:
            with torch.no_grad():
                output = output_maps(network(*arguments.values()))
                features = network.features(*arguments.values()) if hasattr(network, "features") else []
            return [*output, *(each for each in tree_leaves(features) if isinstance(each, Tensor))]

        network.train(mode == "training")
        yield _Use(f"in {mode} mode it ", arguments, compute, network)


def _loss_uses(case: ComponentCase, device: str, fields: Collection[str]) -> Iterator[_Use]:
    for side, compute_loss in losses_by_side(case, device):
        game = Game(device=device, parts=fields)
        game.batch = _with_fields(game.batch, fields)
        out = game.outputs(side)
        arguments = _batch_tensors(game.batch) | {"ŷ": out.y_hat}
        owner = getattr(compute_loss, "__self__", compute_loss)
        yield _Use(
            f"{describe_side(side)} " if case.kind == "gan_loss" else "",
            arguments,
            lambda compute_loss=compute_loss, out=out: [compute_loss(out)],  # type: ignore[misc]
            owner if isinstance(owner, nn.Module) else None,
        )


def _metric_use(case: ComponentCase, fields: Collection[str]) -> _Use:
    example = metrics.build_example(case)
    batch, y_hat = _with_fields(example.batch, fields), example.noisy.clone()
    return _Use("", _batch_tensors(batch) | {"ŷ": y_hat}, lambda: [*example.metric.measure(batch, y_hat).values()])


def _augmentation_use(case: ComponentCase, device: str, fields: Collection[str]) -> _Use:
    augmentation, arguments = augmentations.example_call(case, with_labels="labels" in fields)
    augmentation = augmentation.to(device) if isinstance(augmentation, nn.Module) else augmentation
    arguments = {name: tensor.to(device) for name, tensor in arguments.items()}
    inputs = [arguments.get(name) for name in ("x", "y", "labels", "random")]
    return _Use("", arguments, lambda: [each for each in augmentation(*inputs) if each is not None])


def _process_uses(case: ComponentCase, device: str) -> Iterator[_Use]:
    for process in processes.iter_example_processes(case):
        arguments = {name: tensor.to(device) for name, tensor in processes.example_arguments().items()}

        def noised(process: Any = process, arguments: dict[str, Tensor] = arguments) -> list[Tensor]:
            return [*process.noised(*arguments.values())]

        yield _Use("`noised` ", arguments, noised)
        sampler = processes.build_example_sampler(process, device)

        def sample(sampler: Any = sampler, arguments: dict[str, Tensor] = arguments) -> list[Tensor]:
            with torch.no_grad():
                return [sampler(arguments["x"])]

        yield _Use("the sampler ", {"x": arguments["x"]}, sample, sampler)


def _with_fields(batch: Batch, fields: Collection[str]) -> Batch:
    labels = batch.labels if "labels" in fields else None
    return replace(batch, labels=labels, blocks=batch.blocks if "blocks" in fields else ())


def _batch_tensors(batch: Batch) -> dict[str, Tensor]:
    labels = {} if batch.labels is None else {"labels": batch.labels}
    return {"x": batch.x, "y": batch.y, **labels}


@contextlib.contextmanager
def _autocast_on_meta() -> Iterator[None]:
    """`torch.autocast(x.device.type)`, which torch refuses for the meta device, does nothing there."""
    original = torch.autocast

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return contextlib.nullcontext() if device_type == "meta" else original(device_type, *args, **kwargs)

    with mock.patch.object(torch, "autocast", autocast):
        yield


class _OneDevice(TorchDispatchMode):
    """Refuses an operation on tensors of the CPU and of the meta device, as a GPU does; torch often does not."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        is_mixed = any(each.is_meta for each in tensors) and any(not each.is_meta and each.ndim for each in tensors)
        name = func._schema.name
        if is_mixed and not name.startswith(_TAKES_CPU_TENSORS):
            frame = next(f for f in reversed(traceback.extract_stack()[:-1]) if "/torch/" not in f.filename)
            raise AssertionError(
                f"computes {name.removeprefix('aten::')} with a tensor on the CPU and one on the device of x "
                f"({frame.filename.rpartition('/')[2]}:{frame.lineno}): create it with device=x.device, or keep it in "
                "a buffer"
            )
        return func(*args, **kwargs)
