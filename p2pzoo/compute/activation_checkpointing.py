"""Less memory for more time: what the layers of a block give is not kept for the backward pass, but computed again.

(Activation checkpointing: Chen et al. 2016, arXiv:1604.06174.) A block is computed again with the random numbers and
the buffers that it had, and leaves both as they are by then: dropout drops the same values, and the running statistics
of batch norm, or the vectors of spectral norm, move once a step. So training gives the same bits, where the kernels do.

A large part of what a U-Net keeps is in its largest block, which has to be whole once: there it saves least.

Weights must not change between a forward pass and its backward pass, which nothing here does.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from p2pzoo.compute.shared_copy import copy_sharing_params
from p2pzoo.utils.errors import UserError


def with_activation_checkpointing(module: nn.Module) -> nn.Module:
    """A copy that computes its blocks again in the backward pass. It shares every parameter and buffer with `module`.

    Blocks are the largest parts that have parts themselves, but no list of blocks: layers of a ResNet, levels of a
    U-Net. Where there is none, or the module cannot be copied, it comes back as it is, with a warning.
    """
    twin = copy_sharing_params(module)
    blocks = dict(_blocks(twin)) if twin else {}
    if not twin or not blocks:
        warnings.warn(f"{type(module).__name__} has no blocks: checkpointing saves no memory there", stacklevel=2)
        return module
    for name, block in blocks.items():
        block.forward = functools.partial(_forward, name, block, block.forward)
    return twin


def _blocks(parent: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, part in parent.named_children():
        inside = list(part.children())
        nested = any(True for child in inside for _ in child.children())
        if isinstance(part, nn.ModuleList | nn.ModuleDict) or (isinstance(part, nn.Sequential) and nested):
            yield from _blocks(part, f"{prefix}{name}.")
        elif inside:
            yield prefix + name, part


def _forward(name: str, block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    before = _Buffers(block)
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    versions = [tensor._version for tensor in given]
    out = checkpoint(
        forward, *args, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), before), **kwargs
    )
    if versions != [tensor._version for tensor in given]:
        raise UserError(
            f"[compute] checkpointing: the block {name} ({type(block).__name__}) changes its input in place, so it "
            "cannot be computed again; train with -s compute.checkpointing=false"
        )
    return out


class _Buffers:
    """A block's buffers as they are now; inside, copies of these take the place of what they have become.

    So do the parts in which its norms take their images (see onepass.py).
    """

    def __init__(self, block: nn.Module) -> None:
        self._kept = [
            (part, name, buffer.clone())
            for part in block.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        self._now: list[Tensor | None] = []
        norms: list[Any] = [part for part in block.modules() if hasattr(part, "parts")]
        self._parts = [(norm, norm.parts) for norm in norms]

    def __enter__(self) -> None:
        self._exchange_parts()
        self._now = [part._buffers[name] for part, name, _ in self._kept]
        for part, name, buffer in self._kept:  # copied once more: after create_graph it is computed again again
            part._buffers[name] = buffer.clone()

    def __exit__(self, *_: object) -> None:
        self._exchange_parts()
        for (part, name, _before), now in zip(self._kept, self._now, strict=True):
            part._buffers[name] = now

    def _exchange_parts(self) -> None:
        now = [(norm, norm.parts) for norm, _ in self._parts]
        for norm, parts in self._parts:
            norm.parts = parts
        self._parts = now
