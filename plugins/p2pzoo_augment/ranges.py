"""Convert uniform random numbers in [0, 1) to the ranges of the augmentations."""

from torch import Tensor


def scale_to(low: float, high: float, u: Tensor) -> Tensor:
    """Uniform in [low, high)."""
    return low + (high - low) * u


def to_integer(count: int, u: Tensor) -> Tensor:
    """0, 1, … count - 1 with equal probability; int64."""
    return (u * count).long().clamp(max=count - 1)  # u · count may be rounded up to count


def per_image(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), to multiply images with."""
    return values.view(-1, 1, 1, 1)
