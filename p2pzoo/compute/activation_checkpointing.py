"""Activation checkpointing: less memory for more time. Activations inside a block are recomputed in the backward pass.

Chen et al. 2016, arXiv:1604.06174. A block is recomputed with the random state and the buffers of its forward pass;
afterwards both have their current values again. So dropout drops the same values, and running statistics of batch norm
and vectors of spectral norm are updated once per step. Training is bit-identical if the kernels are deterministic.

A large part of the activations of a U-Net is in its largest block, and the recomputation holds the whole block in
memory. A U-Net therefore saves least.

Weights must not change between a forward pass and its backward pass. Nothing in p2pzoo does that.
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
    """Return a copy that recomputes its blocks in the backward pass. It shares its weights with `module`.

    Blocks are the outermost submodules that have children and are not containers of blocks, for example the blocks of a
    ResNet or the levels of a U-Net. A module without blocks, or one that cannot be copied, is returned itself, with a
    warning.

    >>> block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    >>> with_activation_checkpointing(nn.Sequential(block, block))(torch.ones(1, 3, 2, 2)).shape
    torch.Size([1, 3, 2, 2])
    """
    copied = copy_sharing_params(module)
    blocks = dict(_blocks(copied)) if copied else {}
    if not copied or not blocks:
        warnings.warn(f"{type(module).__name__} has no blocks: checkpointing saves no memory in it", stacklevel=2)
        return module
    for name, block in blocks.items():
        block.forward = functools.partial(_forward, name, block, block.forward)
    return copied


def _blocks(parent: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, part in parent.named_children():
        children = list(part.children())
        nested = any(True for child in children for _ in child.children())
        if isinstance(part, nn.ModuleList | nn.ModuleDict) or (isinstance(part, nn.Sequential) and nested):
            yield from _blocks(part, f"{prefix}{name}.")
        elif children:
            yield prefix + name, part


def _forward(name: str, block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    buffers = _SavedBuffers(block)
    inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    versions = [tensor._version for tensor in inputs]
    out = checkpoint(
        forward, *args, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), buffers), **kwargs
    )
    if versions != [tensor._version for tensor in inputs]:
        raise UserError(
            f"[compute] checkpointing: the block {name} ({type(block).__name__}) changes its input in place and "
            "cannot be recomputed; train with -s compute.checkpointing=false"
        )
    return out


class _SavedBuffers:
    """Save the buffers of a block; as a context manager, restore copies of them inside and put the current ones back.

    The same holds for `parts` of batch norms (see batched_discriminator.py).
    """

    def __init__(self, block: nn.Module) -> None:
        self._saved = [
            (part, name, buffer.clone())
            for part in block.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        self._current: list[Tensor | None] = []
        norms: list[Any] = [part for part in block.modules() if hasattr(part, "parts")]
        self._parts = [(norm, norm.parts) for norm in norms]

    def __enter__(self) -> None:
        self._swap_parts()
        self._current = [part._buffers[name] for part, name, _ in self._saved]
        for part, name, saved in self._saved:  # a copy: with create_graph the block can be recomputed more than once
            part._buffers[name] = saved.clone()

    def __exit__(self, *_: object) -> None:
        self._swap_parts()
        for (part, name, _saved), buffer in zip(self._saved, self._current, strict=True):
            part._buffers[name] = buffer

    def _swap_parts(self) -> None:
        current = [(norm, norm.parts) for norm, _ in self._parts]
        for norm, parts in self._parts:
            norm.parts = parts
        self._parts = current
