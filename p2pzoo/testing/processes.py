"""Checks of processes: what G sees in training, and the sampler that asks a trained G."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from p2pzoo.models.process import build_process, passes_time
from p2pzoo.testing.component_case import IMAGE_SIDE, ComponentCase, DoesNotApply, first_line, random_states
from p2pzoo.testing.tiny_components import TinyGenerator, TinyTimeGenerator, can_pass_time
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError

_Channels = tuple[int, int]

_OTHER_CHANNELS: tuple[_Channels, ...] = ((1, 1), (1, 3), (4, 2))  # than (3, 3), which all checks use
_OBLONG = (IMAGE_SIDE, 2 * IMAGE_SIDE)
_NUM_TIMES = 1000  # random numbers u on a grid from 0 on, to find which times there are
_PATH_LIMIT = 2  # times of a sampler's path
_MEAN_TOLERANCE = 0.02  # of the mean weight over _NUM_TIMES times
_TOLERANCE = 1e-5  # of values in [-1, 1]: the last operations of a sampler may round


def check_process_shapes(case: ComponentCase) -> str | None:
    """`noised` gives G `channels` channels and a time per image; `loss_weight`, if any, a weight per image.

    May refuse channel counts of x and y that differ.
    """
    refusal = None
    for channels in ((3, 3), *_OTHER_CHANNELS):
        try:
            found = [*iter_example_processes(case, channels)]
        except UserError as error:
            if channels[0] == channels[1]:
                raise
            refusal = error.faults[0]
            continue
        for process, size in itertools.product(found, ((IMAGE_SIDE, IMAGE_SIDE), _OBLONG)):
            seen, t = process.noised(*example_arguments(channels, size).values())
            expected = (2, process.channels, *size)
            assert seen.shape == expected, f"`noised` gives G {tuple(seen.shape)}: it must be {expected}"
            assert seen.dtype == torch.float32, f"`noised` gives G {seen.dtype} for float32 images"
            assert t.shape == (2,), f"`noised` gives times of the shape {tuple(t.shape)}: it must be (2,)"
            assert seen.isfinite().all(), "`noised` gives G values that are nan or inf"
            _check_weights(process)
    return refusal


def _check_weights(process: Any) -> None:
    weight_of = getattr(process, "loss_weight", None)
    if weight_of is None:
        return
    weights = weight_of(_times(process))
    assert weights.shape == (_NUM_TIMES,), f"`loss_weight` gives {tuple(weights.shape)} for {_NUM_TIMES} times"
    is_valid = weights.isfinite().all() and weights.min() >= 0
    assert is_valid, f"`loss_weight` gives weights from {weights.min().item():g} to {weights.max().item():g}"
    mean = weights.mean().item()
    assert abs(mean - 1) < _MEAN_TOLERANCE, f"the weights of `loss_weight` have the mean {mean:.3g}: it must be 1"


def check_process_times(case: ComponentCase) -> None:
    """Times are within [0, 1], and some u in [0, 1) gives t = 1, where translations begin."""
    for process in iter_example_processes(case):
        t = _times(process)
        assert t.isfinite().all(), "a time is nan or inf"
        assert t.min() >= 0, f"a time is {t.min().item():g}, below 0"
        assert t.max() <= 1, f"a time is {t.max().item():g}, above 1"
        assert (t == 1).any(), (
            f"no u gives t = 1: the largest time is {t.max().item():g}, and translations begin at 1, where G is not "
            "trained"
        )


def check_process_repeats(case: ComponentCase) -> None:
    """`noised` gives bit-identical results for the same u and z, and samples no others."""
    arguments = example_arguments()
    for process in iter_example_processes(case):
        before = random_states()
        first, second = (process.noised(*arguments.values()) for _ in range(2))
        for name, state in random_states().items():
            assert state == before[name], f"`noised` samples {name}: its random numbers are u and z"
        assert all(map(torch.equal, first, second)), "`noised` gives another result for the same u and z"


def check_process_batches(case: ComponentCase) -> None:
    """`noised` treats each image of a batch independently."""
    arguments = example_arguments()
    for process in iter_example_processes(case):
        seen, t = process.noised(*arguments.values())
        alone, t_alone = process.noised(*(tensor[:1] for tensor in arguments.values()))
        is_same = torch.equal(seen[:1], alone) and torch.equal(t[:1], t_alone)
        assert is_same, "`noised` gives an image another result alone than in a batch"


def check_process_time_is_seen(case: ComponentCase) -> None:
    """What G sees tells times apart, even where x, y and z are 0: a generator's output depends on t."""
    process = build_example_process(case)
    u, t = _grid(), _times(process)
    early, late = int(t.argmin()), int(t.argmax())
    if t[early] == t[late]:
        raise DoesNotApply("it has one time only")
    arguments = example_arguments()
    zeros = [torch.zeros_like(arguments[name]) for name in "xy"]
    seen, _ = process.noised(*zeros, u[[early, late]], torch.zeros_like(arguments["z"]))
    with rng.torch_seed(0), torch.no_grad():
        y_hat = TinyGenerator(process.channels, 3)(seen)
    difference = (y_hat[0] - y_hat[1]).abs().max().item()
    assert difference > _TOLERANCE, (
        f"G sees the same at t = {t[early].item():g} and t = {t[late].item():g} for x = y = z = 0: add a channel with t"
    )


def check_process_sampler(case: ComponentCase) -> None:
    """`sampler(G)` is a module x -> ŷ in [-1, 1], for sides that differ too, with no parameters besides those of G.

    It passes the time to a G that takes it, beginning at t = 1, if the process has `passes_time`. The last image of its
    `path`, if it has one, is the translation.
    """
    for process in iter_example_processes(case):
        _check_sampler(process, (3, 3))


def _check_sampler(process: Any, channels: _Channels) -> None:
    G = _tiny_generator(process, channels)
    sampler = process.sampler(G)
    assert isinstance(sampler, nn.Module), f"`sampler` gives a {type(sampler).__name__}: it must be an nn.Module"
    own, known = {id(p) for p in sampler.parameters()}, {id(p) for p in G.parameters()}
    assert own == known, "the sampler has other parameters than G: model files hold those of G alone"
    assert len(sampler.state_dict()) == len(G.state_dict()), (
        "the sampler has other buffers than G: model files hold those of G"
    )
    times: list[Any] = []
    G.register_forward_pre_hook(lambda _, args, kwargs: times.append([*args, *kwargs.values()][1:]), with_kwargs=True)
    for size in ((IMAGE_SIDE, IMAGE_SIDE), _OBLONG):
        x = example_arguments(channels, size)["x"]
        with torch.no_grad(), rng.torch_seed(0):
            y_hat = sampler(x)
        expected = (2, channels[1], *size)
        assert y_hat.shape == expected, f"the sampler gives {tuple(y_hat.shape)} for x {tuple(x.shape)}"
        assert y_hat.isfinite().all(), "the sampler gives values that are nan or inf"
        assert y_hat.abs().max() <= 1 + _TOLERANCE, f"the sampler gives {y_hat.abs().max().item():.3g}, outside [-1, 1]"
    if passes_time(process):
        _check_passed_times(times)
    if callable(getattr(sampler, "path", None)):
        _check_path(sampler, example_arguments(channels)["x"])


def _check_path(sampler: Any, x: Tensor) -> None:
    with torch.no_grad(), rng.torch_seed(0):
        expected = sampler(x)
    with torch.no_grad(), rng.torch_seed(0):
        path = sampler.path(x, _PATH_LIMIT)
    assert 1 <= len(path) <= _PATH_LIMIT, f"`path` gives {len(path)} images for a limit of {_PATH_LIMIT}"
    times = [t for t, _ in path]
    assert times == sorted(times, reverse=True), f"`path` gives the times {times}: they must decrease"
    assert torch.equal(path[-1][1], expected), "the last image of `path` is not the translation"


def _check_passed_times(calls: Sequence[Sequence[Tensor]]) -> None:
    """calls: what G got besides the images, in each call."""
    for passed in calls:
        assert passed, "the sampler asks G without the time, although the process has `passes_time`"
        [t] = passed
        assert t.shape == (2,), f"the sampler passes times of the shape {tuple(t.shape)} for 2 images: it must be (2,)"
        assert ((t >= 0) & (t <= 1)).all(), f"the sampler passes the time {t.max().item():g}: it must be in [0, 1]"
    assert (calls[0][0] == 1).all(), f"the sampler begins at t = {calls[0][0][0].item():g}: it must begin at 1"


def check_process_modes(case: ComponentCase) -> None:
    """The sampler gives the same ŷ in training and in eval mode, if G does: noise is drawn in both."""
    x = example_arguments()["x"]
    for process in iter_example_processes(case):
        sampler = process.sampler(_tiny_generator(process, (3, 3)))
        y_hats = []
        for is_training in (True, False):
            with torch.no_grad(), rng.torch_seed(0):
                y_hats.append(sampler.train(is_training)(x))
        assert torch.equal(*y_hats), "the sampler gives another ŷ in eval mode than in training mode"


def check_process_never_waits(case: ComponentCase) -> None:
    """`noised` computes on the device of its arguments and reads none of their values: a CUDA graph can repeat it."""
    arguments = [tensor.to("meta") for tensor in example_arguments().values()]
    for process in iter_example_processes(case):
        try:
            seen, t = process.noised(*arguments)
        except Exception as error:
            raise AssertionError(
                f"`noised` does not compute on a device without values, so it waits for a GPU or mixes devices: "
                f"{first_line(error)}"
            ) from None
        if getattr(process, "loss_weight", None):
            assert process.loss_weight(t).is_meta, "`loss_weight` gives weights on the CPU for times elsewhere"
        assert seen.is_meta, "`noised` gives G a tensor on the CPU for arguments elsewhere"
        assert t.is_meta, "`noised` gives times on the CPU for arguments elsewhere"


def build_example_process(case: ComponentCase, channels: _Channels = (3, 3), *, takes_time: bool = False) -> Any:
    """The process for images of IMAGE_SIDE. Raises UserError if it refuses the channels."""
    with case.skip_if_missing():
        return build_process(case.component, channels, (IMAGE_SIDE, IMAGE_SIDE), takes_time=takes_time)


def iter_example_processes(case: ComponentCase, channels: _Channels = (3, 3)) -> Iterator[Any]:
    """The process for a G that sees the time in a channel and, if it can pass the time, for one that takes it."""
    yield build_example_process(case, channels)
    if can_pass_time(case.component):
        yield build_example_process(case, channels, takes_time=True)


def build_example_sampler(process: Any, device: str) -> nn.Module:
    """The sampler around a tiny G, on this device."""
    G = _tiny_generator(process, (3, 3)).to(device)
    return process.sampler(G)  # type: ignore[no-any-return]


def example_arguments(
    channels: _Channels = (3, 3), size: tuple[int, int] = (IMAGE_SIDE, IMAGE_SIDE)
) -> dict[str, Tensor]:
    """x, y, u and z of two images: one time in the middle, and the last one."""
    generator = torch.Generator().manual_seed(11)
    x, y = (torch.rand(2, count, *size, generator=generator) * 2 - 1 for count in channels)
    z = torch.randn(y.shape, generator=generator)
    return {"x": x, "y": y, "u": torch.tensor([0.4, 0.99]), "z": z}


def _grid() -> Tensor:
    return torch.arange(_NUM_TIMES) / _NUM_TIMES


def _times(process: Any) -> Tensor:
    """The times for _NUM_TIMES random numbers u from 0 on."""
    u = _grid()
    x = torch.zeros(_NUM_TIMES, 3, IMAGE_SIDE, IMAGE_SIDE)
    return process.noised(x, x, u, x)[1]  # type: ignore[no-any-return]


def _tiny_generator(process: Any, channels: _Channels) -> TinyGenerator:
    factory = TinyTimeGenerator if passes_time(process) else TinyGenerator
    with rng.torch_seed(0):
        return factory(process.channels, channels[1])
