"""Uniform random numbers in [0, 1) as what an augmentation needs. Imports torch."""

from torch import Tensor


def between(low: float, high: float, u: Tensor) -> Tensor:
    """Uniform in [low, high)."""
    return low + (high - low) * u


def whole(count: int, u: Tensor) -> Tensor:
    """0, 1, … count - 1, each as likely; int64."""
    return (u * count).long().clamp(max=count - 1)  # rounding may make u · count of count itself


def per_image(values: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)
