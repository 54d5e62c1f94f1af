"""Files to pairs to batches, each keyed by (seed, index)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pzoo.data.loader import TrainBatches, single_batches, train_batches
    from p2pzoo.data.store import Store

__all__ = ["Store", "TrainBatches", "single_batches", "train_batches"]

# Imported on first use, so that `p2pzoo.data.pairing` does not import torch, which takes seconds.
_MODULES = {"Store": "store", "TrainBatches": "loader", "single_batches": "loader", "train_batches": "loader"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
