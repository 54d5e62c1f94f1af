"""Values of images: with 8 bits a channel, as a viewer sees them; their range; in float64. Imports torch."""

from torch import Tensor

from p2pzoo.plugin import Dataset
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count


def to_levels(images: Tensor) -> Tensor:
    """Images of any shape in [-1, 1] -> whole numbers 0 to 255, float32: clipped and rounded as saved pictures are.

    NaN stays NaN, so that the numbers of a diverged run show it.

    >>> import torch
    >>> to_levels(torch.tensor([-1.0, 0.5, 2.0])).tolist()
    [0.0, 191.0, 255.0]
    """
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round()


LEVELS = (0.0, 255.0)  # the range of images of 8 bit


def find_range(dataset: Dataset) -> tuple[float, float]:
    """The values that are -1 and 1 in the y of metrics: `y_range`, or 0 and 255 if y is stored in an encoding.

    Metrics see RGB: photos of which y is the colour in Lab, and the colours of classes that are stored as one-hot.
    """
    low, high = LEVELS if getattr(dataset, "y_encoding", None) else dataset.y_range
    return float(low), float(high)


def to_float64(values: Tensor) -> Tensor:
    """On the CPU: Apple's GPUs have no float64, so that no metric may compute in it on the device of its images."""
    return values.detach().cpu().double()


def check_channels(channels: tuple[int, ...], images: Tensor, metric: str) -> None:
    """Raises UserError if the channel count of `images` is none of those that the metric takes."""
    if images.shape[1] not in channels:
        expected = " or ".join({1: "grey (1 channel)", 3: "RGB (3 channels)"}[count] for count in channels)
        found = format_count(images.shape[1], "channel")
        raise UserError(f"{metric} takes {expected} images, and these have {found}: remove it from the recipe")
