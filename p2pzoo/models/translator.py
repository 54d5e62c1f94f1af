"""What an evaluation asks of G: one or more translations of each image, and the time that they take."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from p2pzoo.config.settings import Translations
from p2pzoo.models.padding import pad_by_reflection
from p2pzoo.models.test_modes import translate_watched


class Translator:
    """Translates images by G. Call it with x (B, C, H, W) and the number of samples of each image.

    G             the generator, or the sampler of a process
    translations  test mode, and how many images run together
    size_divisor  images of other sides are padded by reflection, and ŷ is cut, as `Model.translate` does
    seconds       time for each image, of each pass through G except the first, which also prepares kernels and memory

    >>> from p2pzoo.config.settings import Translations
    >>> translate_x = Translator(nn.Conv2d(3, 3, 1), Translations())
    >>> [tuple(y_hat.shape) for y_hat in translate_x(torch.zeros(2, 3, 8, 8), count=5)]  # it draws no random numbers
    [(2, 3, 8, 8)]
    """

    def __init__(self, G: nn.Module, translations: Translations, size_divisor: int = 1) -> None:
        self.G, self.translations, self.size_divisor = G, translations, size_divisor
        self.seconds: list[float] = []
        self._is_first = True
        self._draws: bool | None = None  # known after the first images: then "eval" needs no pass to find it out

    def __call__(self, x: Tensor, count: int = 1) -> list[Tensor]:
        """ŷ (B, C, H, W) with the seeds 0 to count - 1; the first alone if G draws no random numbers: all are equal."""
        height, width = x.shape[2:]
        if height % self.size_divisor or width % self.size_divisor:
            x = pad_by_reflection(x, self.size_divisor)
        first, is_random = self._translate(x, 0)
        others = [self._translate(x, seed)[0] for seed in range(1, count if is_random else 1)]
        return [y_hat[..., :height, :width] for y_hat in (first, *others)]

    def _translate(self, x: Tensor, seed: int) -> tuple[Tensor, bool]:
        """ŷ of one seed, and whether G drew random numbers for it."""
        settings = self.translations
        began = _wait_and_read_clock(x.device)
        y_hat, is_random = translate_watched(
            self.G, x, settings.test_mode, seed=seed, together=settings.test_batch, draws=self._draws
        )
        seconds = (_wait_and_read_clock(x.device) - began) / len(x)
        self._draws = self._draws or is_random
        if not self._is_first:
            self.seconds.append(seconds)
        self._is_first = False
        return y_hat, is_random


def _wait_and_read_clock(device: torch.device) -> float:
    """Seconds of a clock, once the device has computed all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps" and torch.backends.mps.is_available():
        torch.mps.synchronize()
    return time.perf_counter()
