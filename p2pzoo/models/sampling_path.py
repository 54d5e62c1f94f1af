"""How the sampler of a process reaches its translation: ŷ at some of the times on its way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from p2pzoo.config.settings import Translations
from p2pzoo.models.test_modes import translate


class PathFollower:
    """Translates as a `Translator` does, but gives ŷ at several times in place of several samples.

    G             takes x (B, C, H, W) in [-1, 1]
    translations  test mode, and how many images run together
    max_times     at most so many times
    times         of the last call: t from 1 on; the last ŷ is the translation. [] if G has no path: it is no sampler,
                  or one of a process that shows none (see `plugin.protocols.Process`)

    >>> follower = PathFollower(nn.Identity(), Translations(), max_times=8)
    >>> follower(torch.zeros(1, 3, 8, 8)), follower.times
    ([], [])
    """

    def __init__(self, G: nn.Module, translations: Translations, max_times: int) -> None:
        self.translations, self.times = translations, list[float]()
        self._path = _Path(G, max_times) if callable(getattr(G, "path", None)) else None

    def __call__(self, x: Tensor, count: int = 1) -> list[Tensor]:
        """ŷ (B, C, H, W) at each of `times`, for x (B, C, H, W) in [-1, 1]."""
        if self._path is None:
            return []
        together = self.translations.test_batch
        path = translate(self._path, x, self.translations.test_mode, together=together)
        self.times = self._path.times
        return [*path.chunk(len(self.times), dim=1)]


class _Path(nn.Module):
    """A sampler that gives all of its path, one ŷ after the other along the channels. times: those of the last call."""

    def __init__(self, sampler: Any, max_times: int) -> None:
        super().__init__()
        self.sampler, self.max_times, self.times = sampler, max_times, list[float]()

    def forward(self, x: Tensor) -> Tensor:
        path = self.sampler.path(x, self.max_times)
        self.times = [t for t, _ in path]
        return torch.cat([y_hat for _, y_hat in path], dim=1)
