"""The process of a recipe or of a model file: build it, and the channels of the G that it trains."""

from __future__ import annotations

from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.plugin.protocols import Process
from p2pzoo.utils.errors import UserError


def takes_time(generator: Component) -> bool:
    """Whether a generator has the time as an argument; see `plugin.networks.Generator`."""
    return bool(getattr(generator.factory, "takes_time", False))


def passes_time(process: Process | None) -> bool:
    """Whether G is asked G(seen, t), and not G(seen) with the time in the channels of `seen`."""
    return bool(getattr(process, "passes_time", False))


def build_process(
    component: Component, channels: tuple[int, int], size: tuple[int, int], *, takes_time: bool
) -> Process:
    """Build a process. channels: of x and y. size: (H, W). takes_time: whether its generator has the time as argument.

    Raises UserError if the component refuses them, or passes the time to a generator that does not take it.
    """
    process = component.build(in_channels=channels[0], out_channels=channels[1], size=size, takes_time=takes_time)
    count, name = getattr(process, "channels", None), component.entry.full_name
    if not isinstance(count, int) or count < 1:
        raise UserError(
            f"process '{name}' has channels {count!r}: it must be the number of channels that G sees, at least 1"
        )
    if passes_time(process) and not takes_time:
        raise UserError(
            f"process '{name}' passes the time to the generator (passes_time), and this generator does not take it: "
            "choose a generator that does, or let the process put the time into a channel where takes_time is false"
        )
    return process  # type: ignore[no-any-return]


def make_process(experiment: Experiment, channels: tuple[int, int], size: tuple[int, int]) -> Process | None:
    """The recipe's process; None if it has none. The arguments and errors are those of `build_process`."""
    if experiment.process is None:
        return None
    return build_process(experiment.process, channels, size, takes_time=takes_time(experiment.generator))


def generator_channels(experiment: Experiment, channels: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The channels that G takes and returns. With a process, it takes those of the process in place of those of x."""
    process = make_process(experiment, channels, size)
    return (process.channels, channels[1]) if process else channels
