"""The process of a recipe or of a model file: build it, and the channels of the G that it trains."""

from __future__ import annotations

from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.plugin.protocols import Process
from p2pzoo.utils.errors import UserError


def build_process(component: Component, channels: tuple[int, int], size: tuple[int, int]) -> Process:
    """Build a process. channels: of x and y. size: (H, W). Raises UserError if the component refuses them."""
    process = component.build(in_channels=channels[0], out_channels=channels[1], size=size)
    count = getattr(process, "channels", None)
    if not isinstance(count, int) or count < 1:
        raise UserError(
            f"process '{component.entry.full_name}' has channels {count!r}: it must be the number of channels that G "
            "sees, at least 1"
        )
    return process  # type: ignore[no-any-return]


def make_process(experiment: Experiment, channels: tuple[int, int], size: tuple[int, int]) -> Process | None:
    """The recipe's process; None if it has none. The arguments and errors are those of `build_process`."""
    return build_process(experiment.process, channels, size) if experiment.process else None


def generator_channels(experiment: Experiment, channels: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The channels that G takes and returns. With a process, it takes those of the process in place of those of x."""
    process = make_process(experiment, channels, size)
    return (process.channels, channels[1]) if process else channels
