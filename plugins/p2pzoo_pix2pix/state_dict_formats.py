"""The state dicts of the PyTorch code (junyanz/pytorch-CycleGAN-and-pix2pix) and of mmagic for these networks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from p2pzoo.plugin import InferredConfig, StateDictFormat
from p2pzoo.utils.plurals import format_count

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
NORMS = (nn.BatchNorm2d, nn.InstanceNorm2d)
STRIDED_LAYERS = {1: 16, 2: 34, 3: 70, 4: 142, 5: 286}  # `n_layers_D` -> receptive field
MAX_DEPTH = 32  # more than any image has halvings
DISCRIMINATOR_SIZE = (256, 256)  # the size that both codes train at; tensors of a discriminator do not contain it


# --- the U-Net: nested blocks, each around the next; level 0 is the outermost ------------------------------------


def _reference_block(level: int, depth: int) -> tuple[dict[str, str], str]:
    """The names of a block's layers and of the block inside it.

    A block is a sequence [LeakyReLU, conv, norm, inner block, ReLU, up, norm, dropout].
    """
    if level == 0:
        return {"down": "0", "up": "3"}, "1"
    if level == depth - 1:
        return {"down": "1", "up": "3", "up_norm": "4"}, ""
    return {"down": "1", "down_norm": "2", "up": "5", "up_norm": "6"}, "3"


def _mmagic_block(norm: str) -> Any:
    """The same for mmagic: [down, inner block, up], where activation, conv and norm are one module."""

    def block(level: int, depth: int) -> tuple[dict[str, str], str]:
        innermost = level == depth - 1
        up = "1" if innermost else "2"
        layers = {"down": "0.conv", "up": f"{up}.conv"}
        if level > 0:
            layers["up_norm"] = f"{up}.{norm}"
            if not innermost:
                layers["down_norm"] = f"0.{norm}"
        return layers, "1"

    return block


def _layers(block: Any, depth: int) -> list[dict[str, str]]:
    """The full names of the layers, by level."""
    levels, prefix = [], "model.model."
    for level in range(depth):
        layers, inner = block(level, depth)
        levels.append({layer: prefix + name for layer, name in layers.items()})
        prefix += f"{inner}.model."
    return levels


def _unet_names(block: Any, G: nn.Module) -> dict[str, str]:
    encoder, decoder = G.encoder, G.decoder
    depth = len(encoder)
    names = {}
    for level, layers in enumerate(_layers(block, depth)):
        for stem, index in (("down", level), ("up", depth - 1 - level)):
            layer_name = f"{'encoder' if stem == 'down' else 'decoder'}.{index}"
            for name, module in (encoder if stem == "down" else decoder)[index].named_children():
                if isinstance(module, CONVOLUTIONS):
                    names[f"{layer_name}.{name}"] = layers[stem]
                elif isinstance(module, NORMS):
                    if f"{stem}_norm" not in layers:
                        raise ValueError("that format has no norm at the bottleneck (bottleneck_norm = true)")
                    names[f"{layer_name}.{name}"] = layers[f"{stem}_norm"]
                elif isinstance(module, nn.GroupNorm):
                    raise ValueError('that format has no group norm (norm = "group")')
                elif isinstance(module, nn.Sequential):
                    raise ValueError('that format has no resize-convolution (upsample = "resize-conv")')
    if G.noise == "gaussian":
        raise ValueError('that format has no noise = "gaussian"')
    return names


def _read_unet(block: Any, tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> InferredConfig | None:
    """The depth of the U-Net is the number of nested blocks."""
    all_levels = _layers(block, MAX_DEPTH)
    depth = next((i for i, layers in enumerate(all_levels) if f"{layers['down']}.weight" not in tensors), MAX_DEPTH)
    if depth < 2:
        return None
    levels = _layers(block, depth)
    first, last = (tensors.get(f"{levels[0][layer]}.weight") for layer in ("down", "up"))
    if first is None or last is None or first.ndim != 4 or last.ndim != 4:
        return None
    has_bias = f"{levels[1]['down']}.bias" in tensors
    has_batch_norm = f"{levels[1]['up_norm']}.weight" in tensors
    params: dict[str, Any] = {
        "width": first.shape[0],
        "depth": depth,
        "norm": "batch" if has_batch_norm else "instance" if has_bias else "none",
        "bias": "lua" if has_batch_norm and has_bias else "pytorch",
        "skip_first": True,
        **given,
    }
    notes = []
    if depth < 6:
        params.setdefault("noise", "none")
    elif params.setdefault("noise", "dropout") == "dropout" and "dropout" not in params:
        params["dropout"] = "pytorch"
        notes.append("assumed to be trained with dropout, the default of that code; if not: -s noise=none")
    side = max(32, 2**depth)
    return InferredConfig(params, first.shape[1], last.shape[1], (side, side), tuple(notes))


def _unet_written(G: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors with the encoder's half of each concatenation first, and notes on what differs there."""
    tensors, notes = dict(G.state_dict()), []
    if not G.skip_first:
        for name, tensor in tensors.items():
            if re.fullmatch(r"decoder\.[1-9]\d*\.1\.weight", name):
                tensors[name] = torch.cat(tensor.chunk(2)[::-1])
        notes.append("concatenations have the other order there: outputs differ by rounding")
    dropout_layers = [i for i, layer in enumerate(G.decoder, 1) if any(isinstance(m, nn.Dropout) for m in layer)]
    if dropout_layers and dropout_layers != [*range(2, len(G.decoder) - 3)]:
        notes.append("dropout is one layer later there: outputs in training mode differ")
    elif not dropout_layers:
        notes.append("this generator has no dropout: load it there with --no_dropout")
    return tensors, notes


def _unet(name: str, block: Any, prefix: str = "") -> StateDictFormat:
    return StateDictFormat(
        name,
        read=lambda tensors, given: _read_unet(block, tensors, given),
        names=lambda G: _unet_names(block, G),
        written=_unet_written,
        prefix=prefix,
    )


REFERENCE_UNET = _unet("junyanz", _reference_block)
MMAGIC_UNET = _unet("mmagic", _mmagic_block("bn"), "generator.")  # its instance norm ("in") has no tensors


# --- discriminators: one sequence of layers ----------------------------------------------------------------------


def _in_order(D: nn.Module, convolutions: list[str], norms: list[str]) -> dict[str, str]:
    """{name here: name there}: the convolutions and norms of D in order, with these names."""
    modules = dict(D.named_modules())
    if any(isinstance(module, nn.GroupNorm) for module in modules.values()):
        raise ValueError('that format has no group norm (norm = "group")')
    own_convolutions = [name for name, module in modules.items() if isinstance(module, CONVOLUTIONS)]
    own_norms = [name for name, module in modules.items() if isinstance(module, NORMS)]
    norm_names = dict(zip(own_norms, norms if own_norms else [], strict=True))
    return dict(zip(own_convolutions, convolutions, strict=True)) | norm_names


def _patch_names(hidden: int) -> tuple[list[str], list[str]]:
    """[conv, LeakyReLU], then [conv, norm, LeakyReLU] for each further hidden layer, then conv."""
    positions = range(2, 3 * hidden - 1, 3)
    return (
        ["model.0", *(f"model.{i}" for i in positions), f"model.{3 * hidden - 1}"],
        [f"model.{i + 1}" for i in positions],
    )


def _mmagic_patch_names(hidden: int) -> tuple[list[str], list[str]]:
    """One module of conv, norm and activation per hidden layer, then conv."""
    return [*(f"model.{i}.conv" for i in range(hidden)), f"model.{hidden}"], [f"model.{i}.bn" for i in range(1, hidden)]


def _pixel_names(hidden: int) -> tuple[list[str], list[str]]:
    return ["net.0", "net.2", "net.5"], ["net.3"]


def _read_discriminator(
    convolutions: list[str], norms: list[str], tensors: Mapping[str, Tensor], given: Mapping[str, Any]
) -> InferredConfig | None:
    first = tensors.get(f"{convolutions[0]}.weight")
    if first is None or first.ndim != 4 or f"{convolutions[1]}.weight" not in tensors:
        return None
    channels = first.shape[1]
    has_batch_norm = f"{norms[0]}.weight" in tensors
    has_bias = f"{convolutions[1]}.bias" in tensors
    params = {
        "conditional": channels % 2 == 0,
        "width": first.shape[0],
        "norm": "batch" if has_batch_norm else "instance" if has_bias else "none",
        "bias": "lua" if has_batch_norm and has_bias else "pytorch",
        **given,
    }
    if params["conditional"]:
        x_channels, y_channels = channels // 2, channels - channels // 2
        inputs = f"x and y, {x_channels} + {y_channels} channels"
    else:
        x_channels = y_channels = channels
        inputs = f"y alone, {format_count(channels, 'channel')}"
    option = f"-s conditional={str(channels % 2 == 1).lower()}"
    notes = () if "conditional" in given else (f"assumed inputs of D: {inputs}; if not: {option}",)
    return InferredConfig(params, x_channels, y_channels, DISCRIMINATOR_SIZE, notes)


def _discriminator(name: str, names: Any, fields: tuple[int, ...], prefix: str = "") -> StateDictFormat:
    """A format of discriminators with these receptive fields: a parameter of the component if there are several."""

    def read(tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> InferredConfig | None:
        for strided, field in STRIDED_LAYERS.items():
            convolutions, norms = names(strided + 1)
            last = tensors.get(f"{convolutions[-1]}.weight")
            if last is not None and last.ndim == 4 and last.shape[0] == 1:
                if field not in fields:
                    return None
                parameter = {"receptive_field": field} if len(fields) > 1 else {}
                return _read_discriminator(convolutions, norms, tensors, {**parameter, **given})
        return None

    return StateDictFormat(name, read, lambda D: _in_order(D, *names(len(D.blocks))), prefix=prefix)


PATCHES, IMAGE, PIXEL = (16, 34, 70, 142), (286,), (16,)
REFERENCE_PATCH = _discriminator("junyanz", _patch_names, PATCHES)
REFERENCE_IMAGE = _discriminator("junyanz", _patch_names, IMAGE)
REFERENCE_PIXEL = _discriminator("junyanz", _pixel_names, PIXEL)
MMAGIC_PATCH = _discriminator("mmagic", _mmagic_patch_names, PATCHES, "discriminator.")
MMAGIC_IMAGE = _discriminator("mmagic", _mmagic_patch_names, IMAGE, "discriminator.")
