"""The state dicts of the PyTorch code (junyanz/pytorch-CycleGAN-and-pix2pix), `resnet_6blocks` and `resnet_9blocks`.

One sequence: [pad, conv, norm, ReLU], twice [conv, norm, ReLU], the blocks, twice [conv, norm, ReLU], [pad, conv,
Tanh]. A block: [pad, conv, norm, ReLU, (dropout), pad, conv, norm].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from p2pzoo.plugin import InferredConfig, StateDictFormat

SIZE = (256, 256)  # the size that this code trains at; the tensors do not contain it
FIRST_BLOCK = 10  # its position in the sequence


def _names(blocks: int, dropout: bool) -> tuple[list[str], list[str]]:
    """The names of all convolutions, and of the norms after all of them but the last."""
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
        positions = {name.split(".")[1] for name in tensors if name.startswith("model.") and ".conv_block." in name}
        if positions != {str(FIRST_BLOCK + b) for b in range(blocks)}:
            return None
        dropout = f"model.{FIRST_BLOCK}.conv_block.6.weight" in tensors and (
            tensors[f"model.{FIRST_BLOCK}.conv_block.6.weight"].ndim == 4
        )
        convolutions, norms = _names(blocks, dropout)
        first, last = (tensors.get(f"{convolutions[i]}.weight") for i in (0, -1))
        if first is None or last is None or first.ndim != 4 or last.ndim != 4:
            return None
        has_batch_norm, has_bias = f"{norms[0]}.weight" in tensors, f"{convolutions[0]}.bias" in tensors
        params = {
            "width": first.shape[0],
            "norm": "batch" if has_batch_norm else "instance" if has_bias else "none",
            "dropout": dropout,
            **given,
        }
        return InferredConfig(params, first.shape[1], last.shape[0], SIZE)

    return read


def _names_there(G: nn.Module) -> dict[str, str]:
    if any(isinstance(module, (nn.Upsample, nn.ZeroPad2d)) for module in G.modules()):
        raise ValueError(
            'that format has no resize-convolution (upsample = "resize-conv") and no zero padding (padding = "zeros")'
        )
    if any(isinstance(module, nn.GroupNorm) for module in G.modules()):
        raise ValueError('that format has no group norm (norm = "group")')
    dropout = any(isinstance(module, nn.Dropout) for module in G.modules())
    convolutions, norms = _names(len(G.residual), dropout)
    modules = dict(G.named_modules())
    own_convolutions = [name for name, module in modules.items() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))]
    own_norms = [name for name, module in modules.items() if isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d))]
    norm_names = dict(zip(own_norms, norms if own_norms else [], strict=True))
    return dict(zip(own_convolutions, convolutions, strict=True)) | norm_names


def reference_format(blocks: int) -> StateDictFormat:
    return StateDictFormat("junyanz", _read(blocks), _names_there)
