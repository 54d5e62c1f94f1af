"""The process of a recipe or of a model file: build it, and the channels of the G that it trains."""

from __future__ import annotations

from torch import nn

from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.plugin import schema
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


def find_batch_norm_fault(experiment: Experiment, G: nn.Module) -> list[str]:
    """Why G cannot be trained with a process; empty if it can.

    Batch norm mixes the times of a batch in training, and not at use, where all images have one time.
    """
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in G.modules()):
        return []
    assert experiment.process
    generator, recipe = experiment.generator, experiment.recipe
    norm = schema.get_params(generator.factory).get("norm")
    has_group = norm is not None and _accepts(norm, "group")
    advice = (
        'set generator.norm = "group"' if has_group else 'use another generator, such as "unet" with norm = "group"'
    )
    key = ("generator", "norm") if ("generator", "norm") in recipe.origins else ("process", "use")
    return [
        f"{recipe.where(key)}  [process] use = \"{experiment.process.entry.name}\": generator '{generator.entry.name}' "
        f"has batch norm, which mixes times in training: {advice}"
    ]


def _accepts(param: schema.Param, value: str) -> bool:
    try:
        param.check(value)
    except ValueError:
        return False
    return True
