"""How the sampler of a process reaches its translation: ŷ at some of the times on its way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from p2pzoo.models.test_modes import translate


def follow_path(G: nn.Module, x: Tensor, test_mode: str, max_times: int) -> list[tuple[float, Tensor]]:
    """[(t, ŷ), …] from t = 1 on, at most `max_times` of them; the last ŷ is the translation.

    [] if G has no path: it is no sampler, or one of a process that shows none (see `plugin.protocols.Process`).

    G          takes x (B, C, H, W) in [-1, 1]
    test_mode  "paper" or "eval"
    """
    if not callable(getattr(G, "path", None)):
        return []
    follower = _Path(G, max_times)
    path = translate(follower, x, test_mode).chunk(len(follower.times), dim=1)
    return [*zip(follower.times, path, strict=True)]


class _Path(nn.Module):
    """A sampler that gives all of its path, one ŷ after the other along the channels. times: those of the last call."""

    def __init__(self, sampler: Any, max_times: int) -> None:
        super().__init__()
        self.sampler, self.max_times, self.times = sampler, max_times, list[float]()

    def forward(self, x: Tensor) -> Tensor:
        path = self.sampler.path(x, self.max_times)
        self.times = [t for t, _ in path]
        return torch.cat([y_hat for _, y_hat in path], dim=1)
