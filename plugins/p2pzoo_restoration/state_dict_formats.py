"""The state dicts of the public codes: megvii-research/NAFNet, swz30/Restormer, advimman/lama."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from torch import Tensor, nn

from p2pzoo.plugin import InferredConfig, StateDictFormat

Names = dict[str, str]  # module here: module there

NO_RESIDUAL = "that format always adds x to ŷ: set residual = true"


def _shape(tensors: Mapping[str, Tensor], name: str, dims: int = 4) -> Sequence[int] | None:
    """The shape of a tensor, if there is one with so many dimensions."""
    tensor = tensors.get(name)
    return tensor.shape if tensor is not None and tensor.ndim == dims else None


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many modules PREFIX.0, PREFIX.1, … have tensors."""
    indices = {name.removeprefix(f"{prefix}.").partition(".")[0] for name in tensors if name.startswith(f"{prefix}.")}
    return next(i for i in count() if str(i) not in indices)


def _counts(tensors: Mapping[str, Tensor], prefix: str) -> tuple[int, ...]:
    return tuple(_count(tensors, f"{prefix}.{i}") for i in range(_count(tensors, prefix)))


def _block_names(ours: str, theirs: str, parts: Mapping[str, str], blocks: nn.Sequential) -> Names:
    """Names of a sequence of equal blocks, and of their parts."""
    names = {}
    for i in range(len(blocks)):
        names[f"{ours}.{i}"] = f"{theirs}.{i}"
        names |= {f"{ours}.{i}.{part}": f"{theirs}.{i}.{their_part}" for part, their_part in parts.items()}
    return names


# --- NAFNet --------------------------------------------------------------------------------------------------------

NAFNET_SIZE = (256, 256)  # of the training crops; the tensors do not contain it
NAFNET_PARTS = {
    "norm1": "norm1",
    "expand1": "conv1",
    "depthwise": "conv2",
    "attend": "sca.1",
    "project1": "conv3",
    "norm2": "norm2",
    "expand2": "conv4",
    "project2": "conv5",
}


def _read_nafnet(tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> InferredConfig | None:
    first, last = _shape(tensors, "intro.weight"), _shape(tensors, "ending.weight")
    if first is None or last is None or "middle_blks.0.beta" not in tensors:
        return None
    params = {
        "width": first[0],
        "encoder_blocks": _counts(tensors, "encoders"),
        "middle_blocks": _count(tensors, "middle_blks"),
        "decoder_blocks": _counts(tensors, "decoders"),
        "residual": True,
        **given,
    }
    return InferredConfig(params, first[1], last[0], NAFNET_SIZE)


def _nafnet_names(G: Any) -> Names:
    if not G.residual:
        raise ValueError(NO_RESIDUAL)
    names = {"enter": "intro", "leave": "ending"}
    names |= _block_names("middle", "middle_blks", NAFNET_PARTS, G.middle)
    for level in range(len(G.encoder)):
        names |= {f"down.{level}": f"downs.{level}", f"up.{level}": f"ups.{level}.0"}
        names |= _block_names(f"encoder.{level}", f"encoders.{level}", NAFNET_PARTS, G.encoder[level])
        names |= _block_names(f"decoder.{level}", f"decoders.{level}", NAFNET_PARTS, G.decoder[level])
    return names


NAFNET = StateDictFormat("nafnet", _read_nafnet, _nafnet_names)


# --- Restormer -----------------------------------------------------------------------------------------------------

RESTORMER_LEVELS = 4
RESTORMER_SIZE = (128, 128)  # of the first training crops; they grow to 384
RESTORMER_PARTS = {
    "norm1": "norm1.body",
    "attention": "attn",
    "attention.to_qkv": "attn.qkv",
    "attention.depthwise": "attn.qkv_dwconv",
    "attention.project": "attn.project_out",
    "norm2": "norm2.body",
    "feed_forward.expand": "ffn.project_in",
    "feed_forward.depthwise": "ffn.dwconv",
    "feed_forward.project": "ffn.project_out",
}
ENCODERS = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
EXPANSION = 2.66  # the default of the public code, which all its weights have


def _read_restormer(tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> InferredConfig | None:
    first, last = _shape(tensors, "patch_embed.proj.weight"), _shape(tensors, "output.weight")
    temperatures = [_shape(tensors, f"{level}.0.attn.temperature", 3) for level in ENCODERS]
    hidden = _shape(tensors, "encoder_level1.0.ffn.project_out.weight")
    if first is None or last is None or hidden is None:
        return None
    heads = tuple(shape[0] for shape in temperatures if shape is not None)
    if len(heads) < RESTORMER_LEVELS:
        return None
    deepest = _shape(tensors, "latent.0.ffn.project_out.weight") or hidden
    usual = all(shape[1] == int(shape[0] * EXPANSION) for shape in (hidden, deepest))
    params = {
        "width": first[0],
        "blocks": tuple(_count(tensors, level) for level in ENCODERS),
        "refinement_blocks": _count(tensors, "refinement"),
        "heads": heads,
        "expansion": EXPANSION if usual else (deepest[1] + 0.5) / deepest[0],  # rounded down in each level
        "bias": "output.bias" in tensors,
        "norm": "with-bias" if "latent.0.norm1.body.bias" in tensors else "bias-free",
        "residual": True,
        **given,
    }
    return InferredConfig(params, first[1], last[0], RESTORMER_SIZE)


def _restormer_names(G: Any) -> Names:
    if not G.residual:
        raise ValueError(NO_RESIDUAL)
    if len(G.encoder) != RESTORMER_LEVELS:
        raise ValueError(f"that format has {RESTORMER_LEVELS} levels, this generator {len(G.encoder)}")
    names = {"enter": "patch_embed.proj", "leave": "output"}
    names |= _block_names("refine", "refinement", RESTORMER_PARTS, G.refine)
    for i, level in enumerate(ENCODERS):
        names |= _block_names(f"encoder.{i}", level, RESTORMER_PARTS, G.encoder[i])
    for i in range(RESTORMER_LEVELS - 1):
        finer = RESTORMER_LEVELS - 1 - i  # the level of decoder.i, counted from 1
        names |= {f"down.{i}.0": f"down{i + 1}_{i + 2}.body.0", f"up.{i}.0": f"up{finer + 1}_{finer}.body.0"}
        names |= _block_names(f"decoder.{i}", f"decoder_level{finer}", RESTORMER_PARTS, G.decoder[i])
        if finer > 1:
            names[f"reduce.{i}"] = f"reduce_chan_level{finer}"
    return names


RESTORMER = StateDictFormat("restormer", _read_restormer, _restormer_names)


# --- LaMa: one sequence: [pad, first layer, layers of stride 2, blocks, concatenation, [up, norm, ReLU]…, pad, conv]

LAMA_SIZE = (256, 256)  # of the training crops
EVAL_MODE = "that code translates with running statistics of its batch norms: --test-mode eval"
FIRST_DOWN = 2  # position of the first layer of stride 2
SPECTRAL_PARTS = {
    "global_to_global.reduce.0": "ffc.convg2g.conv1.0",
    "global_to_global.reduce.1": "ffc.convg2g.conv1.1",
    "global_to_global.fourier.mix": "ffc.convg2g.fu.conv_layer",
    "global_to_global.fourier.finish.0": "ffc.convg2g.fu.bn",
    "global_to_global.expand": "ffc.convg2g.conv2",
    "global_to_local": "ffc.convg2l",
}
SPLIT_PARTS = {
    "local_to_local": "ffc.convl2l",
    "local_to_global": "ffc.convl2g",
    "finish_local.0": "bn_l",
    "finish_global.0": "bn_g",
}


def _read_lama(tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> InferredConfig | None:
    blocks = sorted(_positions(tensors, r"model\.(\d+)\.conv1\.ffc\.convg2g\."))
    first = _shape(tensors, "model.1.ffc.convl2l.weight")
    positions = _positions(tensors, r"model\.(\d+)\.")
    last = _shape(tensors, f"model.{max(positions, default=0)}.weight")
    if not blocks or first is None or last is None:
        return None
    local, global_ = (_shape(tensors, f"model.{blocks[0]}.conv1.{bn}.weight", 1) for bn in ("bn_l", "bn_g"))
    if local is None or global_ is None:
        return None
    params = {
        "width": first[0],
        "downsamplings": blocks[0] - FIRST_DOWN,
        "blocks": len(blocks),
        "ratio": global_[0] / (local[0] + global_[0]),
        **given,
    }
    return InferredConfig(params, first[1], last[0], LAMA_SIZE, (EVAL_MODE,))


def _positions(tensors: Mapping[str, Tensor], pattern: str) -> set[int]:
    return {int(match[1]) for match in map(re.compile(pattern).match, tensors) if match}


def _lama_names(G: Any) -> Names:
    for part in G.modules():
        if isinstance(part, nn.GroupNorm):
            raise ValueError('that format has no group norm (norm = "group")')
        if isinstance(part, nn.ZeroPad2d):
            raise ValueError('that format has no zero padding (padding = "zeros")')
    return dict(_iter_lama_names(len(G.down), len(G.blocks)))


def _iter_lama_names(downs: int, blocks: int) -> Iterator[tuple[str, str]]:
    """downs: layers of stride 2 before the one that splits the channels."""
    for layer, at in (("enter", 1), *((f"down.{i}", FIRST_DOWN + i) for i in range(downs))):
        yield f"{layer}.1", f"model.{at}.ffc.convl2l"
        yield f"{layer}.2", f"model.{at}.bn_l"
    at = FIRST_DOWN + downs
    yield from ((f"split.{part}", f"model.{at}.{their_part}") for part, their_part in SPLIT_PARTS.items())
    for i in range(blocks):
        for ours, theirs in (("first", "conv1"), ("second", "conv2")):
            for part, their_part in (SPLIT_PARTS | SPECTRAL_PARTS).items():
                yield f"blocks.{i}.{ours}.{part}", f"model.{at + 1 + i}.{theirs}.{their_part}"
    at += blocks + 2  # after the concatenation
    for i in range(downs + 1):
        yield f"up.{i}.0", f"model.{at + 3 * i}"
        yield f"up.{i}.1", f"model.{at + 3 * i + 1}"
    yield "leave.1", f"model.{at + 3 * (downs + 1) + 1}"


LAMA = StateDictFormat("lama", _read_lama, _lama_names)
LAMA_CHECKPOINT = StateDictFormat("lama-checkpoint", _read_lama, _lama_names, prefix="generator.")
