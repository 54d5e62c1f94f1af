"""The state dict of NVIDIA's code of pix2pixHD for its global generator.

One sequence: [pad, conv, norm, ReLU], [conv, norm, ReLU] down, the blocks, [conv, norm, ReLU] up, [pad, conv, Tanh].
A block: [pad, conv, norm, ReLU, pad, conv, norm]. With two downsamplings and six or nine blocks it is the residual
generator of CycleGAN, and p2pzoo_resnet reads the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from p2pzoo.plugin import InferredConfig, StateDictFormat
from p2pzoo.utils.plurals import format_count

SIZE = (512, 1024)  # of the global generator in the paper; its tensors do not contain it
CYCLEGAN_SHAPES = {(2, 6), (2, 9)}  # (downsamplings, blocks) of CycleGAN's generators


def _convolutions(downsamplings: int, blocks: int) -> list[str]:
    first, up = 4 + 3 * downsamplings, 4 + 3 * downsamplings + blocks
    return [
        "model.1",
        *(f"model.{4 + 3 * i}" for i in range(downsamplings)),
        *(f"model.{first + b}.conv_block.{at}" for b in range(blocks) for at in (1, 5)),
        *(f"model.{up + 3 * i}" for i in range(downsamplings)),
        f"model.{up + 3 * downsamplings + 1}",
    ]


def _read(tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> InferredConfig | None:
    inside = (name.split(".")[1] for name in tensors if name.startswith("model.") and ".conv_block." in name)
    numbers = sorted({int(number) for number in inside if number.isdecimal()})
    if not numbers or (numbers[0] - 4) % 3 or numbers[0] < 7:
        return None
    downsamplings, blocks = (numbers[0] - 4) // 3, len(numbers)
    if (downsamplings, blocks) in CYCLEGAN_SHAPES:
        return None
    names = _convolutions(downsamplings, blocks)
    first, last = (tensors.get(f"{names[i]}.weight") for i in (0, -1))
    if first is None or last is None or first.ndim != 4 or last.ndim != 4:
        return None
    params = {"width": first.shape[0], "downsamplings": downsamplings, "blocks": blocks, "edges": False, **given}
    channels = first.shape[1] - bool(params["edges"])
    inputs = f"x alone, {format_count(channels, 'channel')}"
    note = f"assumed that the input is {inputs}; if the last is the boundary map: -s edges=true"
    notes = () if "edges" in given else (note,)
    return InferredConfig(params, channels, last.shape[0], SIZE, notes)


def _names(G: nn.Module) -> dict[str, str]:
    if any(isinstance(module, nn.GroupNorm) for module in G.modules()):
        raise ValueError('that format has no group norm (norm = "group")')
    own = [name for name, module in G.named_modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))]
    blocks = sum(hasattr(module, "layers") for module in G.trunk)
    downsamplings = (len(G.trunk) - 1 - blocks) // 2
    return dict(zip(own, _convolutions(downsamplings, blocks), strict=True))


GLOBAL_GENERATOR = StateDictFormat("pix2pixhd", _read, _names)
