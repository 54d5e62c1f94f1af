"""How the PyTorch code (junyanz/pytorch-CycleGAN-and-pix2pix) and mmagic name the tensors of these networks.

Imports torch and the contracts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from p2pzoo.plugin import InferredConfig, StateDictFormat

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
NORMS = (nn.BatchNorm2d, nn.InstanceNorm2d)
STRIDED_LAYERS = {1: 16, 2: 34, 3: 70, 4: 142, 5: 286}  # `n_layers_D` -> receptive field
DEEPEST = 32  # more than any
DISCRIMINATORS_SIZE = (256, 256)


# --- the U-Net: a nest of blocks, each around the next; level 0 is the outermost ---------------------------------


def _reference_block(level: int, depth: int) -> tuple[dict[str, str], str]:
    """Where a block's layers are, and the block inside it: [LeakyReLU, conv, norm, inner, ReLU, up, norm, dropout]."""
    if level == 0:
        return {"down": "0", "up": "3"}, "1"
    if level == depth - 1:
        return {"down": "1", "up": "3", "up_norm": "4"}, ""
    return {"down": "1", "down_norm": "2", "up": "5", "up_norm": "6"}, "3"


def _mmagic_block(norm: str) -> Any:
    """[down, inner, up], where activation, conv and norm are one module."""

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
    """Full names by level."""
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
            own = f"{'encoder' if stem == 'down' else 'decoder'}.{index}"
            for name, module in (encoder if stem == "down" else decoder)[index].named_children():
                if isinstance(module, CONVOLUTIONS):
                    names[f"{own}.{name}"] = layers[stem]
                elif isinstance(module, NORMS):
                    if f"{stem}_norm" not in layers:
                        raise ValueError("a norm at the bottleneck (bottleneck_norm) has no place there")
                    names[f"{own}.{name}"] = layers[f"{stem}_norm"]
                elif isinstance(module, nn.Sequential):
                    raise ValueError("a resize-convolution (upsample) has no place there")
    if G.noise == "gaussian":
        raise ValueError('noise = "gaussian" has no place there')
    return names


def _read_unet(block: Any, tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> InferredConfig | None:
    """Its depth is how far the nest goes."""
    endless = _layers(block, DEEPEST)
    depth = next((i for i, layers in enumerate(endless) if f"{layers['down']}.weight" not in tensors), DEEPEST)
    if depth < 2:
        return None
    levels = _layers(block, depth)
    first, last = (tensors.get(f"{levels[0][layer]}.weight") for layer in ("down", "up"))
    if first is None or last is None or first.ndim != 4 or last.ndim != 4:
        return None
    biased = f"{levels[1]['down']}.bias" in tensors
    batch = f"{levels[1]['up_norm']}.weight" in tensors
    params: dict[str, Any] = {
        "width": first.shape[0],
        "depth": depth,
        "norm": "batch" if batch else "instance" if biased else "none",
        "bias": "lua" if batch and biased else "pytorch",
        "skip_first": True,
        **given,
    }
    notes = []
    if depth < 6:
        params.setdefault("noise", "none")
    elif params.setdefault("noise", "dropout") == "dropout" and "dropout" not in params:
        params["dropout"] = "pytorch"
        notes.append("trained with dropout, as is that code's habit in pix2pix; trained without: -s noise=none")
    side = max(32, 2**depth)
    return InferredConfig(params, first.shape[1], last.shape[1], (side, side), tuple(notes))


def _unet_written(G: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder's half of each join first."""
    tensors, notes = dict(G.state_dict()), []
    if not G.skip_first:
        for name, tensor in tensors.items():
            if re.fullmatch(r"decoder\.[1-9]\d*\.1\.weight", name):
                tensors[name] = torch.cat(tensor.chunk(2)[::-1])
        notes.append("joins are in the other order there: what it computes differs by rounding")
    dropped = [i for i, layer in enumerate(G.decoder, 1) if any(isinstance(m, nn.Dropout) for m in layer)]
    if dropped and dropped != [*range(2, len(G.decoder) - 3)]:
        notes.append("dropout stands one layer later there: what it computes in training mode differs")
    elif not dropped:
        notes.append("it has no dropout: load it there with --no_dropout")
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
MMAGIC_UNET = _unet("mmagic", _mmagic_block("bn"), "generator.")  # instance norm, "in", has no tensors


# --- discriminators: one sequence --------------------------------------------------------------------------------


def _in_order(D: nn.Module, convolutions: list[str], norms: list[str]) -> dict[str, str]:
    """Convolutions and norms of D, each in their order, under these names."""
    own = dict(D.named_modules())
    convs = [name for name, module in own.items() if isinstance(module, CONVOLUTIONS)]
    normed = [name for name, module in own.items() if isinstance(module, NORMS)]
    return dict(zip(convs, convolutions, strict=True)) | dict(zip(normed, norms if normed else [], strict=True))


def _patch_names(hidden: int) -> tuple[list[str], list[str]]:
    """[conv, LeakyReLU], then [conv, norm, LeakyReLU] for each further hidden layer, then conv."""
    at = range(2, 3 * hidden - 1, 3)
    return (
        ["model.0", *(f"model.{i}" for i in at), f"model.{3 * hidden - 1}"],
        [f"model.{i + 1}" for i in at],
    )


def _mmagic_patch_names(hidden: int) -> tuple[list[str], list[str]]:
    """One module for conv, norm and activation, then conv."""
    return [*(f"model.{i}.conv" for i in range(hidden)), f"model.{hidden}"], [f"model.{i}.bn" for i in range(1, hidden)]


def _pixel_names(hidden: int) -> tuple[list[str], list[str]]:
    return ["net.0", "net.2", "net.5"], ["net.3"]


def _read_discriminator(
    convolutions: list[str], norms: list[str], tensors: Mapping[str, Tensor], given: Mapping[str, Any]
) -> InferredConfig | None:
    first = tensors.get(f"{convolutions[0]}.weight")
    if first is None or first.ndim != 4 or f"{convolutions[1]}.weight" not in tensors:
        return None
    total = first.shape[1]
    batch = f"{norms[0]}.weight" in tensors
    biased = f"{convolutions[1]}.bias" in tensors
    params = {
        "conditional": total % 2 == 0,
        "width": first.shape[0],
        "norm": "batch" if batch else "instance" if biased else "none",
        "bias": "lua" if batch and biased else "pytorch",
        **given,
    }
    entering, leaving = (total // 2, total - total // 2) if params["conditional"] else (total, total)
    what = f"sees x and y, {entering} + {leaving} channels" if params["conditional"] else f"sees y, {total} channels"
    notes = () if "conditional" in given else (f"{what}; otherwise: -s conditional={str(total % 2 == 1).lower()}",)
    return InferredConfig(params, entering, leaving, DISCRIMINATORS_SIZE, notes)


def _discriminator(name: str, names: Any, fields: tuple[int, ...], prefix: str = "") -> StateDictFormat:
    """fields: the receptive fields that the component has, by its parameter of that name if there are several."""

    def read(tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> InferredConfig | None:
        for strided, field in STRIDED_LAYERS.items():
            convolutions, norms = names(strided + 1)
            last = tensors.get(f"{convolutions[-1]}.weight")
            if last is not None and last.ndim == 4 and last.shape[0] == 1:
                if field not in fields:
                    return None
                several = {"receptive_field": field} if len(fields) > 1 else {}
                return _read_discriminator(convolutions, norms, tensors, {**several, **given})
        return None

    return StateDictFormat(name, read, lambda D: _in_order(D, *names(len(D.blocks))), prefix=prefix)


PATCHES, IMAGE, PIXEL = (16, 34, 70, 142), (286,), (16,)
REFERENCE_PATCH = _discriminator("junyanz", _patch_names, PATCHES)
REFERENCE_IMAGE = _discriminator("junyanz", _patch_names, IMAGE)
REFERENCE_PIXEL = _discriminator("junyanz", _pixel_names, PIXEL)
MMAGIC_PATCH = _discriminator("mmagic", _mmagic_patch_names, PATCHES, "discriminator.")
MMAGIC_IMAGE = _discriminator("mmagic", _mmagic_patch_names, IMAGE, "discriminator.")
