"""The sampler: a module around a trained G that follows an interpolant from t = 1 towards y. Imports torch only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, pairwise

import torch
from torch import Tensor, nn

from p2pzoo_process.interpolants import Coefficients


@dataclass(frozen=True)
class Step:
    """One step, from t to an earlier time: s ← keep · s + of_y · ŷ + of_x · x + of_noise · z."""

    t: float
    keep: float
    of_y: float
    of_x: float
    of_noise: float


def plan_steps(coefficients: Coefficients, steps: int, eta: float) -> list[Step]:
    """The steps between the `steps` times 1, 1 - 1/steps, …, 1/steps at which G is asked: one less than these times.

    With ŷ = G(x, s, t), and coefficients a, b, c at t and a', b', c' at the next time,

        ẑ = (s - a ŷ - b x) / c
        s' = a' ŷ + b' x + c' (√(1 - g²) ẑ + g z),   g² = η² (1 - (a c' / (a' c))²)

    which is DDIM (Song et al. 2021, arXiv:2010.02502) and, for bridges, DBIM (Zheng et al. 2025, arXiv:2405.15885).
    Where c = 0 there is no ẑ, and all noise is new (g = 1).

    >>> from p2pzoo_process.interpolants import flow
    >>> plan_steps(flow, steps=2, eta=0.0)
    [Step(t=1.0, keep=0.5, of_y=0.5, of_x=0.0, of_noise=0.0)]
    """
    # on the CPU in any case: a network can be built on the meta device, whose tensors have no values
    times = 1 - torch.arange(steps, dtype=torch.float64, device="cpu") / steps
    rows = zip(times.tolist(), *(values.tolist() for values in coefficients(times)), strict=True)
    plan = []
    for (t, a, b, c), (_, a_next, b_next, c_next) in pairwise(rows):
        if c == 0:
            keep, noise = 0.0, 1.0
        else:
            kept_ratio = a * c_next / (a_next * c)  # of the signal-to-noise ratios a / c, now to next
            noise = eta * math.sqrt(max(0.0, 1 - kept_ratio**2))
            keep = c_next / c * math.sqrt(max(0.0, 1 - noise**2))
        plan.append(Step(t, keep, a_next - keep * a, b_next - keep * b, c_next * noise))
    return plan


class GaussianSampler(nn.Module):
    """x (B, C_x, H, W) in [-1, 1] -> ŷ (B, C_y, H, W) in [-1, 1], with as many calls of G as there are times.

    The last ŷ is the translation. Noise is drawn by torch's global generator of the CPU, on any device, so that devices
    agree; a sampler whose noise has no weight draws none. s is kept in float32 where G computes in less.

    G             the trained network, which takes `join(x, s, t)`, or `join(x, s)` and t
    plan          the steps between the times (`plan_steps`)
    last_t        the last time at which G is asked
    starts_at_x   whether s begins with x (a bridge); else with noise of `out_channels` channels
    passes_time   whether G takes t as an argument
    noise_shape   (K, C): the draws of noise for one translation, and their channels
    """

    def __init__(
        self,
        G: nn.Module,
        plan: list[Step],
        last_t: float,
        *,
        out_channels: int,
        starts_at_x: bool,
        passes_time: bool = False,
    ) -> None:
        super().__init__()
        self.G, self.plan, self.last_t = G, plan, last_t
        self.out_channels, self.starts_at_x, self.passes_time = out_channels, starts_at_x, passes_time
        self.size_divisor = getattr(G, "size_divisor", 1)

    @property
    def noise_shape(self) -> tuple[int, int]:
        return (not self.starts_at_x) + sum(step.of_noise != 0 for step in self.plan), self.out_channels

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """noise: (B, K, C, H, W) of N(0, 1), used in this order. None: drawn, each when it is needed."""
        return self._follow(x, noise)

    def path(self, x: Tensor, limit: int) -> list[tuple[float, Tensor]]:
        """(t, ŷ) at the times at which G is asked, from t = 1 on. The last ŷ is the translation, as `forward` gives it.

        limit  how many times there are at most, 2 or more; the first and the last are among them
        """
        times = len(self.plan) + 1
        kept = {round(i * (times - 1) / (limit - 1)) for i in range(limit)} if times > limit else range(times)
        found: list[tuple[float, Tensor]] = []
        asked = [step.t for step in self.plan] + [self.last_t]

        def keep(number: int, y_hat: Tensor) -> None:
            if number in kept:
                found.append((asked[number], y_hat))

        self._follow(x, None, keep)
        return found

    def _follow(self, x: Tensor, noise: Tensor | None, keep: Callable[[int, Tensor], None] | None = None) -> Tensor:
        """The translation. keep: called with the number of each time, from 0 on, and ŷ."""
        draws = iter(noise.unbind(1)) if noise is not None else (self._draw(x) for _ in count())
        start = x.float()
        s = start if self.starts_at_x else _like(next(draws), x)
        for number, step in enumerate(self.plan):
            y_hat = self._ask(x, s, step.t).float()
            if keep:
                keep(number, y_hat)
            s_next = step.keep * s + step.of_y * y_hat
            if self.starts_at_x:
                s_next = s_next + step.of_x * start
            s = s_next + step.of_noise * _like(next(draws), x) if step.of_noise else s_next
        y_hat = self._ask(x, s, self.last_t)
        if keep:
            keep(len(self.plan), y_hat)
        return y_hat

    def _ask(self, x: Tensor, s: Tensor, t: float) -> Tensor:
        """ŷ = G(x, s, t)."""
        seen = (join(x, s), torch.full((x.shape[0],), t, device=x.device)) if self.passes_time else (join(x, s, t),)
        y_hat: Tensor = self.G(*seen)
        return y_hat

    def draw_noise(self, x: Tensor) -> Tensor:
        """The noise that a call with x draws, (B, K, C, H, W) on the CPU; K is at least 1."""
        draws = [self._draw(x) for _ in range(self.noise_shape[0])]
        return torch.stack(draws, 1)

    def _draw(self, x: Tensor) -> Tensor:
        """(B, C_y, H, W) from N(0, I), on the CPU."""
        return torch.randn(x.shape[0], self.out_channels, *x.shape[2:], dtype=torch.float32, device="cpu")


def _like(noise: Tensor, x: Tensor) -> Tensor:
    """Noise on the device of x and in its memory format, in float32."""
    return noise.to(x.device).contiguous(memory_format=memory_format_of(x))


def join(x: Tensor, s: Tensor, t: Tensor | float | None = None) -> Tensor:
    """What G sees: x, s and one plane with the time, (B, C_x + C_y + 1, H, W); without t no plane.

    t  (B,), or one time for all images
    """
    if t is None:
        return torch.cat([x, s.to(x.dtype)], dim=1).contiguous(memory_format=memory_format_of(x))
    plane = t[:, None, None, None] if isinstance(t, Tensor) else torch.full((), t, device=x.device)
    planes = plane.to(x.dtype).expand(x.shape[0], 1, *x.shape[2:])
    return torch.cat([x, s.to(x.dtype), planes], dim=1).contiguous(memory_format=memory_format_of(x))


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Channels-last if x is stored in it: convolutions with other strides can round differently."""
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format
