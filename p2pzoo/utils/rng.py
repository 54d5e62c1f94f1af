"""Every random choice is a function of (seed, purpose, indices): never of what ran before or of how many workers ran.

Purposes in use: "init", "order", "augment" (crop and mirror), "augmentation" (by name), "noise" (dropout and z of a
step), "pool", "translate", "part" (the split a file belongs to), "mask" and "grain" (what a dataset hides of an image,
and the noise that it adds to it).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import numpy as np


def derive_seed(seed: int, purpose: str, *indices: int | str) -> int:
    """A 63-bit integer that is as good as random, and always the same."""
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_rng(seed: int, purpose: str, *indices: int | str) -> np.random.Generator:
    """A NumPy generator of its own for one choice."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, purpose, *indices)))


@contextlib.contextmanager
def torch_seed(number: int) -> Iterator[None]:
    """torch's own generators (dropout, torch.randn) start from `number` inside and are put back afterwards."""
    import torch

    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(number)
        yield
