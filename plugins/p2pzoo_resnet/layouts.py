"""How the PyTorch code (junyanz/pytorch-CycleGAN-and-pix2pix) names the tensors of `resnet_6blocks`, `resnet_9blocks`.

One sequence: [pad, conv, norm, ReLU], twice [conv, norm, ReLU], the blocks, twice [conv, norm, ReLU], [pad,
conv, Tanh]. In a block: [pad, conv, norm, ReLU, (dropout), pad, conv, norm]. Imports torch and the contracts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from p2pzoo.plugin import InferredConfig, StateDictFormat

SIZE = (256, 256)
FIRST_BLOCK = 10


def _names(blocks: int, dropout: bool) -> tuple[list[str], list[str]]:
    """Of all convolutions, and of the norms after all but the last."""
    second = 6 if dropout else 5
    residual = [f"model.{FIRST_BLOCK + b}.conv_block.{at}" for b in range(blocks) for at in (1, second)]
    up = FIRST_BLOCK + blocks
    convolutions = ["model.1", "model.4", "model.7", *residual, f"model.{up}", f"model.{up + 3}", f"model.{up + 7}"]
    norms = [_next(name) for name in convolutions[:-1]]
    return convolutions, norms


def _next(name: str) -> str:
    head, _, index = name.rpartition(".")
    return f"{head}.{int(index) + 1}"


def _read(blocks: int) -> Any:
    def read(tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> InferredConfig | None:
        found = {name.split(".")[1] for name in tensors if name.startswith("model.") and ".conv_block." in name}
        if found != {str(FIRST_BLOCK + b) for b in range(blocks)}:
            return None
        dropout = f"model.{FIRST_BLOCK}.conv_block.6.weight" in tensors and (
            tensors[f"model.{FIRST_BLOCK}.conv_block.6.weight"].ndim == 4
        )
        convolutions, norms = _names(blocks, dropout)
        first, last = (tensors.get(f"{convolutions[i]}.weight") for i in (0, -1))
        if first is None or last is None or first.ndim != 4 or last.ndim != 4:
            return None
        batch, biased = f"{norms[0]}.weight" in tensors, f"{convolutions[0]}.bias" in tensors
        params = {
            "width": first.shape[0],
            "norm": "batch" if batch else "instance" if biased else "none",
            "dropout": dropout,
            **given,
        }
        return InferredConfig(params, first.shape[1], last.shape[0], SIZE)

    return read


def _theirs(G: nn.Module) -> dict[str, str]:
    if any(isinstance(module, (nn.Upsample, nn.ZeroPad2d)) for module in G.modules()):
        raise ValueError("a resize-convolution (upsample) or padding with zeros has no place there")
    dropout = any(isinstance(module, nn.Dropout) for module in G.modules())
    convolutions, norms = _names(len(G.residual), dropout)
    own = dict(G.named_modules())
    convs = [name for name, module in own.items() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))]
    normed = [name for name, module in own.items() if isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d))]
    return dict(zip(convs, convolutions, strict=True)) | dict(zip(normed, norms if normed else [], strict=True))


def reference(blocks: int) -> StateDictFormat:
    return StateDictFormat("junyanz", _read(blocks), _theirs)
