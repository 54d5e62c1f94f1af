"""Draws the random numbers of a process, u and z of each training sample, with the batch and before the step.

Those of a sample depend only on (seed, global sample index), as those of augmentations do. A resumed run, a run of
several processes and a replayed CUDA graph therefore see the same times and the same noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from p2pzoo.data.loader import step_samples
from p2pzoo.utils import rng

if TYPE_CHECKING:
    from p2pzoo.config.experiment import Experiment


class ProcessNoise:
    """`Batch.u` and `Batch.z` of a training step.

    shape             (C, H, W) of y
    batch_size        images of the whole batch, which several processes may share
    batches_per_step  batches of a training step ([train] d_steps)

    >>> u, z = ProcessNoise((3, 8, 8), batch_size=4, seed=0).sample(step=0)
    >>> u.shape, z.shape
    (torch.Size([4]), torch.Size([4, 3, 8, 8]))
    """

    def __init__(self, shape: tuple[int, int, int], *, batch_size: int, seed: int, batches_per_step: int = 1) -> None:
        self.shape, self.batch_size, self.seed, self.batches_per_step = shape, batch_size, seed, batches_per_step

    def sample(self, step: int) -> tuple[Tensor, Tensor]:
        """u, (B,) uniform in [0, 1), and z, (B, C, H, W) of N(0, 1), of this process's shard. Both are on the CPU."""
        samples = step_samples(step, self.batch_size, self.batches_per_step)
        u, z = np.empty(len(samples), np.float32), np.empty((len(samples), *self.shape), np.float32)
        for row, sample in enumerate(samples):
            random = rng.numpy_rng(self.seed, "process", sample)
            u[row] = random.random(dtype=np.float32)
            random.standard_normal(out=z[row], dtype=np.float32)
        return torch.from_numpy(u), torch.from_numpy(z)


def make_process_noise(experiment: Experiment, channels: tuple[int, int], size: tuple[int, int]) -> ProcessNoise | None:
    """The random numbers of the recipe's process, for x and y with these channels and this (H, W); None without one."""
    if experiment.process is None:
        return None
    train = experiment.train
    return ProcessNoise(
        (channels[1], *size), batch_size=train.batch_size, seed=experiment.seed, batches_per_step=train.d_steps
    )
