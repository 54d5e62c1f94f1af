"""Seeds and generators for random choices, each a function of (seed, purpose, indices) alone.

A choice therefore does not depend on what ran before it, on the number of workers, or on where a run was resumed.

Purposes in use: "init", "order", "augment" (crop and mirror), "augmentation" (by name), "noise" (dropout and z of a
step), "pool", "process" (time and noise of a sample), "translate", "part" (the split of a file), "mask" and "grain"
(the region that a dataset hides in an image, and the noise that it adds), "search" (the settings of a trial).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import numpy as np


def derive_seed(seed: int, purpose: str, *indices: int | str) -> int:
    """A 63-bit integer for one choice: a hash of all arguments, the same on every machine. Names may be any file name.

    >>> derive_seed(0, "order", 3) == derive_seed(0, "order", 3) != derive_seed(0, "order", 4)
    True
    """
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), "little") >> 1


def numpy_rng(seed: int, purpose: str, *indices: int | str) -> np.random.Generator:
    """A NumPy generator for one choice, seeded by `derive_seed`.

    >>> numpy_rng(0, "order", 3).permutation(4).tolist() == numpy_rng(0, "order", 3).permutation(4).tolist()
    True
    """
    return np.random.Generator(np.random.Philox(derive_seed(seed, purpose, *indices)))


@contextlib.contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Seed torch's global generators (dropout, torch.randn) inside the block; restore their states after it."""
    import torch

    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        if torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available():
            torch.manual_seed(seed)
        else:  # a hundredth of the time: no stack trace for each kind of device
            torch.default_generator.manual_seed(seed)
        yield
